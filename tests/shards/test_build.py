import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.build import build_shards
from shards.errors import InputError, StorageFault
from shards.index import key_digest, read_index
from shards.indexing import index_shards
from shards.reader import ShardReader
from shards.storage import read_all
from tests.shards.pictures import NoiseSource, jpeg, members, special, write_tar

ROOT = Path(__file__).parents[2]


def sums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def through_webdataset(urls: list[str]) -> list[tuple[str, int, bytes]]:
    import webdataset as wds

    data = wds.WebDataset(urls, shardshuffle=False)
    return [(sample["__key__"], int(sample["cls"]), sample["jpg"]) for sample in data]


def test_build_reads_back_the_same_through_webdataset_and_reader(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    index = build_shards(
        NoiseSource(25), "train", str(tmp_path), samples_per_shard=10, progress=lambda *at: seen.append(at)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "train-000000.tar", "train-000001.tar", "train-000002.tar", "train.index.json", "train.index.npy",
    ]  # fmt: skip
    assert seen == [(10, 25), (20, 25), (25, 25)]
    assert (index.classes, index.num_classes) == (("ant", "bee", "cat"), 3)
    assert index.samples_per_shard.tolist() == [10, 10, 5]
    ours = [(raw.key, raw.label, raw.jpeg) for raw in ShardReader(index).read(range(25))]
    assert ours == through_webdataset([index.shard_url(shard) for shard in range(3)])
    assert sorted(ours) == [(f"noise-{i:03d}", i % 3, jpeg(i)) for i in range(25)]
    assert [key for key, _, _ in ours] != sorted(key for key, _, _ in ours)  # shuffled over the whole set
    assert index.keys_digest == sum(key_digest(key) for key, _, _ in ours) % 2**64
    for row in index.shards:
        data = (tmp_path / row.name).read_bytes()
        assert (row.bytes, row.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_build_is_byte_reproducible_and_depends_on_the_seed(tmp_path: Path) -> None:
    for folder, seed in (("a", 5), ("b", 5), ("c", 6)):
        if folder == "b":
            time.sleep(1.1)  # a time stamp in whole seconds would show
        build_shards(NoiseSource(12), "train", str(tmp_path / folder), samples_per_shard=5, seed=seed)
    assert sums(tmp_path / "a") == sums(tmp_path / "b")
    assert sums(tmp_path / "a")["train-000000.tar"] != sums(tmp_path / "c")["train-000000.tar"]


def test_building_again_is_harmless_and_another_build_is_refused(tmp_path: Path) -> None:
    build_shards(NoiseSource(12), "train", str(tmp_path), samples_per_shard=5)
    before = sums(tmp_path)
    again = NoiseSource(12)
    assert len(build_shards(again, "train", str(tmp_path), samples_per_shard=5)) == 12
    assert again.loads == 0
    for source, size, seed in ((NoiseSource(12), 5, 1), (NoiseSource(12), 6, 0), (NoiseSource(11), 5, 0)):
        with pytest.raises(InputError, match="already holds a split train"):
            build_shards(source, "train", str(tmp_path), samples_per_shard=size, seed=seed)
    assert sums(tmp_path) == before
    build_shards(NoiseSource(3), "val", str(tmp_path), samples_per_shard=5)  # another split beside it
    (tmp_path / "train-000001.tar").unlink()
    with pytest.raises(InputError, match=r"train-000001\.tar is not the"):
        build_shards(NoiseSource(12), "train", str(tmp_path), samples_per_shard=5)


def test_a_failed_build_leaves_no_half_tar_and_can_go_on(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed here"):
        build_shards(NoiseSource(12, fail_at=3), "train", str(tmp_path / "a"), samples_per_shard=3)
    build_shards(NoiseSource(12), "train", str(tmp_path / "whole"), samples_per_shard=3)
    left, whole = sums(tmp_path / "a"), sums(tmp_path / "whole")
    left.pop(".train.build.json", None)  # the journal, for the next start
    assert all(name.endswith(".tar") and whole[name] == value for name, value in left.items())
    assert len(left) < 4
    build_shards(NoiseSource(12), "train", str(tmp_path / "a"), samples_per_shard=3)
    assert sums(tmp_path / "a") == whole


BUILD_AND_STALL = """
import sys, time
from shards.build import build_shards
from tests.shards.pictures import NoiseSource
class Slow(NoiseSource):
    def _loader(self, i):
        load = super()._loader(i)
        def slow():
            if self.loads == 7:
                print("stalled", flush=True)
                time.sleep(60)
            return load()
        return slow
build_shards(Slow(12), "train", sys.argv[1], samples_per_shard=3)
"""


def test_a_killed_build_leaves_only_whole_tars(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    child = subprocess.Popen([sys.executable, "-c", BUILD_AND_STALL, str(folder)], stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdout is not None
    assert child.stdout.readline() == b"stalled\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert sorted(path.name for path in folder.glob("[!.]*")) == ["train-000000.tar", "train-000001.tar"]
    build_shards(NoiseSource(12), "train", str(folder), samples_per_shard=3)
    build_shards(NoiseSource(12), "train", str(tmp_path / "b"), samples_per_shard=3)
    assert {name: s for name, s in sums(folder).items() if not name.startswith(".")} == sums(tmp_path / "b")


def test_build_does_not_overwrite_a_tar_it_did_not_make(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-000001.tar", members(2))
    before = (tmp_path / "train-000001.tar").read_bytes()
    with pytest.raises(InputError, match=r"train-000001\.tar is there already"):
        build_shards(NoiseSource(12), "train", str(tmp_path), samples_per_shard=5)
    assert (tmp_path / "train-000001.tar").read_bytes() == before
    assert not (tmp_path / "train.index.json").exists()


@pytest.mark.parametrize(
    ("keys", "says"),
    [(["a", "a"], "twice"), (["a.b", "c"], "dot"), (["../a", "c"], "dot"), ([], "no samples"), (["", "c"], "key ''")],
)
def test_sources_with_bad_keys_are_refused(tmp_path: Path, keys: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        build_shards(NoiseSource(0, keys=keys), "train", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    for split, url, size in (("../x", str(tmp_path), 1), ("a", "pipe:cat", 1), ("a", str(tmp_path), 0)):
        with pytest.raises(InputError):
            build_shards(NoiseSource(3), split, url, samples_per_shard=size)


def test_long_and_foreign_keys(tmp_path: Path) -> None:
    keys = ["k" * 150, "schlüssel-ß-猫", "x" * 95, "y" * 96, "z" * 97]
    index = build_shards(NoiseSource(0, keys=keys), "train", str(tmp_path), samples_per_shard=5)
    ours = [(raw.key, raw.label, raw.jpeg) for raw in ShardReader(index).read(range(5))]
    assert {key for key, _, _ in ours} == set(keys)
    assert ours == through_webdataset([index.shard_url(0)])


def test_a_set_on_a_remote_store(tmp_path: Path) -> None:
    url = "memory://build-test/set"
    index = build_shards(NoiseSource(7), "train", url, samples_per_shard=4)
    local = build_shards(NoiseSource(7), "train", str(tmp_path), samples_per_shard=4)
    for name in ("train-000001.tar", "train.index.json", "train.index.npy"):
        assert read_all(f"{url}/{name}") == (tmp_path / name).read_bytes()
    got = [(raw.key, raw.jpeg) for raw in ShardReader(index).read([6, 0, 3])]
    assert got == [(raw.key, raw.jpeg) for raw in ShardReader(local).read([6, 0, 3])]
    build_shards(NoiseSource(7), "train", url, samples_per_shard=4)
    before = read_all(f"{url}/train.index.json")
    index_shards(f"{url}/train-{{000000..000001}}.tar")
    assert read_all(f"{url}/train.index.json") == before


# --- tars that others made ---


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tars_of_every_format_are_indexed(tmp_path: Path, tar_format: int) -> None:
    content = [
        (special("./n01/", tarfile.DIRTYPE), b""),
        ("README.txt", b"no sample"),
        ("./n01/a.JPEG", jpeg(0)), ("./n01/a.cls", b"7\n"), ("./n01/a.json", b"{}"), ("./n01/a.pyd", b"cos\nsystem\n"),
        ("__note__", b""), ("n.02/.hidden", b""),
        ("n.02/b.cls", b" 3"), ("n.02/b.seg.jpg", b"other picture"), ("n.02/b.jpg", jpeg(1)),
    ]  # fmt: skip
    if tar_format != tarfile.USTAR_FORMAT:
        content += [("d/" * 60 + "c" * 120 + ".jpg", jpeg(2)), ("d/" * 60 + "c" * 120 + ".cls", b"0")]
    write_tar(tmp_path / "v-0.tar", content, tar_format)
    index = index_shards(f"{tmp_path}/v-0.tar")
    raws = ShardReader(index).read(range(len(index)))
    expected = [("./n01/a", 7, jpeg(0)), ("n.02/b", 3, jpeg(1)), ("d/" * 60 + "c" * 120, 0, jpeg(2))]
    assert [(raw.key, raw.label, raw.jpeg) for raw in raws] == expected[: len(content) // 2 - 3]
    assert (index.split, index.num_classes, index.classes) == ("v", 8, None)


def test_tars_of_webdatasets_own_writer_are_indexed(tmp_path: Path) -> None:
    from webdataset import ShardWriter

    with ShardWriter(f"{tmp_path}/other-%04d.tar", maxcount=4, verbose=0) as writer:
        for i in range(10):
            writer.write({"__key__": f"dir/{i:03d}", "jpg": jpeg(i), "cls": i, "json": {"i": i}})
    index = index_shards(f"{tmp_path}/other-{{0000..0002}}.tar")
    ours = [(raw.key, raw.label, raw.jpeg) for raw in ShardReader(index).read(range(10))]
    assert ours == [(f"dir/{i:03d}", i, jpeg(i)) for i in range(10)]
    assert ours == through_webdataset([index.shard_url(shard) for shard in range(3)])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([("a.jpg", b"x")], r"'a' without its \.cls"),
        ([("a.cls", b"1")], r"'a' without its \.jpg"),
        ([("a.png", b"x"), ("a.cls", b"1")], r"without its \.jpg beside it \(there is: cls, png\)"),
        ([("a.webp", b"x"), ("a.json", b"1")], "'a' without"),
        ([("a.jpg", b"x"), ("b.jpg", b"x"), ("a.cls", b"1"), ("b.cls", b"1")], r"'a' without its \.cls"),
        ([("a.jpg", b"x"), ("a.cls", b"cat")], r"'a\.cls', whose content 'cat' is no class"),
        ([("a.jpg", b"x"), ("a.cls", b"-1")], "'-1' is no class"),
        ([("a.jpg", b"x"), ("a.cls", b"1.0")], "no class"),
        ([("a.jpg", b"x"), ("a.cls", b"")], "no class"),
        ([("a.jpg", b"x"), ("a.cls", "٣".encode())], "no class"),
        ([("a.jpg", b"x"), ("a.cls", b"2147483648")], "no class"),
        ([("a.jpg", b"x"), ("a.cls", b"1" * 100)], "no class"),
        ([("a.jpg", b"x"), ("a.jpg", b"y"), ("a.cls", b"1")], r"'a\.jpg', the second"),
        ([("a.jpg", b"x"), ("a.jpeg", b"y"), ("a.cls", b"1")], r"'a\.jpeg', the second"),
        ([*members(1), *members(2)], "key 's0000'"),
        ([*members(1), (special("l.jpg", tarfile.SYMTYPE, "/etc/passwd"), b"")], r"'l\.jpg', a link to '/etc/passwd'"),
        ([*members(1), (special("l.jpg", tarfile.LNKTYPE, "s0000.jpg"), b"")], "a link"),
        ([*members(1), (special("dev.jpg", tarfile.CHRTYPE), b"")], r"'dev\.jpg', which is no plain file"),
        ([*members(1), (special("pipe", tarfile.FIFOTYPE), b"")], "no plain file"),
        ([*members(1), ("/abs.jpg", b"x")], r"'/abs\.jpg', a name that leaves"),
        ([*members(1), ("a/../../b.jpg", b"x")], "a name that leaves"),
        ([("README.md", b"x")], "holds no sample"),
        ([], "no sample"),
    ],
)
def test_what_no_reader_should_follow_is_refused(tmp_path: Path, content: list[Any], says: str) -> None:
    write_tar(tmp_path / "train-000000.tar", content)
    with pytest.raises(InputError, match=says) as error:
        index_shards(f"{tmp_path}/train-000000.tar")
    assert "train-000000.tar" in str(error.value)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["train-000000.tar"]


def test_a_key_in_two_tars_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", members(2))
    write_tar(tmp_path / "train-1.tar", members(2, first=1))
    with pytest.raises(InputError, match=r"train-1\.tar holds the key 's0001', which train-0\.tar has"):
        index_shards(f"{tmp_path}/train-{{0..1}}.tar")


def header_offsets(path: Path) -> list[int]:
    with tarfile.open(path) as tar:
        return [member.offset for member in tar.getmembers()]


def test_every_cut_is_refused(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", members(20))
    data, headers = whole.read_bytes(), header_offsets(whole)
    end = headers[-1] + 1024
    # webdataset says nothing when the cut falls on or inside a header: 10 of 20 samples are gone in silence.
    cuts = {
        headers[20],
        headers[20] + 100,
        headers[21],
        headers[20] + 700,
        end - 1,
        end,
        end + 512,
        end + 1023,
        0,
        100,
        512,
    }
    cuts |= {random.Random(0).randrange(end) for _ in range(30)}
    path = tmp_path / "train-0.tar"
    path.write_bytes(data[: headers[20]])
    assert len(through_webdataset([str(path)])) == 10
    for cut in cuts:
        path.write_bytes(data[:cut])
        with pytest.raises(InputError, match=r"train-0\.tar"):
            index_shards(str(path))
    path.write_bytes(data[: end + 1024])
    assert len(index_shards(str(path))) == 20


def test_damaged_headers_and_appended_archives_are_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "train-0.tar", members(20))
    data, headers = path.read_bytes(), header_offsets(path)
    for patch in (bytes(512), random.Random(0).randbytes(512)):
        path.write_bytes(data[: headers[20]] + patch + data[headers[20] + 512 :])
        with pytest.raises(InputError, match="damaged header at byte"):
            index_shards(str(path))
    path.write_bytes(data + data)
    with pytest.raises(InputError, match="another archive behind it"):
        index_shards(str(path))
    path.write_bytes(b"\x1f\x8b" + random.Random(0).randbytes(5000))
    with pytest.raises(InputError, match="no plain tar"):
        index_shards(str(path))


def test_indexing_again_writes_nothing_and_keeps_class_names(tmp_path: Path) -> None:
    build_shards(NoiseSource(12), "train", str(tmp_path), samples_per_shard=5)
    pattern = f"{tmp_path}/train-{{000000..000002}}.tar"
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in tmp_path.iterdir()}
    assert index_shards(pattern).classes == ("ant", "bee", "cat")
    assert {path.name: (path.stat().st_ino, path.read_bytes()) for path in tmp_path.iterdir()} == before
    (tmp_path / "train.index.npy").write_bytes(b"garbage")
    with pytest.raises(InputError):
        read_index(pattern)
    index_shards(pattern)
    assert (tmp_path / "train.index.npy").read_bytes() == before["train.index.npy"][1]
    with pytest.raises(InputError, match=r"also lists train-000002\.tar"):
        index_shards(f"{tmp_path}/train-{{000000..000001}}.tar")


def test_a_changed_tar_is_indexed_anew(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "train-0.tar", members(4))
    first = index_shards(str(path))
    assert first.num_classes == 4
    write_tar(path, members(9))
    second = index_shards(str(path))
    assert (len(second), second.num_classes) == (9, 5)
    assert second.digest != first.digest
    assert len(read_index(str(path))) == 9


def test_a_missing_tar_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", members(1))
    with pytest.raises(InputError, match=r"there is no train-1\.tar"):
        index_shards(f"{tmp_path}/train-{{0..2}}.tar")
    assert os.listdir(tmp_path) == ["train-0.tar"]


def test_an_index_may_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "train-0.tar", members(3))
    monkeypatch.chdir(tmp_path)
    index_shards("tars/train-0.tar", to_url="indexes")
    assert os.listdir(tmp_path / "tars") == ["train-0.tar"]
    monkeypatch.chdir("/")
    index = read_index(f"{tmp_path}/indexes/train.index.json")
    assert ShardReader(index).read([1])[0].jpeg == jpeg(1)


def test_the_index_is_written_after_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "train-0.tar", members(3))
    written: list[str] = []
    from shards import storage

    def note(url: str, data: Any) -> None:
        written.append(Path(url).name)
        if url.endswith(".json"):
            raise StorageFault("killed here")

    monkeypatch.setattr(storage, "write_atomic", note)
    with pytest.raises(StorageFault):
        index_shards(f"{tmp_path}/train-0.tar")
    assert [name for name in written if ".index." in name] == ["train.index.npy", "train.index.json"]


def test_nothing_is_unpickled_or_run(tmp_path: Path) -> None:
    bomb = b"cos\nsystem\n(S'touch " + str(tmp_path / "hit").encode() + b"'\ntR."
    names = ("a.pyd", "a.pickle", "a.pth", "a.npy")
    write_tar(tmp_path / "train-0.tar", [*[(name, bomb) for name in names], ("a.jpg", bomb), ("a.cls", b"1")])
    raw = ShardReader(index_shards(f"{tmp_path}/train-0.tar")).read([0])[0]
    assert raw.jpeg == bomb
    assert not (tmp_path / "hit").exists()


def test_json_is_sorted_and_without_times(tmp_path: Path) -> None:
    build_shards(NoiseSource(4), "train", str(tmp_path))
    text = (tmp_path / "train.index.json").read_text()
    document = json.loads(text)
    assert text == json.dumps(document, sort_keys=True, indent=1) + "\n"
    assert set(document) == {
        "schema_version", "split", "classes", "num_classes", "built_from", "totals", "sidecar_sha256", "shards",
    }  # fmt: skip
    assert set(document["shards"][0]) == {"name", "bytes", "samples", "sha256", "keys_digest"}
    assert np.load(tmp_path / "train.index.npy", allow_pickle=False).shape == (4,)


def test_this_room_imports_without_torch_or_the_trainer(tmp_path: Path) -> None:
    code = (
        "import sys, shards.build, shards.reader, shards.sources.digits, shards.sources.folder\n"
        "print(sorted({'torch', 'webdataset', 'fsspec', 'dist_alexnet', 'mlxtend'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert found.strip() == "[]"
    shutil.rmtree(tmp_path)
