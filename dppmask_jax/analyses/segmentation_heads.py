"""What turns frozen patch tokens into classes of pixels: three heads, fitted to the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dppmask_jax.analyses import head_training
from dppmask_jax.evals import linear
from dppmask_jax.fields import Field, above, number, whole
from dppmask_jax.scores import ridge

_HELD_OUT = 10  # the tokens of every tenth image choose the strength of ridge
_EXACT = jax.lax.Precision.HIGHEST
FIELDS = {
    "k": Field(20, whole(1), "neighbours that vote on a patch; all tokens where there are fewer"),
    "temperature": Field(0.07, above(0), "of the votes"),
    **linear.RIDGE_FIELDS,
    "head_epochs": Field(20, whole(1), "of the linear head's training"),
    "head_batch": Field(1024, whole(1), "patch tokens a step of it"),
    "learning_rate": Field(1e-2, above(0), "of it: AdamW, a cosine to 0"),
    "weight_decay": Field(0.01, number(0), "of it"),
}


class Examples(NamedTuple):
    """Patch tokens (T, D) float32 with their classes (T,) int32 and the number (T,) of the image
    that each is from, counted from 0."""

    tokens: np.ndarray
    classes: np.ndarray
    image: np.ndarray


class Head(NamedTuple):
    """A head that is fitted: `predict(state, tokens (N, D)) -> classes (N,)` of the patches of one
    image, under jit; `words` say how it was made."""

    state: Any
    predict: Callable[[Any, Any], Any]
    words: str


def neighbours(examples: Examples, num_classes: int, config) -> Head:
    """The k nearest tokens by cosine vote with weight exp(similarity / temperature)."""
    k = min(config.k, len(examples.tokens))
    lengths = np.linalg.norm(examples.tokens, axis=1, keepdims=True)
    state = {"tokens": examples.tokens / np.maximum(lengths, 1e-12), "classes": examples.classes}

    def predict(state, tokens):
        lengths = jnp.linalg.norm(tokens, axis=1, keepdims=True)
        tokens = tokens / jnp.maximum(lengths, 1e-12)
        alike = jnp.matmul(tokens, state["tokens"].T, precision=_EXACT)
        # Where the first of the top k is taken, XLA sorts all: 60 times as long on a CPU.
        most_alike = jnp.max(alike, axis=1, keepdims=True)
        alike, nearest = jax.lax.top_k(alike, k)
        weights = jnp.exp((alike - most_alike) / config.temperature)
        voted = jax.nn.one_hot(state["classes"][nearest], num_classes)
        return jnp.argmax(jnp.einsum("nk,nkc->nc", weights, voted, precision=_EXACT), axis=1)

    return Head(state, predict, f"cosine, k = {k}, votes at temperature {config.temperature:g}")


def closed_form(examples: Examples, num_classes: int, config) -> Head:
    """Ridge regression onto the classes."""
    fitted = ridge.fit(
        examples.tokens,
        examples.classes,
        num_classes,
        tuple(config.ridge),
        examples.image % _HELD_OUT == _HELD_OUT - 1,
    )
    return Head(
        _affine(fitted.weights, fitted.bias),
        _predict_affine,
        f"closed form, {fitted.words}",
    )


def batch_normed(examples: Examples, num_classes: int, config) -> Head:
    """Batch normalisation without scale and shift, then a 1x1 convolution, by cross-entropy.

    The statistics are those of all training tokens, which batches would only estimate.
    """
    mean = examples.tokens.mean(axis=0, dtype=np.float64)
    deviation = examples.tokens.std(axis=0, dtype=np.float64) + 1e-6
    shift, scale = mean.astype(np.float32), deviation.astype(np.float32)

    def loss(params, tokens, classes):
        scores = jnp.matmul((tokens - shift) / scale, params["weights"]) + params["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(scores, classes).mean()

    start = {
        "weights": np.zeros((len(shift), num_classes), np.float32),
        "bias": np.zeros(num_classes, np.float32),
    }
    recipe = head_training.Recipe(
        config.head_epochs, config.head_batch, config.weight_decay, config.seed
    )
    rows = np.arange(len(examples.tokens))
    columns = (examples.tokens, examples.classes)
    train = head_training.trainer(loss, recipe, "linear head")
    found = train(start, rows, columns, config.learning_rate)
    weights = np.asarray(found["weights"], np.float64) / deviation[:, None]
    bias = np.asarray(found["bias"], np.float64) - mean @ weights
    return Head(
        _affine(weights, bias),
        _predict_affine,
        f"batch norm and 1x1 convolution, AdamW {config.learning_rate:g}, "
        f"{config.head_epochs} epochs",
    )


def _affine(weights: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    return {"weights": weights.astype(np.float32), "bias": bias.astype(np.float32)}


def _predict_affine(state, tokens):
    scores = jnp.matmul(tokens, state["weights"], precision=_EXACT) + state["bias"]
    return jnp.argmax(scores, axis=1)


HEADS: dict[str, Callable[[Examples, int, Any], Head]] = {
    "knn": neighbours,
    "ridge": closed_form,
    "linear": batch_normed,
}
