"""What is measured while a run trains: the validation loss and the k-NN accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from dppmask_jax import parallel
from dppmask_jax.errors import InputError
from dppmask_jax.evals import features
from dppmask_jax.methods import supervised
from dppmask_jax.scores import nearest

# Reads a split, or one process's share of it: () or (shard, num_shards) -> batches.
Batches = Callable[..., Iterable[dict[str, np.ndarray]]]


def validation_loss(method, batches: Batches, key) -> Callable[[Any], float]:
    """A function of the training state: the mean loss, of the first turn, over the validation
    batches.

    Every call uses the same keys, so the masks of an image differ only as far as its features do.
    Batches count alike. An unreadable image is replaced by another of its batch, and a batch of
    unreadable images left out; where all are, InputError is raised.
    """
    mean_loss = parallel.data_parallel_mean(
        lambda state, batch, key: method.turns[0].loss(*state, batch, key, 0)[0]
    )

    def measure(state) -> float:
        losses = []
        for batch in batches():
            valid = np.flatnonzero(batch["valid"])
            if not valid.size:
                continue
            filled = np.resize(valid, len(batch["valid"]))
            names = ("image", "label", "index", *method.extras)
            inputs = {name: batch[name][filled] for name in names}
            inputs["row"] = inputs["index"]
            loss = mean_loss((state.params, state.extra), parallel.split_batch(inputs), key)
            losses.append(float(parallel.to_host(loss)))
        if not losses:
            raise InputError(features.NONE_READABLE)
        return float(np.mean(losses))

    return measure


def neighbours(config, method, train: Batches, val: Batches, num_classes: int):
    """A function of the training state: how well k nearest neighbours tell its images' classes.

    It is the measure of task=knn (`scores.knn`, the protocol of DINO and iBOT), with the k, the
    temperature and the token of `config.evaluate`, on the images that the two splits read.

    Args:
      config: of pre-training.

    Returns:
      A function that gives, for the log, "knn": accuracy of the encoder's features; "knn_pixels":
      that of the raw pixels, the floor; "knn_chance": of guessing; and "knn_images": on how many
      validation images. Shares are from 0 to 1.
    """
    evaluate = config.evaluate
    encode = supervised.encoder_features(config)

    def token(params, extra, images):
        encoder = supervised.with_positions(method.encoder_of(params, extra), config)
        return {"x": encode(encoder, images)[evaluate.knn_feature]}

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
