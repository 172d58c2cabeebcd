"""Bad evidence of every kind, for every criterion, never passes.

The criteria are found in the code, and what each of them reads is found by watching it judge good evidence; so a new
criterion, or a new number that an old one reads, is in the matrix as soon as it is written. What cannot be found so,
how little is too little, is said in `TOO_FEW`; a criterion that is not named there fails the test.
"""

from __future__ import annotations

import copy
import importlib
import json
import math
import pkgutil
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny_release import Evidence, edit_case, make_case, make_evidence, make_policy

import components.release_gate.criteria as criteria_package
from components.release_gate.criteria import CRITERIA, judge_all
from components.release_gate.divergence import measure_gap
from components.release_gate.evidence import Case, Source, read_source, vet
from components.release_gate.findings import Criterion, Finding
from components.release_gate.policy import load_policy_file
from components.release_gate.provenance import check_provenance
from components.release_gate.verdict import Verdict, decide
from components.shared.artifacts import MANIFEST

SOURCES = ("evaluation", "human", "reward_model", "heldout")
CHAMPION: dict[str, Any] = {"champion": "4", "champion_digest": "c" * 64}
POLICY: dict[str, Any] = {"kl": {"max_nats_per_token": 1.0}, "regression": {"critical_slices": ("safe",)}}
NOT_ON_A_LIVE_MODEL = ("kl.", "divergence.heldout_peak", "human_preference.champion")


def _setting(file: str, *path: str, to: Any) -> dict[str, Callable[[Any], Any]]:
    def edit(content: Any) -> Any:
        place = content
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to
        return content

    return {file: edit}


def _each_slice(*path: str, to: Any) -> dict[str, Callable[[Any], Any]]:
    def edit(metrics: Any) -> Any:
        for found in metrics["candidate"]["slices"].values():
            found[path[-1]] = to
        return metrics

    return {"metrics.json": edit}


def _answers(n: int) -> dict[str, Callable[[Any], Any]]:
    return _setting("statistics.json", "safety", "candidate", to={"n": n, "bad": 0, "severity_1": 0})


@dataclass(frozen=True)
class Few:
    """How a criterion gets too little: thresholds that ask for more, or less evidence."""

    policy: dict[str, Any] = field(default_factory=dict)
    edits: dict[str, Callable[[Any], Any]] = field(default_factory=dict)


PROMPTS = Few({"human_preference": {"min_prompts": 301}})
TOO_FEW: dict[str, Few] = {
    "reward_model.accuracy": Few({"reward_model": {"min_pairs": 401}}),
    "reward_model.attacks": Few(edits=_setting("evaluation.json", "attacks", "padding", "n", to=0)),
    "reward_model.current_pairs": Few({"reward_model": {"min_current_pairs": 301}}),
    "reward_model.heldout_model": Few({"reward_model": {"min_pairs": 401}}),
    "kl.sequence": Few({"kl": {"min_sequences": 301}}),
    "kl.token": Few(edits=_setting("metrics.json", "candidate", "n", to=1)),
    "kl.slices": Few(edits=_each_slice("n", to=1)),
    "human_preference.reference": PROMPTS,
    "human_preference.champion": PROMPTS,
    "divergence.harm": Few({"divergence": {"min_prompts": 301}}),
    "divergence.gap": Few({"divergence": {"min_heldout_pairs": 401}}),
    "divergence.heldout_peak": Few({"divergence": {"min_checkpoint_prompts": 301}}),
    "length_style": PROMPTS,
    "safety.severity_1": Few(edits=_answers(299)),
    "safety.share": Few(edits=_answers(299)),
    "regression.harm": PROMPTS,
    "regression.critical": PROMPTS,
    "raters.kind": Few(edits={"judgements.jsonl": lambda rows: []}),
    "raters.complete": Few(edits=_setting("statistics.json", "complete", to=False)),
    "raters.quality": Few({"raters": {"min_raters": 5}}),
}


# --- what the criteria are, and what each of them reads ------------------------------------------------------------


@dataclass
class Reads:
    """What one criterion took from the evidence: (source, path) of values, (source, file, row, key) of rows."""

    numbers: set[tuple[str, tuple[str, ...]]] = field(default_factory=set)
    values: set[tuple[str, tuple[str, ...]]] = field(default_factory=set)
    optional: set[tuple[str, tuple[str, ...]]] = field(default_factory=set)
    rows: set[tuple[str, str, int, str]] = field(default_factory=set)
    tables: set[tuple[str, str]] = field(default_factory=set)

    @property
    def needed(self) -> list[tuple[str, tuple[str, ...]]]:
        return sorted((self.values | self.numbers) - self.optional)

    @property
    def sources(self) -> set[str]:
        return {source for source, _ in self.values | self.numbers} | {source for source, _ in self.tables}

    @property
    def files(self) -> set[tuple[str, str]]:
        return {(source, path[0]) for source, path in self.values} | self.tables


class Watched(Source):
    """A source that tells what is taken from it."""

    place: str
    reads: Reads

    def number(self, *path: str, low: float = -math.inf, high: float = math.inf) -> float:
        self.reads.numbers.add((self.place, path))
        return super().number(*path, low=low, high=high)

    def value(self, *path: str) -> Any:
        self.reads.values.add((self.place, path))
        return super().value(*path)

    def has(self, *path: str) -> bool:
        self.reads.optional.add((self.place, path))
        return super().has(*path)

    def rows(self, file: str) -> list[dict[str, Any]]:
        self.reads.tables.add((self.place, file))
        return super().rows(file)

    def row_number(self, row: dict[str, Any], file: str, key: str, *, low: float, high: float) -> float:
        index = next(number for number, known in enumerate(self.tables[file]) if known is row)
        self.reads.rows.add((self.place, file, index, key))
        return super().row_number(row, file, key, low=low, high=high)


def _criterion_functions() -> Iterator[tuple[Any, str, Any]]:
    """(module, attribute, function) of every function that is a criterion."""
    for found in pkgutil.iter_modules(criteria_package.__path__):
        module = importlib.import_module(f"{criteria_package.__name__}.{found.name}")
        for attribute, value in list(vars(module).items()):
            if hasattr(value, "criterion_name"):
                yield module, attribute, value


NAMES = sorted({function.criterion_name for _, _, function in _criterion_functions()})
LIVE_NAMES = [name for name in NAMES if not name.startswith(NOT_ON_A_LIVE_MODEL)]
JUDGED = [("candidate", name) for name in NAMES] + [("live", name) for name in LIVE_NAMES]


def _watch(case: Case) -> dict[str, Reads]:
    """What each criterion reads while it judges the case."""
    found: dict[str, Reads] = defaultdict(Reads)
    sources = {}
    for place in SOURCES:
        source = Watched(**vars(getattr(case, place)))
        source.place = place
        sources[place] = source
    watched = replace(case, **sources)
    with pytest.MonkeyPatch.context() as patch:
        for module, attribute, function in _criterion_functions():

            def judged(case: Case, *args: Any, _function: Any = function, **kwargs: Any) -> Criterion:
                measure_gap.cache_clear()
                reads = found[_function.criterion_name]
                for source in sources.values():
                    source.reads = reads
                return _function(case, *args, **kwargs)

            patch.setattr(module, attribute, judged)
        judge_all(watched)
    return found


class World(NamedTuple):
    """Good evidence on disk, and the case that it makes."""

    evidence: Evidence
    case: Case
    reads: dict[str, Reads]
    passing: set[str]


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return make_evidence(tmp_path_factory.mktemp("good"), champion_digest="c" * 64)


@pytest.fixture(scope="module")
def worlds(evidence: Evidence) -> dict[str, World]:
    found = {}
    for mode in ("candidate", "live"):
        champion = CHAMPION if mode == "candidate" else {}
        case = make_case(evidence, mode=mode, policy=make_policy(**POLICY), **champion)
        passing = {one.name for one in judge_all(case) if one.verdict is Finding.PASS}
        found[mode] = World(evidence, case, _watch(case), passing)
    return found


@cache
def _group(name: str) -> Callable[[Case], list[Criterion]]:
    return next(judge for judge in CRITERIA if judge.__name__ == name.split(".")[0])


def _judge(case: Case, name: str) -> Criterion:
    return next(found for found in _group(name)(case) if found.name == name)


def _changed(case: Case, place: str, file: str, edit: Callable[[Any], Any]) -> Case:
    """The case with one file of one source edited, and read again as the gate reads it."""
    source: Source = getattr(case, place)
    documents, tables = dict(source.documents), dict(source.tables)
    contents = documents if file in documents else tables
    contents[file] = edit(copy.deepcopy(contents[file]))
    return replace(case, **{place: vet(replace(source, documents=documents, tables=tables))})


def _refuse_to_pass(case: Case, name: str, what: str) -> None:
    found = _judge(case, name)
    # NOT_APPLICABLE would be a pass too: the verdict does not look at it.
    assert found.verdict in (Finding.HOLD, Finding.ERROR, Finding.BLOCK, Finding.ROLLBACK), f"{what}: {found}"
    assert found.reason.strip(), what


def _at(content: Any, path: tuple[str, ...], to: Any) -> Any:
    place = content
    for key in path[:-1]:
        place = place[key]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return content


# --- the matrix ----------------------------------------------------------------------------------------------------


def test_every_criterion_of_the_code_passes_on_the_good_evidence_and_is_in_the_matrix(worlds: dict[str, World]) -> None:
    assert worlds["candidate"].passing == set(NAMES), "else the matrix would show nothing"
    assert set(TOO_FEW) == set(NAMES), "say of a new criterion how little is too little"
    for name in NAMES:
        reads = worlds["candidate"].reads[name]
        assert reads.numbers or reads.values or reads.rows, name
    assert worlds["live"].passing == set(LIVE_NAMES)


BAD_VALUES: dict[str, list[Any]] = {
    "missing": [..., None],
    "not a number": [math.nan],
    "infinite": [math.inf, -math.inf],
    "out of range": [-1e9, 1e9],
    "wrong schema": ["0.9", True, [], {}, [0.1, 0.9, 0.5], {"value": 0.9}],
    "empty": ["", [], {}],
}


@pytest.mark.parametrize("kind", BAD_VALUES)
@pytest.mark.parametrize(("mode", "name"), JUDGED)
def test_no_bad_value_that_a_criterion_reads_passes(worlds: dict[str, World], mode: str, name: str, kind: str) -> None:
    world = worlds[mode]
    reads = world.reads[name]
    for place, path in reads.needed:
        numeric = (place, path) in reads.numbers
        if kind in ("not a number", "infinite", "out of range") and not numeric:
            continue
        for bad in BAD_VALUES[kind]:
            if kind == "wrong schema" and bad is True and path[-1] in ("complete", "counted"):
                continue  # the good value
            case = _changed(world.case, place, path[0], lambda content, path=path, bad=bad: _bad(content, path, bad))
            _refuse_to_pass(case, name, f"{place} {' > '.join(path)} = {bad!r}")


def _bad(content: Any, path: tuple[str, ...], bad: Any) -> Any:
    return _at(content, path[1:], bad) if len(path) > 1 else ({} if bad is ... else bad)


@pytest.mark.parametrize("bad", [..., None, math.nan, math.inf, -math.inf, 1e12, "1", True, []], ids=repr)
@pytest.mark.parametrize("name", NAMES)
def test_no_bad_number_in_one_row_that_a_criterion_reads_passes(worlds: dict[str, World], name: str, bad: Any) -> None:
    world = worlds["candidate"]
    last = {(place, file, key): index for place, file, index, key in sorted(world.reads[name].rows)}
    for (place, file, key), index in last.items():

        def edit(rows: Any, index: int = index, key: str = key) -> Any:
            _at(rows[index], (key,), bad)
            return rows

        _refuse_to_pass(_changed(world.case, place, file, edit), name, f"{place} {file} row {index} {key} = {bad!r}")


TABLES: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "empty": lambda rows: [],
    "duplicated": lambda rows: [*rows, rows[0]],
    "all duplicated": lambda rows: rows * 2,
    "wrong schema": lambda rows: [*rows, {}],
    "another schema": lambda rows: [{"text": str(row)} for row in rows],
    "a name that is no text": lambda rows: [*rows, dict.fromkeys(rows[0], 7)],
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize(("mode", "name"), JUDGED)
def test_no_bad_table_passes(worlds: dict[str, World], mode: str, name: str, kind: str) -> None:
    """A table that is empty fails those who read it; one that contradicts itself fails all who read its artifact."""
    world = worlds[mode]
    reads = world.reads[name]
    named = {"generations.jsonl", "outcomes.jsonl", "judgements.jsonl", "predictions.jsonl"}
    of_source = {(place, file) for place in reads.sources for file in getattr(world.case, place).tables}
    for place, file in reads.tables if kind == "empty" else of_source & {(p, f) for p in SOURCES for f in named}:
        _refuse_to_pass(_changed(world.case, place, file, TABLES[kind]), name, f"{place} {file}: {kind}")


@pytest.mark.parametrize("name", NAMES)
def test_too_little_evidence_never_passes(worlds: dict[str, World], name: str) -> None:
    few = TOO_FEW[name]
    policy = make_policy(**{**POLICY, **few.policy})
    case = replace(edit_case(worlds["candidate"].case, few.edits), policy=policy)
    found = _judge(case, name)
    assert found.verdict is Finding.HOLD, found


FOLDER_OF = {
    "evaluation": "evaluation",
    "human": "evidence",
    "reward_model": "reward_model",
    "heldout": "heldout_reward_model",
}


def _forget(folder: Path) -> None:
    shutil.rmtree(folder)


def _alter_a_file(folder: Path) -> None:
    file = next(path for path in sorted(folder.iterdir()) if path.name != MANIFEST)
    file.write_text(file.read_text() + " ")


def _alter_a_file_and_its_hash(folder: Path) -> None:
    """Forged with care, but for the digest that others name."""
    from components.shared.artifacts import content_digest
    from components.shared.files import sha256_file

    manifest = json.loads((folder / MANIFEST).read_text())
    file = next(path for path in sorted(folder.iterdir()) if path.name != MANIFEST)
    file.write_text(file.read_text() + " ")
    manifest["files"][file.name] = sha256_file(file)
    manifest["digest"] = content_digest(manifest["kind"], manifest["files"])
    (folder / MANIFEST).write_text(json.dumps(manifest))


def _in_manifest(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps(manifest | values))

    return change


def _empty_a_file(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        if file.name != MANIFEST:
            file.write_bytes(b"")


ARTIFACTS: dict[str, Callable[[Path], None]] = {
    "missing": _forget,
    "missing manifest": lambda folder: (folder / MANIFEST).unlink(),
    "wrong digest": _alter_a_file,
    "wrong digest in the manifest": _in_manifest(digest="0" * 64),
    "wrong schema version": _in_manifest(schema_version=99),
    "another kind": _in_manifest(kind="dataset"),
    "empty files": _empty_a_file,
    "a manifest that is no JSON": lambda folder: (folder / MANIFEST).write_text("?"),
    "a manifest that is no object": lambda folder: (folder / MANIFEST).write_text("[]"),
    "a manifest without files": _in_manifest(files=None),
}


def _case_of(evidence: Evidence, mode: str = "candidate", **overrides: Any) -> Case:
    champion = CHAMPION if mode == "candidate" else {}
    return make_case(evidence, mode=mode, policy=make_policy(**POLICY), **{**champion, **overrides})


def _with_copy(evidence: Evidence, place: str, root: Path, change: Callable[[Path], None]) -> Evidence:
    folder = FOLDER_OF[place]
    copied = Path(shutil.copytree(getattr(evidence, folder), root / folder))
    change(copied)
    return replace(evidence, **{folder: str(copied)})


@pytest.mark.parametrize("place", SOURCES)
@pytest.mark.parametrize("kind", ARTIFACTS)
def test_no_bad_artifact_passes(worlds: dict[str, World], kind: str, place: str, tmp_path: Path) -> None:
    world = worlds["candidate"]
    case = _case_of(_with_copy(world.evidence, place, tmp_path, ARTIFACTS[kind]))
    found = {one.name: one for one in judge_all(case)}
    for name in [name for name in NAMES if place in world.reads[name].sources]:
        assert found[name].verdict in (Finding.HOLD, Finding.ERROR), (name, found[name])
    assert decide(list(found.values()), live=False).verdict in (Verdict.HOLD, Verdict.ERROR)


@pytest.mark.parametrize("place", ["human", "reward_model", "heldout", "evaluation"])
def test_an_artifact_that_was_forged_with_its_own_hashes_is_not_the_one_that_others_name(
    worlds: dict[str, World], place: str, tmp_path: Path
) -> None:
    """The human evidence is named by nobody: who may write it may say what it wants, so its digest is on the ledger."""
    world = worlds["candidate"]
    case = _case_of(_with_copy(world.evidence, place, tmp_path, _alter_a_file_and_its_hash))
    verdict = decide(judge_all(case), live=False).verdict
    if place == "human":
        assert case.human.digest != world.case.human.digest
    else:
        assert verdict in (Verdict.HOLD, Verdict.ERROR)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Of another run."""
    return make_evidence(tmp_path_factory.mktemp("other"), seed=5, weights="other", champion_digest="c" * 64)


@pytest.mark.parametrize("place", SOURCES)
def test_evidence_of_another_model_or_run_never_passes(worlds: dict[str, World], other: Evidence, place: str) -> None:
    world = worlds["candidate"]
    folder = FOLDER_OF[place]
    case = _case_of(replace(world.evidence, **{folder: getattr(other, folder)}))
    found = {one.name: one for one in judge_all(case)}
    for name in [name for name in NAMES if place in world.reads[name].sources]:
        assert found[name].verdict is Finding.ERROR, (name, found[name])


@pytest.mark.parametrize("what", ["candidate", "baseline"])
def test_evidence_that_names_another_candidate_or_baseline_never_passes(
    worlds: dict[str, World], what: str, tmp_path: Path
) -> None:
    digests = {"candidate": {"candidate_digest": "0" * 64}, "baseline": {"trained_from": "s" * 64}}[what]
    case = _case_of(make_evidence(tmp_path, champion_digest="c" * 64, **digests))  # type: ignore[arg-type]
    found = {one.name: one for one in judge_all(case)}
    for name in [name for name in NAMES if {"evaluation", "human"} & worlds["candidate"].reads[name].sources]:
        assert found[name].verdict is Finding.ERROR, (name, found[name])


def test_evidence_about_a_champion_that_is_not_live_any_more_never_passes(worlds: dict[str, World]) -> None:
    case = _case_of(worlds["candidate"].evidence, champion="5", champion_digest="d" * 64)
    for name in ("human_preference.champion", "regression.harm", "regression.critical"):
        _refuse_to_pass(case, name, "stale")
    assert decide(judge_all(case), live=False).verdict is Verdict.HOLD


@pytest.mark.parametrize("kind", ["simulated", "ai", "alien"])
@pytest.mark.parametrize("mode", ["candidate", "live"])
def test_votes_that_are_not_of_people_never_pass_under_the_production_policy(
    mode: str, kind: str, tmp_path: Path
) -> None:
    evidence = make_evidence(tmp_path, champion_digest="c" * 64, rater_kind=kind)
    case = replace(_case_of(evidence, mode), policy=load_policy_file("production"))
    judgement = decide(judge_all(case), live=mode == "live")
    assert judgement.verdict is Verdict.HOLD
    assert any("collect votes of people" in reason for reason in judgement.reasons)


def test_the_evidence_of_nothing_passes_nothing() -> None:
    empty = {place: read_source(place, "", "x") for place in SOURCES}
    check_provenance(
        candidate_digest="c",
        baseline_digest=None,
        evaluation=empty["evaluation"],
        human=empty["human"],
        reward_model=empty["reward_model"],
        heldout=empty["heldout"],
    )
    case = Case(
        policy=make_policy(),
        mode="candidate",
        evaluation=empty["evaluation"],
        human=empty["human"],
        reward_model=empty["reward_model"],
        heldout=empty["heldout"],
        history=read_source("training_history", "", "training_history"),
        champion=None,
        champion_digest=None,
        no_champion_reason="There is none.",
        seed=0,
    )
    assert {one.verdict for one in judge_all(case)} <= {Finding.HOLD, Finding.NOT_APPLICABLE}
