"""What a check finds on one rank, and what the findings of all ranks come to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["ok", "warning", "FAIL"]
RISING: tuple[Level, ...] = ("ok", "warning", "FAIL")
MOST_NAMED = 3  # hosts, or troubles, in one line


@dataclass(frozen=True)
class Finding:
    """alike: what must have the same value on all ranks, by its name. do: what to do about it, where it is not ok."""

    level: Level
    found: str
    do: str = ""
    alike: Mapping[str, str] = field(default_factory=dict)


def from_json(value: Mapping[str, Any]) -> Finding:
    """What `vars` of a finding gave, sent as JSON."""
    return Finding(value["level"], value["found"], value["do"], value["alike"])


def merged(answers: Mapping[int, tuple[str, Finding]], silent: list[int], remedy: str) -> Finding:
    """One finding of (host, finding) by rank. silent: ranks that gave none. remedy: for values that are not alike."""
    differing, troubles = _differing(answers), [f"rank {rank} gave no answer" for rank in silent]
    levels = [finding.level for _, finding in answers.values()] or ["FAIL"]
    level: Level = max(levels, key=RISING.index)
    chosen = [(host, finding) for _, (host, finding) in sorted(answers.items()) if finding.level == level]
    if level == "ok" and not differing and not troubles:
        return Finding("ok", chosen[0][1].found)
    if not differing and not troubles:
        do = next((finding.do for _, finding in chosen if finding.do), "")
        return Finding(level, _listed(_by_host(chosen, len(answers))), do)
    failed = _by_host(chosen, len(answers)) if level == "FAIL" else []
    do = remedy if differing else "look whether its host is up, and at its log"
    return Finding("FAIL", _listed([*troubles, *differing, *failed]), do)


def _by_host(chosen: list[tuple[str, Finding]], answers: int) -> list[str]:
    """What was found, with the hosts in front where it is not the same on all ranks that answered."""
    hosts: dict[str, list[str]] = {}
    for host, finding in chosen:
        if host not in hosts.setdefault(finding.found, []):
            hosts[finding.found].append(host)
    if len(hosts) == 1 and len(chosen) == answers:
        return list(hosts)
    return [f"{_named(names)}: {found}" for found, names in hosts.items()]


def _differing(answers: Mapping[int, tuple[str, Finding]]) -> list[str]:
    """A sentence for each value that is not the same on all ranks that have it."""
    told = []
    for name in dict.fromkeys(name for _, finding in answers.values() for name in finding.alike):
        hosts: dict[str, list[str]] = {}
        for rank, (host, finding) in sorted(answers.items()):
            if name in finding.alike:
                hosts.setdefault(finding.alike[name], []).append(f"{host} (rank {rank})")
        if len(hosts) > 1:
            told.append(f"{name} is " + " and ".join(f"{value} on {_named(names)}" for value, names in hosts.items()))
    return told


def _named(hosts: list[str]) -> str:
    more = len(hosts) - MOST_NAMED
    return ", ".join(hosts[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _listed(troubles: list[str]) -> str:
    more = len(troubles) - MOST_NAMED
    return "; ".join(troubles[:MOST_NAMED]) + (f"; and {more} more like it" if more > 0 else "")
