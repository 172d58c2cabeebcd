"""Settings of PPO: the one place for each default, with its reason."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from components.shared.settings import StrictModel
from components.shared.trainjob import TrainJobSettings

__all__ = [
    "AlarmSettings",
    "KLSettings",
    "LoRASettings",
    "PPOSettings",
    "RewardModelSourceSettings",
    "RewardSettings",
    "RuleSourceSettings",
    "SafetySettings",
]


class KLSettings(StrictModel):
    """How far the policy may drift from the reference. All KL is in nats per sequence.

    Attributes:
        control: `adaptive` moves the coefficient towards the target (Ziegler et al. 2019, section 2.2); `fixed`
            holds it at `init_coef`; `off` takes the penalty out of the reward (only for studies of over-optimisation).
        target_nats: KL to hold. 6 nats is Ziegler et al.'s; small models and weak reward models want less.
        init_coef: Coefficient at the start, in units of shaped reward per nat. 0.15 is Ziegler et al.'s.
        horizon_episodes: Ziegler's horizon. Absent, it is `episodes_per_step / step_gain`, so that it fits the run:
            their 10,000 episodes would never move the coefficient in a run of a few thousand.
        step_gain: Relative change of the coefficient a step, per unit of clipped error, when the horizon is absent.
            Theirs is 0.05 for 600 steps and more; runs of a hundred steps need 0.1 to 0.2.
        error_clip: Largest relative error that the controller acts on. 0.2 is Ziegler et al.'s.
        ceiling_nats: Mean KL of a batch above which training stops, without a further update; the policy before the
            update that led there is kept. Absent: no ceiling.
    """

    control: Literal["adaptive", "fixed", "off"] = "adaptive"
    target_nats: float = Field(default=6.0, gt=0)
    init_coef: float = Field(default=0.15, gt=0)
    horizon_episodes: float | None = Field(default=None, gt=0)
    step_gain: float = Field(default=0.2, gt=0, le=5)
    error_clip: float = Field(default=0.2, gt=0)
    ceiling_nats: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _ceiling_above_target(self) -> KLSettings:
        if self.control == "adaptive" and self.ceiling_nats is not None and self.ceiling_nats <= self.target_nats:
            raise ValueError(f"ceiling_nats ({self.ceiling_nats:g}) must be above target_nats ({self.target_nats:g})")
        return self


class _SourceSettings(StrictModel):
    """A reward beside the main reward model's.

    Attributes:
        name: What the history (`reward/<name>`), errors and manifests call it.
        role: `term`: added to the main reward, `weight` times. `ensemble`: judges together with the main reward model
            as one, as `ensemble` says. `safety`: replaces all other rewards of an unsafe response, as `safety` says.
        weight: Factor on the normalised reward of a term or of the safety reward.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,40}$")
    role: Literal["term", "ensemble", "safety"] = "term"
    weight: float = Field(default=1.0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _weight_has_a_meaning(self) -> _SourceSettings:
        if self.role == "ensemble" and self.weight != 1.0:
            raise ValueError("an ensemble's members count alike: leave out weight, or take role `term`")
        if self.role == "safety" and self.weight <= 0:
            raise ValueError("the weight of a safety reward must be above 0: it would pay for unsafe responses")
        return self


class RewardModelSourceSettings(_SourceSettings):
    """Another reward model.

    Attributes:
        reward_model: Its artifact: a folder, or an address that MLflow can fetch (`runs:/`, `models:/`, `s3://`).
        normalise: As for the main reward: `reward_model` takes the scale in its own `reward.json`.
    """

    reward_model: str = Field(min_length=1)
    normalise: Literal["reward_model", "running", "none"] = "reward_model"


class RuleSourceSettings(_SourceSettings):
    """A function that scores responses; components/ppo/rewards.py says what it is called with.

    Attributes:
        rule: `module:function`, importable where the step runs.
        normalise: `none` takes its number as it is, in the score's deviations; `running` its running moments.
    """

    rule: str = Field(pattern=r"^[\w.]+:\w+$")
    normalise: Literal["none", "running"] = "none"


def _kind_of_source(value: Any) -> str:
    given = value if isinstance(value, dict) else vars(value)
    return "rule" if "rule" in given else "reward_model"


RewardSourceSettings = Annotated[
    Annotated[RewardModelSourceSettings, Tag("reward_model")] | Annotated[RuleSourceSettings, Tag("rule")],
    Discriminator(_kind_of_source),
]


class SafetySettings(StrictModel):
    """When the safety reward replaces helpfulness (Touvron et al. 2023, "Llama 2", section 3.2.3).

    Attributes:
        threshold: A response whose safety reward is below it counts as unsafe. 0.15 is Llama 2's.
        unit: Of the threshold. `sigmoid`: the raw reward through the sigmoid, in (0, 1), as theirs; a Bradley-Terry
            reward has no natural zero, so train the safety model with centred rewards. `normalised`: deviations, after
            the source's own normalisation; `raw`: what the model or rule gives.
        slices: Prompts of these slices are scored by the safety reward whatever it is, as Llama 2 does with prompts
            that were written to provoke an unsafe answer.
    """

    threshold: float = Field(default=0.15, allow_inf_nan=False)
    unit: Literal["sigmoid", "normalised", "raw"] = "sigmoid"
    slices: list[str] = Field(default=[])

    @model_validator(mode="after")
    def _threshold_can_be_reached(self) -> SafetySettings:
        if self.unit == "sigmoid" and not 0 < self.threshold < 1:
            raise ValueError(f"threshold ({self.threshold:g}) must be between 0 and 1, where a sigmoid is")
        return self


class RewardSettings(StrictModel):
    """How rewards become the score at the end of a response. Score is in standard deviations.

    The stage's reward model is the main reward: the one that `reward_mean` of the history, evaluation and gate mean.
    Score = clip(weight x ensemble + sum of weighted terms, or the safety reward in its place) - penalties.

    Attributes:
        normalise: `reward_model` subtracts the mean and divides by the deviation that the reward model's evaluation
            measured: one fixed scale, so that a nat of KL costs the same all through the run; `running` takes the
            moments of all episodes so far; `none` takes the raw number.
        weight: Factor on the main reward, or on the ensemble that it is a member of.
        sources: Further rewards; each is normalised by itself before they are combined.
        ensemble: What the main reward model and the sources with role `ensemble` say together: their `mean`; the
            lowest (`min`, worst-case optimisation); the mean minus `ensemble_lambda` times their variance
            (uncertainty-weighted optimisation). Coste et al. 2023, "Reward model ensembles help mitigate
            overoptimization".
        ensemble_lambda: Of `mean_minus_variance`, per squared deviation. 0.1 is Coste et al.'s for PPO.
        safety: When the source with role `safety` replaces the others.
        clip: Largest score in magnitude, before penalties; absent: no clip. 5 deviations only cuts what is broken.
        missing_eos_penalty: Subtracted from the score of a response that hit the length limit: the reward model
            never learned what half a sentence is worth.
        length_penalty_per_token: Subtracted for each response token. 0: length is for the gate to judge.
    """

    normalise: Literal["reward_model", "running", "none"] = "reward_model"
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    sources: list[RewardSourceSettings] = Field(default=[])
    ensemble: Literal["mean", "min", "mean_minus_variance"] = "mean"
    ensemble_lambda: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    safety: SafetySettings = SafetySettings()
    clip: float | None = Field(default=5.0, gt=0)
    missing_eos_penalty: float = Field(default=1.0, ge=0)
    length_penalty_per_token: float = Field(default=0.0, ge=0)

    @property
    def rules(self) -> dict[str, str]:
        """`module:function` of each rule by its source's name."""
        return {source.name: source.rule for source in self.sources if isinstance(source, RuleSourceSettings)}

    @property
    def reward_models(self) -> dict[str, str]:
        """Address of each further reward model by its source's name."""
        return {
            source.name: source.reward_model for source in self.sources if isinstance(source, RewardModelSourceSettings)
        }

    @model_validator(mode="after")
    def _names_differ(self) -> RewardSettings:
        names = [source.name for source in self.sources]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources are named {doubled[0]!r}")
        if "main" in names:
            raise ValueError("'main' is the stage's reward model; give the source another name")
        return self

    @model_validator(mode="after")
    def _ensemble_fits_together(self) -> RewardSettings:
        members = [source for source in self.sources if source.role == "ensemble"]
        if self.ensemble != "mean" and not members:
            raise ValueError(f"ensemble is {self.ensemble!r}, but no source has role 'ensemble'")
        for member in members:
            if (member.normalise == "none") != (self.normalise == "none"):
                raise ValueError(
                    f"the main reward and member {member.name!r} must both be normalised, or neither: "
                    f"{self.ensemble!r} of numbers on different scales means nothing"
                )
        return self

    @model_validator(mode="after")
    def _one_safety_reward(self) -> RewardSettings:
        safety = [source for source in self.sources if source.role == "safety"]
        if len(safety) > 1:
            raise ValueError(f"{len(safety)} sources have role 'safety'; only one can replace the others")
        if self.safety != SafetySettings() and not safety:
            raise ValueError("safety is set, but no source has role 'safety'")
        if safety and isinstance(safety[0], RuleSourceSettings) and self.safety.unit == "sigmoid":
            raise ValueError(
                f"safety.unit is 'sigmoid', but {safety[0].name!r} is a rule and its number no logit: "
                f"give safety.threshold with unit 'raw' or 'normalised'"
            )
        return self


class AlarmSettings(StrictModel):
    """Signs of a training that goes wrong; each is told in the log, the history and the summary. None: not looked for.

    Attributes:
        min_entropy_share: Entropy a token, as a share of the first step's, below which the policy has collapsed.
        min_explained_variance: Share of the returns' variance that the value model explains, below which it misleads:
            under 0 it is worse than a constant.
        max_truncated_share: Share of answers cut at the length limit, above which the score says little.
        max_repetition_share: Share of an answer's token trigrams that occurred in it before.
        patience: Steps in a row that a sign must last: single batches are noisy.
        stop_on: The alarms that end training, the policy of that moment kept.
    """

    min_entropy_share: float | None = Field(default=0.1, gt=0, lt=1)
    min_explained_variance: float | None = Field(default=0.0, lt=1)
    max_truncated_share: float | None = Field(default=0.5, ge=0, lt=1)
    max_repetition_share: float | None = Field(default=0.5, ge=0, lt=1)
    patience: int = Field(default=10, ge=1)
    stop_on: list[Literal["entropy", "explained_variance", "truncation", "repetition"]] = Field(default_factory=list)


class LoRASettings(StrictModel):
    """Adapters on one frozen backbone.

    Attributes:
        rank: Rank of each adapter; 16 is enough for preference training (Schulman et al. 2025, "LoRA without regret").
        alpha: Scale; twice the rank by custom.
        targets: Names of the modules to adapt; `all-linear` is every linear layer but the head.
    """

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    targets: Literal["all-linear"] | list[str] = "all-linear"


class PPOSettings(StrictModel):
    """Proximal policy optimisation against a reward model (Schulman et al. 2017; Ziegler et al. 2019).

    Attributes:
        steps: PPO steps; each samples `episodes_per_step` responses and updates on them.
        episodes_per_step: Responses a step. 64 gives a KL mean that the controller can follow.
        ppo_epochs: Passes over a step's episodes. 4 is the usual value; the ratio clip keeps them honest.
        minibatches: Optimizer steps a pass. 1 where episodes are few: noise costs more than steps gain.
        microbatch: Episodes a forward pass; memory only, the gradient does not depend on it.
        processes: Processes on this machine that share the work of a step, one a GPU; results differ from those of one
            process by rounding only. Over several machines, start `components.ppo.stage` with `torchrun`.
        trainjob: Several machines by Kubeflow Trainer: the step makes a TrainJob of `components.ppo.stage` and follows
            it. Absent: the step trains in its own pod.
        sharding: What processes hold of the decoder layers' weights. `none`: all of them; `zero3`: a shard, a layer is
            gathered while it runs (least memory); `zero2`: gathered layers are kept between forward and backward pass
            and while sampling (faster, and the weights must fit; gradients and Adam's moments stay sharded).
        samples_per_prompt: Responses to each prompt of a step; they share the reading of the prompt. 1 gives the most
            prompts for the money.
        rollout_batch: Responses sampled together; memory only, no response depends on it.
        decode_tolerance_nats: Log-probabilities seen while decoding are taken where a micro-batch of them, computed
            again in every step, differs by no more than this; else all are computed again. Float32 differs by some
            1e-5; half precision by 1e-2 and more, which would be seen in the probability ratio. 0 computes all again.
        policy_learning_rate: Adam's. 1e-5 suits adapters and models of about a billion parameters; tiny ones want more.
        value_learning_rate: Adam's for the value model; it may move faster, nothing samples from it.
        warmup_steps: Steps over which both learning rates rise from near zero: Adam's first estimates are poor.
        learning_rate_schedule: After the warm-up: `constant`; `linear` or `cosine` falls to `final_learning_rate_share`
            at the last step. Constant keeps the KL controller's loop gain constant too.
        final_learning_rate_share: Where a falling schedule ends, as a share of the full rate.
        critic_warmup_steps: First steps that update the value model alone; 0 when it starts as the reward model.
        gamma: Discount. 1: a response is one act, its score comes at the end.
        lam: Lambda of generalised advantage estimation. 0.95 is Schulman et al.'s.
        clip_ratio: Probability ratio's clip range (Schulman et al. 2017).
        dual_clip: Bound, in multiples of the advantage, on the loss of a token with a negative advantage whose ratio
            has grown large (Ye et al. 2020, who use 3); absent: no bound, as in the original PPO.
        value_clip: Range around the old value beyond which a value gains nothing, in deviations; absent: no clip.
        max_grad_norm: Clip of the gradient's norm, for policy and value apart.
        temperature: Of sampling; log-probabilities and KL are of that same distribution.
        max_response_tokens: Limit of a response, its EOS included.
        value_init: Start of the value model: the reward model (it knows what an answer is worth), or the policy with
            a zero head. With adapters the backbone is the policy's; `reward_model` then takes the reward model's head.
        value_model: `separate` is a model (or adapter) of its own; `shared_trunk` a head on the policy's trunk: an
            update costs half and needs less memory, but value and policy pull at the same weights.
        value_coef: Weight of the value loss beside the policy loss; used with `shared_trunk`. 0.1 is Ziegler et al.'s.
        parameterisation: `full`: policy, reference and value are models of their own (faster for tiny models);
            `lora`: one frozen backbone with an adapter each for policy and value, reference = adapters off.
        lora: Adapter settings, used with `lora`.
        kl: KL control.
        reward: Reward shaping.
        alarms: What is watched while training goes on.
        save_every_steps: Steps between resume checkpoints.
        evaluate_every_steps: Steps between the policies kept for evaluation.
    """

    steps: int = Field(default=200, ge=1)
    episodes_per_step: int = Field(default=64, ge=2)
    ppo_epochs: int = Field(default=4, ge=1)
    minibatches: int = Field(default=1, ge=1)
    microbatch: int = Field(default=16, ge=1)
    processes: int = Field(default=1, ge=1)
    trainjob: TrainJobSettings | None = None
    sharding: Literal["none", "zero2", "zero3"] = "none"
    samples_per_prompt: int = Field(default=1, ge=1)
    rollout_batch: int = Field(default=64, ge=1)
    decode_tolerance_nats: float = Field(default=1e-3, ge=0)
    policy_learning_rate: float = Field(default=1e-5, gt=0)
    value_learning_rate: float = Field(default=2e-5, gt=0)
    warmup_steps: int = Field(default=3, ge=0)
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_learning_rate_share: float = Field(default=0.1, ge=0, le=1)
    critic_warmup_steps: int = Field(default=0, ge=0)
    gamma: float = Field(default=1.0, gt=0, le=1)
    lam: float = Field(default=0.95, ge=0, le=1)
    clip_ratio: float = Field(default=0.2, gt=0, lt=1)
    dual_clip: float | None = Field(default=None, gt=1)
    value_clip: float | None = Field(default=0.2, gt=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    max_response_tokens: int = Field(default=128, ge=1)
    value_init: Literal["reward_model", "policy"] = "reward_model"
    value_model: Literal["separate", "shared_trunk"] = "separate"
    value_coef: float = Field(default=0.1, gt=0)
    parameterisation: Literal["full", "lora"] = "lora"
    lora: LoRASettings = LoRASettings()
    kl: KLSettings = KLSettings()
    reward: RewardSettings = RewardSettings()
    alarms: AlarmSettings = AlarmSettings()
    save_every_steps: int = Field(default=10, ge=1)
    evaluate_every_steps: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _processes_to_shard_among(self) -> PPOSettings:
        if self.sharding != "none" and self.processes == 1:
            raise ValueError(
                f"sharding ({self.sharding}) divides weights among processes, and processes is 1: raise it to the GPUs "
                f"of a machine, or set sharding to none"
            )
        return self

    @model_validator(mode="after")
    def _enough_episodes(self) -> PPOSettings:
        if self.minibatches > self.episodes_per_step:
            raise ValueError(
                f"minibatches ({self.minibatches}) must not be more than episodes_per_step ({self.episodes_per_step})"
            )
        if self.episodes_per_step % self.samples_per_prompt:
            raise ValueError(
                f"episodes_per_step ({self.episodes_per_step}) must be a multiple of samples_per_prompt "
                f"({self.samples_per_prompt})"
            )
        if self.samples_per_prompt > self.rollout_batch:
            raise ValueError(
                f"samples_per_prompt ({self.samples_per_prompt}) must not be more than rollout_batch "
                f"({self.rollout_batch})"
            )
        self._require_positive_coefficient()
        if self.warmup_steps >= self.steps and self.learning_rate_schedule != "constant":
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) leave no step for a {self.learning_rate_schedule} schedule over "
                f"{self.steps} steps"
            )
        return self

    def _require_positive_coefficient(self) -> None:
        """One step must not bring the KL coefficient to zero or below: it would stay there, or pay for drift."""
        episodes, kl = self.episodes_per_step, self.kl
        fall = kl.error_clip * episodes / (kl.horizon_episodes or episodes / kl.step_gain)
        if kl.control == "adaptive" and fall >= 1.0:
            raise ValueError(
                f"kl: one step may take {fall:.0%} off the coefficient; lower step_gain "
                f"({kl.step_gain:g}) or error_clip ({kl.error_clip:g}), or raise horizon_episodes"
            )
