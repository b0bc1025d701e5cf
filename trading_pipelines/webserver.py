"""Dagster's web server behind our doors: `python -m trading_pipelines.webserver`.

It has those options of `dagster-webserver` that are used here, and its way to end.
"""

import argparse
import logging
from collections.abc import Collection

import dagster as dg
import uvicorn
from dagster._core.workspace.context import BaseWorkspaceRequestContext, WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._utils.interrupts import setup_interrupt_handlers
from dagster._utils.log import configure_loggers
from dagster_webserver.cli import (
    DEFAULT_DB_STATEMENT_TIMEOUT,
    DEFAULT_POOL_MAX_OVERFLOW,
    DEFAULT_POOL_RECYCLE,
    _lifespan,
)
from dagster_webserver.version import __version__
from dagster_webserver.webserver import DagsterWebserver
from graphql import (
    ASTValidationRule,
    GraphQLError,
    OperationDefinitionNode,
    OperationType,
    specified_rules,
)

from trading_pipelines.doors import BODY_BYTES, Doors
from trading_pipelines.settings import load_environment

POLL_MILLISECONDS = 2000


class Viewed(DagsterWebserver[WorkspaceProcessContext, BaseWorkspaceRequestContext]):
    """Dagster's web server for viewers: a mutation is refused before it is begun.

    Dagster's own read-only mode looks at some permissions only after the deed, and at none for two
    mutations.
    """

    def build_graphql_validation_rules(self) -> Collection[type[ASTValidationRule]]:
        """Return GraphQL's own rules and that there is no mutation."""
        return [*specified_rules, NoMutation]


class NoMutation(ASTValidationRule):
    """A rule of GraphQL: the document has no mutation."""

    def enter_operation_definition(self, node: OperationDefinitionNode, *_: object) -> None:
        """Report a mutation as an error, so that nothing of the document is executed."""
        if node.operation is OperationType.MUTATION:
            self.report_error(GraphQLError("this web server is read-only", node))


def main() -> None:
    """Serve the instance of DAGSTER_HOME until SIGTERM or SIGINT; raises SettingsError."""
    parser = argparse.ArgumentParser(add_help=False, description=__doc__)
    parser.add_argument("-h", "--host", required=True)
    parser.add_argument("-p", "--port", type=int, required=True)
    parser.add_argument("-w", "--workspace", required=True)
    parser.add_argument("--read-only", action="store_true")
    options = parser.parse_args()
    hosts = load_environment().allowed_hosts
    configure_loggers()
    setup_interrupt_handlers()
    with dg.DagsterInstance.get() as instance:
        instance.optimize_for_webserver(
            DEFAULT_DB_STATEMENT_TIMEOUT, DEFAULT_POOL_RECYCLE, DEFAULT_POOL_MAX_OVERFLOW
        )
        with WorkspaceProcessContext(
            instance,
            WorkspaceFileTarget([options.workspace]),
            version=__version__,
            read_only=options.read_only,
        ) as context:
            server = Viewed if options.read_only else DagsterWebserver
            app = server(context, live_data_poll_rate=POLL_MILLISECONDS).create_asgi_app(
                lifespan=_lifespan
            )
            logging.getLogger("dagster-webserver").info(
                "Serving on http://%s:%d", options.host, options.port
            )
            uvicorn.run(
                Doors(app, hosts),
                host=options.host,
                port=options.port,
                log_level="warning",
                proxy_headers=False,
                server_header=False,
                ws_max_size=BODY_BYTES,
            )


if __name__ == "__main__":
    main()
