"""The client of Dagster's GraphQL API: one question, and its answer or why there is none.

What is asked, and what an answer means, belongs to the modules that ask.
"""

from collections.abc import Mapping
from typing import Any

import requests

from trading_pipelines.errors import OperatorError
from trading_pipelines.http_calls import MEGABYTE, call

# Thousands of runs with their tags.
MOST_BYTES = 64 * MEGABYTE


class GraphQLError(OperatorError):
    """The web server has refused the query."""


class NoResponseError(GraphQLError):
    """No web server answers at the URL, or what answers there is none."""


def ask(
    url: str, query: str, variables: Mapping[str, Any] | None = None, *, timeout: float = 60
) -> dict[str, Any]:
    """Return the `data` that the web server at `url` answers within `timeout` seconds.

    Raises NoResponseError and GraphQLError.
    """
    try:
        response = call(
            "POST",
            f"{url}/graphql",
            seconds=timeout,
            most_bytes=MOST_BYTES,
            json={"query": query, "variables": variables or {}},
        )
        body = response.json()
    except (requests.RequestException, ValueError) as error:
        raise NoResponseError(f"Dagster's web server at {url} does not answer ({error})") from error
    if body.get("errors"):
        raise GraphQLError(
            f"Dagster's web server refused the query: {body['errors'][0]['message']}"
        )
    data: dict[str, Any] = body["data"]
    return data
