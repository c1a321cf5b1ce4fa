"""The background challenge, built from labelled images with foreground masks.

The variants are those of Xiao et al., "Noise or Signal: The Role of Image Backgrounds in Object
Recognition" (arXiv 2006.09994), whose own images are ImageNet's (imagenet9.py reads them):

  original     the image as it is
  only_fg      the foreground on black
  mixed_same   the foreground on the tiled background of another image of its class
  mixed_rand   the foreground on the tiled background of an image of a random class
  mixed_next   the foreground on the tiled background of an image of the next class

An image and its mask are cut to the evaluation size together; everything else happens at that
size. Foreground is where the mask is at least FOREGROUND.
"""

from __future__ import annotations

import functools
import io
import os
import re
import shutil
import tempfile
from typing import NamedTuple

import numpy as np
from PIL import Image

from dppmask_jax.data.images import crops, decode
from dppmask_jax.data.sources.base import Source, known
from dppmask_jax.data.sources.image_files import why
from dppmask_jax.errors import InputError

VARIANTS = ("original", "only_fg", "mixed_same", "mixed_rand", "mixed_next")
FOREGROUND = 128
# Share of the image that a strip must cover to serve as a background: a narrower one, repeated
# more than ten times, is stripes rather than a place.
MIN_STRIP = 0.1


def only_fg(image: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """The foreground on black.

    Args:
      image: (H, W, 3) uint8.
      foreground: (H, W) bool.

    Returns:
      (H, W, 3) uint8.
    """
    return np.where(foreground[..., None], image, np.uint8(0))


def tiled_background(image: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """The image without its foreground (Only-BG-T of arXiv 2006.09994).

    The foreground's bounding box is filled by repeating the largest strip beside it: of the four
    that span the whole image left of the box, right of it, above and below, the one of the
    largest area (the first of them, if several are). It repeats from where it lies, so a strip at
    columns a to b - 1 fills column x with its column a + (x - a) mod (b - a), and one of rows
    likewise. Outside of the box nothing changes.

    Args:
      image: (H, W, 3) uint8.
      foreground: (H, W) bool.

    Returns:
      (H, W, 3) uint8.

    Raises:
      ValueError: there is no foreground, or its box covers the whole image.
    """
    strip = _largest_strip(foreground)
    if not strip.share:
        raise ValueError("the foreground's box covers the whole image; there is nothing to repeat")
    rows, columns = _box(foreground)
    tiled = image.copy()
    if strip.axis == 0:
        tiled[rows, columns] = image[_repeated(strip, rows), columns]
    else:
        tiled[rows, columns] = image[rows, _repeated(strip, columns)]
    return tiled


def mixed(image: np.ndarray, foreground: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The foreground of one image on the background of another (Mixed-… of arXiv 2006.09994).

    Args:
      image: (H, W, 3) uint8.
      foreground: (H, W) bool.
      background: (h, w, 3) uint8, such as a `tiled_background`; resized to H x W (bicubic) where
        it has another size.

    Returns:
      (H, W, 3) uint8.
    """
    height, width = foreground.shape
    if background.shape != image.shape:
        resized = Image.fromarray(background).resize((width, height), Image.Resampling.BICUBIC)
        background = np.asarray(resized)
    return np.where(foreground[..., None], image, background)


class Built(NamedTuple):
    """The challenge of one data set.

    Attributes:
      variants: of each of VARIANTS a source of PNG images of the evaluation size, in the order
        of the data set; image i shows the same foreground in all of them. `extras(i)` says which
        images of the data set are in it: "image", and in the mixed ones "background". Made when
        read, nothing is kept.
      left_out: name of an image that is in no variant -> why.
      num_backgrounds: how many images have a strip of MIN_STRIP, and so may be a background.
    """

    variants: dict[str, Source]
    left_out: dict[str, str]
    num_backgrounds: int


def build(source: Source, *, image_size: tuple[int, int], seed: int) -> Built:
    """Builds the challenge from a labelled source whose `extras(i)` has a "mask".

    Reads every image once, to leave out those that cannot be read or whose mask, cut to the
    evaluation size, is empty or covers everything. The backgrounds of mixed_same and mixed_next
    are drawn evenly from a class's images with a wide enough strip (MIN_STRIP), those of mixed_rand
    from such images of a class drawn evenly from all classes. An image is never its own background.

    Args:
      source: masks are (H, W) uint8 of the size of their upright image.
      image_size: (H, W) of the result in pixels; cut as crops.center_crop does.
      seed: of the choice of backgrounds.

    Raises:
      InputError: there are no labels, no masks or one class only; a mask has another size than its
        image; a class has less than two images that can be a background.
    """
    if source.num_classes < 2:
        because = source.unlabelled_because or "there is one class only"
        raise InputError(f"the background challenge needs images of two or more classes: {because}")
    rows, labels, wide, left_out = _survey(source, image_size)
    pools = [np.flatnonzero(wide & (labels == number)) for number in range(source.num_classes)]
    for name, pool in zip(source.class_names, pools, strict=True):
        if len(pool) < 2:
            raise InputError(
                f"class {name!r} has {len(pool)} images with a mask that leaves a strip of "
                f"{MIN_STRIP:.0%} of the image free; give every class two such images or more"
            )
    partners = _partners(labels, pools, np.random.default_rng(seed))
    recipe = _Recipe(
        source, image_size, rows, labels, {name: rows[who] for name, who in partners.items()}
    )
    variants = {name: _variant(recipe, name) for name in VARIANTS}
    return Built(variants, left_out, int(wide.sum()))


def require_masks(source: Source) -> None:
    """Raises InputError where no image of a source has a mask, or files of masks are missing."""
    source.check_extras()
    if not any(_may_have_mask(source, i) for i in range(len(source))):
        raise InputError(
            "the background challenge needs foreground masks, which this data source lacks; "
            "use data.source=shapes, or csv:FILE with a column mask"
        )


def write(built: Built, out: str) -> None:
    """Writes all images in the layout of ImageNet-9: OUT/VARIANT/val/NUMBER_CLASS/IMAGE.png.

    NUMBER is the class's, so that sorted folders are the classes in order; IMAGE is the image's
    number in the data set, so a foreground has the same name in all variants. OUT appears only
    when it is complete.

    Raises:
      InputError: OUT exists already, or cannot be made.
    """
    out = os.path.abspath(os.path.expanduser(out))
    if os.path.exists(out):
        raise InputError(f"{out} exists already; give a folder that does not, or remove it")
    try:
        os.makedirs(os.path.dirname(out), exist_ok=True)
        holder = tempfile.mkdtemp(prefix=os.path.basename(out) + ".", dir=os.path.dirname(out))
    except OSError as error:
        raise InputError(f"cannot make {out}: {error.strerror}") from error
    try:
        unfinished = os.path.join(holder, "unfinished")
        for name, variant in built.variants.items():
            _write_variant(variant, os.path.join(unfinished, name, "val"))
        os.rename(unfinished, out)
    finally:
        shutil.rmtree(holder)


# Strips.


class _Strip(NamedTuple):
    axis: int  # along which it repeats: 0 rows, 1 columns
    start: int
    stop: int
    share: float  # of the image


def _box(foreground: np.ndarray) -> tuple[slice, slice]:
    sides = []
    for axis in (1, 0):
        (occupied,) = np.nonzero(foreground.any(axis=axis))
        if not occupied.size:
            raise ValueError("there is no foreground")
        sides.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return sides[0], sides[1]


def _largest_strip(foreground: np.ndarray) -> _Strip:
    height, width = foreground.shape
    rows, columns = _box(foreground)
    strips = [
        _Strip(1, 0, columns.start, columns.start / width),
        _Strip(1, columns.stop, width, (width - columns.stop) / width),
        _Strip(0, 0, rows.start, rows.start / height),
        _Strip(0, rows.stop, height, (height - rows.stop) / height),
    ]
    return max(strips, key=lambda strip: strip.share)


def _repeated(strip: _Strip, where: slice) -> np.ndarray:
    return strip.start + (np.arange(where.start, where.stop) - strip.start) % (
        strip.stop - strip.start
    )


# Building.


class _Recipe(NamedTuple):
    source: Source
    image_size: tuple[int, int]
    rows: np.ndarray  # (n,) images of the source
    labels: np.ndarray  # (n,)
    backgrounds: dict[str, np.ndarray]  # of a variant: (n,) images of the source


def _survey(source: Source, image_size: tuple[int, int]):
    """Usable images (n,), their labels (n,), whether each has a wide strip (n,); and the others."""
    require_masks(source)
    rows, labels, wide, left_out = [], [], [], {}
    for i in range(len(source)):
        try:
            label = source.read(i)[1]
            _, foreground = _load(source, i, image_size)
        except (OSError, decode.DecodeError) as error:
            left_out[source.name(i)] = f"cannot be read: {why(error)}"
            continue
        if foreground is None:
            left_out[source.name(i)] = "no mask"
        elif not foreground.any():
            left_out[source.name(i)] = "the mask is empty"
        elif foreground.all():
            left_out[source.name(i)] = "the mask covers everything"
        else:
            rows.append(i)
            labels.append(label)
            wide.append(_largest_strip(foreground).share >= MIN_STRIP)
    return np.array(rows, int), np.array(labels, np.int32), np.array(wide, bool), left_out


def _may_have_mask(source: Source, i: int) -> bool:
    try:
        return "mask" in source.extras(i)
    except (OSError, decode.DecodeError):
        return True  # unreadable, which the survey reports


def _partners(
    labels: np.ndarray, pools: list[np.ndarray], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Of each mixed variant: (n,) the image whose background each image gets."""
    classes = len(pools)
    wanted = {
        "mixed_same": labels,
        "mixed_rand": rng.integers(classes, size=len(labels)),
        "mixed_next": (labels + 1) % classes,
    }
    return {
        name: np.array([_draw(rng, pools[number], i) for i, number in enumerate(numbers)])
        for name, numbers in wanted.items()
    }


def _draw(rng: np.random.Generator, pool: np.ndarray, own: int) -> int:
    return int(rng.choice(pool[pool != own]))


def _variant(recipe: _Recipe, name: str) -> Source:
    return Source(
        size=len(recipe.rows),
        read=functools.partial(_read, recipe, name),
        name=functools.partial(_name, recipe, name),
        class_names=recipe.source.class_names,
        extras=functools.partial(_extras, recipe, name),
        labels=known(recipe.labels),
    )


def _read(recipe: _Recipe, name: str, i: int) -> tuple[bytes, int]:
    image, foreground = _load(recipe.source, recipe.rows[i], recipe.image_size)
    if name == "only_fg":
        image = only_fg(image, foreground)
    elif name in recipe.backgrounds:
        other = _load(recipe.source, recipe.backgrounds[name][i], recipe.image_size)
        image = mixed(image, foreground, tiled_background(*other))
    elif name != "original":
        raise ValueError(f"no such variant: {name!r}")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)  # read more often than kept
    return buffer.getvalue(), int(recipe.labels[i])


def _name(recipe: _Recipe, name: str, i: int) -> str:
    return f"{name} of {recipe.source.name(int(recipe.rows[i]))}"


def _extras(recipe: _Recipe, name: str, i: int) -> dict:
    background = recipe.backgrounds.get(name)
    extras = {"image": int(recipe.rows[i])}
    return extras if background is None else extras | {"background": int(background[i])}


def _load(source: Source, i: int, image_size) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W, 3) uint8 and (H, W) bool, or None where there is no mask."""
    i = int(i)
    image = crops.opened(source.read(i)[0])
    pixels = crops.evaluation_crop(image, image_size)
    mask = source.extras(i).get("mask")
    if mask is None:
        return pixels, None
    if mask.shape != (image.height, image.width):
        raise InputError(
            f"the mask of {source.name(i)} has {mask.shape[1]} x {mask.shape[0]} pixels, the image "
            f"{image.width} x {image.height}; give it a mask of its own size"
        )
    mask = crops.evaluation_crop(Image.fromarray(mask), image_size, Image.Resampling.NEAREST)
    return pixels, mask >= FOREGROUND


# Writing.


def _write_variant(variant: Source, folder: str) -> None:
    digits = max(2, len(str(variant.num_classes - 1)))
    classes = [
        os.path.join(folder, f"{number:0{digits}}_{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)[:100]}")
        for number, name in enumerate(variant.class_names)
    ]
    for path in classes:
        os.makedirs(path)
    for i in range(len(variant)):
        data, label = variant.read(i)
        with open(os.path.join(classes[label], f"{variant.extras(i)['image']:06d}.png"), "xb") as f:
            f.write(data)
