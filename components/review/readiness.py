"""Whether the service can work: the database and MLflow, each asked with a short patience, and not at every knock."""

from __future__ import annotations

import os
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooSlow
from http.client import HTTPException

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from components.human_eval.database import EvidenceDatabase
from components.release_gate.ledger import open_ledger
from components.release_gate.registry import open_registry
from components.shared.errors import PlumblineError

__all__ = ["Readiness"]

_PATIENCE_SECONDS = 2.0
_SECONDS_KNOWN = 5.0


class Readiness:
    """Asks what the service depends on.

    Args:
        database: The evidence database.
        patience: Seconds that each may take to answer.
    """

    def __init__(self, database: EvidenceDatabase, *, patience: float = _PATIENCE_SECONDS) -> None:
        self._database = database
        self._patience = patience
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}
        self._asked_at = float("-inf")
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="readiness")

    def faults(self) -> dict[str, str]:
        """What is down, by name, and how it shows; empty if the service is ready. At most some seconds old."""
        with self._lock:
            if time.monotonic() - self._asked_at > _SECONDS_KNOWN:
                self._known, self._asked_at = self._ask(), time.monotonic()
            return dict(self._known)

    def _ask(self) -> dict[str, str]:
        asked = {
            "database": self._threads.submit(self._database_answers),
            "mlflow": self._threads.submit(_mlflow_answers, self._patience),
        }
        deadline, faults = time.monotonic() + self._patience, {}
        for name, answer in asked.items():
            try:
                answer.result(timeout=max(0.0, deadline - time.monotonic()))
            except TooSlow:
                answer.cancel()
                faults[name] = f"no answer within {self._patience:g} s."
            except PlumblineError as error:
                faults[name] = error.problem
            except (OSError, HTTPException, SQLAlchemyError) as error:
                faults[name] = f"does not answer: {str(error).partition(chr(10))[0] or type(error).__name__}."
        return faults

    def _database_answers(self) -> None:
        with self._database.transaction() as connection:
            connection.execute(text("SELECT 1"))
        open_ledger().models()


def _mlflow_answers(patience: float) -> None:
    """A server's health page; a database or a folder is opened when it is used, and there is nothing to ask."""
    open_registry()
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if address.startswith(("http://", "https://")):
        with urllib.request.urlopen(f"{address.rstrip('/')}/health", timeout=patience):
            pass
