"""Checkpoints in an object store, over the S3 protocol (moto's server, s3fs), with the store going away in between."""

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_alexnet.__main__ import run as run_command
from dist_alexnet.checkpoint import store
from dist_alexnet.checkpoint.commit import COMMIT
from dist_alexnet.checkpoint.finding import committed_in, resolve
from dist_alexnet.checkpoint.place import Place
from dist_alexnet.checkpoint.pruning import prune
from dist_alexnet.checkpoint.saver import Saver
from dist_alexnet.config import Checkpoint, Config, config_from
from dist_alexnet.errors import CheckpointError, RunFolderError
from dist_alexnet.parallel.mesh import Mesh
from dist_alexnet.run_folder import claim, take_generation
from shards import storage
from shards.errors import InputError, StorageFault
from tests.checkpoint.states import empty, fragments, held, save
from tests.ranks.pool import RankPool
from tests.servers.s3 import MISSING, WHY, Store, forget_clients

pytestmark = pytest.mark.skipif(bool(MISSING), reason=WHY)


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    server = Store()
    yield server
    server.stop()


@pytest.fixture
def place(server: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A fresh bucket's folder."""
    import s3fs

    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage, "REQUEST_S", 5.0)
    forget_clients()
    bucket = f"b-{uuid.uuid4().hex[:8]}"
    s3fs.S3FileSystem().mkdir(bucket)
    yield Place.at(f"s3://{bucket}/runs/x")
    forget_clients()


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = run_command(["checkpoint", *words])
    told = capsys.readouterr()
    return code, told.out + told.err


def flip(place: Place) -> None:
    data = bytearray(place.read())
    data[len(data) // 2] ^= 1
    storage.write_atomic(place.url, bytes(data))


def test_what_is_saved_is_found(alone: Mesh, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert store.newest_good(place) == (None, [])
    for step in (5, 10, 15):
        folder = save(place, step, generation=2)
    assert str(folder) == f"{place}/step-00000015/g0002"
    assert storage.read_all(f"{place.url}/latest") == b"step-00000015/g0002\n"
    found, passed = store.newest_good(place)
    assert (held(found), passed) == (15, [])
    for given in (place.url, f"{place.url}/step-00000015", folder.url, f"{place.url}/"):
        assert held(store.find(given)[0]) == 15
    code, told = command(capsys, "ls", place.url)
    assert (code, [line.split("  ")[0] for line in told.splitlines()]) == (0, ["step 15", "step 10", "step 5"])
    with pytest.raises(StorageFault, match="is committed already"):
        save(place, 15, generation=2)
    assert held(store.newest_good(place)[0]) == 15


def test_damage_is_found_and_passed_over(alone: Mesh, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """In each file of a checkpoint; a COMMIT that is gone makes it none."""
    save(place, 5)
    names = sorted(save(place, 10).names())
    for number, name in enumerate(names):
        flip(save(place, 20 + number) / name)
    code, told = command(capsys, "verify", place.url)
    lines = told.splitlines()
    assert (code, [line.split()[0] for line in lines]) == (2, ["damaged"] * 3 + ["good"] * 2 + ["error:"])
    assert all(name in line for name, line in zip(reversed(names), lines, strict=False))
    found, passed = store.newest_good(place)
    assert (held(found), len(passed)) == (10, 3)
    code, told = command(capsys, "prune", place.url, "--keep", "1")
    assert (code, told) == (0, "removed 1 steps: 5\n")
    assert held(store.newest_good(place)[0]) == 10
    storage.remove((place / "step-00000010" / "g0001" / COMMIT).url)
    with pytest.raises(CheckpointError, match=r"no checkpoint of s3://.* is whole"):
        store.newest_good(place)


def test_old_ones_go_and_nothing_is_left_of_them(alone: Mesh, place: Place) -> None:
    for step in (5, 10, 15, 20):
        save(place, step)
    assert prune(place, 2, 20, spared=5) == [10]
    assert [folder.parent.name for folder in committed_in(place)] == [f"step-000000{n}" for n in ("20", "15", "05")]
    assert "step-00000010" not in place.names()


def test_no_answer_is_no_empty_store(
    alone: Mesh, server: Store, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run must not begin anew because its checkpoints cannot be listed just now."""
    save(place, 5)
    found, _ = store.newest_good(place)
    assert found is not None
    server.stop()
    try:
        for ask in (store.newest_good, store.find, resolve):
            with pytest.raises(StorageFault, match=r"s3://.* could not be read or written \(.*tries in"):
                ask(place)  # type: ignore[operator]
        with pytest.raises(StorageFault, match="could not be read"):
            store.load(found, empty(fragments()))
        with pytest.raises(StorageFault, match="could not be read"):
            claim(config(place.url, tmp_path), {}, "auto")
        code, told = command(capsys, "ls", place.url)
        assert (code, told.count("\n")) == (1, 1)
    finally:
        server.start()
    assert held(store.newest_good(place)[0]) == 5


def test_without_credentials(
    alone: Mesh, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    forget_clients()
    with pytest.raises(StorageFault, match=r"no credentials were found.*1 try"):
        store.newest_good(place)
    code, told = command(capsys, "ls", place.url)
    assert (code, told.count("\n")) == (1, 1)
    assert told.startswith("error: s3://")


def test_a_store_that_is_down_during_a_save_costs_that_save(alone: Mesh, server: Store, place: Place) -> None:
    """The last good one stands, one line says it, and the next save works."""
    saver = Saver(Path("unused"), Checkpoint(url=place.url, keep=2, max_failures=1))
    facts: dict[str, Any] = {"generation": 1, "layout": {}, "versions": {}, "state": {}}
    saver.save(fragments(5), step=5, **facts)
    saver.wait()
    server.stop()
    try:
        saver.save(fragments(10), step=10, **facts)  # comes back at once: training goes on meanwhile
        saver.wait()
        (news,) = saver.news()
    finally:
        server.start()
    assert re.match(r"the save of step 10 failed, the last good one stands: s3://.*/step-00000010", news)
    assert "\n" not in news
    found, passed = store.newest_good(place)
    assert (held(found), passed) == (5, [])
    saver.save(fragments(15), step=15, **facts)
    saver.finish()
    assert saver.news() == []
    assert held(store.newest_good(place)[0]) == 15


def config(url: str | None, runs: Path, name: str = "x") -> Config:
    return config_from({"run": {"name": name, "dir": str(runs)}, "checkpoint": {"url": url}}, "the test")


def test_a_place_is_of_one_run(place: Place, tmp_path: Path) -> None:
    """Of one name and identity; on another machine, with a run folder of its own, that run goes on."""
    ours = {"run.seed": 0}
    claim(config(place.url, tmp_path / "a"), ours, "auto")
    assert take_generation(config(place.url, tmp_path / "a")) == 1
    with pytest.raises(RunFolderError, match=r"checkpoint\.url\) is of the run 'x', this is 'y'"):
        claim(config(place.url, tmp_path / "b", "y"), ours, "auto")
    with pytest.raises(RunFolderError, match=r"checkpoint\.url\) is of a run with run\.seed = 0, this config has 1"):
        claim(config(place.url, tmp_path / "c"), {"run.seed": 1}, "auto")
    with pytest.raises(RunFolderError, match=r"holds a run already and --resume is never"):
        claim(config(place.url, tmp_path / "d"), ours, "never")
    elsewhere = config(place.url, tmp_path / "elsewhere")
    claim(elsewhere, ours, "auto")
    assert [take_generation(one) for one in (elsewhere, config(place.url, tmp_path / "a"), elsewhere)] == [2, 3, 4]


def test_a_run_is_not_begun_anew_elsewhere(place: Place, tmp_path: Path) -> None:
    here, there = config(None, tmp_path), config(place.url, tmp_path)
    claim(here, {}, "auto")
    take_generation(here)
    with pytest.raises(RunFolderError, match=r"has its checkpoints in .*/checkpoints, checkpoint\.url is s3://"):
        claim(there, {}, "auto")
    claim(there, {}, str(tmp_path / "x" / "checkpoints"))  # --resume says where from
    claim(there, {}, "auto")
    with pytest.raises(RunFolderError, match=r"has its checkpoints in s3://.*, checkpoint\.url is not set"):
        claim(here, {}, "auto")
    storage.remove((place / "run.json").url)
    with pytest.raises(RunFolderError, match=r"has lost run\.json"):
        claim(there, {}, "auto")


def test_a_bucket_that_is_not_there_is_said_before_training(place: Place, tmp_path: Path) -> None:
    with pytest.raises(StorageFault, match=r"s3://nowhere-at-all/x/run\.json is missing"):
        claim(config("s3://nowhere-at-all/x", tmp_path), {}, "auto")


@pytest.mark.parametrize(
    "url", ["https://host/x", "s3://user:s3cret@bucket/x", "s3://bucket/x?token=s3cret", "memory://x", "pipe:s3cret"]
)
def test_places_that_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"checkpoint\.url") as caught:
        config(url, tmp_path)
    assert "s3cret" not in str(caught.value)


def _saved_by_two(url: str) -> None:
    save(Place.at(url), 5)


def test_two_ranks_write_one_object_each(alone: Mesh, place: Place, tmp_path: Path) -> None:
    with RankPool(2, tmp_path) as pool:
        pool.ask(_saved_by_two, place.url)
    found, _ = store.newest_good(place)
    assert held(found) == 5
    assert found is not None
    assert sorted(found.folder.names()) == sorted(["COMMIT", "__0_0.distcp", "__1_0.distcp", "contents.json"])
    assert json.loads((found.folder / COMMIT).read())["layout"] == {"data": 2}
