"""The pages in a real Chromium: keyboard, phone, approval, hostile texts, accessibility."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import AXE, Witness, find_chromium, open_browser
from release_world import MODEL, judge_release
from review_world import SECRET, open_batch, serve_on_loopback
from tiny_panels import make_gold_item, make_item
from xss_strings import XSS

from components.human_eval.batch import Answer
from components.human_eval.database import EvidenceDatabase
from components.review.app import create_app
from components.review.server import with_local_people
from components.review.settings import ReviewSettings
from components.shared.records import PromptRecord

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed"),
]

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1440, "height": 900}

_QUESTION = "How do I keep basil alive on a windowsill through the winter? It faces north."
_LONG = """Basil wants light and warmth more than anything else.

1. Put it under a lamp for about 12 hours a day; a north window alone is too dark.
2. Keep it above 15 °C and away from the cold glass at night.
3. Water from below when the top of the soil is dry, and empty the saucer.
4. Pinch the tips every week, so that it branches instead of flowering.

If it still grows pale and thin, it is short of light, not of fertiliser."""
_SHORT = "Great question! Basil is absolutely easy. Just water it daily and it will certainly thrive on any windowsill."


@pytest.fixture(autouse=True)
def _services(mlflow_store: str, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    monkeypatch.setenv("PLUMBLINE_ACTOR", "max")


@pytest.fixture
def app(database: EvidenceDatabase) -> Any:
    people = with_local_people(ReviewSettings(), managers=["mia", "moe"], raters=["ann"], simulated=[])
    return create_app(people, secret=SECRET, database=database)


@pytest.fixture
def address(app: Any) -> Iterator[str]:
    with serve_on_loopback(app) as url:
        yield url


def _sign_in(page: Any, app: Any, address: str, login: str) -> None:
    page.goto(f"{address}/login?token={app.state.review.login.issue(login)}")
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda url: "/login" not in url)


def _texts(number: int) -> Any:
    return make_item(
        number,
        record=PromptRecord(id=f"basil-{number}", prompt=f"{_QUESTION} ({number})", slice="howto"),
        first=Answer("candidate", _LONG, 90, True),
        second=Answer("reference", _SHORT, 20, number % 2 == 0),
    )


def _shoot(page: Any, name: str, **options: Any) -> None:
    """Keeps a screenshot where PLUMBLINE_SCREENSHOTS says, for people to look at."""
    folder = os.environ.get("PLUMBLINE_SCREENSHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}.png"), **options)


def _faults(page: Any, witness: Witness) -> list[str]:
    """What axe-core finds serious or critical. It runs in the page's world, past the policy, as an extension would.

    To measure contrast it tries inline styles, which the policy refuses and the console tells; that is not the page's.
    """
    told = len(witness.errors)
    page.evaluate(AXE.read_text())
    found = page.evaluate("async () => (await axe.run(document, {resultTypes: ['violations']})).violations")
    page.wait_for_timeout(300)  # what the console said arrives a moment later
    del witness.errors[told:]
    return [
        f"{rule['id']}: {rule['help']}: {[node['html'] for node in rule['nodes']][:3]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]


def _press(page: Any, key: str) -> None:
    """Presses a key and waits for the next item."""
    page.evaluate("() => { document.getElementById('work').dataset.before = 'yes' }")
    with page.expect_response(lambda response: "/rate/" in response.url and "/draft" not in response.url):
        page.keyboard.press(key)
    page.wait_for_function("() => !document.getElementById('work').dataset.before")


def test_a_batch_is_judged_by_keyboard_alone(
    app: Any, address: str, database: EvidenceDatabase, tmp_path: Path
) -> None:
    items = [*(_texts(number) for number in range(6)), *(make_gold_item(900 + n) for n in range(3))]
    never_set_aside = {"min_gold_accuracy": 0.0}  # the keys are pressed without reading
    batch = open_batch(database, items=items, gold_items=3, gold_min_count=1, practice_items=1, **never_set_aside)
    with open_browser(tmp_path / "profile") as context:
        page = context.new_page()
        witness = Witness(page)
        page.set_viewport_size(DESKTOP)
        _sign_in(page, app, address, "ann")
        _shoot(page, "batches")
        page.goto(f"{address}/rate/{batch}")
        _shoot(page, "practice")
        _press(page, "1")
        _shoot(page, "feedback")
        _press(page, "Enter")
        _shoot(page, "rate")
        assert _faults(page, witness) == []
        _press(page, "2")
        _press(page, "u")
        assert page.get_by_text("Correcting.").is_visible()
        _shoot(page, "undo")
        _press(page, "3")
        page.keyboard.press("?")
        assert page.get_by_role("dialog").is_visible()
        _shoot(page, "help")
        page.keyboard.press("Escape")
        page.keyboard.press("4")
        assert page.get_by_text("Say in a few words why both are bad.").is_visible()
        page.keyboard.type("Neither says 1 word about light? s u")
        page.wait_for_function("() => document.getElementById('saved').textContent === 'Draft saved'")
        _shoot(page, "both-bad")
        assert _faults(page, witness) == []
        _press(page, "Enter")
        _press(page, "s")
        while page.locator(".choice").count():
            _press(page, "1")
        _shoot(page, "done")
        assert _faults(page, witness) == []
    rows = database.judgements(batch)
    assert [row.revision for row in rows][:2] == [0, 1]
    assert "Neither says 1 word about light? s u" in [row.rationale for row in rows]
    assert witness.errors == []
    assert witness.foreign == []


def test_a_batch_is_judged_on_a_phone_in_the_dark(
    app: Any, address: str, database: EvidenceDatabase, tmp_path: Path
) -> None:
    batch = open_batch(database, items=[_texts(number) for number in range(2)])
    with open_browser(tmp_path / "profile") as context:
        page = context.new_page()
        witness = Witness(page)
        page.set_viewport_size(PHONE)
        _sign_in(page, app, address, "ann")
        page.goto(f"{address}/rate/{batch}")
        _shoot(page, "phone")
        _shoot(page, "phone-full", full_page=True)
        page.emulate_media(color_scheme="dark")
        _shoot(page, "phone-dark")
        assert _faults(page, witness) == []
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        for button in page.locator(".choice").all():
            box = button.bounding_box()
            assert box is not None
            assert box["height"] >= 44
            assert box["y"] + box["height"] <= PHONE["height"]
        with page.expect_response(lambda response: "/answer" in response.url):
            page.locator(".choice").first.click()
        page.set_viewport_size(DESKTOP)
        page.wait_for_function("() => document.querySelector('.progress').textContent.includes('1 judged')")
        _shoot(page, "rate-dark")
    assert len(database.judgements(batch)) == 1


def test_a_release_is_approved_from_its_page(app: Any, address: str, tmp_path: Path) -> None:
    version = judge_release(tmp_path / "release", texts=(_QUESTION, _LONG, _SHORT))
    with open_browser(tmp_path / "profile") as context:
        page = context.new_page()
        witness = Witness(page)
        page.set_viewport_size(DESKTOP)
        _sign_in(page, app, address, "mia")
        page.goto(f"{address}/releases")
        _shoot(page, "releases")
        assert _faults(page, witness) == []
        page.get_by_role("link", name=f"Version {version}").click()
        _shoot(page, "release-top")
        _shoot(page, "release", full_page=True)
        assert _faults(page, witness) == []
        page.set_viewport_size(PHONE)
        _shoot(page, "release-phone", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.set_viewport_size(DESKTOP)
        page.emulate_media(color_scheme="dark")
        _shoot(page, "release-dark")
        assert _faults(page, witness) == []
        page.locator("#reason-approve").fill("People prefer it, and nothing got worse.")
        page.get_by_role("button", name=f"Approve version {version}").click()
        page.get_by_text("You approved it.").wait_for()
        page.goto(f"{address}/batches")
        assert _faults(page, witness) == []
        page.get_by_role("button", name="Sign out").click()
        _sign_in(page, app, address, "moe")
        page.goto(f"{address}/releases/{MODEL}/{version}")
        page.locator("#reason-approve").fill("I agree.")
        page.get_by_role("button", name=f"Approve version {version}").click()
        page.get_by_text(", live").wait_for()
        _shoot(page, "release-live")
    assert app.state.review.board.models()[0].champion == version
    assert witness.errors == []
    assert witness.foreign == []


def test_hostile_texts_run_nothing_on_the_rater_page(
    app: Any, address: str, database: EvidenceDatabase, tmp_path: Path
) -> None:
    items = [
        make_item(
            number,
            record=PromptRecord(id=f"xss-{number}", prompt=text, slice="x"),
            first=Answer("candidate", text, 5, True),
            second=Answer("reference", XSS[(number + 1) % len(XSS)], 5, True),
        )
        for number, text in enumerate(XSS)
    ]
    batch = open_batch(database, items=items)
    seen = set()
    with open_browser(tmp_path / "profile") as context:
        page = context.new_page()
        witness = Witness(page)
        _sign_in(page, app, address, "ann")
        page.goto(f"{address}/rate/{batch}")
        while page.locator(".choice").count():
            text = page.locator(".prompt .text").inner_text()
            seen.add(text)
            page.locator("details.more").evaluate("node => { node.open = true }")
            page.locator("#rationale").fill(XSS[len(seen) % len(XSS)])
            page.locator("#work").focus()
            _press(page, "1")
            assert page.evaluate("window.pwned") is None
        page.keyboard.press("u")  # the reason comes back in its field
        page.wait_for_timeout(300)
        assert page.evaluate("window.pwned") is None
    assert len(seen) == len(XSS) == 50
    assert len(database.judgements(batch)) == 50
    assert (witness.dialogs, witness.foreign, witness.errors) == ([], [], [])


def test_hostile_texts_run_nothing_on_the_release_page(app: Any, address: str, tmp_path: Path) -> None:
    versions = [
        judge_release(tmp_path / f"release-{number}", weights=f"w{number}", texts=XSS[number::5], rationale=XSS[number])
        for number in range(2)
    ]
    with open_browser(tmp_path / "profile") as context:
        page = context.new_page()
        witness = Witness(page)
        _sign_in(page, app, address, "mia")
        for version in versions:
            page.goto(f"{address}/releases/{MODEL}/{version}")
            page.locator("#reason-reject").fill(XSS[10] + XSS[0])
            page.get_by_role("button", name=f"Reject version {version}").click()
            page.get_by_role("cell", name="reject", exact=True).wait_for()
            page.locator("details").evaluate_all("nodes => nodes.forEach(node => { node.open = true })")
            assert "onerror" in page.locator("body").inner_text()
            assert page.evaluate("window.pwned") is None
        page.goto(f"{address}/releases")
        assert page.evaluate("window.pwned") is None
    assert (witness.dialogs, witness.foreign, witness.errors) == ([], [], [])
