"""Where and with what a step's container runs: one profile an environment (`local`, `dev`, `prod`), strict and typed.

A profile is a YAML file. `execution.profile` or `--profile` names a shipped one or a file of yours, which may begin
with `extends: prod` and say only what differs. Secrets and ConfigMaps are named, never copied. `place` of
`pipelines.steps` applies it; what KFP cannot express is in docs/cluster.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from components.shared.errors import InputError
from components.shared.settings import StrictModel, parse_settings, read_yaml
from components.shared.trainjob import Mount, Toleration

__all__ = [
    "STEPS",
    "EnvironmentSource",
    "Mount",
    "Place",
    "Profile",
    "SecurityContext",
    "SharedMemory",
    "StepResources",
    "Toleration",
    "load_profile",
    "shipped_profiles",
]

_SHIPPED = Path(__file__).resolve().parent / "profiles"

STEPS = frozenset(
    {
        "checkpoint_candidate",
        "collection",
        "data_validation",
        "data_validation_pairs",
        "evaluation",
        "finish",
        "human_eval",
        "keep_champion",
        "live_models",
        "new_data",
        "open_release",
        "ppo",
        "preference_check",
        "preference_optimization",
        "prerequisites",
        "promote",
        "release_gate",
        "report",
        "reward_model",
        "reward_model_check",
        "reward_model_divergence",
        "roll_back",
        "sft",
    }
)
"""Names of the steps of all pipelines; `pipelines.steps.place` knows no other."""
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")

Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$")]
KubernetesName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Duration = Annotated[str, StringConstraints(pattern=r"^\d+s$")]
AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/")]


class SharedMemory(StrictModel):
    """`/dev/shm`, in memory; it counts against the memory limit."""

    size: Quantity


class StepResources(StrictModel):
    """What a step's container gets on a cluster; a local run ignores it. None leaves what stands beneath it."""

    image: str | None = Field(default=None, min_length=1, description="Container image; None: the component's own.")
    cpu_request: Quantity | None = Field(default=None, description="CPU that the scheduler sets aside, e.g. `2`.")
    cpu: Quantity | None = Field(default=None, description="CPU limit, e.g. `4`.")
    memory_request: Quantity | None = Field(default=None, description="Memory that the scheduler sets aside.")
    memory: Quantity | None = Field(default=None, description="Memory limit, e.g. `16Gi`.")
    accelerator: str | None = Field(
        default=None, description="Resource name of the accelerator, e.g. `nvidia.com/gpu`."
    )
    accelerator_count: int | None = Field(default=None, ge=0, description="Accelerators per step.")
    node_selector: dict[str, str] | None = Field(default=None, description="Labels that a node must have.")
    tolerations: list[Toleration] | None = Field(default=None, description="Taints that the pod bears.")
    shared_memory: SharedMemory | None = Field(default=None, description="Size of an in-memory /dev/shm.")
    retries: int | None = Field(
        default=None, ge=0, description="Times that a failed step is tried again; it resumes from its checkpoint."
    )
    retry_backoff: Duration | None = Field(default=None, description="Pause before the first retry; it doubles.")
    retry_within: Duration | None = Field(default=None, description="No retry starts later than this.")
    timeout_seconds: int | None = Field(default=None, ge=1, description="A try that runs longer is ended.")
    queue: KubernetesName | None = Field(default=None, description="Kueue LocalQueue that admits the pod.")
    priority: KubernetesName | None = Field(default=None, description="Priority class, for Kueue and for the pod.")

    @model_validator(mode="after")
    def _accelerator_is_whole(self) -> StepResources:
        if (self.accelerator is None) != (not self.accelerator_count):
            raise ValueError("accelerator and accelerator_count go together")
        return self

    def overridden_by(self, other: StepResources | None) -> StepResources:
        """These, where `other` says nothing."""
        if other is None:
            return self
        given = {name: getattr(other, name) for name in other.model_fields_set if getattr(other, name) is not None}
        return self.model_copy(update=given)


class EnvironmentSource(StrictModel):
    """A ConfigMap or Secret whose keys become variables of the same name."""

    name: KubernetesName
    variables: list[Variable] = Field(min_length=1, description="Keys, and the variables that they become.")
    optional: bool = Field(default=False, description="The pod starts without it too.")
    steps: list[str] | None = Field(default=None, description="Only these steps get it; None: all.")

    def is_for(self, step: str) -> bool:
        return self.steps is None or step in self.steps


class SecurityContext(StrictModel):
    """Who a step's process is. KFP's backend adds: no privilege escalation, all capabilities dropped, seccomp."""

    run_as_user: int = Field(default=65532, ge=1, description="Not 0: no step runs as root.")
    run_as_group: int = Field(default=65532, ge=1)
    run_as_non_root: Literal[True] = True


class ServiceAccounts(StrictModel):
    """Whose rights a run has. KFP gives one account to a whole run, so that each kind of run has its own."""

    training: KubernetesName | None = None
    promotion: KubernetesName | None = None


class Profile(StrictModel):
    """An environment."""

    namespace: KubernetesName | None = Field(default=None, description="Namespace of the runs.")
    experiment: str = Field(default="plumbline", description="KFP experiment of the runs.")
    service_accounts: ServiceAccounts = ServiceAccounts()
    require_digests: bool = Field(default=False, description="An image that is not pinned by @sha256 is an error.")
    pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    pull_secrets: list[KubernetesName] = Field(default=[], description="Secrets with the registry's login.")
    light: StepResources = Field(default=StepResources(), description="Data, statistics and gate steps.")
    train: StepResources = Field(default=StepResources(), description="Steps that load a model.")
    steps: dict[str, StepResources] = Field(default={}, description="What single steps get beyond that, by name.")
    config_maps: list[EnvironmentSource] = Field(default=[], description="Environment by reference.")
    secrets: list[EnvironmentSource] = Field(default=[], description="Environment by reference; no value is copied.")
    pod_fields: dict[Variable, str] = Field(default={}, description="Variables from the pod's own metadata.")
    variables: dict[Variable, str] = Field(default={}, description="Plain variables; no secrets here.")
    mounts: list[Mount] = Field(default=[], description="Volume claims, e.g. the cache of base models.")
    scratch: dict[AbsolutePath, Quantity] = Field(
        default={}, description="Writable folders of a step (emptyDir), for a read-only root file system."
    )
    security: SecurityContext | None = None
    node_service_account: KubernetesName | None = Field(
        default=None, description="Account of the nodes of a TrainJob; None: that of its runtime."
    )
    run_timeout_seconds: int | None = Field(default=None, ge=1, description="A run that takes longer is ended.")
    storage_class: str | None = Field(default=None, description="What `plumbline doctor` looks for.")

    @model_validator(mode="after")
    def _steps_exist(self) -> Profile:
        """A secret for a step that is spelt wrong would be missing where it is needed, after hours."""
        named = {name for source in (*self.config_maps, *self.secrets) for name in source.steps or []}
        if unknown := sorted((named | self.steps.keys()) - STEPS):
            raise ValueError(f"no step {', '.join(unknown)}; there are: {', '.join(sorted(STEPS))}")
        return self

    def resources(self, kind: Literal["light", "train"], run: StepResources) -> Place:
        """What steps of a kind get: the profile's, and what the run's settings say beyond it."""
        return Place(profile=self, resources=getattr(self, kind).overridden_by(run))


class Place(StrictModel):
    """What the steps of a kind get in an environment."""

    profile: Profile = Profile()
    resources: StepResources = StepResources()

    def for_step(self, name: str) -> StepResources:
        """What the step gets; what the profile says of this very step comes last."""
        return self.resources.overridden_by(self.profile.steps.get(name))

    def image(self, name: str, default: str) -> str:
        """The step's image.

        Raises:
            InputError: The profile wants images pinned by digest, and this one is not.
        """
        return self.pinned(self.for_step(name).image or default, where=f"step {name}")

    def pinned(self, image: str, *, where: str) -> str:
        """The image.

        Raises:
            InputError: The profile wants images pinned by digest, and this one is not.
        """
        if self.profile.require_digests and not _DIGEST.search(image):
            raise InputError(
                f"the image {image!r} is not pinned by digest, as this profile requires.",
                where=where,
                hint="Give name@sha256:<64 hex digits> as light.image and train.image of the profile.",
            )
        return image


def shipped_profiles() -> list[str]:
    """Names of the profiles that come with Plumbline."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def load_profile(name_or_path: str) -> Profile:
    """The profile of a shipped name or a file.

    Raises:
        InputError: There is none, or it does not fit; the error names each faulty path.
    """
    return parse_settings(_read(name_or_path, seen=()), Profile, where=f"profile {name_or_path}")


def _read(name_or_path: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """A profile's values over those of the profile that it extends."""
    if name_or_path in seen:
        raise InputError("profiles extend one another in a circle.", where=" > ".join((*seen, name_or_path)))
    shipped = _SHIPPED / f"{name_or_path}.yaml"
    path = shipped if shipped.is_file() else Path(name_or_path)
    if not path.is_file():
        names = ", ".join(shipped_profiles())
        raise InputError("no such profile.", where=name_or_path, hint=f"Give a YAML file, or one of: {names}.")
    values = read_yaml(path) or {}
    if not isinstance(values, dict):
        raise InputError("is not a mapping of settings.", where=str(path))
    base = values.pop("extends", None)
    return values if base is None else _merged(_read(str(base), (*seen, name_or_path)), values)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`; lists are replaced, not joined."""
    both = dict(base)
    for key, value in over.items():
        below = both.get(key)
        both[key] = _merged(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return both
