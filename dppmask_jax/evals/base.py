"""What every evaluation task gets and gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from dppmask_jax import parallel
from dppmask_jax.data import loader
from dppmask_jax.data.images import crops
from dppmask_jax.data.sources import opening
from dppmask_jax.data.sources.base import Source
from dppmask_jax.errors import NotServed
from dppmask_jax.evals import features
from dppmask_jax.evals.sections import Section
from dppmask_jax.fields import TEXT, Field, Rule, above, is_text, one_of, optional
from dppmask_jax.methods import supervised
from dppmask_jax.models import encoders, vit
from dppmask_jax.models.base import Encoder
from dppmask_jax.runs import metrics
from dppmask_jax.runs.run import Run
from dppmask_jax.training import build

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Evaluation(NamedTuple):
    """A task about to run.

    `config` is checked and has the pre-trained model's fields as well; `run` is None while a sweep
    only checks what it is yet to pre-train; `folder` receives what the task writes; `train` and
    `val` are the splits of `config.data`, None where there is none. `fields` are those of the
    config, `free_of_run` those of the run's that no step depends on.
    """

    config: Any
    run: Run | None
    folder: Path
    train: Source | None
    val: Source | None
    say: Callable[[str], None]
    fields: Mapping[str, Field] = MappingProxyType({})
    free_of_run: Collection[str] = ()


class Score(NamedTuple):
    """The one number that stands for a task where runs are compared.

    `name` says in words what it is; `value` is a share from 0 to 1, higher is better, or a number
    of an analysis with neither bounds nor a better end; `std` is the standard deviation over the
    seeds of the evaluation, None for a single one; `standard_error` is that over the images, see
    `scores.uncertainty`, None where there is none in closed form. `in_percent` says how it is
    shown. `images` is how many it was measured on, None for the whole validation split.

    `of_images` (M,), bool or float, has what `value` is the mean of for each tested image, in the
    order of the split; None where the value is no mean over images. Unreadable images are left out
    of it, as they are of the value: rows of two evaluations are of the same images where both
    tested the same split and could read the same files of it.
    """

    name: str
    value: float
    std: float | None = None
    standard_error: float | None = None
    in_percent: bool = True
    images: int | None = None
    of_images: np.ndarray | None = None


class Result(NamedTuple):
    """What a task found.

    `metrics` is plain JSON; shares are from 0 to 1. `table` holds rows of texts, the first of them
    the heading, and `note` says below it what to know to read it. `protocol` says in words how it
    was measured. `score` is None where a task finds no number, and `row` too: {column: text}, the
    result in a table over several runs. `baselines` are shares that the score is to be compared
    with, such as {"chance": 0.1}; None where nothing is known. `figures`, matplotlib's by the names
    of their files, are written into figures/.
    """

    metrics: dict[str, Any]
    table: list[tuple[str, ...]]
    protocol: str
    score: Score | None = None
    note: str = ""
    row: dict[str, str] | None = None
    baselines: dict[str, float] | None = None
    figures: Mapping[str, Figure] = MappingProxyType({})


class Part(NamedTuple):
    """What a task that runs others has of one of them.

    Attributes:
      name: of the task.
      records: {label of a run: its record, see `evaluating.records`}.
      table: rows of texts, the first the heading: of the one record, or over all of them.
      figures: {name of the file: path from the page}, with all runs in each.
      pictures: {name of the file: {label: path from the page}}, of one run each.
      left_out: {label: why this run has no record, in words}.
    """

    name: str
    records: Mapping[str, Mapping[str, Any]]
    table: Sequence[Sequence[str]]
    figures: Mapping[str, str]
    pictures: Mapping[str, Mapping[str, str]]
    left_out: Mapping[str, str]


class Together(NamedTuple):
    """How a task runs others, see `evaluating.parts`.

    Attributes:
      parts: config -> names of the tasks that it runs, in their order.
      passed: (config, part) -> {field: value}, what the config of a part has from that of the whole
        where it has such a field; the others are at their defaults.
      page: (parts, {label of a run: its encoder in words}, command) -> the page, in Markdown.
      file: its name.
    """

    parts: Callable[[Any], Sequence[str]]
    passed: Callable[[Any, str], Mapping[str, Any]]
    page: Callable[[Sequence[Part], Mapping[str, str], str], str]
    file: str


class Task(NamedTuple):
    """An evaluation, as `tasks.TASKS` has it.

    Attributes:
      check: Evaluation -> None; raises InputError where the data, or a training in the folder, does
        not fit the task, and NotServed where they lack what it needs. None as `run` is.
      run: Evaluation -> Result; None where the task is `together`.
      fields: {name: Field}, what it reads of its config.
      by_train: {value of `config.train`: fields}, where the fields depend on what is trained.
      check_fields: config -> None; raises InputError where fields do not fit one another.
      section: its part of the results page; None: it has no number to show.
      record: config -> the NAME of its eval_NAME.json, "" for that of the task.
      unswept: config -> why a sweep cannot run the task, in words; "" where it can.
      of_run: (record, logged values of the pre-training) -> baselines that the run measured.
      unprojected: config -> why a projection of patch tokens changes nothing for the task, in
        words; "" where it does.
      compare: {label of a run: `Result.metrics`} -> figures by the names of their files, with
        something of each run in every one; drawn for a single run too.
      files: names of the files that it writes into the folder, beside figures and its record.
      also_reads: Evaluation -> the identity, see `data.sources.identity`, of images that it reads
        beside those of `config.data`; "" where there are none. Raises InputError as `check` does.
      together: of a task that runs others.
    """

    check: Callable[[Evaluation], None] | None
    run: Callable[[Evaluation], Result] | None
    fields: Mapping[str, Field] = MappingProxyType({})
    section: Section | None = None
    record: Callable[[Any], str] = lambda config: ""
    unswept: Callable[[Any], str] = lambda config: ""
    of_run: Callable[[dict, dict], dict[str, float]] = lambda record, logged: {}
    by_train: Mapping[str, Mapping[str, Field]] = MappingProxyType({})
    check_fields: Callable[[Any], None] = lambda config: None
    compare: Callable[[Mapping[str, dict[str, Any]]], Mapping[str, Figure]] = lambda found: {}
    unprojected: Callable[[Any], str] = lambda config: ""
    files: tuple[str, ...] = ()
    also_reads: Callable[[Evaluation], str] = lambda evaluation: ""
    together: Together | None = None


def _size_of_run() -> Field:
    field = vit.FIELDS["image_size"]
    return field._replace(
        default=None,
        rule=optional(field.rule),
        note="None is the run's; for another size positions are resized",
    )


# The fields of every task.
COMMON_FIELDS = {
    "image_size": _size_of_run(),
    "projection": Field(
        "",
        TEXT,
        "a soap.safetensors of task soap: the task runs without and with its projector of patch "
        "tokens, side by side; of several checkpoints, one for all or one each, commas between",
        free="carried out",
    ),
}
BLOCKS_ALONE = "it looks into the blocks, and a projection acts after the final norm"
TRAINS = "it trains the encoder, and a projection is for a frozen one"
# The fields of tasks that encode the images of a data set.
FIELDS = {
    **COMMON_FIELDS,
    "batch_size": build.FIELDS["batch_size"]._replace(note="images that are encoded at once"),
    "memory_gb": Field(
        8.0,
        above(0),
        "gigabytes of features; more are kept in a file of the workdir",
        free="carried out",
    ),
    **opening.FIELDS,
    "data.source": Field(
        "",
        Rule(
            lambda value: is_text(value) and (value == "" or opening.SOURCE.holds(value)),
            f"{opening.SOURCE.allowed}; '' for the images of the run",
        ),
        "where the images are; '': range, axis, dir, val_fraction and classes are the run's, too",
    ),
    **loader.FIELDS,
    "model.dtype": Field("", one_of("", "float32", "bfloat16"), "of activations; '' is the run's"),
}

ERRORS = "± is the standard error over the validation images"


def percent(share: float, error: float | None = None) -> str:
    """A share from 0 to 1 in percent, with its error, unless that is None or nan: not known."""
    unknown = error is None or math.isnan(error)
    return f"{100 * share:.2f} %" + ("" if unknown else f" ± {100 * error:.2f}")


def points(difference: float, error: float | None = None) -> str:
    """A difference of two shares in percentage points, with its error as in `percent`."""
    unknown = error is None or math.isnan(error)
    return f"{100 * difference:.2f}" + ("" if unknown else f" ± {100 * error:.2f}") + " points"


def unprojected_pool(config) -> str:
    """Why a projection changes nothing for a linear layer, see `Task.unprojected`."""
    cls = config.model.pool == "cls"
    return "config.model.pool=cls reads the class token, which is not projected" if cls else ""


def encoder_of(evaluation: Evaluation) -> Encoder:
    """The encoder that is evaluated; that of the config where a sweep is yet to train it."""
    config, run = evaluation.config, evaluation.run
    if run is not None:
        return run.method.encoder
    return encoders.build(config, **config.model.get("options", {}))


def require_validation(evaluation: Evaluation) -> None:
    """Raises NotServed unless there is a validation split."""
    if evaluation.val is None:
        raise NotServed(
            f"config.data.source={evaluation.config.data.source} has no validation split; raise "
            "config.data.val_fraction above 0"
        )


def require_labels(evaluation: Evaluation) -> None:
    """Raises NotServed unless both splits are there and have one label an image."""
    require_validation(evaluation)
    config = evaluation.config
    where = f"config.data.source={config.data.source}"
    because = evaluation.train.unlabelled_because or evaluation.val.unlabelled_because
    if because:
        raise NotServed(f"task {config.task} needs labels, and {where} has none: {because}")


def batches(
    evaluation: Evaluation,
    source: Source,
    what: str,
    indices: np.ndarray | None = None,
    extras: tuple[str, ...] = (),
):
    """This process's share of the padded batches of a split, with a progress bar.

    Args:
      what: names the split in the progress bar.
      indices, extras: see `loader.eval_batches`.
    """
    config = evaluation.config
    shard, num_shards = parallel.process_shard()
    batch_size = features.batch_size(config)
    stream = loader.eval_batches(
        source,
        image_size=tuple(config.image_size),
        view=crops.whole_image if config.data.get("whole") else crops.center_crop,
        batch_size=batch_size,
        extras=extras,
        indices=indices,
        workers=config.data.workers,
        shard=shard,
        num_shards=num_shards,
        log=evaluation.say,
    )
    total = -(-(len(source) if indices is None else len(indices)) // batch_size)
    return metrics.counted(stream, total, what, parallel.is_main())


def frozen_features(
    evaluation: Evaluation,
    source: Source,
    names: tuple[str, ...],
    what: str,
    indices: np.ndarray | None = None,
):
    """({name: (M, D) float32}, labels (M,) or (M, C)) of all readable images of a split.

    Args:
      names: of what `supervised.encoder_features` gives, and "pixels" for `features.pooled_pixels`.
      what, indices: see `batches`.
    """
    encode = supervised.encoder_features(evaluation.run.method.encoder)

    def chosen(params, images):
        out = {**encode(params, images), "pixels": features.pooled_pixels(images)}
        return {name: out[name] for name in names}

    return extracted(evaluation, source, chosen, what, indices)


def extracted(
    evaluation: Evaluation,
    source: Source,
    encode: Callable[[Any, Any], dict[str, Any]],
    what: str,
    indices: np.ndarray | None = None,
):
    """({name: (M, ...)}, labels (M,) or (M, C)) of all readable images of a split.

    Args:
      encode: (parameters of the encoder, images (B, H, W, C), as loaded) -> {name: (B, ...)}, under
        jit.
      what, indices: see `batches`.

    More than `config.memory_gb` are kept in files in the evaluation's folder that are gone when the
    arrays are.
    """
    config, run = evaluation.config, evaluation.run
    pixels = run.method.encoder.pixels
    image = jax.ShapeDtypeStruct((1, *config.image_size, pixels.channels), pixels.dtype)
    of_one = jax.tree.leaves(jax.eval_shape(encode, run.encoder, image))
    count = len(source) if indices is None else len(indices)
    size = count * sum(leaf.size * leaf.dtype.itemsize for leaf in of_one)
    rows = features.on_disk(evaluation.folder) if size > config.memory_gb * 1e9 else None
    extract = features.extractor(lambda params, extra, images: encode(params, images))
    return extract(run.encoder, {}, batches(evaluation, source, what, indices), rows)
