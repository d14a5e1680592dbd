"""The drill: a run that nothing happens to, then runs that are struck, and what they have come to beside it.

Everything is done from outside with the ordinary command, as a scheduler would. What has struck is written down at
once, so that a drill that is broken off goes on when it is started again.
"""

import json
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from dist_alexnet.config import load_config
from dist_alexnet.drill.faults import FAULTS
from dist_alexnet.drill.fits import cannot_strike, check_can_drill, other_layouts
from dist_alexnet.drill.processes import end_all
from dist_alexnet.drill.report import Report, redone
from dist_alexnet.drill.scene import Missed, Over, Scene, Struck
from dist_alexnet.drill.shards_at_hand import LinkedShards, can_be_linked
from dist_alexnet.drill.verdict import Verdict, judge
from dist_alexnet.errors import ConfigError, DrillError, RunFolderError
from dist_alexnet.job import make_job
from dist_alexnet.track.jsonl import JsonLines, read_lines
from shards import local

UNBROKEN = "unbroken"
MISSES = 20  # of one fault in a row
RUNS_WITHOUT_A_FAULT = 3  # in a row: they are over before one can strike
WHOLE_RUN_S = 24 * 3600.0

# What the evidence needs: every sample, every loss, the same bits again.
SETTINGS = (
    "run.deterministic=true",
    "log.every_steps=1",
    "log.sample_keys=true",
    "log.wandb.mode=disabled",
    "checkpoint.keep_best=false",
)


@dataclass(frozen=True)
class Asked:
    """What the user asked for."""

    config: str
    overrides: tuple[str, ...]
    kills: int
    seed: int
    ranks: int
    to: Path
    launch: str | None = None
    only: tuple[str, ...] = ()


class Drill:
    """One drill in its folder: drill.json (what was asked), faults.jsonl, verdicts.jsonl, report.json, runs/, logs/."""

    def __init__(self, asked: Asked, say: Callable[[str], None]) -> None:
        """Check everything that can be checked before the first start. Raises InputErrors."""
        self.asked, self.say = asked, say
        self.to = asked.to.resolve()
        self.overrides = (*asked.overrides, *SETTINGS, f"run.dir={self.to / 'runs'}")
        self.config = load_config(asked.config, self.overrides)
        self.job = make_job(self.config, asked.ranks)
        check_can_drill(self.config, self.job.total_steps)
        self.layouts = [] if asked.launch else other_layouts(self.config, asked.ranks)
        self.kinds = self._kinds()
        self._claim()
        self.mark = str(self.to)
        self.shards: LinkedShards | None = None
        assert self.config.data.train is not None
        if can_be_linked(self.config.data.train, self.job.train):
            self.shards = LinkedShards(self.config.data.train, self.job.train, self.to / "data")
        self.struck = [Struck(**_without_generation(line)) for line in read_lines(self.to / "faults.jsonl")]
        self.verdicts = [Verdict(**_without_generation(line)) for line in read_lines(self.to / "verdicts.jsonl")]
        self.spent_s = 0.0

    def run(self) -> None:
        """Strike until enough has struck; judge every run. Raises DrillError where a start does what it must not."""
        end_all(self.mark)  # of a drill in this folder that was killed
        began_s = time.monotonic()
        try:
            unbroken = self._scene(UNBROKEN)
            if unbroken.outcome() != 0:
                self._whole(unbroken)
            plan = self._plan()
            self._series("broken", [kind for kind in plan if kind != "layout"], same_layout=True)
            self._series("moved", [kind for kind in plan if kind == "layout"], same_layout=False)
        finally:
            end_all(self.mark)
            self.spent_s = time.monotonic() - began_s
            local.write(self.to / "report.json", json.dumps(self.report().as_dict(), indent=1).encode())

    def report(self) -> Report:
        """What has been found so far."""
        return Report(self.asked.kills, self.struck, redone(self.to / "runs", self.struck), self.verdicts, self.spent_s)

    def _plan(self) -> list[str]:
        """The kinds of the faults: all of them in turn, each round in another order."""
        draw, plan = Random(f"{self.asked.seed}/plan"), list[str]()
        while len(plan) < self.asked.kills:
            plan += draw.sample(self.kinds, len(self.kinds))
        return plan[: self.asked.kills]

    def _series(self, name: str, kinds: Sequence[str], same_layout: bool) -> None:
        """Runs one after the other until all these faults have struck; each goes on to its end, and is judged."""
        struck = [one.run for one in self.struck if one.run.startswith(f"{name}-")]
        judged = {verdict.run for verdict in self.verdicts if verdict.run.startswith(f"{name}-")}
        left, in_vain = list(kinds[len(struck) :]), 0
        while left or set(struck) - judged:
            scene, before = self._scene(f"{name}-{1 + len(judged):03d}"), len(left)
            if not self._strike(scene, left):
                self._whole(scene)
            in_vain = 0 if len(left) < before else in_vain + 1
            if left and in_vain >= RUNS_WITHOUT_A_FAULT:
                raise DrillError(f"{in_vain} runs were done before fault {left[0]} could strike: raise run.steps")
            self._judge(scene, same_layout)
            judged.add(scene.run)

    def _strike(self, scene: Scene, left: list[str]) -> bool:
        """Strike with what is left, in turn. True where the run is done; False where nothing is left."""
        misses = 0
        while left:
            scene.random = Random(f"{self.asked.seed}/{len(self.struck)}/{misses}/{scene.run}")
            try:
                struck = FAULTS[left[0]].strike(scene)
            except Over:
                return True
            except Missed:
                misses += 1
                if misses > MISSES:
                    raise DrillError(f"fault {left[0]} missed its moment {misses} times in {scene.run}") from None
                continue
            misses = 0
            left.pop(0)
            self.struck.append(struck)
            self._write("faults.jsonl", asdict(struck))
            seen = "" if struck.detected_s is None else f", seen after {struck.detected_s:.1f} s"
            trouble = f"; TROUBLE: {struck.trouble}" if struck.trouble else ""
            self.say(f"{len(self.struck)}/{self.asked.kills}  {scene.run}  {struck.what}{seen}{trouble}")
        return False

    def _whole(self, scene: Scene) -> None:
        """Run to the end, with nothing in the way."""
        self.say(f"{scene.run} goes on to its end")
        with scene.started() as (start, _):
            if not start.wait(WHOLE_RUN_S) or scene.outcome() != 0:
                raise DrillError(f"{scene.run} did not come to its end: see {start.log}")

    def _judge(self, scene: Scene, same_layout: bool) -> None:
        verdict = judge(scene.folder, self.to / "runs" / UNBROKEN, self.job, same_layout)
        self.verdicts.append(verdict)
        self._write("verdicts.jsonl", asdict(verdict))
        self.say(
            f"{scene.run} is done: {verdict.lost} samples lost, {verdict.repeated} repeated, {verdict.wrong} wrong; "
            f"{verdict.taken_up - verdict.changed} of {verdict.taken_up} starts took up what was saved bit for bit; "
            f"weights {'equal' if verdict.weights_equal else 'differ'}"
        )

    def _scene(self, run: str) -> Scene:
        return Scene(
            run=run,
            folder=self.to / "runs" / run,
            config=self.config,
            train=self._command,
            ranks=self.asked.ranks,
            layouts=self.layouts,
            shards=self.shards,
            mark=self.mark,
            logs=self.to / "logs",
        )

    def _command(self, ranks: int) -> list[str]:
        if self.asked.launch:
            launcher = shlex.split(self.asked.launch)
        else:
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
            launcher = [*torchrun, "-m", "dist_alexnet"]
        return [*launcher, "train", self.asked.config, *self.overrides]

    def _kinds(self) -> list[str]:
        """Kinds of faults that can strike this run, of those asked for. Raises ConfigError where one cannot."""
        cannot = cannot_strike(self.config, self.job, bool(self.layouts))
        for kind in self.asked.only:
            if kind not in FAULTS:
                raise ConfigError(f"--only names {kind}, expected some of {', '.join(FAULTS)}")
            if kind in cannot:
                raise ConfigError(f"--only names {kind}, which cannot strike here: {cannot[kind]}")
        for kind, why in cannot.items():
            if not self.asked.only:
                self.say(f"left out: {kind} ({why})")
        return [kind for kind in FAULTS if kind in self.asked.only or (not self.asked.only and kind not in cannot)]

    def _claim(self) -> None:
        """The folder is this drill's, or is made so. Raises RunFolderError."""
        asked = {key: value for key, value in asdict(self.asked).items() if key != "to"}
        asked["resolved"] = self.config.model_dump(mode="json")
        now = json.loads(json.dumps(asked, default=str))
        known = self.to / "drill.json"
        try:
            self.to.mkdir(parents=True, exist_ok=True)
            if known.exists():
                differing = [key for key, value in now.items() if json.loads(known.read_text()).get(key) != value]
                if differing:
                    raise RunFolderError(
                        f"{self.to} holds a drill with other {', '.join(differing)}: give another folder with --to, or "
                        "the same arguments to go on with it"
                    )
            elif any(self.to.iterdir()):
                raise RunFolderError(f"{self.to} holds files of something that is no drill: give another with --to")
            else:
                local.write(known, json.dumps(now, indent=1).encode())
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{self.to} cannot be used: {error}") from error

    def _write(self, name: str, record: dict[str, Any]) -> None:
        lines = JsonLines(self.to / name, 1)
        lines.append({"record": record})
        lines.close()


@contextmanager
def broken_off_by_signals() -> Iterator[None]:
    """SIGTERM is Ctrl-C inside: the processes of the drill end with it, and it says what was done."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _without_generation(line: dict[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = line["record"]
    return record
