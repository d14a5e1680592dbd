"""The story of a run, top to bottom: set up, take up where it stood, step by step, log, evaluate, save."""

import math
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import torch
import torch.distributed as dist

from dist_alexnet.checkpoint import store
from dist_alexnet.config import Config, to_yaml
from dist_alexnet.crash import say_error, traceback_in
from dist_alexnet.data.batch import Batch, Fault
from dist_alexnet.data.loader import Share, training_batches
from dist_alexnet.engine import Engine, LearnedTensor
from dist_alexnet.environment import is_restart, launch_id, prepare_determinism, read_world
from dist_alexnet.errors import BadSamplesError, CheckpointError, ConfigError, DivergedError
from dist_alexnet.evaluate import agreed_compute_dtype, evaluate
from dist_alexnet.job import exact, make_job
from dist_alexnet.network.build import ColumnNetwork
from dist_alexnet.network.spec import Weighted
from dist_alexnet.optim.schedules import rate_at
from dist_alexnet.parallel.agree import on_every_rank, on_first_rank, together
from dist_alexnet.parallel.mesh import make_mesh
from dist_alexnet.parallel.start import distributed
from dist_alexnet.run_folder import (
    Attempt,
    check_identity,
    claim,
    first_cause,
    host_name,
    take_generation,
    write_outcome,
)
from dist_alexnet.track.console import open_console
from dist_alexnet.track.jsonl import JsonLines, starts
from dist_alexnet.track.meter import Meter, batch_sums
from dist_alexnet.track.tracker import Tracker
from dist_alexnet.track.wandb_run import WandbRun, start_wandb
from shards.errors import InputError
from shards.index import ShardIndex


def train_together(load: Callable[[], Config], resume: str = "auto") -> None:
    """Join the other ranks, agree on the config, and train: what the command does on every rank.

    A user's mistake that shows on one rank is every rank's. Under torchrun, which hides exit codes and starts again
    after any failure, a mistake inside this run's own folder goes to its outcome.json, and the process exits 0.
    """
    world = read_world()
    with distributed(world) as device:
        config = together(load)
        for other in on_every_rank(lambda: to_yaml(config)):
            if other != to_yaml(config):
                raise ConfigError("the ranks have read different configs: is the file the same on all hosts?")
        run = _Run(config, device, resume)
        try:
            with traceback_in(config.run_folder):
                run.story()
        except InputError as error:
            if world.launcher != "torchrun" or not run.claimed:
                raise
            say_error(str(error), only_rank_0=True)
            if world.rank == 0:
                write_outcome(config.run_folder, None, str(error), error.exit_code)
            raise SystemExit(0) from error


def train(config: Config, resume: str = "auto") -> None:
    """Train as the config says, from where the run stands. resume: auto, never, or the path of a checkpoint.

    Raises the errors of dist_alexnet/errors.py.
    """
    with distributed(read_world()) as device:
        _Run(config, device, resume).story()


LOWER_RATE = "start another run (run.name) with a lower optimizer.lr; the checkpoints of this one are good"


class _Run:
    """One start of a run, on one rank."""

    def __init__(self, config: Config, device: torch.device, resume: str) -> None:
        self.config, self.device, self.resume = config, device, resume
        self.folder: Path = config.run_folder
        self.claimed = False
        self.keys: JsonLines | None = None
        self.mean_3 = torch.tensor(self.config.data.mean, device=device)
        self.faults: list[tuple[int, Fault]] = []  # (step, fault) not yet in the ledger
        self.waited_s, self.logged_at_s, self.logged_at_step = 0.0, time.monotonic(), 0

    def story(self) -> None:
        """From claiming the folder to the last checkpoint."""
        self.job = together(lambda: make_job(self.config, dist.get_world_size()))
        self.resume = on_first_rank(self._resume_now)
        on_first_rank(lambda: claim(self.config, self.job.identity, self.resume))
        self.claimed = True
        self.prepare()
        first = self.take_up()
        if first > 0 and first >= self.job.total_steps:
            self._nothing_left(first)
            return
        self.generation = on_first_rank(lambda: take_generation(self.config))
        self.attempt = self._start_attempt(first)
        step = first
        try:
            self.tracker = self._tracker(first)
            for step in self._steps(first):  # noqa: B007 - read below
                pass
        except BaseException as error:
            cause = first_cause(self.folder, self.generation, f"{type(error).__name__}: {error}")
            self._end(cause, int(getattr(error, "exit_code", 1)), step)
            raise
        self._end("done", 0, step)

    # ---- set up -----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Mesh, network, engine and sums: what a step needs."""
        _choose_arithmetic(self.config, self.device)
        self.mesh = make_mesh(self.job.layout, self.device.type)
        self.engine = self._engine()
        self.meter = Meter(self.device, self.mesh.data, self.config.data.batch_size)

    def _resume_now(self) -> str:
        """What `resume` means now: torchrun starts a run again with the first start's arguments, and it must go on."""
        if not is_restart():
            return self.resume
        started = starts(self.folder / "attempts.jsonl")
        of_this_launch = [number for number, start in started.items() if start.launch == launch_id()]
        if not of_this_launch:
            return self.resume
        saved = store.holds_checkpoint(self.folder, since_generation=min(of_this_launch))
        return "auto" if saved or self.resume == "never" else self.resume

    def _engine(self) -> Engine:
        job, config = self.job, self.config
        dtype = agreed_compute_dtype(config, self.device)
        module = ColumnNetwork(job.network, self.mesh, config.run.seed, dtype).to(self.device)
        learned = []
        for step in job.network.steps:
            if isinstance(step.layer, Weighted) and step.weight and step.bias:
                for tensor, multipliers in ((step.weight, step.layer.weight), (step.bias, step.layer.bias)):
                    parameter = module.parameter_of(tensor)
                    learned.append(LearnedTensor(tensor, parameter, multipliers.lr, multipliers.decay))
        return Engine(module, learned, config, self.mesh)

    def take_up(self) -> int:
        """Load the checkpoint that `resume` asks for; returns the step at which the run goes on."""
        self.receipt: list[str] = []
        self.stands_on: int | None = None  # generation of the checkpoint
        if self.resume == "never":
            return 0
        if self.resume == "auto":
            found, passed_over = store.newest_good(self.folder)
            if found is None:
                return 0
        else:
            found, passed_over = store.find(Path(self.resume))
        self.receipt += [f"passed over: {line}" for line in passed_over]
        commit = found.commit
        if not {"identity", "meter", "samples"} <= commit.state.keys():
            raise CheckpointError(
                f"checkpoint {found.folder} does not say of which run it is: another version wrote it"
            )
        check_identity(commit.state["identity"], self.job.identity, f"checkpoint {found.folder}")
        with self.engine.loading():
            store.load(found, self.engine.fragments())
        self.meter.restore(commit.state["meter"])
        self.stands_on = commit.generation if self.folder.resolve() in found.folder.resolve().parents else None
        self.receipt.append(f"resumed from {found.folder}: step {commit.step}, {commit.state['samples']} samples seen")
        for name, now in store.versions().items():
            if commit.versions.get(name) != now:
                self.receipt.append(
                    f"{name} was {commit.versions.get(name)}, is {now}: the bits may differ from here on"
                )
        return commit.step

    def _nothing_left(self, step: int) -> None:
        console = open_console(dist.get_rank(), self.job.total_steps, step)
        for line in (*self.receipt, f"nothing left to train: {step} of {self.job.total_steps} steps are done"):
            console.message(line)
        console.close()
        if dist.get_rank() == 0:
            write_outcome(self.folder, self.stands_on, "done", 0)

    def _start_attempt(self, first: int) -> Attempt | None:
        hosts = on_every_rank(host_name)
        if self.mesh.place.rank > 0:
            return None
        layout = {**vars(self.job.layout), "zero_stage": self.config.parallel.zero_stage}
        return Attempt(self.folder, self.generation, first, self.stands_on, layout, sorted(set(hosts)))

    def _tracker(self, first: int) -> Tracker:
        rank = self.mesh.place.rank
        metrics = JsonLines(self.folder / "metrics.jsonl", self.generation) if rank == 0 else None
        wandb: WandbRun | None = None
        if rank == 0:
            wandb = start_wandb(
                self.config.log.wandb,
                run_folder=self.folder,
                run_name=self.config.run.name,
                config={**self.config.model_dump(mode="json"), "layout": vars(self.job.layout)},
                generation=self.generation,
                resumed_step=first,
            )
        tracker = Tracker(metrics, wandb, open_console(rank, self.job.total_steps, first))
        for line in self.receipt:
            tracker.message(line)
        return tracker

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def _steps(self, first: int) -> Iterator[int]:
        """Train from step `first` to the end; yields how many steps are done, after each."""
        total, place, layout = self.job.total_steps, self.mesh.place, self.mesh.layout
        share = Share(place.data_rank, layout.data, place.replica, layout.replicas)
        batches = training_batches(
            self.job.train, self.config, self.job.batches, share, range(first, total), self.device.type == "cuda"
        )
        if self.config.log.sample_keys:
            self.keys = JsonLines(self.folder / "keys" / f"rank-{place.rank:05d}.jsonl", self.generation)
        self.logged_at_s, self.logged_at_step = time.monotonic(), first
        for step in range(first + 1, total + 1):
            self._step(step, batches)
            self._after(step)
            yield step
        if total == 0:  # a run of no steps: the initial values, evaluated and saved
            self._after(0)

    def _step(self, step: int, batches: Iterator[Batch]) -> None:
        """One optimizer step: forward and backward of each micro-batch; the engine steps after the last."""
        self.engine.set_rate(self._rate(step))
        seen = []
        for _ in range(self.job.batches.accumulation):
            asked_at_s = time.monotonic()
            batch = next(batches)
            self.waited_s += time.monotonic() - asked_at_s
            here = batch.to(self.device)
            loss_B, ahead_B, weight_B = self.engine.forward(
                here.inputs(self.mean_3), here.label_b, here.weight_b, here.position_b
            )
            self.engine.backward((loss_B * weight_B).sum())
            self.meter.add(batch_sums(loss_B.detach(), ahead_B, weight_B))
            seen.append(batch)
        self.meter.step_done()
        if self.engine.skipped_steps:  # ZeRO 1-3 drop such a step without a word; ZeRO 0 does not
            raise DivergedError(f"the gradient of step {step} is not finite: {LOWER_RATE}")
        if self.mesh.place.column == 0:  # columns of a replica saw the same pictures
            self.faults += [(step, fault) for batch in seen for fault in batch.faults]
        if self.keys is not None:
            positions = [position for batch in seen for position in batch.position_b.tolist()]
            self.keys.append(
                {"step": step, "positions": positions, "keys": [key for batch in seen for key in batch.keys]}
            )

    def _after(self, step: int) -> None:
        """What is due once `step` steps are done: a line of metrics, an evaluation, a checkpoint."""
        config, last = self.config, step == self.job.total_steps
        if step % config.log.every_steps == 0 or last:
            self._log(step)
        if self.job.val is not None and (
            last or self._due(step, config.evaluate.every_steps, config.evaluate.every_epochs)
        ):
            self._evaluate(step, self.job.val)
        if last or self._due(step, config.checkpoint.every_steps, config.checkpoint.every_epochs):
            self._save(step)

    # ---- what is due ------------------------------------------------------------------------------------------------

    def _log(self, step: int) -> None:
        self._agree(step)
        values = self.meter.values()
        if self.meter.agreed.steps:
            steps, spent_s = step - self.logged_at_step, time.monotonic() - self.logged_at_s
            values["optim/lr"] = self._rate(step)
            values["data/wait_s"] = self.waited_s / max(1, steps)
            values["data/bad_samples"] = float(self.meter.agreed.bad_samples)
            values["speed/images_per_s"] = steps * self.config.data.batch_size / spent_s
            self._write_metrics(step, values)
        self.meter.reset()
        self.waited_s, self.logged_at_s, self.logged_at_step = 0.0, time.monotonic(), step

    def _evaluate(self, step: int, index: ShardIndex) -> None:
        started_s = time.monotonic()
        self.engine.train(False)
        result = evaluate(self.engine.forward, index, self.config, self.mesh, self.device)
        self.engine.train()
        values = {"val/loss": result.loss, "val/top1": result.top1, "val/top5": result.top5}
        self._write_metrics(step, {**values, "val/bad_images": float(result.bad_images)})
        self.logged_at_s += time.monotonic() - started_s  # no training time

    def _save(self, step: int) -> None:
        started_s = time.monotonic()
        self._agree(step)
        if not self.engine.is_finite():
            raise DivergedError(f"a weight is not finite after step {step}, which is not saved: {LOWER_RATE}")
        if self.keys is not None:  # lines that belong to a checkpoint are on disk before it counts
            self.keys.sync()
        self.tracker.sync()
        state = {
            "samples": step * self.config.data.batch_size,
            "meter": self.meter.state(),
            "identity": self.job.identity,
            "config": self.config.model_dump(mode="json"),
            "network": self.job.spec.model_dump(mode="json"),
            "classes": self.job.train.classes,
        }
        store.save(
            self.folder,
            self.engine.fragments_to_save(),
            step=step,
            generation=self.generation,
            layout={**vars(self.job.layout), "zero_stage": self.config.parallel.zero_stage},
            versions=store.versions(),
            state=state,
        )
        on_first_rank(lambda: store.prune(self.folder, self.config.checkpoint.keep, step))
        self.logged_at_s += time.monotonic() - started_s

    def _agree(self, step: int) -> None:
        """Bring all ranks' sums together, and write down the pictures that failed."""
        bad = self.meter.agree()
        if not math.isfinite(self.meter.agreed.loss):
            first = self.logged_at_step + 1
            raise DivergedError(f"the loss is not finite between steps {first} and {step}: {LOWER_RATE}")
        if not bad:
            return
        found = sorted((fault.position, at, fault) for part in on_every_rank(lambda: self.faults) for at, fault in part)
        self.faults = []
        if self.mesh.place.rank == 0:
            ledger = JsonLines(self.folder / "ledger.jsonl", self.generation)
            for _, at, fault in found:
                ledger.append({"step": at, **vars(fault)})
            ledger.sync()
            ledger.close()
        seen, total_bad = step * self.config.data.batch_size, self.meter.agreed.bad_samples
        # Of one epoch at least: a single picture early on is no sign of a bad set.
        if total_bad > self.config.data.bad_samples.max_fraction * max(seen, len(self.job.train)):
            worst = found[-1][2]
            raise BadSamplesError(
                f"{total_bad} of {seen} pictures did not decode (the last: {worst.key} in {worst.url}), expected at "
                f"most data.bad_samples.max_fraction ({self.config.data.bad_samples.max_fraction}): see ledger.jsonl"
            )

    # ---- small things -----------------------------------------------------------------------------------------------

    def _rate(self, step: int) -> float:
        """Learning rate of the step that brings the count to `step`."""
        return rate_at(self.config.schedule, self.config.optimizer.lr, self._epochs(step - 1))

    def _epochs(self, steps: int) -> Fraction:
        return Fraction(steps * self.config.data.batch_size, len(self.job.train))

    def _due(self, step: int, every_steps: int | None, every_epochs: float | None) -> bool:
        """Whether this is a multiple of steps, or the first step past a multiple of epochs."""
        if every_steps is not None and step % every_steps == 0:
            return True
        if every_epochs is None:
            return False
        return self._epochs(step) // exact(every_epochs) > self._epochs(step - 1) // exact(every_epochs)

    def _write_metrics(self, step: int, values: dict[str, float]) -> None:
        self.tracker.metrics(step, step * self.config.data.batch_size, float(self._epochs(step)), values)

    def _end(self, cause: str, code: int, step: int) -> None:
        if hasattr(self, "tracker"):
            self.tracker.close(code)
        if self.attempt is not None:
            self.attempt.end(cause, code, step)


def _choose_arithmetic(config: Config, device: torch.device) -> None:
    """fp32 means fp32 on GPUs, too: their default for convolutions, TF32, is good for 1e-3 only."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    if config.run.deterministic:
        prepare_determinism()
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
