"""Runs the steps of a local run in containers: the images of a cluster, on this machine's Docker Engine.

kfp's `DockerRunner` starts them; here is what they get. A step runs as a user without rights, on a read-only root file
system with `/tmp` in memory, without capabilities, and sees of this machine the workspace and the inputs that the
settings name, at the paths that they have here. The code that runs is the image's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from components.shared.errors import InputError
from components.shared.settings import StrictModel

if TYPE_CHECKING:
    from pipelines.settings import RunSettings
    from pipelines.workspace import RunFolder, Workspace

__all__ = [
    "ContainerMount",
    "ContainerSettings",
    "container_steps",
    "require_containers",
    "step_options",
    "terminate_steps",
]

_UNPRIVILEGED = 65532
_RUN_LABEL = "dev.plumbline.run"
_HANDED_ON = ("PLUMBLINE_", "MLFLOW_", "AWS_", "HF_")
_KEPT_BACK = {"PLUMBLINE_REVIEW_SECRET", "PLUMBLINE_KFP_COOKIE"}
"""No step's business, and `docker inspect` shows a container's variables."""
_THREADS = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"}


class ContainerMount(StrictModel):
    """A file or folder of this machine that steps see."""

    source: str = Field(description="Path on this machine.")
    target: str | None = Field(default=None, description="Path in the container; None: the same.")
    read_only: bool = True


class ContainerSettings(StrictModel):
    """What the containers of a local run get (`execution.runner: docker`); a cluster has its profile instead."""

    user: str | None = Field(
        default=None,
        pattern=r"^\d+:\d+$",
        description="uid:gid of the steps; None: whoever runs the pipeline, and 65532:65532 if that is root.",
    )
    network: str = Field(default="bridge", description="Docker network that the steps join.")
    memory: str | None = Field(default=None, description="Memory limit of a step, e.g. `8g`; `/tmp` counts.")
    shared_memory: str | None = Field(default=None, description="Size of /dev/shm, e.g. `1g`; Docker's is 64m.")
    gpus: Literal["all"] | Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="GPUs that steps see, `all` or how many; Docker needs NVIDIA's container toolkit. None: none.",
    )
    mounts: list[ContainerMount] = Field(default=[], description="Beside the workspace and the inputs.")
    environment: dict[str, str] = Field(
        default={},
        description="Variables of the steps, before this process's own PLUMBLINE_*, MLFLOW_*, AWS_* and HF_*: "
        "how the steps reach a service, where that differs from how this machine does.",
    )

    @field_validator("user")
    @classmethod
    def _is_not_root(cls, user: str | None) -> str | None:
        if user and user.split(":")[0] == "0":
            raise ValueError("steps do not run as root")
        return user


@contextmanager
def container_steps(settings: RunSettings, workspace: Workspace, run: RunFolder) -> Iterator[Any]:
    """Within the block, kfp runs steps in containers.

    Args:
        settings: Of the run.
        workspace: All of it is mounted: a step may take what an earlier run left.
        run: Names the containers' label.

    Yields:
        The runner for `kfp.local.init`.
    """
    from kfp import local
    from kfp.local import docker_task_handler

    options = step_options(settings, workspace, run)
    scratch = run.path / "scratch"
    scratch.mkdir(exist_ok=True)
    run.progress.touch()
    if os.geteuid() == 0:
        _hand_over([run.path, workspace.state], options["user"])
    runner = local.DockerRunner(**options)
    before = docker_task_handler.run_docker_container
    # kfp's own lets Docker remove a container as it ends, and takes one that is gone for a success.
    docker_task_handler.run_docker_container = _run_container
    try:
        yield runner
    finally:
        docker_task_handler.run_docker_container = before


def require_containers(settings: RunSettings, workspace: Workspace, images: set[str]) -> None:
    """Looks whether containers could start, before there is a run.

    Args:
        settings: Of the run.
        workspace: Of the run.
        images: That the steps need.

    Raises:
        InputError: Docker cannot be reached, an image or a mount is missing, or an input cannot be read by the steps.
    """
    _require(images)
    _mounts(settings, workspace)


def terminate_steps(run_id: str) -> None:
    """Sends SIGTERM to the containers of a run."""
    import docker

    client = docker.from_env()
    try:
        for container in client.containers.list(filters={"label": f"{_RUN_LABEL}={run_id}"}):
            container.kill("SIGTERM")
    finally:
        client.close()


def step_options(settings: RunSettings, workspace: Workspace, run: RunFolder) -> dict[str, Any]:
    """What `docker run` is given for each step.

    Raises:
        InputError: A mount that the settings name is not there.
    """
    containers = settings.execution.containers
    limits = {
        "mem_limit": containers.memory,
        "shm_size": containers.shared_memory,
        "device_requests": _device_requests(containers.gpus),
    }
    mine = {name: value for name, value in os.environ.items() if name not in _KEPT_BACK}
    handed_on = {n: v for n, v in mine.items() if n.startswith(_HANDED_ON) or n in _THREADS}
    return {
        "user": containers.user or _own_user(),
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "pids_limit": 4096,
        "tmpfs": {"/tmp": "mode=1777"},
        "network": containers.network,
        "working_dir": os.getcwd(),  # relative paths in the settings mean the same there
        "labels": {_RUN_LABEL: run.run_id},
        "environment": handed_on | containers.environment,
        "mounts": _mounts(settings, workspace),
        **{name: value for name, value in limits.items() if value is not None},
    }


def _device_requests(gpus: Literal["all"] | int | None) -> list[Any] | None:
    """What `docker run --gpus` asks for."""
    from docker.types import DeviceRequest

    if gpus is None:
        return None
    return [DeviceRequest(count=-1 if gpus == "all" else gpus, capabilities=[["gpu"]])]


def _mounts(settings: RunSettings, workspace: Workspace) -> list[Any]:
    """The workspace, what the settings name by a path, and what they mount themselves."""
    from docker.types import Mount

    user = settings.execution.containers.user or _own_user()
    named = [settings.base_model, settings.data.sft, settings.data.prompts, settings.data.preferences]
    named += [settings.release_gate.policy, *settings.reward_models]
    paths = {Path(one).resolve() for one in named if one and Path(one).exists()}
    inputs = [path for path in sorted(paths) if not path.is_relative_to(workspace.root)]
    _require_readable(inputs, user)
    mounts = [Mount(str(workspace.root), str(workspace.root), type="bind")]
    mounts += [Mount(str(path), str(path), type="bind", read_only=True) for path in inputs]
    for one in settings.execution.containers.mounts:
        source = Path(one.source).resolve()
        if not source.exists():
            raise InputError("no such file or folder.", where=f"execution.containers.mounts: {one.source}")
        mounts.append(Mount(one.target or str(source), str(source), type="bind", read_only=one.read_only))
    return mounts


def _require(images: set[str]) -> None:
    """Raises what the engine lacks."""
    import docker
    from docker.errors import DockerException, ImageNotFound

    try:
        client = docker.from_env()
        client.ping()
    except DockerException as error:
        raise InputError(
            f"the Docker Engine cannot be reached: {error}.",
            where="execution.runner: docker",
            hint="Start it, or name its socket in DOCKER_HOST.",
        ) from error
    try:
        for image in sorted(images):
            client.images.get(image)
    except ImageNotFound as error:
        raise InputError(
            f"the Docker Engine has no image {image}.",
            where="execution.runner: docker",
            hint="`make images` builds it; another one is named by execution.light.image and execution.train.image.",
        ) from error
    finally:
        client.close()


def _own_user() -> str:
    if os.geteuid() == 0:
        return f"{_UNPRIVILEGED}:{_UNPRIVILEGED}"
    return f"{os.geteuid()}:{os.getegid()}"


def _require_readable(inputs: list[Path], user: str) -> None:
    """Raises which input the steps' user may not read: told here it costs a second, in a step a run."""
    uid, gid = map(int, user.split(":"))
    for path in inputs:
        for one in (path, *path.rglob("*")):
            about = one.stat()
            needed = stat.S_IROTH | (stat.S_IXOTH if one.is_dir() else 0)
            shift = 6 if about.st_uid == uid else 3 if about.st_gid == gid else 0
            if about.st_mode >> shift & needed != needed:
                raise InputError(
                    f"user {user}, as whom the steps run, may not read it.",
                    where=str(one),
                    hint=f"chmod -R o+rX {path}, or set execution.containers.user.",
                )


def _hand_over(folders: list[Path], user: str) -> None:
    """Gives the steps' user what they write to."""
    uid, gid = map(int, user.split(":"))
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, uid, gid, follow_symlinks=False)


def _run_container(client: Any, image: str, command: list[str], volumes: dict[str, Any], **options: Any) -> int:
    """Runs a step to its end, its output to ours.

    Returns:
        Its exit status.
    """
    container = client.containers.run(image, command, detach=True, volumes=volumes, **options)
    try:
        for piece in container.logs(stream=True):
            print(piece.decode(errors="replace"), end="")  # noqa: T201  (kfp puts it into the run's log)
        return container.wait()["StatusCode"]
    finally:
        container.remove(force=True, v=True)
