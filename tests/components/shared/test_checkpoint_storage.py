"""Checkpoints in object storage: what one machine published another goes on from, whole or from the one before.

A real S3 server on the loopback; a machine is a scratch folder of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy, Kind
from s3_server import S3Server

from components.shared import checkpoint_storage, hf_checkpoints, s3, storage
from components.shared import lease as lease_module
from components.shared.errors import PlumblineError
from components.shared.hf_checkpoints import (
    CHECKPOINTS_VARIABLE,
    TrainingFolder,
    latest_checkpoint,
    seal_checkpoint,
    training_folder,
)
from components.shared.s3 import S3Storage
from components.shared.storage import StorageError, open_storage
from components.shared.world import World

RUN = {"seed": 0}


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def move_to(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Goes on on the machine of that name; checkpoints are in the bucket."""
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, f"s3://{bucket}/team/checkpoints")
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 3.0)
    monkeypatch.setattr(storage, "WAITS_SECONDS", (0.05,))

    def move(name: str) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))

    move("here")
    return move


def _train(*steps: int, fail: type[BaseException] | None = Killed) -> None:
    """Trains those steps with a checkpoint and a snapshot each; the two newest checkpoints stay."""
    with training_folder(RUN) as folder:
        for step in steps:
            _make_checkpoint(folder, step)
        if fail is not None:
            raise fail


def _make_checkpoint(folder: TrainingFolder, step: int) -> None:
    checkpoint = folder.path / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(bytes([step]) * 1000)
    (checkpoint / "optimizer.pt").write_bytes(b"optimizer" + bytes([step]))
    (folder.path / f"snapshots/step-{step}").mkdir(parents=True)
    (folder.path / f"snapshots/step-{step}/config.json").write_text("{}")
    seal_checkpoint(checkpoint)
    for old in sorted(folder.path.glob("checkpoint-*"))[:-2]:
        shutil.rmtree(old)
    folder.publish()


def _die(*steps: int) -> None:
    with pytest.raises(Killed):
        _train(*steps)


def _found() -> list[str]:
    """The files that a training starts with."""
    found: list[str] = []
    with pytest.raises(Killed), training_folder(RUN) as folder:
        found += sorted(str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file())
        latest = latest_checkpoint(folder.path)
        assert latest is None or (latest / "model.safetensors").read_bytes() == bytes([int(latest.name[-1])]) * 1000
        raise Killed
    return found


def _files(*checkpoints: int, snapshots: tuple[int, ...]) -> list[str]:
    names = ("complete.json", "model.safetensors", "optimizer.pt")
    files = [f"checkpoint-{step}/{name}" for step in checkpoints for name in names]
    return files + [f"snapshots/step-{step}/config.json" for step in snapshots]


def _keys(client: Any, bucket: str, part: str = "") -> list[str]:
    return [item["Key"] for item in client.list_objects_v2(Bucket=bucket).get("Contents", []) if part in item["Key"]]


# --- round trip ------------------------------------------------------------------------------------------------------


def test_what_one_machine_published_another_goes_on_from(move_to):
    _die(1, 2)
    move_to("elsewhere")
    assert _found() == _files(1, 2, snapshots=(1, 2))
    _die(3)
    move_to("a third")
    assert _found() == _files(2, 3, snapshots=(1, 2, 3))


def test_a_run_of_another_identity_finds_nothing(move_to):
    _die(1)
    with training_folder({"seed": 1}) as folder:
        assert latest_checkpoint(folder.path) is None


def test_nothing_is_left_anywhere_when_training_ends_without_an_error(move_to, bucket, bucket_client, tmp_path):
    _die(1)
    assert _keys(bucket_client, bucket)
    _train(2, fail=None)
    assert _keys(bucket_client, bucket) == []
    assert list((tmp_path / "here").glob("plumbline-*/*")) == []


def test_a_file_is_sent_once_and_old_checkpoints_go(move_to, bucket, bucket_client, monkeypatch):
    sent: list[int] = []
    upload = S3Storage.upload
    monkeypatch.setattr(
        S3Storage, "upload", lambda self, files, digests: (sent.append(len(files)), upload(self, files, digests))
    )

    _die(1, 2, 3, 4)

    assert sent == [4, 3, 3, 3], "snapshots are all alike, and checkpoints that stay are not sent again"
    assert [key[-11:] for key in _keys(bucket_client, bucket, "published/")] == ["000003.json", "000004.json"]
    assert len(_keys(bucket_client, bucket, "files/")) == 3 * 3 + 1


def test_another_process_of_the_same_training_reads_in_the_same_folder(move_to):
    with training_folder(RUN) as folder, hf_checkpoints._folder_of_another(World(rank=1, size=2), *_place()) as other:
        assert other.path == folder.path
        assert other.fetch is None


def test_a_process_on_another_node_fetches_what_the_first_one_names_and_nothing_else(move_to):
    _die(1, 2)
    with training_folder(RUN) as folder:
        assert folder.published is not None
        files = folder.published.files_below("checkpoint-2")
        assert sorted(files) == [name for name in _files(1, 2, snapshots=()) if name.startswith("checkpoint-2/")]
        move_to("elsewhere")
        with _on_another_node() as other:
            (other.path / "checkpoint-9").mkdir(parents=True)  # left by an earlier attempt
            assert other.fetch is not None
            other.fetch(files)
            assert other.path != folder.path
            assert sorted(path.name for path in other.path.iterdir()) == ["checkpoint-2"]
            assert latest_checkpoint(other.path) == other.path / "checkpoint-2"
        assert not other.path.exists()
        move_to("here")


def test_a_checkpoint_that_only_this_machine_has_is_published_before_other_nodes_are_sent_for_it(move_to, outage):
    _die(1)
    outage(True)
    _die(2)
    outage(False)
    with training_folder(RUN) as folder:
        assert folder.published is not None
        files = folder.published.files_below("checkpoint-2")
        move_to("elsewhere")
        with _on_another_node() as other:
            assert other.fetch is not None
            other.fetch(files)
            assert (other.path / "checkpoint-2/model.safetensors").read_bytes() == bytes([2]) * 1000
        move_to("here")


def test_a_damaged_file_is_not_taken_by_another_node(move_to, bucket, bucket_client):
    _die(1)
    with training_folder(RUN) as folder:
        assert folder.published is not None
        files = folder.published.files_below("checkpoint-1")
        damaged = f"files/{files['checkpoint-1/model.safetensors']}"
        (key,) = _keys(bucket_client, bucket, damaged)
        bucket_client.put_object(Bucket=bucket, Key=key, Body=b"else")
        move_to("elsewhere")
        with (
            pytest.raises(PlumblineError, match=r"cannot be fetched: .*model\.safetensors is damaged"),
            _on_another_node() as other,
        ):
            assert other.fetch is not None
            other.fetch(files)
        move_to("here")


def _place() -> tuple[str, str]:
    return os.environ[CHECKPOINTS_VARIABLE], checkpoint_storage.digest_of(RUN)


def _on_another_node() -> Any:
    return hf_checkpoints._folder_of_another(World(rank=1, size=2, local_rank=0, local_size=1), *_place())


# --- half, damaged ---------------------------------------------------------------------------------------------------


@pytest.fixture
def half_published(move_to, monkeypatch):
    """Checkpoint 1 is published; of 2, the files."""
    _die(1)
    create = S3Storage.create

    def kill_before_the_last_object(self: S3Storage, name: str, content: bytes) -> bool:
        if name == "published/000002.json":
            raise Killed
        return create(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(S3Storage, "create", kill_before_the_last_object)
        _die(2)


def test_half_a_publication_is_ignored(half_published, move_to, bucket, bucket_client):
    assert len(_keys(bucket_client, bucket, "files/")) == 7, "the files are there, what lists them is not"
    move_to("elsewhere")
    assert _found() == _files(1, snapshots=(1,))
    _die(3)
    assert len(_keys(bucket_client, bucket, "files/")) == 7, "what belongs to no publication is removed"


def _damage(how: str, client: Any, bucket: str) -> None:
    """Damages what only the newest publication has."""
    first, second = (
        json.loads(client.get_object(Bucket=bucket, Key=key)["Body"].read())["files"]
        for key in _keys(client, bucket, "published/")
    )
    newest = _keys(client, bucket, "published/")[-1]
    (its,) = [key for key in _keys(client, bucket, "files/") if key.endswith(second["checkpoint-2/model.safetensors"])]
    assert its.rpartition("/")[2] not in first.values()
    if how == "alter a file":
        client.put_object(Bucket=bucket, Key=its, Body=b"\2" * 999 + b"\3")
    elif how == "delete a file":
        client.delete_object(Bucket=bucket, Key=its)
    elif how == "cut the list":
        client.put_object(Bucket=bucket, Key=newest, Body=b'{"files": {')
    elif how == "alter the list":
        body = client.get_object(Bucket=bucket, Key=newest)["Body"].read().replace(b"checkpoint-2", b"checkpoint-7")
        client.put_object(Bucket=bucket, Key=newest, Body=body)


@pytest.mark.parametrize("how", ["alter a file", "delete a file", "cut the list", "alter the list"])
def test_a_damaged_publication_is_passed_over_for_the_one_before_it(move_to, bucket, bucket_client, how, caplog):
    _die(1, 2)
    _damage(how, bucket_client, bucket)
    move_to("elsewhere")

    assert _found() == _files(1, snapshots=(1,))

    assert "passed over for the one before it" in caplog.text
    _die(2)  # the same bytes again: what was damaged is sent anew
    move_to("a third")
    assert _found() == _files(1, 2, snapshots=(1, 2))


def test_training_starts_anew_when_nothing_is_whole(move_to, bucket, bucket_client, caplog):
    _die(1)
    for key in _keys(bucket_client, bucket, "files/"):
        bucket_client.put_object(Bucket=bucket, Key=key, Body=b"else")
    move_to("elsewhere")
    assert _found() == []
    assert "training starts anew" in caplog.text


def test_a_list_that_leads_out_of_the_folder_is_not_followed(move_to, bucket, bucket_client, tmp_path):
    _die(1)
    (key,) = _keys(bucket_client, bucket, "published/")
    content = json.loads(bucket_client.get_object(Bucket=bucket, Key=key)["Body"].read())
    files = {"../../escaped": next(iter(content["files"].values()))}
    changed = {"files": files, "digest": checkpoint_storage.digest_of(files)}
    bucket_client.put_object(Bucket=bucket, Key=key, Body=json.dumps(changed).encode())
    move_to("elsewhere")
    assert _found() == []
    assert not list(tmp_path.rglob("escaped"))


# --- one trainer -----------------------------------------------------------------------------------------------------


def test_a_second_trainer_on_another_machine_is_refused(move_to):
    with training_folder(RUN) as folder:
        _make_checkpoint(folder, 1)
        move_to("elsewhere")
        with pytest.raises(PlumblineError, match=r"another process trains this very run: process .* since 20"):
            training_folder(RUN).__enter__()
        _make_checkpoint(folder, 2)


def test_a_second_trainer_on_the_same_machine_is_refused(move_to):
    with training_folder(RUN), pytest.raises(PlumblineError, match="another process is training this very run"):
        training_folder(RUN).__enter__()


def test_who_was_taken_over_stops_at_its_next_checkpoint(move_to, bucket, bucket_client):
    with pytest.raises(PlumblineError, match="no sign of life"), training_folder(RUN) as folder:
        _make_checkpoint(folder, 1)
        (lease,) = _keys(bucket_client, bucket, "lease/")
        theirs = json.loads(bucket_client.get_object(Bucket=bucket, Key=lease)["Body"].read()) | {"nonce": "theirs"}
        key = lease.replace("000001", "000002")
        bucket_client.put_object(Bucket=bucket, Key=key, Body=json.dumps(theirs).encode())
        _make_checkpoint(folder, 2)
    assert len(_keys(bucket_client, bucket, "published/")) == 1


# --- outages ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Storage does not answer; or answers again."""
    upload = S3Storage.upload

    def switch(on: bool) -> None:
        def fail(self: S3Storage, *_: Any) -> None:
            raise StorageError("does not answer", where=self.uri, transient=True)

        monkeypatch.setattr(S3Storage, "upload", fail if on else upload)

    return switch


def test_a_checkpoint_that_could_not_be_published_is_with_the_next(move_to, outage, caplog):
    with pytest.raises(Killed), training_folder(RUN) as folder:
        _make_checkpoint(folder, 1)
        outage(True)
        _make_checkpoint(folder, 2)
        assert "kept in" in caplog.text
        outage(False)
        _make_checkpoint(folder, 3)
        raise Killed
    move_to("elsewhere")
    assert _found() == _files(2, 3, snapshots=(1, 2, 3))


def test_the_third_in_a_row_stops_the_training_which_goes_on_from_the_local_one(move_to, outage):
    told = r"3 checkpoints in a row could not be published.*does not answer"
    with pytest.raises(PlumblineError, match=told), training_folder(RUN) as folder:
        _make_checkpoint(folder, 1)
        outage(True)
        for step in (2, 3, 4):
            _make_checkpoint(folder, step)
    outage(False)
    move_to("elsewhere")
    assert _found() == _files(1, snapshots=(1,)), "elsewhere goes on from what was published"
    move_to("here")
    assert _found() == _files(3, 4, snapshots=(1, 2, 3, 4))


def test_what_is_newer_elsewhere_replaces_what_an_earlier_attempt_left_here(move_to, outage):
    _die(1)
    outage(True)
    _die(2)
    outage(False)
    move_to("elsewhere")
    _die(5)
    move_to("here")
    assert _found() == _files(1, 5, snapshots=(1, 5))


def test_a_folder_that_lost_files_here_is_fetched_again(move_to, tmp_path):
    _die(1)
    next((tmp_path / "here").glob("plumbline-*/*/folder/checkpoint-1/optimizer.pt")).unlink()
    assert _found() == _files(1, snapshots=(1,))


def test_a_server_that_is_away_for_a_while_is_waited_for(move_to, storage_server, monkeypatch, caplog):
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 60.0)
    monkeypatch.setattr(storage, "WAITS_SECONDS", (1.0,) * 30)
    with pytest.raises(Killed), training_folder(RUN) as folder:
        storage_server.stop()
        back = threading.Timer(1.0, storage_server.start)
        back.start()
        _make_checkpoint(folder, 1)
        back.join()
        raise Killed
    assert "storage failed, next attempt" in caplog.text
    move_to("elsewhere")
    assert _found() == _files(1, snapshots=(1,))


FAULTS: list[tuple[Kind, dict[str, Any]]] = [
    ("lost answer", {}),
    ("reset", {}),
    ("cut upload", {}),
    ("truncated", {}),
    ("slow", {"seconds": 1.5}),
    ("status", {"status": 500}),
    ("status", {"status": 503}),
    ("not http", {}),
]


@pytest.fixture
def proxy(move_to, storage_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    monkeypatch.setattr(storage, "WAITS_SECONDS", (0.05, 0.05, 0.05))
    monkeypatch.setattr(s3, "_READ_SECONDS", 1)
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 60.0)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with FaultProxy(storage_server.host, storage_server.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        yield proxy


_BRIEFLY = [fault for fault in FAULTS if fault[0] in ("lost answer", "not http")]


@pytest.mark.parametrize(
    ("kind", "how", "match"),
    [(*fault, match) for fault in FAULTS for match in ("PUT .*/files/", "PUT .*/published/")]
    + [(*fault, match) for fault in _BRIEFLY for match in ("GET /[^/]*[?]", "PUT .*/lease/", "DELETE ")],
)
def test_nothing_is_lost_and_nothing_half_visible_whatever_befalls_a_request(proxy, move_to, kind, how, match):
    fault = proxy.arm(kind, match, times=2, **how)
    _die(1, 2)
    assert fault.times == 0, "the fault befell"
    move_to("elsewhere")
    assert _found() == _files(1, 2, snapshots=(1, 2))


@pytest.mark.parametrize(
    ("kind", "how", "match"),
    [(*fault, "(GET|HEAD) .*/files/") for fault in FAULTS] + [("truncated", {}, "GET .*/published/")],
)
def test_fetching_survives_whatever_befalls_a_request(proxy, move_to, kind, how, match):
    _die(1, 2)
    move_to("elsewhere")
    fault = proxy.arm(kind, match, times=2, **how)
    assert _found() == _files(1, 2, snapshots=(1, 2))
    assert fault.times == 0, "the fault befell"


@pytest.mark.parametrize(("status", "match"), [(409, "PUT .*/(published|lease)/"), (412, "PUT .*/published/")])
def test_a_refused_condition_is_looked_into(proxy, move_to, status, match):
    """409: somebody else is writing this very moment; 412: the object was there already, or was ours."""
    fault = proxy.arm("status", match, status=status, times=2)
    _die(1, 2)
    assert fault.times == 0
    move_to("elsewhere")
    assert _found() == _files(1, 2, snapshots=(1, 2))


def test_a_large_file_survives_lost_parts_and_a_lost_end(proxy, bucket, tmp_path):
    """The end of an upload in parts, asked for again because its answer was lost, finds no upload any more."""
    store = open_storage(f"s3://{bucket}/large")
    (tmp_path / "large").write_bytes(os.urandom(20 * 2**20))
    faults = [proxy.arm("lost answer", "PUT .*partNumber=2"), proxy.arm("cut upload", "PUT .*partNumber=3")]
    faults += [proxy.arm("lost answer", "POST .*uploadId="), proxy.arm("truncated", "GET .*/large")]
    store.upload({"large": tmp_path / "large"})
    assert store.download({"large": tmp_path / "back"}) == {}
    assert [fault.times for fault in faults] == [0] * 4
    assert (tmp_path / "back").read_bytes() == (tmp_path / "large").read_bytes()


@pytest.mark.parametrize("match", ["PUT .*/files/", "PUT .*partNumber=2", "POST .*uploadId=", "PUT .*/published/"])
def test_a_server_that_is_killed_in_the_middle_of_a_checkpoint_loses_nothing(
    proxy, move_to, storage_server, monkeypatch, match
):
    """It is killed when it has the request, and comes back after a while with what it had stored."""
    monkeypatch.setattr(storage, "WAITS_SECONDS", (0.5,) * 60)
    monkeypatch.setattr(s3, "_READ_SECONDS", 30)
    returns: list[threading.Thread] = []

    def kill() -> None:
        storage_server.kill()
        returns.append(threading.Thread(target=storage_server.start))
        returns[-1].start()

    with pytest.raises(Killed), training_folder(RUN) as folder:
        _make_checkpoint(folder, 1)
        (folder.path / "moments.pt").write_bytes(os.urandom(20 * 2**20))
        fault = proxy.arm("cut upload", match, action=kill)
        _make_checkpoint(folder, 2)
        returns[0].join()
        assert fault.times == 0
        moments = (folder.path / "moments.pt").read_bytes()
        raise Killed
    move_to("elsewhere")
    assert _found() == [*_files(1, 2, snapshots=()), "moments.pt", *_files(snapshots=(1, 2))]
    with pytest.raises(Killed), training_folder(RUN) as folder:
        assert (folder.path / "moments.pt").read_bytes() == moments
        raise Killed


def test_who_dies_while_the_server_is_down_leaves_the_checkpoint_before(proxy, move_to, storage_server, monkeypatch):
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 8.0)
    with pytest.raises(Killed), training_folder(RUN) as folder:
        _make_checkpoint(folder, 1)
        proxy.arm("cut upload", "PUT .*/files/", action=storage_server.kill)
        _make_checkpoint(folder, 2)  # tried for a while, then kept locally
        raise Killed
    storage_server.start()
    move_to("elsewhere")
    assert _found() == _files(1, snapshots=(1,))


def test_a_bucket_that_is_not_there_stops_before_training(move_to, monkeypatch):
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, "s3://absent-one/checkpoints")
    with pytest.raises(StorageError, match="no bucket 'absent-one'"):
        training_folder(RUN).__enter__()


def test_prerequisites_try_all_that_training_will_do(move_to, bucket, bucket_client, refuse_credentials):
    address = f"s3://{bucket}/team/checkpoints"
    checkpoint_storage.check_checkpoint_storage(address)
    assert _keys(bucket_client, bucket) == []
    refuse_credentials()
    with pytest.raises(StorageError, match="do not fit together"):
        checkpoint_storage.check_checkpoint_storage(address)


def test_a_folder_is_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, str(tmp_path))
    with training_folder(RUN) as folder:
        folder.publish()
        assert folder.path.parent == tmp_path
    with hf_checkpoints._folder_of_another(World(rank=1, size=2), *_place()) as other:
        assert other.path == folder.path
