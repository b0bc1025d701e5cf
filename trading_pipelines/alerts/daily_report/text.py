"""The daily report in words: the body that the webhook `daily-report` takes.

What is not known is counted and said, never shown as a 0. The figures belong in `figures`; entering
the report in the ledger, in `alerts/periodic`.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from trading_pipelines.alerts.daily_report.figures import (
    UNDELIVERED_STATES,
    CandleFigures,
    DailyReport,
    Forecast,
    number,
)
from trading_pipelines.alerts.daily_report.pnl import SymbolFigures
from trading_pipelines.candles.windows import HOUR, Interval
from trading_pipelines.korean_time import kst

SUMMARY_LENGTH = 2000


def body(report: DailyReport, now: datetime) -> dict[str, Any]:
    """Return what the webhook `daily-report` takes; a rate or a fall that there is not is null."""
    return {
        "title": f"일일 리포트 {report.day} (KST)",
        "pnl": number(report.pnl),
        "trades": report.trades,
        "win_rate": number(report.win_rate),
        "mdd": number(report.mdd),
        "summary": _fitted([*_head(report), *(_line(report, s) for s in _symbols(report))]),
        "timestamp": now.astimezone(UTC).isoformat(),
    }


def _symbols(report: DailyReport) -> list[str]:
    """Return what was traded before what was not; in the settings' order, then by name."""
    traded = report.trading.symbols
    return sorted(dict.fromkeys([*report.regimes, *sorted(traded)]), key=lambda s: s not in traded)


def _head(report: DailyReport) -> Iterator[str]:
    trading, trips = report.trading, report.round_trips
    if report.trades:
        pnl, fees = _krw(report.pnl, "+"), _krw(report.fees)
        yield f"체결 {report.trades}건, 실현 손익 {pnl}, 수수료 {fees}"
    else:
        yield "체결 없음"
    if report.win_rate is None or report.mdd is None:
        yield "청산 없음: 승률과 MDD도 없음"
    else:
        rate = f"승률 {report.win_rate:.1f}%"
        yield f"청산 {trips}건, 이익 {report.wins}건 ({rate}), MDD {_krw(report.mdd)}"
    if report.unmatched:
        yield f"주의: 매수 기록이 없는 매도 {len(report.unmatched)}종목, 손익에서 제외"
    if trading.undated:
        yield f"주의: 시각이 없는 체결 주문 {trading.undated}건(전체 기간), 모두 제외"
    if trading.unusable:
        yield f"주의: 구분·가격·수량이 잘못된 체결 주문 {trading.unusable}건(전체 기간), 제외"
    if trading.fees_unknown:
        yield f"주의: 수수료 기록이 없는 주문 {trading.fees_unknown}건, 0원으로 계산"
    yield _decisions(report)
    yield _alerts(report)
    candles = report.candles.values()
    if candles:
        due, stored = (
            sum(getattr(figures, name) for figures in candles) for name in ("due", "stored")
        )
        quiet, holes = (
            sum(getattr(figures, name) for figures in candles) for name in ("quiet", "holes")
        )
        yield f"캔들 {stored:,}/{due:,}분, 거래 없는 분 {quiet:,}, 빠진 분 {holes:,}"


def _decisions(report: DailyReport) -> str:
    if not report.decisions and not report.undated_decisions:
        return "AI 판단 없음"
    counts = {"CONFIRM": 0, "REJECT": 0, **report.decisions}
    parts = [f"{decision} {count}건" for decision, count in counts.items()]
    if report.undated_decisions:
        parts.append(f"시각 없음 {report.undated_decisions}건(전체 기간, 제외)")
    return f"AI 판단: {', '.join(parts)}"


def _alerts(report: DailyReport) -> str:
    if not report.alerts:
        return "알림 없음"
    dead = {kind: n for (kind, state), n in report.alerts.items() if state == "dead"}
    named = f" ({', '.join(f'{kind} {n}' for kind, n in dead.items())})" if dead else ""
    parts = [f"전달 {report.alerts_in('delivered')}건", f"실패 {sum(dead.values())}건{named}"]
    for name, states in {"대기": UNDELIVERED_STATES, "보내지 않음": ("skipped",)}.items():
        if count := report.alerts_in(*states):
            parts.append(f"{name} {count}건")
    return f"알림: {', '.join(parts)}"


def _line(report: DailyReport, symbol: str) -> str:
    """Return all there is to say of a symbol."""
    parts = [_traded(report.trading.symbols.get(symbol))]
    # Of a symbol that is not in the settings nothing is collected, so nothing is missing.
    if symbol in report.regimes:
        parts += [
            _regimes(report.regimes[symbol], report.window),
            _volatility(report.forecasts.get(symbol), report.window),
            *_collection_problems(report.candles[symbol]),
        ]
    return f"{symbol}: {' | '.join(parts)}"


def _traded(figures: SymbolFigures | None) -> str:
    if figures is None:
        return "체결 없음"
    parts = [f"체결 {figures.trades}건"]
    if figures.trips:
        parts += [
            f"손익 {_krw(figures.pnl, '+')}",
            f"청산 {len(figures.trips)}건 중 이익 {figures.wins}건",
        ]
    parts.append(f"수수료 {_krw(figures.fees)}")
    if figures.unmatched:
        parts.append(f"매수 기록 없는 매도 {figures.unmatched.normalize():,f}개 제외")
    return ", ".join(parts)


def _regimes(hours: Mapping[str, int], whole: Interval) -> str:
    hours_of = dict(hours)
    if missing := (whole.end - whole.start) // HOUR - sum(hours.values()):
        hours_of["라벨 없음"] = missing
    return f"레짐 {', '.join(f'{label} {count}시간' for label, count in hours_of.items())}"


def _volatility(forecast: Forecast | None, whole: Interval) -> str:
    if forecast is None:
        return "변동성 예측 없음"
    old = f", {kst(forecast.valid_until)} 만료" if forecast.valid_until <= whole.end else ""
    if forecast.annualized_volatility is None:
        return f"변동성 값 없음 ({forecast.status}{old})"
    high = {True: "높음", False: "높지 않음", None: "높은지 모름"}[forecast.is_high_volatility]
    return f"변동성 연 {forecast.annualized_volatility:.0%} ({high}, {forecast.status}{old})"


def _collection_problems(candles: CandleFigures) -> Iterator[str]:
    if candles.holes:
        yield f"캔들 {candles.stored:,}/{candles.due:,}분, 빠진 분 {candles.holes:,}"
    if candles.gone:
        yield f"저장 후 없어진 캔들 {candles.gone:,}"
    for name, days in {"수집 실패": candles.failed, "수집 미완료": candles.incomplete}.items():
        if days:
            yield f"{name} {', '.join(map(str, days))} (UTC)"


def _krw(amount: Decimal, sign: str = "") -> str:
    """Return at most two decimals, those that are none left out; never a minus before a 0."""
    return f"{amount:{sign}z,.2f}".rstrip("0").rstrip(".") + " KRW"


def _fitted(lines: Sequence[str]) -> str:
    """Return as many whole lines as there is room for, and how many were left out."""
    for kept in range(len(lines), -1, -1):
        rest = [f"(이하 {len(lines) - kept}줄 생략)"] if kept < len(lines) else []
        text = "\n".join([*lines[:kept], *rest])
        if len(text) <= SUMMARY_LENGTH:
            break
    return text
