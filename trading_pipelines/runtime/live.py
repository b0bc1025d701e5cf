"""The reader of the exchange's stream, the only one: `python -m trading_pipelines.runtime.live`.

`up` and `serve` run it. It imports no Dagster, and may be killed at any moment.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from trading_pipelines.database.connection import DatabaseError
from trading_pipelines.live.reader import LiveReader
from trading_pipelines.runtime.daemon_lock import HeldElsewhereError, ProcessLock
from trading_pipelines.runtime.home import Home
from trading_pipelines.settings.environment import load_environment

# How often one that waits for another to end looks again.
LOOK_SECONDS = 2.0


def main(command: str) -> None:
    """Read until the process is told to end; started by the `command`, `up` or `serve live`."""
    # A container's first process ignores what it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s UTC %(message)s")
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    say = logging.getLogger("live").info
    environment = load_environment()
    home, url = Home.of(environment), os.environ["DATABASE_URL"]
    lock = ProcessLock("live", {"DATABASE_URL": url}, command, str(home.path))
    _take(lock, home.live, say)
    threading.Thread(target=lock.keep, daemon=True).start()
    LiveReader(environment, url, home.live, say).run()


def _take(lock: ProcessLock, alive: Path, say: Callable[[str], None]) -> None:
    reason = ""
    while True:
        alive.touch()
        try:
            lock.take(0)
        except (HeldElsewhereError, DatabaseError) as error:
            if str(error) != reason:
                say(f"waiting: {error}")
            reason = str(error)
            time.sleep(LOOK_SECONDS)
        else:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
