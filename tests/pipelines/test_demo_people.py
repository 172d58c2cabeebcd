"""The demonstration with people in it, whole: raters over HTTP, a release run that starts by itself, two approvals, a
block, a model that is forced live and taken back; and the pages, in a real browser, that say why.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from components.release_gate import operations
from components.shared.files import read_json
from pipelines.demo import demo_settings, run_demo
from pipelines.demo_people import MANAGERS, Service, run_people
from pipelines.workspace import Workspace

sys.path.insert(0, str(Path(__file__).parents[1] / "components" / "review"))
from browser import Witness, open_browser

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000), pytest.mark.xdist_group("demo_people")]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the scenario said and left, and the text of its release pages as a manager's browser showed them."""
    folder = tmp_path_factory.mktemp("people")
    workspace = str(folder / "runs")
    pages: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PLUMBLINE_ACTOR", raising=False)
        patch.setattr("pipelines.demo.run_people", _looking_at_the_end(folder, pages))
        result = run_demo("people", seed=0, workspace=workspace, console=Console(quiet=True))
    model = demo_settings("good", seed=0, workspace=workspace).model_name + "-people"
    with Workspace(workspace).services():
        history, verified = operations.history(model), operations.verify(model)
    return {"summary": read_json(result.run.summary), "pages": pages, "history": history, "verified": verified}


def _looking_at_the_end(folder: Path, pages: dict[str, str]) -> Callable[..., Any]:
    def look(service: Service) -> None:
        with open_browser(folder / "browser") as context:
            cookies = [
                {"name": cookie.name, "value": cookie.value, "url": service.address}
                for cookie in service.manager.cookies
            ]
            context.add_cookies(cookies)
            page = context.new_page()
            witness = Witness(page)
            page.set_viewport_size({"width": 1200, "height": 1400})
            for name, path in _paths(service).items():
                page.goto(service.address + path)
                pages[name] = page.inner_text("body")
                if kept := os.environ.get("PLUMBLINE_SCREENSHOTS"):
                    page.screenshot(path=str(Path(kept) / f"people-{name}.png"))
            assert (witness.errors, witness.foreign, witness.dialogs) == ([], [], [])

    return lambda good, over, *, console: run_people(good, over, console=console, look=look)


def _paths(service: Service) -> dict[str, str]:
    model = service.manager.get("/api/v1/models")[0]["model"]
    good, blocked = sorted(one["version"] for one in service.manager.get(f"/api/v1/models/{model}/releases"))
    return {"models": "/releases", "good": f"/releases/{model}/{good}", "forced": f"/releases/{model}/{blocked}"}


def test_people_prefer_the_good_run_two_of_them_approve_and_it_becomes_champion(told: dict[str, Any]) -> None:
    people = told["summary"]["people"]
    assert people["good"]["votes"] > 500
    assert people["good"]["verdict"] == "PROMOTE"
    version = people["good"]["version"]
    events = [entry for entry in told["history"] if entry["version"] == version]
    assert [entry["actor"] for entry in events if entry["event"] == "approve"] == list(MANAGERS)
    assert [entry["event"] for entry in events].index("hold") < [entry["event"] for entry in events].index("approve")
    assert "promoted" in {entry["event"] for entry in events}


def test_people_turn_from_the_overoptimized_run_and_it_is_blocked(told: dict[str, Any]) -> None:
    people = told["summary"]["people"]
    assert people["overoptimized"]["verdict"] == "BLOCK"
    events = [entry["event"] for entry in told["history"] if entry["version"] == people["overoptimized"]["version"]]
    assert "block" in events
    assert "approve" not in events


def test_forced_live_it_is_taken_back_by_fresh_votes_and_the_champion_is_the_good_one_again(
    told: dict[str, Any],
) -> None:
    people = told["summary"]["people"]
    assert people["forced"]["verdict"] == told["summary"]["verdict"] == "ROLLBACK"
    assert people["champion"] == people["good"]["version"]
    events = [entry["event"] for entry in told["history"] if entry["version"] == people["forced"]["version"]]
    order = [event for event in events if event in ("block", "break_glass", "promoted", "alarm", "rolled_back")]
    assert order == ["block", "break_glass", "promoted", "alarm", "rolled_back"]
    assert told["verified"]["ok"] is True


def test_the_pages_say_why(told: dict[str, Any]) -> None:
    pages = told["pages"]
    for login in MANAGERS:
        assert login in pages["good"]
    assert "People prefer the candidate" in pages["good"]
    assert "break glass" in pages["forced"].lower()
    assert "forced live against the gate" in pages["forced"]
    assert "ROLLED_BACK" in pages["forced"].replace(" ", "_").upper()
    assert "simulated" in pages["good"]
