"""The weekly message about the bot's rejections, as the webhook's body; no sums are made here."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

from trading_pipelines.candles.windows import DAY
from trading_pipelines.signals.rejections import summary as reject_summary
from trading_pipelines.signals.rejections.summary import Total

HEADINGS = {"symbol": "종목", "reason": "사유", "regime": "레짐", "model": "모델"}
LONGEST = 10


def body(totals: Sequence[Total], week: date, now: datetime) -> dict[str, Any]:
    """Return the body of the webhook `risk` for the Korean week that begins with this Monday."""
    together = totals[0]
    last = week + DAY * 6
    lines = [f"{week} ~ {last} (KST), 거절 {together.rejections}건: {_in_words(together)}"]
    for grouping, heading in HEADINGS.items():
        largest_first = sorted(
            (total for total in reject_summary.of(totals, grouping) if total.judged),
            key=lambda total: abs(total.net_krw),
            reverse=True,
        )
        lines += [
            f"{heading} {total.name}: {_in_words(total)}" for total in largest_first[:LONGEST]
        ]
    return {
        "type": "REJECT_SUMMARY",
        "level": "INFO",
        "message": "\n".join(lines),
        "timestamp": now.astimezone(UTC).isoformat(),
    }


def _in_words(total: Total) -> str:
    if total.hit_rate is None:
        return "판정된 건 없음"
    share, low, high = total.hit_rate
    net = "절약" if total.net_krw >= 0 else "손해"
    return (
        f"{net} {abs(total.net_krw):,}원 (막은 손실 {total.saved_krw:,}원, 놓친 이익 "
        f"{total.cost_krw:,}원), {total.judged}건 중 적중 {share:.0%} (95 % {low:.0%}~{high:.0%})"
    )
