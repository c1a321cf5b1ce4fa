"""The one resumable loop. Knows no method and no task."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from dppmask_jax import parallel
from dppmask_jax.errors import InputError, Stopped
from dppmask_jax.methods.base import TrainState


class TrainingDiverged(Stopped):
    """Too many steps in a row had a loss, a gradient or an update that was not finite.

    Its exit status is 3: a script that starts crashed runs again can tell that it would not help.
    """

    def __init__(self, message: str):
        super().__init__(message, status=3)


class Span(NamedTuple):
    """The steps to make: from `start`, the last that was made, to `total`, each of `batch_size`
    images of all processes; the keys of all steps come from `seed_key`."""

    start: int
    total: int
    batch_size: int
    seed_key: Any

    def due(self, step: int, every: int) -> bool:
        """Whether a step is the last or a multiple of `every`; with 0 only the last is."""
        return step == self.total or (every > 0 and step % every == 0)


class Limits(NamedTuple):
    """What ends a run: more than `bad_steps` skipped steps in a row, or more unreadable images than
    a share of `bad_frac`, 0 to 1. `num_images` is the size of the data set."""

    bad_steps: int
    bad_frac: float
    num_images: int


class Saving(NamedTuple):
    """When states are saved, and what this process wants of the loop.

    Attributes:
      every: steps between saves.
      save: called with the step and the state every so many steps and at the end, after everything
        of that step is logged. It may return before the state is written.
      settle: waits until it is. Called while the devices make the next step, before that step is
        logged and another begun, so that a killed run repeats at most `every` steps.
      stop: 0, or the exit status that this process wants to end with. A single process stops before
        the next step. Several end after the same step, at most three later: each step carries the
        wishes of all.
      overdue: whether this process wants a save now, whatever `every` says. The wish is carried
        like that of `stop`, and a save is made at most two steps later.
    """

    every: int
    save: Callable[[int, TrainState], Any]
    settle: Callable[[], Any] = lambda: None
    stop: Callable[[], int] = lambda: 0
    overdue: Callable[[], bool] = lambda: False


class Hook(NamedTuple):
    """`run(state, step) -> values to log`, called every `every` steps (0: never between), at the
    start and the end."""

    every: int
    run: Callable[[TrainState, int], dict[str, float]]


class Reporting(NamedTuple):
    """What is written and shown.

    Attributes:
      every: steps between logged ones.
      log: called with a step and the values to write down; also for each step that was skipped.
      progress: called after each logged step.
      beat: called with each step, not much later than the devices have made it.
    """

    every: int
    log: Callable[[int, dict[str, float]], Any]
    progress: Callable[[int, dict[str, float]], Any]
    beat: Callable[[int], Any] = lambda step: None
    hooks: tuple[Hook, ...] = ()


class Profile(NamedTuple):
    """Trace `steps` steps into `directory`, once the first few have compiled and settled."""

    steps: int
    directory: str
    skip: int = 5


class Outcome(NamedTuple):
    """The state after `step`, the last that was made, and the `status` that stopped it there; 0
    after the last of all."""

    state: TrainState
    step: int
    status: int


def run(
    step_fn: Callable,
    state: TrainState,
    batches: Iterable[dict[str, np.ndarray]],
    span: Span,
    *,
    limits: Limits,
    saving: Saving,
    reporting: Reporting,
    profile: Profile | None = None,
) -> Outcome:
    """Makes the steps of the span, or those until `saving.stop` says so; then it saves.

    Args:
      batches: this process's share of the batch of step `span.start`, `span.start + 1`, …

    Raises:
      TrainingDiverged: too many steps in a row were not finite. It is raised at that step if it is
        logged, probed or saved, else while the next one runs.
      InputError: too many images were unreadable, of the data set, or, from the second epoch on, of
        all images drawn; looked at when a step is logged.
      All processes know the same counts and stop together.
    """
    if span.start == 0:
        _probe(state, 0, reporting, reporting.hooks)
    stream, clock = iter(batches), _Clock(span.start)
    follower = _Follower(span, limits, reporting)
    alone, saved = parallel.is_alone(), span.start
    tracing = _Tracing(profile, span)
    for step in range(span.start + 1, span.total + 1):
        wish = saving.stop()
        if status := wish if alone else follower.status:
            if saved < step - 1:
                saving.save(step - 1, state)
            saving.settle()
            return Outcome(state, step - 1, status)
        tracing.before(step)
        batch = _with_wish(clock.timed_wait(lambda: next(stream)), wish, saving.overdue())
        state, metrics = step_fn(state, parallel.split_batch(batch), span.seed_key)
        follower.follow(step, metrics)
        saving.settle()
        logs = span.due(step, reporting.every)
        if logs:
            _report(step, metrics, span, limits, reporting, clock)
        elif step == span.start + 1:
            clock.leave_out(step, metrics)  # the compilation, of the first logged throughput
        tracing.after(step, metrics)
        hooks = [hook for hook in reporting.hooks if span.due(step, hook.every)]
        saves = span.due(step, saving.every)
        if follower.save_wished or logs or saves or hooks:
            follower.catch_up()
        _probe(state, step, reporting, hooks)
        if saves := saves or follower.save_wished:
            saving.save(step, state)
            saved, follower.save_wished = step, False
        if saves or hooks:
            clock.restart(step)
    saving.settle()
    return Outcome(state, span.total, 0)


def _with_wish(batch, status: int, save: bool):
    """The batch with what this process wants in its "wish", see `_Follower.catch_up`.

    The largest of all processes counts: an end before a save, which it brings as well.
    """
    return {**batch, "wish": np.full(len(batch["bad"]), 2 * status + save, np.int32)}


def _probe(state, step: int, reporting: Reporting, hooks: Iterable[Hook]) -> None:
    for hook in hooks:
        reporting.log(step, hook.run(parallel.gather(state._replace(opt_state=())), step))


def _report(step: int, metrics, span: Span, limits: Limits, reporting: Reporting, clock) -> None:
    """Logs and shows a step, and counts the unreadable images."""
    values = _worth_logging(metrics) | clock.lap(step, span.batch_size)
    reporting.log(step, values)
    reporting.progress(step, values)
    bad_images, drawn = values.get("bad_images", 0), step * span.batch_size
    # A share of the whole data set at least: a few bad images early in the first epoch end no run.
    if bad_images > limits.bad_frac * max(drawn, limits.num_images):
        raise _too_many_bad_images(bad_images, drawn, limits)


def _worth_logging(metrics) -> dict[str, float]:
    values = {name: value.item() for name, value in parallel.to_host(metrics).items()}
    counts = {name: values.pop(name) for name in ("bad_steps", "bad_images")}
    del values["wish"]
    return values | {name: count for name, count in counts.items() if count}


def of_turns(metrics) -> list[tuple[str, str]]:
    """The names of the loss and the gradient norm of each turn, see `methods.base.Turn.name`."""
    norms = [name for name in metrics if name.startswith("grad_norm")]
    return [("loss" + name.removeprefix("grad_norm"), name) for name in norms]


class _Follower:
    """Looks back at steps that the devices have made, at most one behind the host.

    Attributes:
      status: the exit status that the steps so far carry, the largest wish of all processes.
      save_wished: whether they carry the wish for a save that was not made yet.
    """

    def __init__(self, span: Span, limits: Limits, reporting: Reporting):
        self.status, self.save_wished = 0, False
        self._span, self._limits, self._reporting = span, limits, reporting
        self._in_flight = None

    def follow(self, step: int, metrics) -> None:
        """Notes a step that was begun, after a wait for the one before it: batches must not pile
        up."""
        if self._in_flight is not None:
            self.catch_up()
        self._in_flight = step, metrics

    def catch_up(self) -> None:
        """Waits for the last step that was begun, and looks whether it was skipped."""
        (step, metrics), self._in_flight = self._in_flight, None
        bad_steps = parallel.to_host(metrics["bad_steps"]).item()
        if bad_steps and not self._span.due(step, self._reporting.every):
            names = [name for pair in of_turns(metrics) for name in pair]
            values = {name: parallel.to_host(metrics[name]).item() for name in names}
            self._reporting.log(step, values | {"bad_steps": bad_steps})
        if bad_steps > self._limits.bad_steps:
            raise _diverged(step, bad_steps, self._limits)
        self._reporting.beat(step)
        self.status, wished = divmod(parallel.to_host(metrics["wish"]).item(), 2)
        self.save_wished = self.save_wished or bool(wished)


def _too_many_bad_images(bad_images: int, drawn: int, limits: Limits) -> InputError:
    return InputError(
        f"{bad_images} of the {drawn} images drawn so far, from a data set of {limits.num_images}, "
        f"were unreadable, more than data.max_bad_frac={limits.bad_frac:g}; each was named when it "
        "was met: mend or remove them, or raise data.max_bad_frac"
    )


def _diverged(step: int, bad_steps: int, limits: Limits) -> TrainingDiverged:
    return TrainingDiverged(
        f"{bad_steps} steps in a row up to step {step}, more than optim.max_bad_steps="
        f"{limits.bad_steps}, were skipped because loss, gradient or update was not finite. The "
        "checkpoints are kept, and finite: lower optim.base_lr, lengthen optim.warmup_epochs, set "
        "optim.clip_norm=1.0 or model.dtype=float32, and run again to go on from the last of them"
    )


class _Tracing:
    """Traces the steps of a profile; without one, none."""

    def __init__(self, profile: Profile | None, span: Span):
        self._profile, self._first, self._last = profile, None, None
        if profile is not None and span.start < span.total:
            self._first = min(span.start + 1 + profile.skip, span.total)
            self._last = min(self._first + profile.steps - 1, span.total)

    def before(self, step: int) -> None:
        if step == self._first:
            jax.profiler.start_trace(self._profile.directory)

    def after(self, step: int, metrics) -> None:
        if step == self._last:
            jax.block_until_ready(metrics["loss"])
            jax.profiler.stop_trace()


class _Clock:
    """Throughput and the share of time that the loop waits for data, between logged steps."""

    def __init__(self, step: int):
        self.restart(step)

    def restart(self, step: int) -> None:
        self._step, self._start, self._waited = step, time.perf_counter(), 0.0

    def leave_out(self, step: int, metrics) -> None:
        """Starts anew once a step has been made."""
        jax.block_until_ready(metrics["loss"])
        self.restart(step)

    def timed_wait(self, call):
        start = time.perf_counter()
        result = call()
        self._waited += time.perf_counter() - start
        return result

    def lap(self, step: int, batch_size: int) -> dict[str, float]:
        elapsed = time.perf_counter() - self._start
        rates = {
            "images_per_sec": (step - self._step) * batch_size / elapsed,
            "data_wait_frac": self._waited / elapsed,
        }
        self.restart(step)
        return rates
