"""Writes a run's weights in the formats of others."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dppmask_jax import pixel_format
from dppmask_jax.errors import InputError
from dppmask_jax.methods import supervised
from dppmask_jax.models.layers import NORM_EPSILON
from dppmask_jax.models.sizes import Size, name_of, size_of
from dppmask_jax.patches import grid_shape, sides, size_name
from dppmask_jax.runs import encoder_files
from dppmask_jax.runs import projection as projections
from dppmask_jax.runs.kinds import CLASSIFIER, ENCODER, kind_of, method_of
from dppmask_jax.runs.run import Run
from dppmask_jax.runs.workdir import from_json
from dppmask_jax.weights import architecture, card, files, names, positions


def export_weights(
    folder: str | Path,
    path: str | Path,
    format_name: str,
    resize_positions: tuple[int, int] | None = None,
    projection: str | Path | None = None,
) -> Path:
    """Writes the newest checkpoint of a run into a new file.

    Args:
      folder: the workdir of a pre-training run, or of a fine-tuning (its `seed-N` folder); or what
        else `load_run` takes.
      path: a file, .safetensors or .pth; for the formats of Hugging Face a folder, which receives
        model.safetensors, config.json, preprocessor_config.json and a model card, README.md.
      format_name: of `names.FORMATS`.
      resize_positions: (height, width) of images that the positions are interpolated for.
      projection: the file of one, such as soap.safetensors of task soap. It becomes the head, a
        linear layer without shift behind the final norm; for `PROJECTED` formats.

    Returns:
      `path`.

    Raises:
      InputError: the run has nothing of that format, or `path` is taken; the format has no place
        for a projection, or it belongs to another encoder, width or layer. Nothing was written.
    """
    path = Path(path)
    form = names.FORMATS[format_name]
    of_huggingface = format_name.startswith("hf")
    files.check_target(path, folder=of_huggingface)
    if projection is not None:
        _check_has_place(format_name)
    meta, state, step = encoder_files.newest(folder)
    config = from_json(meta["config"])
    tree, notes = _tree(folder, config, state, format_name), {}
    if projection is not None:
        run = Run(config, state["params"], state.get("extra", {}), step)
        projector = projections.read(projection, run, whose=str(folder))
        tree["head"] = _head_of(projector.matrix)
        notes = {"head": PROJECTED[format_name], "projection": projector.digest()}
    image_size, patch_size = tuple(config.image_size), config.model.patch_size
    if format_name not in _OBLONG and len(set(sides(patch_size))) > 1:
        raise InputError(
            f"--format={format_name} is for square patches, and those of {folder} are "
            f"{size_name(patch_size)}; use {' | '.join(_OBLONG)}"
        )
    if resize_positions and tuple(resize_positions) != image_size:
        tree = _resized(tree, config, tuple(resize_positions), format_name)
        image_size = tuple(resize_positions)
    rows, columns = grid_shape(image_size, patch_size)
    if format_name == "hf" and math.isqrt(rows * columns) ** 2 != rows * columns:
        raise InputError(
            f"{rows * columns} patches are no square number, and transformers' ViTMAE builds no "
            "decoder for others; use mae-full, or hf-encoder"
        )
    tensors = names.write(tree, form.spell, patch_size)
    if not of_huggingface:
        files.write(path, tensors, form.containers, notes)
        return path
    with_decoder = form.holds == "autoencoder"
    loader = "ViTMAEForPreTraining" if with_decoder else "ViTMAEModel"
    label = Run(config, state["params"], state.get("extra", {}), step).label
    results = encoder_files.results_of(folder)
    page = card.card(results, config, label, step, loader, image_size)
    _write_huggingface(path, tensors, config, image_size, with_decoder, page)
    return path


def _check_has_place(format_name: str) -> None:
    """Raises InputError unless a format has a linear layer that can be the projection."""
    if format_name not in PROJECTED:
        raise InputError(
            f"--format={format_name} has no place for a projection: {_NO_PLACE[format_name]}, and "
            "the scale and shift of the final norm are per channel, so no matrix folds into them; "
            f"use --format={' | '.join(PROJECTED)}, or load_encoder"
        )


def _head_of(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """A projection (D, D) as a linear layer; its shift is 0, as none is taken off the tokens."""
    return {"kernel": matrix, "bias": np.zeros(len(matrix), np.float32)}


def _write_huggingface(
    path: Path, tensors, config, image_size, with_decoder: bool, page: str
) -> None:
    """Makes the folder that `from_pretrained` reads, whole or not at all."""
    partial = path.absolute().with_name(f".{path.name}.part-{os.getpid()}")
    try:
        files.write(partial / "model.safetensors", tensors, ())
        for name, values in (
            ("config.json", _huggingface_config(config, image_size, with_decoder)),
            ("preprocessor_config.json", _huggingface_pixels(config, image_size)),
        ):
            (partial / name).write_text(json.dumps(values, indent=2) + "\n")
        (partial / "README.md").write_text(page)
        partial.rename(path.absolute())
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# Formats whose head can be a projection, and what it then is.
PROJECTED = {
    "timm": "a projection of patch tokens after the final norm; it is not for the class token"
}
# Why others have no place for one.
_NO_PLACE = {
    "mae": "its file ends with the norm, and MAE's code has a head for the class token or a norm "
    "after the mean",
    "mae-full": "the linear layer behind its norm takes the class token as well",
    "mae-finetuned": "its head was trained on tokens without one",
    "hf": "the linear layer behind its norm takes the class token as well",
    "hf-encoder": "ViTMAEModel ends with the norm",
    "ibot-teacher": "the head of iBOT takes the class token as well",
    "ibot-student": "the head of iBOT takes the class token as well",
    "ibot": "the head of iBOT takes the class token as well",
}
_OBLONG = ("mae", "mae-finetuned", "timm")  # formats that code with oblong patches reads
# The models of timm that are those of here, by the names in `SIZES`.
_TIMM = {
    "Ti": "vit_tiny_patch16_224",
    "S": "vit_small_patch16_224",
    "B": "vit_base_patch16_224",
    "L": "vit_large_patch16_224",
    "H": "vit_huge_patch14_224",
}


def loaded_by(
    folder: str | Path,
    path: str | Path,
    format_name: str,
    resize_positions: tuple[int, int] | None = None,
    projected: bool = False,
) -> str:
    """The Python that loads an exported file, "" where no other library does.

    Args:
      projected: whether its head is a projection. The model then gives the mean of the projected
        patch tokens, which is the projected mean as long as the norm comes before the mean.
      Others as of `export_weights`.
    """
    meta, state, _ = encoder_files.newest(folder)
    config = from_json(meta["config"])
    image_size = tuple(resize_positions or config.image_size)
    if format_name.startswith("hf"):
        name = "ViTMAEForPreTraining" if format_name == "hf" else "ViTMAEModel"
        return f"transformers.{name}.from_pretrained({str(path)!r})"
    if format_name not in ("timm", "mae-finetuned"):
        return ""
    size, patch_size = size_of(config.model), config.model.patch_size
    usual = name_of(config.model)
    name = _TIMM.get(usual, _TIMM["B"])
    arguments: dict[str, Any] = {"num_classes": 0}
    if format_name == "mae-finetuned":
        arguments = {"num_classes": len(state["params"]["head"]["bias"])}
        arguments |= {"global_pool": "avg"} if config.model.pool == "mean" else {}
    if projected:
        # With this pooling timm would have the norm after the mean.
        arguments = {"num_classes": size.width, "global_pool": "avg", "fc_norm": False}
    if image_size != (224, 224):
        arguments["img_size"] = image_size
    if f"patch{patch_size}_" not in name:
        arguments["patch_size"] = patch_size
    if usual not in _TIMM:
        arguments |= {"embed_dim": size.width, "depth": size.depth, "num_heads": size.heads}
    if size.hidden != 4 * size.width:
        arguments["mlp_ratio"] = _mlp_ratio(size)
    pixels = pixel_format.of(config)
    if pixels.channels != pixel_format.RGB_CHANNELS:
        arguments["in_chans"] = pixels.channels
    # timm's own expect pixels from -1 to 1.
    arguments["pretrained_cfg_overlay"] = {
        "input_size": (pixels.channels, *image_size), "mean": pixels.mean, "std": pixels.std
    }  # fmt: skip
    arguments["checkpoint_path"] = str(path)
    words = ", ".join(f"{argument}={value!r}" for argument, value in arguments.items())
    return f"timm.create_model({name!r}, {words})"


def _mlp_ratio(size: Size) -> float:
    """The ratio that timm makes this hidden width of, as int(width * ratio)."""
    ratio = size.hidden / size.width
    while int(size.width * ratio) < size.hidden:
        ratio = math.nextafter(ratio, math.inf)
    return ratio


def _tree(folder, config, state, format_name: str) -> dict[str, Any]:
    """What a format holds, out of a training state."""
    params, extra = state["params"], state.get("extra", {})
    kind, holds = kind_of(config), names.FORMATS[format_name].holds
    method = None if kind in (None, CLASSIFIER) else method_of(config)
    makers = {}
    if method is not None and method.encoder is not None:
        makers["encoder"] = lambda: {
            "encoder": method.encoder.trainable(method.encoder_of(params, extra))
        }
    makers |= {
        # Formats of one method alone.
        "mae": {"autoencoder": lambda: method.with_positions(params, {})[0]},
        "ibot": {
            "teacher": lambda: _network(config, extra["teacher"]),
            "student": lambda: _network(config, params),
            "both": lambda: {
                "student": _network(config, params),
                "teacher": _network(config, extra["teacher"]),
                "class_center": extra["class_center"],
                "patch_center": extra["patch_center"],
            },
        },
        CLASSIFIER: {
            "classifier": lambda: {
                "encoder": params["encoder"],
                **supervised.head_of(params),
            }
        },
    }.get(kind, {})
    if holds not in makers:
        fitting = [name for name, form in names.FORMATS.items() if form.holds in makers]
        of = kind or config.get("task")
        what = "an encoder alone" if kind == ENCODER else f"a run of {of}"
        raise InputError(
            f"{folder} is {what}, which --format={format_name} does "
            "not fit; " + (f"use {' | '.join(fitting)}" if fitting else "there is no format for it")
        )
    architecture.check_plain(str(folder), config, format_name)
    return makers[holds]()


def _network(config, network):
    """A student or teacher with both last layers and their scales, as iBOT's code has them."""

    def layer(params):
        prototypes = params["direction"].shape[-1]
        return {"scale": np.ones((1, prototypes), np.float32), **params}

    head = dict(network["head"])
    head["last_layer"] = layer(head["last_layer"])
    head["patch_last_layer"] = layer(head.get("patch_last_layer", head["last_layer"]))
    return {**network, "head": head}


def _resized(tree, config, image_size, format_name: str):
    if "decoder" in tree:
        raise InputError(
            f"--resize_positions is for encoders; --format={format_name} has a decoder as well, "
            "whose positions are those of one grid"
        )
    patch_size = config.model.patch_size
    try:
        grid_shape(image_size, patch_size)
    except ValueError as error:
        raise InputError(f"--resize_positions: {error}") from error
    if "student" in tree:
        both = {part: _resized(tree[part], config, image_size, format_name)
                for part in ("student", "teacher")}  # fmt: skip
        return {**tree, **both}
    table = positions.resized(
        tree["encoder"]["positions"], tuple(config.image_size), image_size, patch_size
    )
    return {**tree, "encoder": {**tree["encoder"], "positions": table}}


def _huggingface_pixels(config, image_size) -> dict[str, Any]:
    """preprocessor_config.json: how pixels become the model's input. It has no crop; images are
    squeezed to the size, unlike in evaluations here. Values beyond black and white are not cut."""
    pixels = pixel_format.of(config)
    black, white = pixels.range or (0.0, 255.0)
    shift = black / (white - black)
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": image_size[0], "width": image_size[1]},
        "resample": int(Image.Resampling.BICUBIC),
        "do_rescale": True,
        "rescale_factor": 1 / (white - black),
        "do_normalize": True,
        "image_mean": [float(value + shift) for value in pixels.mean],
        "image_std": [float(value) for value in pixels.std],
    }


def _huggingface_config(config, image_size, with_decoder: bool) -> dict[str, Any]:
    """config.json of transformers' ViTMAE."""
    size = size_of(config.model)
    width, depth, heads = size.width, size.depth, size.heads
    height, wide = image_size
    described = {
        "architectures": ["ViTMAEForPreTraining" if with_decoder else "ViTMAEModel"],
        "model_type": "vit_mae",
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": size.hidden,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": NORM_EPSILON,
        "image_size": height if height == wide else [height, wide],
        "patch_size": config.model.patch_size,
        "num_channels": pixel_format.of(config).channels,
        "qkv_bias": True,
        "torch_dtype": "float32",
        # An encoder alone sees whole images.
        "mask_ratio": config.mask.ratio if with_decoder else 0.0,
    }
    if with_decoder:
        model = config.model
        described |= {
            "decoder_hidden_size": model.decoder_width,
            "decoder_num_hidden_layers": model.decoder_depth,
            "decoder_num_attention_heads": model.decoder_heads,
            "decoder_intermediate_size": 4 * model.decoder_width,
            "norm_pix_loss": config.loss.norm_pix,
        }
    return described
