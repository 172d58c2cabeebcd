"""A review service on small evidence, for its tests."""

from __future__ import annotations

import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parents[1] / "human_eval"))  # the small batches of the human evaluation's tests

from tiny_panels import make_batch, make_gold_item, make_item, make_judgement

from components.human_eval.database import EvidenceDatabase, open_database
from components.review.app import create_app
from components.review.settings import ReviewSettings, RoleSettings

__all__ = [
    "SECRET",
    "Client",
    "make_item",
    "make_judgement",
    "make_service",
    "make_settings",
    "open_batch",
    "serve_on_loopback",
    "token_in",
]

SECRET = "a secret of the tests, long enough for anything"
USER_HEADER = "kubeflow-userid"

ROLES = RoleSettings(
    rater=("ann", "bob", "cleo", "sim"),
    release_manager=("mia", "max"),
    auditor=("ada",),
)


def make_settings(**overrides: Any) -> ReviewSettings:
    values: dict[str, Any] = {
        "login": "header",
        "trusted_peers": ("127.0.0.0/8", "0.0.0.0/32"),
        "roles": ROLES,
        "simulated": ("sim",),
    }
    return ReviewSettings(**{**values, **overrides})


def make_service(database_url: str, **overrides: Any) -> FastAPI:
    return create_app(make_settings(**overrides), secret=SECRET, database=open_database(database_url))


def open_batch(
    database: EvidenceDatabase, *, n_pairs: int = 3, n_gold: int = 0, items: Any = None, **settings: Any
) -> str:
    """Opens a batch for people; returns its id."""
    if items is None:
        items = [make_item(number) for number in range(n_pairs)] + [make_gold_item(900 + n) for n in range(n_gold)]
    gold = {"gold_items": n_gold, "gold_min_count": min(2, n_gold)} if n_gold else {}
    batch = make_batch(items, **{"repeat_share": 0.0, "practice_items": 0, "undo_minutes": 0.0, **gold, **settings})
    database.open_batch(batch)
    return batch.batch_id


class Client:
    """The service as one user sees it, through the proxy's header."""

    def __init__(self, app: FastAPI, login: str | None, *, peer: str = "127.0.0.1") -> None:
        headers = {USER_HEADER: login} if login else {}
        self.http = TestClient(app, headers=headers, client=(peer, 50000), raise_server_exceptions=False)

    def get(self, path: str, **more: Any) -> Any:
        return self.http.get(path, **more)

    def post(self, path: str, json: Any = None, **more: Any) -> Any:
        """A request of a program: with the token of /api/v1/me."""
        return self.http.post(path, json=json, headers=self._token(), **more)

    def put(self, path: str, json: Any) -> Any:
        return self.http.put(path, json=json, headers=self._token())

    def form(self, path: str, data: dict[str, Any], *, htmx: bool = False, **more: Any) -> Any:
        """A form of a page."""
        headers = {"HX-Request": "true"} if htmx else {}
        return self.http.post(path, data={"form_token": self.token, **data}, headers=headers, **more)

    @property
    def token(self) -> str:
        return self.http.get("/api/v1/me").json()["form_token"]

    def _token(self) -> dict[str, str]:
        return {"X-Form-Token": self.token}


def token_in(page: str) -> str:
    """The form token of a page."""
    return re.findall(r'name="form_token" value="([^"]+)"', page)[0]


@contextmanager
def serve_on_loopback(app: FastAPI) -> Iterator[str]:
    """Serves an app with uvicorn on a free port of this machine; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", access_log=False, proxy_headers=False)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        for _ in range(600):
            if server.started:
                break
            thread.join(0.05)
        assert server.started, "uvicorn did not start within 30 s"
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
