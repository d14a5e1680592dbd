"""ILSVRC2012_devkit_t12.tar.gz: which class has which number and words, and the classes of the validation pictures."""

import re
from dataclasses import dataclass

from shards.errors import InputError
from shards.sources.archive import unpacked
from shards.sources.matlab import Record, read_structs
from shards.storage import shown

META, TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
WNID = r"n\d{8}"


@dataclass(frozen=True)
class Devkit:
    """`wnids` are the classes by sorted wnid, `ids` and `words` theirs in the devkit; `truth` is the devkit's id of
    validation picture 1, 2, ...
    """

    wnids: tuple[str, ...]
    ids: tuple[int, ...]
    words: tuple[str, ...]
    truth: tuple[int, ...]

    def validation_labels(self) -> list[int]:
        """The class, as place in `wnids`, of validation picture 1, 2, ..."""
        label = {ilsvrc_id: place for place, ilsvrc_id in enumerate(self.ids)}
        return [label[ilsvrc_id] for ilsvrc_id in self.truth]


def read_devkit(url: str) -> Devkit:
    """Read the devkit's archive. InputError where it is missing, of another shape, or contradicts itself."""
    files = _files(url)
    try:
        records = read_structs(files[META], "synsets")
        leaves = sorted(_leaf(record) for record in records if record["num_children"] == [0])
    except (KeyError, ValueError, TypeError, IndexError) as exc:
        raise _bad(url, f"has a {META} that cannot be read ({exc})") from exc
    if not leaves:
        raise _bad(url, f"has a {META} without classes")
    wnids, ids, words = zip(*leaves, strict=True)
    if len(set(wnids)) != len(wnids) or len(set(ids)) != len(ids):
        raise _bad(url, f"names a class twice in its {META}")
    lines = files[TRUTH].decode("ascii", "replace").split("\n")
    truth = [line.strip() for line in (lines[:-1] if not lines[-1].strip() else lines)]
    known = set(ids)
    for number, line in enumerate(truth, start=1):
        if not re.fullmatch(r"[0-9]{1,9}", line) or int(line) not in known:
            raise _bad(url, f"says {line!r} in line {number} of its {TRUTH}, which is the number of no class")
    return Devkit(wnids, ids, words, tuple(int(line) for line in truth))


def _files(url: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path, data in unpacked(url).items():
        found.update({name: data for name in (META, TRUTH) if f"/{path}".endswith(f"/{name}")})
    for name in (META, TRUTH):
        if name not in found:
            raise _bad(url, f"holds no {name}")
    return found


def _leaf(record: Record) -> tuple[str, int, str]:
    wnid, number, words = record["WNID"], record["ILSVRC2012_ID"], record["words"]
    if not (isinstance(wnid, str) and re.fullmatch(WNID, wnid) and isinstance(words, str)):
        raise ValueError(f"WNID {wnid!r}")
    if not (isinstance(number, list) and len(number) == 1 and number[0] == int(number[0]) > 0):
        raise ValueError(f"ILSVRC2012_ID {number!r} of {wnid}")
    return wnid, int(number[0]), words


def _bad(url: str, what: str) -> InputError:
    return InputError(f"the devkit {shown(url)} {what}: bring ILSVRC2012_devkit_t12.tar.gz as it was published")
