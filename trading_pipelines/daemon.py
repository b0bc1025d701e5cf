"""Dagster's daemon, which ends with its code server: `python -m trading_pipelines.daemon`.

For where each process is watched by itself (`serve`); it imports no more than Dagster's own. What
dies with a code server is a run's process, and a run is started again once, when it is reported:
that is done between two daemons, as `up` does it too.
"""

import os
import sys
import threading
import time

import grpc
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._daemon.cli import cli
from dagster._grpc.client import DagsterGrpcClient

# A daemon that looks at its workspace meanwhile fails the backfills in flight ("Asset existed at
# storage-time, but no longer does"): seen once, when this was 6 s and it was given time to end.
WATCH_SECONDS = 0.5
ANSWER_SECONDS = 10


def main(host: str, port: str, begun_on: str, workspace: str) -> None:
    """Run the daemon until it is told to end, or the code server `begun_on` has ended."""
    client = DagsterGrpcClient(host=host, port=int(port))
    threading.Thread(target=_end_with, args=[client, begun_on], daemon=True).start()
    cli(["run", "-w", workspace])


def _end_with(client: DagsterGrpcClient, begun_on: str) -> None:
    while _server_id(client) in {begun_on, None}:
        time.sleep(WATCH_SECONDS)
    sys.stderr.write("the code server has ended or is another one: so ends this daemon\n")
    # At once, as if it were killed: the next one finds all in the database.
    os._exit(1)


def _server_id(client: DagsterGrpcClient) -> str | None:
    """Return the code server's id, "" where there is none, None where it is too busy to say."""
    try:
        return client.get_server_id(timeout=ANSWER_SECONDS)
    except DagsterUserCodeUnreachableError as error:
        cause = error.__cause__
        is_busy = isinstance(cause, grpc.Call) and (
            cause.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        )
        return None if is_busy else ""


if __name__ == "__main__":
    main(*sys.argv[1:])
