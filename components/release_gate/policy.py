"""The gate's policy: every threshold, in a versioned YAML file that names them all.

The code holds no default threshold, but for `bounds`, which older policies do not name and went by. Apart from that
`policies/production.yaml` states each one; another policy states all of them too, or says `extends: production` and
names only what differs. A policy looser than production's says so on every report.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from components.shared.errors import InputError
from components.shared.files import digest_of
from components.shared.settings import StrictModel, parse_settings, read_yaml

__all__ = ["PRODUCTION", "GatePolicy", "load_policy_file"]

PRODUCTION = "production"
_SHIPPED = Path(__file__).parent / "policies"

Test = Literal["superiority", "non_inferiority"]
_STRICTEST_FIRST = ("superiority", "non_inferiority", "absolute", "relative")


def _rule(words: str, looser: str, **limits: Any) -> Any:
    """A required threshold: what it is in plain words, and which direction is looser.

    `looser` is `higher`, `lower`, `true`, `false`, `fewer` (of a list), `later` (in _STRICTEST_FIRST) or `any_higher`
    (of a mapping of limits). None, where a threshold may be None, is always looser: it is then not judged.
    """
    return Field(title=words, json_schema_extra={"looser": looser}, **limits)


class RewardModelRule(StrictModel):
    """When a reward model may be trusted to have steered training."""

    min_accuracy_lower: float = _rule("lower bound that held-out accuracy must exceed", "lower", ge=0, le=1)
    max_accuracy: float = _rule("held-out accuracy taken for leakage", "higher", ge=0, le=1)
    min_pairs: int = _rule("held-out pairs needed", "lower", ge=2)
    heldout_min_accuracy_lower: float = _rule(
        "lower bound that the held-out reward model's accuracy must exceed", "lower", ge=0, le=1
    )
    required_attacks: tuple[str, ...] = _rule("attacks that must have been tried", "fewer")
    max_attack_success: float = _rule("upper bound allowed for an attack's success rate", "higher", ge=0, le=1)
    attack_limits: dict[str, Annotated[float, Field(ge=0, le=1)]] = _rule("limit of a single attack", "any_higher")
    current_pairs_margin: float = _rule("fall of accuracy allowed on the current policy's pairs", "higher", ge=0, le=1)
    min_current_pairs: int = _rule("decided pairs of the current policy needed", "lower", ge=2)

    def attack_limit(self, attack: str) -> float:
        """Limit of one attack's success rate."""
        return self.attack_limits.get(attack, self.max_attack_success)


class KLRule(StrictModel):
    """How far a candidate may have moved from its reference, in nats."""

    max_nats_per_sequence: float = _rule("KL allowed per sequence (nats)", "higher", gt=0)
    max_nats_per_token: float | None = _rule("KL allowed per token (nats)", "higher", gt=0)
    max_slice_nats_per_sequence: float = _rule("KL allowed per sequence in a slice (nats)", "higher", gt=0)
    min_sequences: int = _rule("sequences needed to measure KL", "lower", ge=2)


class BoundsRule(StrictModel):
    """How sure the bounds of what people say are: of win rates, by slice too, at equal length, and of bad answers."""

    alpha: float = _rule("error probability of each one-sided bound of what people say", "higher", gt=0, lt=0.5)

    @property
    def confidence(self) -> float:
        """Of one bound; 0.95 for an alpha of 0.05."""
        return 1.0 - self.alpha

    @property
    def in_words(self) -> str:
        """For a sentence: `95 %`."""
        return f"{100.0 * self.confidence:g} %"


class HumanPreferenceRule(StrictModel):
    """What people must have said. The bounds are those of the confidence sequence."""

    against_reference: Test = _rule("test against the reference", "later")
    against_champion: Test = _rule("test against the champion", "later")
    live: Test = _rule("test of a live model against its predecessor", "later")
    margin: float = _rule("margin of non-inferiority in win rate", "higher", ge=0, lt=0.5)
    min_prompts: int = _rule("judged prompts needed", "lower", ge=2)

    def threshold(self, test: Test) -> float:
        """Win rate that the lower bound must exceed."""
        return 0.5 if test == "superiority" else 0.5 - self.margin


class DivergenceRule(StrictModel):
    """When the reward and the people have parted."""

    gap_margin: float = _rule("gap allowed between reward-implied and human win rate", "higher", ge=0, le=1)
    min_prompts: int = _rule("judged prompts needed to compare reward and people", "lower", ge=2)
    min_heldout_pairs: int = _rule("held-out pairs needed to calibrate the reward", "lower", ge=2)
    heldout_fall_margin: float = _rule(
        "fall of the held-out reward from its peak allowed (standard deviations)", "higher", ge=0
    )
    require_checkpoints: bool = _rule("checkpoints needed to see the held-out reward's peak", "false")
    min_checkpoint_prompts: int = _rule("prompts needed to compare checkpoints", "lower", ge=2)
    bootstrap_draws: int = _rule("bootstrap draws", "lower", ge=200)


class LengthStyleRule(StrictModel):
    """What must remain of the preference when length is taken out."""

    test: Test = _rule("length-controlled test", "later")
    live: Test = _rule("length-controlled test of a live model", "later")
    margin: float = _rule("margin of the length-controlled test", "higher", ge=0, lt=0.5)


class SafetyRule(StrictModel):
    """How many bad answers are too many."""

    test: Literal["absolute", "relative"] = _rule("safety test", "later")
    max_bad_rate: float = _rule("share of bad answers allowed", "higher", ge=0, le=1)
    margin: float = _rule("bad answers allowed beyond the baseline's share", "higher", ge=0, le=1)
    min_answers: int = _rule("answers judged for safety needed", "lower", ge=1)
    severity_1_blocks: bool = _rule("one severity-1 answer blocks", "false")


class RegressionRule(StrictModel):
    """What must not have become worse in a part of the data."""

    alpha: float = _rule("error level of harm by slice (Holm)", "lower", gt=0, lt=1)
    critical_slices: tuple[str, ...] = _rule("slices that must be shown not to be worse", "fewer")
    margin: float = _rule("margin of non-inferiority in critical slices", "higher", ge=0, lt=0.5)


class RatersRule(StrictModel):
    """Whose votes count."""

    accept_simulated_votes: bool = _rule("simulated votes are accepted", "true")
    accept_ai_votes: bool = _rule("votes of AI judges are accepted", "true")
    min_raters: int = _rule("raters needed", "lower", ge=1)
    min_gold_items: int = _rule("gold items needed per rater", "lower", ge=0)
    min_gold_accuracy: float = _rule("accuracy on gold items needed per rater", "lower", ge=0, le=1)
    min_repeat_agreement: float = _rule(
        "self-agreement on swapped repeats below which a rater is out", "lower", ge=0, le=1
    )
    min_repeat_items: int = _rule("repeats after which self-agreement is judged", "higher", ge=1)


class ReleaseRule(StrictModel):
    """Who may release, and what happens after."""

    approvals_required: int = _rule("approvals needed", "lower", ge=0)
    require_known_requester: bool = _rule("people approve only what somebody known asked for", "false")
    approval_valid_days: float = _rule("days for which a verdict may be acted on", "higher", gt=0)
    auto_rollback: bool = _rule("a live model is rolled back without asking", "false")
    raters_may_approve: bool = _rule("who rated the evidence may approve the release", "true")
    command_line_may_approve: bool = _rule(
        "approvals of the command line, where a name is typed and nobody is signed in, count", "true"
    )


class GatePolicy(StrictModel):
    """A complete policy.

    Attributes:
        name: What it is called on reports.
        version: Raised with each change.
        description: Whom it is for.
    """

    name: str
    version: int
    description: str
    release: ReleaseRule
    reward_model: RewardModelRule
    kl: KLRule
    human_preference: HumanPreferenceRule
    divergence: DivergenceRule
    length_style: LengthStyleRule
    safety: SafetyRule
    regression: RegressionRule
    raters: RatersRule
    bounds: BoundsRule = BoundsRule(alpha=0.05)

    @property
    def digest(self) -> str:
        """sha256 of every threshold."""
        return digest_of(self.model_dump(mode="json"))

    def looser_than(self, other: GatePolicy) -> list[str]:
        """Each threshold that is looser here than in `other`, in plain words; empty if none is."""
        found: list[str] = []
        for section in type(self).model_fields:
            mine, theirs = getattr(self, section), getattr(other, section)
            if isinstance(mine, StrictModel):
                found.extend(f"{section}: {line}" for line in _looser_in(mine, theirs, other.name))
        return found


def load_policy_file(name_or_path: str | Path) -> GatePolicy:
    """Reads a policy: a shipped one by name (`production`, `demo`), or any YAML file.

    Raises:
        InputError: No such policy, or it is not valid; the error names the YAML path.
    """
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = _SHIPPED / f"{name_or_path}.yaml"
        if not path.is_file():
            shipped = ", ".join(sorted(file.stem for file in _SHIPPED.glob("*.yaml")))
            raise InputError(
                f"no gate policy is called {str(name_or_path)!r}.",
                where="gate policy",
                hint=f"Shipped: {shipped}; or give the path of a .yaml file.",
            )
    return parse_settings(_read_layers(path, seen=()), GatePolicy, where=str(path))


def _read_layers(path: Path, *, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The YAML of a policy over that of the policy it extends."""
    if path in seen:
        raise InputError("extends itself.", where=str(path))
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError("is not a mapping of settings.", where=str(path))
    base = values.pop("extends", None)
    if base is None:
        return values
    below = Path(str(base))
    below = path.parent / below if below.suffix in {".yaml", ".yml"} else _SHIPPED / f"{base}.yaml"
    merged = _read_layers(below, seen=(*seen, path))
    for section, content in values.items():
        inherited = merged.get(section)
        merged[section] = (
            {**inherited, **content} if isinstance(inherited, dict) and isinstance(content, dict) else content
        )
    return merged


def _looser_in(mine: StrictModel, theirs: StrictModel, name: str) -> list[str]:
    found = []
    for field, info in type(mine).model_fields.items():
        extra = info.json_schema_extra
        direction = extra["looser"] if isinstance(extra, dict) else None
        value, reference = getattr(mine, field), getattr(theirs, field)
        if direction == "any_higher":
            found.extend(_looser_limits(mine, theirs, info.title, name))
        elif value != reference and _is_looser(value, reference, direction):
            found.append(f"{info.title}: {_words(value, reference)} ({name}: {_words(reference, value)})")
    return found


def _is_looser(value: Any, reference: Any, direction: Any) -> bool:
    if value is None or reference is None:
        return value is None
    checks = {
        "higher": lambda: value > reference,
        "lower": lambda: value < reference,
        "true": lambda: value is True,
        "false": lambda: value is False,
        "fewer": lambda: bool(set(reference) - set(value)),
        "later": lambda: _STRICTEST_FIRST.index(value) > _STRICTEST_FIRST.index(reference),
    }
    return checks[direction]()


def _looser_limits(mine: Any, theirs: Any, title: str | None, name: str) -> list[str]:
    """Attacks whose limit is higher here; one that both leave to the common limit is reported there."""
    named = sorted({*mine.attack_limits, *theirs.attack_limits})
    return [
        f"{title} {attack}: {mine.attack_limit(attack)} ({name}: {theirs.attack_limit(attack)})"
        for attack in named
        if mine.attack_limit(attack) > theirs.attack_limit(attack)
    ]


def _words(value: Any, other: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        missing = [item for item in other if item not in value]
        return f"{', '.join(value) or 'none'}" + (f" (without {', '.join(missing)})" if missing else "")
    if value is None:
        return "not judged"
    return str(value).replace("_", "-")
