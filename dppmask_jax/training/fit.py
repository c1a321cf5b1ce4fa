"""Trains a method in a folder, from the start or from its newest checkpoint: what pre-training and
supervised evaluations share around the loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from dppmask_jax import optim, parallel
from dppmask_jax.data import loader
from dppmask_jax.errors import InputError, Stopped
from dppmask_jax.methods.base import Plan
from dppmask_jax.runs import checkpoint, metrics, workdir
from dppmask_jax.training import loop, signals
from dppmask_jax.training.resuming import Start
from dppmask_jax.training.saves import FAILED, Saves
from dppmask_jax.words import count


def plan_from(config, num_images: int) -> Plan:
    """Steps of a run: an epoch is as many whole batches as the images fill, at least one.

    Raises:
      InputError: the steps are too many to be counted in an int32.
    """
    steps_per_epoch = max(1, num_images // config.batch_size)

    def steps(epochs):
        return max(1, round(epochs * steps_per_epoch))

    total = steps(config.epochs)
    if total >= 2**31 - 1:
        raise InputError(
            f"config.epochs={config.epochs:g} of {steps_per_epoch} steps are {total:.3g} steps in "
            "all, more than 2147483646; lower it"
        )
    return Plan(
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        warmup_steps=min(round(config.optim.warmup_epochs * steps_per_epoch), total - 1),
        evaluate_every=config.evaluate.every_epochs and steps(config.evaluate.every_epochs),
        peak_lr=optim.scaled_learning_rate(config.optim.base_lr, config.batch_size),
    )


def fit(
    config,
    folder: Path,
    *,
    state,
    start: Start,
    method,
    source,
    plan: Plan,
    seed_key,
    probe: Callable | None,
    announce: Callable,
    profile_steps: int = 0,
):
    """Trains to the end of the plan. Where no step is left to make, nothing is written.

    Args:
      config: a checked config; its fields of data, optim, checkpoint and evaluate that say how to
        train are used, and all of it is written into the folder.
      folder: receives config.json, metrics.jsonl, checkpoints/ and tensorboard/.
      state: the state before the first step; its arrays may be donated.
      start: where to start, of `resuming.start_in`.
      source: training images.
      seed_key: the key that the keys of all steps come from.
      probe: `probe(say)` gives the function of state and step that the evaluation hook runs; `say`
        prints a line above the progress bar. None: there is no such hook.
      announce: called with the state that training starts with.
      profile_steps: number of steps to trace into the folder's profile/; 0 traces none.

    Returns:
      The state after the last step.

    Raises:
      loop.TrainingDiverged, InputError: see `loop.run`.
      Stopped: SIGTERM, SIGINT or SIGHUP came, and the state is saved; or too many saves failed.
    """
    state = parallel.replicate(state)
    state = _restored(folder, start, state) if start.restored else state
    main = parallel.is_main()
    if start.step >= plan.total_steps:
        if main:
            announce(state)
        return state
    with contextlib.ExitStack() as stack:
        asked = stack.enter_context(signals.noted())
        if main:
            folder.mkdir(parents=True, exist_ok=True)
            workdir.write_config(config, folder, start.record)
            announce(state)
        progress = metrics.Progress(start.step, plan.total_steps, main)
        stack.callback(progress.close)
        # From step 0, which is where an imported run goes on from, everything is logged anew.
        writer = metrics.MetricsLog(folder if main else None, start.step or None, progress.say)
        stack.callback(writer.close)
        writer.show_config(start.step, workdir.to_json(config))
        saves = _saves(config, folder, start, writer, progress)
        stack.callback(saves.close)
        batches = stack.enter_context(_stream(config, method, source, start.step, progress.say))
        outcome = loop.run(
            loop.make_step(method, accum_steps=config.optim.accum_steps),
            state,
            batches,
            start_step=start.step,
            total_steps=plan.total_steps,
            seed_key=seed_key,
            batch_size=config.batch_size,
            log_every=config.log_every,
            max_bad_steps=config.optim.max_bad_steps,
            max_bad_frac=config.data.max_bad_frac,
            num_images=len(source),
            save_every=config.checkpoint.every,
            save=lambda step, state: saves.begin(step, parallel.to_host(state)),
            settle=saves.settle,
            stop=lambda: max(asked(), saves.status()),
            overdue=saves.overdue,
            log=_logged(writer, progress, plan.total_steps),
            progress=_shown(method, progress, plan.total_steps),
            beat=progress.beat,
            hooks=() if probe is None else (loop.Hook(plan.evaluate_every, probe(progress.say)),),
            profile=(
                loop.Profile(profile_steps, str(folder / "profile")) if profile_steps else None
            ),
        )
        unsaved = parallel.decided_by_main(lambda: FAILED if saves.failed else 0)
        if outcome.status or unsaved:
            status = outcome.status or unsaved
            raise Stopped(_why(status, outcome.step, plan, saves, folder), status)
        return outcome.state


def _restored(folder: Path, start: Start, state):
    """The state of the checkpoint to start from; newer ones are moved out of the way."""

    def check() -> int:
        checkpoint.check_fits(folder, start.step, state)
        return 0

    parallel.decided_by_main(check)
    checkpoint.set_aside(folder, start.damaged)
    return checkpoint.restore(folder, start.step, state)


def _saves(config, folder: Path, start: Start, writer, progress) -> Saves:
    keep = config.checkpoint.keep
    return Saves(
        checkpoint.Checkpoints(folder / checkpoint.FOLDER, keep=keep)
        if parallel.is_main()
        else None,
        meta={"config": workdir.to_json(config), **start.record},
        max_failed=config.checkpoint.max_failed_saves,
        every_seconds=60 * config.checkpoint.every_minutes,
        write_metrics=writer.flush,
        say=progress.say,
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


def _stream(config, method, source, start_step: int, say):
    shard, num_shards = parallel.process_shard()
    return loader.train_stream(
        source,
        example=method.example,
        extras=method.extras,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        workers=config.data.workers,
        shard=shard,
        num_shards=num_shards,
        log=say,
    )


def _logged(writer, progress, total_steps):
    """Writes values down, and says when the first of some steps is skipped."""

    def log(step, values):
        writer.write(step, values)
        if values.get("bad_steps") == 1 and parallel.is_main():
            progress.say(
                f"step {step}/{total_steps}  warning: loss {values['loss']:.4g}, gradient norm "
                f"{values['grad_norm']:.4g}; a step that is not finite is skipped"
            )

    return log


def _shown(method, progress, total_steps):
    """Shows a logged step, and says what the method finds wrong with the run, when it begins."""
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
