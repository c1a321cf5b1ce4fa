"""What is measured while a run trains: the validation loss and the k-NN accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from dppmask_jax import features, parallel
from dppmask_jax.scores import knn

# Reads a split, or one process's share of it: () or (shard, num_shards) -> batches.
Batches = Callable[..., Iterable[dict[str, np.ndarray]]]


def validation_loss(method, batches: Batches, key) -> Callable[[Any], float]:
    """A function of the training state: the mean of `method.loss` over the validation batches.

    Every call uses the same keys, so the masks of an image differ only as far as its features do.
    Batches count alike. An unreadable image is replaced by another of its batch.
    """
    mean_loss = parallel.data_parallel_mean(
        lambda state, batch, key: method.loss(*state, batch, key, 0)[0]
    )

    def measure(state) -> float:
        losses = []
        for batch in batches():
            valid = np.flatnonzero(batch["valid"])
            if not valid.size:
                continue
            filled = np.resize(valid, len(batch["valid"]))
            inputs = {name: batch[name][filled] for name in ("image", "label", "index")}
            loss = mean_loss((state.params, state.extra), parallel.split_batch(inputs), key)
            losses.append(float(parallel.to_host(loss)))
        return float(np.mean(losses))

    return measure


def knn_accuracy(method, train: Batches, val: Batches, evaluate, num_classes: int):
    """A function of the training state: k-NN accuracy, 0 to 1, of the encoder's features.

    Features are centred on the mean of the training set, as the raw pixels are: without it the
    direction common to all images hides the rest from the cosine.

    Args:
      evaluate: `config.evaluate`; `knn_feature` "patches" takes the mean of the patch tokens.
    """

    def encode(params, extra, images):
        out = method.encode(params, extra, images)
        return {"x": out["cls"] if evaluate.knn_feature == "cls" else out["patches"].mean(axis=1)}

    extract = features.extractor(encode)

    def measure(state) -> float:
        share = parallel.process_shard()
        train_features, train_labels = extract(state.params, state.extra, train(*share))
        val_features, val_labels = extract(state.params, state.extra, val(*share))
        return _accuracy(
            train_features["x"], train_labels, val_features["x"], val_labels, evaluate, num_classes
        )

    return measure


def raw_pixel_accuracy(train: Batches, val: Batches, evaluate, num_classes: int) -> float:
    """k-NN accuracy, 0 to 1, of the pixels themselves: the floor."""
    return _accuracy(
        *features.raw_pixels(train()), *features.raw_pixels(val()), evaluate, num_classes
    )


def _accuracy(train_x, train_labels, val_x, val_labels, evaluate, num_classes):
    return knn.accuracy(
        train_x,
        train_labels,
        val_x,
        val_labels,
        num_classes=num_classes,
        k=evaluate.knn_k,
        temperature=evaluate.knn_temperature,
        mean=train_x.mean(axis=0),
    )
