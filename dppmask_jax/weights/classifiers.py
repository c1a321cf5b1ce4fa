"""A file's model as a fine-tuned classifier, which `eval.py` tests and goes on training."""

from __future__ import annotations

import jax

from dppmask_jax import patches
from dppmask_jax.errors import InputError
from dppmask_jax.methods import supervised
from dppmask_jax.methods.base import Method, Plan
from dppmask_jax.models.sizes import set_size
from dppmask_jax.tasks import checks
from dppmask_jax.weights import names, positions, sizes
from dppmask_jax.weights.opened import File, Options


def check(config, form: names.Format, format_name: str, options: Options) -> None:
    """Raises InputError unless a config and a format go together."""
    if config.task != "finetune":
        raise InputError(
            f"--config is one for task={config.task}; a classifier takes "
            "eval:task=finetune, other runs mae or ibot"
        )
    if form.holds != "classifier":
        raise InputError(
            f"--format={format_name} has no classifier, which --config is for; use mae-finetuned, "
            "or --config=mae or --config=ibot"
        )
    if options.allow_missing:
        raise InputError(
            f"--allow_missing={','.join(options.allow_missing)}: a classifier has nothing that may "
            "be missing"
        )
    checks.check(config)


def adapted(config, found: sizes.Sizes, file: File, options: Options):
    """The config with a file's sizes: what a fine-tuning keeps in its checkpoints."""
    image_size = options.resize_positions or found.image_size
    try:
        patches.grid_shape(image_size, found.patch_size)
    except ValueError as error:
        raise InputError(f"--resize_positions: {error}") from error
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.image_size = image_size
        config.model.encoder = "vit"
        set_size(config.model, found.size)
        with config.model.ignore_type():  # a number or a pair
            config.model.patch_size = found.patch_size
        config.model.dtype = config.model.dtype or "float32"
        for pool, norm in (("mean", "fc_norm"), ("cls", "norm")):
            if file.name_of(f"{norm}.weight") in file.entries:
                config.model.pool = pool
                break
    return config


def method_of(config, found: sizes.Sizes) -> Method:
    """The fine-tuning of an adapted config."""
    if not found.classes:
        raise InputError(
            "the file has no classes (no head.weight, or an empty one); use another --format"
        )
    return supervised.finetune(config, Plan(1, 1), num_outputs=found.classes, several=False)


def template(method: Method, found: sizes.Sizes, file: File, config, allowed: tuple[str, ...]):
    """(tree of shapes that the file has to hold, the parts of the run that start fresh)."""
    params, _ = jax.eval_shape(method.init, jax.random.key(0))
    rows, columns = patches.grid_shape(found.image_size, found.patch_size)
    width = params["encoder"]["cls_token"].shape[-1]
    table = names.abstract((1, 1 + rows * columns, width))
    return {**params, "encoder": {**params["encoder"], "positions": table}}, ("optimiser",)


def state(config, method: Method, tree, found: sizes.Sizes, file: File):
    """{"params", "extra"}: a training that starts from them makes its own optimiser."""
    encoder, new = tree["encoder"], tuple(config.image_size)
    if new != found.image_size:
        table = positions.resized(encoder["positions"], found.image_size, new, found.patch_size)
        encoder = {**encoder, "positions": table}
    return {"params": {**tree, "encoder": encoder}, "extra": {}}
