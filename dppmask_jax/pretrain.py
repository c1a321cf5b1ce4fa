"""Composes a pre-training run from its config: data, method, loop, probes and figures."""

from __future__ import annotations

import functools
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp

from dppmask_jax import announcement, fields, parallel
from dppmask_jax.config import check, fields_of
from dppmask_jax.data.sources import identity
from dppmask_jax.data.sources.base import first_extras
from dppmask_jax.errors import InputError
from dppmask_jax.evals import probe
from dppmask_jax.figures.curves import write_curves
from dppmask_jax.figures.of_run import write_run_figures
from dppmask_jax.models.encoders import name_of
from dppmask_jax.patches import sides
from dppmask_jax.runs import bucket_copy, workdir
from dppmask_jax.runs.kinds import ENCODER, kind_of
from dppmask_jax.runs.run import Run, load_run, open_data
from dppmask_jax.training import resuming
from dppmask_jax.training.build import method_from, plan_from, schedules
from dppmask_jax.training.fit import Training, fit
from dppmask_jax.training.step import init_state

_WAYS = (
    "go back to that one; or start a new run from this one, with "
    "--config.init_from={0} and another --workdir; or add --allow_change, and the run's "
    "history tells"
)


def train(
    config, folder: str | Path, *, profile_steps: int = 0, allow_change: bool = False
) -> None:
    """Runs a config in a workdir, from the start or from its newest checkpoint.

    A finished run is left as it is.

    Args:
      config: a config such as `configs/mae.py` makes.
      folder: the workdir; receives config.json, metrics.jsonl, checkpoints/, figures/ and
        tensorboard/. It may be in a bucket, see `runs.bucket_copy`.
      profile_steps: number of steps to trace into the workdir's profile/; 0 traces none.
      allow_change: go on with another config than that of the steps so far; the model stays, and
        config.json and the checkpoints keep the history.

    Raises:
      InputError: the config, the data or the workdir is wrong, or the workdir holds steps that were
        made with another config (see `resuming`); nothing was changed.
      loop.TrainingDiverged: too many steps in a row were not finite.
      Stopped: by a signal, or because nothing could be saved.
    """
    check(config)
    parallel.check_batch(config.batch_size, config.optim.accum_steps, "config.batch_size")
    with bucket_copy.opened(folder) as local:
        workdir.check_folder(local)
        with workdir.locked(local):
            _train(config, local, profile_steps, allow_change)


def _train(config, folder: Path, profile_steps: int, allow_change: bool) -> None:
    train_source, val_source = open_data(config)
    plan = plan_from(config, len(train_source))
    known = fields_of(config.method)
    terms = resuming.Terms(
        known=known,
        free=fields.free(known, *fields.FREE),
        fixed=fields.fixed(known).__contains__,
        schedules=lambda config: schedules(config, len(train_source)),
        allow=allow_change,
        total_steps=plan.total_steps,
        ways=_WAYS.format(shlex.quote(bucket_copy.named(folder))),
        refuse=functools.partial(_refuse_encoder, folder),
    )
    images = functools.partial(identity.of_splits, train_source, val_source)
    start = resuming.start_in(folder, config, images, terms)

    method = method_from(config, plan)
    for source in filter(None, (train_source, val_source)):
        first_extras(source, method.extras, f"config.method={config.method}")
    init_key, seed_key, probe_key = jax.random.split(jax.random.key(config.seed), 3)
    begins = config.init_from and not start.restored
    encoder = _encoder_of(config, method) if begins else None

    def first():
        state = init_state(method, init_key)
        if begins:
            params, extra = method.with_encoder(state.params, state.extra, encoder)
            state = state._replace(params=params, extra=extra)
        return state

    untrained = not start.restored and not config.init_from
    probed = probe.Probed(config, plan, train_source, val_source, untrained)
    training = Training(config, folder, start, plan, method, train_source, seed_key)
    drawn = []

    def draw(state):
        drawn.extend(_draw(config, folder, state))
        return drawn

    state = fit(
        training,
        first,
        announce=lambda state: announcement.announce(training, state, val_source),
        probe=functools.partial(probe.of_run, probed, probe_key)
        if config.evaluate.every_epochs
        else None,
        draw=draw,
        profile_steps=profile_steps,
    )
    if parallel.is_main():
        # A finished run was measured with the config that it has kept.
        config = config if start.step < plan.total_steps else start.config
        announcement.finish(training, config, int(state.step), drawn, val_source)


def _encoder_of(config, method):
    """The encoder of `config.init_from`, checked to fit."""
    if method.with_encoder is None:
        raise InputError(
            f"config.init_from={config.init_from}: {config.method} starts from no encoder; leave "
            "it out"
        )
    run = load_run(config.init_from)
    run.check_encodes()
    _check_options(config, run, method)
    wanted = method.encoder_of(*jax.eval_shape(method.init, jax.random.key(0)))
    fits = jax.tree.map(jnp.shape, run.encoder) == jax.tree.map(jnp.shape, wanted)
    # Patches of 8x4 and 4x8 have as many pixels.
    fits = fits and sides(run.config.model.patch_size) == sides(config.model.patch_size)
    # Learned positions belong to one grid, even where another has as many patches.
    learned = "positions" in wanted
    if "positions" in run.encoder and not learned:
        raise InputError(
            f"config.init_from={config.init_from} has {run.name} encoder, which learned its "
            f"positions; those of {config.method} are fixed: use --config=ibot"
        )
    of_one_grid = learned or method.encoder.options.get("relative")
    if not fits or (of_one_grid and tuple(run.config.image_size) != tuple(config.image_size)):
        height, width = run.config.image_size
        raise InputError(
            f"config.init_from={config.init_from} has {run.name} encoder, "
            f"{name_of(run.config.model)} for images of {height}x{width}, which does not fit this "
            "config; set config.method, model.encoder, model.size, model.patch_size"
            + (" and image_size" if of_one_grid else "")
            + " to match"
        )
    return run.encoder


def _check_options(config, run: Run, method) -> None:
    """Raises InputError where the encoder of a run is of another build than the method's. How its
    positions come about is left to the shapes of parameters."""
    theirs, ours = ({**encoder.options} for encoder in (run.method.encoder, method.encoder))
    for options in (theirs, ours):
        if options.pop("position", None) != "fixed":
            options.pop("first_axis", None)
        if "layer_scale" in options:  # where it starts does not matter to one that has started
            options["layer_scale"] = bool(options["layer_scale"])
    # An encoder of another kind has none of them: its parameters do not fit.
    shared = [name for name in theirs if name in ours]
    differ = [(name, theirs[name], ours[name]) for name in shared if theirs[name] != ours[name]]
    if differ:
        words = [", ".join(f"{name}={pair[i]!r}" for name, *pair in differ) for i in (0, 1)]
        raise InputError(
            f"config.init_from={config.init_from} has {run.name} encoder with {words[0]}, and that "
            f"of {config.method} has {words[1]}: it does not start from this one, which eval "
            "takes as it is"
        )


def _refuse_encoder(folder: Path, config) -> None:
    """Raises InputError where the config of a folder is that of an encoder alone."""
    if kind_of(config) == ENCODER:
        raise InputError(
            f"--workdir={folder} holds an encoder alone, which is not trained on; start from it "
            f"with --config.init_from={shlex.quote(str(folder))} and another --workdir"
        )


def _draw(config, folder, state) -> list[Path]:
    if not config.evaluate.figure_images:
        return []
    run = Run(config, *parallel.to_host((state.params, state.extra)), int(state.step))
    out = folder / "figures"
    return [
        *write_run_figures(
            out, run, run.example_images(config.evaluate.figure_images), workdir=folder
        ),
        write_curves(out, folder / "metrics.jsonl"),
    ]
