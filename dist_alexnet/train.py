"""The story of a run, top to bottom: set up, take up where it stood, step by step, log, evaluate, save."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from dist_alexnet.arithmetic import agreed_arithmetic, agreed_decoder
from dist_alexnet.checkpoint import store
from dist_alexnet.checkpoint.saver import Saver
from dist_alexnet.config import Config, to_yaml
from dist_alexnet.crash import say_error, traceback_in
from dist_alexnet.data.batch import Batch
from dist_alexnet.data.feed import Feed
from dist_alexnet.data.loader import shards_read, training_batches
from dist_alexnet.data.statistics import mean_pixels
from dist_alexnet.digest import Digests
from dist_alexnet.engine import Engine, LearnedTensor
from dist_alexnet.environment import job_ends_at_s, prepare_determinism, read_world
from dist_alexnet.errors import ConfigError, StopRequested
from dist_alexnet.evaluate import evaluate, share_of, whole_on
from dist_alexnet.finetune import write_down
from dist_alexnet.guard.divergence import DivergenceGuard, Fault, RollbackNeeded
from dist_alexnet.guard.heartbeat import OF_A_STEP, Heartbeat
from dist_alexnet.guard.requests import STOP_FILE, Requests
from dist_alexnet.guard.stragglers import Stragglers
from dist_alexnet.guard.watchdog import Watchdog
from dist_alexnet.job import make_job
from dist_alexnet.measures import Measures
from dist_alexnet.network.build import ColumnNetwork
from dist_alexnet.optim.schedules import Plateau
from dist_alexnet.pace import Pace
from dist_alexnet.parallel.agree import on_every_rank, on_first_rank, together
from dist_alexnet.parallel.mesh import make_mesh
from dist_alexnet.parallel.start import distributed
from dist_alexnet.record import record_start
from dist_alexnet.run_folder import (
    Attempt,
    claim,
    end_if_first,
    first_cause,
    host_name,
    take_generation,
    write_outcome,
)
from dist_alexnet.samples_seen import SamplesSeen
from dist_alexnet.standing import Kept, layout_of, resume_now, roll_back, take_up, to_keep, with_one_source
from dist_alexnet.track.console import open_console
from dist_alexnet.track.jsonl import JsonLines
from dist_alexnet.track.meter import Meter, batch_sums
from dist_alexnet.track.tracker import Tracker
from dist_alexnet.tracking import metrics_file, open_tracker
from dist_alexnet.training_pictures import TrainingPictures
from shards.errors import InputError
from shards.index import ShardIndex
from shards.storage import GIVES_UP_S, local_path


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


class _Run:
    """One start of a run, on one rank."""

    def __init__(self, config: Config, device: torch.device, resume: str) -> None:
        self.config, self.device, self.resume = config, device, resume
        self.folder: Path = config.run_folder
        self.claimed = False
        self.generation = 0  # not taken yet
        self.heart = Heartbeat()

    def story(self) -> None:
        """From claiming the folder to the last checkpoint."""
        limit_s = None if self.config.run.max_minutes is None else 60 * self.config.run.max_minutes
        every_s = None if self.config.checkpoint.every_minutes is None else 60 * self.config.checkpoint.every_minutes
        self.watchdog = Watchdog(self.heart, self.config.guard.hang_s, host_name(), self._hangs, self._needs)
        with Requests(self.folder, limit_s, job_ends_at_s(), every_s) as self.requests, self.watchdog:
            self._story()

    def _story(self) -> None:
        self.config = agreed_decoder(self.config, self.device)
        self.job = with_one_source(together(lambda: make_job(self.config, dist.get_world_size(), self.resume)))
        sets = [index.folder for index in (self.job.train, self.job.val) if index is not None]
        if any(local_path(folder) is None for folder in sets):
            self.watchdog.load_s = GIVES_UP_S  # no run is ended whose storage is still being asked again
        self.resume = on_first_rank(lambda: resume_now(self.folder, self.resume))
        on_first_rank(lambda: claim(self.config, self.job.identity, self.resume))
        on_first_rank(lambda: write_down(self.job.source, self.folder))
        self.claimed = True
        self.heart.enter("start")
        self.prepare()
        self.heart.enter("start")
        first = self.take_up()
        if first > 0 and first >= self.job.total_steps and not self.standing.evaluation_pending:
            self._nothing_left(first)
            return
        self._take_generation()
        on_first_rank(lambda: (self.folder / STOP_FILE).unlink(missing_ok=True))  # it was for the start before
        self.saver = Saver(self.folder, self.config.checkpoint)
        self.heart.enter("start")
        try:
            self.tracker = self._tracker()
            self.pictures = TrainingPictures(self.config, self.job, self.engine, self.module, self.tracker)
            self._train(first)
        except StopRequested as request:
            self.tracker.message(f"stopped on request ({request}) after step {self.standing.step}, which is saved")
            cause, code = f"stopped: {request}", request.exit_code
            # Together: Slurm ends what is left of a step of which one task has ended with 75.
            together(lambda: self._end(cause, code))
            raise
        except BaseException as error:
            self.watchdog.close()
            mine = f"{type(error).__name__}: {error}"
            cause = first_cause(self.folder, self.generation, mine)
            if cause != mine:  # what this rank has seen is only that another is gone
                say_error(f"another rank failed first: {cause}", only_rank_0=True)
            self.saver.close()
            self._end(cause, int(getattr(error, "exit_code", 1)))
            raise
        together(lambda: self._end("done", 0))

    # ---- set up -----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Mesh, network, engine and sums: what a step needs."""
        _choose_arithmetic(self.config, self.device)
        self.mesh = make_mesh(self.job.layout, self.device.type, self.job.batch_norm_parts.ranks)
        self.engine = self._engine()
        self.plateau = Plateau(self.config.schedule)
        self.pace = Pace(self.config, self.job)
        self.meter = Meter(self.device, self.mesh.data, self.config.data.batch_size)
        self.stragglers = Stragglers(self.heart)
        self.measures = Measures(self.config, self.job, self.module.arithmetic, self.engine, self.stragglers)
        self.guard = DivergenceGuard(self.config.divergence)
        self.kept = Kept(self.engine, self.meter, self.plateau, self.guard)
        self.mean_3SS = torch.from_numpy(mean_pixels(self.config.data, self.job.statistics)).to(self.device)

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
        engine = Engine(self.module, learned, config, self.mesh, carried)
        engine.before_reducing(lambda: self.heart.enter("reduce"))
        return engine

    def take_up(self) -> int:
        """Load the checkpoint that `resume` asks for; returns the step at which the run goes on."""
        self.standing = take_up(self.config, self.job, self.resume, self.kept)
        if self.resume not in ("auto", "never"):
            self.resume = self.standing.taken_up or self.resume  # a run that it names may go on meanwhile
        return self.standing.step

    def _nothing_left(self, step: int) -> None:
        console = open_console(dist.get_rank(), self.job.total_steps, step)
        for line in (*self.standing.receipt, f"nothing left to train: {step} of {self.job.total_steps} steps are done"):
            console.message(line)
        console.close()
        if dist.get_rank() == 0:
            write_outcome(self.folder, self.standing.stands_on, "done", 0)

    def _take_generation(self) -> None:
        """Its number, and what is written under it."""
        self.generation = on_first_rank(lambda: take_generation(self.config))
        self.watchdog.writes_to(self.folder, self.generation)
        self.attempt = self._start_attempt(self.standing.step)
        names_faults = self.mesh.place.column == 0 or self.config.data.share_decoding  # else columns load the same
        self.seen = SamplesSeen(self.config, self.generation, len(self.job.train), names_faults)
        self.digests = Digests(self.config, self.generation)
        self.digests.taken_up(self.standing.step, self.engine)

    def _start_attempt(self, first: int) -> Attempt | None:
        hosts = on_every_rank(host_name)
        if self.mesh.place.rank > 0:
            return None
        stands_on, layout = self.standing.stands_on, layout_of(self.job)
        record_start(self.config, self.generation, layout, sorted(set(hosts)), first)
        return Attempt(self.folder, self.generation, first, stands_on, layout, sorted(set(hosts)))

    def _tracker(self) -> Tracker:
        tracker = open_tracker(self.config, self.job, self.standing, self.generation)
        for line in self.standing.receipt:
            tracker.message(line)
        return tracker

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def _train(self, first: int) -> None:
        """Every step, and the last save on disk."""
        try:
            while True:
                try:
                    self._steps(first)
                    break
                except RollbackNeeded as needed:
                    fault = needed.fault
                first = self._roll_back(fault)
        except StopRequested:
            self.heart.enter("save")
            self.saver.finish()
            raise
        self.heart.enter("save")
        self.saver.finish()

    def _roll_back(self, fault: Fault) -> int:
        """Take the run back, as a start of its own in the same processes; returns the step at which it goes on."""
        self.heart.enter("start")
        self.batches.close()
        self.saver.wait()
        standing = roll_back(self.config, self.job, self.resume, self.kept, fault)
        if self.attempt is not None:
            self.attempt.rolled_back(fault.why, self.standing.step)
        self.seen.close()
        standing.wandb_id = self.standing.wandb_id
        self.standing = standing
        self._take_generation()
        self.tracker.go_on(metrics_file(self.config, self.generation), self.generation, standing.step)
        self.tracker.alert(f"{self.config.run.name} was rolled back", fault.why)
        for line in (f"rolled back: {fault.why}", *standing.receipt):
            self.tracker.message(line)
        return standing.step

    def _steps(self, first: int) -> None:
        """Train from step `first` to the end. Raises StopRequested once a run that was asked to stop is being saved."""
        total = self.job.total_steps
        self.batches: Feed = together(  # a node may be unable to make its cache
            lambda: training_batches(
                self.job.train,
                self.config,
                self.job.batches,
                share_of(self.config, self.mesh),
                self.guard.data_steps(np.arange(first, total), self.config.data.batch_size),
                self.job.statistics,
                self.device.type == "cuda",
                say=self.tracker.message if self.mesh.place.rank == 0 else None,
            )
        )
        self.measures.begin(first)
        self.saved_step = first if first > 0 else -1
        if self.standing.evaluation_pending:
            self._after(first)
        for step in range(first + 1, total + 1):
            with self.measures.step():
                self._step(step, self.batches)
            self.standing.step, self.heart.under_way = step, True
            self._after(step)
        if total == 0:  # a run of no steps: the initial values, evaluated and saved
            self._after(0)

    def _step(self, step: int, batches: Iterator[Batch]) -> None:
        """One optimizer step: forward and backward of each micro-batch, then the update."""
        self.engine.set_rates(self.pace.rates(step, self.plateau.drops).of)
        seen, sums = [], torch.zeros(4, dtype=torch.float64, device=self.device)
        for _ in range(self.job.batches.accumulation):
            self.heart.enter("load", step)
            batch = self.measures.loaded(batches)
            self.heart.enter("forward")
            with self.measures.copying():
                here = whole_on(batch, self.config, self.mesh, self.device)
            loss_B, ahead_B, weight_B = self.engine.forward(
                here.inputs(self.mean_3SS), here.label_b, here.weight_b, here.position_b
            )
            self.heart.enter("backward")
            self.engine.backward((loss_B * weight_B).sum())
            sums += batch_sums(loss_B.detach(), ahead_B, weight_B)
            seen.append(batch)
        self.meter.add(sums, counts=self._update(step))
        self.seen.add(step, seen)

    def _update(self, step: int) -> bool:
        """The update of a step, or none where something is wrong with it; returns whether nothing was.

        Raises DivergedError, RollbackNeeded.
        """
        self.heart.enter("reduce")
        health = self.engine.health()
        spoilt = [] if health.is_finite else [(one.layer, one.tensor.name) for one in self.engine.not_finite()]
        fault = self.guard.fault(step, health.loss, health.is_finite, spoilt)
        self.heart.enter("step")
        with self.measures.norms.looking(self.config.log.norms and self.pace.line_is_due(step)):
            self.engine.step(health, leave_out=fault is not None)
        self.module.settle(self.engine.dropped)
        if fault is not None:
            self.tracker.message(self.guard.act(fault))
        return fault is None

    def _after(self, step: int) -> None:
        """What is due once `step` steps are done; a request to stop, wherever it is heard of, saves first."""
        self.heart.enter("log")
        try:
            self._do_what_is_due(step)
            if step < self.job.total_steps:
                self.requests.look()
        except StopRequested:
            if self.saved_step != step or self.standing.evaluation_pending:
                self._save(step)
            raise

    def _do_what_is_due(self, step: int) -> None:
        """A line of metrics, an evaluation, a checkpoint. After a stop in an evaluation, what was left of that."""
        last, best = step == self.job.total_steps, False
        if not self.standing.evaluation_pending and self.pace.line_is_due(step):
            self._log(step)
        self.digests.after(step, last, self.engine)
        due = self.pace.evaluation_is_due(step)
        if self.job.val is not None and (last or due):
            self.standing.evaluation_pending = True
            top1 = self._evaluate(step, self.job.val)
            if due:  # the last step's would be another one's when the run is made longer
                self.plateau.evaluated(top1)
            best = self.standing.is_best(step, top1) and self.config.checkpoint.keep_best
        if self.config.log.pictures and (last or due):
            self._draw(step)
        self.standing.evaluation_pending = False  # nor is one broken off due any more, where the run was made longer
        if last or best or self.pace.save_is_due(step) or self.requests.save_is_due():
            self._save(step)
        for line in self.saver.news():
            self.tracker.message(line)
        self._name_saved()

    # ---- what is due ------------------------------------------------------------------------------------------------

    def _log(self, step: int) -> None:
        self._agree(step)
        values = self.meter.values()
        if self.meter.agreed.steps:
            values["data/bad_samples"] = float(self.meter.agreed.bad_samples)
            values |= self.measures.values(step, self.pace.rates(step, self.plateau.drops), self.guard)
            self._say_slow(step)
            self._write_metrics(step, values)
        self.meter.reset()
        self.measures.begin(step)

    def _evaluate(self, step: int, index: ShardIndex) -> float:
        """Evaluate and log; returns the top-1 accuracy."""
        started_s = time.monotonic()
        self.heart.enter("evaluate")
        self.engine.train(False)
        self.batches.rest()  # two sets of loader processes would hold twice the memory
        try:
            result = evaluate(
                partial(self.engine.forward, views=self.config.evaluate.views),
                index,
                self.config,
                self.job.statistics,
                self.mesh,
                self.device,
                after_each=self._after_each_batch,
                views=self.config.evaluate.views,
            )
        finally:
            self.engine.train()
        values = {"val/loss": result.loss, "val/top1": result.top1, "val/top5": result.top5}
        self._write_metrics(step, {**values, "val/bad_images": float(result.bad_images)})
        self.seen.write_evaluated(step, index.split, result.faults)
        self.measures.pause(time.monotonic() - started_s)
        return result.top1

    def _draw(self, step: int) -> None:
        started_s = time.monotonic()
        self.heart.enter("evaluate")
        read = self.guard.data_steps(np.array([max(0, step - 1)]), self.config.data.batch_size)
        self.pictures.draw(step, int(read[0]), moved=self.heart.moved)
        self.measures.pause(time.monotonic() - started_s)

    def _after_each_batch(self, batch: Batch) -> None:
        self.heart.enter("evaluate")
        self.requests.look()

    def _save(self, step: int) -> None:
        started_s = time.monotonic()
        self.heart.enter("save")
        self._agree(step)
        if not self.engine.is_finite():
            self.guard.act(self.guard.weights_fault(step))
        self.seen.sync()
        self.tracker.sync()
        best = self.standing.best
        self.saver.save(
            self.engine.fragments_to_save(),
            step=step,
            spared=None if best is None else int(best["step"]),
            generation=self.generation,
            layout=layout_of(self.job),
            versions=store.versions(),
            state=to_keep(self.standing, self.config, self.job, self.kept),
            moved=self.heart.moved,
        )
        self.saved_step = step
        self.requests.saved()
        self.requests.save_s = self.saver.took_s
        self.measures.pause(time.monotonic() - started_s)

    def _name_saved(self) -> None:
        for step, folder in self.saver.committed():
            self.tracker.checkpoint(step, folder.url)

    def _agree(self, step: int) -> None:
        """Bring all ranks' sums together, and write down the pictures that failed."""
        if self.meter.agree():
            self.seen.write_faults(step, self.meter.agreed.bad_samples)

    # ---- small things -----------------------------------------------------------------------------------------------

    def _write_metrics(self, step: int, values: dict[str, float]) -> None:
        self.tracker.metrics(step, step * self.config.data.batch_size, float(self.pace.epochs(step)), values)

    def _say_slow(self, step: int) -> None:
        """A rank that is slow is named once, and all ranks' seconds are written down."""
        slow = self.stragglers.slow
        if slow is not None:
            self.tracker.message(slow.sentence(self.watchdog.hosts[slow.rank]))
            if self.mesh.place.rank == 0:
                table = JsonLines(self.folder / "logs" / "stragglers.jsonl", self.generation)
                table.append({"step": step, "phases": OF_A_STEP, "ranks_s": self.stragglers.table_s})
                table.close()

    def _needs(self, step: int) -> str:
        """What a load of this step waits for: the shards of its samples."""
        share, data_steps = (
            share_of(self.config, self.mesh),
            self.guard.data_steps(np.arange(step - 1, step), self.config.data.batch_size),
        )
        urls = shards_read(self.job.train, self.config, self.job.batches, share, int(data_steps[0]))
        more = f" and {len(urls) - 2} more" if len(urls) > 2 else ""
        return f"{'shard' if len(urls) == 1 else 'shards'} {', '.join(urls[:2])}{more}"

    def _hangs(self, cause: str) -> None:
        """What the watchdog's thread calls before it ends this process: one rank writes down why, and says it."""
        if not self.generation or end_if_first(self.folder, self.generation, cause, self.standing.step):
            say_error(cause, only_rank_0=False)
        if hasattr(self, "tracker"):
            self.tracker.hangs(f"{self.config.run.name} hangs", cause)

    def _end(self, cause: str, code: int) -> None:
        self.watchdog.close()
        if self.attempt is not None:  # before W&B, which may be waited for until whoever launched us kills us
            self.attempt.end(cause, code, self.standing.step)
        if hasattr(self, "tracker"):
            self._name_saved()
            if code:
                self.tracker.alert(f"{self.config.run.name} has ended", f"{cause} (after step {self.standing.step})")
            self.tracker.close(code)


def _choose_arithmetic(config: Config, device: torch.device) -> None:
    """fp32 means fp32 on GPUs, too: their default for convolutions, TF32, is good for 1e-3 only."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    if config.run.deterministic:
        prepare_determinism()
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
