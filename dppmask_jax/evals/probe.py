"""What is measured while a run trains: the validation loss and the k-NN accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from dppmask_jax import parallel
from dppmask_jax.data import loader
from dppmask_jax.data.sources.base import Source
from dppmask_jax.errors import InputError
from dppmask_jax.evals import features
from dppmask_jax.fields import Field, above, one_of, whole
from dppmask_jax.methods import supervised
from dppmask_jax.methods.base import Method, Plan
from dppmask_jax.scores import nearest
from dppmask_jax.scores.uncertainty import standard_error
from dppmask_jax.training.build import method_from

# Reads a split, or one process's share of it: () or (shard, num_shards) -> batches.
Batches = Callable[..., Iterable[dict[str, np.ndarray]]]
_LOSS_SEED = 0  # of the views of validation images
# As in DINO and iBOT, and in task=knn.
FIELDS = {
    "evaluate.knn_images": Field(
        20000, whole(0), "images of each split that the k-NN probe takes; 0 is off", free="measured"
    ),
    "evaluate.knn_k": Field(20, whole(1), "neighbours of the k-NN probe", free="measured"),
    "evaluate.knn_temperature": Field(
        0.07, above(0), "temperature of the votes of the k-NN probe", free="measured"
    ),
    "evaluate.knn_feature": Field(
        "patches", one_of("patches", "cls"), "patches: the mean patch token", free="measured"
    ),
    "evaluate.loss_images": Field(
        2048,
        whole(0),
        "validation images that the loss is measured on, in whole batches; 0 is off",
        free="measured",
    ),
}


def check_fields(config) -> None:
    """Raises InputError where `config.evaluate` asks for more neighbours than images."""
    evaluate = config.evaluate
    if 0 < evaluate.knn_images < evaluate.knn_k:
        raise InputError(
            f"config.evaluate.knn_k={evaluate.knn_k} neighbours are more than "
            f"config.evaluate.knn_images={evaluate.knn_images}"
        )


class Probed(NamedTuple):
    """A run that is measured. `untrained`: whether step 0 is an encoder with fresh parameters,
    neither imported nor another run's."""

    config: Any
    plan: Plan
    train: Source
    val: Source | None
    untrained: bool


def of_run(probed: Probed, key, say: Callable[[str], None]):
    """(state, step) -> values to log; what it finds is said as well.

    Args:
      key: of the validation loss.
    """
    method = method_from(_still(probed.config), probed.plan)
    measures = []
    if probed.val is not None and probed.config.evaluate.loss_images:
        loss_of = validation_loss(probed, method, key, say)
        measures.append(lambda state: {"val_loss": loss_of(state)})
    if not no_knn_because(probed.config, method, probed.train, probed.val):
        measures.append(neighbours(probed, method, say))

    def run(state, step):
        values = {}
        for measure in measures:
            values |= measure(state)
        shown = []
        if "val_loss" in values:
            shown.append(f"validation loss {values['val_loss']:.4f}")
        if "knn" in values:
            shown.append(f"k-NN {with_error(values, 'knn').strip()}")
            if probed.untrained and step == 0:
                values["knn_untrained"] = values["knn"]
        if shown:
            say(f"step {step}/{probed.plan.total_steps}  {'  '.join(shown)}")
        return values

    return run


def _still(config):
    """The config without drop-path and flips, which belong to training."""
    still = config.copy_and_resolve_references()
    for section, field, value in (("model", "drop_path", 0.0), ("data", "flip", False)):
        if field in still.get(section, ()):
            still[section][field] = value
    return still


def no_knn_because(config, method: Method, train: Source, val: Source | None) -> str:
    """Why there is no k-NN probe, in words; "" where there is one."""
    if not config.evaluate.every_epochs:
        return "evaluate.every_epochs is 0"
    if not config.evaluate.knn_images:
        return "evaluate.knn_images is 0"
    if val is None:
        return "there is no validation split"
    if method.encoder is None:
        return f"{config.method} trains no encoder"
    return train.unlabelled_because or val.unlabelled_because


def with_error(record, name: str) -> str:
    """A share that a probe found, with its standard error, in percent."""
    error = standard_error(record[name], record["knn_images"])
    return f"{record[name]:6.1%} ± {100 * error:.1f}"


def knn_batches(config, source: Source, say) -> Batches:
    """Reads up to `evaluate.knn_images` images, spread evenly over a source, in order."""
    batch_size = features.batch_size(config)
    indices = _spread(min(config.evaluate.knn_images, len(source)), source)

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


def _spread(count: int, source: Source) -> np.ndarray:
    return np.linspace(0, len(source) - 1, count).round().astype(np.int64)


def _loss_size(config, source: Source) -> tuple[int, int, int]:
    """(images of a batch, how many images there are, how many make whole batches)."""
    batch_size = config.batch_size // config.optim.accum_steps
    count = min(config.evaluate.loss_images, len(source))
    return batch_size, count, max(count // batch_size * batch_size, batch_size)


def center_batches(config, source: Source, say, extras=()) -> Batches:
    """Reads whole batches of the evaluation crop, the same for any number of devices."""
    batch_size, count, whole = _loss_size(config, source)
    indices = np.resize(_spread(count, source), whole)

    def read():
        """ "image", "label" and "index"; another image of the batch stands for an unreadable one,
        and a batch of those is left out."""
        for batch in loader.eval_batches(
            source,
            image_size=tuple(config.image_size),
            batch_size=batch_size,
            extras=extras,
            indices=indices,
            log=say,
        ):
            valid = np.flatnonzero(batch["valid"])
            if valid.size:
                filled = np.resize(valid, len(batch["valid"]))
                names = ("image", "label", "index", *extras)
                inputs = {name: batch[name][filled] for name in names}
                yield inputs | {"row": inputs["index"]}

    return read


def training_batches(config, source: Source, method: Method, say) -> Batches:
    """Reads whole batches of a method's training examples, each time the same ones."""
    batch_size, _, whole = _loss_size(config, source)
    shard, num_shards = parallel.process_shard()

    def read():
        with loader.train_stream(
            source,
            example=method.example,
            extras=method.extras,
            batch_size=batch_size,
            seed=_LOSS_SEED,
            shard=shard,
            num_shards=num_shards,
            workers=config.data.workers,
            log=say,
        ) as stream:
            for _ in range(whole // batch_size):
                yield next(stream)

    return read


def validation_loss(probed: Probed, method: Method, key, say) -> Callable[[Any], float]:
    """A function of the training state: the mean loss, of the first turn, over validation images.

    Every call uses the same images, views and keys, so the masks of an image differ only as far as
    its features do; schedules stand at their end. Batches count alike. Where no image can be read,
    InputError is raised.
    """
    (loss, *_), last = method.turns[0], probed.plan.total_steps - 1
    mean_loss = parallel.data_parallel_mean(
        lambda state, batch, key: loss(*state, method.before_step(batch, key), key, last)[0]
    )
    if method.loss_of_views:
        batches = training_batches(probed.config, probed.val, method, say)
    else:
        batches = center_batches(probed.config, probed.val, say, method.extras)

    def measure(state) -> float:
        losses = []
        for batch in batches():
            found = mean_loss((state.params, state.extra), parallel.split_batch(batch), key)
            losses.append(float(parallel.to_host(found)))
        if not losses:
            raise InputError(features.NONE_READABLE)
        return float(np.mean(losses))

    return measure


def neighbours(probed: Probed, method: Method, say):
    """A function of the training state: how well k nearest neighbours tell its images' classes.

    It is the measure of task=knn (`scores.nearest`, the protocol of DINO and iBOT), with the k, the
    temperature and the token of `config.evaluate`, on up to `evaluate.knn_images` of each split.

    Returns:
      A function that gives, for the log, "knn": accuracy of the encoder's features; "knn_pixels":
      that of the raw pixels, the floor; "knn_chance": of guessing; and "knn_images": on how many
      validation images. Shares are from 0 to 1.
    """
    config, num_classes = probed.config, probed.train.num_classes
    train, val = (knn_batches(config, source, say) for source in (probed.train, probed.val))
    evaluate = config.evaluate
    encode = supervised.encoder_features(method.encoder)

    def token(params, extra, images):
        return {"x": encode(method.encoder_of(params, extra), images)[evaluate.knn_feature]}

    def accuracy(extract, params, extra) -> tuple[float, int]:
        share = parallel.process_shard()
        of_train, train_labels = extract(params, extra, train(*share))
        of_val, val_labels = extract(params, extra, val(*share))
        found = nearest.accuracy(
            of_train["x"],
            train_labels,
            of_val["x"],
            val_labels,
            num_classes=num_classes,
            k=evaluate.knn_k,
            temperature=evaluate.knn_temperature,
        )
        return found, len(val_labels)

    of_tokens = features.extractor(token)
    pixels = None  # until they are asked for; they stay the same

    def measure(state) -> dict[str, float]:
        nonlocal pixels
        if pixels is None:
            of_pixels = features.extractor(lambda *inputs: {"x": features.pooled_pixels(inputs[2])})
            pixels, _ = accuracy(of_pixels, {}, {})
        found, images = accuracy(of_tokens, state.params, state.extra)
        return {
            "knn": found,
            "knn_pixels": pixels,
            "knn_chance": 1 / num_classes,
            "knn_images": images,
        }

    return measure
