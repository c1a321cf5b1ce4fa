"""Which depth of a frozen encoder tells classes apart best (arXiv 2305.00729, section 4: a probe of
every block)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from dppmask_jax.analyses import base, classifiers
from dppmask_jax.data.sources.base import Source
from dppmask_jax.evals.base import (
    BLOCKS_ALONE,
    ERRORS,
    Evaluation,
    Result,
    Score,
    Task,
    extracted,
    percent,
    require_labels,
)
from dppmask_jax.fields import FLAG, Field, above, whole
from dppmask_jax.figures.depths import Panel, draw_panels
from dppmask_jax.scores import nearest, ridge
from dppmask_jax.scores.uncertainty import standard_error

FIELDS = {
    **base.FIELDS,
    "images": base.FIELDS["images"]._replace(
        default=2000, note="validation images that are classified, evenly spread over the split"
    ),
    **classifiers.FIELDS,
    "k": Field(20, whole(1), "neighbours"),
    "temperature": Field(0.07, above(0), "of their votes"),
    "center": Field(
        False, FLAG, "k-NN of features less their training mean; not the protocol of DINO and iBOT"
    ),
}
_WORDS = {"patches": "mean patch token", "cls": "class token"}
_PROBES = {"knn": "k-NN", "ridge": "ridge"}
_LINES = 6  # in a figure, each in a colour of its own


def check(evaluation: Evaluation) -> None:
    """Raises NotServed without blocks to look into, or without labels."""
    base.require_trace(evaluation)
    require_labels(evaluation)
    base.require_images(evaluation, 2)


def run(evaluation: Evaluation) -> Result:
    """Accuracy of k-NN and of ridge regression at every depth; all depths in one pass."""
    config, num_classes = evaluation.config, evaluation.train.num_classes
    train, labels = _features(
        evaluation, evaluation.train, classifiers.chosen(evaluation), "training"
    )
    val, val_labels = _features(evaluation, evaluation.val, base.chosen(evaluation), "validation")
    found, right, how = {}, {}, ""
    for token in filter(train.__contains__, _WORDS):
        data = config, train[token], labels, val[token], val_labels, num_classes
        right[token], how = _ridge(*data)
        ridges = [float(np.mean(of_images)) for of_images in right[token]]
        found[token] = {"knn": _neighbours(*data), "ridge": ridges}
    metrics = {
        "tokens": {
            token: {
                probe: {
                    "mean": shares,
                    "error": [standard_error(share, len(val_labels)) for share in shares],
                }
                for probe, shares in of_token.items()
            }
            for token, of_token in found.items()
        },
        "train_images": len(labels),
        "images": len(val_labels),
        "chance": 1 / num_classes,
    }
    last = metrics["tokens"]["patches"]["ridge"]
    return Result(
        metrics,
        _table(metrics),
        f"frozen features of every depth, {len(labels):,} training and {len(val_labels):,} "
        f"validation images: cosine k-NN (k = {config.k}, temperature {config.temperature:g}) and "
        f"closed-form ridge regression, {how or f'strength {config.ridge[0]:g}'}"
        + ("; k-NN of features less their training mean" if config.center else ""),
        Score(
            "ridge accuracy of the last block (mean patch token)",
            last["mean"][-1],
            None,
            last["error"][-1],
            of_images=right["patches"][-1],
        ),
        f"{ERRORS}. Features are the residual stream, before the final norm. The best depth is "
        "chosen on these very images, and so overstated",
        _row(metrics),
        {"chance": 1 / num_classes},
    )


def _features(evaluation: Evaluation, source: Source, indices: np.ndarray, what: str):
    """({token: (M, 1 + L, D) float32}, labels (M,)): the embedding, then each block's output."""
    encoder = evaluation.run.method.encoder

    def encode(params, images):
        trace = encoder.trace(params, encoder.pixels.normalize(images))
        means = [jnp.mean(tokens, axis=1) for tokens in base.patch_tokens(trace)]
        found = {"patches": jnp.stack(means, axis=1)}
        if base.prefix_of(trace):
            first = [trace.embedding, *(block.after_mlp for block in trace.blocks)]
            found["cls"] = jnp.stack([x[:, 0].astype(jnp.float32) for x in first], axis=1)
        return found

    return extracted(evaluation, source, encode, what, indices)


def _neighbours(config, train, labels, val, val_labels, num_classes: int) -> list[float]:
    return [
        nearest.accuracy(
            train[:, depth],
            labels,
            val[:, depth],
            val_labels,
            num_classes=num_classes,
            k=config.k,
            temperature=config.temperature,
            mean=train[:, depth].mean(axis=0) if config.center else 0.0,
        )
        for depth in range(train.shape[1])
    ]


def _ridge(config, train, labels, val, val_labels, num_classes: int) -> tuple[list, str]:
    """(of each depth which images are right, (M,) bool, how its strength was come by, in words)."""
    right, how = [], ""
    for depth in range(train.shape[1]):
        fitted = ridge.fit(train[:, depth], labels, num_classes, tuple(config.ridge))
        right.append(np.argmax(fitted(val[:, depth]), axis=1) == val_labels)
        how = fitted.how and f"the strength of each depth {fitted.how}"
    return right, how


# What is shown of it.


def _table(metrics) -> list[tuple[str, ...]]:
    columns = {
        f"{_PROBES[probe]}, {_WORDS[token]}": curve
        for token, of_token in metrics["tokens"].items()
        for probe, curve in of_token.items()
    }
    rows = [("depth (0: embedding, l: output of block l)", *columns)]
    for depth in range(len(metrics["tokens"]["patches"]["knn"]["mean"])):
        cells = (percent(c["mean"][depth], c["error"][depth]) for c in columns.values())
        rows.append((str(depth), *cells))
    return [*rows, ("chance", *[percent(metrics["chance"])] * len(columns))]


def _row(metrics) -> dict[str, str]:
    """For a table over several runs: the last block, and the best depth."""
    row = {}
    for probe, words in _PROBES.items():
        curve = metrics["tokens"]["patches"][probe]
        best = int(np.argmax(curve["mean"]))
        row[f"{words}, last block"] = percent(curve["mean"][-1], curve["error"][-1])
        row[f"{words}, best depth"] = (
            f"{percent(curve['mean'][best], curve['error'][best])} ({best})"
        )
    return row


def compare(found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The figure: accuracy by depth, a panel for each probe; of class tokens too while lines are
    few."""
    lines = [(label, token) for label, metrics in found.items() for token in metrics["tokens"]]
    if len(lines) > _LINES:
        lines = [(label, token) for label, token in lines if token == "patches"]
    chances = sorted({100 * metrics["chance"] for metrics in found.values()})
    panels = [
        Panel(
            {
                f"{label}, {_WORDS[token]}": base.in_percent(found[label]["tokens"][token][probe])
                for label, token in lines
            },
            f"{words} accuracy (%)",
            xlabel="depth (0: embedding, l: output of block l)",
            first=0,
            levels={f"chance ({level:.3g} %)": level for level in chances},
        )
        for probe, words in _PROBES.items()
    ]
    return {"layers.png": draw_panels(panels, note=base.over_images(found.values()))}


TASK = Task(check, run, FIELDS, compare=compare, unprojected=lambda config: BLOCKS_ALONE)
