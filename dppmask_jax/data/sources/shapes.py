"""The embedded data set: drawn scenes of squares, discs and triangles on textures.

A scene holds one large object and up to three small ones that do not overlap it. Its class is the
large object's shape and fill pattern; colour, place, size and tilt vary freely, and in
`BACKGROUND_MATCH` of the scenes the background has the texture family of the class. Pixels or
mean colours therefore tell little about the class; features of texture and shape tell much.

Nothing is downloaded. `prepare` draws the set once into a cache; every scene is a pure function
of (seed, split, index, size).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from dppmask_jax.data.sources.cache import default_cache
from dppmask_jax.errors import InputError

SHAPES = ("square", "disc", "triangle")
PATTERNS = ("plain", "striped", "dotted")
COLORS = {
    "red": (225, 45, 45),
    "orange": (240, 140, 30),
    "yellow": (240, 225, 60),
    "green": (50, 180, 70),
    "cyan": (60, 210, 220),
    "blue": (50, 80, 225),
    "magenta": (210, 60, 200),
    "white": (240, 240, 240),
}
CLASSES = tuple(f"{pattern} {shape}" for shape in SHAPES for pattern in PATTERNS)
# Attribute i says whether an object of colour i % 8 and shape i // 8 is in the scene.
ATTRIBUTES = tuple(f"{color} {shape}" for shape in SHAPES for color in COLORS)
SEGMENTS = ("background", *CLASSES)  # of pixels: objects of the class, large or small
BACKGROUNDS = (
    "speckle",
    "clouds",
    "waves",
    "columns",
    "diagonals",
    "grid",
    "bricks",
    "rings",
    "dots",
)  # family i goes with class i
BACKGROUND_MATCH = 0.7

_VERSION = "1.2.0"  # raise it whenever the same options draw other pixels, or records hold more
_PALETTE = np.array(list(COLORS.values()), np.float32)
_STALE_SECONDS = 24 * 3600


class Options(NamedTuple):
    """What is drawn: `size` is the side in pixels, `train` and `val` are numbers of images."""

    size: int = 64
    train: int = 4000
    val: int = 1000
    seed: int = 0


class Scene(NamedTuple):
    """One drawn example.

    Attributes:
      image: (size, size, 3) uint8.
      mask: (size, size) uint8, 255 on any object and 0 on the background.
      segments: (size, size) uint8, indices into SEGMENTS.
      label: index into CLASSES.
      attributes: (24,) uint8 of 0 and 1, see ATTRIBUTES.
      background: index into BACKGROUNDS.
    """

    image: np.ndarray
    mask: np.ndarray
    segments: np.ndarray
    label: int
    attributes: np.ndarray
    background: int


class _Object(NamedTuple):
    shape: int
    pattern: int
    color: int
    extent: float  # from edge to edge, in sides of the image
    x: float
    y: float


# Drawing. Coordinates are in sides of the image, so that a scene looks alike at every size.


def draw(options: Options, split: str, index: int) -> Scene:
    """Draws scene `index` of a split ("train" or "val")."""
    rng = np.random.default_rng((options.seed, ("train", "val").index(split), index))
    label = int(rng.integers(len(CLASSES)))
    background = label
    if rng.random() >= BACKGROUND_MATCH:
        background = int((label + rng.integers(1, len(BACKGROUNDS))) % len(BACKGROUNDS))
    objects = _place(rng, label)

    size = options.size
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(centres, centres)
    image = _background(rng, background, x, y)

    segments = np.zeros((size, size), np.uint8)
    attributes = np.zeros(len(ATTRIBUTES), np.uint8)
    for thing in objects:
        paint, coverage = _paint(rng, thing, x, y)
        image += coverage[..., None] * (paint - image)
        segments[coverage >= 0.5] = 1 + thing.pattern + len(PATTERNS) * thing.shape
        attributes[thing.color + len(COLORS) * thing.shape] = 1
    # Uneven light: without it the nearest neighbours of raw pixels are right too often.
    image *= 1 + 0.5 * (2 * _smooth_noise(rng, 3, size)[..., None] - 1)
    image += rng.normal(0, 4, image.shape)
    return Scene(
        image=np.clip(np.rint(image), 0, 255).astype(np.uint8),
        mask=np.where(segments > 0, 255, 0).astype(np.uint8),
        segments=segments,
        label=label,
        attributes=attributes,
        background=background,
    )


def _place(rng, label: int) -> list[_Object]:
    shape, pattern = divmod(label, len(PATTERNS))
    extent = rng.uniform(0.35, 0.6)
    margin = _reach(shape, extent)
    x, y = rng.uniform(margin, 1 - margin, 2)
    objects = [_Object(shape, pattern, int(rng.integers(len(COLORS))), extent, x, y)]
    for _ in range(rng.integers(4)):
        shape, pattern = int(rng.integers(len(SHAPES))), int(rng.integers(len(PATTERNS)))
        color, extent = int(rng.integers(len(COLORS))), rng.uniform(0.14, 0.22)
        margin = _reach(shape, extent)
        for _ in range(20):  # a crowded scene goes without this object
            x, y = rng.uniform(margin, 1 - margin, 2)
            if all(
                np.hypot(x - other.x, y - other.y) > margin + _reach(other.shape, other.extent)
                for other in objects
            ):
                objects.append(_Object(shape, pattern, color, extent, x, y))
                break
    return objects


def _reach(shape: int, extent: float) -> float:
    """Radius of the circle around an object."""
    return extent * (np.sqrt(0.5), 0.5, 1 / np.sqrt(3))[shape]


def _paint(rng, thing: _Object, x, y):
    """An object's colours (size, size, 3) and how much of each pixel it covers, 0 to 1."""
    tilt = rng.uniform(-0.35, 0.35)
    dx, dy = x - thing.x, y - thing.y
    u, v = np.cos(tilt) * dx + np.sin(tilt) * dy, np.cos(tilt) * dy - np.sin(tilt) * dx
    half = thing.extent / 2
    if SHAPES[thing.shape] == "square":
        outside = np.maximum(np.abs(u), np.abs(v)) - half
    elif SHAPES[thing.shape] == "disc":
        outside = np.hypot(u, v) - half
    elif SHAPES[thing.shape] == "triangle":
        slope = np.sqrt(3) / 2 * np.abs(u) - v / 2
        outside = np.maximum(slope, v) - half / np.sqrt(3)
    else:
        raise ValueError(f"no such shape: {SHAPES[thing.shape]!r}")

    bright = _PALETTE[thing.color] * rng.uniform(0.85, 1.05) + rng.normal(0, 6, 3)
    period = rng.uniform(0.085, 0.105)
    shift = rng.uniform(0, 1, 2)
    if PATTERNS[thing.pattern] == "striped":
        inside = _wave(u / period + shift[0]) - 0.25
    elif PATTERNS[thing.pattern] == "dotted":
        period *= 1.2
        inside = 0.33 - np.hypot(_wave(u / period + shift[0]), _wave(v / period + shift[1]))
    if PATTERNS[thing.pattern] == "plain":
        amount = np.full_like(u, rng.uniform(0.3, 0.7))  # as bright as a pattern on average
    else:
        amount = _edge(inside * period * rng.choice((-1, 1)), x.shape[0])
    dark = 0.25 * bright
    return dark + (bright - dark) * amount[..., None], _edge(-outside, x.shape[0])


def _edge(distance, size: int):
    """Share of a pixel on the inner side of an edge, from its signed distance to it."""
    return np.clip(0.5 + distance * size, 0, 1)


def _wave(t):
    """Distance to the nearest whole number, 0 to 0.5."""
    return np.abs(t - np.rint(t))


def _background(rng, family: int, x, y):
    """(size, size, 3) float32, 0 to 255."""
    texture = _texture(rng, family, x, y)
    # Every family has the same mean, contrast and polarity, so that brightness does not tell it.
    texture = (texture - texture.mean()) / texture.std() * rng.choice((-1, 1))
    middle, swing = rng.uniform(85, 155, 3), rng.uniform(15, 40, 3)
    middle = 0.6 * middle.mean() + 0.4 * middle  # muted: objects are saturated
    return (middle + swing * np.clip(texture, -2, 2)[..., None]).astype(np.float32)


def _texture(rng, family: int, x, y):
    """A field (size, size) of 0 to 1."""
    name = BACKGROUNDS[family]
    size = x.shape[0]
    period = rng.uniform(0.11, 0.15)
    shift = rng.uniform(0, 1, 2)
    # Bent, so that two images of a family do not match pixel by pixel.
    x = x + 0.12 * (_smooth_noise(rng, 4, size) - 0.5)
    y = y + 0.12 * (_smooth_noise(rng, 4, size) - 0.5)
    u, v = x / period + shift[0], y / period + shift[1]
    if name == "speckle":
        cells = max(2, round(size / max(1, size / 64)))
        return _smooth_noise(rng, cells, size)
    if name == "clouds":
        return _smooth_noise(rng, 6, size)
    if name == "waves":
        return 0.5 + 0.5 * np.sin(2 * np.pi * (v + 0.35 * np.sin(2 * np.pi * u / 2.5)))
    if name == "columns":
        return 0.5 + 0.5 * np.sin(2 * np.pi * u)
    if name == "diagonals":
        return _edge((_wave((u + v) / np.sqrt(2)) - 0.25) * period, size)
    if name == "grid":
        return _edge((np.minimum(_wave(u), _wave(v)) - 0.12) * period, size)
    if name == "bricks":
        row = np.floor(v)
        joint = np.minimum(_wave(v), 2 * _wave(u / 2 + 0.5 * (row % 2)))
        return _edge((joint - 0.1) * period, size)
    if name == "rings":
        return 0.5 + 0.5 * np.sin(2 * np.pi * np.hypot(x - shift[0], y - shift[1]) / period)
    if name == "dots":
        staggered = u + 0.5 * (np.rint(v) % 2)
        return _edge((0.3 - np.hypot(_wave(staggered), _wave(v))) * period, size)
    raise ValueError(f"no such background: {name!r}")


def _smooth_noise(rng, cells: int, size: int):
    noise = rng.uniform(0, 1, (cells, cells)).astype(np.float32)
    image = Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


# The TFDS data set and its cache.


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@dataclasses.dataclass
class ShapesConfig(tfds.core.BuilderConfig):
    """A builder config that carries the options."""

    options: Options = dataclasses.field(default_factory=Options)


class Shapes(tfds.core.GeneratorBasedBuilder):
    """TFDS builder. Build it with file_format="array_record": no TensorFlow is needed then."""

    VERSION = tfds.core.Version(_VERSION)

    def _info(self):
        size = self.builder_config.options.size
        features = {
            "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=list(CLASSES)),
            "attributes": tfds.features.Tensor(shape=(len(ATTRIBUTES),), dtype=np.uint8),
            "mask": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
            "segments": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
            "background": tfds.features.ClassLabel(names=list(BACKGROUNDS)),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # record i is scene i
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples("train"), "val": self._generate_examples("val")}

    def _generate_examples(self, split):
        options = self.builder_config.options
        for index in range(getattr(options, split)):
            scene = draw(options, split, index)
            yield (
                index,
                {
                    "image": _png(scene.image),
                    "label": scene.label,
                    "attributes": scene.attributes,
                    "mask": _png(scene.mask),
                    "segments": _png(scene.segments),
                    "background": scene.background,
                },
            )


def prepare(options: Options, cache: str | Path | None = None) -> Path:
    """Draws the data set unless the cache holds it.

    The set is drawn into a folder of its own and renamed when complete, so that an interrupt
    leaves nothing half done and several processes may do this at once.

    Returns:
      the folder for `tfds.builder_from_directory`, with splits "train" and "val".

    Raises:
      InputError: options out of range, or a cache that cannot be written.
    """
    for name, low, high in (("size", 16, 1024), ("train", 1, 2**31), ("val", 1, 2**31)):
        value = getattr(options, name)
        if not low <= value <= high:
            raise InputError(f"shapes: {name}={value} is out of range; choose {low} to {high}")
    if options.seed < 0:
        raise InputError(f"shapes: seed={options.seed} is negative; choose a seed from 0 up")
    cache = default_cache() if cache is None else Path(cache).expanduser()
    config = "-".join(f"{name}{value}" for name, value in options._asdict().items())
    final = cache / "shapes" / config / _VERSION
    if (final / "dataset_info.json").exists():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(cache)
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=cache))
    except OSError as error:
        raise InputError(
            f"cannot write the shapes data set to {cache} ({error.strerror}); "
            "set DPPMASK_CACHE to a writable folder"
        ) from error
    try:
        with _quiet():
            builder = Shapes(
                config=ShapesConfig(name=config, options=options),
                data_dir=building,
                file_format="array_record",
            )
            builder.download_and_prepare()
        try:
            os.rename(builder.data_path, final)
        except OSError:
            if not (final / "dataset_info.json").exists():  # else another process was faster
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return final


@contextlib.contextmanager
def _quiet():
    # TFDS prints paths of the temporary folder, and several bars for a few seconds of work.
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)


def _remove_stale(cache: Path) -> None:
    # A killed process leaves its folder behind.
    for folder in cache.glob(".building-*"):
        if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
