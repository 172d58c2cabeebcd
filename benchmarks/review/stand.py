"""The stand of the load test: a Postgres, a batch in it, `plumbline review` as a process, and locust against it."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from components.human_eval.batch import Answer, Batch, Item
from components.human_eval.book import task_id_of
from components.human_eval.database import EvidenceDatabase, open_database
from components.human_eval.settings import HumanEvalSettings
from components.human_eval.turns import Turn
from components.shared.records import PromptRecord

__all__ = ["Counted", "Service", "count_votes", "make_batch", "open_stand", "run_raters"]

_START_SECONDS = 60.0
_LINK = re.compile(r"^(\S+) signs in once with \S+token=(\S+)$", re.MULTILINE)
_ROOT = Path(__file__).parents[2]
_SECRET = secrets.token_hex(32)
"""One database takes one service key; the runs of one load share both."""
_PLUMBLINE = "from pipelines.cli import main; main()"
"""What `plumbline` is, of this checkout."""


def make_batch(n_pairs: int, *, votes: int = 3) -> Batch:
    """A batch of `n_pairs` pairs in two comparisons, with gold items; answers of a few hundred characters."""
    batch_id = f"load-{time.time_ns()}"
    settings = HumanEvalSettings(n_prompts=n_pairs, votes_per_prompt=votes, gold_items=20)
    filler = "It depends on what you mean; here is what is known, with the reasons for it. " * 4
    items = [
        Item(
            item_id=f"{batch_id}-{number}",
            comparison=("candidate_vs_reference", "candidate_vs_champion")[number % 2],
            kind="pair",
            position=number,
            record=PromptRecord(id=f"p{number}", prompt=f"Question {number}: how is it done?", slice=f"s{number % 5}"),
            first=Answer("candidate", f"One answer to {number}. {filler}", 60, True),
            second=Answer("reference", f"Another answer to {number}. {filler}", 60, True),
        )
        for number in range(n_pairs)
    ]
    items += [
        Item(
            item_id=f"{batch_id}-gold-{number}",
            comparison="gold",
            kind="gold",
            position=number,
            record=PromptRecord(id=f"g{number}", prompt=f"Check {number}: what is right?", slice="gold"),
            first=Answer("gold_better", f"right: {number}. {filler}", 60, True),
            second=Answer("gold_worse", f"wrong: {number}. {filler}", 60, True),
        )
        for number in range(settings.gold_items)
    ]
    return Batch(batch_id, "evaluation", "dataset", {}, settings, 0, tuple(items))


class Service:
    """`plumbline review` as a process of its own; may be killed and started again on the same port.

    Args:
        workspace: Folder of its state.
        database_url: Its evidence database.
        raters: Logins.
    """

    def __init__(self, workspace: Path, database_url: str, raters: list[str]) -> None:
        self.port = _free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.restarts = 0
        self._log = workspace / "service.log"
        people = [part for rater in raters for part in ("--rater", rater)]
        self._command = [sys.executable, "-c", _PLUMBLINE, "review", "--workspace", str(workspace)]
        self._command += ["--port", str(self.port), "--actor", "manager", *people]
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(_ROOT),
            "PLUMBLINE_DATABASE_URL": database_url,
            "PLUMBLINE_REVIEW_SECRET": _SECRET,
            "PYTHONUNBUFFERED": "1",
        }
        self._process: subprocess.Popen | None = None

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def cpu_seconds(self) -> float:
        """CPU time that it has used since it was started last."""
        times = psutil.Process(self.pid).cpu_times()
        return times.user + times.system

    def start(self) -> dict[str, str]:
        """Starts it, waits until it answers; returns the one-time tokens by login."""
        log = self._log.open("w")
        self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environment)
        log.close()
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the service did not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.1)
        return dict(_LINK.findall(self._log.read_text()))

    def kill(self) -> None:
        """SIGKILL: it can finish nothing."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Kills it and starts it again."""
        self.kill()
        self.start()
        self.restarts += 1

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/healthz", timeout=1.0) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False


@dataclass(frozen=True)
class Stand:
    """A running service, its database, and the batch in it."""

    service: Service
    database: EvidenceDatabase
    batch: Batch
    tokens: dict[str, str]


@contextmanager
def open_stand(folder: Path, database_url: str, *, raters: int, pairs: int) -> Iterator[Stand]:
    """Puts a batch into the database and starts the service on it."""
    folder.mkdir(parents=True, exist_ok=True)
    database = open_database(database_url)
    batch = make_batch(pairs)
    database.open_batch(batch)
    service = Service(folder, database_url, [f"rater-{number:03d}" for number in range(raters)])
    try:
        tokens = service.start()
        yield Stand(service, database, batch, {login: token for login, token in tokens.items() if login != "manager"})
    finally:
        service.kill()


def run_raters(
    stand: Stand, folder: Path, *, requests_per_second: float, seconds: float, kill_after: tuple[float, ...] = ()
) -> dict[str, Any]:
    """Has locust's raters judge; kills and restarts the service at the given times.

    Args:
        stand: The running service.
        folder: For plan, journal and times.
        requests_per_second: Of all raters together.
        seconds: How long.
        kill_after: Seconds from the start at which the service is killed.

    Returns:
        `seconds` by request name, `without_answer`, `load_average`, `service_cpu_seconds` (None if it was restarted).
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = {
        "tokens": list(stand.tokens.items()),
        "batch_id": stand.batch.batch_id,
        "items_per_second": requests_per_second / len(stand.tokens) / 2,
        "journal": str(folder / "journal.jsonl"),
        "times": str(folder / "times.json"),
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    environment = {**os.environ, "PLUMBLINE_LOAD_PLAN": str(folder / "plan.json"), "PYTHONPATH": ""}
    users = str(len(stand.tokens))
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        str(Path(__file__).with_name("raters.py")),
        "--headless",
        "--only-summary",
    ]
    command += ["-H", stand.service.address, "-u", users, "-r", str(max(1, len(stand.tokens) // 5))]
    command += ["-t", f"{round(seconds)}s", "--stop-timeout", "30", "--exit-code-on-error", "0"]
    begun, used = time.monotonic(), stand.service.cpu_seconds
    with (folder / "locust.log").open("w") as log:
        locust = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            for moment in kill_after:
                time.sleep(max(0.0, begun + moment - time.monotonic()))
                stand.service.restart()
            locust.wait(timeout=seconds + 120)
        finally:
            if locust.poll() is None:
                locust.kill()
                locust.wait()
    if locust.returncode != 0:
        raise RuntimeError(f"locust failed: {(folder / 'locust.log').read_text()[-2000:]}")
    times = json.loads((folder / "times.json").read_text())
    spent = stand.service.cpu_seconds - used if not kill_after else None
    return {**times, "load_average": list(os.getloadavg()), "service_cpu_seconds": spent}


@dataclass(frozen=True)
class Counted:
    """What the raters were told, beside what is in the database.

    Attributes:
        acknowledged: Judgements that the service said are stored.
        stored: Judgements in the database.
        lost: Acknowledged, but not stored, or stored with another choice.
        doubled: Stored more than once.
        unasked: Stored, though no rater sent them.
        unanswered: Stored and sent, but the raters' time ended before the answer came.
        refused: Answers that the service refused.
        overfull: Pairs with more votes than were asked for.
    """

    acknowledged: int
    stored: int
    lost: int
    doubled: int
    unasked: int
    unanswered: int
    refused: int
    overfull: int

    @property
    def sound(self) -> bool:
        """No vote was lost, none counted twice, none came from nowhere, and no pair has too many."""
        return not (self.lost or self.doubled or self.unasked or self.overfull)


def count_votes(stand: Stand, journal: Path) -> Counted:
    """Compares the raters' journal with the database, judgement by judgement; practice answers are not counted."""
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    judgements = stand.database.judgements(stand.batch.batch_id)
    stored = Counter((task_id_of(Turn(one.item_id, one.kind), one.rater), one.revision) for one in judgements)
    choices = {(task_id_of(Turn(one.item_id, one.kind), one.rater), one.revision): one.choice for one in judgements}
    places = Counter((one.item_id, one.rater, one.kind) for one in judgements if one.supersedes is None)
    votes = Counter(one.item_id for one in judgements if one.kind == "vote" and one.supersedes is None)
    sent = {_key(row) for row in rows if row["what"] == "sent"}
    told = {_key(row): row["choice"] for row in rows if row["what"] == "acknowledged" and _is_judgement(row)}
    return Counted(
        acknowledged=len(told),
        stored=len(judgements),
        lost=sum(choices.get(key) != choice for key, choice in told.items()),
        doubled=sum(count > 1 for count in [*stored.values(), *places.values()]),
        unasked=len(set(stored) - sent),
        unanswered=len((set(stored) & sent) - set(told)),
        refused=sum(row["what"] == "refused" for row in rows),
        overfull=sum(count > stand.batch.settings.votes_per_prompt for count in votes.values()),
    )


def _is_judgement(row: dict[str, Any]) -> bool:
    return row["answer"].get("feedback") is None


def _key(row: dict[str, Any]) -> tuple[str, int]:
    return row["task_id"], row["revision"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
