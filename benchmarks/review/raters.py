"""What one rater does under load, for locust: sign in with a one-time link, then take an item, judge it, and so on.

Every answer that is sent is written to a journal before it is sent, and again once the service has said that it is
stored. An answer to which none came is sent again, the very same request, until one does; so a killed service looks to
a rater like a slow one.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, events, task
from locust.exception import StopUser

_PLAN: dict[str, Any] = json.loads(Path(os.environ["PLUMBLINE_LOAD_PLAN"]).read_text())
_tokens = list(_PLAN["tokens"])
_journal = Path(_PLAN["journal"]).open("a", buffering=1)  # noqa: SIM115 (open as long as the process lives)
_seconds: dict[str, list[float]] = {}
_failed = 0


@events.request.add_listener
def _note_request(name: str, response_time: float, exception: Any, **_more: Any) -> None:
    global _failed
    if exception is None:
        _seconds.setdefault(name, []).append(response_time / 1000.0)
    else:
        _failed += 1


@events.quitting.add_listener
def _write_times(**_more: Any) -> None:
    Path(_PLAN["times"]).write_text(json.dumps({"seconds": _seconds, "without_answer": _failed}))


class Rater(FastHttpUser):
    """A person who judges as fast as the plan says, two requests an item; not in step with others, nor like clockwork.

    Locust's own pacing counts from when a user was spawned, so users who are spawned together would click together.
    """

    network_timeout = connection_timeout = 30.0

    def on_start(self) -> None:
        """Signs in."""
        self.login, token = _tokens.pop()
        self._send("POST", "/login", name="login", data={"token": token}, allow_redirects=False)
        account = self._send("GET", "/api/v1/me", name="me")
        self.form_token = account["form_token"]
        gevent.sleep(random.random() / _PLAN["items_per_second"])
        self.due = time.monotonic()

    def wait_time(self) -> float:
        """Seconds until the next item: the mean is the plan's, whatever the service takes; each is drawn."""
        self.due += random.uniform(0.5, 1.5) / _PLAN["items_per_second"]
        return max(0.0, self.due - time.monotonic())

    @task
    def judge_an_item(self) -> None:
        """Takes the next item and answers it."""
        found = self._send("POST", f"/api/v1/batches/{_PLAN['batch_id']}/next", name="next")
        item = found.get("task")
        if item is None:
            if found.get("progress", {}).get("waiting"):
                return
            raise StopUser
        answer = {"choice": _choice(self.login, item), "revision": item["revision"]}
        key = {"task_id": item["task_id"], "revision": item["revision"], "choice": answer["choice"]}
        _note("sent", key)
        receipt = self._send("POST", f"/api/v1/tasks/{item['task_id']}/answer", name="answer", json=answer)
        _note("acknowledged" if receipt.get("task_id") == item["task_id"] else "refused", key | {"answer": receipt})

    def _send(self, method: str, path: str, *, name: str, **content: Any) -> dict[str, Any]:
        """Sends a request until it is answered; a lost connection or a failed service is no answer."""
        while True:
            headers = {"X-Form-Token": getattr(self, "form_token", "")}  # anew: locust adds to them
            with self.client.request(
                method, path, name=name, headers=headers, catch_response=True, **content
            ) as response:
                if 200 <= response.status_code < 500:
                    response.success()
                    text = response.text or ""
                    return json.loads(text) if text.startswith("{") else {}
                response.failure(f"status {response.status_code}")
            gevent.sleep(0.2)


def _choice(login: str, item: dict[str, Any]) -> str:
    """Right about the gold items of this load; of one mind about each pair, however it is shown."""
    texts = {"a": item["response_a"], "b": item["response_b"]}
    for side, text in texts.items():
        if text.startswith("right: "):
            return side
    return min(texts, key=lambda side: hashlib.sha256(f"{login} {texts[side]}".encode()).hexdigest())


def _note(what: str, key: dict[str, Any]) -> None:
    _journal.write(json.dumps({"what": what, "at": time.time(), **key}) + "\n")
