"""Secrets and addresses are found, replaced and counted; ordinary text is left alone."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_validation import make_candidate

from components.data_validation.checks import redact, redacted_row
from components.data_validation.redaction import PATTERNS, redact_text, to_pseudonym

# Put together here so that no scanner takes the test for a leak.
EXAMPLES = {
    "email": "jane.doe+news@mail.example.org",
    "aws_access_key": "AKIA" + "IOSFODNN7EXAMPLE",
    "github_token": "ghp_" + "a1B2" * 9,
    "gitlab_token": "glpat-" + "a1B2" * 5,
    "huggingface_token": "hf_" + "a1B2" * 9,
    "openai_key": "sk-proj-" + "a1B2" * 8,
    "google_api_key": "AIza" + "a1B2c" * 7,
    "slack_token": "xoxb-" + "1234567890-abcdef",
    "stripe_key": "sk_live_" + "a1B2" * 6,
    "json_web_token": "eyJ" + "hbGciOiJI" + ".eyJ" + "zdWIiOiIx" + "." + "c2lnbmF0dXJl",
    "private_key": "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
    "url_password": "jane:pa55word",
    "assigned_secret": "hunter2hunter2",
}
CONTEXT = {"url_password": "https://{}@host.example/x", "assigned_secret": "password = '{}' ok"}


def test_there_is_an_example_of_every_pattern() -> None:
    assert EXAMPLES.keys() == PATTERNS.keys()


@pytest.mark.parametrize("kind", list(EXAMPLES))
def test_what_must_not_be_stored_is_replaced_and_counted(kind: str) -> None:
    found: Counter[str] = Counter()
    text = CONTEXT.get(kind, "see {} there").format(EXAMPLES[kind])
    clean = redact_text(text, found)
    assert EXAMPLES[kind] not in clean
    assert f"[REDACTED:{kind}]" in clean
    assert found[kind] == 1
    assert redact_text(clean, Counter()) == clean


@pytest.mark.parametrize(
    "text",
    [
        "How do I kill a process? Use kill -9: it ends at once.",
        "The password: what makes a good one?",
        "a @ b, @name, x@y and 3 = 3",
        "https://host.example/a:b@c",
        "risk-taking and task-oriented-collaboration-work",
        "git@ and sk-learn",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert redact_text(text, Counter()) == text


@given(st.text(max_size=200))
def test_redaction_is_idempotent(text: str) -> None:
    once = redact_text(text, Counter())
    assert redact_text(once, Counter()) == once


def test_a_long_hostile_text_is_searched_in_linear_time() -> None:
    def seconds(size: int) -> float:
        started = time.process_time()
        redact_text("a.b-c+" * size + "@" + "x." * size + "://a:" + "password=" * size, Counter())
        return time.process_time() - started

    seconds(10)
    assert seconds(40_000) < 60 * max(seconds(4_000), 0.005)


def test_every_field_is_redacted_and_raters_keep_apart_under_pseudonyms() -> None:
    first, second, named = (
        make_candidate(
            prompt=[{"role": "user", "content": f"mail {EXAMPLES['email']}"}],
            rater=rater,
            metadata={"note": EXAMPLES["email"]},
        )
        for rater in ("a@x.example", "b@x.example", "rater-7")
    )
    redact([first, second, named], salt="s", replace=True)
    assert EXAMPLES["email"] not in repr([first.values, second.values])
    assert first.values["rater"] != second.values["rater"]
    assert named.values["rater"] == "rater-7"
    assert first.redactions == {"email": 3}
    assert EXAMPLES["email"] not in repr(redacted_row(first))


def test_without_replacement_secrets_are_only_counted() -> None:
    candidate = make_candidate(prompt=EXAMPLES["email"])
    redact([candidate], salt="s", replace=False)
    assert candidate.values["prompt"] == EXAMPLES["email"]
    assert candidate.redactions == {"email": 1}


def test_pseudonyms_are_stable_and_depend_on_the_salt() -> None:
    names = [to_pseudonym("a@x.example", salt, Counter()) for salt in ("s", "s", "t")]
    assert names[0] == names[1] != names[2]
