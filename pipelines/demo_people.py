"""The demonstration with people in it: `plumbline demo --scenario people`.

The review service runs as it does for people. Simulated raters sign in and judge over HTTP, the service itself starts
the release run when their votes are in, and two managers approve:

    good run > HOLD, awaiting evidence > votes > the service starts the release run > two approvals > champion
    over-optimised run > HOLD > votes > BLOCK > forced live by break-glass > soak > votes > ROLLBACK
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from components.demo_world.http_raters import ReviewClient, rate_together
from components.demo_world.raters import HumanRaters
from components.human_eval.settings import PEOPLE
from components.shared.errors import PlumblineError
from components.shared.files import read_json, read_jsonl, write_json, write_jsonl
from components.shared.records import PromptRecord, stable_order
from pipelines.local import RunResult
from pipelines.runs import run_soak, run_training
from pipelines.settings import ReleaseGateSettings, RunSettings
from pipelines.workspace import Workspace

__all__ = ["MANAGERS", "Service", "review_service", "run_people", "with_people"]

logger = logging.getLogger(__name__)

MANAGERS = ("mia", "noa")
_REQUESTER = "demo-operator"
_PANEL_OF_SIX = slice(6, 12)
"""Of the twelve simulated raters; the careless one is among them."""
_JUDGED_BY_PEOPLE = {"panel": PEOPLE, "n_prompts": 200, "votes_per_prompt": 2, "practice_items": 0, "undo_minutes": 0}
_CHECKPOINT_PROMPTS = 20
_SIGN_IN = re.compile(r"^(\S+) signs in once with (\S+)/login\?token=(\S+)$")
_PATIENCE_SECONDS = 900.0
_PAUSE_SECONDS = 0.5


def with_people(settings: RunSettings, panel: HumanRaters) -> RunSettings:
    """A demo's settings in which people judge, at the review service, and two approve.

    Args:
        settings: The demo's; its world gets the items by which raters are checked.
        panel: Writes these items.
    """
    in_common = {**_JUDGED_BY_PEOPLE, "gold_data": str(_write_gold_items(settings, panel))}
    soak = settings.soak.human_eval.model_copy(update=in_common)
    judged = {**in_common, "checkpoint_prompts": _CHECKPOINT_PROMPTS}
    return settings.model_copy(
        update={
            "name": f"{settings.name}-people",
            "model_name": f"{settings.model_name}-people",
            "human_eval": settings.human_eval.model_copy(update=judged),
            "soak": settings.soak.model_copy(update={"human_eval": soak}),
            "release_gate": ReleaseGateSettings(policy="demo-people"),
        }
    )


def run_people(
    good: RunSettings, overoptimized: RunSettings, *, console: Console, look: Callable[[Service], None] | None = None
) -> RunResult:
    """Runs the scenario.

    Args:
        good: Settings of the demo's good run.
        overoptimized: Settings of its over-optimised run.
        console: Where progress is drawn.
        look: Called at the end, while the service is there: to look at its pages.

    Returns:
        The last release run, which took the model back; its summary's `people` tells every step of the scenario.

    Raises:
        PlumblineError: A run failed, or a step did not come out in time.
    """
    os.environ.setdefault("PLUMBLINE_ACTOR", _REQUESTER)
    panel = HumanRaters(good.seed)
    good, overoptimized = with_people(good, panel), with_people(overoptimized, panel)
    workspace, model = good.execution.workspace, good.model_name
    story: dict[str, Any] = {}
    with review_service(workspace, raters=panel.raters[_PANEL_OF_SIX]) as service:
        champion = _version(_run(good, console))
        story["good"] = _judged(service, panel, model, champion, "AWAITING_APPROVAL", console)
        story["approved"] = _approve(service, model, champion, console)
        blocked = _version(_run(overoptimized, console))
        story["overoptimized"] = _judged(service, panel, model, blocked, "BLOCKED", console)
        _break_glass(workspace, model, blocked, console)
        run_soak(workspace, model, console=console)
        story["forced"] = _judged(service, panel, model, blocked, "ROLLED_BACK", console)
        story["champion"] = service.manager.get("/api/v1/models")[0]["champion"]
        if look:
            look(service)
        result = _release_run_at_its_end(workspace)
    console.print(f"champion again: version {story['champion']}", highlight=False)
    result.summary["people"] = story
    write_json(result.run.summary, result.summary)
    return result


def _write_gold_items(settings: RunSettings, panel: HumanRaters) -> Path:
    """Items with a known answer, beside the world's data; its demonstrations are of mixed quality by design."""
    demonstrations = stable_order(
        PromptRecord(id=f"gold-{number}", prompt=row["prompt"], slice=row["slice"])
        for number, row in enumerate(read_jsonl(settings.data.sft))
    )
    items = panel.gold_items(demonstrations, settings.human_eval.gold_items)
    path = Path(settings.data.sft).with_name("gold.jsonl")
    write_jsonl(path, (_gold_row(item) for item in items))
    return path


def _gold_row(item: dict[str, Any]) -> dict[str, Any]:
    answers = item["response_a"], item["response_b"]
    better, worse = answers if item["expected"] == "a" else answers[::-1]
    record: PromptRecord = item["record"]
    return {"id": record.id, "prompt": record.prompt, "slice": record.slice, "better": better, "worse": worse}


@dataclass(frozen=True)
class Service:
    """A review service that runs, and those who are signed in.

    Attributes:
        address: Of the service.
        raters: By login.
        managers: By login.
    """

    address: str
    raters: dict[str, ReviewClient]
    managers: dict[str, ReviewClient]

    @property
    def manager(self) -> ReviewClient:
        """One of the managers."""
        return next(iter(self.managers.values()))


@contextlib.contextmanager
def review_service(workspace: str, *, raters: list[str]) -> Iterator[Service]:
    """Starts `plumbline review` on a free port, signs everybody in, and stops it at the end.

    Args:
        workspace: Folder of local runs.
        raters: Programs that rate.

    Raises:
        PlumblineError: The service did not start.
    """
    command = [sys.executable, "-m", "pipelines.cli", "review", "--workspace", workspace, "--port", str(_free_port())]
    command += [part for login in MANAGERS for part in ("--manager", login)]
    command += [part for login in raters for part in ("--simulated", login)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address, clients = _sign_in(process, len(MANAGERS) + len(raters))
        yield Service(
            address,
            {login: client for login, client in clients.items() if login not in MANAGERS},
            {login: client for login, client in clients.items() if login in MANAGERS},
        )
    finally:
        process.terminate()
        process.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _sign_in(process: subprocess.Popen[str], people: int) -> tuple[str, dict[str, ReviewClient]]:
    """Reads the one-time links that the service prints, and uses each."""
    links: dict[str, tuple[str, str]] = {}
    assert process.stdout is not None
    for line in process.stdout:
        if found := _SIGN_IN.match(line.strip()):
            links[found[1]] = found[2], found[3]
        if len(links) == people:
            break
    else:
        raise PlumblineError("the review service did not start.", where="plumbline review")
    address = next(iter(links.values()))[0]
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return address, {login: ReviewClient(address, token) for login, (_, token) in links.items()}
        except PlumblineError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_SECONDS)


def _run(settings: RunSettings, console: Console) -> RunResult:
    console.print(f"[bold]{settings.name}[/]: people will judge", highlight=False)
    result = run_training(settings, console=console)
    if result.failure:
        raise PlumblineError(result.failure.cause, where=f"{result.run.run_id}, {result.failure.stage}")
    return result


def _version(result: RunResult) -> str:
    return str(result.summary["candidate"]["version"])


def _judged(
    service: Service, panel: HumanRaters, model: str, version: str, state: str, console: Console
) -> dict[str, Any]:
    """The raters judge what awaits them; the service does the rest. Returns verdict and reason."""
    judged = rate_together(service.raters, panel)
    console.print(f"  {len(judged)} raters judged {sum(judged.values())} items over HTTP", highlight=False)
    release = _wait_for(service, model, version, state)
    console.print(f"  version {version}: {release['state']}. {release['reason']}", highlight=False, markup=False)
    return {"version": version, "votes": sum(judged.values()), "verdict": release["verdict"], "state": state}


def _wait_for(service: Service, model: str, version: str, state: str) -> dict[str, Any]:
    """Waits until the release run, which the service starts by itself, has brought the release into a state."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    release: dict[str, Any] = {}
    while time.monotonic() < deadline:
        found = service.manager.get(f"/api/v1/models/{model}/releases")
        release = next((one for one in found if one["version"] == version), {})
        if release.get("state") == state:
            return release
        time.sleep(_PAUSE_SECONDS)
    raise PlumblineError(
        f"version {version} is {release.get('state', 'unknown')}, not {state}: {release.get('reason', '')}", where=model
    )


def _release_run_at_its_end(workspace: str) -> RunResult:
    """The run that the service started last, once it has written its summary."""
    run = Workspace(workspace).run("latest")
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not run.summary.is_file() and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
    return RunResult(run, read_json(run.summary), None)


def _approve(service: Service, model: str, version: str, console: Console) -> list[str]:
    """Both managers approve what they see; the second approval promotes."""
    path = f"/api/v1/models/{model}/releases/{version}"
    for login, client in service.managers.items():
        client.post(f"{path}/approve", {"reason": "demo: people prefer it", "binding": client.get(path)["binding"]})
        console.print(f"  {login} approves version {version}", highlight=False)
    _wait_for(service, model, version, "SOAKING")
    return list(service.managers)


def _break_glass(workspace: str, model: str, version: str, console: Console) -> None:
    from components.release_gate import operations

    console.print(f"[bold red]BREAK-GLASS[/] {model} version {version} goes live against the gate", highlight=False)
    with Workspace(workspace).services():
        operations.break_glass(model, version, actor=_REQUESTER, reason="demo: forced live against the gate")
