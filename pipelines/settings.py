"""Settings of a run: one YAML file, strict, every stage's section typed by the stage itself.

Defaults live in the stages' own models. A relative path is relative to the working directory, as on a command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from components.collection.settings import CollectionSettings
from components.data_validation.settings import DataValidationSettings
from components.evaluation.settings import EvaluationSettings
from components.human_eval.settings import PEOPLE, HumanEvalSettings
from components.ppo.settings import PPOSettings
from components.preference_optimization.settings import PreferenceOptimizationSettings
from components.prerequisites.settings import PrerequisitesSettings
from components.release_gate.policy import load_policy_file
from components.reward_model.settings import RewardModelSettings
from components.sft.settings import SFTSettings
from components.shared.errors import InputError, PlumblineError
from components.shared.model_names import ModelName
from components.shared.settings import StrictModel, load_settings
from pipelines.containers import ContainerSettings
from pipelines.placement import StepResources

__all__ = [
    "DataSettings",
    "ExecutionSettings",
    "ReleaseGateSettings",
    "RunSettings",
    "SoakSettings",
    "StepResources",
    "find_settings",
    "load_run_settings",
    "shipped_settings",
]

_SHIPPED = Path(__file__).resolve().parent / "run_settings"


class DataSettings(StrictModel):
    """Where the user's data is: a file, a folder, `s3://...` or `hf://org/name`. JSONL or Parquet."""

    sft: str = Field(description="Demonstrations: `messages`, or `prompt` and `completion`.")
    prompts: str = Field(description="Prompts to train and evaluate on: `prompt`, and `slice` if known.")
    preferences: str = Field(default="", description="Preference pairs; needed when collection.source is `dataset`.")


class ReleaseGateSettings(StrictModel):
    """Which policy judges, and for whom."""

    policy: str = Field(default="production", description="`production`, `demo`, or a policy file.")
    requested_by: str = Field(
        default="",
        max_length=255,
        description="Who asks for the release, by the login of the review service, and may not approve it; empty: who "
        "starts the run from the command line.",
    )

    @field_validator("policy")
    @classmethod
    def _policy_is_valid(cls, policy: str) -> str:
        """A faulty policy is found before a GPU hour is spent, not after the last one."""
        try:
            load_policy_file(policy)
        except PlumblineError as error:
            raise ValueError(str(error)) from error
        return policy


class SoakSettings(StrictModel):
    """Fresh evidence on the live champion; the stages' other settings are the run's own."""

    evaluation: EvaluationSettings = EvaluationSettings()
    human_eval: HumanEvalSettings = HumanEvalSettings()


class ExecutionSettings(StrictModel):
    """Where and with what the steps run."""

    workspace: str = Field(default="runs", description="Folder of a local run: artifacts, state, reports.")
    threads_per_step: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads of a local step; None lets torch choose. Tiny models are fastest with 1.",
    )
    runner: Literal["subprocess", "docker"] = Field(
        default="subprocess",
        description="Where a local run's steps run: in processes here, or each in a container of its image.",
    )
    containers: ContainerSettings = Field(default=ContainerSettings(), description="Of a local run in containers.")
    profile: str = Field(
        default="local",
        min_length=1,
        description="Environment on a cluster: `local`, `dev`, `prod`, or a profile's file; a local run takes `local`.",
    )
    light: StepResources = Field(
        default=StepResources(), description="Data, statistics and gate steps: what this run wants beyond the profile."
    )
    train: StepResources = Field(default=StepResources(), description="Steps that load a model: the same.")


class RunSettings(StrictModel):
    """Everything that decides what a run does."""

    name: str = Field(
        pattern=r"^[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?$", description="Names the run: lower case, digits, dashes."
    )
    model_name: ModelName = Field(description="Registered model that this run makes a candidate for.")
    base_model: str = Field(min_length=1, description="Model folder, hub id or id@revision that training starts from.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of every step.")
    data: DataSettings
    prerequisites: PrerequisitesSettings = PrerequisitesSettings()
    data_validation: DataValidationSettings = DataValidationSettings()
    sft: SFTSettings = SFTSettings()
    collection: CollectionSettings = CollectionSettings()
    reward_model: RewardModelSettings = RewardModelSettings()
    optimizer: Literal["ppo", "preference_optimization"] = Field(
        default="ppo",
        description="What optimises the policy, and which section below says how: PPO, or DPO, IPO, KTO, GRPO, RLOO or "
        "online DPO (`preference_optimization.method`).",
    )
    ppo: PPOSettings = PPOSettings()
    preference_optimization: PreferenceOptimizationSettings = PreferenceOptimizationSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    human_eval: HumanEvalSettings = HumanEvalSettings()
    release_gate: ReleaseGateSettings = ReleaseGateSettings()
    soak: SoakSettings = SoakSettings()
    execution: ExecutionSettings = ExecutionSettings()

    def executed(self, **changes: str) -> RunSettings:
        """The same run with other execution settings."""
        return self.model_copy(update={"execution": self.execution.model_copy(update=changes)})

    def asked_by(self, person: str) -> RunSettings:
        """The same run, asked for by a person."""
        gate = self.release_gate.model_copy(update={"requested_by": person})
        return self.model_copy(update={"release_gate": gate})

    @property
    def plug_ins(self) -> list[str]:
        """Every `module:attribute` that a step will load."""
        panels = {self.human_eval.panel, self.soak.human_eval.panel} - {PEOPLE}
        raters = {self.collection.raters} if self.collection.raters else set()
        return sorted(panels | raters)

    @property
    def reward_rules(self) -> list[str]:
        """Every `module:function` that scores responses in PPO."""
        return sorted(set(self.ppo.reward.rules.values()))

    @property
    def reward_models(self) -> list[str]:
        """Address of every reward model that this run takes ready-made."""
        return sorted(set(self.ppo.reward.reward_models.values()))

    @model_validator(mode="after")
    def _preferences_have_a_source(self) -> RunSettings:
        if self.collection.source == "dataset" and not self.data.preferences:
            raise ValueError("collection.source is 'dataset', so data.preferences must name the preference pairs")
        return self


def shipped_settings() -> list[str]:
    """Names of the settings files that come with Plumbline."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def find_settings(name_or_path: str) -> Path:
    """The file behind a path or the name of shipped settings.

    Raises:
        InputError: Neither a file nor a shipped name.
    """
    shipped = _SHIPPED / f"{name_or_path}.yaml"
    if shipped.is_file():
        return shipped
    if not Path(name_or_path).is_file():
        raise InputError(
            "no such settings file.",
            where=name_or_path,
            hint=f"Give a file, or one of: {', '.join(shipped_settings())}.",
        )
    return Path(name_or_path)


def load_run_settings(name_or_path: str) -> RunSettings:
    """Loads a run's settings.

    Raises:
        InputError: The file is missing, not YAML, or does not fit; the error names each faulty path.
    """
    return load_settings(find_settings(name_or_path), RunSettings)
