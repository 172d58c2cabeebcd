"""A Kubernetes API server in this process that can only be read, for tests of what the cluster commands look at.

Objects are the `kubernetes` client's own models, generated from the published OpenAPI, and answers are serialised by
that client. A path that holds nothing answers 404, a forbidden one 403, both with a `Status`, as the real server does.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from kubernetes import client as k8s

__all__ = ["KubernetesServer", "run_kubernetes_server"]

_CODEC = k8s.ApiClient(k8s.Configuration(host="http://unused"))


@dataclass
class KubernetesServer:
    """The server's state.

    Attributes:
        objects: By path; a list is listed, filtered by labels; a text is a log.
        forbidden: Regular expressions of paths that the user may not read.
    """

    objects: dict[str, Any] = field(default_factory=dict)
    forbidden: list[str] = field(default_factory=list)
    address: str = ""

    def put(self, namespace: str, kind: str, *things: Any) -> None:
        """Puts core objects into a namespace; each can be read by name, and all be listed."""
        base = f"/api/v1/namespaces/{namespace}/{kind}"
        self.objects.setdefault(base, []).extend(things)
        self.objects |= {f"{base}/{one.metadata.name}": one for one in things}

    def kubeconfig(self, path: Path, *, namespace: str) -> Path:
        """Writes a kubeconfig for it."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.address}}],
            "users": [{"name": "test", "user": {"token": "t"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
        }
        path.write_text(yaml.safe_dump(config))
        return path


@contextmanager
def run_kubernetes_server() -> Iterator[KubernetesServer]:
    """A server on the loopback."""
    state = KubernetesServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if any(re.search(pattern, parts.path) for pattern in state.forbidden):
                self._send(403, _status(403, "Forbidden"))
            elif parts.path not in state.objects:
                self._send(404, _status(404, "NotFound"))
            elif isinstance(found := state.objects[parts.path], str):
                self._send(200, found, kind="text/plain")
            else:
                listed = {"items": _selected(found, parts.query)} if isinstance(found, list) else found
                self._send(200, json.dumps(_CODEC.sanitize_for_serialization(listed)))

        def _send(self, status: int, body: str, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def _selected(things: list[Any], query: str) -> list[Any]:
    """Those that have the labels of the query's selector."""
    selector = parse_qs(query).get("labelSelector", [""])[-1]
    wanted = dict(pair.split("=") for pair in selector.split(",") if pair)
    return [one for one in things if wanted.items() <= (one.metadata.labels or {}).items()]


def _status(code: int, reason: str) -> str:
    return json.dumps(_CODEC.sanitize_for_serialization(k8s.V1Status(code=code, reason=reason, status="Failure")))
