"""What the figures prove, and what they do not: verdicts, intervals, the needed sample, words."""

import random
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from io import BytesIO

import pytest
from matplotlib.axes import Axes
from PIL import Image

from tests.conftest import STRATEGY
from tests.scorecard.bots import MIDNIGHT, SETTINGS, bot, entry
from trading_pipelines.scorecard import plots, words
from trading_pipelines.scorecard.entries import Entry
from trading_pipelines.scorecard.score import (
    EDGE,
    FEWEST_DAYS,
    Comparison,
    Estimate,
    Verdict,
    band,
    days_needed,
    score,
)

NEEDED = 40
WEEK = date(2026, 8, 24)


def whole(entries: list[Entry], needed: int | None = NEEDED) -> Comparison:
    return score(entries, needed)[0]


def sides(days: int, taken: int | None, refused: int | None, count: int = 1) -> list[Entry]:
    """Return entries of both decisions on each day, all of a side with the same result."""
    return [
        entry(n, MIDNIGHT + timedelta(days=day, hours=n % 24), krw + day % 7, is_confirmed=kind)
        for day in range(days)
        for n in range(count)
        for kind, krw in ((True, taken), (False, refused))
        if krw is not None
    ]


def test_below_the_needed_sample_nothing_is_told_however_clear_it_looks() -> None:
    clear = whole(sides(NEEDED - 1, 40_000, -30_000))
    assert clear.edge.low is not None
    assert clear.edge.low > 0.06
    assert (clear.days, clear.days_needed, clear.verdict) == (39, 40, Verdict.CANNOT_TELL)
    assert whole(sides(NEEDED, 40_000, -30_000)).verdict is Verdict.SKILL
    assert whole(sides(NEEDED, -30_000, 40_000)).verdict is Verdict.HARM
    assert whole(sides(NEEDED, 40_000, None)).verdict is Verdict.CANNOT_TELL
    assert whole(sides(90, 40_000, -30_000), None).verdict is Verdict.CANNOT_TELL
    assert whole([]).verdict is Verdict.CANNOT_TELL


def test_a_market_in_which_every_entry_loses_is_no_skill() -> None:
    entries = bot(random.Random(1), 60, alike=0.0)
    losing = [e._replace(result_krw=Decimal(-30_000 - e.id % 9), exit_return=-0.03 - e.id % 9 / 1e6)
              for e in entries]  # fmt: skip
    found = whole(losing)
    assert found.saved_krw > 0
    assert found.verdict is Verdict.NO_EDGE
    assert found.chance_krw is not None
    assert float(found.saved_krw) == pytest.approx(float(found.chance_krw), rel=1e-3)


def test_many_entries_of_few_days_are_few() -> None:
    chance = random.Random(2)
    few = whole([
        entry(n, MIDNIGHT + timedelta(days=n % 8), chance.choice([49_000, -31_000]),
              is_confirmed=n % 2 == 0 if n % 16 < 8 else n % 2 == 1)
        for n in range(4000)
    ])  # fmt: skip
    assert few.days == 8
    assert few.verdict is Verdict.CANNOT_TELL


def test_the_sample_that_is_needed_is_that_of_the_widest_exits_and_none_without() -> None:
    assert days_needed(SETTINGS) == NEEDED
    wide = {"take_profit_pct": 0.2, "stop_loss_pct": 0.1, "max_hours": 72}
    regimes = {**SETTINGS.regimes, "BEAR": {"exit": wide}}
    assert (days_needed(SETTINGS.model_copy(update={"regimes": regimes})) or 0) > 300
    tight = {"take_profit_pct": 0.01, "stop_loss_pct": 0.01, "max_hours": 72}
    one = SETTINGS.model_copy(update={"regimes": {"BULL": {"exit": tight}}})
    assert days_needed(one) == FEWEST_DAYS
    assert days_needed(STRATEGY) is None


@pytest.mark.parametrize("alike", [0.3, 1.0])
def test_bots_without_skill_are_seldom_said_to_have_it_and_a_planted_edge_is_found(
    alike: float,
) -> None:
    """A sample of `benchmarks/scorecard.py`, which asks 1,000 bots: at most 5 %, at least 80 %."""
    chance, bots = random.Random(f"{alike}"), 25
    claimed = found = 0
    for _ in range(bots):
        verdicts = [one.verdict for one in score(bot(chance, NEEDED, alike=alike), NEEDED)
                    if one.grouping != "flag"]  # fmt: skip
        claimed += Verdict.SKILL in verdicts
        planted = bot(chance, NEEDED, edge=EDGE, alike=alike)
        found += whole(planted).verdict is Verdict.SKILL
    # With 5 % and 80 % in truth, one such sample in some hundred would fail.
    assert claimed <= 5
    assert found >= 14


def test_the_same_entries_give_the_same_bytes() -> None:
    entries = bot(random.Random(3), 45)
    assert f"{score(entries, NEEDED)}" == f"{score(entries, NEEDED)}"


def test_the_worth_of_confidence_is_told_within_each_side() -> None:
    chance = random.Random(4)
    entries = []
    for number in range(3000):
        is_confirmed = chance.random() < 0.5
        percent = chance.choice([55, 65, 75, 85, 95])
        is_right = chance.random() < 0.2 + percent / 200
        krw = 30_000 if is_right is is_confirmed else -30_000
        at = MIDNIGHT + timedelta(days=number % 60)
        entries.append(entry(number, at, krw, is_confirmed=is_confirmed, confidence=percent))
    comparisons = score(entries, NEEDED)
    slope = comparisons[0].slope
    assert slope.low is not None
    assert slope.high is not None
    assert 0 < slope.low < 0.005 < slope.high
    assert words.confidence_line(comparisons[0]).startswith(
        "Confidence: more of it is more often right"
    )
    curve = {one.name: one for one in comparisons if one.grouping == "confidence"}
    assert list(curve) == ["50-59", "60-69", "70-79", "80-89", "90-100"]
    assert curve["50-59"].confidence == 55
    assert (curve["50-59"].right.value or 0) < (curve["90-100"].right.value or 0)
    # All of one side at 60, all of the other at 90: no confidence of its own.
    flat = [e._replace(confidence=90 if e.is_confirmed else 60) for e in entries]
    assert whole(flat).slope == Estimate()


def test_what_the_flag_costs_is_told_of_entries_that_were_decided_while_it_was_up() -> None:
    entries = [
        e._replace(is_flagged=(None, True, False)[n % 3], result_krw=Decimal(1000 * (n % 3)))
        for n, e in enumerate(sides(NEEDED, 5000, 5000, count=3))
    ]
    every, confirmed = score(entries, NEEDED)[-2:]
    assert (every.name, confirmed.name) == ("every entry", "confirmed")
    assert (every.taken.entries, every.refused.entries) == (80, 80)
    assert every.saved_krw == -80_000, "it kept the bot from gains"
    assert confirmed.refused.entries == 40


@pytest.mark.parametrize(
    ("percent", "name"),
    [(None, "not given"), (0, "0-49"), (49.9, "0-49"), (50, "50-59"), (100, "90-100")],
)
def test_a_confidence_is_of_one_band(percent: float | None, name: str) -> None:
    assert band(percent) == name


def test_what_is_not_judged_is_counted_and_in_no_sum() -> None:
    at = MIDNIGHT
    found = whole([entry(1, at, None, is_confirmed=False), entry(2, at, 5, is_confirmed=False)])
    assert (found.refused.entries, found.refused.judged) == (2, 1)
    assert found.refused.krw == 5
    assert found.refused.mean_return == Estimate(0.000005)
    assert found.saved_share == -0.000005


def test_the_words_say_whether_it_paid_and_what_is_missing() -> None:
    few = whole(sides(12, 40_000, -30_000))
    assert words.headline(few) == (
        "Cannot be told yet (12 of the 40 days with an entry that each side needs): "
        f"refusing saved {few.saved_krw:,} KRW (+3.00 %)"
    )
    enough = whole(sides(NEEDED, 40_000, 50_000))
    assert words.headline(enough).startswith("Worse than chance: refusing cost 2,000,1")
    unknown = replace(few, days_needed=None)
    assert "section regimes has no exits" in words.headline(unknown)


def test_the_message_is_in_korean() -> None:
    entries = sides(NEEDED, 40_000, -30_000)
    message = words.body(score(entries, NEEDED), WEEK, datetime(2026, 9, 2, tzinfo=UTC))
    assert (message["type"], message["level"]) == ("AI_SCORECARD", "INFO")
    first, *others = message["message"].splitlines()
    assert first == (
        "2026-06-01 ~ 2026-08-30 (KST), AI 성적: 실력 있음 (양쪽 판정일 40일 / 필요 40일)"
    )
    assert others[0].startswith("승인: 40건 중 판정 40건, 이익 40건, +1,600,1")
    assert others[3].startswith("거절의 효과: 절약 1,199,8")


@pytest.mark.parametrize("days", [0, 3, 40])
def test_the_picture_is_drawn_with_and_without_entries(days: int) -> None:
    entries = bot(random.Random(6), days)
    with Image.open(BytesIO(plots.draw(entries, score(entries, NEEDED)))) as picture:
        assert picture.width == 1067
        assert len(picture.getcolors(256) or []) > 10


def test_a_confidence_that_was_never_right_is_drawn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[object, ...]] = []
    plot = Axes.plot

    def noted(panel: Axes, *arguments: object, **options: object) -> object:
        drawn.append(arguments)
        return plot(panel, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Axes, "plot", noted)
    wrong = [
        entry(n, MIDNIGHT + timedelta(days=n), -31_000, is_confirmed=True, confidence=95)
        for n in range(NEEDED)
    ]
    plots.draw(wrong, score(wrong, NEEDED))
    assert (0.95, 0.0, "o") in drawn
