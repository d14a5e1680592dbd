"""The training shards as the drill may spoil them: a folder of links beside the user's files, which stay untouched,
and a slow server of it.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from shards import storage
from shards.index import ShardIndex

BLOCK_BYTES = 1 << 16


class LinkedShards:
    """Links to the shards of a set on a local disk, and a copy of its index."""

    def __init__(self, index_url: str, index: ShardIndex, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.index = folder, index
        self.name = index_url.rpartition("/")[2]
        home = storage.local_path(index.folder)
        assert home is not None
        self._home = home.resolve()
        for file in (self.name, f"{index.split}.index.npy"):
            (folder / file).write_bytes((self._home / file).read_bytes())
        for row in index.shards:
            self.bring_back(row.name)

    @property
    def url(self) -> str:
        return str(self.folder / self.name)

    def take_away(self, shard: str) -> None:
        """From now on that shard's file is not there."""
        (self.folder / shard).unlink()

    def bring_back(self, shard: str) -> None:
        """It is there again."""
        link = self.folder / shard
        if not link.is_symlink():
            os.symlink(self._home / shard, link)


def can_be_linked(index_url: str, index: ShardIndex) -> bool:
    """Whether the set lies on a disk of this host, with an index of its own: not a pattern of tars."""
    home = storage.local_path(index.folder)
    return home is not None and index_url.endswith(".index.json") and (home / f"{index.split}.index.npy").is_file()


@contextmanager
def served(folder: Path, bytes_per_s: int) -> Iterator[str]:
    """The URL of a server of this folder, on this host only, that sends each file at such a pace."""
    handler = partial(_Slow, bytes_per_s, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


class _Slow(SimpleHTTPRequestHandler):
    def __init__(self, bytes_per_s: int, *args: Any, **named: Any) -> None:
        self._bytes_per_s = bytes_per_s
        super().__init__(*args, **named)

    def copyfile(self, source: Any, outputfile: Any) -> None:
        try:
            while block := source.read(BLOCK_BYTES):
                outputfile.write(block)
                time.sleep(len(block) / self._bytes_per_s)
        except (BrokenPipeError, ConnectionResetError):  # who asked was killed: that is what this is for
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the drill has its own lines."""
