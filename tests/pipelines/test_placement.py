"""Profiles: strict, laid over one another, and applied to every step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from components.shared.errors import InputError
from components.shared.trainjob import TrainJobSettings
from pipelines.cluster import compile_pipeline
from pipelines.placement import EnvironmentSource, Place, Profile, StepResources, load_profile, shipped_profiles
from pipelines.settings import RunSettings, load_run_settings
from pipelines.steps import with_nodes_placed


def _write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def _compile(profile: str, folder: Path, **execution: object) -> None:
    values = load_run_settings("gpu-example").model_dump(mode="json")
    values["execution"] = {"profile": profile, **execution}
    compile_pipeline(RunSettings.model_validate(values), "rlhf", folder / "pipeline.yaml")


@pytest.mark.parametrize("name", shipped_profiles())
def test_shipped_profiles_are_valid(name: str) -> None:
    assert load_profile(name).experiment


@pytest.mark.parametrize(
    "text",
    [
        "steps: {ppoo: {memory: 8Gi}}",
        "secrets: [{name: plumbline-database, variables: [PLUMBLINE_DATABASE_URL], steps: [release-gate]}]",
    ],
)
def test_a_step_that_does_not_exist_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"no step (ppoo|release-gate); there are: .*release_gate"):
        load_profile(_write(tmp_path, f"{text}\n"))


def test_a_file_extends_a_shipped_profile_and_says_only_what_differs(tmp_path: Path) -> None:
    mine = load_profile(_write(tmp_path, "extends: prod\ntrain: {memory: 200Gi}\n"))
    prod = load_profile("prod")
    assert mine.train.memory == "200Gi"
    assert mine.train.accelerator == prod.train.accelerator
    assert mine.secrets == prod.secrets


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {memroy: 2Gi}", "train.memroy: unknown setting"),
        ("train: {memory: lots}", "train.memory"),
        ("train: {accelerator: nvidia.com/gpu}", "go together"),
        ("light: {tolerations: [{operator: Exists, key: a, value: b}]}", "Exists takes no value"),
        ("security: {run_as_user: 0}", "security.run_as_user"),
        ("security: {run_as_non_root: false}", "security.run_as_non_root"),
        ("secrets: [{name: Not_A_Name, variables: [A]}]", "secrets.0.name"),
        ("secrets: [{name: a, variables: []}]", "secrets.0.variables"),
        ("variables: {'A B': c}", "variables"),
        ("extends: nowhere", "no such profile"),
        ("- a list", "not a mapping"),
        ("a: [", "not valid YAML"),
        ("light: {memory: 2Gi}\nlight: {cpu: '1'}", "light is given twice"),
    ],
)
def test_a_faulty_profile_is_refused_and_the_error_names_the_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load_profile(_write(tmp_path, text))
    assert said in str(caught.value)


def test_profiles_that_extend_one_another_in_a_circle_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, f"extends: {tmp_path / 'mine.yaml'}\n")
    with pytest.raises(InputError, match="circle"):
        load_profile(path)


def test_what_a_run_wants_stands_over_the_profile_and_a_single_step_over_both() -> None:
    profile = Profile(train=StepResources(cpu="8", retries=3), steps={"ppo": StepResources(cpu="32", retries=0)})
    place = profile.resources("train", StepResources(cpu="16"))
    assert place.for_step("sft").cpu == "16"
    assert place.for_step("sft").retries == 3
    assert (place.for_step("ppo").cpu, place.for_step("ppo").retries) == ("32", 0)


def test_a_source_for_some_steps_is_not_for_others() -> None:
    source = EnvironmentSource(name="plumbline-notice", variables=["A"], steps=["finish"])
    assert source.is_for("finish")
    assert not source.is_for("ppo")


@pytest.mark.parametrize(
    "image",
    [
        "plumbline/train:0.1.0",
        "plumbline/train",
        "registry:5000/train@sha256:abc",
        "train@sha256:" + "0" * 64 + "-x",
        "train@sha256:" + "A" * 64,
    ],
)
def test_production_takes_no_image_that_is_not_pinned_by_digest(image: str) -> None:
    place = Place(profile=Profile(require_digests=True), resources=StepResources(image=image))
    with pytest.raises(InputError, match="not pinned by digest"):
        place.image("ppo", default="other")


def test_the_prod_profile_does_not_compile_with_the_components_own_tags(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not pinned by digest"):
        _compile("prod", tmp_path)
    pinned = {"image": "registry.example.com/x@sha256:" + "0" * 64}
    _compile("prod", tmp_path, light=pinned, train=pinned)


def test_only_steps_that_read_evidence_or_ledger_see_the_database() -> None:
    for name in ("dev", "prod"):
        database = next(one for one in load_profile(name).secrets if one.name == "plumbline-database")
        assert not any(database.is_for(step) for step in ("sft", "reward_model", "ppo", "collection", "evaluation"))


_JOB = {"nodes": 2, "processes_per_node": 4, "gpus_per_node": 4}
_DIGEST = "@sha256:" + "0" * 64


def _trainjob(profile: str, stage: str = "sft", **job: object) -> TrainJobSettings:
    values = load_run_settings("gpu-example").model_dump(mode="json", exclude_unset=True)
    values["execution"] = {"profile": profile}
    values[stage] = values.get(stage, {}) | {"batch_size": 8, "trainjob": _JOB | job}
    return with_nodes_placed(RunSettings.model_validate(values), stage).trainjob


def test_a_step_that_only_watches_its_nodes_can_do_without_the_gpu(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "trainjob.md").read_text()
    told = yaml.safe_load(re.findall(r"```yaml\n(steps:.*?)```", text, re.DOTALL)[0])
    profile = load_profile(_write(tmp_path, yaml.safe_dump({"extends": "prod", **told})))
    place = profile.resources("train", StepResources())
    assert place.for_step("sft").accelerator_count == 1
    assert (place.for_step("ppo").accelerator_count, place.for_step("ppo").memory) == (0, "16Gi")


def test_nodes_get_what_the_profile_says_of_training_steps(tmp_path: Path) -> None:
    profile = _write(tmp_path, f"extends: prod\ntrain: {{image: registry.example.com/train{_DIGEST}}}\n")
    job, prod = _trainjob(profile), load_profile(profile)
    assert job.image == prod.train.image
    assert (job.queue, job.priority) == ("plumbline", "plumbline-training")
    assert job.node_selector == prod.train.node_selector
    assert job.tolerations == prod.train.tolerations
    assert job.pull_secrets == ["plumbline-registry"]
    assert job.scratch == {"/tmp": "200Gi"}
    assert job.shared_memory == "16Gi"


def test_nodes_get_the_claims_secrets_and_variables_that_the_step_gets(tmp_path: Path) -> None:
    profile = _write(
        tmp_path,
        f"""
        extends: prod
        train: {{image: registry.example.com/train{_DIGEST}}}
        node_service_account: with-an-identity
        mounts:
          - {{claim: hub-cache, path: /hub}}
          - {{claim: plumbline-models, path: /models, sub_path: team-a}}
        variables: {{HF_HOME: /hub, SSL_CERT_FILE: /models/ca.pem}}
        secrets:
          - {{name: our-mlflow, variables: [MLFLOW_TRACKING_TOKEN]}}
          - {{name: our-database, variables: [PLUMBLINE_DATABASE_URL], steps: [release_gate]}}
        """,
    )
    job = _trainjob(profile)
    assert (job.claim, job.folder, job.sub_path) == ("plumbline-models", "/models", "team-a")
    assert [(one.claim, one.path) for one in job.mounts] == [("hub-cache", "/hub")]
    assert job.secrets == {"MLFLOW_TRACKING_TOKEN": "our-mlflow"}
    assert {"SSL_CERT_FILE", "MLFLOW_TRACKING_URI", "HF_HUB_OFFLINE"} <= set(job.variables)
    assert job.service_account == "with-an-identity"
    other = _trainjob(profile, folder="/hub")
    assert (other.claim, other.folder, [one.path for one in other.mounts]) == ("hub-cache", "/hub", ["/models"])
    assert _trainjob(profile, service_account="mine", secrets={}).secrets == {}


def test_what_a_job_says_itself_stands_over_the_profile(tmp_path: Path) -> None:
    profile = _write(tmp_path, "extends: dev\ntrain: {image: registry.example.com/train:1}\n")
    job = _trainjob(
        profile, "reward_model", image="registry.example.com/other:2", queue="", node_selector={"pool": "a"}
    )
    assert (job.image, job.queue, job.node_selector) == ("registry.example.com/other:2", "", {"pool": "a"})
    assert job.priority == "plumbline-training"


def test_production_takes_no_image_for_nodes_that_is_not_pinned_by_digest() -> None:
    with pytest.raises(InputError, match=r"sft\.trainjob: the image 'registry.example.com/train:1' is not pinned"):
        _trainjob("prod", image="registry.example.com/train:1")
