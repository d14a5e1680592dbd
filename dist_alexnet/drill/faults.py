"""The faults. Each starts the run, waits for its moment, strikes, and leaves no process behind.

All of them work from outside and as an ordinary user; what only root could do (another clock, a full disk) is done by
the nearest thing that a user can do, which its line in FAULTS says.
"""

import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from dist_alexnet.checkpoint.commit import COMMIT
from dist_alexnet.drill.processes import end_all, kill, processes_with
from dist_alexnet.drill.scene import Missed, Over, Scene, Struck
from dist_alexnet.drill.shards_at_hand import served
from dist_alexnet.errors import DrillError
from dist_alexnet.guard.requests import MARGIN_S

ORPHANS_S = 1.0  # how long ranks without their launcher are given to end by themselves
SLOW_BYTES_PER_S, FAST_BYTES_PER_S = 1 << 20, 1 << 30
TEN_MINUTES_S = 600


def rank_killed(scene: Scene) -> Struck:
    with scene.started() as (start, watch):
        step = scene.until_step(start, watch)
        return scene.strike_rank(start, watch, "rank", f"after step {step}")


def all_killed(scene: Scene) -> Struck:
    with scene.started() as (start, watch):
        step = scene.until_step(start, watch)
        end_all(scene.mark, start)
        return scene.ended(start, watch, "node", f"SIGKILL of every process after step {step}")


def agent_killed(scene: Scene) -> Struck:
    """The launcher dies. Ranks that do not end with it are frozen, and wake beside the next start, as on a host that
    was cut off; they must not hurt it.
    """
    with scene.started() as (start, watch):
        step = scene.until_step(start, watch)
        start.launcher.kill()
        if start.wait(ORPHANS_S):
            return scene.ended(start, watch, "agent", f"SIGKILL of the launcher after step {step}; its ranks ended")
        orphans, generation = set(processes_with(scene.mark)), watch.generation() or 0
        for pid in orphans:
            kill(pid, signal.SIGSTOP)
        with scene.started() as (again, beside):
            scene.until_step(again, beside, 1)
            for pid in orphans:
                kill(pid, signal.SIGCONT)
            scene.until_step(again, beside)
    what = f"SIGKILL of the launcher after step {step}; {len(orphans)} processes went on beside the next start"
    return Struck("agent", scene.run, generation, what, None)


def asked_to_stop(scene: Scene) -> Struck:
    with scene.started() as (start, watch):
        step = scene.until_step(start, watch)
        number = scene.random.choice([signal.SIGTERM, signal.SIGUSR1])
        rank, pid = scene.a_rank(start)
        kill(pid, number)
        struck = scene.ended(start, watch, "stop", f"{number.name} to rank {rank} after step {step}")
    return _expecting(struck, scene, {75, 0})


def in_a_save(scene: Scene) -> Struck:
    with scene.started() as (start, watch):
        scene.until_step(start, watch, 1)
        scene.until(start, watch, lambda: watch.saving() is not None)
        folder = watch.saving()
        rank, pid = scene.a_rank(start)
        kill(pid, signal.SIGKILL)
        if folder is None or (folder / COMMIT).exists():
            raise Missed
        return scene.ended(start, watch, "save", f"SIGKILL of rank {rank} while {folder.parent.name} was written")


def in_an_evaluation(scene: Scene) -> Struck:
    every = scene.config.evaluate.every_steps
    assert every is not None
    with scene.started() as (start, watch):
        scene.until_step(start, watch, 1)
        scene.until(start, watch, lambda: (watch.evaluating() or 1) % every == 0)
        step = watch.evaluating()
        struck = scene.strike_rank(start, watch, "evaluation", f"while step {step} was evaluated")
        if step is None or watch.evaluating() != step:
            raise Missed
        return struck


def in_a_download(scene: Scene) -> Struck:
    """The shards come over HTTP into an empty cache; the start after that finds what is left in it."""
    assert scene.shards is not None
    cache = scene.folder.parent.parent / "cache"
    for path in (*cache.glob("*.tar"), *cache.glob("*.part")):
        path.unlink()
    name = scene.shards.name

    def cached(url: str) -> tuple[str, ...]:
        return f"data.train={url}/{name}", f"data.cache.dir={cache}"

    with served(scene.shards.folder, SLOW_BYTES_PER_S) as url, scene.started(cached(url)) as (start, watch):
        scene.until(start, watch, lambda: watch.generation() is not None and any(cache.glob("*.part")))
        time.sleep(scene.random.random())
        rank, pid = scene.a_rank(start)
        kill(pid, signal.SIGKILL)
        if not any(cache.glob("*.part")):
            raise Missed
        struck = scene.ended(start, watch, "download", f"SIGKILL of rank {rank} while shards came into the cache")
    with served(scene.shards.folder, FAST_BYTES_PER_S) as url, scene.started(cached(url)) as (start, watch):
        scene.until_step(start, watch)
    return struck


def torn_checkpoint(scene: Scene) -> Struck:
    scene.until_saved(2)
    newest = scene.checkpoints()[0]
    victim = scene.random.choice(sorted(path for path in newest.iterdir() if path.stat().st_size))
    how = _damage(victim, scene)
    with scene.started() as (start, watch):
        began_s = time.monotonic()
        scene.until(start, watch, lambda: start.said(f"passed over: {newest}") or len(watch.trained()) > 0)
        took_s = time.monotonic() - began_s
        said = start.said("passed over: ") and start.said(newest.parent.name)
        with suppress(Over):  # it has struck, though the run may be done before it comes so far
            scene.until_step(start, watch)
        what = f"{victim.name} of {newest.parent.name} {how}"
        struck = Struck("torn", scene.run, watch.generation() or 0, what, took_s if said else None, damaged=True)
    return struck if said else replace(struck, trouble="a damaged checkpoint was not passed over")


def shard_gone(scene: Scene) -> Struck:
    """The start that does not find it ends; the next one has it."""
    assert scene.shards is not None
    shard = scene.random.choice(scene.shards.index.shards).name
    scene.shards.take_away(shard)
    try:
        with scene.started((f"data.train={scene.shards.url}",)) as (start, watch):
            scene.until(start, watch, lambda: watch.generation() is not None)
            struck = scene.ended(start, watch, "shard", f"{shard} was not there")
            if scene.outcome() == 0:
                raise Missed  # the run had no more need of it
            return struck if start.said(shard) else replace(struck, trouble=f"{start.log} does not name {shard}")
    finally:
        scene.shards.bring_back(shard)


def disk_full(scene: Scene) -> Struck:
    """One rank may not write files as large as a chunk for a while: a write fails midway, as on a full disk."""
    scene.until_saved(1)
    with scene.started() as (start, watch):
        scene.until_step(start, watch)
        rank, pid = scene.a_rank(start)
        limit_bytes, hard = _part_of_a_chunk(scene), resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit_bytes, hard))
        began_s = time.monotonic()
        scene.until(start, watch, lambda: start.said("failed, the last good one stands"))
        took_s = time.monotonic() - began_s
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
        before = watch.trained()[-1]
        scene.until(start, watch, lambda: watch.saved() > before)
        what = f"rank {rank} could not write a whole chunk at step {before}"
        return Struck("disk", scene.run, watch.generation() or 0, what, took_s)


def time_is_up(scene: Scene) -> Struck:
    """The clock has come to the end of the job's time: to the run, a clock that jumps there is the same."""
    ends_at_s = time.time() + MARGIN_S + scene.start_s + 1 + scene.random.random()
    with scene.started(extra={"SLURM_JOB_END_TIME": str(int(ends_at_s))}) as (start, watch):
        scene.until_step(start, watch, 1)
        time.sleep(max(0.0, int(ends_at_s) - MARGIN_S - time.time()))
        struck = scene.ended(start, watch, "clock", "the job's time came to its end")
    return _expecting(struck, scene, {75, 0})


def elsewhere(scene: Scene) -> Struck:
    scene.until_saved(1)
    ranks, overrides = scene.random.choice(scene.layouts)
    with scene.started(overrides, ranks) as (start, watch):
        step = scene.until_step(start, watch)
        where = f"after step {step} on {ranks} rank(s) with {' '.join(overrides)}"
        return scene.strike_rank(start, watch, "layout", where)


def _expecting(struck: Struck, scene: Scene, codes: set[int]) -> Struck:
    code = scene.outcome()
    return struck if code in codes else replace(struck, trouble=f"it ended with code {code}, expected 75")


def _damage(victim: Path, scene: Scene) -> str:
    size = victim.stat().st_size
    if scene.random.random() < 0.5:
        os.truncate(victim, scene.random.randrange(size))
        return "cut short"
    with victim.open("r+b") as file:
        at = scene.random.randrange(size)
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << scene.random.randrange(8)]))
    return f"with one bit of byte {at} flipped"


def _part_of_a_chunk(scene: Scene) -> int:
    """A size that every log stays below for a while, and a chunk does not."""
    chunk_bytes = max(path.stat().st_size for path in scene.checkpoints()[0].iterdir())
    lines_bytes = max(path.stat().st_size for path in scene.folder.rglob("*.jsonl"))
    if chunk_bytes < 1.5 * lines_bytes:
        raise DrillError(
            f"a rank's chunk of a checkpoint has {chunk_bytes} bytes, too few beside logs of {lines_bytes} to fail it "
            "alone: take a wider network, or leave disk out of --only"
        )
    return (chunk_bytes + lines_bytes) // 2


@dataclass(frozen=True)
class Fault:
    """A kind of fault: what it is, and what strikes."""

    what: str
    strike: Callable[[Scene], Struck]


FAULTS = {
    "rank": Fault("SIGKILL of one rank", rank_killed),
    "agent": Fault("SIGKILL of the launcher; ranks it leaves wake beside the next start", agent_killed),
    "node": Fault("SIGKILL of every process at once, as when power fails", all_killed),
    "stop": Fault("SIGTERM or SIGUSR1 to one rank: a request to stop", asked_to_stop),
    "save": Fault("SIGKILL of one rank while a checkpoint is written", in_a_save),
    "evaluation": Fault("SIGKILL of one rank in an evaluation", in_an_evaluation),
    "download": Fault("SIGKILL of one rank while shards come into the cache", in_a_download),
    "torn": Fault("the newest checkpoint is cut short or has a flipped bit", torn_checkpoint),
    "shard": Fault("a shard is missing, and comes back", shard_gone),
    "disk": Fault("a write of a checkpoint fails midway (a limit on file size, in place of a full disk)", disk_full),
    "clock": Fault("the clock reaches the end of the job's time (told so, in place of a clock that jumps)", time_is_up),
    "layout": Fault("the run goes on on another layout, where a rank gets SIGKILL", elsewhere),
}
