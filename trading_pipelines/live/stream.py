"""One connection to Upbit's candle stream: what is asked for, and which message is believed.

A message is a candle by the contract of a REST row, or it is none. What the messages add up to
belongs in `edge`, connecting again in `reader`.
"""

import contextlib
import json
import ssl
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple

from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from trading_pipelines.candles.page import Candle, candle_of
from trading_pipelines.http_calls import certificates
from trading_pipelines.settings.environment import spare_from_proxies

KIND = "candle.1m"
# The server closes a connection that is idle for 120 s.
PING_SECONDS = 15.0
CONNECT_SECONDS = 10.0
CLOSE_SECONDS = 1.0
# A message has 500 bytes.
MOST_BYTES = 1 << 16
REPLAY = "Replay-Source"


class Shown(NamedTuple):
    """A minute of a symbol, as a message shows it."""

    symbol: str
    candle: Candle
    traded_at: datetime
    """The moment of its last trade (UTC)."""


class NoStreamError(Exception):
    """There is no connection, or no longer; the message says why."""


class NotThereError(NoStreamError):
    """The address has no stream, by its answer: asking again soon is of no use."""


class BadMessageError(ValueError):
    """A message that is no candle; the message says why."""


class CandleStream:
    """An open connection; used by one thread. `date`: the Date of its first answer, if any."""

    def __init__(self, connection: ClientConnection, taken: float) -> None:
        self._connection = connection
        answer = connection.response
        headers = answer.headers if answer else {}
        self.date: datetime | None = None
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            self.date = parsedate_to_datetime(headers.get("Date", ""))
        self.is_replay = REPLAY in headers
        self.taken = taken
        """Seconds until it was open."""

    def receive(self, seconds: float) -> Shown | None:
        """Return the next message, None where none has come in time or it says nothing.

        Raises BadMessageError for one that is no candle, NoStreamError at the stream's end.
        """
        try:
            text = self._connection.recv(timeout=seconds)
        except TimeoutError:
            return None
        except WebSocketException as error:
            raise NoStreamError(f"the stream has ended: {error}") from error
        return read(text)


@contextlib.contextmanager
def opened(url: str, symbols: Sequence[str]) -> Iterator[CandleStream]:
    """Connect, and ask for the symbols' minutes; raises NoStreamError.

    A peer that answers no ping within `PING_SECONDS` ends the stream.
    """
    spare_from_proxies()
    request = [{"ticket": str(uuid.uuid4())}, {"type": KIND, "codes": list(symbols)}]
    since = time.monotonic()
    try:
        connection = connect(
            url,
            ssl=_certificates(url),
            open_timeout=CONNECT_SECONDS,
            close_timeout=CLOSE_SECONDS,
            ping_interval=PING_SECONDS,
            ping_timeout=PING_SECONDS,
            max_size=MOST_BYTES,
            compression=None,
        )
        assert isinstance(connection, ClientConnection)
        taken = time.monotonic() - since
        connection.send(json.dumps(request))
    except InvalidStatus as error:
        kind = NotThereError if error.response.status_code in {404, 405, 501} else NoStreamError
        raise kind(f"no stream at {url}: HTTP {error.response.status_code}") from error
    # ValueError: an address or a proxy that can't be read; EOFError: cut in the handshake.
    except (WebSocketException, OSError, ValueError, EOFError) as error:
        raise NoStreamError(f"no stream at {url}: {type(error).__name__}: {error}") from error
    with connection:
        yield CandleStream(connection, taken)


def _certificates(url: str) -> ssl.SSLContext | None:
    """Return those by which the other calls believe the exchange, too."""
    if not url.startswith("wss:"):
        return None
    place = Path(certificates(url))
    if place.is_dir():
        return ssl.create_default_context(capath=place)
    return ssl.create_default_context(cafile=place)


def read(text: str | bytes) -> Shown | None:
    """Return what a message shows; None for an answer to a ping.

    Raises BadMessageError, and NoStreamError for an error of the exchange's: it refuses us.
    """
    try:
        message = json.loads(text, parse_float=Decimal)
    # UnicodeDecodeError is a ValueError.
    except (ValueError, RecursionError) as error:
        raise BadMessageError(f"no JSON: {text[:80]!r}") from error
    if not isinstance(message, dict):
        raise BadMessageError(f"no object: {text[:80]!r}")
    if "error" in message:
        raise NoStreamError(f"the exchange refuses: {str(message['error'])[:120]}")
    if message.keys() == {"status"}:
        return None
    symbol, at = message.get("code"), message.get("timestamp")
    if message.get("type") != KIND or not isinstance(symbol, str):
        raise BadMessageError(f"no {KIND} of a symbol: {text[:80]!r}")
    if type(at) is not int or not 0 < at < 1 << 42:
        raise BadMessageError(f"no timestamp: {at!r:.40}")
    try:
        candle = candle_of({**message, "market": symbol})
    except ValueError as error:
        raise BadMessageError(f"{symbol}: {error}") from error
    return Shown(symbol, candle, datetime.fromtimestamp(at / 1000, UTC))
