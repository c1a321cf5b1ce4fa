"""The one training step and the one resumable loop. Knows no method and no task."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dppmask_jax import parallel
from dppmask_jax.errors import InputError, Stopped
from dppmask_jax.methods.base import Method, TrainState, Turn


class TrainingDiverged(Stopped):
    """Too many steps in a row had a loss, a gradient or an update that was not finite.

    The status 3 tells scripts from a crash that starting again by itself will not help.
    """

    def __init__(self, message: str):
        super().__init__(message, status=3)


def init_state(method: Method, key) -> TrainState:
    """The state before the first step, on the host's default device."""

    def build(key):
        params, extra = method.init(key)
        zero = jnp.zeros((), jnp.int32)
        opt_state = tuple(turn.optimizer.tx.init(_trained(turn, params)) for turn in method.turns)
        return TrainState(zero, params, opt_state, extra, zero, zero)

    return jax.jit(build)(key)


def _trained(turn: Turn, params):
    """The parameters that a turn updates."""
    if turn.trains is None:
        return params
    return {name: params[name] for name in sorted(turn.trains)}


def _accumulated_gradients(turn: Turn, params, state, batch, key, accum_steps):
    """(gradient of what the turn trains, loss, metrics, aux), means over the micro-batches."""

    def loss_of(trained, micro):
        every = trained if turn.trains is None else {**params, **trained}
        return turn.loss(every, state.extra, micro, key, state.step)

    grad_fn = jax.value_and_grad(loss_of, has_aux=True)

    def of_micro_batch(micro):
        (loss, (metrics, aux)), grads = grad_fn(_trained(turn, params), micro)
        return grads, loss, metrics, aux

    if accum_steps == 1:
        return of_micro_batch(batch)
    micros = jax.tree.map(lambda x: x.reshape((accum_steps, -1, *x.shape[1:])), batch)
    first = jax.tree.map(lambda x: x[0], micros)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_micro_batch, first)
    )

    def add(total, micro):
        return jax.tree.map(jnp.add, total, of_micro_batch(micro)), None

    total, _ = jax.lax.scan(add, zeros, micros)
    return jax.tree.map(lambda x: x / accum_steps, total)


def make_step(method: Method, *, accum_steps: int = 1, devices=None) -> Callable:
    """The training step, compiled for all devices.

    Args:
      devices: see `parallel.data_parallel_update`.

    Returns:
      `step(state, batch, seed_key) -> (state, metrics)`; `batch` from `parallel.split_batch`,
      with or without "wish" int32 (b,), of which the metrics have the largest of all processes.
      Gradients, metrics and `aux` of a turn are averaged over the micro-batches and the devices,
      then there is its update; after the last turn, one `after_step`. Where in any turn the loss,
      the gradient norm or a parameter after the update is not finite, only the counts change.
    """

    def take(turn: Turn, opt_state, params, state, batch, key):
        """(params, opt_state, metrics, aux, whether all is finite) after a turn."""
        grads, loss, metrics, aux = parallel.mean(
            _accumulated_gradients(turn, params, state, batch, key, accum_steps)
        )
        grad_norm = optax.tree.norm(grads)
        with jax.named_scope("optimizer"):
            trained = _trained(turn, params)
            updates, opt_state = optax.with_extra_args_support(turn.optimizer.tx).update(
                grads, opt_state, trained, train_step=state.step
            )
            lr = turn.optimizer.learning_rate(state.step)
            trained = optax.apply_updates(trained, jax.tree.map(lambda u: lr * u, updates))
            # Of finite gradients an update can still overflow: nothing else may reach a checkpoint.
            finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & _all_finite(trained)
        params = trained if turn.trains is None else {**params, **trained}
        ending = f"_{turn.name}" if turn.name else ""
        values = {"loss": loss, "lr": lr, "grad_norm": grad_norm}
        metrics = metrics | {name + ending: value for name, value in values.items()}
        return params, opt_state, metrics, aux, finite

    def step(state: TrainState, batch, seed_key):
        batch = dict(batch)
        wish = parallel.largest(jnp.max(batch.pop("wish", 0)))
        key = jax.random.fold_in(seed_key, state.step)
        params, opt_states, metrics, aux, finite = state.params, (), {}, {}, True
        for turn, opt_state in zip(method.turns, state.opt_state, strict=True):
            params, opt_state, *found = take(turn, opt_state, params, state, batch, key)
            opt_states = (*opt_states, opt_state)
            metrics, aux, finite = metrics | found[0], aux | found[1], finite & found[2]
        with jax.named_scope("optimizer"):
            extra = method.after_step(params, state.extra, aux, state.step)
        metrics = {**metrics, **method.report(extra, aux, state.step)}
        updated = (params, opt_states, extra)
        unchanged = (state.params, state.opt_state, state.extra)
        with jax.named_scope("optimizer"):
            kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, unchanged)
        bad_steps = jnp.where(finite, 0, state.bad_steps + 1)
        bad_images = state.bad_images + parallel.total(jnp.sum(batch["bad"], dtype=jnp.int32))
        counts = {"bad_steps": bad_steps, "bad_images": bad_images}
        metrics = {**metrics, **counts, "wish": wish}
        return TrainState(state.step + 1, *kept, **counts), metrics

    return parallel.data_parallel_update(step, devices)


def _all_finite(tree):
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


class Hook(NamedTuple):
    """`run(state, step) -> values to log`, called every `every` steps (0: never between), at the
    start and the end."""

    every: int
    run: Callable[[TrainState, int], dict[str, float]]


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
    *,
    start_step: int,
    total_steps: int,
    seed_key,
    batch_size: int,
    log_every: int,
    max_bad_steps: int,
    max_bad_frac: float,
    num_images: int,
    save_every: int,
    save: Callable[[int, TrainState], Any],
    settle: Callable[[], Any],
    stop: Callable[[], int],
    log: Callable[[int, dict[str, float]], Any],
    progress: Callable[[int, dict[str, float]], Any],
    overdue: Callable[[], bool] = lambda: False,
    beat: Callable[[int], Any] = lambda step: None,
    hooks: tuple[Hook, ...] = (),
    profile: Profile | None = None,
) -> Outcome:
    """Trains from `start_step` to `total_steps`, or until `stop` says so; then it saves.

    Args:
      batches: this process's share of the batch of step `start_step`, `start_step + 1`, …
      batch_size: images of all processes in a step.
      max_bad_frac: share of the images, 0 to 1, that may be unreadable.
      num_images: images in the data set.
      save: called with the step and the state every `save_every` steps and at the end, after
        everything of that step is logged. It may return before the state is written.
      settle: waits until it is. Called while the devices make the next step, of which nothing is
        logged or begun before: a killed run repeats at most `save_every` steps.
      stop: 0, or the exit status that this process wants to end with. Alone, it stops before the
        next step. Of several processes, each step carries the wish of all, so that they end after
        the same one, at most three steps later.
      log: called with a step and the values to write down; also for each step that was skipped.
      progress: called after each logged step.
      overdue: whether this process wants a save now, whatever `save_every` says. The wish is
        carried like that of `stop`, and a save is made at most two steps later.
      beat: called with each step, not much later than the devices have made it.
      profile: which steps to trace; None traces none.

    Raises:
      TrainingDiverged: more than `max_bad_steps` steps in a row were not finite. It is raised at
        that step if it is logged, probed or saved, else while the next one runs.
      InputError: more images were unreadable than `max_bad_frac` of the data set, or, from the
        second epoch on, of all images drawn; looked at when a step is logged.
      All processes know the same counts and stop together.
    """

    def due(step, every):
        return step == total_steps or (every > 0 and step % every == 0)

    def look_back(step, metrics) -> tuple[int, int]:
        """Waits for a step, looks whether it was skipped, and returns what it carries of `stop` and
        `overdue`."""
        bad_steps = parallel.to_host(metrics["bad_steps"]).item()
        if bad_steps and not due(step, log_every):
            names = ("loss", "grad_norm", "bad_steps")
            log(step, {name: parallel.to_host(metrics[name]).item() for name in names})
        if bad_steps > max_bad_steps:
            raise _diverged(step, bad_steps, max_bad_steps)
        beat(step)
        return divmod(parallel.to_host(metrics["wish"]).item(), 2)

    if start_step == 0:
        for hook in hooks:
            log(0, hook.run(state, 0))
    stream = iter(batches)
    clock = _Clock(start_step)
    in_flight = None
    alone, status, late, saved = parallel.is_alone(), 0, 0, start_step
    trace_from, trace_to = _traced_steps(profile, start_step, total_steps)
    for step in range(start_step + 1, total_steps + 1):
        wish = stop()
        if status := wish if alone else status:
            if saved < step - 1:
                save(step - 1, state)
            settle()
            return Outcome(state, step - 1, status)
        if step == trace_from:
            jax.profiler.start_trace(profile.directory)
        batch = clock.timed_wait(lambda: next(stream))
        # The largest wish of all processes counts: an end before a save, which it brings as well.
        batch["wish"] = np.full(len(batch["bad"]), 2 * wish + overdue(), np.int32)
        state, metrics = step_fn(state, parallel.split_batch(batch), seed_key)
        # The host runs at most one step ahead of the devices: batches must not pile up.
        if in_flight is not None:
            status, late = look_back(*in_flight)
        in_flight = step, metrics
        settle()
        if step == start_step + 1 and not due(step, log_every):
            # Keeps the compilation out of the first logged throughput.
            jax.block_until_ready(metrics["loss"])
            clock.restart(step)
        if due(step, log_every):
            values = _worth_logging(metrics) | clock.lap(step, batch_size)
            log(step, values)
            progress(step, values)
            bad_images, drawn = values.get("bad_images", 0), step * batch_size
            # In the first epoch against all images: no unlucky start of it ends a run.
            if bad_images > max_bad_frac * max(drawn, num_images):
                raise _too_many_bad_images(bad_images, drawn, num_images, max_bad_frac)
        if step == trace_to:
            jax.block_until_ready(metrics["loss"])
            jax.profiler.stop_trace()
        if late or any(
            due(step, every) for every in (log_every, save_every, *(h.every for h in hooks))
        ):
            status, again = look_back(*in_flight)
            late, in_flight = late or again, None
        evaluated = False
        for hook in hooks:
            if due(step, hook.every):
                log(step, hook.run(state, step))
                evaluated = True
        if late or due(step, save_every):
            save(step, state)
            saved, late, evaluated = step, 0, True
        if evaluated:
            clock.restart(step)
    settle()
    return Outcome(state, total_steps, 0)


def _worth_logging(metrics) -> dict[str, float]:
    values = {name: value.item() for name, value in parallel.to_host(metrics).items()}
    counts = {name: values.pop(name) for name in ("bad_steps", "bad_images")}
    del values["wish"]
    return values | {name: count for name, count in counts.items() if count}


def _too_many_bad_images(bad_images, drawn, num_images, max_bad_frac):
    return InputError(
        f"{bad_images} of the {drawn} images drawn so far, from a data set of {num_images}, were "
        f"unreadable, more than data.max_bad_frac={max_bad_frac:g}; each was named when it was "
        "met: mend or remove them, or raise data.max_bad_frac"
    )


def _diverged(step, bad_steps, max_bad_steps):
    return TrainingDiverged(
        f"{bad_steps} steps in a row up to step {step}, more than optim.max_bad_steps="
        f"{max_bad_steps}, were skipped because loss, gradient or update was not finite. The "
        "checkpoints are kept, and finite: lower optim.base_lr, lengthen optim.warmup_epochs, set "
        "optim.clip_norm=1.0 or model.dtype=float32, and run again to go on from the last of them"
    )


def _traced_steps(profile, start_step, total_steps):
    if profile is None or start_step == total_steps:
        return None, None
    first = min(start_step + 1 + profile.skip, total_steps)
    return first, min(first + profile.steps - 1, total_steps)


class _Clock:
    """Throughput and the share of time that the loop waits for data, between logged steps."""

    def __init__(self, step: int):
        self.restart(step)

    def restart(self, step: int) -> None:
        self._step, self._start, self._waited = step, time.perf_counter(), 0.0

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
