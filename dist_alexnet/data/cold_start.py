"""What a person is told while a run waits for the first shards to come into the node's cache."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from shards.cache import ShardCache
from shards.index import ShardRow

EVERY_S = 5.0

Say = Callable[[str], None]


@contextmanager
def said(cache: ShardCache, rows: Sequence[ShardRow], say: Say) -> Iterator[None]:
    """While the block lasts, and not all of `rows` are there: a line every EVERY_S, out of another thread.

    It looks at the cache's folder, so whoever fetches them is told of, in whatever process.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(cache, rows, say, ended), name="cold-start", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(cache: ShardCache, rows: Sequence[ShardRow], say: Say, ended: threading.Event) -> None:
    begin_s, before = time.monotonic(), cache.come_bytes(rows)
    while not ended.wait(EVERY_S):
        left = [row for row in rows if not cache.holds(row)]
        if left:
            speed = (cache.come_bytes(rows) - before) / (time.monotonic() - begin_s)
            say(
                f"fetching shard {len(rows) - len(left) + 1} of {len(rows)} for the first batch into the cache "
                f"{cache.folder}, {speed / 1e6:.1f} MB/s"
            )
