"""Makes a run, at step 0 and with a fresh optimiser, from published weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dppmask_jax import checkpoint, loop, parallel, patches, trainer, workdir
from dppmask_jax.config import check
from dppmask_jax.data.augment import MEAN, STD
from dppmask_jax.errors import InputError
from dppmask_jax.fit import plan_from
from dppmask_jax.methods import METHODS
from dppmask_jax.weights import files, names, positions, sizes

PARTS = ("decoder", "head", "norm")


class Options(NamedTuple):
    """How to take a file.

    Attributes:
      known: what its tensors do not say.
      allow_missing: of PARTS, what the file may lack altogether; it starts fresh.
      drop: tensors whose names start so are left aside.
      resize_positions: (height, width) of the images that the run is for, where the file is for
        others; None keeps the file's.
      mean, std: how the file's model wants pixels from 0 to 1 normalised; None is as here.
    """

    known: sizes.Known = sizes.Known()
    allow_missing: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    resize_positions: tuple[int, int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


class Imported(NamedTuple):
    """What became of a file: the run's config, and in words what started fresh and what was left
    aside."""

    config: Any
    fresh: tuple[str, ...]
    left_aside: tuple[str, ...]


def import_weights(
    path: str | Path, format_name: str, folder: str | Path, config, options: Options
) -> Imported:
    """Makes the workdir of a run whose model is a file's.

    Args:
      path: the file, or a folder with a model.safetensors.
      format_name: of `names.FORMATS`.
      folder: the workdir to make; missing or empty.
      config: what configs/mae.py or configs/ibot.py makes. The fields of the model's sizes give way
        to the file's; all others are kept.

    Raises:
      InputError: the file, a tensor of it, the config or the folder will not do; nothing was
        written.
    """
    folder = Path(folder)
    workdir.check_folder(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"--workdir={folder} is not empty and is not overwritten; name another")
    form = names.FORMATS[format_name]
    _check_method(config, form, format_name, options)
    path = files.find(path)
    stated = files.read_config(path)
    with files.opened(path, form.containers) as (entries, beside):
        entries, dropped = _without(entries, options.drop)
        entries = _respelled(path, entries, form, format_name)
        file = _File(path, form, entries, stated)
        found = sizes.read(
            {name: entry.shape for name, entry in entries.items()}, file.name_of, stated,
            options.known,
        )  # fmt: skip
        config = _adapted(config, found, file, options)
        check(config)
        method = trainer.method_from(config, plan_from(config, config.batch_size))
        template, fresh = _template(method, found, file, config, options.allow_missing)
        tensors = _matched(file, template)
    tree = names.read(template, form.spell, tensors)
    tree = _with_pixels_as_here(tree, stated, options)
    state = _state(config, method, tree, found, file)
    _write(config, state, folder)
    return Imported(config, fresh, (*dropped, *beside))


class _File(NamedTuple):
    path: Path
    form: names.Format
    entries: dict[str, files.Entry]
    stated: dict[str, Any]

    def name_of(self, name: str) -> str:
        """The format's name of the first tensor that MAE calls so."""
        prefix = "student.module." if self.form.holds == "both" else ""
        return prefix + self.form.spell(name)[0]


def _check_method(config, form, format_name, options) -> None:
    if config.get("method") not in METHODS:
        raise InputError(
            "--config names no config of a pre-training; use configs/mae.py or ibot.py"
        )
    of_ibot = form.holds in ("teacher", "student", "both")
    if of_ibot and config.method != "ibot":
        raise InputError(f"--format={format_name} makes an iBOT run; add --config=configs/ibot.py")
    if config.method == "ibot" and form.holds == "autoencoder":
        raise InputError(
            f"--format={format_name} has a decoder, which an iBOT run has not; use "
            f"--format={'hf-encoder' if format_name == 'hf' else 'mae'} with --drop for the decoder"
        )
    for part in options.allow_missing:
        if part not in PARTS:
            raise InputError(f"--allow_missing={part} is not allowed: {' | '.join(PARTS)}")


def _without(entries, prefixes):
    """(the entries that are kept, the names of the others)."""
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in entries):
            raise InputError(f"--drop={prefix}: no tensor of the file starts so")
    dropped = [name for name in entries if name.startswith(prefixes)] if prefixes else []
    return {name: entry for name, entry in entries.items() if name not in dropped}, dropped


def _respelled(path, entries, form, format_name):
    spelled = form.respell(entries)
    cls_token = _cls_token(form)
    if cls_token not in spelled.values():
        fitting = [
            name
            for name, other in names.FORMATS.items()
            if _cls_token(other) in other.respell(entries).values()
        ]
        hint = f"it looks like {' or '.join(fitting)}" if fitting else "no format fits it"
        some = ", ".join(list(entries)[:4])
        raise InputError(
            f"{path} is not of --format={format_name}: it has no {cls_token}, but {some}, …; {hint}"
        )
    found: dict[str, files.Entry] = {}
    for name, new in spelled.items():
        if new in found:
            raise InputError(f"{path} has {new} twice, in two spellings")
        found[new] = entries[name]
    return found


def _cls_token(form) -> str:
    return ("student.module." if form.holds == "both" else "") + form.spell("cls_token")[0]


def _adapted(config, found: sizes.Sizes, file: _File, options: Options):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.size = found.size
        config.model.patch_size = found.patch_size
        config.image_size = options.resize_positions or found.image_size
        if found.decoder and config.method == "mae":
            config.model.decoder_width, config.model.decoder_depth, config.model.decoder_heads = (
                found.decoder
            )
            config.loss.norm_pix = bool(file.stated.get("norm_pix_loss", config.loss.norm_pix))
        if found.head and config.method == "ibot":
            model = config.model
            model.head_hidden, model.head_bottleneck, model.prototypes = found.head
            model.shared_head = _shares_head(file)
    return config


def _shares_head(file: _File) -> bool:
    """Whether class and patch tokens have one last layer: the file has one, or the same twice."""
    for part in ("weight_g", "weight_v"):
        one, two = (
            file.entries.get(file.name_of(f"head.{layer}.{part}"))
            for layer in ("last_layer", "last_layer2")
        )
        if one and two and (one.shape != two.shape or not np.array_equal(one.load(), two.load())):
            return False
    return True


# What the file has to hold.


def _template(method, found: sizes.Sizes, file: _File, config, allowed):
    """(tree of shapes that the file has to hold, the parts of the run that start fresh)."""
    params, extra = jax.eval_shape(method.init, jax.random.key(0))
    rows, columns = patches.grid_shape(found.image_size, found.patch_size)
    encoder = method.encoder_of(params, extra)
    width = encoder["cls_token"].shape[-1]
    encoder = {**encoder, "positions": names.abstract((1, 1 + rows * columns, width))}
    tree: dict[str, Any] = {"encoder": encoder}
    if config.method == "mae" and file.form.holds == "autoencoder":
        width = params["decoder"]["mask_token"].shape[-1]
        table = names.abstract((1, 1 + rows * columns, width))
        tree["decoder"] = {**params["decoder"], "positions": table}
    if config.method == "ibot" and file.form.holds in ("teacher", "student", "both"):
        tree["head"] = _head_template(params["head"], file)
    fresh = ["optimiser"]
    for part, holder in (("decoder", tree), ("head", tree), ("norm", encoder)):
        wanted = {"decoder": config.method == "mae", "head": config.method == "ibot"}
        if not wanted.get(part, True) or _has(file, tree, part):
            continue
        if part not in allowed:
            raise InputError(
                f"{file.path} has no {part}; --allow_missing={part} starts it fresh"
                + (" (all scales 1, all shifts 0)" if part == "norm" else "")
            )
        holder.pop(part, None)
        fresh.append(part)
    if config.method == "ibot" and file.form.holds != "both":
        fresh += ["centers"] if file.form.holds == "student" else ["mask_embed", "centers"]
    if "head" not in tree or file.form.holds == "teacher":
        return tree, tuple(fresh)
    student = {**tree, "mask_embed": params["mask_embed"]}
    if file.form.holds == "student":
        return student, tuple(fresh)
    centers = {name: extra[name] for name in ("class_center", "patch_center")}
    return {"student": student, "teacher": tree, **centers}, tuple(fresh)


def _has(file: _File, tree, part: str) -> bool:
    """Whether the file has any tensor of a part."""
    if part == "norm":
        return file.name_of("norm.weight") in file.entries
    if part not in tree:
        return False
    without = {name: inner for name, inner in tree.items() if name != part}
    of_part = names.write_names(tree, file.form.spell) - names.write_names(without, file.form.spell)
    prefix = "student.module." if file.form.holds == "both" else ""
    return any(prefix + name in file.entries for name in of_part)


def _head_template(head, file: _File):
    bottleneck, prototypes = head["last_layer"]["direction"].shape
    layer = {
        "scale": names.abstract((1, prototypes)),
        "direction": names.abstract((bottleneck, prototypes)),
    }
    head = {**head, "last_layer": layer, "patch_last_layer": layer}
    # One layer for both may stand in the file once or twice.
    if file.name_of("head.last_layer2.weight_v") not in file.entries:
        head.pop("patch_last_layer")
    return head


def _matched(file: _File, template) -> dict[str, np.ndarray]:
    """The tensors of a file, once all of them were found to be what the template wants."""
    wanted = jax.eval_shape(lambda tree: names.write(tree, file.form.spell), template)
    faults = [f"missing {name} {array.shape}" for name, array in wanted.items()
              if name not in file.entries]  # fmt: skip
    for name, entry in file.entries.items():
        if name not in wanted:
            faults.append(f"unmatched {name} {entry.shape}")
        elif entry.shape != wanted[name].shape:
            faults.append(f"{name} has shape {entry.shape}, wanted {wanted[name].shape}")
    if not faults:
        tensors = {name: file.entries[name].load() for name in wanted}
        faults = [
            f"{name} is not finite" for name, x in tensors.items() if not np.isfinite(x).all()
        ]
    if faults:
        raise InputError(
            f"{file.path}: {len(faults)} tensor(s) do not fit: {'; '.join(faults)} "
            "(--drop=PREFIX leaves unmatched ones aside)"
        )
    return tensors


# What becomes of it.


def _with_pixels_as_here(tree, stated, options: Options):
    """The tree with a patch embedding that takes pixels normalised as here."""
    pretrained = stated.get("pretrained_cfg")
    pretrained = pretrained if isinstance(pretrained, dict) else {}
    mean, std = options.mean or pretrained.get("mean"), options.std or pretrained.get("std")
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


def _state(config, method, tree, found: sizes.Sizes, file: _File):
    """The state before the first step, with the file's values in place of initial ones."""
    plan = plan_from(config, config.batch_size)  # its numbers leave no trace in the state
    optimizer = trainer.optimizer_from(config, method, plan)
    tree = _placed(config, tree, found, file)
    # As trainer.train draws it, so that what is fresh is what a fresh run has.
    init_key = jax.random.split(jax.random.key(config.seed), 3)[0]
    state = loop.init_state(method, optimizer, init_key)
    params, extra = state.params, state.extra
    if "student" in tree:
        teacher = {**extra["teacher"], **tree["teacher"]}
        centers = {name: tree[name] for name in ("class_center", "patch_center")}
        params, extra = {**params, **tree["student"]}, {**extra, "teacher": teacher, **centers}
    else:
        fresh_norm = method.encoder_of(params, extra)["norm"]
        params, extra = method.with_encoder(params, extra, {"norm": fresh_norm, **tree["encoder"]})
        params = {**params, **{name: tree[name] for name in tree if name != "encoder"}}
        if "head" in tree:
            extra = {**extra, "teacher": {**extra["teacher"], "head": tree["head"]}}
    return state._replace(params=params, extra=extra)


def _placed(config, tree, found: sizes.Sizes, file: _File):
    """The tree with parameters in the places where the run's model has them."""
    if "student" in tree:
        placed = {part: _placed(config, tree[part], found, file) for part in ("student", "teacher")}
        return {**tree, **placed}
    new = tuple(config.image_size)
    placed = dict(tree)
    if config.method == "mae":
        for part, name in (("encoder", "pos_embed"), ("decoder", "decoder_pos_embed")):
            if part in tree:
                name = file.name_of(name)
                spacing = file.entries[name].spacing
                table = tree[part]["positions"]
                positions.check_fixed(table, name, spacing, found.image_size, found.patch_size)
                placed[part] = {k: v for k, v in tree[part].items() if k != "positions"}
    elif new != found.image_size:
        table = tree["encoder"]["positions"]
        table = positions.resized(table, found.image_size, new, found.patch_size)
        placed["encoder"] = {**tree["encoder"], "positions": table}
    if "head" in tree:
        placed["head"] = _placed_head(config.model, tree["head"], file)
    return placed


def _placed_head(model, head, file: _File):
    head = dict(head)
    if model.shared_head:
        head.pop("patch_last_layer", None)
    if model.norm_last_layer:
        for layer in ("last_layer", "patch_last_layer"):
            if layer in head:
                if not (head[layer]["scale"] == 1).all():
                    raise InputError(
                        f"{file.path}: the prototypes have lengths of their own; add "
                        "--config.model.norm_last_layer=False"
                    )
                head[layer] = {"direction": head[layer]["direction"]}
    return head


def _write(config, state, folder: Path) -> None:
    """Makes the workdir whole or not at all."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.part-{os.getpid()}")
    partial.mkdir()
    try:
        checkpoints = checkpoint.Checkpoints(
            partial / checkpoint.FOLDER, keep=config.checkpoint.keep
        )
        meta = {"config": workdir.to_json(config)}
        checkpoints.save(0, parallel.to_host(state), meta)
        checkpoints.close()
        workdir.write_config(config, partial)
        partial.rename(folder)  # fails where the folder has meanwhile come to hold anything
    finally:
        shutil.rmtree(partial, ignore_errors=True)
