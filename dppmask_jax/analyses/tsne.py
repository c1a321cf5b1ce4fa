"""A map of the tokens of images of several classes (arXiv 2305.00729, section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from dppmask_jax.analyses import base
from dppmask_jax.errors import InputError, NotServed
from dppmask_jax.evals.base import BLOCKS_ALONE, Evaluation, Result, Task, extracted
from dppmask_jax.fields import Field, above, optional, whole
from dppmask_jax.figures.tokens import draw_tokens
from dppmask_jax.words import count

_DEPTH = 5  # the tenth of the authors' list: embedding, after attention 1, after MLP 1, ...

FIELDS = {
    **base.FIELDS,
    "images": base.FIELDS["images"]._replace(
        default=24, note="images whose tokens are shown, as many of each class as can be"
    ),
    "classes": Field(6, whole(2, 10), "classes that are shown, evenly spread over all"),
    "tokens": Field(64, whole(1), "patches of an image that are shown, drawn where it has more"),
    "depth": Field(
        None,
        optional(whole(0)),
        "0: embedding, l: output of block l; None is block 5, or the last where there are fewer",
    ),
    "perplexity": Field(20.0, above(0), "about how many neighbours a token has"),
    "iterations": Field(1000, whole(250), "of the optimisation"),
    "seed": Field(0, whole(0), "of the tokens that are drawn, and of the optimisation"),
}
_LEAST_NEIGHBOURS = 3  # times the perplexity


def check(evaluation: Evaluation) -> None:
    """Raises NotServed without blocks, without labels of two classes, or where there are too few
    tokens, and InputError where no block is that deep."""
    base.require_trace(evaluation)
    config, encoder = evaluation.config, evaluation.run.method.encoder
    if (config.depth or 0) > encoder.depth:
        raise InputError(
            f"config.depth={config.depth} is beyond the encoder's {count(encoder.depth, 'block')}; "
            f"take one from 0 to {encoder.depth}"
        )
    source = base.split_of(evaluation)
    if source.labels is None:
        raise NotServed(
            f"task {config.task} needs labels, and config.data.source={config.data.source} has "
            f"none: {source.unlabelled_because}"
        )
    indices, labels = _chosen(evaluation)
    if len(set(labels.tolist())) < 2:
        raise NotServed(
            f"task {config.task} needs images of two classes, and config.data.source="
            f"{config.data.source} has those of one; give another source or raise config.images"
        )
    shown = len(indices) * min(config.tokens, math.prod(encoder.grid))
    if shown <= (least := _LEAST_NEIGHBOURS * config.perplexity):
        raise NotServed(
            f"config.perplexity={config.perplexity:g} needs more than {least:g} tokens, and "
            f"{count(len(indices), 'image')} have {shown}; raise config.images or lower it"
        )


def run(evaluation: Evaluation) -> Result:
    """The tokens of one depth in two dimensions, by scikit-learn."""
    from sklearn.manifold import TSNE

    config, encoder = evaluation.config, evaluation.run.method.encoder
    depth = min(_DEPTH, encoder.depth) if config.depth is None else config.depth

    def encode(params, images):
        trace = encoder.trace(params, encoder.pixels.normalize(images))
        return {"tokens": base.patch_tokens(trace)[depth]}

    source = base.split_of(evaluation)
    indices, _ = _chosen(evaluation)
    found, labels = extracted(evaluation, source, encode, "tokens", indices)
    tokens = _drawn(found["tokens"], config.tokens, config.seed)
    _check_different(tokens, depth)
    of_token = np.repeat(labels, tokens.shape[1])
    fitted = TSNE(
        perplexity=config.perplexity, max_iter=config.iterations, random_state=config.seed
    )
    # Its threads wait for each other longer than so few tokens take; where others compute as well,
    # for minutes.
    with threadpool_limits(1):
        places = fitted.fit_transform(tokens.reshape(-1, tokens.shape[-1]))
    shown = sorted(set(labels.tolist()))
    names = [source.class_names[label] for label in shown]
    counts = [(name, str(int((labels == label).sum())), str(int((of_token == label).sum())))
              for name, label in zip(names, shown, strict=True)]  # fmt: skip
    return Result(
        {
            "depth": depth,
            "blocks": encoder.depth,
            "classes": names,
            "points": np.round(places.astype(np.float64), 3).tolist(),
            "class_of": np.searchsorted(shown, of_token).tolist(),
            "divergence": float(fitted.kl_divergence_),
        },
        [("class", "images", "tokens"), *counts],
        f"t-SNE of {len(places):,} patch tokens at depth {depth} of {encoder.depth} (0: embedding, "
        f"l: output of block l), perplexity {config.perplexity:g}, {config.iterations:,} "
        f"iterations, seed {config.seed}",
        note="A map has no score: distances between far groups and their sizes mean nothing",
    )


def _chosen(evaluation: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of the images, their labels), ordered by class."""
    config, source = evaluation.config, base.split_of(evaluation)
    labels = source.labels()
    present = np.unique(labels[labels >= 0])
    classes = present[base.spread(len(present), min(config.classes, config.images))]
    indices = []
    for number, label in enumerate(classes):
        rows = np.flatnonzero(labels == label)
        wanted = config.images // len(classes) + (number < config.images % len(classes))
        indices.append(rows[base.spread(len(rows), wanted)])
    indices = np.concatenate(indices) if indices else np.zeros(0, np.int64)
    return indices, labels[indices]


def _check_different(tokens: np.ndarray, depth: int) -> None:
    """Raises NotServed where a map cannot be begun: scikit-learn divides by the tokens' spread."""
    if not np.ptp(tokens.reshape(-1, tokens.shape[-1]), axis=0).any():
        raise NotServed(
            f"all tokens at depth {depth} are alike, and a map has nothing to place apart; choose "
            "another config.depth, or another checkpoint"
        )


def _drawn(tokens: np.ndarray, most: int, seed: int) -> np.ndarray:
    """(M, N, D) -> (M, at most `most`, D): the same number of each image, in their order."""
    rng = np.random.default_rng(seed)
    count = tokens.shape[1]
    if count <= most:
        return tokens
    return np.stack([one[np.sort(rng.choice(count, most, replace=False))] for one in tokens])


def compare(found: Mapping[str, dict[str, Any]]) -> dict[str, Figure]:
    """The maps side by side, a panel an encoder."""
    return {"tsne.png": draw_tokens(found)}


TASK = Task(
    check,
    run,
    FIELDS,
    compare=compare,
    unprojected=lambda config: BLOCKS_ALONE,
    unswept=base.no_score,
)
