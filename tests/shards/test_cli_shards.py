"""The commands over shard sets, as they are typed."""

from pathlib import Path

import pytest

from dist_alexnet.__main__ import run
from shards.index import read_index
from shards.indexing import index_shards
from tests.shards.pictures import jpeg, members, write_tar


@pytest.fixture
def index(tmp_path: Path) -> str:
    for shard in range(3):
        write_tar(tmp_path / f"train-{shard}.tar", members(8, first=8 * shard))
    index_shards(f"{tmp_path}/train-{{0..2}}.tar")
    return f"{tmp_path}/train.index.json"


def test_verify_names_what_is_wrong_and_repairs_an_index(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    verify = ["shards", "verify", index, "--workers", "1"]
    assert run(verify) == 0
    assert capsys.readouterr().out == "train: 3 of 3 shards are right\n"
    path = Path(index).parent / "train-1.tar"
    write_tar(path, [(name, b"\xff\xd8 torn" if name == "s0011.jpg" else body) for name, body in members(9, first=8)])
    assert run(verify) == 1
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith("train-1.tar s0011: does not decode") for line in said)
    assert "train-1.tar: holds other samples than the index says (9, expected 8)" in said
    assert said[-1] == "train: 2 of 3 shards are right"
    first = Path(index).read_bytes()
    assert run([*verify, "--repair"]) == 2  # it may have rotted: the index is all that knows the right bytes
    assert "train-1.tar has changed, and its picture 's0011' does not decode" in capsys.readouterr().err
    assert Path(index).read_bytes() == first
    write_tar(path, members(9, first=8 + 100))  # a whole tar: the index can be made to fit it
    assert run([*verify, "--repair"]) == 0
    assert "the set is another one now" in capsys.readouterr().out
    assert len(read_index(index)) == 25
    assert run(verify) == 0
    before = Path(index).read_bytes()
    path.write_bytes(path.read_bytes()[:2000])  # a cut one, and the index is as it was
    capsys.readouterr()
    assert run([*verify, "--repair"]) == 2
    assert "train-1.tar" in capsys.readouterr().err
    assert Path(index).read_bytes() == before


def test_a_repair_that_cannot_be_written_is_refused_before_anything_is_read(
    index: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, says in (
        (f"{Path(index).parent}/train-{{2..0}}.tar", "names some of its tars"),
        ("http://127.0.0.1:9/set/train.index.json", "nothing can be written"),
    ):
        assert run(["shards", "verify", place, "--repair"]) == 2
        assert says in capsys.readouterr().err


def test_ls_and_cat(index: str, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(["shards", "ls", index, "--class", "3"]) == 0
    lines = capfdbinary.readouterr().out.decode().splitlines()
    assert [line.split("\t")[:3] for line in lines] == [
        [str(i), f"s{i:04d}", "3"] for i in range(24) if i % 5 == 3
    ]  # fmt: skip
    assert lines[1].split("\t")[3:] == [str(len(jpeg(8))), "train-1.tar"]
    assert run(["shards", "ls", index, "--shard", "train-2.tar"]) == 0
    assert len(capfdbinary.readouterr().out.splitlines()) == 8
    assert run(["shards", "cat", index, "s0013"]) == 0
    assert capfdbinary.readouterr().out == jpeg(13)
    to = tmp_path / "out" / "picture.jpg"
    assert run(["shards", "cat", index, "s0020", "--to", str(to), "--shard", "train-2.tar"]) == 0
    assert to.read_bytes() == jpeg(20)
    assert run(["shards", "cat", index, "nobody"]) == 2
    assert b"there is no sample 'nobody'" in capfdbinary.readouterr().err


def test_info_says_what_an_order_gives(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    info = ["shards", "info", index, "--order", "--batch-size", "4", "--window", "1"]
    assert run([*info, "--nodes", "2"]) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert said["order"].startswith("batch 4, 4 lanes, windows of 1 shards")
    assert {"classes", "evenness", "neighbours", "together", "a", "cache"} <= said.keys()
    assert "of 2 reads" in said["a"]
    for more, what in (["--nodes", "3"], "3 nodes"), (["--lanes", "3"], "--lanes is 3"), (["--batch-size", "99"], "24"):
        assert run([*info, *more]) == 2
        assert what in capsys.readouterr().err
