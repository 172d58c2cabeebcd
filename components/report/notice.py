"""The last step of every run: end it in the tracking server and tell people how it ended.

The notice goes to the log and, if `PLUMBLINE_WEBHOOK_URL` is set, to that address as a JSON body that Slack and its
likes understand. With a database the notice waits there until it is delivered (`components.shared.notices`), together
with those of the run's events. A webhook that is down is logged and never turns a good run into a failed one.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from components.shared import notices
from components.shared.errors import InputError
from components.shared.files import digest_of, read_jsonl
from components.shared.ledger_table import DATABASE_VARIABLE
from components.shared.notices import WEBHOOK_VARIABLE
from components.shared.progress import PROGRESS_VARIABLE
from components.shared.release_orders import open_orders
from components.shared.tracking import close_pipeline_run, failed_step, pipeline_usage
from components.shared.usage import add_up, in_words

__all__ = ["WEBHOOK_VARIABLE", "Notice", "build_notice", "deliver", "find_failure", "finish_run"]

_TRIES = 3
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


def finish_run(
    *,
    state: str,
    error_message: str | None,
    resource_name: str,
    model_name: str,
    order: str = "",
    attempt: int = 0,
    holder: str = "",
) -> Notice:
    """Ends the pipeline's run in the tracking server, and the release order that it ran, and sends the notice.

    Args:
        state: `SUCCEEDED`, `FAILED` or `CANCELLED`.
        error_message: What the orchestrator says of a failure.
        resource_name: The orchestrator's name of the run, used where `PLUMBLINE_RUN_ID` is not set.
        model_name: The registered model.
        order: The release order that was run; empty for none.
        attempt: As which attempt.
        holder: The name under which the run took it.

    Returns:
        The notice.
    """
    run_id = os.environ.get("PLUMBLINE_RUN_ID") or resource_name
    notice = build_notice(state=state, error_message=error_message, run_id=run_id, model_name=model_name)
    logger.log(logging.INFO if state == "SUCCEEDED" else logging.ERROR, "%s", notice.text)
    if order:
        open_orders().end(order, attempt, holder, failed=state != "SUCCEEDED", problem=notice.text)
    _tell(notice)
    close_pipeline_run(state)
    return notice


def _tell(notice: Notice) -> None:
    """Through the outbox where there is a database: what cannot be delivered now is delivered by whoever comes next."""
    url = os.environ.get(WEBHOOK_VARIABLE)
    if os.environ.get(DATABASE_VARIABLE):
        try:
            outbox = notices.open_outbox()
            details = {name: value for name, value in notice.as_json().items() if name not in ("id", "text")}
            outbox.add(notices.Notice(notice.id, "run_ended", notice.text, details))
            if url:
                outbox.send(url)
            return
        except (SQLAlchemyError, OSError) as error:
            logger.warning("The outbox cannot be used: %s", str(error).partition("\n")[0])
    if url:
        deliver(notice, url)


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

    The orchestrator often knows no more than that the run failed, so the step's own words come first: from the progress
    file on one machine, from the step's MLflow run on a cluster; of a step that did not finish later (a retry may have
    saved it).

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
    if (told := failed_step()) is not None:
        stage, cause = told
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
    if not notices.is_http(url):
        logger.error("The notice was not delivered: %s is not an http or https address.", WEBHOOK_VARIABLE)
        return False
    for attempt in range(1, _TRIES + 1):
        problem, final = notices.post(notice.as_json(), url)
        if problem is None:
            return True
        logger.warning("The notice was not delivered (try %d of %d): %s", attempt, _TRIES, problem)
        if final:
            break
        if attempt < _TRIES:
            time.sleep(pause_seconds * 2 ** (attempt - 1))
    logger.error("The notice was given up; the run is not affected.")
    return False
