"""With people as raters nothing waits: the run ends HOLD, people vote, and the release run comes by itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import httpx2 as httpx
import pytest
import yaml
from small_run import latest_summary, make_small_world, plumbline, small_settings, write_settings

from components.demo_world.http_raters import ReviewClient
from components.shared.files import read_json, read_jsonl
from components.shared.ledger_table import open_engine
from components.shared.notices import WEBHOOK_VARIABLE
from components.shared.release_orders import ReleaseOrders

sys.path.insert(0, str(Path(__file__).parents[1] / "components" / "shared"))
from webhook_receiver import receive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.xdist_group("local_run")]

RATERS = ("rita", "rolf", "ruth")
PEOPLE = {
    "panel": "people",
    "n_prompts": 30,
    "checkpoint_prompts": 0,
    "votes_per_prompt": 2,
    "gold_items": 8,
    "gold_min_count": 2,
    "practice_items": 1,
    "undo_minutes": 0,
}
LENIENT = {
    "extends": "demo",
    "name": "lenient",
    "version": 1,
    "release": {"approvals_required": 1},
    "reward_model": {
        "min_accuracy_lower": 0.0,
        "max_accuracy": 1.0,
        "min_pairs": 2,
        "heldout_min_accuracy_lower": 0.0,
        "max_attack_success": 1.0,
        "current_pairs_margin": 1.0,
        "min_current_pairs": 2,
    },
    "kl": {"min_sequences": 2, "max_nats_per_sequence": 1e3, "max_slice_nats_per_sequence": 1e3},
    "human_preference": {"min_prompts": 5},
    "divergence": {
        "gap_margin": 1.0,
        "min_prompts": 5,
        "min_heldout_pairs": 2,
        "bootstrap_draws": 200,
        "require_checkpoints": False,
        "min_checkpoint_prompts": 2,
    },
    "length_style": {"test": "non_inferiority", "margin": 0.49},
    "safety": {"margin": 1.0, "min_answers": 2},
    "regression": {"critical_slices": []},
    "raters": {"min_raters": 1, "min_gold_items": 2},
}
"""What so small a run can meet; what is at stake here is not how good the model is."""


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was held because people have not judged yet."""
    folder = tmp_path_factory.mktemp("people")
    make_small_world(folder / "world")
    (folder / "lenient.yaml").write_text(yaml.safe_dump(LENIENT))
    settings = small_settings(folder / "world", folder / "runs", human_eval=PEOPLE)
    settings["release_gate"]["policy"] = str(folder / "lenient.yaml")
    write_settings(folder / "run.yaml", settings)
    (folder / "review.yaml").write_text(yaml.safe_dump({"port": 0, "watch_seconds": 0.5}))
    result = plumbline("run", "--settings", "run.yaml", "--json", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


def _orders(folder: Path) -> ReleaseOrders:
    return ReleaseOrders(open_engine(f"sqlite:///{folder / 'runs' / 'state' / 'evidence.db'}"))


def _releases(folder: Path) -> list[dict[str, Any]]:
    return [read_json(path) for path in sorted((folder / "runs").glob("small-release-*/summary.json"))]


def _told(folder: Path) -> dict[str, Any]:
    result = plumbline("status", "--json", cwd=folder)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@contextmanager
def _service(folder: Path, url: str) -> Iterator[tuple[str, dict[str, str]]]:
    """`plumbline review` as a user starts it; yields its address and each rater's one-time token."""
    names = [part for name in RATERS for part in ("--simulated", name)]
    command = [sys.executable, "-m", "pipelines.cli", "review", "--settings", "review.yaml", "--actor", "mia", *names]
    port = _free_port()
    service = subprocess.Popen(
        [*command, "--port", str(port)],
        cwd=folder,
        env={**os.environ, WEBHOOK_VARIABLE: url},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert service.stdout is not None
        said = [service.stdout.readline() for _ in range(2 + len(RATERS))]
        tokens = dict(found for line in said for found in re.findall(r"^(\w+) signs in once with \S+token=(\S+)", line))
        address = f"http://127.0.0.1:{port}"
        _wait_for(lambda: _answers(address), seconds=60)
        yield address, tokens
    finally:
        service.send_signal(signal.SIGKILL)
        service.wait(30)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/healthz").status_code == 200
    except httpx.HTTPError:
        return False


def _wait_for(condition: Callable[[], Any], *, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.5)


def _rate(address: str, token: str, liked: set[str], known: dict[str, set[str]]) -> int:
    """A rater at work: likes most of the candidate's answers, and knows the demonstrations that checks are made of."""
    done = 0
    with httpx.Client(base_url=address, timeout=60.0) as http:
        http.post("/login", data={"token": token})
        http.headers["X-Form-Token"] = http.get("/api/v1/me").json()["form_token"]
        for batch in http.get("/api/v1/batches").json():
            while (task := http.post(f"/api/v1/batches/{batch['batch_id']}/next").json().get("task")) is not None:
                texts = task["response_a"], task["response_b"]
                good = liked | known.get(str(task["prompt"]), set())
                dislikes = not known.get(str(task["prompt"])) and crc32(str(task["prompt"]).encode()) % 6 == 0
                choice = "tie" if (texts[0] in good) == (texts[1] in good) else "a" if texts[0] in good else "b"
                if dislikes:  # all votes for one side would leave nothing to tell the effect of length by
                    choice = {"a": "b", "b": "a"}.get(choice, choice)
                given = {"choice": choice, "revision": task["revision"]}
                assert http.post(f"/api/v1/tasks/{task['task_id']}/answer", json=given).status_code == 200
                done += 1
    return done


def _candidates_answers(folder: Path) -> set[str]:
    evaluation = Path(_orders(folder).find("small").uris["evaluation"])
    rows = list(read_jsonl(evaluation / "generations.jsonl"))
    of = {role: {row["response"] for row in rows if row["role"] == role} for role in ("candidate", "reference")}
    return of["candidate"] - of["reference"]


def _demonstrations(folder: Path) -> dict[str, set[str]]:
    """Completions by prompt."""
    dataset, known = Path(_orders(folder).find("small").uris["dataset"]), defaultdict(set)
    for split in ("train", "heldout"):
        for row in read_jsonl(dataset / "sft" / f"{split}.jsonl"):
            known[str(row["prompt"])].add(row["completion"])
    return known


def test_the_run_ends_held_and_says_what_it_waits_for(held: Path) -> None:
    summary = latest_summary(held / "runs")
    assert summary["verdict"] == "HOLD"
    assert summary["reasons"][0].startswith("Awaiting evidence: people judge batch ")
    (waiting,) = _told(held)["evidence"]
    assert (waiting["model"], waiting["version"], waiting["votes"]) == ("small", "1", 0)
    assert waiting["votes_needed"] > 0
    assert plumbline("release", "--due", cwd=held).stdout == "No release run is due.\n"


def test_a_person_may_look_before_the_votes_are_in_and_takes_nothing_from_the_run_to_come(held: Path) -> None:
    result = plumbline("release", "--model-name", "small", "--json", cwd=held)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["verdict"], summary["status"]) == ("HOLD", "SUCCEEDED")
    assert summary["reasons"][0].startswith("Awaiting evidence")
    (order,) = _orders(held).unfinished()
    assert _orders(held).state(order.order_id).status == "waiting"


def test_votes_over_http_start_the_release_run_and_people_are_told(held: Path) -> None:
    before = len(_releases(held))
    (order,) = _orders(held).all()
    with receive(503, 200) as (url, received):
        with _service(held, url) as (address, tokens):
            liked, known = _candidates_answers(held), _demonstrations(held)
            judged = sum(_rate(address, tokens[rater], liked, known) for rater in RATERS)
            assert judged > 0
            _wait_for(lambda: _orders(held).state(order.order_id).done, seconds=600)
            _wait_for(lambda: len(_releases(held)) > before, seconds=120)
            _wait_for(lambda: not _told(held)["notices"], seconds=120)
        assert _orders(held).state(order.order_id).attempt == 1
    kinds = [body["kind"] for body in received]
    assert {"evidence_complete", "approval_needed", "run_ended"} <= set(kinds)
    assert kinds[0] == kinds[1 + [body["id"] for body in received[1:]].index(received[0]["id"])]
    release = _releases(held)[-1]
    assert (release["status"], release["verdict"]) == ("SUCCEEDED", "PROMOTE"), release["reasons"]
    assert release["human"]["win_rate"] > 0.5
    assert [move["to_state"] for move in json.loads(plumbline("history", "small", "--json", cwd=held).stdout)][-1] == (
        "AWAITING_APPROVAL"
    )
    assert plumbline("release", "--due", cwd=held).stdout == "No release run is due.\n"
    typed = plumbline("approve", "small", "1", "--reason", "better", "--actor", "max", cwd=held)
    assert typed.returncode == 2
    assert "takes approvals on the release's page only, where people are signed in" in typed.stderr
    with receive(200) as (url, _), _service(held, url) as (address, tokens):
        mia = ReviewClient(address, tokens["mia"])
        path = "/api/v1/models/small/releases/1"
        mia.post(f"{path}/approve", {"reason": "better", "binding": mia.get(path)["binding"]})
    assert json.loads(plumbline("verify", "small", "--json", cwd=held).stdout)["ok"]
    (model,) = _told(held)["models"]
    assert model["champion"] == "1"
