"""The folder of local runs: what each run left, and the state that outlives them.

<workspace>/<run-id>/      settings.yaml, steps/ (artifacts), pipeline.log, report.html, summary.json
<workspace>/latest         link to the newest run
<workspace>/state/         mlflow.db, mlartifacts/, evidence.db (evidence and ledger), anchors/, cache/, checkpoints/
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from components.shared.errors import InputError
from components.shared.progress import PROGRESS_VARIABLE

__all__ = ["RunFolder", "Workspace"]

logger = logging.getLogger(__name__)

EXPERIMENT = "plumbline"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class RunFolder:
    """What one run leaves behind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps = path / "steps"
        self.log = path / "pipeline.log"
        self.progress = path / "progress.jsonl"
        self.settings = path / "settings.yaml"
        self.report = path / "report.html"
        self.summary = path / "summary.json"
        self._lock = path / ".going-on"

    @property
    def run_id(self) -> str:
        return self.path.name

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Within the block the run goes on, for every process that looks: a lock, which a kill gives back too."""
        with open(self._lock, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)  # who looks at this very moment holds it no longer than that
            except OSError as error:  # a file system without locks: the run itself needs none
                logger.debug("%s cannot be locked: %s", self._lock, error)
            yield

    @property
    def state(self) -> str:
        """`RUNNING`, or `KILLED` where nobody runs it any more; only of a run without a summary."""
        try:
            with open(self._lock, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return "RUNNING"
        except FileNotFoundError:  # of an older Plumbline, or killed before it began
            return "KILLED"
        except OSError:
            return "RUNNING or killed"
        return "KILLED"


class Workspace:
    """The folder of local runs."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()
        self.state = self.root / "state"
        self.cache = self.state / "cache"

    def new_run(self, name: str) -> RunFolder:
        """Makes the folder of a new run, named by `name` and the time."""
        self._make_state()
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        for attempt in range(100):
            folder = self.root / (f"{name}-{stamp}" + (f"-{attempt}" if attempt else ""))
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            (folder / "steps").mkdir()
            return RunFolder(folder)
        raise InputError("a hundred runs of this name started in this second.", where=str(self.root))

    def run(self, run_id: str) -> RunFolder:
        """The folder of a run that was made before.

        Raises:
            InputError: There is none.
        """
        folder = self.root / run_id
        if not folder.is_dir():
            raise InputError(f"no run {run_id!r}.", where=str(self.root), hint="`plumbline status` lists the runs.")
        return RunFolder(folder.resolve())

    def runs(self) -> list[RunFolder]:
        """Every run, oldest first."""
        if not self.root.is_dir():
            return []
        folders = (path for path in self.root.iterdir() if path.is_dir() and not path.is_symlink())
        found = [RunFolder(path) for path in folders if (path / "settings.yaml").is_file()]
        return sorted(found, key=lambda run: run.settings.stat().st_mtime)

    def point_latest(self, run: RunFolder) -> None:
        """Makes `latest` a link to `run`, in one step."""
        aside = self.root / f".latest-{run.run_id}"
        aside.unlink(missing_ok=True)
        aside.symlink_to(run.run_id)
        os.replace(aside, self.root / "latest")

    def variables(self) -> dict[str, str]:
        """Where a step finds the services; a variable that is already set in the environment wins."""
        return {
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.state / 'mlflow.db'}",
            "MLFLOW_EXPERIMENT_NAME": EXPERIMENT,
            "PLUMBLINE_DATABASE_URL": f"sqlite:///{self.state / 'evidence.db'}",
            "PLUMBLINE_CHECKPOINTS": str(self.state / "checkpoints"),
            "PLUMBLINE_LEDGER_ANCHOR": str(self.state / "anchors"),
        }

    @contextmanager
    def services(self) -> Iterator[None]:
        """Within the block, this process and its children find the workspace's services."""
        self._make_state()
        with _environment({k: v for k, v in self.variables().items() if k not in os.environ}):
            yield

    @contextmanager
    def environment(self, run: RunFolder, *, threads: int | None) -> Iterator[None]:
        """Within the block, steps belong to `run`.

        Args:
            run: The run.
            threads: CPU threads of each step; None leaves it to torch.
        """
        variables = {"PLUMBLINE_RUN_ID": run.run_id, PROGRESS_VARIABLE: str(run.progress)}
        if threads:
            variables |= dict.fromkeys(_THREAD_VARIABLES, str(threads))
        with self.services(), _environment(variables):
            self._make_experiment()
            yield

    def _make_state(self) -> None:
        try:
            for folder in (self.cache, self.state / "checkpoints", self.state / "anchors", self.state / "mlartifacts"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot be used as workspace: {error.strerror}.", where=str(self.root), hint="Set execution.workspace."
            ) from error

    def _make_experiment(self) -> None:
        """Makes the experiment whose artifacts lie in the workspace; MLflow's default is the working directory."""
        if os.environ["MLFLOW_TRACKING_URI"] != self.variables()["MLFLOW_TRACKING_URI"]:
            return
        from mlflow.tracking import MlflowClient

        client = MlflowClient()
        if client.get_experiment_by_name(EXPERIMENT) is None:
            client.create_experiment(EXPERIMENT, artifact_location=(self.state / "mlartifacts").as_uri())


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
