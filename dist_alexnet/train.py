"""The story of a run, top to bottom: set up, take up where it stood, step by step, log, evaluate, save."""

import math
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import torch
import torch.distributed as dist

from dist_alexnet.checkpoint import store
from dist_alexnet.checkpoint.saver import Saver
from dist_alexnet.config import Config, flattened, to_yaml
from dist_alexnet.crash import say_error, traceback_in
from dist_alexnet.data.batch import Batch, Fault
from dist_alexnet.data.loader import training_batches
from dist_alexnet.data.statistics import mean_pixels
from dist_alexnet.engine import Engine, LearnedTensor
from dist_alexnet.environment import is_restart, job_ends_at_s, launch_id, prepare_determinism, read_world
from dist_alexnet.errors import BadSamplesError, CheckpointError, ConfigError, DivergedError, StopRequested
from dist_alexnet.evaluate import agreed_arithmetic, evaluate, share_of, whole_on
from dist_alexnet.guard.requests import STOP_FILE, Requests
from dist_alexnet.job import exact, make_job
from dist_alexnet.network.build import ColumnNetwork
from dist_alexnet.optim.schedules import Plateau, Rates
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
    worst_shards,
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
    after any failure, a mistake inside this run's own folder goes to its outcome.json, and the process exits 0; so it
    does when the run was asked to stop (elsewhere with code 75).
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
        except StopRequested as stopped:
            raise SystemExit(0 if world.launcher == "torchrun" else stopped.exit_code) from stopped
        except InputError as error:
            if world.launcher != "torchrun" or not run.claimed:
                raise
            say_error(str(error), only_rank_0=True)
            if world.rank == 0:
                write_outcome(config.run_folder, None, str(error), error.exit_code)
            raise SystemExit(0) from error


def train(config: Config, resume: str = "auto") -> None:
    """Train as the config says, from where the run stands. resume: auto, never, or the path of a checkpoint.

    Raises the errors of dist_alexnet/errors.py; StopRequested once the run has saved what it was asked to stop with.
    """
    with distributed(read_world()) as device:
        _Run(config, device, resume).story()


OF_A_RUN = {"best", "engine", "evaluation_pending", "identity", "meter", "plateau", "samples"}
LOWER_RATE = "start another run (run.name) with a lower optimizer.lr; the checkpoints of this one are good"


class _Run:
    """One start of a run, on one rank."""

    def __init__(self, config: Config, device: torch.device, resume: str) -> None:
        self.config, self.device, self.resume = config, device, resume
        self.folder: Path = config.run_folder
        self.claimed = False
        self.keys: JsonLines | None = None
        self.faults: list[tuple[int, Fault]] = []  # (step, fault) not yet in the ledger
        self.waited_s, self.logged_at_s, self.logged_at_step = 0.0, time.monotonic(), 0

    def story(self) -> None:
        """From claiming the folder to the last checkpoint."""
        limit_s = None if self.config.run.max_minutes is None else 60 * self.config.run.max_minutes
        every_s = None if self.config.checkpoint.every_minutes is None else 60 * self.config.checkpoint.every_minutes
        ends_at_s = None if limit_s is None else time.time() + limit_s
        with Requests(self.folder, ends_at_s, job_ends_at_s(), every_s) as self.requests:
            self._story()

    def _story(self) -> None:
        self.job = together(lambda: make_job(self.config, dist.get_world_size()))
        self.resume = on_first_rank(self._resume_now)
        on_first_rank(lambda: claim(self.config, self.job.identity, self.resume))
        self.claimed = True
        self.prepare()
        first = self.take_up()
        if first > 0 and first >= self.job.total_steps and not self.evaluation_pending:
            self._nothing_left(first)
            return
        self.generation = on_first_rank(lambda: take_generation(self.config))
        on_first_rank(lambda: (self.folder / STOP_FILE).unlink(missing_ok=True))  # it was for the start before
        self.attempt = self._start_attempt(first)
        self.saver = Saver(self.folder, self.config.checkpoint)
        self.step = first
        try:
            self.tracker = self._tracker(first)
            self._train(first)
        except StopRequested as request:
            self.tracker.message(f"stopped on request ({request}) after step {self.step}, which is saved")
            self._end(f"stopped: {request}", request.exit_code)
            raise
        except BaseException as error:
            mine = f"{type(error).__name__}: {error}"
            cause = first_cause(self.folder, self.generation, mine)
            if cause != mine:  # what this rank has seen is only that another is gone
                say_error(f"another rank failed first: {cause}", only_rank_0=True)
            self.saver.close()
            self._end(cause, int(getattr(error, "exit_code", 1)))
            raise
        self._end("done", 0)

    # ---- set up -----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Mesh, network, engine and sums: what a step needs."""
        _choose_arithmetic(self.config, self.device)
        self.mesh = make_mesh(self.job.layout, self.device.type, self.job.batch_norm_parts.ranks)
        self.engine = self._engine()
        self.plateau = Plateau(self.config.schedule)
        self.meter = Meter(self.device, self.mesh.data, self.config.data.batch_size)
        self.mean_3SS = torch.from_numpy(mean_pixels(self.config.data, self.job.statistics)).to(self.device)

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
        arithmetic = agreed_arithmetic(config, self.device)
        self.module = ColumnNetwork(job.network, self.mesh, config.run.seed, arithmetic, job.batch_norm_parts.here).to(
            self.device
        )
        learned = [
            LearnedTensor(one.tensor, self.module.parameter_of(one.tensor), one.multipliers.lr, one.multipliers.decay)
            for one in job.network.learned
        ]
        carried = [(one, self.module.values_of(one)) for one in job.network.statistics]
        return Engine(self.module, learned, config, self.mesh, carried)

    def take_up(self) -> int:
        """Load the checkpoint that `resume` asks for; returns the step at which the run goes on."""
        self.receipt: list[str] = []
        self.stands_on: int | None = None  # generation of the checkpoint
        self.best: dict[str, float] | None = None  # step and top-1 of the best evaluation
        self.evaluation_pending = False  # one was interrupted by a request to stop
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
        if not commit.state.keys() >= OF_A_RUN:
            raise CheckpointError(
                f"checkpoint {found.folder} does not say how its run stood: it holds weights only (then evaluate or "
                "export it), or another version wrote it"
            )
        check_identity(commit.state["identity"], self.job.identity, f"checkpoint {found.folder}")
        with self.engine.loading():
            store.load(found, self.engine.fragments())
        self.meter.restore(commit.state["meter"])
        self.engine.restore(commit.state["engine"])
        self.plateau.restore(commit.state["plateau"])
        self.best = commit.state["best"]
        self.evaluation_pending = commit.state["evaluation_pending"]
        self.stands_on = commit.generation if self.folder.resolve() in found.folder.resolve().parents else None
        self.receipt.append(f"resumed from {found.folder}: step {commit.step}, {commit.state['samples']} samples seen")
        self.receipt.append(f"samples to be replayed: 0; {_changes(commit, self._layout(), self.config)}")
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
        return Attempt(self.folder, self.generation, first, self.stands_on, self._layout(), sorted(set(hosts)))

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

    def _train(self, first: int) -> None:
        """Every step, and the last save on disk."""
        try:
            self._steps(first)
        except StopRequested:
            self.saver.finish()
            raise
        self.saver.finish()

    def _steps(self, first: int) -> None:
        """Train from step `first` to the end. Raises StopRequested once a run that was asked to stop is being saved."""
        total, place = self.job.total_steps, self.mesh.place
        batches = together(  # a node may be unable to make its cache
            lambda: training_batches(
                self.job.train,
                self.config,
                self.job.batches,
                share_of(self.config, self.mesh),
                range(first, total),
                self.job.statistics,
                self.device.type == "cuda",
            )
        )
        if self.config.log.sample_keys:
            self.keys = JsonLines(self.folder / "keys" / f"rank-{place.rank:05d}.jsonl", self.generation)
        self.logged_at_s, self.logged_at_step = time.monotonic(), first
        self.saved_step = first if first > 0 else -1
        if self.evaluation_pending:
            self._after(first)
        for step in range(first + 1, total + 1):
            self._step(step, batches)
            self.step = step
            self._after(step)
        if total == 0:  # a run of no steps: the initial values, evaluated and saved
            self._after(0)

    def _step(self, step: int, batches: Iterator[Batch]) -> None:
        """One optimizer step: forward and backward of each micro-batch; the engine steps after the last."""
        self.engine.set_rates(self._rates(step).of)
        seen = []
        for _ in range(self.job.batches.accumulation):
            asked_at_s = time.monotonic()
            batch = next(batches)
            self.waited_s += time.monotonic() - asked_at_s
            here = whole_on(batch, self.config, self.mesh, self.device)
            loss_B, ahead_B, weight_B = self.engine.forward(
                here.inputs(self.mean_3SS), here.label_b, here.weight_b, here.position_b
            )
            self.engine.backward((loss_B * weight_B).sum())
            self.meter.add(batch_sums(loss_B.detach(), ahead_B, weight_B))
            seen.append(batch)
        self.module.settle(self.engine.dropped)
        self.meter.step_done()
        if self.engine.skipped_steps:  # ZeRO 1-3 drop such a step without a word; ZeRO 0 does not
            raise DivergedError(f"the gradient of step {step} is not finite: {LOWER_RATE}")
        if self.mesh.place.column == 0 or self.config.data.share_decoding:  # else columns loaded the same pictures
            self.faults += [(step, fault) for batch in seen for fault in batch.faults]
        if self.keys is not None:
            positions = [position for batch in seen for position in batch.position_b.tolist()]
            self.keys.append(
                {"step": step, "positions": positions, "keys": [key for batch in seen for key in batch.keys]}
            )

    def _after(self, step: int) -> None:
        """What is due once `step` steps are done; a request to stop, wherever it is heard of, saves first."""
        try:
            self._do_what_is_due(step)
            if step < self.job.total_steps:
                self.requests.look()
        except StopRequested:
            if self.saved_step != step or self.evaluation_pending:
                self._save(step)
            raise

    def _do_what_is_due(self, step: int) -> None:
        """A line of metrics, an evaluation, a checkpoint. After a stop in an evaluation, what was left of that."""
        config, last, best = self.config, step == self.job.total_steps, False
        if not self.evaluation_pending and (step % config.log.every_steps == 0 or last):
            self._log(step)
        due = self._due(step, config.evaluate.every_steps, config.evaluate.every_epochs)
        if self.job.val is not None and (last or due):
            self.evaluation_pending = True
            top1 = self._evaluate(step, self.job.val)
            if due:  # the last step's would be another one's when the run is made longer
                self.plateau.evaluated(top1)
            best = self._is_best(step, top1)
        self.evaluation_pending = False  # nor is one that was broken off due any more, where the run was made longer
        save_due = self._due(step, config.checkpoint.every_steps, config.checkpoint.every_epochs)
        if last or best or save_due or self.requests.save_is_due():
            self._save(step)
        for line in self.saver.news():
            self.tracker.message(line)

    # ---- what is due ------------------------------------------------------------------------------------------------

    def _log(self, step: int) -> None:
        self._agree(step)
        values = self.meter.values()
        if self.meter.agreed.steps:
            steps, spent_s = step - self.logged_at_step, time.monotonic() - self.logged_at_s
            values |= self._optimizer_metrics(step)
            values["data/wait_s"] = self.waited_s / max(1, steps)
            values["data/bad_samples"] = float(self.meter.agreed.bad_samples)
            values["speed/images_per_s"] = steps * self.config.data.batch_size / spent_s
            self._write_metrics(step, values)
        self.meter.reset()
        self.waited_s, self.logged_at_s, self.logged_at_step = 0.0, time.monotonic(), step

    def _evaluate(self, step: int, index: ShardIndex) -> float:
        """Evaluate and log; returns the top-1 accuracy."""
        started_s = time.monotonic()
        self.engine.train(False)
        try:
            result = evaluate(
                self.engine.forward,
                index,
                self.config,
                self.job.statistics,
                self.mesh,
                self.device,
                after_each=self.requests.look,
            )
        finally:
            self.engine.train()
        values = {"val/loss": result.loss, "val/top1": result.top1, "val/top5": result.top5}
        self._write_metrics(step, {**values, "val/bad_images": float(result.bad_images)})
        self.logged_at_s += time.monotonic() - started_s  # no training time
        return result.top1

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
            "engine": self.engine.state(),
            "plateau": self.plateau.state(),
            "best": self.best,
            "evaluation_pending": self.evaluation_pending,
            "identity": self.job.identity,
            "config": self.config.model_dump(mode="json"),
            "network": self.job.spec.model_dump(mode="json"),
            "classes": self.job.train.classes,
        }
        self.saver.save(
            self.engine.fragments_to_save(),
            step=step,
            spared=None if self.best is None else int(self.best["step"]),
            generation=self.generation,
            layout=self._layout(),
            versions=store.versions(),
            state=state,
        )
        self.saved_step = step
        self.requests.saved()
        self.requests.save_s = self.saver.took_s
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
            last, worst = found[-1][2], on_first_rank(lambda: worst_shards(self.folder))
            raise BadSamplesError(
                f"{total_bad} of {seen} pictures did not decode, expected at most data.bad_samples.max_fraction "
                f"({self.config.data.bad_samples.max_fraction}): most in {worst}, the last {last.key} in {last.url}; "
                "see ledger.jsonl, mend these shards, or leave them out by data.exclude, which is another run"
            )

    # ---- small things -----------------------------------------------------------------------------------------------

    def _rates(self, step: int) -> Rates:
        """Learning rates of the step that brings the count to `step`."""
        return Rates(
            self.config.schedule,
            self.config.optimizer.lr,
            self._epochs(step - 1),
            self.job.epochs,
            self.plateau.drops,
        )

    def _optimizer_metrics(self, step: int) -> dict[str, float]:
        """The rate of weights; others only where they are not the network's multiples of it; what fp16 adds."""
        rates = self._rates(step)
        values = {"optim/lr": rates.base}
        for one in self.engine.learned:
            rate = rates.of(one.layer, one.role, one.lr)
            if not math.isclose(rate, rates.base * one.lr, rel_tol=1e-9):
                values[f"optim/lr/{one.layer}.{one.role}"] = rate
        if self.engine.loss_scale is not None:
            values["optim/loss_scale"] = self.engine.loss_scale.scale
            values["train/dropped_steps"] = float(self.engine.loss_scale.dropped_steps)
        return values

    def _epochs(self, steps: int) -> Fraction:
        return Fraction(steps * self.config.data.batch_size, len(self.job.train))

    def _layout(self) -> dict[str, int]:
        return {**vars(self.job.layout), "zero_stage": self.config.parallel.zero_stage}

    def _is_best(self, step: int, top1: float) -> bool:
        """Whether this evaluation is the best so far, and is to be saved for that."""
        if self.best is not None and top1 <= self.best["top1"]:
            return False
        self.best = {"step": step, "top1": top1}
        return self.config.checkpoint.keep_best

    def _due(self, step: int, every_steps: int | None, every_epochs: float | None) -> bool:
        """Whether this is a multiple of steps, or the first step past a multiple of epochs."""
        if every_steps is not None and step % every_steps == 0:
            return True
        if every_epochs is None:
            return False
        return self._epochs(step) // exact(every_epochs) > self._epochs(step - 1) // exact(every_epochs)

    def _write_metrics(self, step: int, values: dict[str, float]) -> None:
        self.tracker.metrics(step, step * self.config.data.batch_size, float(self._epochs(step)), values)

    def _end(self, cause: str, code: int) -> None:
        if hasattr(self, "tracker"):
            self.tracker.close(code)
        if self.attempt is not None:
            self.attempt.end(cause, code, self.step)


def _changes(commit: store.Commit, layout: dict[str, int], config: Config) -> str:
    """What is another than when the checkpoint was written, of layout and settings."""
    before, now = flattened(commit.state["config"]), flattened(config.model_dump(mode="json"))
    changed = [f"{key} {before.get(key)} -> {value}" for key, value in now.items() if before.get(key) != value]
    if commit.layout != layout:
        changed.insert(0, f"layout {commit.layout} -> {layout}")
    return f"changed since: {', '.join(changed)}" if changed else "layout and settings are the same"


def _choose_arithmetic(config: Config, device: torch.device) -> None:
    """fp32 means fp32 on GPUs, too: their default for convolutions, TF32, is good for 1e-3 only."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    if config.run.deterministic:
        prepare_determinism()
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
