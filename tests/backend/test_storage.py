"""Shared files in a directory and in a bucket: whole or not at all on every host, with a network that fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_backend import bucket, storage
from sae_backend.bucket import Bucket
from sae_backend.cache import Cache, Stored
from sae_backend.storage import Directory, Missing, Storage, StorageError
from tests import buckets

ROOT = Path(__file__).resolve().parents[2]
URL = f"s3://{buckets.BUCKET}/{buckets.PREFIX}"
MB = 1 << 20


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[buckets.Service]:
    with buckets.service(tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture
def wire(service: buckets.Service) -> Iterator[buckets.Wire]:
    service.empty()
    wire = buckets.Wire(service.port)
    yield wire
    wire.close()


@pytest.fixture
def environment(service: buckets.Service, wire: buckets.Wire, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """This process and its children reach the bucket along the wire."""
    given = service.environment(wire.port)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return given


@pytest.fixture
def host(environment: dict[str, str], tmp_path: Path) -> Callable[..., Bucket]:
    """The bucket as a host of this name sees it, with a cache of its own."""

    def host(name: str = "one", limit: float = float("inf"), bucket: str = buckets.BUCKET) -> Bucket:
        return Bucket(bucket, buckets.PREFIX, Cache(tmp_path / name, limit))

    return host


@pytest.fixture(params=["directory", "bucket"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Storage, Storage]:
    """The same storage on two hosts."""
    if request.param == "directory":
        return Directory(tmp_path / "shared", True), Directory(tmp_path / "shared", True)
    host = request.getfixturevalue("host")
    return host("one"), host("two")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A folder's worth, one large enough to travel in parts."""
    contents = {"cfg.json": b"{}", "weights/part 1.bin": os.urandom(20 * MB), "empty": b""}
    for name, content in contents.items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(content)
    return {name: tmp_path / "source" / name for name in contents}


def contents(store: Storage, folder: str) -> dict[str, bytes]:
    with store.reading(folder) as here:
        return {name: (here / name).read_bytes() for name in store.names(folder)}


def write(store: Storage, folder: str, name: str, content: bytes) -> None:
    with store.writing(folder, name) as path:
        path.write_bytes(content)


def left(folder: Path) -> list[str]:
    """Files below a folder, without locks."""
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.parent.name != ".locks")


# ---- what holds for both ----


def test_a_folder_that_is_kept_is_read_whole_on_another_host(
    pair: tuple[Storage, Storage], files: dict[str, Path]
) -> None:
    one, two = pair
    one.keep("checkpoints/abc", files)
    one.keep("checkpoints/abc", files)
    assert contents(two, "checkpoints/abc") == {name: path.read_bytes() for name, path in files.items()}
    assert two.folders("checkpoints") == {"abc"} and two.folders("elsewhere") == set()


def test_a_file_is_there_for_others_once_its_block_ended_well(pair: tuple[Storage, Storage]) -> None:
    one, two = pair
    with pytest.raises(ZeroDivisionError), one.writing("spool/1", "broken"):
        _ = 1 / 0
    write(one, "spool/1", "whole", b"whole")
    write(one, "spool/10", "other", b"of a run whose number begins alike")
    assert two.names("spool/1") == {"whole"}
    assert contents(two, "spool/1") == {"whole": b"whole"}


def test_a_file_that_is_written_again_is_read_anew(pair: tuple[Storage, Storage]) -> None:
    one, two = pair
    write(one, "spool/1", "shard", b"of an earlier database")
    contents(two, "spool/1")
    write(one, "spool/1", "shard", b"of this one")
    assert contents(two, "spool/1") == {"shard": b"of this one"}


def test_a_removed_folder_is_gone_for_all_with_everything_in_it(
    pair: tuple[Storage, Storage], files: dict[str, Path]
) -> None:
    one, two = pair
    one.keep("spool/1", files)
    contents(one, "spool/1")
    write(one, "spool/2", "shard", b"stays")
    one.remove("spool/1", ["empty"])
    assert two.names("spool/1") == files.keys() - {"empty"}
    one.remove("spool/1")
    one.remove("spool/1")
    assert one.names("spool/1") == two.names("spool/1") == set()
    assert two.folders("spool") == {"2"}


def test_what_is_gone_is_named_in_a_sentence(pair: tuple[Storage, Storage]) -> None:
    one, two = pair
    write(one, "spool/1", "a", b"")
    with pytest.raises(Missing, match=r"^2 files, the first b, are gone from spool/1 in .*: do all workers have"):
        two.reading("spool/1", ["a", "b", "c"]).__enter__()
    with pytest.raises(Missing, match=r"^there is no checkpoints/abc in "):
        two.reading("checkpoints/abc").__enter__()


def test_the_setting_says_which_it_is(settings: Any, tmp_path: Path) -> None:
    settings.VAR_DIR = tmp_path
    settings.STORE_URL = ""
    alone = storage.current()
    assert isinstance(alone, Directory) and (alone.root, alone.shared) == (tmp_path / "store", False)
    settings.STORE_URL = str(tmp_path / "nfs")
    assert isinstance(nfs := storage.current(), Directory) and (nfs.root, nfs.shared) == (tmp_path / "nfs", True)
    settings.STORE_URL = "s3://some-bucket/a/b/"
    assert isinstance(far := storage.current(), Bucket) and (far.bucket, far.prefix) == ("some-bucket", "a/b")
    for wrong in ("ftp://host/folder", "s3://"):
        settings.STORE_URL = wrong
        with pytest.raises(StorageError, match=f"STORE_URL is {wrong}; it must be a directory or s3://bucket/prefix"):
            storage.current()


# ---- a bucket ----


def test_keys_lie_below_the_prefix_and_another_prefix_is_left_alone(
    host: Callable[..., Bucket], service: buckets.Service
) -> None:
    service.client.put_object(Bucket=buckets.BUCKET, Key="another site/spool/1/a", Body=b"")
    write(host(), "spool/1", "a", b"")
    host().remove("spool/1")
    write(host(), "spool/2", "b", b"")
    assert service.keys() == ["another site/spool/1/a", "one site/spool/2/b"]


def test_a_host_fetches_a_file_once_and_its_own_not_at_all(host: Callable[..., Bucket], wire: buckets.Wire) -> None:
    content = os.urandom(MB)
    write(host("one"), "spool/1", "shard", content)
    before = wire.received
    assert contents(host("one"), "spool/1") == {"shard": content}
    assert wire.received - before < MB
    for _ in range(2):
        assert contents(host("two"), "spool/1") == {"shard": content}
    assert MB < wire.received - before < 2 * MB


def test_more_files_than_are_listed_or_deleted_at_once_are_all_found(
    host: Callable[..., Bucket], service: buckets.Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "DELETED_AT_ONCE", 10)
    names = {f"{i:04d}" for i in range(buckets.LISTED_AT_ONCE + 1)}
    for name in names:
        service.client.put_object(Bucket=buckets.BUCKET, Key=f"{buckets.PREFIX}/spool/1/{name}", Body=b"")
    assert host().names("spool/1") == names
    host().remove("spool/1")
    assert host().names("spool/1") == set()


READ = """
import hashlib, sys, django
django.setup()
from sae_backend import storage
with storage.current().reading("models/m") as here:
    print(hashlib.sha256((here / "weights").read_bytes()).hexdigest(), flush=True)
"""
WRITE = """
import os, sys, django
django.setup()
from sae_backend import storage
with storage.current().writing("spool/1", "shard") as path:
    path.write_bytes(os.urandom(30_000_000))
"""


def process(code: str, environment: dict[str, str], tmp_path: Path, host: str) -> subprocess.Popen[str]:
    own = {"STORE_URL": URL, "CACHE_DIR": str(tmp_path / host), "DJANGO_SETTINGS_MODULE": "sae_backend.settings"}
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, **environment, **own}, cwd=ROOT, text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip


def test_of_several_workers_on_a_host_one_fetches_and_all_read_it_whole(
    host: Callable[..., Bucket], wire: buckets.Wire, environment: dict[str, str], tmp_path: Path
) -> None:
    write(host(), "models/m", "weights", os.urandom(30 * MB))
    before = wire.received
    workers = [process(READ, environment, tmp_path, "shared") for _ in range(4)]
    read = [worker.communicate(timeout=120)[0] for worker in workers]
    assert len(set(read)) == 1 and len(read[0]) == 65
    assert 30 * MB < wire.received - before < 31 * MB


@pytest.mark.parametrize("code", [WRITE, READ], ids=["writing", "reading"])
def test_a_worker_that_is_killed_on_the_way_leaves_no_part_under_the_name(
    code: str, host: Callable[..., Bucket], wire: buckets.Wire, environment: dict[str, str], tmp_path: Path,
    service: buckets.Service,
) -> None:  # fmt: skip
    weights = os.urandom(30 * MB)
    write(host("another"), "models/m", "weights", weights)
    wire.hold = 5 * MB
    victim = process(code, environment, tmp_path, "killed")
    assert wire.held.wait(120)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    wire.hold = None
    wire.cut(refusals=0)
    assert service.keys() == [f"{buckets.PREFIX}/models/m/weights"]
    assert not {"shard", "weights"} & set(left(tmp_path / "killed"))
    after = process(READ, environment, tmp_path, "killed")  # under the same locks
    assert len(after.communicate(timeout=120)[0]) == 65


# ---- the network ----


def test_a_network_that_is_away_for_a_while_is_waited_for(
    host: Callable[..., Bucket], wire: buckets.Wire, files: dict[str, Path]
) -> None:
    wire.cut(refusals=3)
    host("one").keep("checkpoints/abc", files)
    wire.cut(refusals=3)
    assert contents(host("two"), "checkpoints/abc") == {name: path.read_bytes() for name, path in files.items()}


def test_an_answer_that_breaks_off_is_never_used(host: Callable[..., Bucket], wire: buckets.Wire) -> None:
    two = host("two")
    write(host("one"), "models/m", "weights", os.urandom(3 * MB))
    wire.limit = 2 * MB
    with pytest.raises(StorageError, match="cannot be reached"):
        contents(two, "models/m")
    assert left(two.cache.root) == []
    wire.limit = None
    assert len(contents(two, "models/m")["weights"]) == 3 * MB


def test_a_file_that_is_changed_while_it_is_fetched_is_not_used(
    host: Callable[..., Bucket], service: buckets.Service
) -> None:
    write(host("one"), "models/m", "weights", b"listed")
    two = host("two")
    with pytest.raises(StorageError, match=r"models/m/weights came from s3://.* incomplete or was changed meanwhile"):
        two._download("models/m/weights", Stored(size=7, modified=0))
    assert left(two.cache.root) == []


def test_a_network_that_stays_away_is_a_sentence_that_names_the_address(
    host: Callable[..., Bucket], wire: buckets.Wire, settings: Any
) -> None:
    settings.AWS_MAX_ATTEMPTS = 2
    wire.cut()
    for step in (lambda: host().names("spool/1"), lambda: write(host(), "spool/1", "a", b"")):
        with pytest.raises(StorageError) as error:
            step()
        assert str(error.value).startswith(f"http://127.0.0.1:{wire.port} cannot be reached (")
        assert "check the network and AWS_ENDPOINT_URL of this worker" in str(error.value)


# ---- rights ----


def test_a_missing_bucket_is_named(host: Callable[..., Bucket], files: dict[str, Path]) -> None:
    nowhere = host(bucket="not-made-yet")
    for step in (lambda: nowhere.names("spool/1"), lambda: write(nowhere, "spool/1", "a", b"")):
        with pytest.raises(StorageError, match=r"^there is no bucket not-made-yet at http://127.*: create it, or set"):
            step()


@pytest.mark.parametrize(("name", "code"), [
    ("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"), ("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"),
])  # fmt: skip
def test_wrong_credentials_are_a_sentence(
    name: str, code: str, host: Callable[..., Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "wrong")
    for step in (lambda: host().names("spool/1"), lambda: write(host(), "spool/1", "a", b"")):
        with pytest.raises(StorageError) as error:
            step()
        assert f"refuses this worker {URL} ({code}): set AWS_ACCESS_KEY_ID and" in str(error.value)


def test_no_credentials_are_a_sentence(
    host: Callable[..., Bucket], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StorageError, match=r"\(Unable to locate credentials\): set AWS_ACCESS_KEY_ID and"):
        host().names("spool/1")


def test_a_cache_that_cannot_be_written_says_what_to_set(host: Callable[..., Bucket], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as error:
        write(host("file"), "spool/1", "a", b"")
    assert "set CACHE_DIR to another directory" in host("file").explain(error.value)


# ---- the cache ----


def test_the_least_recently_used_files_go_when_the_cache_is_full(host: Callable[..., Bucket]) -> None:
    write(host("another"), "models/a", "weights", bytes(10))
    write(host("another"), "models/b", "weights", bytes(20))
    write(host("another"), "models/c", "weights", bytes(30))
    one = host("one", limit=45)
    for folder in ("models/a", "models/b", "models/a", "models/c"):
        contents(one, folder)
        _older(one.cache.root)
    assert sorted(p.stat().st_size for p in one.cache.root.rglob("weights")) == [10, 30]
    assert contents(one, "models/b") == {"weights": bytes(20)}


def _older(root: Path) -> None:
    """As if an hour had passed."""
    for path in root.rglob("weights"):
        here = path.stat()
        os.utime(path, (here.st_atime - 3600, here.st_mtime))


def test_files_in_use_stay_and_only_they(host: Callable[..., Bucket]) -> None:
    for folder in ("models/a", "models/b"):
        write(host("another"), folder, "weights", bytes(10))
    one, same = host("one", limit=5), host("one", limit=5)
    with one.reading("models/a") as here:
        contents(same, "models/b")
        assert left(one.cache.root) == left(here) == ["weights"]
    assert left(one.cache.root) == []


def test_what_is_larger_than_the_cache_can_be_read_all_the_same(host: Callable[..., Bucket]) -> None:
    for name in "abc":
        write(host("another"), "spool/1", name, os.urandom(10))
    with host("one", limit=5).reading("spool/1") as here:
        opened = [(here / name).open("rb") for name in "abc"]
    assert left(here) == []
    assert [len(file.read()) for file in opened] == [10, 10, 10]
    for file in opened:
        file.close()
