"""The names in a shard set: `<split>-NNNNNN.tar`, `<split>.index.json`, `<split>.index.npy`, and patterns over tars."""

import re

from shards.errors import InputError
from shards.storage import check_name, parent, shown

INDEX_SUFFIX = ".index.json"
SIDECAR_SUFFIX = ".index.npy"
MAX_PATTERN_SHARDS = 1_000_000


def check_split(split: str) -> None:
    """InputError unless `split` can begin the file names of a shard set."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", split):
        raise InputError(f"the split name {split!r} cannot begin a file name: use letters, digits, '-' and '_'")


def expand(pattern: str) -> tuple[str, str, list[str]]:
    """(folder URL, split, tar names) of `.../train-{000000..000010}.tar` or of one tar.

    The split's name is what stands before the number. InputError where the pattern is not of that form.
    """
    folder, name = parent(pattern)
    if re.search(r"[{}]", folder):
        raise InputError(f"the pattern {shown(pattern)!r} has braces in its folder: only the number may vary")
    braces = re.fullmatch(r"([^{}]*)\{(\d+)\.\.(\d+)\}([^{}]*)", name)
    if braces:
        head, first, last, tail = braces.groups()
        count = int(last) - int(first) + 1
        if not 1 <= count <= MAX_PATTERN_SHARDS or len(first) > len(last):
            raise InputError(f"the pattern {shown(pattern)!r} counts from {first} to {last}: expected a rising range")
        names = [f"{head}{int(first) + i:0{len(first)}d}{tail}" for i in range(count)]
    else:
        names = [name]
    splits = {match.group(1) if (match := re.fullmatch(r"(.*?)[-_.]?\d+\.tar", n)) else "" for n in names}
    if len(splits) != 1 or splits == {""}:
        raise InputError(
            f"the pattern {shown(pattern)!r} does not name shards: expected a split's name, a number and .tar, such as "
            "train-{000000..000010}.tar"
        )
    split = splits.pop()
    check_split(split)
    for n in names:
        check_name(n)
    return folder, split, names
