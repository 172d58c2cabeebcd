"""The simulated raters at the review service: they sign in, take items and judge them over HTTP, as programs do.

They see what a person sees: the prompt and two answers, not which model wrote them and not whether an item is a check.
"""

from __future__ import annotations

import http.cookiejar
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from components.demo_world.raters import HumanRaters
from components.shared.errors import PlumblineError
from components.shared.records import PromptRecord

__all__ = ["ReviewClient", "rate", "rate_together"]

_TIMEOUT_SECONDS = 60.0
_PAUSE_SECONDS = 0.5


class ReviewClient:
    """Somebody who is signed in at the review service.

    Args:
        address: Of the service.
        token: One-time token of the link that the service printed.

    Attributes:
        cookies: What a browser would hold.

    Raises:
        PlumblineError: The service does not take the token.
    """

    def __init__(self, address: str, token: str) -> None:
        self._address = address
        self.cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(self.cookies), urllib.request.ProxyHandler({})
        )
        self._headers: dict[str, str] = {}
        self._send("POST", "/login", urllib.parse.urlencode({"token": token}).encode())
        self._headers = {"X-Form-Token": self.get("/api/v1/me")["form_token"], "Content-Type": "application/json"}

    def get(self, path: str) -> Any:
        """The JSON of an answer.

        Raises:
            PlumblineError: The service refuses.
        """
        return json.loads(self._send("GET", path))

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Sends JSON and returns the JSON of the answer.

        Raises:
            PlumblineError: The service refuses; the error says what it said.
        """
        return json.loads(self._send("POST", path, json.dumps(body or {}).encode()) or "null")

    def _send(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self._address + path, data=body, headers=self._headers, method=method)
        try:
            with self._opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")
            raise PlumblineError(f"the service answered {error.code}: {said}", where=f"{method} {path}") from error
        except OSError as error:
            raise PlumblineError(f"the service does not answer: {error}", where=self._address) from error


def rate(client: ReviewClient, rater: str, panel: HumanRaters) -> int:
    """Judges what the service hands out until no batch awaits this rater.

    Args:
        client: Signed in as the rater.
        rater: Name in the panel.
        panel: Who judges, and how.

    Returns:
        Items judged, checks among them.
    """
    judged = 0
    while batches := client.get("/api/v1/batches"):
        handed_out = [_next(client, batch["batch_id"]) for batch in batches]
        tasks = [found["task"] for found in handed_out if found["task"]]
        for task in tasks:
            client.post(f"/api/v1/tasks/{task['task_id']}/answer", _judge(panel, rater, task))
        judged += len(tasks)
        if not tasks:
            if not any(found["progress"]["waiting"] for found in handed_out):
                break
            time.sleep(_PAUSE_SECONDS)
    return judged


def rate_together(clients: Mapping[str, ReviewClient], panel: HumanRaters) -> dict[str, int]:
    """All raters at once, each in a thread; items judged by each.

    Raises:
        PlumblineError: What stopped the first rater who was stopped.
    """
    judged: dict[str, int] = {}
    faults: list[PlumblineError] = []

    def work(rater: str) -> None:
        try:
            judged[rater] = rate(clients[rater], rater, panel)
        except PlumblineError as error:
            faults.append(error)

    _run_all([threading.Thread(target=work, args=(rater,), name=rater, daemon=True) for rater in clients])
    if faults:
        raise faults[0]
    return judged


def _run_all(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _next(client: ReviewClient, batch_id: str) -> dict[str, Any]:
    """The next item of a batch; none when it was closed in between."""
    try:
        return client.post(f"/api/v1/batches/{batch_id}/next")
    except PlumblineError as error:
        if "answered 409" in str(error):
            return {"task": None, "progress": {"waiting": False}}
        raise


def _judge(panel: HumanRaters, rater: str, task: dict[str, Any]) -> dict[str, Any]:
    record = PromptRecord(id=task["task_id"], prompt=task["prompt"], slice="unknown")
    finished = {"finished_a": task["finished_a"], "finished_b": task["finished_b"]}
    verdict = panel.judge(rater, record, task["response_a"], task["response_b"], **finished)
    return {**verdict, "rationale": "simulated", "revision": task["revision"]}
