"""Korean time, for whatever a person reads. Storage, arithmetic and keys stay in UTC."""

from datetime import datetime
from zoneinfo import ZoneInfo

KST = ZoneInfo("Asia/Seoul")


def kst(moment: datetime | None) -> str:
    """Return an aware moment to the minute in Korean time, the zone named; "-" for none."""
    return f"{moment.astimezone(KST):%Y-%m-%d %H:%M} KST" if moment else "-"
