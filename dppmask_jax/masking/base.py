"""Which patches are masked: at random, by blocks, by DPPMask, or by a teacher's attention.

The strategies take one image and an explicit key, and are put under `jax.vmap`, jit, pmap or
shard_map as they are. `export_masks` takes a batch of images and answers in NumPy, for those who
want masks and nothing else. Only jax and numpy are imported.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dppmask_jax import patches
from dppmask_jax.dpp import has_finite_patch, select

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Shaped


class Mask(NamedTuple):
    """A mask of one image; with a leading axis B, of a batch.

    Where the count is static, `visible = order[:count]` and `masked = order[count:]`. Fields are
    meant to be read by name: `order, mask, count = m` has one too few.
    """

    order: Int[Array, " N"]  # a permutation of the patches, visible ones first
    mask: Bool[Array, " N"]  # True = masked, in the order of the image
    count: Int[Array, ""]  # number of visible patches
    num_greedy: Int[Array, ""] | None = None  # greedy picks among them, from `export_masks`


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


def random(key: Array, num_patches: int, count: int | Int[Array, ""]) -> Mask:
    """Visible patches drawn uniformly (MAE, arXiv 2111.06377, section 3).

    Bit-identical to `dpp` with tau >= 1 and the same key.

    Args:
      key: a JAX key of this image alone.
      num_patches: static.
      count: number of visible patches; may be traced, then 0..num_patches is not checked.

    Raises:
      ValueError: a static `count` outside 0..num_patches.
    """
    _check_count(count, 0, num_patches)
    noise = jax.random.uniform(key, (num_patches,), jnp.float32)
    return _mask(jnp.argsort(noise).astype(jnp.int32), count)


def dpp(
    key: Array,
    features: Shaped[Array, "N D"],
    count: int | Int[Array, ""],
    tau=0.9,
    *,
    num_keep: int | None = None,
    kernel: str = "gaussian",
    bandwidth=1.0,
    normalize: str = "l2",
    threshold_on: str = "d2",
) -> tuple[Mask, Int[Array, ""]]:
    """Visible patches chosen by `dpp.select` (DPPMask, arXiv 2303.12736, Algorithm 1).

    Args:
      key: a JAX key of this image alone.
      features: what the kernel compares; gradients stop here.
      count: number of visible patches, an int; with `num_keep` it may be traced and differ from
        image to image, because the choice for a smaller count is a prefix of that for a larger.
      tau, kernel, bandwidth, normalize, threshold_on: see `dpp.select`.
      num_keep: static upper bound of a traced `count`, which is not checked against it: what a
        count asks for beyond `num_keep` is filled at random.

    Returns:
      (Mask, num_greedy): the latter () int32, how many of the visible patches were greedy picks;
        see `dpp.greedy_order` for what 0 and 1 mean.

    Raises:
      ValueError: as `dpp.select`, or a static `count` outside 1..num_keep.
    """
    if num_keep is None:
        if isinstance(count, jax.core.Tracer):
            raise ValueError("a traced count needs num_keep, its static upper bound")
        num_keep = count
    order, num_greedy = select(
        key,
        features,
        num_keep,
        tau,
        kernel=kernel,
        bandwidth=bandwidth,
        normalize=normalize,
        threshold_on=threshold_on,
    )
    _check_count(count, 1, num_keep)
    mask = _mask(order, count)
    return mask, jnp.minimum(num_greedy, mask.count)


def block(key: Array, grid: tuple[int, int], count: int | Int[Array, ""]) -> Mask:
    """Masks rectangles (BEiT, arXiv 2106.08254, Algorithm 1; iBOT's code) to an exact count.

    Rectangles of random area and of aspect 0.3 to 1 / 0.3 are added as long as one in 10 tries
    fits into what is still to be masked; the remainder is masked at random.

    Args:
      key: a JAX key of this image alone.
      grid: (rows, columns) of patches; static.
      count: number of visible patches; may be traced, then 0..rows * columns is not checked.

    Raises:
      ValueError: a static `count` outside 0..rows * columns.
    """
    rows, columns = grid
    num_patches = rows * columns
    _check_count(count, 0, num_patches)
    block_key, noise_key = jax.random.split(key)
    index = lax.iota(jnp.int32, num_patches)
    row, column = index // columns, index % columns
    wanted = num_patches - jnp.asarray(count, jnp.int32)
    smallest_area = float((min(grid) // 3) ** 2)

    def unfinished(state):
        covered, _, tries = state
        return (jnp.sum(covered, dtype=jnp.int32) < wanted) & (tries < 10)

    def add_rectangle(state):
        covered, draw, tries = state
        left = wanted - jnp.sum(covered, dtype=jnp.int32)
        u = jax.random.uniform(jax.random.fold_in(block_key, draw), (4,), jnp.float32)
        area = smallest_area + u[0] * (left.astype(jnp.float32) - smallest_area)
        root_aspect = jnp.exp((u[1] - 0.5) * np.float32(np.log(1 / 0.3)))  # sqrt of 0.3 to 1 / 0.3
        height = jnp.round(jnp.sqrt(area) * root_aspect).astype(jnp.int32)
        width = jnp.round(jnp.sqrt(area) / root_aspect).astype(jnp.int32)
        tops, lefts = rows - height + 1, columns - width + 1
        top = jnp.floor(u[2] * tops.astype(jnp.float32)).astype(jnp.int32)
        leftmost = jnp.floor(u[3] * lefts.astype(jnp.float32)).astype(jnp.int32)
        inside = (row >= top) & (row < top + height)
        inside &= (column >= leftmost) & (column < leftmost + width)
        new = jnp.sum(inside & ~covered, dtype=jnp.int32)
        accept = (height < rows) & (width < columns) & (new > 0) & (new <= left)
        return covered | (inside & accept), draw + 1, jnp.where(accept, 0, tries + 1)

    noise = jax.random.uniform(noise_key, (num_patches,), jnp.float32)
    # Under shard_map a carry must start as varying as it ends.
    inputs = noise + wanted.astype(jnp.float32)
    none, zero = jnp.zeros_like(inputs, bool), jnp.zeros_like(inputs[0], jnp.int32)
    covered, _, _ = lax.while_loop(unfinished, add_rectangle, (none, zero, zero))
    order = lax.sort((covered.astype(jnp.int32), noise, index), num_keys=2)[2]
    return _mask(order, count)


def attention(
    key: Array,
    weights: Float[Array, " N"],
    num_masked: int | Int[Array, ""],
    *,
    variant: str = "high",
    num_shown: int | Int[Array, ""] = 0,
    num_top: int = 0,
) -> Mask:
    """Masks by how much the class token attends to each patch (AttMask, arXiv 2203.12719).

    Args:
      key: a JAX key of this image alone, for the order and for what "hint" shows.
      weights: attention of a teacher's class token to each patch.
      num_masked: how many patches are masked, 0..N; may be traced.
      variant: "high" masks the patches with the largest weights, "low" those with the smallest,
        "hint" is "high" but shows `num_shown` of the `num_top` patches with the largest weights,
        drawn at random.
      num_shown: 0..num_top, may be traced; only for "hint".
      num_top: static; only for "hint".

    Raises:
      ValueError: an unknown `variant`, or complex weights.
    """
    if variant not in ("high", "low", "hint"):
        raise ValueError(f"variant must be 'high', 'low' or 'hint', got {variant!r}")
    if jnp.iscomplexobj(weights):
        raise ValueError(f"weights must be real, got {weights.dtype}")
    weights = lax.stop_gradient(weights)
    noise = jax.random.uniform(key, weights.shape, jnp.float32)
    rank = _rank(weights if variant == "low" else -weights)
    mask = rank < jnp.asarray(num_masked, jnp.int32)
    if variant == "hint":
        among_top = _rank(jnp.where(rank < num_top, noise, jnp.inf))
        mask &= among_top >= jnp.asarray(num_shown, jnp.int32)
    index = lax.iota(jnp.int32, weights.shape[0])
    order = lax.sort((mask.astype(jnp.int32), noise, index), num_keys=2)[2]
    return Mask(order, mask, jnp.sum(~mask, dtype=jnp.int32))


def draw_ratio(key: Array, ratios: tuple[float, ...], variations: tuple[float, ...]):
    """One mask ratio: an entry of a list, each jittered (iBOT's code, `pred_ratio`).

    Args:
      key: a JAX key.
      ratios, variations: entry i is uniform in ratios[i] ± variations[i].

    Returns:
      () float32.
    """
    which_key, jitter_key = jax.random.split(key)
    which = jax.random.randint(which_key, (), 0, len(ratios), jnp.int32)
    low, high = ratio_range(ratios, variations)
    low, high = jnp.asarray(low)[which], jnp.asarray(high)[which]
    return jnp.clip(low + (high - low) * jax.random.uniform(jitter_key, (), jnp.float32), low, high)


def ratio_range(ratios: tuple[float, ...], variations: tuple[float, ...]):
    """(lowest, highest) ratio of each entry, both (entries,) float32."""
    ratios, variations = np.float64(ratios), np.float64(variations)
    return (ratios - variations).astype(np.float32), (ratios + variations).astype(np.float32)


def num_masked(num_patches: int, ratio):
    """How many patches a ratio masks: int(ratio * num_patches) in float32, as a draw has it."""
    return jnp.floor(jnp.float32(ratio) * num_patches).astype(jnp.int32)


def _mask(order, count) -> Mask:
    count = jnp.asarray(count, jnp.int32)
    return Mask(order, jnp.argsort(order).astype(jnp.int32) >= count, count)


def _rank(values):
    """(N,) int32: how many entries come before each, in ascending order."""
    return jnp.argsort(jnp.argsort(values)).astype(jnp.int32)


def _check_count(count, lowest, highest):
    if isinstance(count, (int, np.integer)) and not lowest <= count <= highest:
        raise ValueError(f"visible count must be in {lowest}..{highest}, got {count}")


# Masks for other people's pipelines.

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_WIDTH = 768  # of the untrained embedding: ViT-B
_CHUNK = 64  # images on the device at a time


def export_masks(
    images,
    *,
    patch_size: int = 16,
    ratio: float = 0.75,
    strategy: str = "dpp",
    tau: float = 0.9,
    seed: int = 0,
    features=None,
    start_index: int = 0,
    kernel: str = "gaussian",
    bandwidth: float = 1.0,
    normalize: str = "l2",
    threshold_on: str = "d2",
) -> Mask:
    """Masks of a batch of images, as NumPy arrays.

    Image i is masked with a key made of `seed` and `start_index` + i, so a data set done in pieces
    (each with its own `start_index`) has the same masks as one done in one call. JAX's settings (64
    bits, the default generator, promotion rules) change nothing.

    Args:
      images: (B, H, W, 3) uint8, or float in [0, 1]; both sides multiples of `patch_size`.
      patch_size: side of a patch in pixels.
      ratio: share of masked patches, in [0, 1); see `num_visible`.
      strategy: "dpp", "random" or "block".
      tau: threshold of the greedy selection, for "dpp", in [0, 1]: 0 never stops, 1 is random
        masking.
      seed: of the masks and of the untrained embedding, in 0..2**32 - 1.
      features: what "dpp" compares. None: what an untrained MAE sees, a random projection of the
        normalised patches to width 768 plus 2-D sin-cos positions. "pixels": the normalised
        patches. Or a real array (B, N, D) of your own, patches numbered row by row. A patch that
        holds NaN or infinity is never picked greedily; an image without any other is masked at
        random, which is warned about.
      start_index: index of the first image in the data set.
      kernel, bandwidth, normalize, threshold_on: see `dpp.select`. Features with a large common
        offset want `normalize="center"`.

    Returns:
      Mask of NumPy arrays: order (B, N) int32, mask (B, N) bool with True = masked, count (B,)
      int32, num_greedy (B,) int32. The latter says how many of the visible patches were greedy
      picks; the others are random. 1 means that to the kernel all patches looked alike, see
      `dpp.greedy_order`. It is 0 for "random" and "block".

    Raises:
      ValueError: an argument is out of range or does not fit the others.
    """
    images = np.asarray(images)
    scale = _pixel_scale(images)
    grid = patches.grid_shape(images.shape[1:3], patch_size)
    num_patches = grid[0] * grid[1]
    count = num_visible(num_patches, ratio)
    if strategy not in ("dpp", "random", "block"):
        raise ValueError(f"strategy must be 'dpp', 'random' or 'block', got {strategy!r}")
    if np.ndim(tau) or not 0 <= tau <= 1:
        raise ValueError(f"tau must be a number in [0, 1], got {tau}")
    if np.ndim(bandwidth) or not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an int in 0..2**32 - 1, got {seed}")
    most = 2**32 - 1 - len(images)
    if not isinstance(start_index, (int, np.integer)) or not 0 <= start_index <= most:
        raise ValueError(f"start_index must be an int in 0..2**32 - 1 - B, got {start_index}")
    source, inputs = "embedding", images
    if isinstance(features, str):
        if features != "pixels":
            raise ValueError(f"features must be None, 'pixels' or an array, got {features!r}")
        source = "pixels"
    elif features is not None:
        source, inputs = "given", _checked_features(features, len(images), num_patches)

    draw = functools.partial(
        _draw,
        grid=grid,
        count=count,
        patch_size=patch_size,
        strategy=strategy,
        source=source,
        kernel=kernel,
        normalize=normalize,
        threshold_on=threshold_on,
    )
    # Of explicit types, so that JAX's default ones have no say.
    scalars = (np.float32(scale), np.float32(tau), np.float32(bandwidth))
    pieces = []
    for first in range(0, len(images), _CHUNK):
        index = np.arange(first, min(first + _CHUNK, len(images)))
        # The last piece is filled up with copies, so that there is one shape to compile for.
        padded = np.resize(index, min(_CHUNK, len(images)))
        keys = (start_index + padded).astype(np.uint32)
        piece = inputs[padded]
        piece = piece if piece.dtype == np.uint8 else piece.astype(np.float32)
        with jax.threefry_partitionable(True):  # the default, which a user may have changed
            pieces.append(jax.device_get(draw(np.uint32(seed), keys, piece, *scalars)))
    return Mask(*(np.concatenate(leaves)[: len(images)] for leaves in zip(*pieces, strict=True)))


def _pixel_scale(images) -> float:
    """What makes values from 0 to 1 of the images; ValueError where they are none."""
    if images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ValueError(f"images must be (B, H, W, 3) with B >= 1, got {images.shape}")
    if images.dtype == np.uint8:
        return 1 / 255
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be uint8 or float, got {images.dtype}")
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError("float images must lie in [0, 1]; undo any normalisation first")
    return 1.0


def _checked_features(features, num_images, num_patches):
    features = np.asarray(features)
    if features.ndim != 3 or features.shape[:2] != (num_images, num_patches):
        raise ValueError(f"features must be ({num_images}, {num_patches}, D), got {features.shape}")
    is_real = any(jnp.issubdtype(features.dtype, kind) for kind in (jnp.floating, jnp.integer))
    if not is_real:
        raise ValueError(f"features must be real numbers, got {features.dtype}")
    nothing = np.flatnonzero(~has_finite_patch(features))
    if len(nothing):
        named = ", ".join(map(str, nothing[:8])) + (", ..." if len(nothing) > 8 else "")
        warnings.warn(
            f"features: no patch is finite in {len(nothing)} of {num_images} images, which are "
            f"masked at random: {named}",
            stacklevel=3,
        )
    return features


@functools.partial(
    jax.jit,
    static_argnames=(
        "grid",
        "count",
        "patch_size",
        "strategy",
        "source",
        "kernel",
        "normalize",
        "threshold_on",
    ),
)
def _draw(
    seed,
    index,
    inputs,
    scale,
    tau,
    bandwidth,
    *,
    grid,
    count,
    patch_size,
    strategy,
    source,
    kernel,
    normalize,
    threshold_on,
):
    # What `jax.random.key(seed)` is under JAX's default settings.
    data = jnp.stack([jnp.zeros_like(seed), seed])
    root = jax.random.wrap_key_data(data, impl="threefry2x32")
    keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(index)
    none_greedy = jnp.zeros(len(keys), jnp.int32)
    if strategy == "random":
        masks = jax.vmap(lambda key: random(key, grid[0] * grid[1], count))(keys)
        return masks._replace(num_greedy=none_greedy)
    if strategy == "block":
        masks = jax.vmap(lambda key: block(key, grid, count))(keys)
        return masks._replace(num_greedy=none_greedy)

    values = 3 * patch_size**2
    kernel_key, bias_key = jax.random.split(jax.random.fold_in(root, np.uint32(2**32 - 1)))
    bound = (6 / (values + _WIDTH)) ** 0.5  # Xavier-uniform, and a convolution's usual bias
    weights = jax.random.uniform(
        kernel_key, (values, _WIDTH), jnp.float32, minval=-bound, maxval=bound
    )
    bound = values**-0.5
    bias = jax.random.uniform(bias_key, (_WIDTH,), jnp.float32, minval=-bound, maxval=bound)
    bias = bias[None] + patches.sincos_positions(grid, _WIDTH)

    def features_of(image):
        if source == "given":
            return image
        mean, deviation = np.float32([[_IMAGENET_MEAN]]), np.float32([[_IMAGENET_STD]])
        image = (image.astype(jnp.float32) * scale - mean) / deviation
        pixels = patches.patchify(image[None], patch_size)[0]
        if source == "pixels":
            return pixels
        return jnp.matmul(pixels, weights, precision=lax.Precision.HIGHEST) + bias

    def choose(key, features):
        mask, num_greedy = dpp(
            key,
            features,
            count,
            tau,
            kernel=kernel,
            bandwidth=bandwidth,
            normalize=normalize,
            threshold_on=threshold_on,
        )
        return mask._replace(num_greedy=num_greedy)

    # One image at a time: a product over a whole batch may round differently for another batch.
    return jax.vmap(choose)(keys, lax.map(features_of, inputs))
