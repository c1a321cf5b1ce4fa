"""Makes a run, at step 0 and with a fresh optimiser, from published weights."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dppmask_jax import parallel
from dppmask_jax.errors import InputError
from dppmask_jax.imagenet import MEAN, STD
from dppmask_jax.runs import checkpoint, workdir
from dppmask_jax.weights import (
    architecture,
    classifiers,
    names,
    opened,
    pretraining,
    published,
    sizes,
)
from dppmask_jax.weights.opened import Options


class Imported(NamedTuple):
    """What became of a file: the run's config, how many classes it tells apart (None: it does not),
    in words what started fresh and what was left aside, and the prefix that was taken off names."""

    config: Any
    classes: int | None
    fresh: tuple[str, ...]
    left_aside: tuple[str, ...]
    prefix: str


def import_weights(
    path: str | Path, format_name: str, folder: str | Path, config, options: Options
) -> Imported:
    """Makes the workdir of a run whose model is a file's.

    Args:
      path: the file, an index of its parts, or a folder with either.
      format_name: of `names.FORMATS`, or of `families.FAMILIES` where there is no config.
      folder: the workdir to make; missing or empty.
      config: what configs/mae.py or configs/ibot.py makes, or for a classifier configs/eval.py with
        task=finetune. The fields of the model's sizes give way to the file's; all others are kept.
        None: the run is an encoder alone.

    Raises:
      InputError: the file, a tensor of it, the config or the folder is wrong; nothing was
        written.
    """
    folder = Path(folder)
    workdir.check_folder(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"--workdir={folder} is not empty and is not overwritten; name another")
    if config is None:
        return _import_encoder(path, format_name, folder, options)
    form = names.FORMATS[format_name]
    kind = classifiers if "task" in config else pretraining
    kind.check(config, form, format_name, options)
    with opened.opened(path, format_name, options) as file:
        shapes = {name: entry.shape for name, entry in file.entries.items()}
        # A ViT of timm without a table may compute other positions than these.
        fixed = architecture.has_fixed_positions(config) and format_name != "timm"
        found = sizes.read(shapes, file.name_of, file.stated, options.known, fixed)
        config = kind.adapted(config, found, file, options)
        method = kind.method_of(config, found)
        template, fresh = kind.template(method, found, file, config, options.allow_missing)
        tensors = opened.matched(file, template, found.patch_size)
    tree = names.read(template, form.spell, tensors)
    tree = _with_pixels_as_here(tree, file.stated, options)
    _write(config, kind.state(config, method, tree, found, file), folder)
    classes = found.classes if kind is classifiers else None
    return Imported(config, classes, fresh, file.left_aside, file.prefix)


def _import_encoder(path, format_name: str, folder: Path, options: Options) -> Imported:
    read = published.read(path, format_name, options)
    tree = _with_pixels_as_here({"encoder": read.encoder}, read.stated, options)
    _write(read.config, {"params": tree, "extra": {}}, folder)
    return Imported(read.config, None, read.fresh, read.left_aside, read.prefix)


def _with_pixels_as_here(tree, stated, options: Options):
    """The tree with a patch embedding that takes pixels normalised as here."""
    pretrained = stated.get("pretrained_cfg")
    pretrained = pretrained if isinstance(pretrained, dict) else {}
    mean = options.mean or pretrained.get("mean", stated.get("image_mean"))
    std = options.std or pretrained.get("std", stated.get("image_std"))
    try:
        mean = np.asarray(MEAN if mean is None else mean, np.float64)
        std = np.asarray(STD if std is None else std, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"config.json: mean {mean!r} and std {std!r} are no numbers") from error
    if mean.shape != (3,) or std.shape != (3,) or not (std > 0).all() or not (mean >= 0).all():
        raise InputError(
            f"mean {mean.tolist()} and std {std.tolist()} are not three numbers each, std above 0"
        )
    if np.allclose(mean, MEAN) and np.allclose(std, STD):
        return tree
    if options.mean is None or options.std is None:
        raise InputError(
            f"config.json: the model wants pixels normalised by mean {tuple(mean.tolist())} and "
            f"std {tuple(std.tolist())}, here it is {tuple(MEAN)} and {tuple(STD)}; add "
            f"--mean={','.join(map(str, mean))} --std={','.join(map(str, std))} to change the "
            "patch embedding so that it takes them as they are here"
        )
    if "decoder" in tree or "student" in tree:
        raise InputError("--mean and --std are for files of an encoder alone")
    # theirs = (pixel - mean) / std and pixel = ours * STD + MEAN, for each channel.
    proj = tree["encoder"]["patch_embed"]["proj"]
    kernel = np.asarray(proj["kernel"], np.float64).reshape(-1, 3, proj["kernel"].shape[-1])
    scale, shift = np.asarray(STD) / std, (np.asarray(MEAN) - mean) / std
    folded = {
        "kernel": np.float32((kernel * scale[:, None]).reshape(proj["kernel"].shape)),
        "bias": np.float32(proj["bias"] + np.einsum("pcd,c->d", kernel, shift)),
    }
    return {**tree, "encoder": {**tree["encoder"], "patch_embed": {"proj": folded}}}


def _write(config, state, folder: Path) -> None:
    """Makes the workdir whole or not at all."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.part-{os.getpid()}")
    partial.mkdir()
    try:
        checkpoints = checkpoint.Checkpoints(partial / checkpoint.FOLDER)
        meta = {"config": workdir.to_json(config)}
        checkpoints.save(0, parallel.to_host(state), meta)
        checkpoints.close()
        workdir.write_config(config, partial)
        partial.rename(folder)  # fails where the folder has meanwhile come to hold anything
    finally:
        shutil.rmtree(partial, ignore_errors=True)
