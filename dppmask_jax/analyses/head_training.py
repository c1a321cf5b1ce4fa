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
    learning_rate: float
    weight_decay: float
    seed: int


def trained(
    loss: Callable[..., Any], params, rows: np.ndarray, columns: tuple, recipe: Recipe, what: str
):
    """The parameters that a recipe arrives at.

    Args:
      loss: (params, part of each column) -> the mean loss, under jit.
      rows: (M,) int, which rows of the columns are trained on.
      columns: arrays with a row for each example; may be memory maps.
      what: names the training in the progress bar.
    """
    size = min(recipe.batch_size, len(rows))
    total = recipe.epochs * (len(rows) // size)
    warmup = max(1, round(_WARMUP * total))
    schedule = optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, warmup, total)
    optimizer = optax.adamw(schedule, weight_decay=recipe.weight_decay)

    @jax.jit
    def step(params, state, batch):
        gradient = jax.grad(loss)(params, *batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    order = _order(rows, size, recipe)
    for chosen in metrics.counted(order, total, what, parallel.is_main()):
        batch = tuple(np.asarray(column[chosen]) for column in columns)
        params, state = step(params, state, batch)
    return params


def _order(rows: np.ndarray, size: int, recipe: Recipe):
    for epoch in range(recipe.epochs):
        shuffled = np.random.default_rng((recipe.seed, epoch)).permutation(rows)
        for start in range(0, len(rows) - size + 1, size):
            yield np.sort(shuffled[start : start + size])  # a file is read from front to back
