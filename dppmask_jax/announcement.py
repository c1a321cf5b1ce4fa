"""The lines that a pre-training prints when it starts and when it is done."""

from __future__ import annotations

import shlex

import jax

from dppmask_jax import parallel
from dppmask_jax.data.sources.base import notes_of
from dppmask_jax.errors import one_line
from dppmask_jax.evals.probe import no_knn_because, with_error
from dppmask_jax.masking import own
from dppmask_jax.methods import METHODS
from dppmask_jax.methods.base import Plan
from dppmask_jax.models.encoders import name_of
from dppmask_jax.runs import bucket_copy, checkpoint, history, metrics
from dppmask_jax.training.fit import Training
from dppmask_jax.training.resuming import Start
from dppmask_jax.words import count


def announce(training: Training, state, val_source) -> None:
    """Prints the devices, the data, the model, what a device holds of a state that is shared out,
    what the method says of itself and the plan."""
    config, start, plan = training.config, training.start, training.plan
    lines = [
        ("devices", parallel.describe()),
        *_data(training, val_source),
        ("model", _model(config, state)),
        *_shares(training, state),
        *training.method.describe,
        (
            "steps",
            f"{plan.total_steps:,} of {count(config.batch_size, 'image')} "
            f"({plan.steps_per_epoch:,} an epoch, {count(config.epochs, 'epoch')})",
        ),
        *_rate(config, plan),
        ("workdir", f"{bucket_copy.named(training.folder)}, {_where(start, plan)}"),
    ]
    if start.step < plan.total_steps:
        lines += [("changed", words) for words in start.notes]
    if past := history.describe(start.record.get("history", ())):
        lines.append(("history", past))
    if "model" in config and (idle := parallel.idle_dtype(config.model.dtype)):
        lines.append(("warning", idle))
    print("\n".join(f"{name:<12}{words}" for name, words in lines), flush=True)


def _data(training: Training, val_source) -> list[tuple[str, str]]:
    config, train_source = training.config, training.source
    no_knn = no_knn_because(config, training.method, train_source, val_source)
    split = "none" if val_source is None else f"{len(val_source):,}"
    words = f"{config.data.source}: {len(train_source):,} training images, {split} for validation"
    return [
        ("data", words + (f"; no k-NN probe: {no_knn}" if no_knn else "")),
        *([("pixels", train_source.pixels.words)] if train_source.pixels.kept else []),
        *(("", one_line(note)) for note in notes_of(train_source, val_source)),
    ]


def _model(config, state) -> str:
    size = sum(x.size for x in jax.tree.leaves(state.params))
    height, width = config.image_size
    words = f"{height}x{width} px, {size:,} parameters"
    if "model" not in config:
        return f"{config.method}, {words}"
    return f"{config.method} {name_of(config.model)}, {words}, {config.model.dtype}"


def _shares(training: Training, state) -> list[tuple[str, str]]:
    """What a device holds of the state; [] where that is all of it."""
    nothing_left = training.start.step >= training.plan.total_steps
    if nothing_left or training.config.parallel.mode == "pmap":
        return []
    return [("state", parallel.describe_shares(state))]


def _rate(config, plan: Plan) -> list[tuple[str, str]]:
    """The learning rate; [] for a method whose optimiser has other fields."""
    if "base_lr" not in config.optim:
        return []
    peak = f"{plan.peak_lr:.3g} at its peak ({config.optim.base_lr:g} x {config.batch_size}/256)"
    return [("rate", f"{peak}, {count(plan.warmup_steps, 'step')} of warm-up")]


def _where(start: Start, plan: Plan) -> str:
    if start.step >= plan.total_steps:
        return f"finished at step {start.step:,}; nothing is left to do, and nothing is written"
    return f"resuming at step {start.step:,}" if start.step else "starting at step 0"


def finish(training: Training, config, step: int, drawn, val_source) -> None:
    """Prints what the k-NN probes found, what was written, and what to do next.

    Args:
      config: what the last steps were made with.
      drawn: paths of the figures.
    """
    folder, train_source = training.folder, training.source
    records = metrics.read_metrics(folder / "metrics.jsonl")
    probed = [record for record in records if record.get("knn") is not None]
    print()
    if probed:
        print(knn_table(config, probed[0], probed[-1], train_source, val_source))
    print(f"checkpoint  {bucket_copy.named(folder / checkpoint.FOLDER / str(step))}")
    for path in drawn:
        print(f"figure      {bucket_copy.named(path)}")
    labelled = val_source is not None and train_source.labelled and val_source.labelled
    encodes = training.method.encoder is not None
    print("\n".join(next_steps(config, folder, labelled and encodes, training.method)))


def next_steps(config, folder, probed: bool, method) -> list[str]:
    """Commands to go on with.

    Args:
      probed: whether the encoder can be evaluated with labels.
      method: the run's.
    """
    folder, kind = shlex.quote(bucket_copy.named(folder)), METHODS[config.method]
    ideas = []
    masker = own.flag(config.mask) if method.masks else ""
    if method.masks or method.restore:
        ideas.append(f"dppmask figures --workdir={folder}{masker} --images YOUR.jpg")
    if probed:
        ideas.append(f"dppmask eval --config=eval:task=linear --checkpoint={folder}")
    if method.masks:
        other = "random" if config.mask.strategy != "random" else "dpp"
        # Masks that have a recipe of their own are taken by the config's argument.
        how = (
            f"mask={other} after the colon of --config"
            if other in kind.mask_recipes
            else f"--config.mask.strategy={other}"
        )
        ideas.append(
            f"train with {how}, in another --workdir, and compare: "
            f"dppmask figures --workdir={folder}{masker} --compare OTHER"
        )
    if config.data.source.startswith("shapes") and kind.recipes:
        ideas.append(
            "your own images: dataset=small after the colon of --config, and "
            "--config.data.source=folder:PATH"
        )
    return [f"{'next' if not n else '':<12}{idea}" for n, idea in enumerate(ideas)]


def knn_table(config, first, last, train_source, val_source) -> str:
    """What the first and the last k-NN probe of a run found, next to raw pixels and chance."""
    settings = config.evaluate

    def used(source):
        shown = min(settings.knn_images, len(source))
        return f"{shown:,}" + (f" of {len(source):,}" if shown < len(source) else "")

    rows = [("trained encoder", with_error(last, "knn"))]
    if first["step"] == 0:
        began = "untrained encoder" if "knn_untrained" in first else "encoder it started from"
        rows.append((began, with_error(first, "knn")))
    rows += [
        ("raw pixels", with_error(last, "knn_pixels")),
        ("chance", f"{last['knn_chance']:6.1%}"),
    ]
    heading = (
        f"k-NN accuracy (cosine, k = {settings.knn_k}, {settings.knn_feature}; "
        f"{used(train_source)} training and {used(val_source)} validation images, "
        f"{train_source.num_classes} classes; ± one standard error)"
    )
    width = max(len(name) for name, _ in rows)
    return "\n".join([heading, *(f"  {name:<{width}} {text}" for name, text in rows)])
