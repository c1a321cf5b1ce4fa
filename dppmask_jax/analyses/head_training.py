"""Training of a small head on features that are there already: AdamW and a cosine, minutes at most.

It runs on one device of each process, so that the result depends on neither their number nor that
of processes: all of them have all features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from dppmask_jax import parallel
from dppmask_jax.runs import metrics

_WARMUP = 0.05  # share of the steps in which the learning rate rises


class Recipe(NamedTuple):
    """How a head is trained. `batch_size` counts rows, of which an epoch leaves out fewer than that
    many; `seed` is that of their order."""

    epochs: int
    batch_size: int
    weight_decay: float
    seed: int


def trainer(loss: Callable[..., Any], recipe: Recipe, what: str) -> Callable[..., Any]:
    """Compiles a training.

    Args:
      loss: (params, part of each column) -> the mean loss, under jit.
      what: names the training in the progress bar.

    Returns:
      (params, rows (M,) int, columns, learning rate) -> params, from the first parameters to those
      that the recipe arrives at with these rows of the columns, arrays or memory maps.
    """
    optimizer = optax.adamw(1.0, weight_decay=recipe.weight_decay)

    @jax.jit
    def step(params, state, batch, rate):
        gradient = jax.grad(loss)(params, *batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, jax.tree.map(lambda x: rate * x, updates)), state

    def train(params, rows, columns, learning_rate: float):
        size = min(recipe.batch_size, len(rows))
        rates = learning_rate * _warmup_cosine(recipe.epochs * (len(rows) // size))
        state = optimizer.init(params)
        batches = zip(_order(rows, size, recipe), rates, strict=True)
        for chosen, rate in metrics.counted(batches, len(rates), what, parallel.is_main()):
            batch = tuple(np.asarray(column[chosen]) for column in columns)
            params, state = step(params, state, batch, rate)
        return params

    return train


def _warmup_cosine(total: int) -> np.ndarray:
    """(total,) float32 factors of the learning rate."""
    steps, warmup = np.arange(total), max(1, round(_WARMUP * total))
    rise = (steps + 1) / warmup
    fall = 0.5 + 0.5 * np.cos(np.pi * (steps - warmup + 1) / max(1, total - warmup + 1))
    return np.where(steps < warmup, rise, fall).astype(np.float32)


def _order(rows: np.ndarray, size: int, recipe: Recipe):
    for epoch in range(recipe.epochs):
        shuffled = np.random.default_rng((recipe.seed, epoch)).permutation(rows)
        for start in range(0, len(rows) - size + 1, size):
            yield np.sort(shuffled[start : start + size])  # a file is read from front to back
