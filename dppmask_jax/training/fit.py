"""Trains a method in a folder, from the start or from its newest checkpoint: what pre-training and
supervised evaluations share around the loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dppmask_jax import parallel
from dppmask_jax.data import loader
from dppmask_jax.errors import Stopped
from dppmask_jax.fields import Field, number, whole
from dppmask_jax.methods.base import Method, Plan, TrainState
from dppmask_jax.runs import checkpoint, metrics, workdir
from dppmask_jax.training import loop, signals
from dppmask_jax.training.resuming import Start
from dppmask_jax.training.saves import FAILED, Saves
from dppmask_jax.training.step import make_step
from dppmask_jax.words import count

FIELDS = {
    "log_every": Field(50, whole(1), "steps between logged ones", free="carried out"),
    "data.max_bad_frac": Field(
        0.01, number(0, 1), "share of unreadable images that ends the run", free="carried out"
    ),
    "optim.accum_steps": Field(
        1, whole(1), "micro-batches that a step is made of", free="regrouped"
    ),
    "optim.max_bad_steps": Field(
        20, whole(0), "steps in a row, not finite, that end the run", free="carried out"
    ),
    **parallel.FIELDS,
}


class Training(NamedTuple):
    """What is trained, and where.

    Attributes:
      config: a checked config; its fields of data, optim, checkpoint and evaluate that say how to
        train are used, and all of it is written into the folder.
      folder: receives config.json, metrics.jsonl, checkpoints/ and what trackers write.
      start: where to start, of `resuming.start_in`.
      source: training images.
      seed_key: the key that the keys of all steps come from.
    """

    config: Any
    folder: Path
    start: Start
    plan: Plan
    method: Method
    source: Any
    seed_key: Any


def fit(
    training: Training,
    first: Callable[[], TrainState],
    *,
    announce: Callable,
    probe: Callable | None = None,
    draw: Callable | None = None,
    profile_steps: int = 0,
):
    """Trains to the end of the plan. Where no step is left to make, nothing is written.

    Args:
      first: () -> the state before the first step. Nobody else holds it: it is freed where devices
        hold shares of it.
      announce: called with the state that training starts with.
      probe: `probe(say)` gives the function of state and step that the evaluation hook runs; `say`
        prints a line above the progress bar. None: there is no such hook.
      draw: state after the last step -> paths of figures, which the trackers show; called by the
        main process. None: there are none.
      profile_steps: number of steps to trace into the folder's profile/; 0 traces none.

    Returns:
      The state after the last step, on every device, without that of the optimisers.

    Raises:
      loop.TrainingDiverged, InputError: see `loop.run`.
      Stopped: SIGTERM, SIGINT or SIGHUP came, and the state is saved; or too many saves failed.
    """
    config, folder, start, plan = training[:4]
    state = _restored(folder, start, parallel.replicate(first()))
    main = parallel.is_main()
    if start.step >= plan.total_steps:
        if main:
            announce(state)
        return state._replace(opt_state=())
    with contextlib.ExitStack() as stack:
        asked = stack.enter_context(signals.noted())
        if main:
            workdir.write_config(config, folder, start.record)
            announce(state)
        progress = metrics.Progress(start.step, plan.total_steps, main)
        stack.callback(progress.close)
        # A start at step 0, as of an imported run, begins a new log.
        writer = metrics.MetricsLog(
            folder if main else None, start.step or None, progress.say, workdir.to_json(config)
        )
        stack.callback(writer.close)
        saves = stack.enter_context(contextlib.closing(_saves(training, writer, progress)))
        batches = stack.enter_context(_stream(training, progress.say))
        hooks = () if probe is None else (loop.Hook(plan.evaluate_every, probe(progress.say)),)
        accum_steps, mode = config.optim.accum_steps, config.parallel.mode
        state = parallel.place(state, mode)  # what was whole is freed
        outcome = loop.run(
            make_step(training.method, accum_steps=accum_steps, mode=mode),
            state,
            batches,
            loop.Span(start.step, plan.total_steps, config.batch_size, training.seed_key),
            limits=_limits(training),
            saving=_saving(config, saves, asked),
            reporting=_reporting(training, writer, progress, hooks),
            profile=loop.Profile(profile_steps, str(folder / "profile")) if profile_steps else None,
        )
        unsaved = parallel.decided_by_main(lambda: FAILED if saves.failed else 0)
        if status := outcome.status or unsaved:
            raise Stopped(_why(status, outcome.step, plan, saves, folder), status)
        progress.close()
        state = parallel.gather(outcome.state._replace(opt_state=()))
        writer.finish(outcome.step, draw(state) if main and draw else ())
        return state


def _restored(folder: Path, start: Start, state):
    """The state of the checkpoint to start from, where there is one; newer ones are moved out of
    the way."""
    if not start.restored:
        return state

    def check() -> int:
        checkpoint.check_fits(folder, start.step, state)
        return 0

    parallel.decided_by_main(check)
    checkpoint.set_aside(folder, start.damaged)
    return checkpoint.restore(folder, start.step, state)


def _limits(training: Training) -> loop.Limits:
    config = training.config
    return loop.Limits(config.optim.max_bad_steps, config.data.max_bad_frac, len(training.source))


def _saves(training: Training, writer, progress) -> Saves:
    settings = training.config.checkpoint
    return Saves(
        checkpoint.Checkpoints(training.folder / checkpoint.FOLDER, keep=settings.keep)
        if parallel.is_main()
        else None,
        meta={"config": workdir.to_json(training.config), **training.start.record},
        max_failed=settings.max_failed_saves,
        every_seconds=60 * settings.every_minutes,
        write_metrics=writer.flush,
        say=progress.say,
    )


def _saving(config, saves: Saves, asked: Callable[[], int]) -> loop.Saving:
    return loop.Saving(
        every=config.checkpoint.every,
        save=lambda step, state: saves.begin(step, parallel.to_host(state)),
        settle=saves.settle,
        stop=lambda: max(asked(), saves.status()),
        overdue=saves.overdue,
    )


def _reporting(training: Training, writer, progress, hooks) -> loop.Reporting:
    total_steps = training.plan.total_steps
    return loop.Reporting(
        every=training.config.log_every,
        log=_logged(writer, progress, total_steps),
        progress=_shown(training.method, progress, total_steps),
        beat=progress.beat,
        hooks=hooks,
    )


def _why(status: int, step: int, plan: Plan, saves: Saves, folder: Path) -> str:
    where = f"after step {step:,} of {plan.total_steps:,}"
    if not parallel.is_main():
        return f"stopped {where}, as process 0 did; the same command goes on"
    if status != FAILED:
        return f"{signals.name(status)}: stopped {where}; the same command {saves.resumes()}"
    return (
        f"stopped {where}: {count(saves.failed, 'save')} in a row failed, the last one: "
        f"{saves.reason}; "
        f"mend that for {folder}, and the same command {saves.resumes()}"
    )


def _stream(training: Training, say):
    config = training.config
    shard, num_shards = parallel.process_shard()
    return loader.train_stream(
        training.source,
        example=training.method.example,
        extras=training.method.extras,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=training.start.step,
        workers=config.data.workers,
        shard=shard,
        num_shards=num_shards,
        log=say,
    )


def _logged(writer, progress, total_steps):
    """`loop.Reporting.log`: writes values, and warns at the first of several skipped steps in a
    row."""

    def log(step, values):
        writer.write(step, values)
        if values.get("bad_steps") == 1 and parallel.is_main():
            found = ", ".join(
                f"loss {values[loss]:.4g}, gradient norm {values[norm]:.4g}"
                for loss, norm in loop.of_turns(values)
            )
            progress.say(
                f"step {step}/{total_steps}  warning: {found}; a step that is not finite is skipped"
            )

    return log


def _shown(method, progress, total_steps):
    """`loop.Reporting.progress`: shows a logged step, and a warning of `Method.watch` once, when it
    first comes."""
    watch = method.watch()
    last = ""

    def show(step, values):
        nonlocal last
        progress.update(step, values)
        warning = watch(step, values)
        if warning and warning != last and parallel.is_main():
            progress.say(f"step {step}/{total_steps}  warning: {warning}")
        last = warning

    return show
