"""Dagster's daemon, the only one on its databases: `python -m trading_pipelines.runtime.daemon`.

`up` and `serve` run it. In `serve`, where each process is watched by itself, it ends with its code
server. When a code server dies, its runs die with it. They are reported as failed, and so started
again, before the next daemon starts: `processes` does that, for `up` too. Where a cluster starts
the runs, it is asked beside the daemon for those that do not start. The container's engine looks at
the file that the daemon touches while it works.
"""

import os
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import dagster as dg

from trading_pipelines.database.connection import VARIABLES
from trading_pipelines.errors import OperatorError
from trading_pipelines.monitoring.daemons import ask_for_daemons
from trading_pipelines.monitoring.dagster_instance import (
    CodeServer,
    fail_runs_that_will_not_start,
    run_daemon,
)
from trading_pipelines.monitoring.facts import Unknown
from trading_pipelines.runtime.daemon_lock import WAIT_SECONDS, ProcessLock
from trading_pipelines.runtime.home import Home

# A daemon that looks at its workspace meanwhile fails the backfills in flight ("Asset existed at
# storage-time, but no longer does"): seen once, when this was 6 s and it was given time to end.
WATCH_SECONDS = 0.5
ANSWER_SECONDS = 10
# How often the cluster is asked, and how long a run has been starting by then: together less than
# the minute in which its end is known. A Job is created within seconds of the run's STARTING.
ASK_SECONDS = 15
STARTING_FOR = timedelta(seconds=30)
TOUCH_SECONDS = 10


def main(workspace: str, *code_server: str) -> None:
    """Run the daemon until it is told to end, or the code server does.

    Of that it takes host, port and id where it has to watch it.
    """
    lock = ProcessLock(
        "daemon",
        {name: os.environ[name] for name in VARIABLES},
        "serve daemon" if code_server else "up",
        os.environ["TRADING_PIPELINES_HOME"],
    )
    try:
        lock.take(WAIT_SECONDS)
    except OperatorError as error:
        sys.exit(str(error))
    threading.Thread(target=lock.keep, daemon=True).start()
    if code_server:
        host, port, begun_on = code_server
        server = CodeServer(host, int(port))
        threading.Thread(target=_end_with, args=[server, begun_on], daemon=True).start()
        threading.Thread(target=_give_up_what_does_not_start, daemon=True).start()
        alive = Home(Path(os.environ["TRADING_PIPELINES_HOME"])).daemon
        # A container that is started again finds the file of the daemon before.
        alive.unlink(missing_ok=True)
        threading.Thread(target=_touch_while_it_works, args=[alive], daemon=True).start()
    run_daemon(workspace)


def _end_with(server: CodeServer, begun_on: str) -> None:
    while server.id(ANSWER_SECONDS) in {begun_on, None}:
        time.sleep(WATCH_SECONDS)
    sys.stderr.write("the code server has ended or is another one: so ends this daemon\n")
    # At once, as if it were killed: the next daemon finds everything in the database.
    os._exit(1)


def _give_up_what_does_not_start() -> None:
    with dg.DagsterInstance.get() as instance:
        namespace = getattr(instance.run_launcher, "job_namespace", None)
        if namespace is None:
            return
        from trading_pipelines.runtime.cluster import obstacle

        while True:
            time.sleep(ASK_SECONDS)
            try:
                fail_runs_that_will_not_start(
                    instance,
                    partial(obstacle, namespace=namespace),
                    datetime.now(UTC) - STARTING_FOR,
                )
            # Whatever the cluster or the database raises: it is asked again in a moment.
            except Exception as error:  # noqa: BLE001
                sys.stderr.write(f"can't ask for the runs that are starting: {error}\n")


def _touch_while_it_works(alive: Path) -> None:
    began = datetime.now(UTC)
    while True:
        if works(alive, os.environ["DAGSTER_POSTGRES_URL"], began, datetime.now(UTC)):
            alive.touch()
        time.sleep(TOUCH_SECONDS)


def works(alive: Path, storage: str, began: datetime, now: datetime) -> bool:
    """Return whether each part of the daemon that `began` has given a recent heartbeat by `now`.

    While the `storage` does not answer, a daemon counts as before: `alive` is there if it has
    worked. Another daemon would not mend that.
    """
    answer = ask_for_daemons(storage, now)
    if isinstance(answer, Unknown):
        return alive.exists()
    assert not isinstance(answer.daemons, Unknown)
    return all(
        part.healthy and part.last_heartbeat is not None and part.last_heartbeat >= began
        for part in answer.daemons
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
