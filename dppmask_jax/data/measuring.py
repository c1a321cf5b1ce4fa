"""`dppmask data measure SOURCE`: what the pixels of a data set are, by a sample of its training
images, as lines for a config."""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple

import numpy as np

from dppmask_jax import pixel_format
from dppmask_jax.data.images import decode, kept
from dppmask_jax.data.sources import kept_pixels, opening
from dppmask_jax.data.sources.base import Source
from dppmask_jax.data.sources.image_files import why
from dppmask_jax.errors import InputError, one_line
from dppmask_jax.pixel_format import Pair, Pixels
from dppmask_jax.words import count

HELP = "channels, range, mean and standard deviation of the pixels"
_PER_IMAGE = 4096  # pixels of an image that its percentiles are taken of
_PERCENTILES = (1, 99)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add = parser.add_argument
    add("source", metavar="SOURCE", help="as data.source")
    add("--channels", type=int, help="as data.channels; default: those of the first image")
    add("--range", default="auto", help="as data.range; default: 8 bits, else what is found")
    add("--axis", type=int, default=2, help="as data.axis")
    add("--val_fraction", type=float, default=0.1, help="as data.val_fraction")
    add("--data_dir", help="as data.dir")
    add("--images", type=int, default=1000, help="images of the sample; default: 1000")


def run(args: argparse.Namespace) -> None:
    """Prints what was measured.

    Raises:
      InputError: wrong arguments, or no image can be read.
    """
    _check(args)
    anything = pixel_format.ANY._replace(axis=args.axis)
    source, _ = opening.open_splits(
        args.source, data_dir=args.data_dir, val_fraction=args.val_fraction, pixels=anything
    )
    found = _read(source, args)
    given = pixel_format.named_range(args.range)
    chosen = given or (None if found.dtypes == {"uint8"} else range_of(found))
    for line in (*_described(source, found), "", *_fields(source, found, chosen, args)):
        print(line)


class Found(NamedTuple):
    """What a sample of n images of C channels holds.

    Attributes:
      channels: C.
      dtypes: names of the types of the files.
      extent: (2, C) float64, the smallest and the largest value.
      percentiles: (2, C) of the values.
      mean, std: (C,) float64, over all pixels, not yet scaled, but cut to a range that is given.
      images: n.
      others: lines on images that are not among them.
    """

    channels: int
    dtypes: set[str]
    extent: np.ndarray
    percentiles: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    images: int
    others: list[str]


def _check(args) -> None:
    if not opening.SOURCE.holds(args.source):
        raise InputError(f"SOURCE={args.source}: it must be {opening.SOURCE.allowed}")
    fields = pixel_format.FIELDS
    for name in ("channels", "range", "axis"):
        rule, value = fields[f"data.{name}"].rule, getattr(args, name)
        if not rule.holds(value):
            raise InputError(f"--{name}={value}: it must be {rule.allowed}")
    if not 0 <= args.val_fraction < 1:
        raise InputError(f"--val_fraction={args.val_fraction}: it must be from 0 to below 1")
    if args.images < 1:
        raise InputError(f"--images={args.images}: it must be at least 1")


def _read(source: Source, args) -> Found:
    channels, dtypes, others = args.channels, set(), []
    given = pixel_format.named_range(args.range)
    extents, samples, sums = [], [], []
    for i in kept_pixels.sampled(source, args.images):
        try:
            values = _values(source, i, channels)
        except (OSError, decode.DecodeError) as error:
            others.append(f"{source.name(i)}: {why(error)}")
            continue
        channels = channels or values.shape[-1]
        flat = values.reshape(-1, channels)
        wide = flat.astype(np.float64)
        if given:  # the encoder sees what is beyond it cut off
            wide = np.clip(wide, *given)
        dtypes.add(values.dtype.name)
        extents.append([flat.min(axis=0), flat.max(axis=0)])
        samples.append(flat[:: max(1, len(flat) // _PER_IMAGE)])
        sums.append([np.full(channels, len(flat)), wide.mean(axis=0), wide.var(axis=0)])
    if not sums:
        raise InputError(one_line(f"no image of a sample can be read; {others[0]}"))
    extents = np.array(extents, np.float64)
    mean, std = _together(*np.moveaxis(np.array(sums), 1, 0))
    return Found(
        channels,
        dtypes,
        np.stack([extents[:, 0].min(axis=0), extents[:, 1].max(axis=0)]),
        np.percentile(np.concatenate(samples), _PERCENTILES, axis=0),
        mean,
        std,
        len(sums),
        others,
    )


def _values(source: Source, i: int, channels: int | None) -> np.ndarray:
    """Values as the file has them; raises kept.Mismatch where they are no such pixels."""
    values, _ = source.read(i)
    wanted = Pixels(channels or values.shape[-1], range=(0.0, 1.0), kept=True)
    kept.fitted(values, wanted)  # refuses what is not finite
    return values


def _together(sizes, means, variances):
    """Mean and deviation of all, of the numbers, means and variances (n, C) of parts."""
    shares = sizes / sizes.sum(axis=0)
    mean = np.sum(shares * means, axis=0)
    variance = np.sum(shares * (variances + np.square(means - mean)), axis=0)
    return mean, np.sqrt(variance)


def range_of(found: Found) -> Pair:
    """What could be black and white.

    For whole numbers from 0, or the smallest value, up to the next power of two less 1; for floats
    the smallest and the largest value, rounded outwards to two digits.

    Raises:
      InputError: these are too close to be told apart.
    """
    low, high = float(found.extent[0].min()), float(found.extent[1].max())
    if all("int" in name for name in found.dtypes):
        return min(low, 0.0), 2.0 ** math.ceil(math.log2(max(high, 1.0) + 1)) - 1
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    step = 10.0 ** (math.floor(math.log10(max(high - low, 1e-12))) - 1)
    black, white = math.floor(low / step) * step, math.ceil(high / step) * step
    if float(_in_config(black)) < float(_in_config(white)):
        return black, white
    raise InputError(
        f"all values are from {low:.10g} to {high:.10g}, too close for a range by them; name the "
        "values of black and white: --range=BLACK,WHITE"
    )


def _in_config(value: float) -> str:
    return f"{value:.10g}"


def _described(source: Source, found: Found) -> list[str]:
    lines = [
        f"{count(found.images, 'image')} of {len(source):,} for training: "
        f"{count(found.channels, 'channel')}, {' and '.join(sorted(found.dtypes))}",
        f"{'channel':>7} {'smallest':>12} {'1 %':>12} {'mean':>12} {'99 %':>12} {'largest':>12} "
        f"{'deviation':>12}",
    ]
    for c in range(found.channels):
        numbers = (
            found.extent[0, c], found.percentiles[0, c], found.mean[c],
            found.percentiles[1, c], found.extent[1, c], found.std[c],
        )  # fmt: skip
        lines.append(f"{c:>7} " + " ".join(f"{number:>12.6g}" for number in numbers))
    if found.others:
        lines.append(
            one_line(f"note: {count(len(found.others), 'image')} left out; {found.others[0]}")
        )
    return lines


def _fields(source: Source, found: Found, chosen: Pair | None, args) -> list[str]:
    black, white = chosen or (0.0, 255.0)
    mean = (found.mean - black) / (white - black)
    std = np.maximum(found.std / (white - black), 1e-6)
    lines = [f"config.data.channels = {found.channels}"]
    if chosen:
        lines.append(f'config.data.range = "{_in_config(black)},{_in_config(white)}"')
    if args.axis != 2:
        lines.append(f"config.data.axis = {args.axis}")
    for name, values in (("mean", mean), ("std", std)):
        numbers = ", ".join(f"{value:.6g}" for value in values)
        lines.append(f"config.data.{name} = ({numbers}{',' * (len(values) == 1)})")
    if chosen and args.range == "auto":
        lines.append(
            "# black and white are a guess by these images; values beyond them are cut off"
        )
    flags = [line.replace(" = ", "=", 1) for line in lines if not line.startswith("#")]
    return [*lines, "", " ".join(map(_flag, flags))]


def _flag(line: str) -> str:
    name, _, value = line.partition("=")
    quote = '"' if value.startswith("(") else ""
    value = value.strip('"')
    return f"--{name}={quote}{value}{quote}"
