"""Crops on the host: encoded images, or pixels, to arrays of one size.

Images are encoded bytes, which become 8-bit RGB, or (h, w, C) arrays of a source that keeps pixels
as they are, uint8 or float32 from 0 to 1, see `kept.py`: their crops are of their type.

Resampling is antialiased bicubic (a = -0.5) unless another is asked for: Pillow's, but for JPEGs
while training that of cykooz.resizer, which is the same filter up to rounding, several times as
fast. It copies the image: of the other formats, which are not shrunk while they are decoded, the
largest leave no room.
Flipping and normalising happen on the device, see augment.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import cykooz_resizer
import numpy as np
from PIL import Image

from dppmask_jax.data.images import decode, planes
from dppmask_jax.fields import Field, above_to, pair

RATIO = (3 / 4, 4 / 3)  # of width to height; arXiv 1409.4842, and torchvision's default
EVAL_ENLARGE = 256 / 224  # the usual resize before an evaluation's centre crop
Data = bytes | np.ndarray  # an encoded image, or the pixels of one that are kept
NO_EXTRAS: Mapping[str, Any] = MappingProxyType({})
_TRIES = 10
SCALE = pair(above_to(0, 1), "(smallest, largest) share of the area, within 0 to 1", ordered=True)
FIELDS = {"data.crop_scale": Field((0.2, 1.0), SCALE, "area of the random resized crop")}
_RGB = cykooz_resizer.PixelType.U8x3
_BICUBIC = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.catmull_rom)


def random_box(
    rng: np.random.Generator,
    width: int,
    height: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float] = RATIO,
) -> tuple[int, int, int, int]:
    """Draws the box of a random resized crop by torchvision's procedure.

    Ten tries at an area uniform in `scale` (a share of the image's) and an aspect ratio
    log-uniform in `ratio`; if none fits into the image, the largest centred box whose ratio lies
    within `ratio`.

    Returns:
      (left, top, box width, box height) in whole pixels, inside the image.
    """
    for _ in range(_TRIES):
        box_width, box_height = _sides(rng, width * height, scale, ratio)
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(rng.integers(width - box_width + 1))
            top = int(rng.integers(height - box_height + 1))
            return left, top, box_width, box_height
    box_width, box_height = width, height
    if width / height < ratio[0]:
        box_height = max(1, min(height, round(width / ratio[0])))
    elif width / height > ratio[1]:
        box_width = max(1, min(width, round(height * ratio[1])))
    return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


def single_draw_box(
    rng: np.random.Generator,
    width: int,
    height: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float] = RATIO,
) -> tuple[int, int, int, int]:
    """Draws the box of a random resized crop in one try, as MAE's linear probe (arXiv 2111.06377).

    Area uniform in `scale` (a share of the image's), aspect ratio log-uniform in `ratio`; a side
    that is longer than the image's is cut down to it, which changes the ratio.

    Returns:
      (left, top, box width, box height) in whole pixels, inside the image.
    """
    box_width, box_height = _sides(rng, width * height, scale, ratio)
    box_width, box_height = np.clip((box_width, box_height), 1, (width, height)).tolist()
    left = int(rng.integers(width - box_width + 1))
    top = int(rng.integers(height - box_height + 1))
    return left, top, box_width, box_height


def _sides(rng, area: int, scale, ratio) -> tuple[int, int]:
    area = area * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    return round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))


def random_crop(
    data: Data,
    rng: np.random.Generator,
    *,
    image_size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float] = RATIO,
    single_draw: bool = False,
) -> np.ndarray:
    """A random resized crop of an encoded image.

    Args:
      image_size: (H, W) of the result in pixels.
      scale: smallest and largest share of the image's area.
      ratio: smallest and largest ratio of the box's width to its height, relative to W / H.
      single_draw: whether the box is that of `single_draw_box` instead of `random_box`.

    Returns:
      (H, W, 3) uint8, or as the pixels are.

    Raises:
      decode.DecodeError: the bytes are no readable image.
    """
    image = open_upright(data)
    box_of = single_draw_box if single_draw else random_box
    (view,) = cut(data, image, [_draw(rng, image, image_size, scale, ratio, box_of)])
    return view


def single_view(
    data: Data,
    rng: np.random.Generator,
    extras: Mapping[str, Any] = NO_EXTRAS,
    *,
    image_size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float] = RATIO,
) -> dict[str, np.ndarray]:
    """The training example of one crop, for loader.train_stream.

    Args:
      extras: what else is known of the image: maps, (h, w) arrays of its upright size of uint8,
        bool, int32 or float32, are cropped with it, by the nearest pixel; all else stays as it is.
      image_size, scale, ratio: as for random_crop.

    Returns:
      "image" (H, W, C), and the extras under their names: maps as (H, W) of their type.

    Raises:
      decode.DecodeError: the bytes are no readable image, or a map has another size.
    """
    image = open_upright(data)
    view = _draw(rng, image, image_size, scale, ratio)
    (pixels,) = cut(data, image, [view])
    maps = maps_in(extras, image.size)
    return {"image": pixels, **extras, **{name: _cut_map(maps[name], view) for name in maps}}


def multi_crop(
    data: Data,
    rng: np.random.Generator,
    extras: Mapping[str, Any] = NO_EXTRAS,
    *,
    image_size: tuple[int, int],
    scale: tuple[float, float],
    flip: bool,
    num_local: int = 0,
    local_size: tuple[int, int] | None = None,
    local_scale: tuple[float, float] | None = None,
    ratio: tuple[float, float] = RATIO,
) -> dict[str, np.ndarray]:
    """The training example of several crops of one image, for loader.train_stream.

    Two large views and `num_local` small ones (SwAV, arXiv 2006.09882; the views of DINO,
    arXiv 2104.14294, and iBOT, arXiv 2111.07832), each a random resized crop of its own. The image
    is decoded once for all of them.

    Args:
      extras: as for single_view; each view has its own crop of a map, mirrored with it.
      image_size, scale: (H, W) in pixels of the two global views, and their share of the image's
        area.
      flip: whether to mirror each view left to right with probability one half.
      num_local: how many local views.
      local_size, local_scale: (h, w) and share of the local views, where there are some.
      ratio: as for random_crop, of all views.

    Returns:
      "global_views" (2, H, W, C); "local_views" (num_local, h, w, C), left out if
      there are none. Of a map NAME "global_NAME" (2, H, W) and "local_NAME" (num_local, h, w);
      other extras under their names.

    Raises:
      decode.DecodeError: the bytes are no readable image, or a map has another size.
    """
    image = open_upright(data)
    kinds = [(image_size, scale)] * 2 + [(local_size, local_scale)] * num_local
    drawn = [_draw(rng, image, size, share, ratio) for size, share in kinds]
    mirrored = rng.random(len(kinds)) < (0.5 if flip else 0.0)
    maps = maps_in(extras, image.size)
    found = {"views": cut(data, image, drawn)}
    found |= {name: [_cut_map(pixels, view) for view in drawn] for name, pixels in maps.items()}
    example = {name: value for name, value in extras.items() if name not in maps}
    for name, views in found.items():
        views = [x[:, ::-1] if mirror else x for x, mirror in zip(views, mirrored, strict=True)]
        example[f"global_{name}"] = np.stack(views[:2])
        if num_local:
            example[f"local_{name}"] = np.stack(views[2:])
    return example


class View(NamedTuple):
    """What to cut out, and the size of the result."""

    box: tuple[int, int, int, int]  # left, top, width, height in the full image
    height: int  # of the result
    width: int


def open_upright(data: Data) -> Image.Image | planes.Planes:
    """An upright image of its full size; a JPEG that lies upright already stays encoded."""
    if isinstance(data, np.ndarray):
        return planes.Planes(data)
    image = decode.open_image(data)
    if image.format != "JPEG" or decode.orientation(image) != 1:
        image = decode.to_rgb(image)
    return image


def opened(data: Data) -> Image.Image | planes.Planes:
    """An upright image, decoded.

    Raises:
      decode.DecodeError: the bytes are no readable image.
    """
    if isinstance(data, np.ndarray):
        return planes.Planes(data)
    return decode.to_rgb(decode.open_image(data))


def size_of(data: Data) -> tuple[int, int]:
    """(width, height) of an image once it is upright; what is encoded stays so.

    Raises:
      decode.DecodeError: the bytes are no image.
    """
    if isinstance(data, np.ndarray):
        return planes.Planes(data).size
    return decode.upright_size(decode.open_image(data))


def _draw(
    rng, image: Image.Image | planes.Planes, image_size, scale, ratio, box_of=random_box
) -> View:
    height, width = image_size
    ratio = (ratio[0] * width / height, ratio[1] * width / height)
    return View(box_of(rng, *image.size, scale=scale, ratio=ratio), height, width)


def cut(data: Data, image: Image.Image | planes.Planes, views: list[View]) -> list[np.ndarray]:
    """Decodes an image once and resizes the views from it.

    Of a JPEG the resizer, which copies its input, gets only the part that the views need. Where
    that part begins changes the rounding of the weights, and values by one grey level at most.

    Args:
      data: the encoded image.
      image: what `open_upright` made of it.

    Returns:
      (height, width, C) for each view.

    Raises:
      decode.DecodeError: the file is broken or cut short.
    """
    if image.format != "JPEG":
        return [_resize_by_pillow(image, view) for view in views]
    shrink = _shrink(image, views)
    if shrink > 1 and not decode.can_be_shrunk(data):
        shrink = 1
    reach = _reach(image, views, shrink)
    pixels = decode.jpeg_pixels(data, image, shrink, reach)
    height, width, _ = pixels.shape
    source = cykooz_resizer.ImageData(width, height, _RGB, pixels.tobytes())
    resizer = cykooz_resizer.Resizer()
    return [_resize(resizer, source, reach[:2], shrink, view) for view in views]


def maps_in(extras: Mapping[str, Any], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Those of the extras of an image that have a value for each pixel: arrays of two axes.

    Args:
      size: (width, height) of the upright image.

    Raises:
      decode.DecodeError: one has another size.
    """
    width, height = size
    maps = {name: value for name, value in extras.items() if np.ndim(value) == 2}
    for name, pixels in maps.items():
        if pixels.shape != (height, width):
            rows, columns = pixels.shape
            raise decode.DecodeError(
                f"its {name} has {columns} x {rows} pixels, the image {width} x {height}"
            )
    return maps


def _cut_map(pixels: np.ndarray, view: View) -> np.ndarray:
    return _resize_by_pillow(Image.fromarray(pixels), view, Image.Resampling.NEAREST)


def _reach(image: Image.Image, views: list[View], shrink: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in the shrunk image of all pixels that the filter looks at."""
    spans = [
        [
            _looked_at(v.box[0], v.box[2], v.width, shrink, image.width),
            _looked_at(v.box[1], v.box[3], v.height, shrink, image.height),
        ]
        for v in views
    ]
    lows, highs = np.moveaxis(spans, -1, 0)
    return (*lows.min(0).tolist(), *highs.max(0).tolist())


def _looked_at(start: int, length: int, wanted: int, shrink: int, side: int) -> tuple[int, int]:
    radius = 2 * max(1.0, length / shrink / wanted)
    low, high = start / shrink - radius, (start + length) / shrink + radius
    return max(math.floor(low), 0), min(math.ceil(high), -(-side // shrink))


def _shrink(image: Image.Image, views: list[View]) -> int:
    """The factor by which the decoder shrinks a JPEG: 1, 2, 4 or 8.

    The decoder is much faster than the bicubic filter. It leaves at least twice the size wanted (by
    the view that needs most), so that the filter still decides what the result looks like. Then no
    box in fractions of a pixel is enlarged, either: on some, cykooz.resizer 4.0.1 crashes.
    """
    enlarge = 2 * max(max(v.width / v.box[2], v.height / v.box[3]) for v in views)
    room = min(side // math.ceil(side * enlarge) for side in image.size)
    return max(factor for factor in (1, 2, 4, 8) if factor <= max(room, 1))


def _resize_by_pillow(image, view: View, resample=Image.Resampling.BICUBIC):
    left, top, width, height = view.box
    box = (left, top, left + width, top + height)
    return np.asarray(image.resize((view.width, view.height), resample, box=box))


def _resize(resizer, source, begin: tuple[int, int], shrink: int, view: View) -> np.ndarray:
    left, top, box_width, box_height = view.box
    right = min((left + box_width) / shrink - begin[0], source.width)
    lower = min((top + box_height) / shrink - begin[1], source.height)
    left, top = left / shrink - begin[0], top / shrink - begin[1]
    box = cykooz_resizer.CropBox(left, top, right - left, lower - top)
    options = cykooz_resizer.ResizeOptions(_BICUBIC, crop_box=box, use_alpha=False)
    result = cykooz_resizer.ImageData(view.width, view.height, _RGB)
    resizer.resize(source, result, options)
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(view.height, view.width, 3)


def whole_image(
    data: Data,
    *,
    image_size: tuple[int, int],
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> np.ndarray:
    """All of an encoded image, squeezed into another shape if need be: no labelled object is cut
    off. Args, result and errors are those of `center_crop`."""
    height, width = image_size
    return np.asarray(opened(data).resize((width, height), resample))


def center_crop(data: Data, *, image_size: tuple[int, int]) -> np.ndarray:
    """The evaluation crop of an encoded image, see `evaluation_crop`.

    Args:
      image_size: (H, W) of the result in pixels.

    Returns:
      (H, W, 3) uint8, or as the pixels are.

    Raises:
      decode.DecodeError: the bytes are no readable image.
    """
    return evaluation_crop(opened(data), image_size)


def evaluation_crop(
    image: Image.Image | planes.Planes,
    image_size: tuple[int, int],
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> np.ndarray:
    """Resizes an image so that it just covers 256/224 of `image_size`, then cuts out the centre.

    An image that has the size already is returned as it is.

    Returns:
      (H, W, ...) of the image's type.
    """
    height, width = image_size
    if image.size == (width, height):
        return np.asarray(image)
    cover_width, cover_height = width * EVAL_ENLARGE, height * EVAL_ENLARGE
    enlarge = max(cover_width / image.width, cover_height / image.height)
    resized_width = max(width, round(image.width * enlarge))
    resized_height = max(height, round(image.height * enlarge))
    image = image.resize((resized_width, resized_height), resample)
    left, top = (resized_width - width) // 2, (resized_height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))


def evaluation_extras(
    data: Data, extras: Mapping[str, Any], image_size: tuple[int, int]
) -> dict[str, Any]:
    """The extras of an encoded image that `center_crop` cuts, with its maps cut alike.

    Raises:
      decode.DecodeError: a map has another size than the image.
    """
    maps = maps_in(extras, size_of(data))
    nearest = Image.Resampling.NEAREST
    return dict(extras) | {
        name: evaluation_crop(Image.fromarray(pixels), image_size, nearest)
        for name, pixels in maps.items()
    }
