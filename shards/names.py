"""The names in a shard set: `<split>-NNNNNN.tar`, `<split>.index.json`, `<split>.index.npy`, and patterns over tars."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import product

from shards.errors import InputError
from shards.storage import check_name, parent, shown

INDEX_SUFFIX = ".index.json"
SIDECAR_SUFFIX = ".index.npy"
JOURNAL_SUFFIX = ".build.json"
LOCK_SUFFIX = ".build.lock"
MAX_PATTERN_SHARDS = 1_000_000


def check_split(split: str) -> None:
    """InputError unless `split` can begin the file names of a shard set."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", split):
        raise InputError(f"the split name {split!r} cannot begin a file name: use letters, digits, '-' and '_'")


def expand(pattern: str, split: str | None = None) -> tuple[str, str, list[str]]:
    """(folder URL, split, tar names) of `.../train-{000000..000010}.tar`, of one tar, or of such joined by `::`.

    Braces hold a rising range or words with commas between them, and stand in the file name only. The split's name is
    what stands before the number (`imagenet1k-train-{0000..1023}.tar`, `train-00000-of-00100.tar`), unless `split`
    says. InputError where the pattern is not of that form, or names a tar twice or tars in several folders.
    """
    folders, names = [], []
    for one in pattern.split("::"):
        folder, name = parent(one)
        if re.search(r"[{}]", folder):
            raise InputError(f"the pattern {shown(one)!r} has braces in its folder: only the file name may vary")
        folders.append(folder)
        names += _braces(name, one)
    others = [folder for folder in folders if folder != folders[0]]
    if others:
        raise InputError(
            f"the pattern names tars in {shown(folders[0])} and in {shown(others[0])}: a shard set lies in one folder, "
            "so index each apart, or put them together"
        )
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise InputError(f"the pattern names {twice} twice: name each tar once")
    for name in names:
        check_name(name)
    split = _split_of(names, pattern) if split is None else split
    check_split(split)
    return folders[0], split, names


def _split_of(names: list[str], pattern: str) -> str:
    stem = re.compile(r"(.*?)[-_.]?\d+(?:-of-\d+)?\.tar")
    splits = sorted({match.group(1) if (match := stem.fullmatch(name)) else "" for name in names})
    if "" in splits:
        raise InputError(
            f"the pattern {_shown(pattern)!r} does not name shards: expected a split's name, a number and .tar, such "
            "as train-{000000..000010}.tar"
        )
    if len(splits) > 1:
        raise InputError(
            f"the pattern {_shown(pattern)!r} names tars of several splits ({', '.join(splits[:3])}): index each "
            "apart, or say what they are together with --split"
        )
    return splits[0]


def _braces(name: str, pattern: str) -> list[str]:
    """All names that a name with braces stands for, in order."""
    pieces = re.split(r"\{([^{}]*)\}", name)
    if any(c in "{}" for piece in pieces[::2] for c in piece):
        raise InputError(f"the pattern {shown(pattern)!r} has braces that do not close: expected {{000000..000010}}")
    choices = [_choices(piece, pattern) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    if math.prod(map(len, choices)) > MAX_PATTERN_SHARDS:
        raise InputError(f"the pattern {shown(pattern)!r} names more than {MAX_PATTERN_SHARDS} tars: name fewer")
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(inside: str, pattern: str) -> Sequence[str]:
    if ".." not in inside and "," in inside:
        return inside.split(",")
    span = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", inside)
    first, last = span.groups() if span else ("1", "0")
    count = int(last) - int(first) + 1
    if not 1 <= count <= MAX_PATTERN_SHARDS or len(first) > len(last):
        raise InputError(
            f"the pattern {shown(pattern)!r} counts over {inside!r}: expected a rising range such as 00..10"
        )
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]


def _shown(pattern: str) -> str:
    return "::".join(shown(one) for one in pattern.split("::"))
