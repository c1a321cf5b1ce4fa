"""Makes a file of part maps for mask.strategy=parts: each image's tokens in groups, by k-means.

    dppmask part-maps --encoder=RUN --source=SOURCE --parts=7 --out=parts.npy

RUN is the workdir of any run or imported encoder. The file has a row for each training image of
SOURCE, in order: (images, rows, columns) uint8 on the encoder's grid over the whole image, which is
squeezed into the encoder's shape. They are all of its training images: a run with data.classes has
fewer, and refuses the file. Parts are each image's own: part 0 of two images is not the same thing.
SemMAE (arXiv 2206.10207) learns a model of parts instead; k-means takes its place here.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from dppmask_jax import extras

if __name__ == "__main__":  # before what is missing is imported
    extras.require()

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dppmask_jax import command, whole_files
from dppmask_jax.data import loader
from dppmask_jax.data.images import crops
from dppmask_jax.data.sources import opening
from dppmask_jax.errors import InputError
from dppmask_jax.runs.run import load_encoder

_BATCH = 32
_ROUNDS = 20  # of k-means


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the file; see the module's docstring."""
    args = _parsed(argv)
    encoder = load_encoder(args.encoder, image_size=args.image_size)
    rows, columns = encoder.grid
    if args.parts > rows * columns:
        raise InputError(
            f"--parts={args.parts} is more than the {rows * columns} patches of --encoder; "
            "lower it, or enlarge --image_size"
        )
    source, _ = opening.open_splits(
        args.source, val_fraction=args.val_fraction, pixels=encoder.pixels
    )
    keys = functools.partial(jax.random.fold_in, jax.random.key(args.seed))
    group = jax.jit(
        lambda tokens, numbers: jax.vmap(functools.partial(grouped, num_parts=args.parts))(
            jax.vmap(keys)(numbers), tokens
        )
    )
    maps, known = np.zeros((len(source), rows, columns), np.uint8), np.zeros(len(source), bool)
    batches = loader.eval_batches(
        source, image_size=encoder.image_size, batch_size=_BATCH, view=crops.whole_image
    )
    with batches:
        for batch in batches:
            numbers, valid = batch["index"], batch["valid"]
            found = np.asarray(group(encoder(batch["image"])["patches"], numbers), np.uint8)
            maps[numbers[valid]] = found[valid].reshape(-1, rows, columns)
            known[numbers[valid]] = True
    with whole_files.replacing(args.out) as partial, open(partial, "wb") as file:
        np.save(file, maps)
    if not known.all():
        print(f"note: {(~known).sum()} images cannot be read; all of such an image is one part")
    print(
        f"{args.out}: {len(maps)} images of {rows} x {columns} patches in {args.parts} parts; use "
        f"it with --config.mask.strategy=parts --config.mask.parts={args.out} "
        f"--config.mask.num_parts={args.parts}"
    )


def grouped(key, tokens, num_parts: int):
    """(N,) int32: the group of each token, by k-means of their directions.

    Centres start far from one another (k-means++) and move 20 times. A group that loses all of its
    tokens keeps its centre.

    Args:
      key: a JAX key of this image alone.
      tokens: (N, D).
      num_parts: static.
    """
    x = tokens.astype(jnp.float32)
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    first_key, *rest = jax.random.split(key, num_parts)
    centre = x[jax.random.randint(first_key, (), 0, len(x))]
    centres, nearest = [centre], jnp.sum(jnp.square(x - centre), axis=1)
    for centre_key in rest:
        centre = x[jax.random.categorical(centre_key, jnp.log(nearest))]
        centres.append(centre)
        nearest = jnp.minimum(nearest, jnp.sum(jnp.square(x - centre), axis=1))

    def assigned(centres):
        products = jnp.matmul(x, centres.T, precision=lax.Precision.HIGHEST)
        return jnp.argmin(jnp.sum(jnp.square(centres), axis=1) - 2 * products, axis=1)

    def moved(_, centres):
        member = jax.nn.one_hot(assigned(centres), num_parts)
        number = jnp.sum(member, axis=0)[:, None]
        total = jnp.matmul(member.T, x, precision=lax.Precision.HIGHEST)
        return jnp.where(number > 0, total / jnp.maximum(number, 1), centres)

    return assigned(lax.fori_loop(0, _ROUNDS, moved, jnp.stack(centres))).astype(jnp.int32)


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command.ArgumentParser(
        prog=command.called("python -m dppmask_jax.part_maps"),
        description="Makes a file of part maps for mask.strategy=parts.",
    )
    add = parser.add_argument
    add("--encoder", required=True, metavar="RUN", help="the run whose tokens are grouped")
    add("--source", required=True, help="as data.source of the run to come")
    add("--val_fraction", type=float, default=0.1, help="as data.val_fraction of it")
    add("--parts", type=int, default=7, help="of an image")
    add("--image_size", type=_side, metavar="SIDE", help="in pixels; default: the encoder's")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("parts.npy"), help="the file")
    args = parser.parse_args(argv)
    if not opening.SOURCE.holds(args.source):
        raise InputError(f"--source={args.source}: it must be {opening.SOURCE.allowed}")
    if not 0 <= args.val_fraction < 1:
        raise InputError(
            f"--val_fraction={args.val_fraction}: it must be a number from 0 to below 1"
        )
    if not 1 <= args.parts <= 256:
        raise InputError(f"--parts={args.parts}: it must be a whole number from 1 to 256")
    if not 0 <= args.seed < 2**32:
        raise InputError(f"--seed={args.seed}: it must be a whole number from 0 to 2**32 - 1")
    if not args.out.parent.is_dir():
        raise InputError(f"--out={args.out}: there is no folder {args.out.parent}")
    return args


def _side(text: str) -> tuple[int, int]:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pixels")
    return int(text), int(text)


if __name__ == "__main__":
    command.run_parsed(main)
