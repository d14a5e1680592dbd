"""Files that the deepspeed launcher reads, too: the hostfile, and settings for every host."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from shards.errors import InputError

SETTINGS_FILE = ".deepspeed_env"


@dataclass(frozen=True)
class Host:
    """name: as ssh takes it, with a user perhaps. slots: ranks there."""

    name: str
    slots: int


def read_hostfile(path: Path) -> list[Host]:
    """The hosts in order. Raises InputError for what is no `name slots=N`, a host named twice, or a file of none."""
    hosts = []
    for number, line in enumerate(_lines(path, "hostfile"), start=1):
        if not line:
            continue
        found = re.fullmatch(r"([\w.][\w.@-]*)\s+slots=([1-9]\d*)", line, re.ASCII)
        if found is None:
            raise InputError(f"hostfile {path}, line {number} is {line!r}, expected a host such as: worker-1 slots=8")
        hosts.append(Host(found[1], int(found[2])))
    if not hosts:
        raise InputError(f"hostfile {path} names no host, expected lines such as: worker-1 slots=8")
    (name, times), *_ = Counter(host.name for host in hosts).most_common(1)
    if times > 1:
        raise InputError(f"hostfile {path} names {name} {times} times, expected each host once: add up its slots")
    return hosts


def read_settings(folders: list[Path]) -> list[str]:
    """`KEY=VALUE` of the first .deepspeed_env in the folders; none where there is none. Raises InputError."""
    path = next((folder / SETTINGS_FILE for folder in folders if (folder / SETTINGS_FILE).is_file()), None)
    if path is None:
        return []
    settings = []
    for number, line in enumerate(_lines(path, "settings file"), start=1):
        if line and re.match(r"[A-Za-z_]\w*=", line, re.ASCII) is None:  # what it is may be a secret: not repeated
            raise InputError(f"{path}, line {number} is no setting, expected KEY=VALUE")
        settings += [line] if line else []
    return settings


def _lines(path: Path, what: str) -> list[str]:
    """Lines without comments, of which some are empty."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{what} {path} cannot be read: {getattr(error, 'strerror', 'it is no text')}") from error
    return [re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()]
