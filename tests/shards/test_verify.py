import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from shards.errors import InputError
from shards.index import ShardIndex, read_index
from shards.indexing import index_shards
from shards.verify import Finding, find_key, keys_of, verify
from tests.shards.pictures import members, write_tar
from tests.shards.test_index import lay

SHARDS, SAMPLES = 3, 5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    for shard in range(SHARDS):
        write_tar(folder / f"train-{shard}.tar", members(SAMPLES, first=SAMPLES * shard))
    index_shards(f"{folder}/train-{{0..{SHARDS - 1}}}.tar")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "set"))


def read(folder: Path) -> ShardIndex:
    return read_index(f"{folder}/train.index.json")


def short(picture: bytes) -> str | None:
    """Stands for a decoder."""
    return "too short" if len(picture) < 100 else None


def test_a_good_set_has_no_findings(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert verify(read(folder), short, progress=lambda *at: seen.append(at)) == []
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("workers", [1, 2])
def test_each_damage_is_found_where_it_is(folder: Path, workers: int) -> None:
    index = read(folder)
    rotten = folder / "train-0.tar"
    data = bytearray(rotten.read_bytes())
    data[int(index.samples["offset"][3]) + 50] ^= 1
    rotten.write_bytes(data)
    cut = folder / "train-2.tar"
    cut.write_bytes(cut.read_bytes()[:3000])
    findings = verify(index, short, workers)
    assert [(finding.shard, finding.key) for finding in findings] == [("train-0.tar", None)] * 2 + [
        ("train-2.tar", None)
    ]
    assert "other bytes" in findings[0].what
    assert findings[1].what == "is described wrongly by the index (crc)"
    assert "train-2.tar" in findings[2].what
    cut.unlink()
    assert "No such file" in verify(index, short, workers)[2].what or "missing" in verify(index, short, workers)[2].what


def test_other_samples_and_labels_are_found(folder: Path) -> None:
    write_tar(folder / "train-1.tar", members(SAMPLES, first=50))
    whats = {finding.what for finding in verify(read(folder))}
    assert any("other samples" in what for what in whats)
    index_shards(f"{folder}/train-{{0..2}}.tar")
    table = np.load(folder / "train.index.npy")
    table["label"][7] = (table["label"][7] + 1) % 5
    lay(folder, table)
    assert verify(read(folder)) == [Finding("train-1.tar", None, "is described wrongly by the index (label)")]


def test_a_picture_that_does_not_decode_is_named(folder: Path) -> None:
    content = [(name, b"\xff\xd8 torn" if name == "s0006.jpg" else body) for name, body in members(SAMPLES, first=5)]
    write_tar(folder / "train-1.tar", content)
    index_shards(f"{folder}/train-{{0..2}}.tar")
    assert verify(read(folder), short) == [Finding("train-1.tar", "s0006", "does not decode: too short")]
    assert verify(read(folder)) == []


def test_samples_are_found_by_their_keys(folder: Path) -> None:
    index = read(folder)
    assert list(keys_of(index, np.array([7, 2]))) == [(7, "s0007"), (2, "s0002")]
    assert find_key(index, "s0012") == 12
    assert find_key(index.select(["train-2.tar"]), "s0012") == 2
    with pytest.raises(InputError, match=r"there is no sample 's0012' in train-0\.tar"):
        find_key(index.select(["train-0.tar"]), "s0012")


# ---- Indexing: taken up again, several at a time --------------------------------------------------------------------


def test_workers_make_the_same_index(folder: Path, tmp_path: Path) -> None:
    index_shards(f"{folder}/train-{{0..2}}.tar", str(tmp_path / "two"), workers=2)
    index_shards(f"{folder}/train-{{0..2}}.tar", str(tmp_path / "one"))
    names = ["train.index.json", "train.index.npy"]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_broken_off_indexing_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shards import indexing

    scanned: list[str] = []
    real = indexing.scan_tar

    def scan(stream, name, shard, shown):  # noqa: ANN001, ANN202
        scanned.append(name)
        if name == "train-2.tar" and len(scanned) == 3:
            raise RuntimeError("killed here")
        return real(stream, name, shard, shown)

    monkeypatch.setattr(indexing, "scan_tar", scan)
    place = tmp_path / "index"
    with pytest.raises(RuntimeError):
        index_shards(f"{folder}/train-{{0..2}}.tar", str(place))
    assert not list(place.glob("*.index.*"))
    write_tar(folder / "train-1.tar", members(SAMPLES, first=SAMPLES))  # written anew meanwhile: looked at again
    (place / ".train.train-0.tar.scan").write_bytes((place / ".train.train-0.tar.scan").read_bytes())
    made = index_shards(f"{folder}/train-{{0..2}}.tar", str(place))
    assert scanned[3:] == ["train-1.tar", "train-2.tar"]
    assert made.digest == index_shards(f"{folder}/train-{{0..2}}.tar").digest
    assert np.array_equal(made.samples, read(folder).samples)
    assert sorted(path.name for path in place.iterdir()) == ["train.index.json", "train.index.npy"]


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"note": 1}', "samples", "keys", "row"])
def test_a_damaged_note_only_costs_work(folder: Path, tmp_path: Path, note: bytes | str) -> None:
    from shards import indexing

    place = tmp_path / "index"
    task = indexing._Task(str(folder), "train-0.tar", 0, str(place / ".train.train-0.tar.scan"))
    indexing._scan(task)
    path = place / ".train.train-0.tar.scan"
    if isinstance(note, str):
        document = json.loads(path.read_text())
        document[note] = document[note][1:] if note != "row" else {}
        note = json.dumps(document).encode()
    path.write_bytes(note)
    assert index_shards(f"{folder}/train-{{0..2}}.tar", str(place)).digest == read(folder).digest


@pytest.mark.parametrize(
    ("pattern", "split", "names"),
    [
        ("train-{0..2}.tar", "train", ["train-0.tar", "train-1.tar", "train-2.tar"]),
        (
            "imagenet1k-train-{0009..0010}.tar",
            "imagenet1k-train",
            ["imagenet1k-train-0009.tar", "imagenet1k-train-0010.tar"],
        ),
        ("train-0.tar::train-{3..4}.tar", "train", ["train-0.tar", "train-3.tar", "train-4.tar"]),
        ("train-{1,3}.tar", "train", ["train-1.tar", "train-3.tar"]),
        ("train-{0,1}{0..1}.tar", "train", ["train-00.tar", "train-01.tar", "train-10.tar", "train-11.tar"]),
        ("train-00000-of-00002.tar", "train", ["train-00000-of-00002.tar"]),
    ],
)
def test_patterns_name_tars(pattern: str, split: str, names: list[str]) -> None:
    from shards.names import expand

    whole = "::".join(f"s3://bucket/set/{one}" for one in pattern.split("::"))
    assert expand(whole) == ("s3://bucket/set", split, names)


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("a/t-0.tar::b/t-1.tar", "lies in one folder"),
        ("t-{0..3}.tar::t-2.tar", "twice"),
        ("a-0.tar::b-1.tar", "several splits"),
        ("t-{0..3.tar", "do not close"),
        ("t-{}.tar", "rising range"),
        ("t-{{0..1}}.tar", "do not close"),
        ("t-{0..999999}{0..999999}.tar", "more than"),
        ("pipe:cat::t-0.tar", "pipe:"),
        ("t-{0..1}.tar::", "empty"),
        ("t-{../../x,y}0.tar", "rising range|separator|braces"),
    ],
)
def test_patterns_that_name_no_set_are_refused(pattern: str, says: str) -> None:
    from shards.names import expand

    with pytest.raises(InputError, match=says):
        expand(pattern)


def test_a_list_of_tars_is_indexed_and_read(folder: Path) -> None:
    (folder / "train-1.tar").rename(folder / "extra-1.tar")
    (folder / "train.index.json").unlink()
    pattern = f"{folder}/train-0.tar::{folder}/extra-1.tar::{folder}/train-2.tar"
    made = index_shards(pattern, split="all")
    assert [row.name for row in made.shards] == ["train-0.tar", "extra-1.tar", "train-2.tar"]
    assert find_key(read_index(f"{folder}/all.index.json"), "s0008") == 8
    index_shards(f"{folder}/train-0.tar::{folder}/train-2.tar")
    assert len(read_index(f"{folder}/train-0.tar::{folder}/train-2.tar")) == 2 * SAMPLES
