"""How much accuracy an encoder's classifiers lose on changed images, such as stylised copies (arXiv
2305.00729, section 4: shape against texture). Nothing is stylised here."""

from __future__ import annotations

import collections
import math
import os
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dppmask_jax import pixel_format
from dppmask_jax.analyses import base, classifiers
from dppmask_jax.data.sources import identity, opening
from dppmask_jax.data.sources.base import Source
from dppmask_jax.errors import InputError, NotServed
from dppmask_jax.evals import features
from dppmask_jax.evals.base import (
    Evaluation,
    Result,
    Score,
    Task,
    batches,
    percent,
    points,
    require_labels,
)
from dppmask_jax.fields import Field, Rule, above, is_text, whole
from dppmask_jax.figures.depths import Panel, draw_panels
from dppmask_jax.methods import supervised
from dppmask_jax.scores import nearest, ridge
from dppmask_jax.scores.uncertainty import error_of_mean
from dppmask_jax.words import count

_SHARE_OF_PAIRS = 0.5  # of the smaller set, for the images to count as copies
_NAMED = 5
_LEAST = 2  # images, for an error

FIELDS = {
    **base.FIELDS,
    "images": base.FIELDS["images"]._replace(
        default=2000, note="images of either kind that are classified, evenly spread"
    ),
    "changed": Field(
        "",
        Rule(
            lambda value: is_text(value) and (value == "" or opening.SOURCE.holds(value)),
            opening.SOURCE.allowed,
        ),
        "where the changed images are; classes go by their names, copies by class and file name",
    ),
    **classifiers.FIELDS,
    "k": Field(20, whole(1), "neighbours"),
    "temperature": Field(0.07, above(0), "of their votes"),
}
_KINDS = ("original", "changed")
_WORDS = {"own": "own head", "ridge": "ridge", "knn": "k-NN"}


class _Tested(NamedTuple):
    """What is classified: images of the validation split, and changed ones.

    `label_of` are the original numbers of the classes of `changed`; `paired`: whether the images
    stand one for one; `notes` say what was left out.
    """

    changed: Source
    original_rows: np.ndarray
    changed_rows: np.ndarray
    label_of: np.ndarray
    paired: bool
    notes: list[str]


def check(evaluation: Evaluation) -> None:
    """Raises NotServed without labels or changed images, or as `_tested` where these do not fit."""
    require_labels(evaluation)
    _tested(evaluation)


def run(evaluation: Evaluation) -> Result:
    """Accuracy on the validation images and on the changed ones, of classifiers of the former."""
    tested = _tested(evaluation)
    config = evaluation.config
    predict, trained, how = _classifiers(evaluation)
    original, rows, labels = _predicted(
        evaluation, evaluation.val, tested.original_rows, predict, "validation"
    )
    changed, changed_rows, changed_labels = _predicted(
        evaluation, tested.changed, tested.changed_rows, predict, "changed"
    )
    changed_labels = tested.label_of[changed_labels]
    if tested.paired:
        kept, changed_kept = _both_read(tested, rows, changed_rows)
        labels, changed_labels = labels[kept], changed_labels[changed_kept]
        original = {name: classes[kept] for name, classes in original.items()}
        changed = {name: classes[changed_kept] for name, classes in changed.items()}
    found = {
        name: _drop(original[name] == labels, changed[name] == changed_labels, tested.paired)
        for name in original
    }
    table = _table(found)
    best = next(iter(found))
    accuracy = found[best]["changed"]
    number = evaluation.train.num_classes
    return Result(
        {
            "classifiers": found,
            "paired": tested.paired,
            "train_images": trained,
            "images": len(labels),
            "changed_images": len(changed_labels),
            "chance": 1 / number,
        },
        table,
        f"classifiers of {trained:,} images of {config.data.source} ({how}), tested on "
        f"{len(labels):,} of its validation images and {len(changed_labels):,} images of "
        f"{config.changed}, "
        + ("copies of them by class and name" if tested.paired else "no copies of them by name")
        + "".join(f"; {note}" for note in tested.notes),
        Score(
            f"accuracy on changed images ({_WORDS[best]})",
            accuracy["mean"],
            None,
            accuracy["error"],
            of_images=changed[best] == changed_labels,
        ),
        "± is the standard error over the images; that of a drop is "
        + ("of the same images' pairs" if tested.paired else "for images that are independent"),
        {
            f"{row[0]}, {column}": cell
            for row in table[1:]
            for column, cell in zip(table[0][1:], row[1:], strict=True)
        },
        {"chance": 1 / number},
    )


def _tested(evaluation: Evaluation) -> _Tested:
    """Which images are classified.

    Raises:
      NotServed: no changed images are named, or they leave too few to test.
      InputError: they have no labels, or none of a class of the originals.
    """
    config, val = evaluation.config, evaluation.val
    if not config.changed:
        raise NotServed(
            "config.changed is empty; say where the changed images are: "
            "--config.changed=folder:PATH (or tfds:NAME, …)"
        )
    where = f"config.changed={config.changed}"
    train_split, val_split = _opened(config)
    changed = val_split or train_split
    if changed.labels is None:
        raise InputError(f"{where} has no labels: {changed.unlabelled_because}")
    names = evaluation.train.class_names
    number_of = {name: number for number, name in enumerate(names)}
    label_of = np.array([number_of.get(name, -1) for name in changed.class_names], np.int32)
    labels = label_of[changed.labels()]
    val_labels = val.labels()
    rows = np.flatnonzero(labels >= 0)
    val_rows = np.flatnonzero(np.isin(val_labels, labels[rows]))
    if not rows.size or not val_rows.size:
        raise InputError(
            f"{where} and config.data.source={config.data.source} have no class in common: "
            f"{_listed(changed.class_names)} there, {_listed(names)} here; call them alike"
        )
    notes = []
    if foreign := len(labels) - len(rows):
        notes.append(f"{count(foreign, 'changed image')} of other classes left out")
    if missing := len(val_labels) - len(val_rows):
        notes.append(
            f"{count(missing, 'validation image')} of classes without a changed image left out"
        )
    val_keys, keys = _keys(val, val_rows, val_labels), _keys(changed, rows, labels)
    pairs = [(val_keys[key], row) for key, row in keys.items() if key in val_keys]
    paired = len(pairs) >= _SHARE_OF_PAIRS * min(len(rows), len(val_rows))
    if paired:
        notes += _notes_of_pairs(len(pairs), len(rows), len(val_rows))
        val_rows, rows = np.array(sorted(pairs)).T
    else:
        notes += _notes_of_training(evaluation.train, keys, len(rows))
    if (least := min(len(rows), len(val_rows))) < _LEAST:
        raise NotServed(
            f"task shift needs {_LEAST} images of either kind, and {where} leaves {least}; name a "
            "source with more images of these classes"
        )
    return _Tested(
        changed,
        val_rows[base.spread(len(val_rows), config.images)],
        rows[base.spread(len(rows), config.images)],
        label_of,
        paired,
        notes,
    )


def _opened(config) -> tuple[Source, Source | None]:
    return opening.open_splits(
        config.changed,
        data_dir=config.data.dir or None,
        val_fraction=0.0,
        grey_range=pixel_format.named_range(config.data.range),
        pixels=pixel_format.of(config),
    )


def also_reads(evaluation: Evaluation) -> str:
    """The identity of the changed images, see `Task.also_reads`."""
    config = evaluation.config
    return identity.of_splits(*_opened(config))["digest"] if config.changed else ""


def _notes_of_pairs(pairs: int, changed: int, originals: int) -> list[str]:
    """What is left out where images are tested in pairs."""
    notes = []
    if alone := changed - pairs:
        notes.append(f"{count(alone, 'changed image')} without an original left out")
    if alone := originals - pairs:
        notes.append(f"{count(alone, 'validation image')} without a copy left out")
    return notes


def _notes_of_training(train: Source, keys: Collection[tuple[int, str]], changed: int) -> list[str]:
    """A warning where so many changed images are called as training images are that they may be
    copies of what the classifiers were fitted to."""
    train_keys = _keys(train, np.arange(len(train)), train.labels())
    seen = sum(key in train_keys for key in keys)
    if seen < _SHARE_OF_PAIRS * changed:
        return []
    return [
        f"{seen:,} of the changed images have names of training images: if they are copies of "
        "these, the drop is too small"
    ]


def _listed(names) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _keys(source: Source, rows: np.ndarray, labels: np.ndarray) -> dict[tuple[int, str], int]:
    """{(class, file name without its ending): row} of the images that no other is called like."""
    named = [
        (int(labels[row]), os.path.splitext(os.path.basename(source.name(int(row))))[0])
        for row in rows
    ]
    times = collections.Counter(named)
    return {key: int(row) for key, row in zip(named, rows, strict=True) if times[key] == 1}


def _classifiers(evaluation: Evaluation):
    """({name: features of images -> classes}, number of training images, what they are in words).

    With a projection those alone that see it: an own head and neighbours of the class token would
    be measured twice.
    """
    config, run = evaluation.config, evaluation.run
    number = evaluation.train.num_classes
    train, _, labels = _features(
        evaluation, evaluation.train, classifiers.chosen(evaluation), "training", own=False
    )
    fitted = ridge.fit(train["patches"], labels, number, tuple(config.ridge))

    def neighbours(found):
        return nearest.predictions(
            train[run.knn_feature],
            labels,
            found[run.knn_feature],
            num_classes=number,
            ks=(config.k,),
            temperature=config.temperature,
        )[config.k]

    projected = run.method.encoder.projection is not None
    predict = {"ridge": lambda found: np.argmax(fitted(found["patches"]), axis=1)}
    how = f"ridge on the mean patch token, {fitted.words}"
    if not (projected and run.knn_feature == "cls"):
        predict["knn"] = neighbours
        token = {"patches": "mean patch token", "cls": "class token"}[run.knn_feature]
        how += f"; k-NN of the {token}, k = {config.k}"
    if not (projected or classifiers.no_own_head_because(evaluation)):
        predict = {"own": lambda found: found["own"], **predict}
        how += "; the checkpoint's own head"
    return predict, len(labels), how


def _predicted(evaluation: Evaluation, source: Source, rows, predict, what: str):
    """({classifier: classes (M,)}, rows (M,), labels (M,)) of those images that can be read."""
    found, read, labels = _features(evaluation, source, rows, what, own="own" in predict)
    return {name: of_features(found) for name, of_features in predict.items()}, read, labels


def _features(evaluation: Evaluation, source: Source, rows, what: str, *, own: bool):
    """({name: (M, ...)}, rows (M,), labels (M,)) of those images that can be read."""
    run = evaluation.run
    encode = supervised.encoder_features(run.method.encoder)

    def of_batch(encoder, whole_run, batch):
        out = encode(encoder, batch["image"])
        found = {name: out[name] for name in ("patches", run.knn_feature)}
        if own:
            scores = run.method.logits(*whole_run, batch["image"])
            found["own"] = jnp.argmax(scores, axis=-1)
        return {**found, "row": batch["index"]}

    stream = base.numbered(batches(evaluation, source, what, rows))
    whole_run = (run.params, run.extra) if own else ()
    found, labels = features.extractor(of_batch)(run.encoder, whole_run, stream)
    return found, found.pop("row"), labels


def _both_read(tested: _Tested, rows, changed_rows) -> tuple[np.ndarray, np.ndarray]:
    """Where in either the pairs are of which both images could be read."""
    place = {int(row): i for i, row in enumerate(rows)}
    changed_place = {int(row): i for i, row in enumerate(changed_rows)}
    chosen = np.stack([tested.original_rows, tested.changed_rows], axis=1).tolist()
    pairs = [
        (place[one], changed_place[other])
        for one, other in chosen
        if one in place and other in changed_place
    ]
    if not pairs:
        raise InputError(features.NONE_READABLE)
    kept, changed_kept = np.array(pairs).T
    return kept, changed_kept


def _drop(original: np.ndarray, changed: np.ndarray, paired: bool) -> dict[str, dict[str, float]]:
    """Shares of images that are right, and their difference, with standard errors."""
    original, changed = original.astype(np.float64), changed.astype(np.float64)
    errors = error_of_mean(original), error_of_mean(changed)
    return {
        "original": {"mean": float(original.mean()), "error": errors[0]},
        "changed": {"mean": float(changed.mean()), "error": errors[1]},
        "drop": {
            "mean": float(original.mean() - changed.mean()),
            "error": error_of_mean(original - changed) if paired else math.hypot(*errors),
        },
    }


def _table(found: Mapping[str, dict[str, dict[str, float]]]) -> list[tuple[str, ...]]:
    rows = [("classifier", *_KINDS, "drop")]
    for name, values in found.items():
        shares = (percent(values[kind]["mean"], values[kind]["error"]) for kind in _KINDS)
        drop = points(values["drop"]["mean"], values["drop"]["error"])
        rows.append((_WORDS[name], *shares, drop))
    return rows


def compare(found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The figure: accuracy on original and changed images, a panel for each classifier of all."""
    panels = []
    for name, words in _WORDS.items():
        of_runs = {
            label: metrics["classifiers"][name]
            for label, metrics in found.items()
            if name in metrics["classifiers"]
        }
        curves = {
            label: base.in_percent(
                {part: [one[kind][part] for kind in _KINDS] for part in ("mean", "error")}
            )
            for label, one in of_runs.items()
        }
        if len(curves) == len(found):
            panels.append(Panel(curves, f"accuracy of {words} (%)", "images", places=(0.0, 1.0)))
    figure = draw_panels(panels, note="bands: one standard error over the images")
    for axes in figure.axes:
        axes.set_xticks([0.0, 1.0], _KINDS)
    return {"shift.png": figure}


TASK = Task(check, run, FIELDS, compare=compare, also_reads=also_reads)
