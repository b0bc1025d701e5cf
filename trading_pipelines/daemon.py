"""Dagster's daemon, which ends with its code server: `python -m trading_pipelines.daemon`.

For where each process is watched by itself (`serve`); it imports no more than Dagster's own. What
dies with a code server is a run's process, and a run is started again once, when it is reported:
that is done between two daemons, as `up` does it too.
"""

import contextlib
import os
import signal
import sys
import threading
import time

from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._daemon.cli import cli
from dagster._grpc.client import DagsterGrpcClient

WATCH_SECONDS = 2.0
ANSWER_SECONDS = 10
# A code server that is busy is not gone.
MISSED = 3
STOP_SECONDS = 30


def main(host: str, port: str, workspace: str) -> None:
    """Run the daemon until it is told to end, or the code server has ended or is another one."""
    client = DagsterGrpcClient(host=host, port=int(port))
    begun_on = client.get_server_id(timeout=ANSWER_SECONDS)
    threading.Thread(target=_end_with, args=[client, begun_on], daemon=True).start()
    cli(["run", "-w", workspace])


def _end_with(client: DagsterGrpcClient, begun_on: str) -> None:
    missed = 0
    while missed < MISSED:
        time.sleep(WATCH_SECONDS)
        missed += 1
        with contextlib.suppress(DagsterUserCodeUnreachableError):
            if client.get_server_id(timeout=ANSWER_SECONDS) != begun_on:
                break
            missed = 0
    sys.stderr.write("the code server has ended or is another one: so ends this daemon\n")
    os.kill(os.getpid(), signal.SIGTERM)
    # Whatever it waits for by then, it may be killed at: the next one finds all in the database.
    time.sleep(STOP_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
