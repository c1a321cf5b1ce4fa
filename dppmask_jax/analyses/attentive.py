"""An attentive probe of a frozen encoder: one query attends to the patch tokens, and a linear layer
classifies what it gathers (as in AIM, arXiv 2401.08541, section 5.1, without the batch norm's
running statistics), beside a linear layer and neighbours on the mean patch token.

An encoder that spreads what it knows over its patches gains by attention; one whose mean token says
it all does not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dppmask_jax.analyses import base, head_training
from dppmask_jax.errors import NotServed
from dppmask_jax.evals import linear, sections
from dppmask_jax.evals.base import (
    ERRORS,
    Evaluation,
    Result,
    Score,
    Task,
    encoder_of,
    extracted,
    percent,
    points,
    require_labels,
)
from dppmask_jax.evals.sections import Section
from dppmask_jax.fields import Field, above, number, several, whole
from dppmask_jax.figures import colours
from dppmask_jax.figures.attention_maps import draw_maps
from dppmask_jax.figures.shares import draw_shares
from dppmask_jax.scores import nearest, ridge
from dppmask_jax.scores.uncertainty import error_of_mean, standard_error

_HELD_OUT = 10  # every tenth image chooses the learning rate
_ROWS = 256  # images whose tokens are handled at a time: they may be in a file
LABELS = {"attentive": "attentive probe", "ridge": "ridge, mean token", "knn": "k-NN, mean token"}
FIELDS = {
    **base.FIELDS,
    "train_images": Field(2000, whole(2), "training images, evenly spread over the split"),
    "query_heads": Field(4, whole(1), "heads of the query, which divide the encoder's width"),
    "head_epochs": Field(30, whole(1), "of the probe's training"),
    "head_batch": Field(128, whole(1), "images a step of it"),
    "learning_rates": Field(
        (1e-3, 3e-3, 1e-2),
        several(above(0), "a list of rates such as (1e-3, 1e-2)"),
        "of it, to choose from on every tenth image: AdamW, a cosine to 0",
    ),
    "weight_decay": Field(0.1, number(0), "of it"),
    "seed": Field(0, whole(0), "of its first weights and the order of images"),
    "k": Field(20, whole(1), "neighbours"),
    "temperature": Field(0.07, above(0), "of their votes"),
    **linear.RIDGE_FIELDS,
    "shown": Field(4, whole(0, 32), "images that are drawn with the query's attention"),
}


class Moments(NamedTuple):
    """Mean and standard deviation of the channels of tokens, (D,) float32 each."""

    mean: np.ndarray
    deviation: np.ndarray


def check(evaluation: Evaluation) -> None:
    """Raises NotServed without labels, with too few images or where heads do not fit the width."""
    require_labels(evaluation)
    base.require_images(evaluation, 2)
    config, width = evaluation.config, encoder_of(evaluation).width
    if width % config.query_heads:
        raise NotServed(
            f"config.query_heads={config.query_heads} does not divide the encoder's width {width}"
        )
    count = min(len(evaluation.train), config.train_images)
    if len(config.learning_rates) > 1 and count < 2 * _HELD_OUT:
        raise NotServed(
            f"task attentive needs at least {2 * _HELD_OUT} training images, a tenth of which "
            f"choose the learning rate, and there are {count}; name one rate alone: "
            "--config.learning_rates=(1e-3,)"
        )


def run(evaluation: Evaluation) -> Result:
    """Top-1 accuracy of the attentive probe, of ridge and of k-NN, all on the same patch tokens."""
    config, num_classes = evaluation.config, evaluation.train.num_classes
    rows = base.spread(len(evaluation.train), config.train_images)
    train, labels = _tokens(evaluation, evaluation.train, "training", rows)
    test, true = _tokens(evaluation, evaluation.val, "validation", base.chosen(evaluation))
    moments = _moments(train)
    params, rate = _chosen(train, labels, moments, num_classes, config)
    predicted = {"attentive": _predicted(params, test, moments)}
    means, test_means = _means(train), _means(test)
    fitted = ridge.fit(means, labels, num_classes, tuple(config.ridge))
    predicted["ridge"] = np.argmax(fitted(test_means), axis=1)
    predicted["knn"] = nearest.predictions(
        means,
        labels,
        test_means,
        num_classes=num_classes,
        ks=(config.k,),
        temperature=config.temperature,
    )[config.k]
    right = {name: classes == true for name, classes in predicted.items()}
    metrics = _metrics(right, len(labels), num_classes)
    metrics["learning_rate"] = rate
    value, error = metrics["accuracy"]["attentive"], metrics["error"]["attentive"]
    return Result(
        metrics,
        _table(metrics),
        f"one cross-attention query of {config.query_heads} heads on frozen patch tokens and a "
        f"linear layer, AdamW {rate:g} chosen on every tenth image, {config.head_epochs} epochs; "
        f"ridge ({fitted.words}) and k-NN (k = {config.k}) on their mean; "
        f"{len(labels):,} training and {len(true):,} validation images",
        Score("top-1 accuracy, attentive probe", value, None, error, of_images=right["attentive"]),
        f"{ERRORS}; that of a difference is of the same images",
        {LABELS[name]: _cell(metrics, name) for name in predicted},
        {"chance": metrics["chance"]},
        _pictures(evaluation, params, moments),
    )


def _tokens(evaluation: Evaluation, source, what: str, rows: np.ndarray):
    """((M, N, D) patch tokens, maybe in a file, (M,) labels)."""
    encoder = evaluation.run.method.encoder

    def patches(params, images):
        return {"patches": encoder.encode(params, encoder.pixels.normalize(images)).patches}

    found, labels = extracted(evaluation, source, patches, what, rows)
    return found["patches"], labels


def _chunks(tokens: np.ndarray):
    for start in range(0, len(tokens), _ROWS):
        yield np.asarray(tokens[start : start + _ROWS])


def _means(tokens: np.ndarray) -> np.ndarray:
    return np.concatenate([chunk.mean(axis=1) for chunk in _chunks(tokens)])


def _moments(tokens: np.ndarray) -> Moments:
    count = tokens.shape[0] * tokens.shape[1]
    mean = sum(chunk.sum(axis=(0, 1), dtype=np.float64) for chunk in _chunks(tokens)) / count
    squares = sum(np.square(chunk - mean).sum(axis=(0, 1)) for chunk in _chunks(tokens))
    deviation = np.sqrt(squares / count) + 1e-6
    return Moments(mean.astype(np.float32), deviation.astype(np.float32))


def attend(params, tokens, moments: Moments):
    """What the query gathers.

    Args:
      params: {"query": (H, D / H), "key": (D, H, D / H), …}.
      tokens: (B, N, D); keys and values are made of them less `moments`.

    Returns:
      ((B, H, D) weighted means of the normalised tokens, (B, H, N) weights).
    """
    # The query times the keys, and the weights times the values, without a key or value for each
    # token: both are linear, and the mean shifts all scores alike.
    width = params["query"].shape[1] ** 0.5
    looked_for = jnp.einsum("dhe,he->dh", params["key"], params["query"]) / width
    scores = jnp.einsum("bnd,dh->bhn", tokens, looked_for / moments.deviation[:, None])
    weights = jax.nn.softmax(scores, axis=-1)
    gathered = jnp.einsum("bhn,bnd->bhd", weights, tokens)
    return (gathered - moments.mean) / moments.deviation, weights


def class_scores(params, tokens, moments: Moments):
    """(B, C) scores of the classes; args as for `attend`."""
    gathered, _ = attend(params, tokens, moments)
    values = jnp.einsum("bhd,dhe->bhe", gathered, params["value"])
    return values.reshape(len(values), -1) @ params["weights"] + params["bias"]


_scores = jax.jit(class_scores)


def _first(width: int, heads: int, num_classes: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    of_head = width // heads

    def drawn(*shape, deviation):
        return (deviation * rng.normal(size=shape)).astype(np.float32)

    return {
        "query": drawn(heads, of_head, deviation=1.0),
        "key": drawn(width, heads, of_head, deviation=width**-0.5),
        "value": drawn(width, heads, of_head, deviation=width**-0.5),
        "weights": np.zeros((width, num_classes), np.float32),
        "bias": np.zeros(num_classes, np.float32),
    }


def _chosen(tokens, labels, moments: Moments, num_classes: int, config) -> tuple[Any, float]:
    """(parameters of the probe fitted to all images, its learning rate)."""
    first = _first(tokens.shape[2], config.query_heads, num_classes, config.seed)
    numbers = np.arange(len(labels))
    held_out = numbers % _HELD_OUT == _HELD_OUT - 1

    def loss(params, tokens, labels):
        scores = class_scores(params, tokens, moments)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    recipe = head_training.Recipe(
        config.head_epochs, config.head_batch, config.weight_decay, config.seed
    )
    train = head_training.trainer(loss, recipe, "probe")
    columns, rates, best = (tokens, labels), tuple(config.learning_rates), 0
    if len(rates) > 1:
        tried = [train(first, numbers[~held_out], columns, rate) for rate in rates]
        right = [
            np.sum(_predicted(params, tokens[held_out], moments) == labels[held_out])
            for params in tried
        ]
        best = int(np.argmax(right))
    return train(first, numbers, columns, rates[best]), float(rates[best])


def _predicted(params, tokens, moments: Moments) -> np.ndarray:
    scores = [np.asarray(_scores(params, chunk, moments)) for chunk in _chunks(tokens)]
    return np.argmax(np.concatenate(scores), axis=1)


def _metrics(right: dict[str, np.ndarray], train_images: int, num_classes: int) -> dict:
    accuracy = {name: float(np.mean(values)) for name, values in right.items()}
    count = len(right["attentive"])
    gain = right["attentive"].astype(np.float64) - right["ridge"]
    return {
        "train_images": train_images,
        "images": count,
        "accuracy": accuracy,
        "error": {name: standard_error(value, count) for name, value in accuracy.items()},
        "gain": float(gain.mean()),
        "gain_error": error_of_mean(gain),
        "chance": 1 / num_classes,
    }


def _cell(metrics, name: str) -> str:
    return percent(metrics["accuracy"][name], metrics["error"][name])


def _table(metrics) -> list[tuple[str, ...]]:
    return [
        ("head", "top-1 accuracy"),
        *((LABELS[name], _cell(metrics, name)) for name in metrics["accuracy"]),
        ("attentive less ridge", points(metrics["gain"], metrics["gain_error"])),
        ("chance", percent(metrics["chance"])),
    ]


def _pictures(evaluation: Evaluation, params, moments: Moments) -> dict:
    """The picture of what each head of the query attends to in some images."""
    if not evaluation.config.shown:
        return {}
    images = base.pictures(evaluation, evaluation.config.shown)
    if not len(images):
        return {}
    encoder = evaluation.run.method.encoder

    @jax.jit
    def weights_of(of_encoder, images):
        tokens = encoder.encode(of_encoder, encoder.pixels.normalize(images)).patches
        return attend(params, tokens, moments)[1]

    maps = np.asarray(weights_of(evaluation.run.encoder, images))
    note = "attention of the probe's query to the patches"
    size = evaluation.config.model.patch_size
    return {
        "attentive_maps.png": draw_maps(
            colours.shown(encoder.pixels, images), maps, size, note, "Head"
        )
    }


def compare(found) -> dict:
    """Accuracy of the three heads, a colour a run, see `base.Task.compare`."""
    shown = {
        label: {
            LABELS[name]: (share, metrics["error"][name])
            for name, share in metrics["accuracy"].items()
        }
        for label, metrics in found.items()
    }
    chances = sorted({metrics["chance"] for metrics in found.values()})
    figure = draw_shares(
        shown,
        "top-1 accuracy (%)",
        f"bars: one standard error over {base.counted_images(found.values())}",
        {f"chance ({percent(chance)})": chance for chance in chances},
    )
    return {"attentive_accuracy.png": figure}


TASK = Task(
    check,
    run,
    FIELDS,
    section=Section(
        "Attentive probing",
        LABELS,
        lambda record: [
            {
                name: sections.share(share, None, record["metrics"]["error"][name])
                for name, share in record["metrics"]["accuracy"].items()
            }
        ],
        "One cross-attention query on frozen patch tokens, beside heads on their mean.",
    ),
    compare=compare,
)
