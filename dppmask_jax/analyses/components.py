"""Principal components of patch tokens, and where in the image each of them responds.

Tokens of any number of images are never in memory together: one pass over the images sums up their
mean and covariance, another counts responses, both in batches on all devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dppmask_jax import parallel
from dppmask_jax.errors import InputError
from dppmask_jax.evals import features
from dppmask_jax.models.base import Encoder
from dppmask_jax.scores import moments
from dppmask_jax.scores.moments import Moments

GROUPS = 10  # of images, of which one at a time is left out for errors
_LEAST_VARIANCE = 1e-6  # of the largest; float32 knows nothing of a component with less


class Place(NamedTuple):
    """Where tokens are taken: layer 0 is the embedding, l the output of block l; `normed` after
    the final norm, which follows the last block alone."""

    layer: int
    normed: bool


class Basis(NamedTuple):
    """Principal components by rank, 0 = largest variance; float64.

    Attributes:
      mean: (D,).
      covariance: (D, D).
      eigenvalues: (D,).
      eigenvectors: (D, D), a column each; the largest entry of each is positive.
    """

    mean: np.ndarray
    covariance: np.ndarray
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray


class Responses(NamedTuple):
    """How tokens respond to components, (token - mean) . vector, by groups of images.

    Attributes:
      sizes: (G,) images in each group.
      counts: (G, N, D), images of a group whose response at a position is above 0.
      sums: (N, D) of responses over all images.
    """

    sizes: np.ndarray
    counts: np.ndarray
    sums: np.ndarray

    def probabilities(self) -> np.ndarray:
        """(N, D), the share of images whose response is above 0."""
        return self.counts.sum(axis=0) / self.sizes.sum()

    def mean(self) -> np.ndarray:
        """(N, D), the mean response."""
        return self.sums / self.sizes.sum()


def places(encoder: Encoder) -> tuple[Place, ...]:
    """All places of an encoder, from the embedding on; the last is after the final norm."""
    return (*(Place(layer, False) for layer in range(encoder.depth + 1)), last(encoder))


def last(encoder: Encoder) -> Place:
    """The place where everybody takes an encoder's tokens, after the final norm."""
    return Place(encoder.depth, True)


def tokens(encoder: Encoder, at: Sequence[Place], params, images) -> list[jax.Array]:
    """(B, N, D) float32 patch tokens at each place, of normalised images."""
    if tuple(at) == (last(encoder),):
        return [encoder.encode(params, images).patches]
    trace = encoder.trace(params, images)
    count = trace.tokens.patches.shape[1]
    bare = [trace.embedding, *(block.after_mlp for block in trace.blocks)]
    return [
        trace.tokens.patches if place.normed else bare[place.layer][:, -count:].astype(jnp.float32)
        for place in at
    ]


def principal(found: Moments) -> Basis:
    """The principal components of rows with these moments."""
    covariance = moments.covariance(found)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    return Basis(found.mean, covariance, values, vectors * np.sign(largest))


@jax.jit
def respond(rows: jax.Array, valid, groups, mean, vectors) -> Responses:
    """The responses of a batch; float32.

    Args:
      rows: (B, N, D).
      valid: (B,) bool; images that are not count nowhere.
      groups: (B,) int, the group of each image.
      mean, vectors: (D,) and (D, D) float32.
    """
    member = (jax.nn.one_hot(groups, GROUPS) * valid[:, None]).astype(jnp.float32)
    response = jnp.matmul(rows.astype(jnp.float32) - mean, vectors, precision="highest")
    response = jnp.where(valid[:, None, None], response, 0.0)
    # Whole numbers below 2 ** 24: exact in float32.
    counts = jnp.einsum("bg,bnd->gnd", member, (response > 0).astype(jnp.float32))
    return Responses(member.sum(axis=0), counts, response.sum(axis=0))


def added(first: Responses | None, second: Responses) -> Responses:
    """The responses of the images of both, float64; `first` None has none."""
    second = Responses(*(np.asarray(value, np.float64) for value in second))
    return second if first is None else Responses(*map(np.add, first, second))


def without_noise(found: Responses, basis: Basis) -> Responses:
    """The responses where components that hardly vary respond to one half of the images.

    Their sign is the rounding of the mean, which is the same for every image: position noise of
    our own making.
    """
    silent = basis.eigenvalues <= _LEAST_VARIANCE * basis.eigenvalues[0]
    halves = found.sizes[:, None, None] / 2
    return found._replace(
        counts=np.where(silent, halves, found.counts), sums=np.where(silent, 0.0, found.sums)
    )


Read = Callable[[Any, dict], list[jax.Array]]  # (params, batch) -> tokens at each place


def bases(read: Read, params, batches: Iterable[dict]) -> list[Basis]:
    """The principal components at each place, in one pass.

    Raises:
      InputError: no image can be read.
    """

    def sums(state, batch):
        return [moments.of_batch(rows, batch["valid"]) for rows in read(state, batch)]

    total: list[Moments | None] = []
    for found in _summed(sums, params, batches):
        total = total or [None] * len(found)
        total = [moments.merged(*both) for both in zip(total, found, strict=True)]
    if not total or not total[0].count:
        raise InputError(features.NONE_READABLE)
    return [principal(found) for found in total]


def responses(read: Read, params, batches: Iterable[dict], at: Sequence[Basis]) -> list[Responses]:
    """How the images respond to the components of each place, in one pass.

    Args:
      batches: with "number" beside "valid", the number of the image among those that are read.
    """

    def counted(state, batch):
        params, vectors = state
        return [
            respond(rows, batch["valid"], batch["number"] % GROUPS, *of_place)
            for rows, of_place in zip(read(params, batch), vectors, strict=True)
        ]

    vectors = [
        (basis.mean.astype(np.float32), basis.eigenvectors.astype(np.float32)) for basis in at
    ]
    total: list[Responses | None] = [None] * len(at)
    state = parallel.replicate((params, vectors))
    for found in _summed(counted, state, batches):
        total = [added(*both) for both in zip(total, found, strict=True)]
    return [without_noise(found, basis) for found, basis in zip(total, at, strict=True)]


def _summed(sums: Callable, state, batches: Iterable[dict]) -> Iterator[Any]:
    """What `sums(state, batch)` gives of the share of a batch that each device has, one by one."""
    mapped = parallel.data_parallel_map(
        lambda state, batch: jax.tree.map(lambda x: x[None], sums(state, batch))
    )
    for batch in batches:
        found = parallel.all_rows(mapped(state, batch))
        for device in range(len(jax.tree.leaves(found)[0])):
            yield jax.tree.map(lambda x, device=device: x[device], found)


def photographs(encoder: Encoder, at: Sequence[Place]) -> Read:
    """Reads batches with "image" (B, H, W, C), as loaded."""
    normalize = encoder.pixels.normalize
    return lambda params, batch: tokens(encoder, at, params, normalize(batch["image"]))


def numbers(count: int, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """This process's share of the batches of so many images: "number" (b,) int32 and "valid"."""
    shard, num_shards = parallel.process_shard()
    share = batch_size // num_shards
    for first in range(0, count, batch_size):
        number = first + shard * share + np.arange(share, dtype=np.int32)
        yield {"number": number, "valid": number < count}
