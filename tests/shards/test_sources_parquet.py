import sys
from pathlib import Path

import pytest

from shards.build import build_shards
from shards.errors import InputError
from shards.reader import ShardReader
from shards.sources.parquet import ParquetSource
from tests.shards.archives import parquet_file
from tests.shards.pictures import jpeg

NAMES = ("tench, Tinca tinca", "goldfish", "kit fox")


def rows(first: int, count: int) -> list[tuple[bytes | None, str | None, int]]:
    return [(jpeg(i), f"n01440764_{i}_n01440764.JPEG", i % 3) for i in range(first, first + count)]


def source(folder: Path) -> ParquetSource:
    spool = folder / "spool"
    spool.mkdir(exist_ok=True)
    return ParquetSource(str(folder / "imagenet-1k"), str(spool))


def test_the_hubs_layout(tmp_path: Path) -> None:
    data = tmp_path / "imagenet-1k" / "data"
    for number, first in enumerate((0, 5)):
        parquet_file(data / f"train-{number:05d}-of-00002.parquet", rows(first, 5), NAMES)
    parquet_file(data / "validation-00000-of-00001.parquet", [(jpeg(1), None, 2), (jpeg(2), None, 0)], NAMES)
    parquet_file(data / "test-00000-of-00001.parquet", [(jpeg(1), None, -1)], NAMES)
    index = build_shards(source(tmp_path), "train", str(tmp_path / "set"), samples_per_shard=4)
    assert index.classes == NAMES
    found = {raw.key: (raw.label, raw.jpeg) for raw in ShardReader(index).read(range(10))}
    assert found == {f"n01440764_{i}_n01440764": (i % 3, jpeg(i)) for i in range(10)}
    val = source(tmp_path).samples("val")
    assert [(s.key, s.label, s.load()) for s in val] == [("val-00000000", 2, jpeg(1)), ("val-00000001", 0, jpeg(2))]


def test_without_class_names_labels_name_themselves(tmp_path: Path) -> None:
    parquet_file(tmp_path / "imagenet-1k" / "train-0.parquet", rows(0, 5), None)
    parquet_file(tmp_path / "imagenet-1k" / "val-0.parquet", [(jpeg(1), None, 4)], None)
    assert source(tmp_path).classes == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([(jpeg(1), "a.JPEG", -1)], "has the label -1"),
        ([(jpeg(1), "a.JPEG", 3)], "'a' has class 3"),
        ([(None, "a.JPEG", 1)], "has no bytes in image of row 0"),
        ([(jpeg(1), "a.JPEG", 1), (jpeg(2), "b/a.png", 1)], "'a' comes twice"),
    ],
)
def test_rows_that_are_no_samples_are_refused(
    tmp_path: Path, content: list[tuple[bytes | None, str | None, int]], says: str
) -> None:
    parquet_file(tmp_path / "imagenet-1k" / "train-0.parquet", content, NAMES)
    with pytest.raises(InputError, match=says):
        build_shards(source(tmp_path), "train", str(tmp_path / "set"))
    assert not (tmp_path / "set").exists()


def test_files_of_another_layout_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    with pytest.raises(InputError, match="is no local folder"):
        source(tmp_path).samples("train")
    folder = tmp_path / "imagenet-1k"
    folder.mkdir()
    with pytest.raises(InputError, match=r"holds no validation-\*\.parquet"):
        source(tmp_path).samples("val")
    parquet.write_table(pa.table({"jpg": [b"x"], "cls": [1]}), folder / "train-0.parquet")
    with pytest.raises(InputError, match="has the columns jpg, cls: expected image"):
        source(tmp_path).samples("train")
    parquet.write_table(pa.table({"image": [b"x"], "label": [1]}), folder / "train-0.parquet")
    with pytest.raises(InputError, match="expected image"):
        source(tmp_path).samples("train")
    whole = parquet_file(folder / "train-0.parquet", rows(0, 5), NAMES).read_bytes()
    for data in (b"", b"no parquet", whole[:-10], whole[100:]):
        (folder / "train-0.parquet").write_bytes(data)
        with pytest.raises(InputError, match="is damaged or no parquet file"):
            source(tmp_path).samples("train")


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imagenet-1k").mkdir()
    (tmp_path / "imagenet-1k" / "train-0.parquet").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"pip install 'dist-alexnet\[parquet\]'"):
        source(tmp_path).samples("train")
