"""One check a prerequisite: it returns what it found in plain words, or raises with what is missing and what to do."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from components.shared.artifact_sources import artifact_digest
from components.shared.checkpoint_storage import check_checkpoint_storage, scratch_root
from components.shared.errors import InputError, PlumblineError
from components.shared.files import read_jsonl
from components.shared.hub_models import split_revision
from components.shared.locations import HubDataset, open_location
from components.shared.plugins import load_attribute
from components.shared.storage import is_object_storage, open_storage

__all__ = [
    "check_base_model",
    "check_checkpoints",
    "check_data",
    "check_database",
    "check_disk",
    "check_gold_items",
    "check_gpu",
    "check_ledger_anchor",
    "check_plug_in",
    "check_reward_model",
    "check_tracking",
]

_GIB = 2**30
_WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json")


def check_data(name: str, uri: str) -> str:
    """A local data path exists and holds something. Remote ones are read by data validation, with their own errors.

    Raises:
        InputError: No such file or folder, or an empty one.
    """
    if "://" in uri:
        return f"{name}: {uri} (remote)"
    path = Path(uri)
    if not path.exists():
        raise InputError(
            f"no such {name} file or folder.", where=uri, hint="Check the path under `data` in the settings."
        )
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"the {name} file is empty.", where=uri)
    if path.is_dir() and not any(path.iterdir()):
        raise InputError(f"the {name} folder is empty.", where=uri)
    return f"{name}: {uri}"


def check_gold_items(uri: str, needed: int) -> str:
    """The items by which raters are checked can be read, and there are as many as make a vote count.

    Args:
        uri: JSON lines; a file, a folder or `s3://...`.
        needed: How many a rater must have judged.

    Raises:
        InputError: They are not there, a row lacks something, or there are too few.
    """
    with open_location(uri) as found:
        if isinstance(found, HubDataset) or any(file.path.suffix == ".parquet" for file in found):
            raise InputError("gold items are JSON lines.", where=uri, hint="Fields: id, prompt, slice, better, worse.")
        rows = [(file.path, number, row) for file in found for number, row in enumerate(read_jsonl(file.path), 1)]
    for path, number, row in rows:
        missing = [name for name in ("id", "prompt", "better", "worse") if not row.get(name)]
        if missing:
            raise InputError(f"the gold item has no {', '.join(missing)}.", where=f"{path.name} line {number}, {uri}")
    if len(rows) < needed:
        hint = "Add some, or lower human_eval.gold_min_count."
        raise InputError(f"{len(rows)} gold items, {needed} needed: no vote could ever count.", where=uri, hint=hint)
    return f"gold items: {len(rows)} in {uri}"


def check_base_model(base_model: str) -> str:
    """A local model folder has a config, a tokenizer and safetensors weights; anything else is taken as a hub id.

    Raises:
        InputError: A part of the folder is missing.
    """
    folder = Path(base_model)
    if not folder.is_dir():
        beside_folders = folder.parent != Path(".") and folder.parent.is_dir()
        name, _ = split_revision(base_model)
        if base_model.startswith((".", "/", "~")) or name.count("/") > 1 or beside_folders:
            raise InputError(
                "no such model folder.",
                where=base_model,
                hint="Give a folder, a hub id or id@revision as `base_model`.",
            )
        return f"base model: {base_model} (from the hub)"
    names = {file.name for file in folder.iterdir()}
    for present, what in (
        ("config.json" in names, "config.json"),
        (any(name.endswith(_WEIGHT_SUFFIXES) for name in names), "safetensors weights"),
        (any(name.startswith("tokenizer") for name in names), "tokenizer"),
    ):
        if not present:
            raise InputError(
                f"the model folder has no {what}.",
                where=base_model,
                hint="Save model and tokenizer with save_pretrained().",
            )
    return f"base model: {base_model}"


def check_disk(folder: str | Path, min_free_gib: float) -> str:
    """Enough free disk where artifacts go.

    Raises:
        PlumblineError: Less free than asked for.
    """
    existing = next(path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free / _GIB
    if free < min_free_gib:
        raise PlumblineError(
            f"{free:.1f} GiB of disk free, {min_free_gib:g} GiB needed.",
            where=str(folder),
            hint="Free some, or lower prerequisites.min_free_disk_gib.",
        )
    return f"disk: {free:.0f} GiB free"


def check_checkpoints(place: str, min_free_gib: float) -> str:
    """Enough free disk where checkpoints are written; and, where they go on to object storage, that it takes them.

    Raises:
        PlumblineError: Less disk free than asked for, or object storage cannot be used.
    """
    if not is_object_storage(place):
        return check_disk(place or ".", min_free_gib)
    check_checkpoint_storage(place)
    return f"checkpoints: {place}; {check_disk(scratch_root(), min_free_gib)}"


def check_gpu(require_gpu: bool) -> str:
    """The device that training will use.

    Raises:
        PlumblineError: A GPU is required and none is visible.
    """
    visible = shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()
    if require_gpu and not visible:
        raise PlumblineError(
            "no GPU is visible.",
            where="prerequisites.require_gpu",
            hint="Schedule the step on a GPU node, or set it to false to train on the CPU.",
        )
    return "device: GPU" if visible else "device: CPU"


def check_plug_in(reference: str) -> str:
    """A plug-in can be imported.

    Raises:
        InputError: It cannot.
    """
    load_attribute(reference)
    return f"plug-in: {reference}"


def check_reward_model(uri: str) -> str:
    """A reward model that the settings name is there and intact.

    Raises:
        ArtifactError: It cannot be fetched, is damaged, or is no reward model.
    """
    return f"reward model: {uri} ({artifact_digest(uri, 'reward_model')[:12]})"


def check_tracking() -> str:
    """The MLflow server, which keeps the models too, answers.

    Raises:
        PlumblineError: It is not configured, or does not answer.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise PlumblineError(
            "no MLflow server is configured; the gate registers models there.",
            where="MLFLOW_TRACKING_URI",
            hint="Set it to a server's address.",
        )
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    from components.shared.tracking import pipeline_run_id

    try:
        pipeline_run_id()
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise PlumblineError(
            f"MLflow does not answer: {error}",
            where="MLFLOW_TRACKING_URI",
            hint="Check address, login and --allowed-hosts.",
        ) from error
    return "MLflow: answers"


def check_ledger_anchor() -> str:
    """The place where the ledger's head is anchored, a folder or object storage, can be written.

    Raises:
        PlumblineError: It is not configured, or cannot be written.
    """
    folder = os.environ.get("PLUMBLINE_LEDGER_ANCHOR")
    if not folder:
        raise PlumblineError(
            "no anchor of the ledger is configured.",
            where="PLUMBLINE_LEDGER_ANCHOR",
            hint="Set it to a folder outside the evidence database, or to s3://bucket/prefix.",
        )
    if is_object_storage(folder):
        open_storage(folder, waits=()).write(".write-check", b"")
        return "ledger anchor: writable"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PlumblineError(f"the ledger's anchor cannot be written: {error.strerror}.", where=folder) from error
    return "ledger anchor: writable"


def check_database() -> str:
    """The evidence database answers.

    Raises:
        PlumblineError: It is not configured, or does not answer.
    """
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    from components.shared.ledger_table import open_engine

    url = os.environ.get("PLUMBLINE_DATABASE_URL")
    if not url:
        raise PlumblineError(
            "no evidence database is configured.", where="PLUMBLINE_DATABASE_URL", hint="Set it to a SQLAlchemy URL."
        )
    try:
        engine = open_engine(url)
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("select 1"))
        engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        raise PlumblineError(
            f"the evidence database does not answer: {error}",
            where="PLUMBLINE_DATABASE_URL",
            hint="Check URL and login.",
        ) from error
    return f"evidence database: answers ({sqlalchemy.engine.make_url(url).drivername})"
