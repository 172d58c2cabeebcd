"""Processes that act on a release and are killed, with SIGKILL, before or after their n-th storage call.

A fork server imports everything once; each process is forked from it and opens connections of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from typing import Any

__all__ = ["ACTIONS", "STORAGE_CALLS", "act", "count_storage_calls", "fork_server", "kill_at_call", "run_all_at_once"]

STORAGE_CALLS = (
    ("components.release_gate.ledger", "Ledger", "view"),
    ("components.release_gate.ledger", "Ledger", "_append_once"),
    ("components.release_gate.anchor", "Anchor", "head"),
    ("components.release_gate.anchor", "Anchor", "advance"),
    ("components.release_gate.registry", "Registry", "verify"),
    ("components.release_gate.registry", "Registry", "set_alias"),
    ("components.release_gate.registry", "Registry", "aliases"),
    ("components.release_gate.registry", "Registry", "anchor"),
)
"""Everything that promote and rollback read from or write to: ledger, its anchor, and the registry."""

_SECONDS = 120

_PRELOADED = (
    "components.release_gate.promotion",
    "mlflow.store.artifact.local_artifact_repo",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "pg8000",
    "sqlalchemy.dialects.postgresql.pg8000",
)
"""MLflow loads its stores when they are first used, which takes seconds."""


def _promote(model: str, version: str) -> bool:
    from components.release_gate.promotion import promote

    return promote(model, version, f"promoter-{version}").changed


def _rollback(model: str, version: str) -> bool:
    from components.release_gate.promotion import rollback

    return rollback(model, "alice", "harm", version=version).changed


ACTIONS: dict[str, Callable[[str, str], bool]] = {"promote": _promote, "rollback": _rollback}


def fork_server() -> ForkServerContext:
    """The context whose server has imported what the actions need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    return context


def act(action: str, model: str, version: str) -> bool:
    """In this process, with an office of its own."""
    return ACTIONS[action](model, version)


def count_storage_calls(action: str, model: str, version: str) -> int:
    """Runs an action to its end in a process of its own; how many storage calls it made."""
    context = fork_server()
    answers = context.SimpleQueue()
    process = context.Process(target=_counted, args=(answers, dict(os.environ), action, model, version))
    process.start()
    process.join(_SECONDS)
    assert process.exitcode == 0, process.exitcode
    return answers.get()


def kill_at_call(action: str, model: str, version: str, call: int, *, after: bool) -> None:
    """Runs an action in a process that kills itself before or after its `call`-th storage call."""
    process = fork_server().Process(target=_killed, args=(dict(os.environ), action, model, version, call, after))
    process.start()
    process.join(_SECONDS)
    assert process.exitcode == -signal.SIGKILL, process.exitcode


def run_all_at_once(action: str, model: str, versions: list[str]) -> list[tuple[str, bool | None, str]]:
    """Runs an action in a process for each version, all released at the same moment.

    Returns:
        (version, whether it made the change, or None and why it was refused).
    """
    context = fork_server()
    barrier, answers = context.Barrier(len(versions)), context.SimpleQueue()
    arguments = (dict(os.environ), barrier, answers, action, model)
    processes = [context.Process(target=_released, args=(*arguments, version)) for version in versions]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join(_SECONDS)
    return found


def _counted(answers: Any, environment: dict[str, str], action: str, model: str, version: str) -> None:
    os.environ.update(environment)
    calls = _watch(lambda: None, lambda: None)
    act(action, model, version)
    answers.put(len(calls))


def _killed(environment: dict[str, str], action: str, model: str, version: str, call: int, after: bool) -> None:
    os.environ.update(environment)
    calls: list[str] = []

    def die() -> None:
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)

    nothing: Callable[[], None] = lambda: None  # noqa: E731
    _watch(nothing if after else die, die if after else nothing, calls)
    act(action, model, version)


def _released(environment: dict[str, str], barrier: Any, answers: Any, action: str, model: str, version: str) -> None:
    from components.release_gate.office import open_office
    from components.shared.errors import PlumblineError

    os.environ.update(environment)
    open_office().registry.aliases(model)  # connections first: the race is about the promotion
    barrier.wait(_SECONDS)
    try:
        answers.put((version, act(action, model, version), ""))
    except PlumblineError as error:
        answers.put((version, None, str(error)))
    except BaseException as error:
        answers.put((version, None, f"UNEXPECTED {error!r}"))
        raise


def _watch(before: Callable[[], None], after: Callable[[], None], calls: list[str] | None = None) -> list[str]:
    """Calls `before` and `after` around each outermost storage call; returns the list that the calls are noted in."""
    import importlib

    noted = [] if calls is None else calls
    depth = [0]

    def wrap(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if depth[0]:
                return original(*args, **kwargs)
            noted.append(name)
            before()
            depth[0] += 1
            try:
                result = original(*args, **kwargs)
            finally:
                depth[0] -= 1
            after()
            return result

        return watched

    for module, owner, name in STORAGE_CALLS:
        cls = getattr(importlib.import_module(module), owner)
        setattr(cls, name, wrap(name, getattr(cls, name)))
    return noted
