"""What the stand-ins' HTTP servers on loopback have in common."""

import socket
import struct
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NoReturn

from trading_pipelines.errors import OperatorError


class PortError(OperatorError):
    """A stand-in can't listen on its port."""


class LoopbackServer(ThreadingHTTPServer):
    """A server with a thread for each connection, whose clients may leave whenever they like."""

    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        """Listen; raises PortError."""
        try:
            super().server_bind()
        except OSError as error:
            port = self.server_address[1]
            raise PortError(
                f"port {port}: {error.strerror}; choose another with --port, or stop what is there"
            ) from error

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Keep quiet about a client that has left; any other error is a defect and is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def reset(handler: BaseHTTPRequestHandler) -> NoReturn:
    """Cut the connection of the request at hand, as a fault demands it."""
    # Without lingering the last close sends RST; `finish` closes the two files that share it.
    # Closed here already, the socket is spared the FIN that `shutdown_request` sends.
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    raise ConnectionResetError("as the fault demands")
