"""The last step of every run: end it in the tracking server and tell people how it ended.

The notice goes to the log and, if `PLUMBLINE_WEBHOOK_URL` is set, to that address as a JSON body that Slack and its
likes understand. Telling people is best effort: a webhook that is down is logged and never turns a good run into a
failed one.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from components.shared.errors import InputError
from components.shared.files import digest_of, read_jsonl
from components.shared.progress import PROGRESS_VARIABLE
from components.shared.tracking import close_pipeline_run, pipeline_usage
from components.shared.usage import add_up, in_words

__all__ = ["WEBHOOK_VARIABLE", "Notice", "build_notice", "deliver", "find_failure", "finish_run"]

WEBHOOK_VARIABLE = "PLUMBLINE_WEBHOOK_URL"

_TRIES = 3
_TIMEOUT_SECONDS = 10.0
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_CAUSE = 1500

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Notice:
    """What people are told.

    Attributes:
        id: The same for every delivery of this notice, so that a receiver can drop repeats.
        text: In words.
        run_id: The run.
        status: How it ended.
        stage: The failing step; None when none failed or it is not known.
        cause: Why it failed.
        model_name: The registered model.
    """

    id: str
    text: str
    run_id: str
    status: str
    stage: str | None
    cause: str | None
    model_name: str

    def as_json(self) -> dict[str, str | None]:
        """The webhook's body: Slack reads `text` and passes over the rest."""
        return {
            "text": self.text,
            "id": self.id,
            "run_id": self.run_id,
            "status": self.status,
            "stage": self.stage,
            "cause": self.cause,
            "model_name": self.model_name,
        }


def finish_run(*, state: str, error_message: str | None, resource_name: str, model_name: str) -> Notice:
    """Ends the pipeline's run in the tracking server and sends the notice.

    Args:
        state: `SUCCEEDED`, `FAILED` or `CANCELLED`.
        error_message: What the orchestrator says of a failure.
        resource_name: The orchestrator's name of the run, used where `PLUMBLINE_RUN_ID` is not set.
        model_name: The registered model.

    Returns:
        The notice.
    """
    run_id = os.environ.get("PLUMBLINE_RUN_ID") or resource_name
    notice = build_notice(state=state, error_message=error_message, run_id=run_id, model_name=model_name)
    logger.log(logging.INFO if state == "SUCCEEDED" else logging.ERROR, "%s", notice.text)
    if url := os.environ.get(WEBHOOK_VARIABLE):
        deliver(notice, url)
    close_pipeline_run(state)
    return notice


def build_notice(*, state: str, error_message: str | None, run_id: str, model_name: str) -> Notice:
    """The notice of a run's end; a failure names its step and cause, as the failing step itself told them if it did."""
    stage, cause = None, None
    text = f"Plumbline run {run_id} of {model_name}: {state}."
    if state != "SUCCEEDED":
        stage, cause = find_failure(error_message)
        text += f" Failed at {stage}: {cause}" if stage else f" {cause or 'No cause is known.'}"
    if measured := [used for attempts in pipeline_usage().values() for used in attempts if used is not None]:
        text += f" Used {in_words(add_up(measured))}."
    return Notice(
        id=digest_of([run_id, state])[:32],
        text=text,
        run_id=run_id,
        status=state,
        stage=stage,
        cause=cause,
        model_name=model_name,
    )


def find_failure(error_message: str | None) -> tuple[str | None, str | None]:
    """The failing step and its cause.

    The orchestrator often knows no more than that the run failed, so the step's own words in the progress file come
    first: the last failure of a step that did not finish later (a retry may have saved it).

    Args:
        error_message: What the orchestrator says.

    Returns:
        Step and cause; None where not known.
    """
    failures: dict[str, str] = {}
    path = os.environ.get(PROGRESS_VARIABLE)
    if path and Path(path).is_file():
        try:
            for event in read_jsonl(path):
                if event.get("event") == "failed":
                    failures[str(event.get("stage"))] = str(event.get("error") or "no cause recorded")
                elif event.get("event") == "finished":
                    failures.pop(str(event.get("stage")), None)
        except InputError as error:
            logger.warning("The progress file cannot be read to its end: %s", error)
    if failures:
        stage, cause = list(failures.items())[-1]
        return stage, cause[:_LONGEST_CAUSE]
    return None, error_message[:_LONGEST_CAUSE] if error_message else None


def deliver(notice: Notice, url: str, *, pause_seconds: float = _FIRST_PAUSE_SECONDS) -> bool:
    """Posts a notice; tries again after a pause that doubles when the receiver is down or busy.

    Args:
        notice: What to send.
        url: Where to; an `http` or `https` address. It may hold a secret and is never logged.
        pause_seconds: Pause after the first failure.

    Returns:
        Whether it was delivered; a failure is logged.
    """
    if not _is_http(url):
        logger.error("The notice was not delivered: %s is not an http or https address.", WEBHOOK_VARIABLE)
        return False
    for attempt in range(1, _TRIES + 1):
        problem, final = _post(notice, url)
        if problem is None:
            return True
        logger.warning("The notice was not delivered (try %d of %d): %s", attempt, _TRIES, problem)
        if final:
            break
        if attempt < _TRIES:
            time.sleep(pause_seconds * 2 ** (attempt - 1))
    logger.error("The notice was given up; the run is not affected.")
    return False


def _is_http(url: str) -> bool:
    try:
        return urlsplit(url).scheme in ("http", "https")
    except ValueError:  # a malformed host
        return False


def _post(notice: Notice, url: str) -> tuple[str | None, bool]:
    """One delivery: what went wrong (None: nothing), and whether trying again is pointless."""
    request = urllib.request.Request(
        url,
        data=json.dumps(notice.as_json()).encode(),
        headers={"Content-Type": "application/json", "Idempotency-Key": notice.id, "User-Agent": "plumbline"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):
            return None, False
    except urllib.error.HTTPError as error:
        with error:
            return f"the receiver answered {error.code}", error.code < 500 and error.code not in (408, 429)
    except urllib.error.URLError as error:
        return f"the receiver cannot be reached: {error.reason}", False
    except (OSError, http.client.HTTPException) as error:
        return f"the receiver broke the connection: {type(error).__name__}", False
    except ValueError:
        return "the address is malformed", True
