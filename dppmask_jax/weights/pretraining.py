"""A file's model as a pre-training run, of MAE or iBOT."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from dppmask_jax import config as config_rules
from dppmask_jax import patches
from dppmask_jax.errors import InputError
from dppmask_jax.methods import METHODS
from dppmask_jax.models import sizes as model_sizes
from dppmask_jax.training.build import method_from, plan_from
from dppmask_jax.training.step import init_state
from dppmask_jax.weights import architecture, names, positions, sizes
from dppmask_jax.weights.opened import PARTS, File, Options
from dppmask_jax.words import with_article


def check(config, form: names.Format, format_name: str, options: Options) -> None:
    """Raises InputError unless a config and a format go together."""
    if config.get("method") not in METHODS:
        raise InputError("--config names no config of a run; use mae or ibot")
    architecture.check_plain(f"--config of {config.method}", config, format_name)
    label = with_article(METHODS[config.method].label)
    if form.holds == "classifier" and architecture.has_fixed_positions(config):
        raise InputError(
            f"the encoder of --format={format_name} learned its positions, and that of {label} "
            "here has fixed ones; leave --config out to make a classifier, or add "
            "--config=ibot --drop=head,fc_norm --allow_missing=head,norm"
        )
    of_ibot = form.holds in ("teacher", "student", "both")
    if of_ibot and config.method != "ibot":
        raise InputError(f"--format={format_name} makes an iBOT run; add --config=ibot")
    if form.holds == "autoencoder" and config.method != "mae":
        raise InputError(
            f"--format={format_name} has a decoder, which {label} run has not; use "
            f"--format={'hf-encoder' if format_name == 'hf' else 'mae'} with --drop for the decoder"
        )
    for part in options.allow_missing:
        if part not in PARTS:
            raise InputError(f"--allow_missing={part} is not allowed: {' | '.join(PARTS)}")


def adapted(config, found: sizes.Sizes, file: File, options: Options):
    """The config with a file's sizes, checked."""
    new_size = options.resize_positions or found.image_size
    fixed = architecture.has_fixed_positions(config)
    if fixed and tuple(new_size) != tuple(found.image_size):
        height, width = found.image_size
        label = with_article(METHODS[config.method].label)
        raise InputError(
            f"--resize_positions is for learned positions, and {label} trains with the fixed "
            f"ones of its grid: import it for its own {height}x{width}, and say the other size "
            "where it is used: load_encoder(..., image_size=), or --config.image_size of eval"
        )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        model_sizes.set_size(config.model, found.size)
        with config.model.ignore_type():  # a number or a pair
            config.model.patch_size = found.patch_size
        config.image_size = new_size
        if found.decoder and "decoder_width" in config.model:
            model, decoder = config.model, found.decoder
            model.decoder_width, model.decoder_depth = decoder.width, decoder.depth
            model.decoder_heads = decoder.heads
            _carry_over(config, file.stated, options.asked)
        if found.head and "prototypes" in config.model:
            model = config.model
            model.head_hidden, model.head_bottleneck, model.prototypes = found.head
            model.shared_head = _shares_head(file)
        if "local_size" in config.data and "data.local_size" not in options.asked:
            config.data.local_size = local_size(config)
        if "model.dtype" not in options.asked:
            config.model.dtype = "float32"
    # An import reads no images: data.source may still be empty.
    with_source = config.copy_and_resolve_references()
    with_source.data.source = config.data.source or "shapes"
    config_rules.check(with_source)
    return config


def local_size(config) -> tuple[int, int]:
    """The size of iBOT's local views: that of a config where it fits its model, else the share of
    the image that it is in the recipes."""
    size, of_patch = tuple(config.data.local_size), patches.sides(config.model.patch_size)
    images = tuple(config.image_size)
    if all(
        side % each == 0 and side < image
        for side, each, image in zip(size, of_patch, images, strict=True)
    ):
        return size
    return tuple(
        max(1, round(side * 96 / 224 / each)) * each
        for side, each in zip(images, of_patch, strict=True)
    )


def _carry_over(config, stated: dict[str, Any], asked: frozenset[str]) -> None:
    """Sets what config.json says of the training of an autoencoder, unless asked for otherwise."""
    norm_pix, ratio = stated.get("norm_pix_loss"), stated.get("mask_ratio")
    if isinstance(norm_pix, bool) and "loss.norm_pix" not in asked:
        config.loss.norm_pix = norm_pix
    # 0 lets a model see whole images; no training has it.
    if isinstance(ratio, float) and 0 < ratio < 1 and "mask.ratio" not in asked:
        config.mask.ratio = ratio


def method_of(config, found: sizes.Sizes):
    """The method of an adapted config."""
    # The state does not depend on the plan.
    return method_from(config, plan_from(config, config.batch_size))


def _shares_head(file: File) -> bool:
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


def template(method, found: sizes.Sizes, file: File, config, allowed: tuple[str, ...]):
    """(tree of shapes that the file has to hold, the parts of the run that start fresh)."""
    params, extra = jax.eval_shape(method.init, jax.random.key(0))
    rows, columns = patches.grid_shape(found.image_size, found.patch_size)
    encoder = method.encoder_of(params, extra)
    width = encoder["cls_token"].shape[-1]
    encoder = {**encoder, **_table(file, "pos_embed", rows * columns, width)}
    tree: dict[str, Any] = {"encoder": encoder}
    if file.form.holds == "autoencoder":
        width = params["decoder"]["mask_token"].shape[-1]
        table = _table(file, "decoder_pos_embed", rows * columns, width)
        tree["decoder"] = {**params["decoder"], **table}
    if file.form.holds in ("teacher", "student", "both"):
        tree["head"] = _head_template(params["head"], file)
    fresh = ["optimiser"]
    for part, holder in (("decoder", tree), ("head", tree), ("norm", encoder)):
        if (part != "norm" and part not in params) or _has(file, tree, part):
            continue
        # Files of an encoder alone are meant to have neither decoder nor head.
        if part not in allowed and not (file.form.holds == "encoder" and part != "norm"):
            if part == "norm" and file.name_of("fc_norm.weight") in file.entries:
                raise InputError(
                    f"{file.path} has no norm: its layer norm is that of a classifier which pools "
                    "patches, fc_norm; use --format=mae-finetuned and leave --config out"
                )
            raise InputError(
                f"{file.path} has no {part}; --allow_missing={part} starts it fresh"
                + (" (all scales 1, all shifts 0)" if part == "norm" else "")
            )
        holder.pop(part, None)
        fresh.append(part)
    in_file = {*tree, *(("mask_embed",) if file.form.holds in ("student", "both") else ())}
    fresh += [name for name in params if name not in in_file | set(fresh)]
    fresh += ["centers"] if "class_center" in extra and file.form.holds != "both" else []
    if "head" not in tree or file.form.holds == "teacher":
        return tree, tuple(fresh)
    student = {**tree, "mask_embed": params["mask_embed"]}
    if file.form.holds == "student":
        return student, tuple(fresh)
    centers = {name: extra[name] for name in ("class_center", "patch_center")}
    return {"student": student, "teacher": tree, **centers}, tuple(fresh)


def _table(file: File, name: str, num_patches: int, width: int) -> dict[str, Any]:
    """{"positions"} that the file has to hold; {} where it leaves out those of MAE."""
    if file.name_of(name) not in file.entries:
        return {}
    return {"positions": names.abstract((1, 1 + num_patches, width))}


def _has(file: File, tree, part: str) -> bool:
    """Whether the file has any tensor of a part."""
    if part == "norm":
        return file.name_of("norm.weight") in file.entries
    if part not in tree:
        return False
    without = {name: inner for name, inner in tree.items() if name != part}
    of_part = names.write_names(tree, file.form.spell) - names.write_names(without, file.form.spell)
    prefix = "student.module." if file.form.holds == "both" else ""
    return any(prefix + name in file.entries for name in of_part)


def _head_template(head, file: File):
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


# The state that is made of it.


def state(config, method, tree, found: sizes.Sizes, file: File):
    """The state before the first step, with the file's values in place of initial ones."""
    tree = _placed(config, tree, found, file)
    # As pretrain.train draws it, so that what is fresh is what a fresh run has.
    init_key = jax.random.split(jax.random.key(config.seed), 3)[0]
    state = init_state(method, init_key)
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


def _placed(config, tree, found: sizes.Sizes, file: File):
    """The tree with parameters in the places where the run's model has them."""
    if "student" in tree:
        placed = {part: _placed(config, tree[part], found, file) for part in ("student", "teacher")}
        return {**tree, **placed}
    new = tuple(config.image_size)
    placed = dict(tree)
    if architecture.has_fixed_positions(config):
        for part, name in (("encoder", "pos_embed"), ("decoder", "decoder_pos_embed")):
            if "positions" in tree.get(part, ()):
                name = file.name_of(name)
                spacing = file.entries[name].spacing
                table = tree[part]["positions"]
                grid = patches.grid_shape(found.image_size, found.patch_size)
                first_axis = architecture.first_axis(config) if part == "encoder" else "column"
                wanted = patches.fixed_positions(grid, table.shape[-1], first_axis)
                label = with_article(METHODS[config.method].label)
                positions.check_fixed(table, wanted, grid, name, spacing, label)
                placed[part] = {k: v for k, v in tree[part].items() if k != "positions"}
    elif new != found.image_size:
        table = tree["encoder"]["positions"]
        table = positions.resized(table, found.image_size, new, found.patch_size)
        placed["encoder"] = {**tree["encoder"], "positions": table}
    if "head" in tree:
        placed["head"] = _placed_head(config.model, tree["head"], file)
    return placed


def _placed_head(model, head, file: File):
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
