"""Dense evaluation of a frozen encoder: a class for each patch token, held against that of each
pixel (k-NN as in the evaluation of SOAP, with this project's choices; a linear head as in DINOv2,
arXiv 2304.07193, section 7.4).

A patch is trained on with the class of most of its pixels, and what is predicted for a patch counts
for all of its pixels. How far that can lead at most with patches of this size is shown beside the
heads.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from dppmask_jax import parallel
from dppmask_jax.analyses import base, segment_maps, segmentation_heads
from dppmask_jax.analyses.segment_maps import Maps
from dppmask_jax.analyses.segmentation_heads import HEADS, Examples, Head
from dppmask_jax.errors import InputError
from dppmask_jax.evals import sections
from dppmask_jax.evals.base import Evaluation, Result, Score, Task, batches, percent
from dppmask_jax.evals.features import NONE_READABLE
from dppmask_jax.evals.sections import Section
from dppmask_jax.fields import Field, one_of, several, whole
from dppmask_jax.figures import colours
from dppmask_jax.figures.class_maps import draw_class_maps
from dppmask_jax.figures.shares import draw_shares
from dppmask_jax.scores import segmentation as scores
from dppmask_jax.scores.segmentation import Agreement, Pixels

LABELS = {"knn": "k-NN", "ridge": "ridge", "linear": "linear"}
_COMMONEST, _LIMIT = "commonest class", "limit of patches"
_MOST_ROWS, _MOST_DRAWN = 30, 12  # classes in the table and in the figure, with the most pixels
FIELDS = {
    **base.FIELDS,
    **segment_maps.FIELDS,
    "heads": Field(
        ("knn", "ridge"),
        several(
            one_of(*HEADS),
            f"a list of different ones of {', '.join(HEADS)}, such as ('knn', 'linear')",
            different=True,
        ),
        "knn: neighbours vote; ridge: closed form, in seconds; linear: batch norm and 1x1, trained",
    ),
    **segmentation_heads.FIELDS,
    "seed": Field(0, whole(0), "of the choice of tokens and of the linear head's training"),
    "shown": Field(4, whole(0, 32), "images that are drawn with their maps; 0 draws none"),
}


def check(evaluation: Evaluation) -> None:
    """Raises NotServed where there are no maps, and InputError where some do not fit, see
    `segment_maps.opened`."""
    segment_maps.opened(evaluation)


def run(evaluation: Evaluation) -> Result:
    """Mean IoU, IoU of each class and pixel accuracy of each head, and maps of some images."""
    config = evaluation.config
    maps = segment_maps.opened(evaluation)
    examples = _examples(evaluation, maps)
    heads = {name: HEADS[name](examples, len(maps.names), config) for name in config.heads}
    commonest = int(np.bincount(examples.classes).argmax())
    predict = _predictor(evaluation, heads)
    pixels = _tested(evaluation, maps, predict, commonest)
    found = {name: scores.agreement(pixels[name]) for name in (*heads, _COMMONEST, _LIMIT)}
    metrics = _metrics(found, pixels[_LIMIT], maps, examples)
    first = config.heads[0]
    how = "; ".join(f"{LABELS[name]}: {head.words}" for name, head in heads.items())
    score = found[first]
    return Result(
        metrics,
        _table(metrics),
        f"{how}; fitted to {metrics['train_tokens']:,} patch tokens of "
        f"{metrics['train_images']:,} images, tested on the pixels of {metrics['images']:,} "
        f"validation images, cut to {config.image_size[0]}x{config.image_size[1]} from the middle, "
        f"{len(maps.names) - len(metrics['absent'])} classes",
        Score(f"mean IoU ({LABELS[first]})", score.miou, None, _plain(score.miou_error)),
        _note(metrics),
        _row(metrics, config.heads),
        {name: found[name].miou for name in (_COMMONEST, _LIMIT)},
        _pictures(evaluation, maps, predict, config.heads),
    )


def _examples(evaluation: Evaluation, maps: Maps) -> Examples:
    """Tokens of the training images, as many of each, chosen by the seed and the image's number
    among those whose patches have a class."""
    config = evaluation.config
    quota = config.tokens // len(maps.train_rows)
    of_run = evaluation.run.method.encoder
    mapped = parallel.data_parallel_map(
        lambda params, images: of_run.encode(params, of_run.pixels.normalize(images)).patches
    )
    encoder = parallel.replicate(evaluation.run.encoder)
    tokens, classes, image = [], [], []
    stream = batches(evaluation, maps.train, "training", maps.train_rows, ("segments",))
    for batch in stream:
        rows = {
            "tokens": mapped(encoder, batch["image"]),
            "classes": _majority(evaluation, maps, batch["segments"]),
            **{name: batch[name] for name in ("index", "valid")},
        }
        rows = parallel.all_rows(rows)
        for i in np.flatnonzero(rows["valid"]):
            there = np.flatnonzero(rows["classes"][i] >= 0)
            rng = np.random.default_rng((config.seed, int(rows["index"][i])))
            some = np.sort(rng.permutation(there)[:quota])
            tokens.append(rows["tokens"][i][some])
            classes.append(rows["classes"][i][some])
            image.append(np.full(len(some), len(image), np.int32))
    if not any(map(len, classes)):
        raise InputError(NONE_READABLE)
    return Examples(*map(np.concatenate, (tokens, classes, image)))


def _majority(evaluation: Evaluation, maps: Maps, true: np.ndarray) -> np.ndarray:
    grid = evaluation.run.method.encoder.grid
    return scores.majority(true, grid, len(maps.names), maps.ignored)


def _predictor(evaluation: Evaluation, heads: dict[str, Head]):
    """images (b, H, W, C), as loaded -> {head: (b, N) classes of the patches}, on all devices."""
    encoder = evaluation.run.method.encoder

    def predict(state, images):
        tokens = encoder.encode(state["encoder"], encoder.pixels.normalize(images)).patches

        def of_image(tokens):  # one at a time: there may be many neighbours to compare with
            return {name: heads[name].predict(state["heads"][name], tokens) for name in heads}

        return jax.lax.map(of_image, tokens)

    states = {name: head.state for name, head in heads.items()}
    state = parallel.replicate({"encoder": evaluation.run.encoder, "heads": states})
    mapped = parallel.data_parallel_map(predict)
    return lambda images: mapped(state, images)


def _tested(evaluation: Evaluation, maps: Maps, predict, commonest: int) -> dict[str, Pixels]:
    """{head, or what to compare it with: pixels of all validation images that can be read}."""
    parts = []
    stream = batches(evaluation, maps.val, "validation", maps.val_rows, ("segments",))
    for batch in stream:
        true = batch["segments"]
        limit = _majority(evaluation, maps, true)
        predicted = {
            **predict(batch["image"]),
            _COMMONEST: np.full_like(limit, commonest),
            _LIMIT: np.where(limit < 0, commonest, limit),
        }
        counts = {
            name: scores.pixels(
                scores.confusion(
                    true, _of_pixels(evaluation, classes), len(maps.names), maps.ignored
                )
            )
            for name, classes in predicted.items()
        }
        rows = parallel.all_rows({"counts": counts, "valid": batch["valid"]})
        parts.append(jax.tree.map(lambda x, valid=rows["valid"]: x[valid], rows["counts"]))
    whole = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    if not whole[_LIMIT].true.sum():
        raise InputError(NONE_READABLE)
    return whole


def _of_pixels(evaluation: Evaluation, classes: np.ndarray) -> np.ndarray:
    grid, size = evaluation.run.method.encoder.grid, evaluation.config.image_size
    return scores.enlarged(classes, grid, tuple(size))


def _metrics(found: dict[str, Agreement], pixels: Pixels, maps: Maps, examples: Examples) -> dict:
    there = pixels.true.sum(axis=0) > 0
    return {
        "train_images": len(np.unique(examples.image)),  # without those that have no class
        "train_tokens": len(examples.tokens),
        "images": len(pixels.true),
        "classes": list(maps.names),
        "absent": [name for name, is_there in zip(maps.names, there, strict=True) if not is_there],
        "pixels": pixels.true.sum(axis=0).tolist(),
        "heads": {
            name: {field: _plain(value) for field, value in agreement._asdict().items()}
            for name, agreement in found.items()
        },
    }


def _plain(value) -> Any:
    """As JSON has it: None for what is not known."""
    if np.ndim(value):
        return [_plain(part) for part in value]
    return None if np.isnan(value) else float(value)


def _words(name: str) -> str:
    return LABELS.get(name, name)


def _cell(agreement: dict, of: str, error: str, i: int | None = None) -> str:
    values = [agreement[name] if i is None else agreement[name][i] for name in (of, error)]
    return percent(*values) if values[0] is not None else ""


def _table(metrics) -> list[tuple[str, ...]]:
    heads, total = metrics["heads"], sum(metrics["pixels"])
    rows = [("", *map(_words, heads), "pixels")]
    for words, of in (("mean IoU", "miou"), ("pixel accuracy", "accuracy")):
        rows.append((words, *(_cell(found, of, f"{of}_error") for found in heads.values()), ""))
    for i in _largest(metrics, _MOST_ROWS):
        cells = (_cell(found, "iou", "iou_error", i) for found in heads.values())
        name, share = metrics["classes"][i], metrics["pixels"][i] / total
        rows.append((f"IoU of {name}", *cells, percent(share)))
    return rows


def _row(metrics, heads) -> dict[str, str]:
    return {
        f"{words}, {LABELS[name]}": _cell(metrics["heads"][name], of, f"{of}_error")
        for name in heads
        for words, of in (("mIoU", "miou"), ("pixel accuracy", "accuracy"))
    }


def _largest(metrics, most: int) -> list[int]:
    """The classes with the most pixels, in their order."""
    pixels = np.array(metrics["pixels"])
    order = np.argsort(-pixels, kind="stable")[:most]
    return sorted(int(i) for i in order if pixels[i])


def _note(metrics) -> str:
    notes = [
        "± is the jackknife error over the validation images; limit of patches: each patch has the "
        "class of most of its pixels"
    ]
    if absent := metrics["absent"]:
        named = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if absent[5:] else "")
        notes.append(f"left out of the mean, without a pixel in these images: {named}")
    present = len(metrics["classes"]) - len(metrics["absent"])
    if present > _MOST_ROWS:
        notes.append(f"shown: the {_MOST_ROWS} of {present} classes with the most pixels")
    return "; ".join(notes)


def _pictures(evaluation: Evaluation, maps: Maps, predict, heads) -> dict:
    """The picture of some images, their maps and what each head makes of them."""
    places = np.linspace(0, len(maps.val_rows) - 1, evaluation.config.shown).round().astype(int)
    if not len(places):
        return {}
    shown = maps.val_rows[np.unique(places)]
    found = []
    for batch in batches(evaluation, maps.val, "pictures", shown, ("segments",)):
        rows = {name: batch[name] for name in ("image", "segments", "valid")}
        rows = parallel.all_rows({**rows, "predicted": predict(batch["image"])})
        valid = rows.pop("valid")
        found.append(jax.tree.map(lambda x, valid=valid: x[valid], rows))
    rows = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
    if not len(rows["image"]):
        return {}
    columns = {_words(name): _of_pixels(evaluation, rows["predicted"][name]) for name in heads}
    columns["Truth"] = rows["segments"]
    images = colours.shown(evaluation.run.pixels, rows["image"])
    figure = draw_class_maps(images, columns, maps.names, maps.ignored)
    return {"segmentation_maps.png": figure}


def compare(found) -> dict:
    """Mean IoU of each head and the IoU of classes, a colour a run, see `base.Task.compare`."""
    shown = {}
    for label, metrics in found.items():
        heads = {name: metrics["heads"][name] for name in metrics["heads"] if name in HEADS}
        first = next(iter(heads))
        rows = {
            f"mean IoU, {_words(name)}": (values["miou"], values["miou_error"])
            for name, values in heads.items()
        }
        for i in _largest(metrics, _MOST_DRAWN):
            name = f"{metrics['classes'][i]}, {_words(first)}"
            rows[name] = (heads[first]["iou"][i], heads[first]["iou_error"][i])
        shown[label] = rows
    note = "bars: jackknife error over images; classes with the most pixels"
    return {"segmentation_classes.png": draw_shares(shown, "intersection over union (%)", note)}


def _cells(record) -> list[dict[str, str]]:
    found = record["metrics"]["heads"]
    return [
        {
            "head": _words(name),
            **{
                column: sections.share(values[of], None, values[f"{of}_error"])
                for column, of in (("miou", "miou"), ("pixel_accuracy", "accuracy"))
            },
        }
        for name, values in found.items()
    ]


TASK = Task(
    check,
    run,
    FIELDS,
    section=Section(
        "Segmentation",
        {"head": "head", "miou": "mean IoU", "pixel_accuracy": "pixel accuracy"},
        _cells,
        "Frozen patch tokens, a class for each patch; errors are of the jackknife over images.",
    ),
    compare=compare,
)
