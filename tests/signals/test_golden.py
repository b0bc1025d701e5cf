"""The rows of every signal on fixed candles, by the version of its code: a changed result is told.

golden.json holds results, no candles: of the generated market, which is the same everywhere, and of
the recording where it is there. `GOLDEN=write` writes those of a code version that it lacks.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import (
    FIRST_DAY,
    LAST_DAY,
    MINUTES,
    copied,
    days_of,
    generated,
    new_database,
    store_minutes,
)
from tests.signals.conftest import Bench
from tests.signals.rejections.test_outcomes import SETTINGS as WITH_EXITS
from tests.signals.rejections.test_outcomes import WORDS, reject
from trading_pipelines.candles.windows import DAY
from trading_pipelines.database.connection import connect
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.signals.catalogue import SIGNALS, Signal
from trading_pipelines.signals.registry import COMPUTATIONS

GOLDEN = Path(__file__).parent / "golden.json"
SYMBOLS = ["KRW-BTC", "KRW-ETH", "KRW-DOGE"]
# Without enough history for the model, and with it; a score looks at forecasts of the day before.
EARLY, LATE = date(2025, 9, 10), LAST_DAY
DECIDED = LAST_DAY - 3 * DAY
COMPUTED = {
    "regime_labels": [EARLY, DECIDED, LATE],
    "realized_volatility": days_of(FIRST_DAY, LATE),
    "reject_outcomes": [DECIDED],
    "confirm_outcomes": [DECIDED],
}
SHOWN_DAYS = {EARLY, LATE, DECIDED}
EXACT = {"regime_labels", "reject_outcomes", "confirm_outcomes"}
# What an optimiser finds differs in its last digits from machine to machine.
TOLERANCE = {"garch_baseline": 1e-3, "volatility_forecast": 1e-3, "volatility_score": 1e-3}
WHAT_TO_DO = (
    "raise the code_version of {asset} in trading_pipelines/signals/catalogue.py if that is meant, "
    "then write the results of the new version: GOLDEN=write {command}"
)
COMMAND = ".venv/bin/python -m pytest -n 0 tests/signals/test_golden.py"


@cache
def upstream(asset: str) -> frozenset[str]:
    """Return the asset and every signal it is computed from, near and far."""
    inputs = next(signal for signal in SIGNALS if signal.asset == asset).inputs(WITH_EXITS)
    names = {signal.asset for signal in SIGNALS}
    return frozenset({asset}.union(*(upstream(name) for name in inputs if name in names)))


def versions(asset: str, signals: tuple[Signal, ...] = SIGNALS) -> dict[str, str]:
    """Return the code's versions on which the asset's rows depend."""
    return {s.asset: s.code_version for s in signals if s.asset in upstream(asset)}


def results(bench: Bench, signal: Signal) -> list[dict[str, Any]]:
    """Return the signal's rows that are kept: two symbols, four hours of a day."""
    table = COMPUTATIONS[signal.asset].table
    rows = []
    for (text,) in bench.rows(table.name):
        row = json.loads(text)
        moment = datetime.fromisoformat(f"{row[table.time]}")
        if row.get("symbol") == "KRW-ETH" or moment.date() not in SHOWN_DAYS or moment.hour % 6:
            continue
        # Of the bits of all numbers, whose last ones differ from machine to machine.
        if table.name == "volatility_model":
            del row["model"]["data_hash"]
        if row.get("fit"):
            del row["fit"]["data_hash"], row["fit"]["parameters"]
        rows.append(row)
    return rows


def problem(
    golden: dict[str, Any], asset: str, rows: list[dict[str, Any]], code: dict[str, str]
) -> str | None:
    """Return what is wrong with the results, and what to do, or None."""
    kept = golden.get(asset)
    if kept is None or kept["code_versions"] != code:
        return f"there are no results of {asset} by {code}: GOLDEN=write {COMMAND}"
    tolerance = 0 if asset in EXACT else TOLERANCE.get(asset, 1e-6)
    if same(kept["rows"], rows, tolerance):
        return None
    return f"the results have changed: {WHAT_TO_DO.format(asset=asset, command=COMMAND)}"


def same(before: Any, now: Any, tolerance: float) -> bool:
    if isinstance(before, dict) and isinstance(now, dict):
        return before.keys() == now.keys() and all(
            same(before[name], now[name], tolerance) for name in before
        )
    if isinstance(before, list) and isinstance(now, list):
        return len(before) == len(now) and all(
            same(*pair, tolerance) for pair in zip(before, now, strict=True)
        )
    if isinstance(before, float) and isinstance(now, float | int):
        return bool(now == pytest.approx(before, rel=tolerance, abs=tolerance * 1e-6))
    return bool(before == now)


def fill(bench: Bench) -> None:
    """Compute every signal of the days that are kept, and what they are computed from."""
    for decision in ("REJECT", "CONFIRM"):
        for n, (symbol, word) in enumerate((s, w) for s in ("KRW-BTC", "KRW-DOGE") for w in WORDS):
            price = None if n % 3 else Decimal(100)
            regime = ("BULL", None, "SIDEWAYS")[n % 3]
            at = datetime(DECIDED.year, DECIDED.month, DECIDED.day, 2 * n, 10, 5, tzinfo=UTC)
            reject(bench, symbol, at, price, regime, decision=decision, reason=word)
    for signal in SIGNALS:
        for day in COMPUTED.get(signal.asset, [EARLY - DAY, EARLY, LATE - DAY, LATE]):
            found = bench.compute(signal, SYMBOLS, day)
            assert not [partition.error for partition in found if partition.error]


@pytest.fixture(scope="module")
def generated_template(server: EmbeddedServer, template: str) -> str:
    """The name of a database that holds the generated market and the signals of it."""
    minutes = generated(FIRST_DAY, LAST_DAY)
    with connect(new_database(server, "template_golden", template)) as connection:
        store_minutes(connection, minutes[minutes.symbol.isin(SYMBOLS)])
        fill(Bench(connection, WITH_EXITS.model_copy(update={"symbols": SYMBOLS})))
    return "template_golden"


@pytest.fixture
def bench(server: EmbeddedServer, generated_template: str) -> Iterator[Bench]:
    with connect(copied(server, generated_template)) as connection:
        yield Bench(connection, WITH_EXITS.model_copy(update={"symbols": SYMBOLS}))


def as_text(golden: dict[str, Any]) -> str:
    """Return it as JSON, a row a line, so that a changed result is a changed line."""
    text = json.dumps(golden, indent=1, ensure_ascii=False)
    text = re.sub(r"\n {4,}|\n {3}(?=[}\]])", " ", text)
    return re.sub(r"}, {|\[ {", lambda match: match[0][:-1].rstrip() + "\n    {", text) + "\n"


def check(source: str, bench: Bench) -> None:
    """Compare the results of all signals, or write those of versions that are not there yet."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    of_source = golden.setdefault(source, {})
    for signal in SIGNALS:
        asset, code = signal.asset, versions(signal.asset)
        rows = results(bench, signal)
        assert rows, asset
        if (
            os.environ.get("GOLDEN") == "write"
            and of_source.get(asset, {}).get("code_versions") != code
        ):
            of_source[asset] = {"code_versions": code, "rows": rows}
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.write_text(as_text(golden), encoding="utf-8")
    problems = {
        signal.asset: problem(of_source, signal.asset, results(bench, signal),
                              versions(signal.asset))
        for signal in SIGNALS
    }  # fmt: skip
    assert not any(problems.values()), "\n".join(filter(None, problems.values()))


def test_the_results_on_the_generated_market_are_those_of_their_code_version(bench: Bench) -> None:
    check("generated", bench)


@pytest.mark.skipif(not MINUTES.exists(), reason="the recording is not here (tests/conftest.py)")
def test_the_results_on_the_recording_are_those_of_their_code_version(
    server: EmbeddedServer, recorded_template: str
) -> None:
    with connect(copied(server, recorded_template)) as connection:
        bench = Bench(connection, WITH_EXITS.model_copy(update={"symbols": SYMBOLS}))
        fill(bench)
        check("recorded", bench)


MUTANTS = {
    "regime_labels": ("regimes.labels.HYSTERESIS", Decimal("0.8")),
    "realized_volatility": ("volatility.realized.LARGEST_ZERO_SHARE", -1),
    "volatility_model": ("volatility.model.BLOCKS", 4),
    "volatility_forecast": ("volatility.model.EWMA_DECAY", 0.96),
    "garch_baseline": ("volatility.garch.FEWEST_HOURS", 600),
    "reject_outcomes": ("rejections.outcomes.HORIZONS", (1, 4, 12, 23)),
}


@pytest.mark.parametrize("asset", MUTANTS)
def test_a_computation_that_is_changed_without_its_version_fails_and_with_it_is_to_be_written(
    asset: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, value = MUTANTS[asset]
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))["generated"]
    signal = next(one for one in SIGNALS if one.asset == asset)
    assert problem(golden, asset, results(bench, signal), versions(asset)) is None
    monkeypatch.setattr(f"trading_pipelines.signals.{name}", value)
    for day in COMPUTED.get(asset, [EARLY - DAY, EARLY, LATE - DAY, LATE]):
        bench.compute(signal, SYMBOLS, day)
    told = problem(golden, asset, results(bench, signal), versions(asset))
    assert str(told).startswith(f"the results have changed: raise the code_version of {asset}")
    raised = tuple(replace(s, code_version="another") if s is signal else s for s in SIGNALS)
    told = problem(golden, asset, results(bench, signal), versions(asset, raised))
    assert str(told).startswith(f"there are no results of {asset} by")
