"""The W&B run of a training run, fed from metrics.jsonl by a thread of its own.

W&B shows a run, it never holds it: metrics.jsonl is the truth. The training loop only says that there is something
new; the thread reads the file and sends what the service lacks. So a service that is slow, down or wrong costs the
loop nothing, nothing piles up in memory, and what one start could not send the next one does.

When a start, or a rollback, takes the run up at an earlier step, the history there is cut back to it, where the
service can. Where it cannot, the steps that it has stay as they were sent, and each is there once all the same.

What fails is said once, in one line on stderr, and the run goes on without it.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from dist_alexnet.track import session as wandb
from dist_alexnet.track.jsonl import Tail, counts, last_steps, starts
from dist_alexnet.track.rows import Row, Rows
from dist_alexnet.track.session import Card, Mode, Session, brief, say

CLOSE_LIMIT_S = 60.0  # how long the end of training waits for this thread
BROKEN_OFF_S = 20.0  # the same, where it is not done: Slurm and torchrun kill 30 s after they have asked
GOES_ON = 75  # exit code of a start that was asked to stop: another one follows
SHARE = 0.2  # of the thread's time in which it may send what is old: the loop needs the interpreter
KEPT = 100  # alerts, pictures and checkpoints that wait for a service that is slow


class WandbRun:
    """Calls of the training loop; none of them waits, but `finish`, which does so for a bounded time.

    card: is called in the thread. modes: how to open the run, in order, until one works. folder: the run folder; None
    for a node that only sends its system metrics. place: generation of this start, and the step it goes on after.
    """

    def __init__(
        self,
        card: Callable[[], Card],
        modes: tuple[Mode, ...],
        folder: Path | None,
        place: tuple[int, int],
        *,
        alerts: bool = True,
        save_code: bool = False,
        checkpoints: bool = False,
    ) -> None:
        self._make_card, self._modes, self._folder, self._place = card, modes, folder, place
        self._alerts, self._save_code, self._checkpoints = alerts, save_code, checkpoints
        self._news, self._asked = threading.Event(), deque[Callable[[Session], None]](maxlen=KEPT)
        self._pictures: dict[int, dict[str, Path]] = {}
        self._exit_code: int | None = None
        self._given_up = False
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    # ---- the training loop's side -----------------------------------------------------------------------------------

    def wake(self) -> None:
        """There is a new line in metrics.jsonl."""
        self._news.set()

    def go_on(self, generation: int, step: int) -> None:
        """The run was rolled back: it goes on after `step`, under another generation."""
        self._place = (generation, step)
        self._news.set()

    def pictures(self, step: int, files: Mapping[str, Path]) -> None:
        """Show these with the row of `step`; to be called before a line of a later step is written."""
        if len(self._pictures) < KEPT:
            self._pictures[step] = dict(files)

    def alert(self, title: str, text: str) -> None:
        """Send a message to the run's owner, unless the config says no."""
        if self._alerts:
            self._ask(lambda session: session.alert(title, text))

    def checkpoint(self, step: int, url: str) -> None:
        """A checkpoint was committed: name it as a reference artifact, if the config asks for that."""
        if self._checkpoints:
            self._ask(lambda session: session.refer_to_checkpoint(step, url))

    def finish(self, exit_code: int = 0, limit_s: float | None = None) -> None:
        """End the run (exit code 0 is success). Returns after `limit_s` at the latest; a second call does nothing."""
        if self._exit_code is not None:
            return
        if limit_s is None:
            limit_s = BROKEN_OFF_S if exit_code else CLOSE_LIMIT_S
        self._exit_code = exit_code
        self._news.set()
        self._thread.join(limit_s)
        if self._thread.is_alive():
            self._given_up = True
            say(
                f"not everything was sent within {limit_s:.0f} s; metrics.jsonl is complete, the next start sends the "
                "rest, or `dist-alexnet track replay`"
            )

    def _ask(self, what: Callable[[Session], None]) -> None:
        self._asked.append(what)
        self._news.set()

    # ---- the thread's side ------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            card = self._make_card()
            while True:
                place = self._place
                session = self._open(card, place)
                if session is None or self._feed(session, place):
                    return
                session.finish()
        except Exception as error:  # whatever W&B raises, training goes on
            if self._given_up:
                return
            say(f"failed ({brief(error)}); the run goes on without it, metrics.jsonl is complete")
            wandb.forget()

    def _open(self, card: Card, place: tuple[int, int]) -> Session | None:
        generation, step = place
        for mode in self._modes:
            try:
                session = self._opened_at(mode, card, step)
                session.say({"generation": generation, "resumed_step": step})
                # a rollback does not try again what has failed, and may need what is left
                self._modes = self._modes[self._modes.index(mode) :]
                return session
            except Exception as error:  # no service, no disk, no wandb: training does not depend on any of them
                last = mode == self._modes[-1]
                then = "this run is not shown there" if last else "this run is logged offline"
                say(f"{mode} start failed ({brief(error)}); {then}")
                wandb.forget()
        return None

    def _opened_at(self, mode: Mode, card: Card, step: int) -> Session:
        """Open the run with nothing in its history beyond `step`, as far as the service does that."""
        session = wandb.open_session(mode, card)
        if mode == "shared":  # which of its steps the service has is not told
            session.first_step = step + 1
        known = session.first_step - 1
        if known <= step:
            return session
        session.finish()
        try:
            return wandb.open_session(mode, card, cut_to=step)
        except Exception as error:
            wandb.forget()
            say(
                f"its history could not be cut back to step {step} ({brief(error)}); up to step {known} it stays as "
                "it was sent, and `dist-alexnet track replay` makes a run without that"
            )
            return wandb.open_session(mode, card)

    def _feed(self, session: Session, place: tuple[int, int]) -> bool:
        """Send what the session lacks and then what comes. False where the run was rolled back."""
        rows, records = Rows(), _Live(self._folder, place[0])
        self._keep_code(session)
        while True:
            closing = self._exit_code is not None  # looked at before the file is, so that nothing is left in it
            if self._place != place:
                return False
            for record in records.new():
                self._send(session, rows.add(record), old=record.get("generation") != place[0])
            while self._asked:
                self._try(self._asked.popleft(), session)
            if closing:
                break
            self._news.wait()
            self._news.clear()
        # The row of a step that the next start may go on with (an evaluation broken off) is left to that one.
        if self._exit_code != GOES_ON or session.is_offline:
            self._send(session, rows.rest())
        session.finish(self._exit_code or 0)
        return True

    def _send(self, session: Session, row: Row | None, old: bool = False) -> None:
        if row is None or row.step < session.first_step:
            return
        began_s = monotonic()
        row.pictures = self._pictures.pop(row.step, {})
        session.send(row)
        if old and self._exit_code is None:
            threading.Event().wait((monotonic() - began_s) * (1 - SHARE) / SHARE)

    def _keep_code(self, session: Session) -> None:
        """The code that runs, and config.yaml; once, also where the run is rolled back."""
        if self._save_code and self._folder is not None:
            self._save_code, config = False, self._folder / "config.yaml"
            self._try(lambda session: session.save_code(Path(__file__).parents[2], config), session)

    def _try(self, call: Callable[[Session], None], session: Session) -> None:
        try:
            call(session)
        except Exception as error:
            say(f"an alert or artifact was not taken ({brief(error)})")


class _Live:
    """The records of metrics.jsonl that count for a start, as they come."""

    def __init__(self, folder: Path | None, generation: int) -> None:
        self._tail = None if folder is None else Tail(folder / "metrics.jsonl")
        started = {} if folder is None else starts(folder / "attempts.jsonl")
        # Not those of a later start: where this one was taken for dead, that one feeds the run.
        self._last_step = last_steps({number: start for number, start in started.items() if number <= generation})
        self._last_step.setdefault(generation, float("inf"))

    def new(self) -> Iterator[dict[str, Any]]:
        while self._tail is not None and (records := self._tail.new()) is not None:
            yield from (record for record in records if "step" in record and counts(record, self._last_step))
