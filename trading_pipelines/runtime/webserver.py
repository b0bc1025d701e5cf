"""Dagster's web server behind the request guard: `python -m trading_pipelines.runtime.webserver`.

It takes the options of `dagster-webserver` that are used here, and ends as that does.
"""

import argparse
import logging
from collections.abc import Collection
from typing import Any

import uvicorn
from dagster_webserver.webserver import DagsterWebserver
from graphql import (
    ASTValidationRule,
    GraphQLError,
    OperationDefinitionNode,
    OperationType,
    specified_rules,
)

from trading_pipelines.monitoring.dagster_instance import (
    webserver_context,
    webserver_lifespan,
)
from trading_pipelines.runtime.request_guard import BODY_BYTES, RequestGuard
from trading_pipelines.settings.environment import load_environment

POLL_MILLISECONDS = 2000


class ReadOnlyWebserver(DagsterWebserver[Any, Any]):
    """Dagster's web server for viewers: a mutation is refused before anything of it is executed.

    Dagster's own read-only mode checks some permissions only after the mutation, and none for two
    mutations.
    """

    def build_graphql_validation_rules(self) -> Collection[type[ASTValidationRule]]:
        """Return GraphQL's own rules and NoMutation."""
        return [*specified_rules, NoMutation]


class NoMutation(ASTValidationRule):
    """A validation rule of GraphQL: a document may hold no mutation."""

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
    with webserver_context(options.workspace, read_only=options.read_only) as context:
        server = ReadOnlyWebserver if options.read_only else DagsterWebserver
        app = server(context, live_data_poll_rate=POLL_MILLISECONDS).create_asgi_app(
            lifespan=webserver_lifespan()
        )
        logging.getLogger("dagster-webserver").info(
            "Serving on http://%s:%d", options.host, options.port
        )
        uvicorn.run(
            RequestGuard(app, hosts),
            host=options.host,
            port=options.port,
            log_level="warning",
            proxy_headers=False,
            server_header=False,
            ws_max_size=BODY_BYTES,
        )


if __name__ == "__main__":
    main()
