"""What a mask is, what draws one, and how many patches it hides.

A strategy is a pure function of one image and an explicit key, which goes under `jax.vmap`, jit,
pmap or shard_map as it is; its `Masker` draws for a batch, whatever the method. Only jax and numpy
are imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int

    from dppmask_jax.fields import Field


class Mask(NamedTuple):
    """A mask of one image; with a leading axis B, of a batch.

    Where the count is static, `visible = order[:count]` and, of a mask that throws none away,
    `masked = order[count:]`. Fields are meant to be read by name: `order, mask, count = m` has too
    few.

    Attributes:
      order: a permutation of the patches: visible, then masked, then thrown ones.
      mask: True = hidden and to be predicted, in the order of the image.
      count: number of visible patches.
      thrown: True = neither seen nor predicted; None: none is.
      num_greedy: greedy picks among the visible ones, from `export_masks`.
    """

    order: Int[Array, " N"]
    mask: Bool[Array, " N"]
    count: Int[Array, ""]
    thrown: Bool[Array, " N"] | None = None
    num_greedy: Int[Array, ""] | None = None

    @property
    def kept(self) -> Int[Array, " M"]:
        """The order without the thrown patches, of which all images of a batch have as many: not
        to be read under jit."""
        if self.thrown is None:
            return self.order
        most = int(np.asarray(self.thrown).sum(axis=-1).min())
        return self.order[..., : self.order.shape[-1] - most]

    @property
    def hidden(self) -> Bool[Array, " N"]:
        """True = not seen: masked or thrown."""
        return self.mask if self.thrown is None else self.mask | self.thrown


IN_WORDS = {  # the fields of `Seen` that a masker may need, for messages
    "features": "features",
    "attention": "a class token's attention",
    "hardness": "predicted losses",
    "parts": "maps of parts",
    "proposed": "masks of the images",
}


def needs_in_words(needs) -> str:
    """What a masker needs, for messages."""
    return " and ".join(IN_WORDS.get(need, need) for need in sorted(needs))


class Seen(NamedTuple):
    """What a method shows a masker of a batch. None: it has no such thing.

    `features` and what follows are functions without arguments, so that what no
    masker asks for is not computed.

    Attributes:
      grid: (rows, columns) of patches.
      progress: of the run, from 0 to 1.
      step: of the run.
      step_key: for what all images of a step share; None: outside of training.
      wanted: () or (B,) float32: the real number of patches to mask, which was rounded down to a
        count; None: there is none but the count.
      features: () -> (B, N, D).
      attention: () -> (B, H, N): how much the class token attends to each patch in the last block,
        head by head.
      hardness: () -> (B, N): larger where a patch is harder.
      parts: () -> (B, N) int32: the part that a patch belongs to.
      proposed: () -> (B, N) bool: masks that came with the images.
    """

    grid: tuple[int, int]
    progress: Any = 1.0
    step: Any = 0
    step_key: Any = None
    wanted: Any = None
    features: Callable[[], Any] | None = None
    attention: Callable[[], Any] | None = None
    hardness: Callable[[], Any] | None = None
    parts: Callable[[], Any] | None = None
    proposed: Callable[[], Any] | None = None


WITH_IMAGES = frozenset({"parts", "proposed"})  # what of it the data set brings, not the method


class Masker(NamedTuple):
    """A strategy with its settings.

    Attributes:
      draw: (keys (B,), count, seen, most) -> (Mask of (B, ...) arrays, {metric: (B,)}). `count` is
        the number of visible patches, an int or (B,) int32 that may be traced. `most` is its static
        upper bound, but for images without any masked patch, whose count is N.
      needs: names of the fields of `Seen` that it cannot do without.
      label: what it is, in a few words: its name, and what it depends on in brackets.
      num_thrown: how many patches of an image are thrown away: number of patches -> int, static.
        They count as hidden; an image that hides fewer, or as many, still has one masked.
      shared_ratio: whether all images of a step hide the same share.
      schedules: {name: progress -> value}, for settings that change with `Seen.progress`. A run may
        become longer as long as they are the same at every step so far.
    """

    draw: Callable[..., tuple[Mask, dict[str, Any]]]
    needs: frozenset[str]
    label: str
    num_thrown: Callable[[int], int] = lambda num_patches: 0
    shared_ratio: bool = False
    schedules: Mapping[str, Callable[[Any], Any]] = MappingProxyType({})


class MaskerKind(NamedTuple):
    """A strategy, as `MASKERS` has it.

    Attributes:
      build: config.mask, or anything else with these attributes -> Masker.
      fields: {"mask.NAME": Field}, what `build` reads.
      check: config.mask -> None; raises InputError where the fields do not fit what they name.
      check_counts: (config.mask, grid, fewest, most hidden patches of a masked image) -> None;
        raises InputError where it cannot hide as many.
      traced: names of fields that `build` takes as traced numbers too, so that another value is not
        compiled anew.
      variants: settings that figures show beside one another.
    """

    build: Callable[[Any], Masker]
    fields: Mapping[str, Field] = MappingProxyType({})
    check: Callable[[Any], None] = lambda mask: None
    check_counts: Callable[[Any, tuple[int, int], int, int], None] | None = None
    traced: frozenset[str] = frozenset()
    variants: tuple[Mapping[str, Any], ...] = (MappingProxyType({}),)


def per_image(draw: Callable, keys, count, *more):
    """`draw(key, count, *more)` of each image of a batch; a static count stays static."""
    if isinstance(count, (int, np.integer)):
        return jax.vmap(lambda key, *rest: draw(key, int(count), *rest))(keys, *more)
    return jax.vmap(draw)(keys, count, *more)


def progress_at(step, total_steps: int):
    """How far a run is at a step: 0 at the first, 1 at the last."""
    return jnp.minimum(step / max(total_steps - 1, 1), 1.0)


def over_steps(masker: Masker, total_steps: int) -> dict[str, Callable[[Any], Any]]:
    """A masker's schedules as functions of the step."""
    return {
        name: lambda step, at=at: at(progress_at(step, total_steps))
        for name, at in masker.schedules.items()
    }


def mask_from(order, count, num_thrown: int = 0) -> Mask:
    """The Mask of an order of which the first `count` patches are visible.

    Args:
      num_thrown: how many are thrown, the last ones, as long as one hidden patch is not; static.
    """
    count = jnp.asarray(count, jnp.int32)
    place = jnp.argsort(order).astype(jnp.int32)
    if not num_thrown:
        return Mask(order, place >= count, count)
    first_thrown = jnp.maximum(len(order) - num_thrown, jnp.minimum(count + 1, len(order)))
    thrown = place >= first_thrown
    return Mask(order, (place >= count) & ~thrown, count, thrown)


def nothing_hidden(grid: tuple[int, int], batch: int) -> Mask:
    """The Mask of (B, ...) arrays that leaves all patches of a grid visible."""
    number = grid[0] * grid[1]
    order = jnp.broadcast_to(jnp.arange(number, dtype=jnp.int32), (batch, number))
    return Mask(order, jnp.zeros(order.shape, bool), jnp.full(batch, number, jnp.int32))


def check_count(count, lowest: int, highest: int) -> None:
    """Raises ValueError where a static count of visible patches is out of bounds."""
    if isinstance(count, (int, np.integer)) and not lowest <= count <= highest:
        raise ValueError(f"visible count must be in {lowest}..{highest}, got {count}")


# How many patches.


def num_visible(num_patches: int, ratio: float) -> int:
    """How many patches stay visible: int(num_patches * (1 - ratio)), as in MAE's code.

    Of 196 patches 49 at 0.75, 58 at 0.7, 78 at 0.6, 98 at 0.5, 39 at 0.8. The number masked is
    the rest, never rounded by itself.

    Raises:
      ValueError: `ratio` is not in [0, 1), or no patch would stay visible.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"mask ratio must be in [0, 1), got {ratio}")
    count = int(num_patches * (1 - ratio))
    if count < 1:
        raise ValueError(f"mask ratio {ratio} leaves no visible patch of {num_patches}")
    return count


def num_masked(num_patches: int, ratio):
    """How many patches a ratio masks: int(ratio * num_patches).

    Numbers and NumPy arrays are multiplied in float64, as Python does it: .29 of 100 are 28. JAX
    arrays, drawn on a device, are multiplied in float32; `draw_num_masked` draws ratios that stay
    exact where nothing varies.
    """
    if isinstance(ratio, jax.Array):
        return jnp.floor(jnp.float32(ratio) * num_patches).astype(jnp.int32)
    return np.floor(np.float64(ratio) * num_patches).astype(np.int32)


def ratio_range(ratios: tuple[float, ...], variations: tuple[float, ...]):
    """(lowest, highest) ratio of each entry, both (entries,) float64."""
    ratios, variations = np.float64(ratios), np.float64(variations)
    return ratios - variations, ratios + variations


def draw_ratio(key: Array, ratios: tuple[float, ...], variations: tuple[float, ...]):
    """One mask ratio: an entry of a list, each jittered (iBOT's code, `pred_ratio`).

    Args:
      key: a JAX key.
      ratios, variations: entry i is uniform in ratios[i] ± variations[i].

    Returns:
      () float32.
    """
    return _draw_entry(key, ratios, variations)[1]


def draw_num_masked(
    key: Array,
    num_patches: int,
    ratios: tuple[float, ...],
    variations: tuple[float, ...],
    share: float = 1.0,
):
    """How many patches a drawn ratio masks.

    The product is float32, as ratios are on devices, but never leaves the whole numbers of the
    entry's ends in float64. So an entry that does not vary masks what Python's int(r * N) says.

    Args:
      key, ratios, variations: see `draw_ratio`; the same key draws the same ratio.
      num_patches: static.
      share: of the ratio.

    Returns:
      (() int32, () float32: the number before it was rounded down).
    """
    which, ratio = _draw_entry(key, ratios, variations)
    real = np.float32(share) * ratio * num_patches
    ends = (np.int32(num_patches * share * end) for end in ratio_range(ratios, variations))
    low, high = (jnp.asarray(end)[which] for end in ends)
    return jnp.clip(jnp.floor(real).astype(jnp.int32), low, high), real


def _draw_entry(key, ratios, variations):
    """(which entry, the ratio drawn)."""
    which_key, jitter_key = jax.random.split(key)
    which = jax.random.randint(which_key, (), 0, len(ratios), jnp.int32)
    low, high = (jnp.asarray(np.float32(end))[which] for end in ratio_range(ratios, variations))
    uniform = jax.random.uniform(jitter_key, (), jnp.float32)
    return which, jnp.clip(low + (high - low) * uniform, low, high)
