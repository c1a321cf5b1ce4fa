"""saliency:ROOT, images with foreground masks, as ECSSD, DUTS, DUT-OMRON and the like come.

ROOT has two folders: `images` and `masks`, or two that are called so in part, as the data sets call
theirs (IMAGES, MASKS): `DUTS-TE-Image` and `DUTS-TE-Mask`, `DUT-OMRON-image` and
`pixelwiseGT-new-PNG`. A mask has the name of its image but for the extension. All images are one
split, there are no labels, and nothing is held out: such sets are for testing.
"""

from __future__ import annotations

import functools
import os
import re

import numpy as np

from dppmask_jax.data.images import decode
from dppmask_jax.data.sources.annotated import names_in
from dppmask_jax.data.sources.base import Source
from dppmask_jax.data.sources.folder import is_image_name
from dppmask_jax.data.sources.image_files import (
    Files,
    check_readable,
    file_source,
    from_names,
    read_file,
)
from dppmask_jax.errors import InputError
from dppmask_jax.words import count

IMAGES = re.compile(r"image|img", re.IGNORECASE)
MASKS = re.compile(r"mask|ground.?truth|gt", re.IGNORECASE)
_NAMED = 5  # files that a message lists


def open_saliency(root: str) -> tuple[Source, None]:
    """(all images, None) of a folder of the layout above.

    Raises:
      InputError: no such folders, or several that may be meant; no image, or none that can be read;
        images without a mask; or two files of one name but for the extension.
    """
    folders = [name for name in names_in(root) if os.path.isdir(os.path.join(root, name))]
    images = _by_stem(os.path.join(root, _meant(root, folders, "images", IMAGES, MASKS)))
    masks = _by_stem(os.path.join(root, _meant(root, folders, "masks", MASKS)))
    where = [next(iter(kind.values()), root) for kind in (images, masks)]
    missing = [os.path.basename(path) for stem, path in images.items() if stem not in masks]
    if missing:
        raise InputError(
            f"{len(missing):,} of {count(len(images), 'image')} in {os.path.dirname(where[0])} "
            f"have no mask of their name in {os.path.dirname(where[1])}: {_list(missing)}; add the "
            "masks, or take these images out"
        )
    files, masks_of = (
        _files(root, [kind[stem] for stem in sorted(images)]) for kind in (images, masks)
    )
    check_readable(files)
    spare = [os.path.basename(path) for stem, path in masks.items() if stem not in images]
    return (
        file_source(
            files,
            np.arange(files.size, dtype=np.int32),
            unlabelled_because=f"saliency:{root} has masks alone",
            extras=functools.partial(_mask, masks_of),
            notes=(f"masks without an image: {_list(spare)}",) * bool(spare),
        ),
        None,
    )


def _meant(root: str, folders: list[str], plain: str, kind: re.Pattern, but=None) -> str:
    """The folder that is called `plain`, or the only one whose name is of a kind."""
    alike = [name for name in folders if kind.search(name) and not (but and but.search(name))]
    if plain in folders:
        return plain
    if len(alike) != 1:
        raise InputError(
            f"{root} has {'several folders' if alike else 'no folder'} that may be {plain}"
            f"{': ' * bool(alike)}{_list(alike)}; saliency:ROOT is a folder with images/ and masks/"
        )
    return alike[0]


def _by_stem(folder: str) -> dict[str, str]:
    """{name without its extension: path} of the images in a folder."""
    found: dict[str, str] = {}
    for name in names_in(folder):
        if name.startswith(".") or not is_image_name(name):
            continue
        stem = os.path.splitext(name)[0]
        if stem in found:
            raise InputError(
                f"{folder} has two files {stem!r}: {os.path.basename(found[stem])} and {name}; "
                "remove one"
            )
        found[stem] = os.path.join(folder, name)
    if not found:
        raise InputError(f"there is no image in {folder}; saliency:ROOT needs images and masks")
    return found


def _files(root: str, paths: list[str]) -> Files:
    names = [os.path.basename(path) for path in paths]
    folder = os.path.relpath(os.path.dirname(paths[0]), root)
    return from_names(root, (folder,), np.zeros(len(names)), names)


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _mask(masks: Files, i: int) -> dict[str, np.ndarray]:
    return {"mask": decode.decode(read_file(masks.path(i)))[..., 0]}
