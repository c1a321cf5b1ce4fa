"""A file's model as an encoder alone, of any family."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dppmask_jax import patches
from dppmask_jax.errors import InputError
from dppmask_jax.models.relative import relative_index
from dppmask_jax.runs.kinds import encoder_config, method_of
from dppmask_jax.weights import architecture, canonical, names, opened, positions
from dppmask_jax.weights.families import FAMILIES
from dppmask_jax.weights.opened import File, Options

_PARTS = ("norm",)  # what a file may lack


class Published(NamedTuple):
    """An encoder and what became of its file: the run's config, the parameters of the encoder as
    the file has them, positions among them, what is said of the file's model beside it, and as
    `importing.Imported`."""

    config: Any
    encoder: dict[str, Any]
    stated: dict[str, Any]
    fresh: tuple[str, ...]
    left_aside: tuple[str, ...]
    prefix: str


def read(path: str | Path, format_name: str, options: Options) -> Published:
    """The encoder of a file.

    Args:
      path: the file, an index of its parts, or a folder with either.
      format_name: of `families.FAMILIES`.

    Raises:
      InputError: the file or a tensor of it is wrong, or has what no encoder here has.
    """
    for part in options.allow_missing:
        if part not in _PARTS:
            raise InputError(f"--allow_missing={part}: an encoder alone may lack its norm only")
    family = FAMILIES[format_name]
    with opened.opened_family(path, format_name, options) as file:
        inverse = {old: new for new, old in file.spelled.items()}
        shapes = {inverse[name]: entry.shape for name, entry in file.entries.items()}
        found = canonical.read(file.path, shapes, family, file.stated, options.known)
        config = encoder_config(
            found.size, found.image_size, found.patch_size, found.options,
            label=family.label, knn_feature=family.feature,
        )  # fmt: skip
        template, fresh = _template(config, found, file, options.allow_missing)
        file = _without_indices(file, patches.grid_shape(found.image_size, found.patch_size))
        wanted = names.write_names({"encoder": template}, file.form.spell)
        unplaced = [name for name in file.entries if name not in wanted]
        if unplaced:
            instead = canonical.families_of(file.entries)
            architecture.check_known(file.path, unplaced, instead)
        tensors = opened.matched(file, {"encoder": template}, found.patch_size)
    tree = names.read({"encoder": template}, file.form.spell, tensors)["encoder"]
    if "norm" not in tree:
        tree["norm"] = {"scale": np.ones(found.size.width, np.float32),
                        "bias": np.zeros(found.size.width, np.float32)}  # fmt: skip
    config, tree = _resized(config, _folded(tree, found), found, options)
    return Published(config, tree, file.stated, fresh, file.left_aside, file.prefix)


def _template(config, found: canonical.Found, file: File, allowed):
    """(shapes of the encoder's parameters as the file has to hold them, what starts fresh)."""
    params, _ = jax.eval_shape(method_of(config).init, jax.random.key(0))
    encoder, fresh = dict(params["encoder"]), ()
    if "positions" in encoder:
        rows, columns = patches.grid_shape(found.image_size, found.patch_size)
        shape = (1, found.in_front + rows * columns, found.size.width)
        encoder["positions"] = names.abstract(shape)
    if file.name_of("norm.weight") not in file.entries:
        if "norm" not in allowed:
            raise InputError(
                f"{file.path} has no norm; --allow_missing=norm starts it fresh (all scales 1, all "
                "shifts 0)"
            )
        encoder.pop("norm")
        fresh = ("norm",)
    return encoder, fresh


def _without_indices(file: File, grid: tuple[int, int]) -> File:
    """The file without tables of which pairs of patches share a bias.

    Raises:
      InputError: one of them is another than that of the encoders here.
    """
    tables = [name for name in file.entries if name.endswith(canonical.INDICES)]
    for name in tables:
        entry, wanted = file.entries[name], relative_index(grid)
        if entry.shape != wanted.shape or not np.array_equal(entry.load(), wanted):
            raise InputError(
                f"{file.path}: {name} is another order of relative positions than BEiT's, the only "
                "one here"
            )
    return file._replace(entries={n: e for n, e in file.entries.items() if n not in tables})


def _folded(tree, found: canonical.Found):
    """The tree with the positions of registers, which have none here, added to them."""
    if found.in_front < 2:
        return tree
    table, front = tree["positions"], found.in_front
    return {
        **tree,
        "registers": tree["registers"] + table[:, 1:front],
        "positions": np.concatenate([table[:, :1], table[:, front:]], axis=1),
    }


def _resized(config, tree, found: canonical.Found, options: Options):
    """Config and tree for the images of --resize_positions."""
    new = options.resize_positions
    if not new or tuple(new) == found.image_size:
        return config, tree
    if "positions" not in tree:
        raise InputError(
            "--resize_positions is for positions that the file holds, and it holds none; leave it "
            "out"
        )
    try:
        patches.grid_shape(new, found.patch_size)
    except ValueError as error:
        raise InputError(f"--resize_positions: {error}") from error
    config = config.copy_and_resolve_references()
    config.image_size = tuple(new)
    table = positions.resized(tree["positions"], found.image_size, new, found.patch_size)
    return config, {**tree, "positions": table}
