"""`.<split>.build.json`: what an unfinished build has finished, so that the next start checks and skips these tars.

It only saves work. A tar that it does not name is made again and must come out the same.
"""

import json
import time
from dataclasses import dataclass, field

from shards import storage
from shards.errors import InputError
from shards.names import JOURNAL_SUFFIX
from shards.storage import shown

EVERY_S = 5.0


@dataclass
class Journal:
    """The finished tars (name -> sha256) of the build with fingerprint `built_from`, in the file `url`."""

    url: str
    built_from: str
    finished: dict[str, str] = field(default_factory=dict)
    _written_s: float = float("-inf")

    def add(self, name: str, sha256: str) -> None:
        """Note a finished tar; the file is written at most every EVERY_S seconds."""
        self.finished[name] = sha256
        if time.monotonic() - self._written_s >= EVERY_S:
            text = json.dumps({"built_from": self.built_from, "finished": self.finished}, sort_keys=True, indent=1)
            storage.write_atomic(self.url, text.encode())
            self._written_s = time.monotonic()

    def end(self) -> None:
        """The build is done: the index says all now."""
        storage.remove(self.url)


def open_journal(folder: str, split: str, built_from: str) -> Journal:
    """The journal of this build in `folder`, empty where there is none. InputError for one of another build."""
    url = storage.join(folder, f".{split}{JOURNAL_SUFFIX}")
    journal = Journal(url, built_from)
    if not storage.exists(url):
        return journal
    try:
        document = json.loads(storage.read_all(url))
        other = str(document["built_from"])
        finished = {str(name): str(sha256) for name, sha256 in document["finished"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise InputError(f"{shown(url)} is damaged ({type(exc).__name__}): take it away, then build again") from exc
    if other != built_from:
        raise InputError(
            f"{shown(folder)} holds the beginning of another build of split {split} (another source, seed, size of "
            f"shards or of pictures): go on with that one, name another folder, or take {shown(url)} and its tars away"
        )
    journal.finished = finished
    return journal
