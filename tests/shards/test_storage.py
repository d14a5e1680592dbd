import os
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from shards import storage
from shards.errors import InputError, StorageFault


@pytest.mark.parametrize(
    "url",
    ["", "pipe:cat /etc/passwd", "pipe://x", "simplecache::s3://a/b", "s3://a::file://b", "ssh://h/x", "sftp://h/x",
     "git://x", "data:,x", "file:/x", "PIPE:ls", "a\nb", "github://o:r@/x", "reference://x"],
)  # fmt: skip
def test_places_that_are_no_plain_storage_are_refused(url: str) -> None:
    with pytest.raises(InputError):
        storage.check_url(url)
    with pytest.raises(InputError):
        storage.read_all(url)
    with pytest.raises(InputError):
        storage.write_atomic(url, b"x")


@pytest.mark.parametrize("url", ["data/x", "/data/x", "./a:b", "file:///x", "s3://b/k", "https://h/x?a=b", "gs://b/k"])
def test_plain_places_are_taken(url: str) -> None:
    storage.check_url(url)


def test_a_refused_command_is_not_repeated_in_the_message() -> None:
    with pytest.raises(InputError) as error:
        storage.check_url("pipe:curl -H 'token: s3cret' http://x")
    assert "s3cret" not in str(error.value)


def test_shown_holds_no_secret() -> None:
    assert storage.shown("https://user:s3cret@host:80/a/b.tar?sig=s3cret#s3cret") == "https://host:80/a/b.tar"
    assert storage.shown("/a?b#c") == "/a?b#c"


@pytest.mark.parametrize("name", ["..", "a/b", "/a", "", "a\\b", "a\0b", "."])
def test_join_stays_in_the_folder(name: str) -> None:
    with pytest.raises(InputError):
        storage.join("s3://bucket/folder", name)
    assert storage.join("s3://bucket/folder/", "a.tar") == "s3://bucket/folder/a.tar"


def test_local_round_trip(tmp_path: Path) -> None:
    url = str(tmp_path / "deep" / "er" / "f")
    assert not storage.exists(url)
    storage.write_atomic(url, b"0123456789")
    assert storage.exists(url)
    assert storage.read_all(url) == storage.read_all("file://" + url) == b"0123456789"
    assert storage.read_range(url, 3, 4) == b"3456"
    assert storage.size_bytes(url) == 10
    with storage.open_read(url) as stream:
        assert stream.read() == b"0123456789"
    assert os.listdir(tmp_path / "deep" / "er") == ["f"]


def test_short_and_missing_files_are_storage_faults(tmp_path: Path) -> None:
    url = str(tmp_path / "f")
    for read in (storage.read_all, storage.open_read, storage.size_bytes):
        with pytest.raises(StorageFault, match="missing"):
            read(url)
    storage.write_atomic(url, b"0123456789")
    with pytest.raises(StorageFault, match="gave 2 bytes from byte 8 where 4"):
        storage.read_range(url, 8, 4)


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"good")

    def half(file: BinaryIO) -> None:
        file.write(b"ha")
        raise RuntimeError("killed here")

    with pytest.raises(RuntimeError, match="killed here"):
        storage.write_atomic(str(path), half)
    assert path.read_bytes() == b"good"
    assert os.listdir(tmp_path) == ["f"]


def test_a_file_is_replaced_and_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old bytes")
    with path.open("rb") as reader:
        storage.write_atomic(str(path), b"new")
        assert reader.read() == b"old bytes"
    assert path.read_bytes() == b"new"


def test_a_place_that_is_no_folder_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(InputError, match="cannot write"):
        storage.write_atomic(str(tmp_path / "f" / "g"), b"x")


class Flaky:
    """A file system that fails `failures` times with `error`, then serves 10 bytes."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures, self.error, self.calls = failures, error, 0

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return b"0123456789"[start:end]

    def info(self, path: str) -> dict[str, Any]:
        return {"size": 10}


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(fs: Any) -> Any:
        monkeypatch.setattr(storage, "_file_system", lambda url: (fs, url))
        monkeypatch.setattr(storage, "RETRY_DELAYS_S", (0.0, 0.0))
        return fs

    return use


def test_transient_errors_are_tried_again(remote: Any) -> None:
    fs = remote(Flaky(2, ConnectionResetError("dropped")))
    assert storage.read_range("s3://b/k", 2, 3) == b"234"
    assert fs.calls == 3


def test_retries_are_bounded(remote: Any) -> None:
    fs = remote(Flaky(99, ConnectionResetError("dropped")))
    with pytest.raises(StorageFault, match=r"s3://b/k"):
        storage.read_range("s3://b/k", 2, 3)
    assert fs.calls == 3


def test_a_missing_object_is_not_tried_again(remote: Any) -> None:
    fs = remote(Flaky(99, FileNotFoundError("k")))
    with pytest.raises(StorageFault, match="missing"):
        storage.read_range("s3://b/k", 2, 3)
    assert fs.calls == 1


def test_a_short_answer_is_a_fault_and_tried_again(remote: Any) -> None:
    fs = remote(Flaky(0, ConnectionResetError()))
    with pytest.raises(StorageFault, match="gave 2 bytes from byte 8 where 5"):
        storage.read_range("s3://b/k", 8, 5)
    assert fs.calls == 3


def test_a_whole_file_that_came_short_or_wrong_is_asked_for_again(remote: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = remote(Flaky(0, OSError()))
    answers = [b"01234", b"0123456780", b"0123456789"]
    monkeypatch.setattr(fs, "cat_file", lambda path: answers.pop(0))

    def check(data: bytes) -> None:
        if not data.endswith(b"9"):
            raise StorageFault("others")

    assert storage.read_all("s3://b/k", check) == b"0123456789"
    answers += [b"01234"] * 3
    with pytest.raises(StorageFault, match="came with 5 of its 10 bytes"):
        storage.read_all("s3://b/k")


def test_nothing_is_written_to_a_web_server(tmp_path: Path) -> None:
    for url in ("http://h/set", "https://h/set"):
        with pytest.raises(InputError, match="nothing can be written to http"):
            storage.check_writable(url)
    storage.check_writable("s3://b/set")
    storage.check_writable(str(tmp_path))


def test_a_secret_in_the_url_does_not_reach_the_error(remote: Any) -> None:
    remote(Flaky(99, OSError("GET https://h/k?sig=s3cret")))
    with pytest.raises(StorageFault) as error:
        storage.read_all("https://h/k?sig=s3cret")
    assert "s3cret" not in str(error.value)
    assert error.value.__cause__ is None


def test_a_stream_goes_on_where_the_connection_broke(remote: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "STREAM_BLOCK_BYTES", 4)
    fs = remote(Flaky(1, ConnectionResetError("dropped")))
    with storage.open_read("s3://b/k") as stream:
        assert stream.read(3) + stream.read(3) + stream.read() == b"0123456789"
    assert fs.calls > 3


def test_memory_file_system_round_trip() -> None:
    url = "memory://storage-test/a/f"

    def whole(file: BinaryIO) -> None:
        file.write(b"0123456789")

    storage.write_atomic(url, whole)
    assert storage.exists(url)
    assert storage.read_all(url) == b"0123456789"
    assert storage.read_range(url, 3, 4) == b"3456"

    def half(file: BinaryIO) -> None:
        file.write(b"ha")
        raise RuntimeError("killed here")

    with pytest.raises(RuntimeError):
        storage.write_atomic(url, half)
    assert storage.read_all(url) == b"0123456789"


@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_version_changes_with_the_file_and_what_is_removed_is_gone(place: str, tmp_path: Path) -> None:
    url = f"{tmp_path}/f" if place == "local" else "memory://storage-test/versions/f"
    storage.write_atomic(url, b"one")
    first = storage.version(url)
    assert storage.version(url) == first
    storage.write_atomic(url, b"three")
    assert storage.version(url) != first
    storage.remove(url)
    assert not storage.exists(url)
    storage.remove(url)
    with pytest.raises(StorageFault, match="missing"):
        storage.version(url)


def test_bytes_that_are_not_the_right_ones_are_asked_for_again(remote: Any) -> None:
    fs = remote(Flaky(0, OSError()))
    seen: list[bytes] = []

    def check(data: bytes) -> None:
        seen.append(data)
        if len(seen) < 3:
            raise StorageFault("others")

    assert storage.read_range("s3://b/k", 2, 3, check) == b"234"
    assert fs.calls == 3
    with pytest.raises(StorageFault, match="for ever"):
        storage.read_range("s3://b/k", 2, 3, lambda data: (_ for _ in ()).throw(StorageFault("for ever")))


def test_a_download_comes_in_blocks_or_whole(remote: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "STREAM_BLOCK_BYTES", 4)
    fs = remote(Flaky(1, ConnectionResetError("dropped")))
    got: list[bytes] = []
    storage.download("s3://b/k", 10, got.append)
    assert got == [b"0123", b"4567", b"89"]
    assert fs.calls == 4
    with pytest.raises(StorageFault, match="gave 2 bytes from byte 8 where 4"):
        storage.download("s3://b/k", 12, got.append)
    monkeypatch.setattr(fs, "cat_file", lambda path, start, end: b"0123456789")  # no ranges
    got.clear()
    storage.download("s3://b/k", 10, got.append)
    assert got == [b"0123456789"]
    with pytest.raises(StorageFault, match="does not serve ranges"):
        storage.read_range("s3://b/k", 2, 3)


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_names_and_exclusive_creation(tmp_path: Path, where: str) -> None:
    root = str(tmp_path / "root") if where == "disk" else f"memory://names-{os.getpid()}"
    assert storage.names_in(root) == []
    assert storage.create(f"{root}/a", b"first")
    assert not storage.create(f"{root}/a", b"second")
    assert storage.read_all(f"{root}/a") == b"first"
    storage.write_atomic(f"{root}/folder/b", b"x")
    assert storage.names_in(root) == ["a", "folder"]
    assert storage.names_in(f"{root}/folder") == ["b"]
    assert storage.names_in(f"{root}/nothing") == []


def test_silence_is_no_empty_folder(remote: Any) -> None:
    """Nor a file that is not there: who lists a store in trouble must be told."""

    class Silent:
        def ls(self, path: str, detail: bool) -> list[str]:
            raise OSError(5, "Input/output error")

        def invalidate_cache(self) -> None:
            pass

    remote(Silent())
    with pytest.raises(StorageFault, match="could not be read"):
        storage.names_in("s3://bucket/x")
