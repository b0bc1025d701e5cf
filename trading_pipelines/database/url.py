"""A Postgres URL as libpq reads it, and written so that every client of ours reads the same.

SQLAlchemy's own `make_url` reads some URLs otherwise than libpq does, and importing it costs every
command 0.4 s and 20 MB.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qs, quote, urlencode

from psycopg.conninfo import conninfo_to_dict

# What SQLAlchemy reads in its place; a socket's folder, IPv6 or several hosts it takes as `host=`.
_PLAIN_HOST = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, repr=False)
class PostgresUrl:
    """The scheme, and the parameters by libpq's names; may hold a password: never printed."""

    scheme: str
    parameters: Mapping[str, str]

    @classmethod
    def parse(cls, url: str) -> Self:
        """Take the URL apart; it has been checked by `Environment`, or is our own."""
        scheme, _, rest = url.partition("://")
        parameters = {k: str(v) for k, v in conninfo_to_dict(f"postgresql://{rest}").items()}
        # SQLAlchemy's own form of several hosts, of which libpq reads the last one alone.
        hosts = parse_qs(rest.partition("?")[2]).get("host", [])
        if len(hosts) > 1:
            pairs = [host.partition(":") for host in hosts]
            parameters["host"] = ",".join(name for name, _, _ in pairs)
            parameters["port"] = ",".join(port for _, _, port in pairs)
        elif "," in parameters.get("host", "") and "port" in parameters:
            # One port is that of every host to libpq, and an error to SQLAlchemy.
            ports, count = parameters["port"].split(","), parameters["host"].count(",") + 1
            parameters["port"] = ",".join(ports * count if len(ports) == 1 else ports)
        return cls(scheme, parameters)

    @property
    def database(self) -> str:
        """The name of the database."""
        return self.parameters.get("dbname", "")

    def options(self) -> list[str]:
        """Return the URL's own `options` for the server."""
        return [self.parameters["options"]] if "options" in self.parameters else []

    def with_database(self, name: str) -> Self:
        """Return the URL of another database on the same server."""
        return self.with_query({"dbname": name})

    def with_query(self, more: Mapping[str, str]) -> Self:
        """Return the URL with the parameters set, each in the place of its namesake."""
        return type(self)(self.scheme, {**self.parameters, **more})

    def render(self, scheme: str) -> str:
        """Return the URL under the scheme that its reader wants."""
        query = dict(self.parameters)
        user, database = (
            quote(query.pop("user", ""), safe=""),
            quote(query.pop("dbname", ""), safe=""),
        )
        if "password" in query:
            user += ":" + quote(query.pop("password"), safe="")
        place = f"{user}@" if user else ""
        if _PLAIN_HOST.fullmatch(query.get("host", "")):
            place += query.pop("host")
            if "port" in query:
                place += ":" + query.pop("port")
        # libpq takes a plus sign as it is, SQLAlchemy as a space: both are written as %XX.
        options = urlencode(query, quote_via=quote, safe="")
        return f"{scheme}://{place}/{database}" + (f"?{options}" if options else "")
