"""A webhook's receiver on loopback, for tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["Received", "receive"]


class Received(dict[str, str]):
    """A body that came, and with which headers."""

    def __init__(self, body: dict[str, str], headers: dict[str, str]) -> None:
        super().__init__(body)
        self.headers = headers


@contextmanager
def receive(*answers: int, location: str = "/") -> Iterator[tuple[str, list[Received]]]:
    """Gives these status codes in turn (the last one for ever); 0 hangs up.

    Args:
        *answers: The status codes.
        location: Where a redirect leads.

    Yields:
        Its address, and the bodies that it got.
    """
    received: list[Received] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            received.append(Received(body, dict(self.headers)))
            answer = answers[min(len(received), len(answers)) - 1]
            if answer:
                self.send_response(answer)
                if 300 <= answer < 400:
                    self.send_header("Location", location)
                self.end_headers()

        def do_GET(self) -> None:
            received.append(Received({"asked for": self.path}, dict(self.headers)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Keeps the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook/secret-token", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
