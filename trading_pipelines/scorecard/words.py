"""The scorecard as a person reads it: rows of a table, a sentence, the message to Discord.

The figures belong in `score`, the picture in `plots`.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from trading_pipelines.candles.windows import DAY
from trading_pipelines.scorecard.entries import Entries
from trading_pipelines.scorecard.score import EDGE, Comparison, Estimate, Side, Verdict
from trading_pipelines.scorecard.weekly import WEEKS
from trading_pipelines.signals.rejections.summary import WEEK

IN_KOREAN = {
    Verdict.SKILL: "실력 있음",
    Verdict.HARM: "우연보다 나쁨",
    Verdict.NO_EDGE: "건당 3 % 우위는 없음",
    Verdict.CANNOT_TELL: "아직 판단할 수 없음",
}


def shown(comparison: Comparison) -> dict[str, str]:
    """Return what a person reads of a group: KRW and percent of what was at stake, side by side."""
    refused = percent(comparison.saved_share, "+")
    return {
        "by": comparison.grouping,
        "name": comparison.name,
        "taken": _shown_side(comparison.taken),
        "refused": _shown_side(comparison.refused),
        "every entry": _shown_side(comparison.every),
        "refusing saved (KRW)": f"{comparison.saved_krw:+,} ({refused})",
        "edge an entry": _shown_estimate(comparison.edge),
        "days": f"{comparison.days} of {comparison.days_needed or '-'}",
        "verdict": str(comparison.verdict),
    }


def shown_confidence(comparisons: Iterable[Comparison]) -> list[dict[str, str]]:
    """Return the calibration: for each band of confidence how often the AI was right."""
    return [
        {
            "confidence": comparison.name,
            "judged": str(comparison.taken.judged + comparison.refused.judged),
            "mean": "-" if comparison.confidence is None else f"{comparison.confidence:.0f} %",
            "right": _shown_estimate(comparison.right, ""),
        }
        for comparison in comparisons
        if comparison.grouping == "confidence"
    ]


def headline(whole: Comparison) -> str:
    """Return in one sentence whether the AI is worth its money."""
    saved = whole.saved_krw
    verb = "saved" if saved >= 0 else "cost"
    money = f"refusing {verb} {abs(saved):,} KRW ({percent(whole.saved_share, '+')})"
    edge = f"an entry it takes does {_shown_estimate(whole.edge)} better than one it refuses"
    return {
        Verdict.SKILL: f"The AI has skill: {money}; {edge}",
        Verdict.HARM: f"Worse than chance: {money}; {edge}",
        Verdict.NO_EDGE: f"No edge of {EDGE:.0%}, chance explains it: {money}; {edge}",
        Verdict.CANNOT_TELL: f"Cannot be told yet ({_sample(whole)}): {money}",
    }[whole.verdict]


def confidence_line(whole: Comparison) -> str:
    """Return in words whether more confidence means being right more often."""
    if whole.slope.value is None:
        return "Confidence: cannot be told, there is not enough of it"
    more = _shown_estimate(Estimate(*(None if x is None else 10 * x for x in whole.slope)))
    is_told = whole.days_needed is not None and whole.days >= whole.days_needed
    low, high = whole.slope.low, whole.slope.high
    if not is_told or low is None or high is None or low <= 0 <= high:
        verdict = "whether more of it means more cannot be told"
    else:
        verdict = "more of it is more often right" if low > 0 else "more of it is less often right"
    return f"Confidence: {verdict}; right more often by {more} for 10 more"


def left_out_line(read: Entries) -> str:
    """Return in words which rows of the bot's are in no figure, and what is not known yet."""
    judged = sum(entry.result_krw is not None for entry in read.entries)
    return (
        f"{len(read.entries)} decisions, {judged} judged; left out: {read.doubled} decisions that "
        f"repeat the one before; {read.undecided} purchases follow no CONFIRM"
    )


def body(comparisons: Sequence[Comparison], week: date, now: datetime) -> dict[str, Any]:
    """Return the body of the webhook `risk` for the thirteen weeks up to this Monday's."""
    whole = comparisons[0]
    first, last = week - WEEK * (WEEKS - 1), week + DAY * 6
    days = f"양쪽 판정일 {whole.days}일 / 필요 {whole.days_needed or '-'}일"
    share, chance = percent(whole.saved_share, "+"), _krw(whole.chance_krw)
    saved = "절약" if whole.saved_krw >= 0 else "손해"
    lines = [
        f"{first} ~ {last} (KST), AI 성적: {IN_KOREAN[whole.verdict]} ({days})",
        f"승인: {_korean_side(whole.taken)}",
        f"거절: {_korean_side(whole.refused)}",
        f"전부 진입했다면: {_korean_side(whole.every)}",
        f"거절의 효과: {saved} {abs(whole.saved_krw):,}원 ({share}), 무작위였다면 {chance}",
        f"건당 우위: {_shown_estimate(whole.edge)}",
    ]
    lines += [
        f"변동성 플래그 ({'전체' if comparison.name == 'every entry' else '승인'}): "
        f"효과 {comparison.saved_krw:+,}원, {IN_KOREAN[comparison.verdict]}"
        for comparison in comparisons
        if comparison.grouping == "flag" and comparison.refused.judged
    ]
    return {
        "type": "AI_SCORECARD",
        "level": "INFO",
        "message": "\n".join(lines),
        "timestamp": now.astimezone(UTC).isoformat(),
    }


def percent(share: float | None, sign: str = "") -> str:
    """Return the share in percent, to two digits; "-" for none."""
    return "-" if share is None else f"{share * 100:{sign}.2f} %"


def share_of_stake(side: Side) -> float | None:
    """Return what the side's entries made of what was at stake; None without a stake."""
    return float(side.krw / side.stake_krw) if side.stake_krw else None


def _sample(whole: Comparison) -> str:
    if whole.days_needed is None:
        return "the settings' section regimes has no exits: nothing is judged"
    return f"{whole.days} of the {whole.days_needed} days with an entry that each side needs"


def _shown_side(side: Side) -> str:
    made = percent(share_of_stake(side), "+")
    return f"{side.krw:+,} ({made}), {side.won} of {side.judged} won"


def _shown_estimate(estimate: Estimate, sign: str = "+") -> str:
    value, low, high = (percent(bound, sign) for bound in estimate)
    return value if estimate.low is None else f"{value} ({low} to {high})"


def _korean_side(side: Side) -> str:
    return (
        f"{side.entries}건 중 판정 {side.judged}건, 이익 {side.won}건, {side.krw:+,}원 "
        f"({percent(share_of_stake(side), '+')})"
    )


def _krw(amount: Decimal | None) -> str:
    return "-" if amount is None else f"{amount:+,}원"
