"""Two ranks that stand for two hosts: each seeded trouble is one FAIL or warning, named, and the others are ok.

One start of torchrun works through all cases: 15 to 30 s on 2 shared cores.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.doctor.conftest import write_set
from tests.ranks.harness import ROOT, environment, torchrun

Found = dict[str, dict[str, Any]]
DATA_CHECKS = ["config", "job", "shards"]


def case(
    name: str,
    *checks: str,
    trouble: str = "",
    argument: str = "",
    overrides: tuple[str, ...] = (),
    only_rank_1: tuple[str, ...] = (),
) -> dict[str, Any]:
    return {
        "name": name,
        "checks": list(checks),
        "trouble": trouble,
        "argument": argument,
        "overrides": list(overrides),
        "only_rank_1": list(only_rank_1),
    }


def all_cases(folder: Path, small_disk: Path) -> list[dict[str, Any]]:
    (folder / "elsewhere").mkdir()
    lock = folder / "extensions" / "py311_cpu" / "some_operator" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (0, 0))
    gap = write_set(folder / "gap")
    (gap / "train-2.tar").unlink()
    one, all_ = write_set(folder / "one", torn=1), write_set(folder / "all", torn=4)
    (folder / "file").touch()
    (folder / "foreign" / "examined").mkdir(parents=True)
    (folder / "foreign" / "examined" / "identity.json").write_text('{"run.seed": 77}')
    job = ("config", "job")
    return [
        case("sound"),
        case("versions", "config", "versions", trouble="other_numpy", argument="1.0"),
        case("config", "config", "job", "clock", only_rank_1=("run.seed=3",)),
        case("no config", "config", "job", "clock", only_rank_1=("run.sed=3",)),
        case("apart", *job, "run folder", trouble="other_folder", argument=str(folder / "elsewhere")),
        case("foreign", *job, "run folder", overrides=(f"run.dir={folder}/foreign",)),
        case("no folder", *job, "run folder", overrides=(f"run.dir={folder}/file/runs",)),
        case("missing", *DATA_CHECKS, overrides=(f"data.train={gap}/train.index.json",)),
        case(
            "one torn",
            *DATA_CHECKS,
            overrides=(f"data.train={one}/train.index.json", "data.bad_samples.max_fraction=0.05"),
        ),
        case("all torn", *DATA_CHECKS, overrides=(f"data.train={all_}/train.index.json",)),
        case("lock", "extension lock", trouble="lock", argument=str(folder / "extensions")),
        case("open files", *job, "open files", trouble="open_files", argument="60"),
        case("shared memory", *job, "shared memory", trouble="shared_memory", argument=str(small_disk)),
        case("disks", *job, "disks", overrides=(f"run.dir={small_disk}",)),
        case("memory", *job, "memory", trouble="little_memory", argument="100000000"),
        case("clock", "clock", trouble="clock", argument="20"),
        case("far clock", "clock", trouble="clock", argument="-900"),
        case("url", "config", "checkpoint url", overrides=(f"checkpoint.url={folder}/saved",)),
        case("bad url", "config", "checkpoint url", overrides=(f"checkpoint.url={folder}/file/saved",)),
        case("layout", *job, "memory", "clock", overrides=("parallel.replicas=3",)),
        case("breaks", "breaks", "behind"),
        case("hangs", "hangs", "behind"),
        case("silent", "behind", "clock", trouble="silent"),
    ]


@pytest.fixture(scope="module")
def findings(config: Path, small_disk: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bool, Found]]:
    """(passed, finding by check) by case; nothing is left behind in any folder."""
    folder = tmp_path_factory.mktemp("cases")
    cases = all_cases(folder, small_disk)
    listed = folder / "cases.json"
    listed.write_text(json.dumps(cases))
    (folder / "here").mkdir()
    before = {path for path in folder.rglob("*")} | {path for path in small_disk.rglob("*")}
    done = subprocess.run(
        torchrun(2, "-m", "tests.doctor.seeded", str(config), str(listed)),
        cwd=folder / "here",
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    results = {one["name"]: folder / f"{one['name']}.json" for one in cases}
    on_rank_1 = {one["name"]: folder / f"{one['name']}.passed" for one in cases if one["trouble"] != "silent"}
    after = {path for path in folder.rglob("*")} | {path for path in small_disk.rglob("*")}
    assert after - before == {*results.values(), *on_rank_1.values()}
    found = {name: json.loads(path.read_text()) for name, path in results.items()}
    for name, path in on_rank_1.items():
        assert path.read_text() == str(found[name]["passed"])
    return {name: (one["passed"], one["checks"]) for name, one in found.items()}


def test_a_sound_pair_of_hosts_passes_every_check(findings: dict[str, tuple[bool, Found]]) -> None:
    passed, found = findings["sound"]
    assert passed
    assert len(found) == 15
    assert {name: one["level"] for name, one in found.items()} == dict.fromkeys(found, "ok")
    assert "2 ranks on gloo: all-reduce of" in found["collectives"]["found"]
    assert "torch 2." in found["versions"]["found"]


@pytest.mark.parametrize(
    ("name", "check", "level", "words"),
    [
        ("versions", "versions", "FAIL", ["numpy is", "on host-0 (rank 0)", "and 1.0 on host-1 (rank 1)"]),
        ("config", "config", "FAIL", ["the config (sha256) is", "host-1"]),
        ("no config", "config", "FAIL", ["host-1", "unknown key run.sed"]),
        ("apart", "run folder", "FAIL", ["host-1: ", "is not the folder that rank 0 has"]),
        ("foreign", "run folder", "FAIL", ["is of a run with"]),
        ("no folder", "run folder", "FAIL", ["/file is a file"]),
        ("missing", "shards", "FAIL", ["train-2.tar"]),
        ("one torn", "shards", "warning", ["1 of 5 first pictures", "s0024"]),
        ("all torn", "shards", "FAIL", ["4 of 4 first pictures", "max_fraction"]),
        ("lock", "extension lock", "warning", ["host-1: ", "some_operator/lock"]),
        ("open files", "open files", "FAIL", ["host-1: 60 for a process"]),
        ("shared memory", "shared memory", "FAIL", ["host-1: ", "0 MB free"]),
        ("disks", "disks", "FAIL", ["0 MB", "4 checkpoints"]),
        ("memory", "memory", "FAIL", ["host-1: about", "of the 100 MB of this host"]),
        ("clock", "clock", "warning", ["host-1: the clock is 20.", "ahead of rank 0's"]),
        ("far clock", "clock", "FAIL", ["host-1: the clock is ", "behind rank 0's"]),
        ("bad url", "checkpoint url", "FAIL", ["/file is a file"]),
        ("layout", "job", "FAIL", ["world size is 2, expected a multiple of"]),
        ("breaks", "breaks", "FAIL", ["host-1: the check broke off: ZeroDivisionError: by the test"]),
        ("hangs", "hangs", "FAIL", ["host-1: no answer within 1 s"]),
        ("silent", "behind", "FAIL", ["rank 1 gave no answer"]),
    ],
)
def test_a_trouble_is_found_and_named(
    name: str, check: str, level: str, words: list[str], findings: dict[str, tuple[bool, Found]]
) -> None:
    passed, found = findings[name]
    assert passed == (level != "FAIL")
    assert found[check]["level"] == level
    for word in words:
        assert word in found[check]["found"]
    others = {one: finding["level"] for one, finding in found.items() if one != check}
    assert others == dict.fromkeys(others, "ok")


def test_what_needs_a_failed_check_is_left_out_and_the_rest_goes_on(findings: dict[str, tuple[bool, Found]]) -> None:
    assert list(findings["config"][1]) == ["config", "clock"]
    assert list(findings["layout"][1]) == ["config", "job", "clock"]
    assert list(findings["breaks"][1]) == ["breaks", "behind"]
    assert list(findings["hangs"][1]) == ["hangs", "behind"]


def test_a_checkpoint_url_is_written_and_left_empty(findings: dict[str, tuple[bool, Found]]) -> None:
    passed, found = findings["url"]
    assert passed
    assert "written, read and removed" in found["checkpoint url"]["found"]
