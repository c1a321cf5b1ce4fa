"""What pixels are: how many channels, of what values, and what they are standardised by.

Without `data.channels` everything is 8-bit RGB. With it images are kept as their files have them:
of 8 bits they stay, all others are float32 from 0 (black) to 1 (white) by `data.range`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dppmask_jax.errors import InputError
from dppmask_jax.fields import Field, Rule, above, is_number, is_text, number, optional, several
from dppmask_jax.fields import whole as whole_number
from dppmask_jax.imagenet import MEAN, STD

RGB_CHANNELS = 3
MOST_CHANNELS = 1024
Pair = tuple[float, float]  # (black, white)


def named_range(text: str) -> Pair | None:
    """The (black, white) that `data.range` names, None for "auto".

    Raises:
      ValueError: it is neither.
    """
    if text == "auto":
        return None
    black, white = map(float, text.strip(" ()[]").split(","))
    if not (is_number(black) and is_number(white) and black < white):
        raise ValueError(f"{text} is no range")
    return black, white


def _is_range(value) -> bool:
    try:
        named_range(value if is_text(value) else "")
    except ValueError:
        return False
    return True


_CHANNEL = whole_number(0, MOST_CHANNELS - 1)
FIELDS = {
    "data.range": Field(
        "auto",
        Rule(_is_range, "auto, or the values of black and white, such as '0,4095'"),
        "what black and white are in files with more than 8 bits; auto: judged by a sample of "
        "greyscale files, and with data.channels all are of 8 bits",
    ),
    "data.channels": Field(
        None,
        optional(whole_number(1, MOST_CHANNELS)),
        "channels of the images, kept as the files have them; None: 8-bit RGB is made of all",
        fixed=True,
    ),
    "data.mean": Field(
        None,
        optional(several(number(-1e6, 1e6), "a mean of each channel, such as (0.4, 0.5)")),
        "what is subtracted from pixels from 0 (black) to 1 (white); None: ImageNet's",
    ),
    "data.std": Field(
        None,
        optional(several(above(0), "a deviation of each channel, such as (0.2, 0.2)")),
        "what they are divided by then; None: ImageNet's",
    ),
    "data.axis": Field(
        2, whole_number(0, 2), "axis of a NIfTI volume along which its slices are images"
    ),
    "data.shown": Field(
        None,
        optional(several(_CHANNEL, "one channel or three, from 0 up, such as (3, 2, 1)")),
        "channels that figures show, one in grey or three; None: the first three, else the first",
        free="carried out",
    ),
}


class Pixels(NamedTuple):
    """The pixels of images, from a file to the encoder.

    Attributes:
      channels: C.
      mean, std: of each channel, of pixels from 0 to 1.
      range: (black, white) in the files of what is no 8-bit data; None: all is of 8 bits.
      kept: whether images are kept as their files have them; False: 8-bit RGB is made of them.
      shown: the channels that figures show; () for a choice by their number.
      axis: of a volume, along which its slices are images.
    """

    channels: int = RGB_CHANNELS
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    range: Pair | None = None
    kept: bool = False
    shown: tuple[int, ...] = ()
    axis: int = 2

    @property
    def dtype(self):
        """Of images as they are loaded: uint8, or float32 from 0 to 1."""
        return np.dtype(np.uint8 if self.range is None else np.float32)

    @property
    def in_figures(self) -> tuple[int, ...]:
        """One channel, or three."""
        if self.shown:
            return self.shown
        return tuple(range(RGB_CHANNELS)) if self.channels >= RGB_CHANNELS else (0,)

    @property
    def words(self) -> str:
        """What they are, in a few words."""
        channels = f"{self.channels} channel{'s' * (self.channels > 1)}"
        if self.range is None:
            return f"{channels} of 8 bits"
        black, white = self.range
        return f"{channels}, from {black:g} (black) to {white:g} (white)"

    def blank(self, image_size: tuple[int, int], batch: tuple[int, ...] = ()) -> np.ndarray:
        """(*batch, H, W, C) black images, as they are loaded."""
        return np.zeros((*batch, *image_size, self.channels), self.dtype)

    def unit(self, images: jax.Array) -> jax.Array:
        """Images as they are loaded -> float32 from 0 to 1."""
        images = jnp.asarray(images)
        if images.dtype == jnp.uint8:
            return images.astype(jnp.float32) / 255.0
        return images.astype(jnp.float32)

    def as_loaded(self, images: np.ndarray) -> np.ndarray:
        """Floats from 0 to 1 -> images as they are loaded, cut to that."""
        images = np.clip(images, 0, 1)
        if self.dtype == np.uint8:
            return (255 * images).round().astype(np.uint8)
        return images.astype(np.float32)

    def normalize(self, images: jax.Array) -> jax.Array:
        """Standardises the channels.

        Args:
          images: (..., H, W, C), uint8 from 0 to 255 or floating point from 0 to 1.

        Returns:
          (..., H, W, C) float32.

        Raises:
          ValueError: another number of channels.
          TypeError: another type.
        """
        if images.shape[-1] != self.channels:
            raise ValueError(f"images have {images.shape[-1]} channels, not {self.channels}")
        if jnp.issubdtype(images.dtype, jnp.floating):
            images = images.astype(jnp.float32)
        elif images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 255.0
        else:
            raise TypeError(f"images are {images.dtype}; they must be uint8, or float from 0 to 1")
        return (images - jnp.asarray(self.mean, jnp.float32)) / jnp.asarray(self.std, jnp.float32)

    def denormalize(self, images: jax.Array) -> jax.Array:
        """The inverse of `normalize`: (..., H, W, C) float32 pixels, 0 to 1, not clipped."""
        return images * jnp.asarray(self.std, jnp.float32) + jnp.asarray(self.mean, jnp.float32)

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Values as files have them -> float32 from 0 (black) to 1 (white), cut to that."""
        black, white = self.range
        narrow = values.dtype.itemsize <= 2 or values.dtype == np.float32
        values = values.astype(np.float32 if narrow else np.float64)
        return np.clip((values - black) / (white - black), 0.0, 1.0).astype(np.float32)


RGB = Pixels()
ANY = Pixels(0, (), (), kept=True)
"""Of files that are looked at, as they are: neither checked nor scaled."""


def of(config: Any) -> Pixels:
    """The pixels of a checked config; RGB where it has no group "data"."""
    return of_data(config.get("data", {}))


def of_data(data: Any) -> Pixels:
    """The pixels that `config.data` says."""
    channels = data.get("channels")
    mean, std, shown = (tuple(data.get(name) or ()) for name in ("mean", "std", "shown"))
    return Pixels(
        channels or RGB_CHANNELS,
        mean or MEAN,
        std or STD,
        named_range(data.range) if channels else None,
        bool(channels),
        shown,
        data.get("axis", 2),
    )


def check(config: Any) -> None:
    """Raises InputError where the fields of `config.data` do not fit each other."""
    data = config.data
    channels = data.channels or RGB_CHANNELS
    for name in ("mean", "std"):
        given = data[name]
        if given is None and channels != RGB_CHANNELS:
            raise InputError(
                f"config.data.channels={channels} needs config.data.mean and config.data.std of "
                f"each channel; measure them: dppmask data measure {data.source} "
                f"--channels={channels}"
                + ("" if data.range == "auto" else f" --range={data.range}")
            )
        if given is not None and len(given) != channels:
            raise InputError(
                f"config.data.{name} has {len(given)} numbers, and the images have {channels} "
                "channels: give one for each"
            )
    shown = data.shown
    if shown is not None and (len(shown) not in (1, RGB_CHANNELS) or max(shown) >= channels):
        raise InputError(
            f"config.data.shown={tuple(shown)} must be one channel or three, from 0 to "
            f"{channels - 1}"
        )


def check_rgb(config: Any, what: str, mend: str) -> None:
    """Raises InputError where images are no 8-bit RGB.

    Args:
      what: is for such images alone, in words.
      mend: what else to do, in words.
    """
    pixels = of(config)
    if (pixels.channels, pixels.range) != (RGB_CHANNELS, None):
        depth = "" if pixels.range is None else f" and config.data.range={config.data.range}"
        raise InputError(
            f"{what} is for 8-bit RGB images alone, and these are of "
            f"config.data.channels={pixels.channels}{depth}; {mend}"
        )


def check_colours(config: Any, names: tuple[str, ...]) -> None:
    """Raises InputError where a config changes colours of images that are not of three channels.

    Args:
      names: of the fields that do so, which 0 turns off; those that the config lacks do nothing.
    """
    channels = of(config).channels
    on = [name for name in names if config.data.get(name.removeprefix("data."))]
    if channels != RGB_CHANNELS and on:
        fields = " and ".join(f"config.{name}" for name in on)
        raise InputError(
            f"{fields} change{'' if len(on) > 1 else 's'} colours, which images of "
            f"config.data.channels={channels} do not have: set "
            + " ".join(f"--config.{name}=0" for name in on)
        )
