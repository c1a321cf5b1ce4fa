"""Composes a pre-training run from its config: data, method, loop, probes and figures."""

from __future__ import annotations

import functools
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dppmask_jax import parallel
from dppmask_jax.config import MODEL_FIELDS, check
from dppmask_jax.data import loader
from dppmask_jax.data.sources import identity
from dppmask_jax.data.sources.base import first_extras, notes_of
from dppmask_jax.errors import InputError, one_line
from dppmask_jax.evals import probe
from dppmask_jax.figures.curves import write_curves
from dppmask_jax.figures.of_run import write_run_figures
from dppmask_jax.methods import METHODS
from dppmask_jax.methods.base import Plan
from dppmask_jax.patches import grid_shape
from dppmask_jax.runs import checkpoint, history, metrics, workdir
from dppmask_jax.runs.run import Run, load_run, open_data
from dppmask_jax.scores.uncertainty import standard_error
from dppmask_jax.training import loop, resuming
from dppmask_jax.training.fit import fit, plan_from
from dppmask_jax.words import count

_WAYS = (
    "go back to that one; or start a new run from this one, with "
    "--config.init_from={0} and another --workdir; or add --allow_change, and the run's "
    "history tells"
)


def train(
    config, folder: str | Path, *, profile_steps: int = 0, allow_change: bool = False
) -> None:
    """Runs a config in a workdir, from the start or from its newest checkpoint.

    A run of which no step is left to make is left as it is.

    Args:
      config: a config such as `configs/mae.py` makes.
      folder: the workdir; receives config.json, metrics.jsonl, checkpoints/, figures/ and
        tensorboard/.
      profile_steps: number of steps to trace into the workdir's profile/; 0 traces none.
      allow_change: go on with another config than that of the steps so far; the model stays, and
        config.json and the checkpoints keep the history.

    Raises:
      InputError: the config, the data or the workdir will not do, or the workdir holds steps that
        were made with another config (see `resuming`); nothing was changed.
      loop.TrainingDiverged: too many steps in a row were not finite.
      Stopped: by a signal, or because nothing could be saved.
    """
    folder = Path(folder)
    check(config)
    parallel.check_batch(config.batch_size, config.optim.accum_steps, "config.batch_size")
    workdir.check_folder(folder)
    with workdir.locked(folder):
        _train(config, folder, profile_steps, allow_change)


def _train(config, folder: Path, profile_steps: int, allow_change: bool) -> None:
    train_source, val_source = open_data(config)
    plan = plan_from(config, len(train_source))
    terms = resuming.Terms(
        free=resuming.FREE,
        fixed=MODEL_FIELDS.__contains__,
        schedules=lambda config: _schedules(config, len(train_source)),
        allow=allow_change,
        total_steps=plan.total_steps,
        ways=_WAYS.format(shlex.quote(str(folder))),
    )
    images = functools.partial(identity.of_splits, train_source, val_source)
    start = resuming.start_in(folder, config, images, terms)

    method = method_from(config, plan)
    for source in filter(None, (train_source, val_source)):
        first_extras(source, method.extras, f"config.method={config.method}")
    init_key, seed_key, probe_key = jax.random.split(jax.random.key(config.seed), 3)
    state = loop.init_state(method, init_key)
    if config.init_from and not start.restored:
        encoder = _encoder_of(config, method)
        params, extra = method.with_encoder(state.params, state.extra, encoder)
        state = state._replace(params=params, extra=extra)
    untrained = not start.restored and not config.init_from
    state = fit(
        config,
        folder,
        state=state,
        start=start,
        method=method,
        source=train_source,
        plan=plan,
        seed_key=seed_key,
        probe=(
            lambda say: _probe(
                config, train_source, val_source, plan, probe_key, say, untrained=untrained
            )
        )
        if config.evaluate.every_epochs
        else None,
        announce=lambda state: _announce(
            config, method, folder, plan, start, state, train_source, val_source
        ),
        profile_steps=profile_steps,
    )
    if parallel.is_main():
        drawn = [] if start.step >= plan.total_steps else _draw(config, folder, state)
        # Of a finished run, what was found was found with the config that it has.
        config = config if start.step < plan.total_steps else start.config
        _finish(config, folder, int(state.step), drawn, train_source, val_source)


def _schedules(config, num_images: int) -> dict:
    """All that depends on the step and on the length of the run, as functions of the step."""
    plan = plan_from(config, num_images)
    method = method_from(config, plan)
    found = {}
    for turn in method.turns:
        ending = f" of the {turn.name}" if turn.name else ""
        found[f"learning rate{ending}"] = turn.optimizer.learning_rate
        found[f"weight decay{ending}"] = turn.optimizer.weight_decay
    return found | method.schedules


def method_from(config, plan: Plan):
    """The method of a config."""
    return METHODS[config.method].build(config, plan)


def _encoder_of(config, method):
    """The encoder of `config.init_from`, checked to fit."""
    run = load_run(config.init_from)
    wanted = method.encoder_of(*jax.eval_shape(method.init, jax.random.key(0)))
    fits = jax.tree.map(jnp.shape, run.encoder) == jax.tree.map(jnp.shape, wanted)
    # Learned positions belong to one grid, even where another has as many patches.
    learned = "positions" in wanted
    if "positions" in run.encoder and not learned:
        raise InputError(
            f"config.init_from={config.init_from} has {run.name} encoder, which learned its "
            f"positions; those of {config.method} are fixed: use --config=configs/ibot.py"
        )
    if not fits or (learned and tuple(run.config.image_size) != tuple(config.image_size)):
        model, (height, width) = run.config.model, run.config.image_size
        raise InputError(
            f"config.init_from={config.init_from} has {run.name} encoder of size "
            f"{model.size} with {model.patch_size} px patches for images of {height}x{width}, "
            "which does not fit this config; set config.method, model.size, model.patch_size"
            + (" and image_size" if learned else "")
            + " to match"
        )
    return run.encoder


def _batches(config, source, limit: int, say):
    """A function that reads up to `limit` images, spread evenly over a source, in order."""
    batch_size = parallel.round_up(min(config.batch_size, 256))
    indices = _spread(min(limit, len(source)), source)

    def read(shard: int = 0, num_shards: int = 1):
        return loader.eval_batches(
            source,
            image_size=tuple(config.image_size),
            batch_size=batch_size,
            indices=indices,
            shard=shard,
            num_shards=num_shards,
            log=say,
        )

    return read


def _loss_batches(config, source, say, extras=()):
    """Whole batches of validation images, the same for any number of devices."""
    batch_size = config.batch_size // config.optim.accum_steps
    count = min(config.evaluate.loss_images, len(source))
    whole = max(count // batch_size * batch_size, batch_size)
    indices = np.resize(_spread(count, source), whole)

    def read():
        return loader.eval_batches(
            source,
            image_size=tuple(config.image_size),
            batch_size=batch_size,
            extras=extras,
            indices=indices,
            log=say,
        )

    return read


def _spread(count: int, source) -> np.ndarray:
    return np.linspace(0, len(source) - 1, count).round().astype(np.int64)


def _no_knn_because(config, train_source, val_source) -> str:
    """Why there is no k-NN probe, in words; "" where there is one."""
    if not config.evaluate.every_epochs:
        return "evaluate.every_epochs is 0"
    if not config.evaluate.knn_images:
        return "evaluate.knn_images is 0"
    if val_source is None:
        return "there is no validation split"
    return train_source.unlabelled_because or val_source.unlabelled_because


def _knn_splits(config, train_source, val_source, say):
    """(training batches, validation batches), or None where k-NN cannot be measured."""
    if _no_knn_because(config, train_source, val_source):
        return None
    limit = config.evaluate.knn_images
    return tuple(_batches(config, source, limit, say) for source in (train_source, val_source))


def _probe(config, train_source, val_source, plan, key, say, *, untrained: bool):
    """The function that the evaluation hook runs. `untrained`: whether step 0 is an encoder with
    fresh parameters, neither imported nor another run's."""
    # Drop-path and flips belong to training: the probes run the same method without them.
    still = config.copy_and_resolve_references()
    still.model.drop_path = 0.0
    still.data.flip = False
    method = method_from(still, plan)
    measures = []
    if val_source is not None and config.evaluate.get("loss_images"):
        batches = _loss_batches(config, val_source, say, method.extras)
        loss_of = probe.validation_loss(method, batches, key)
        measures.append(lambda state: {"val_loss": loss_of(state)})
    splits = _knn_splits(config, train_source, val_source, say)
    if splits:
        classes = train_source.num_classes
        measures.append(probe.neighbours(still, method, *splits, classes))

    def run(state, step):
        values = {}
        for measure in measures:
            values |= measure(state)
        shown = []
        if "val_loss" in values:
            shown.append(f"validation loss {values['val_loss']:.4f}")
        if "knn" in values:
            shown.append(f"k-NN {_with_error(values, 'knn').strip()}")
            if untrained and step == 0:
                values["knn_untrained"] = values["knn"]
        if shown:
            say(f"step {step}/{plan.total_steps}  {'  '.join(shown)}")
        return values

    return run


def _with_error(record, name: str) -> str:
    """A share that a probe found, with its standard error, in percent."""
    error = standard_error(record[name], record["knn_images"])
    return f"{record[name]:6.1%} ± {100 * error:.1f}"


def _announce(config, method, folder, plan, start, state, train_source, val_source):
    rows, columns = grid_shape(tuple(config.image_size), config.model.patch_size)
    fewest, most = method.num_masked
    masked, visible = (
        f"{low}" if low == high else f"{low} to {high}"
        for low, high in ((fewest, most), (rows * columns - most, rows * columns - fewest))
    )
    size = sum(x.size for x in jax.tree.leaves(state.params))
    no_knn = _no_knn_because(config, train_source, val_source)
    split = "none" if val_source is None else f"{len(val_source):,}"
    lines = [
        f"devices     {parallel.describe()}",
        f"data        {config.data.source}: {len(train_source):,} training images, "
        f"{split} for validation" + (f"; no k-NN probe: {no_knn}" if no_knn else ""),
        *(f"            {one_line(note)}" for note in notes_of(train_source, val_source)),
        f"model       {config.method} {config.model.size}/{config.model.patch_size}, "
        f"{config.image_size[0]}x{config.image_size[1]} px, {size:,} parameters, "
        f"{config.model.dtype}",
        f"masks       {method.masker.label}: {visible} visible, {masked} masked of "
        f"{rows * columns} patches",
        f"steps       {plan.total_steps:,} of {count(config.batch_size, 'image')} "
        f"({plan.steps_per_epoch:,} an epoch, {count(config.epochs, 'epoch')})",
        f"rate        {plan.peak_lr:.3g} at its peak ({config.optim.base_lr:g} x "
        f"{config.batch_size}/256), {count(plan.warmup_steps, 'step')} of warm-up",
        f"workdir     {folder}, {_where(start, plan)}",
    ]
    if start.step < plan.total_steps:
        lines += [f"changed     {words}" for words in start.notes]
    if past := history.describe(start.record.get("history", ())):
        lines.append(f"history     {past}")
    if idle := parallel.idle_dtype(config.model.dtype):
        lines.append(f"warning     {idle}")
    print("\n".join(lines), flush=True)


def _where(start: resuming.Start, plan: Plan) -> str:
    if start.step >= plan.total_steps:
        return f"finished at step {start.step:,}; nothing is left to do, and nothing is written"
    return f"resuming at step {start.step:,}" if start.step else "starting at step 0"


def _finish(config, folder, step, drawn, train_source, val_source):
    records = metrics.read_metrics(folder / "metrics.jsonl")
    probed = [record for record in records if record.get("knn") is not None]
    print()
    if probed:
        print(_knn_table(config, probed[0], probed[-1], train_source, val_source))
    print(f"checkpoint  {folder / checkpoint.FOLDER / str(step)}")
    for path in drawn:
        print(f"figure      {path}")
    labelled = val_source is not None and train_source.labelled and val_source.labelled
    print("\n".join(_next(config, folder, labelled)))


def _next(config, folder, labelled: bool) -> list[str]:
    """What to do with this run now."""
    folder = shlex.quote(str(folder))
    other = "random" if config.mask.strategy != "random" else "dpp"
    ideas = [
        f"python -m dppmask_jax.figures --workdir={folder} --images YOUR.jpg",
        f"train with mask={other} after the colon of --config, in another --workdir, and compare: "
        f"python -m dppmask_jax.figures --workdir={folder} --compare OTHER",
    ]
    if labelled:
        ideas.insert(
            1, f"python eval.py --config=configs/eval.py:task=linear --checkpoint={folder}"
        )
    if config.data.source.startswith("shapes"):
        ideas.append(
            f"your own images: --config=configs/{config.method}.py:dataset=small "
            "--config.data.source=folder:PATH"
        )
    return [f"{'next' if not n else '':<12}{idea}" for n, idea in enumerate(ideas)]


def _knn_table(config, first, last, train_source, val_source) -> str:
    """What the first and the last k-NN probe of a run found, next to raw pixels and chance."""
    settings = config.evaluate

    def used(source):
        shown = min(settings.knn_images, len(source))
        return f"{shown:,}" + (f" of {len(source):,}" if shown < len(source) else "")

    rows = [("trained encoder", _with_error(last, "knn"))]
    if first["step"] == 0:
        began = "untrained encoder" if "knn_untrained" in first else "encoder it started from"
        rows.append((began, _with_error(first, "knn")))
    rows += [
        ("raw pixels", _with_error(last, "knn_pixels")),
        ("chance", f"{last['knn_chance']:6.1%}"),
    ]
    heading = (
        f"k-NN accuracy (cosine, k = {settings.knn_k}, {settings.knn_feature}; "
        f"{used(train_source)} training and {used(val_source)} validation images, "
        f"{train_source.num_classes} classes; ± one standard error)"
    )
    width = max(len(name) for name, _ in rows)
    return "\n".join([heading, *(f"  {name:<{width}} {text}" for name, text in rows)])


def _draw(config, folder, state) -> list[Path]:
    if not config.evaluate.figure_images:
        return []
    run = Run(config, *parallel.to_host((state.params, state.extra)), int(state.step))
    out = folder / "figures"
    paths = [
        *write_run_figures(out, run, run.example_images(config.evaluate.figure_images)),
        write_curves(out, folder / "metrics.jsonl"),
    ]
    metrics.show_figures(folder, run.step, paths)
    return paths
