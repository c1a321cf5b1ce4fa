"""Imports published weights as a run, and exports a run's weights.

    dppmask weights import FILE --format=FORMAT --workdir=DIR
    dppmask weights export WORKDIR FILE --format=FORMAT [--projection=FILE]

FORMAT of a published encoder, which becomes a run that is an encoder alone: dino, dinov2, deit3,
moco-v3, ijepa, simmim, vit (transformers' ViTModel), timm; with --kind=encoder also mae and
hf-encoder.

FORMAT of a run to go on training: mae (encoder only), mae-full, mae-finetuned (a classifier with
its head), hf, hf-encoder (transformers' ViTMAE), timm (vit_*_patch16, with a --config),
ibot-teacher, ibot-student or ibot. FILE is .safetensors or .pth, or the index of its shards; for
formats of transformers a folder with them and config.json. What is imported is evaluated with
`dppmask eval`; `dppmask train` goes on training it, `dppmask eval` a classifier. Export with
--format=encoder makes a file that stands for a run of its encoder alone, with stablehlo or onnx a
program that runs without this package. See docs/weights.md.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from dppmask_jax import extras

if __name__ == "__main__":  # before what is missing is imported
    extras.require()

from absl import flags

from dppmask_jax import command
from dppmask_jax.errors import InputError

_USUAL = "python -m dppmask_jax.weights"
_CONFIG = command.define_config_flag(
    "config",
    "import: RECIPE[:key=value,...] of the run, its sizes apart; default: mae, ibot or "
    "eval:task=finetune, with dataset=imagenet1k and no images.",
)
_FORMAT = flags.DEFINE_string("format", None, "What FILE is; see above.")
_WORKDIR = flags.DEFINE_string("workdir", None, "import: the run to make.")
_KIND = flags.DEFINE_enum(
    "kind", None, ["encoder"], "import: what FILE becomes, where its format is of a method as well."
)
_IMAGE_SIZE = flags.DEFINE_list("image_size", [], "import: HEIGHT,WIDTH that FILE is for.")
_HEADS = flags.DEFINE_integer("heads", None, "import: of the encoder.", lower_bound=1)
_DECODER_HEADS = flags.DEFINE_integer("decoder_heads", None, "import: of it.", lower_bound=1)
_EPSILON = flags.DEFINE_float("layer_norm_eps", None, "import: instead of config.json's.")
_ALLOW_MISSING = flags.DEFINE_list(
    "allow_missing", [], "import: decoder, head or norm: starts fresh where FILE lacks it."
)
_DROP = flags.DEFINE_list("drop", [], "import: leave heads aside whose names start so.")
_STRIP = flags.DEFINE_string(
    "strip_prefix", "", "import: take the tensors whose names start so, without it; no others."
)
_RESIZE = flags.DEFINE_list(
    "resize_positions", [], "HEIGHT,WIDTH of images that positions are interpolated for."
)
_MEAN = flags.DEFINE_list("mean", [], "import: R,G,B that FILE's model wants taken from pixels.")
_STD = flags.DEFINE_list("std", [], "import: R,G,B that it then wants pixels divided by.")
_OF_METHODS = ("mae", "hf-encoder", "timm")  # formats that a run of a method is made of, too
_PROJECTION = flags.DEFINE_string(
    "projection", None, "export: soap.safetensors of task soap; it becomes the head."
)
_PRECISION = flags.DEFINE_enum(
    "precision", "float32", ["float32", "float16"], "export, format encoder: of its numbers."
)
_FILE = "encoder"  # the format of `runs.encoder_files`
_PROGRAMS = ("stablehlo", "onnx")  # those of `programs`
_PLACEHOLDER = "--config.data.source=folder:PATH"


def main(argv):
    from dppmask_jax.weights import names
    from dppmask_jax.weights.families import FAMILIES, REFUSED

    usage = "import FILE --format=… --workdir=DIR, or export WORKDIR FILE --format=…"
    words = argv[1:]
    if not words or words[0] not in ("import", "export"):
        raise InputError(f"say {usage}")
    if len(words) != (2 if words[0] == "import" else 3):
        raise InputError(f"{words[0]} takes other arguments: {usage}")
    if _FORMAT.value in REFUSED:
        raise InputError(f"--format={_FORMAT.value}: {REFUSED[_FORMAT.value]}")
    if words[0] == "import" and _FORMAT.value == _FILE:
        raise InputError(
            f"--format={_FILE} needs no import: name {words[1]} as the run, as in --checkpoint="
        )
    only_out = [_FILE, *_PROGRAMS]
    allowed = [*names.FORMATS, *(FAMILIES if words[0] == "import" else only_out)]
    if _FORMAT.value not in allowed:
        allowed = dict.fromkeys(allowed)  # some are of both
        raise InputError(f"--format={_FORMAT.value or ''} is not allowed: {' | '.join(allowed)}")
    if _PRECISION.present and _FORMAT.value != _FILE:
        raise InputError(f"--precision is for export with --format={_FILE}; others are float32")
    if words[0] == "import" and _as_encoder(_FORMAT.value, _KIND.value, sys.orig_argv):
        _import_encoder(words[1])
    elif words[0] == "import":
        _import(words[1])
    elif _FORMAT.value == _FILE:
        _export_encoder(*words[1:])
    elif _FORMAT.value in _PROGRAMS:
        _export_program(*words[1:])
    else:
        _export(*words[1:])


def _import(path: str) -> None:
    from dppmask_jax.models.sizes import name_of
    from dppmask_jax.patches import size_name
    from dppmask_jax.weights.importing import import_weights

    options = _options()
    config, base = _CONFIG.value, _option("config", sys.argv)
    if not _option("config", sys.orig_argv) and "data.source" not in options.asked:
        config.data.source = ""  # no --config chose the images
    made = import_weights(path, _FORMAT.value, _WORKDIR.value, config, options)
    new, (height, width) = made.config, made.config.image_size
    what = f"classifier of {made.classes:,} classes," if made.classes else new.method
    lines = [
        f"run         {_WORKDIR.value}: {what} {name_of(new.model)}/"
        f"{size_name(new.model.patch_size)}, {height}x{width} px, step 0",
        f"fresh       {', '.join(made.fresh)}",
    ]
    lines += [f"prefix      {made.prefix} taken off all names"] if made.prefix else []
    lines += [f"left aside  {', '.join(made.left_aside)}"] if made.left_aside else []
    if made.classes:
        lines += _classifier_commands(base, config, new)
    else:
        lines += _pretraining_commands(base, config, new)
    if any(_PLACEHOLDER in line for line in lines):
        lines.append("            PATH stands for a folder of your images")
    print("\n".join(lines), flush=True)


def _import_encoder(path: str) -> None:
    """Imports an encoder that is a run of no method."""
    from dppmask_jax.models.encoders import name_of
    from dppmask_jax.weights.importing import import_weights

    options = _options()
    made = import_weights(path, _FORMAT.value, _WORKDIR.value, None, options)
    height, width = made.config.image_size
    evaluate = ["dppmask", "eval", "--config=eval:task=knn", _PLACEHOLDER,
                f"--checkpoint={_WORKDIR.value}"]  # fmt: skip
    lines = [
        f"run         {_WORKDIR.value}: {made.config.label}, an encoder alone, "
        f"{name_of(made.config.model)}, {height}x{width} px",
        f"options     {_described(made.config.model.options)}",
    ]
    lines += [f"fresh       {', '.join(made.fresh)}"] if made.fresh else []
    lines += [f"prefix      {made.prefix} taken off all names"] if made.prefix else []
    lines += [f"left aside  {', '.join(made.left_aside)}"] if made.left_aside else []
    lines += [f"evaluate    {shlex.join(evaluate)}"]
    if dict(made.config.model.options) == {"position": "learned"}:
        lines += [f"pre-train   {shlex.join(_ibot_command(made.config))}"]
    lines += ["            PATH stands for a folder of your images"]
    print("\n".join(lines), flush=True)


def _described(options) -> str:
    """What an encoder has that a plain one has not, in words."""
    words = {
        "registers": "{} registers",
        "relative": "relative positions ({})",
        "layer_scale": "layer scale",
        "qv_bias": "biases of queries and values alone",
        "class_token": "no class token",
        "class_position": "no position of the class token",
        "mlp": "MLPs: {}",
        "position": "{} positions",
    }
    return ", ".join(words[name].format(value) for name, value in sorted(options.items()))


def _options():
    """What the flags of an import say."""
    from dppmask_jax.weights.importing import Options
    from dppmask_jax.weights.sizes import Known

    if _PROJECTION.present:
        raise InputError(
            "--projection is for export; a run is used with one by load_encoder and eval"
        )
    if not _WORKDIR.value:
        raise InputError("--workdir is missing: name a folder for the run, such as runs/mine")
    known = Known(
        _numbers(_IMAGE_SIZE, 2, int) or None, _HEADS.value, _DECODER_HEADS.value, _EPSILON.value
    )
    return Options(
        known,
        tuple(_ALLOW_MISSING.value),
        tuple(_DROP.value),
        _STRIP.value,
        _asked(),
        _numbers(_RESIZE, 2, int) or None,
        _numbers(_MEAN, 3, float) or None,
        _numbers(_STD, 3, float) or None,
    )


def _export(folder: str, path: str) -> None:
    from dppmask_jax.weights.exporting import PROJECTED, export_weights, loaded_by

    _check_export()
    resize = _numbers(_RESIZE, 2, int) or None
    projection = _PROJECTION.value
    lines = [str(export_weights(folder, path, _FORMAT.value, resize, projection))]
    lines.append(loaded_by(folder, path, _FORMAT.value, resize, projected=bool(projection)))
    if projection:
        lines += [
            f"its head is {PROJECTED[_FORMAT.value]}",
            "model(images) is the mean of the projected patch tokens, and they themselves are",
            "model.head(model.forward_features(images)[:, 1:])",
        ]
    print("\n".join(line for line in lines if line), flush=True)


def _export_encoder(folder: str, path: str) -> None:
    """Writes the encoder of a run into a file that stands for a run."""
    from dppmask_jax.runs import encoder_files
    from dppmask_jax.runs.run import load_run
    from dppmask_jax.weights import files

    _check_export()
    if given := [flag.name for flag in (_RESIZE, _PROJECTION) if flag.present]:
        raise InputError(
            f"--{given[0]} does not go with --format={_FILE}: load_encoder and `dppmask eval` take "
            "a size and a projection beside the file"
        )
    target = Path(path)
    if target.suffix != encoder_files.SUFFIX:  # before what another file would need is asked for
        raise InputError(f"{path}: --format={_FILE} is a {encoder_files.SUFFIX} file; name one")
    files.check_target(target, folder=False)
    run = load_run(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    encoder_files.write(target, run, _PRECISION.value)
    print(f"{path}\ndppmask_jax.load_encoder({path!r})", flush=True)


def _export_program(folder: str, path: str) -> None:
    """Writes the encoder of a run as a program, see `programs`."""
    from dppmask_jax.weights import programs

    _check_export()
    size = _numbers(_RESIZE, 2, int) or None
    print(programs.export_program(folder, path, _FORMAT.value, size, _PROJECTION.value), flush=True)


def _check_export() -> None:
    """Raises InputError where a flag is given that says nothing to an export."""
    only_import = [
        flag.name
        for flag in (_WORKDIR, _IMAGE_SIZE, _HEADS, _DECODER_HEADS, _EPSILON, _ALLOW_MISSING, _DROP,
                     _STRIP, _MEAN, _STD, _CONFIG, _KIND)
        if flag.present
    ]  # fmt: skip
    if only_import:
        raise InputError(f"--{only_import[0]} is for import; export takes its sizes from the run")


def _numbers(flag, count: int, kind) -> tuple:
    """The numbers of a flag, () where it is not given."""
    try:
        numbers = tuple(kind(value) for value in flag.value)
    except ValueError:
        numbers = (-1,)
    if numbers and (len(numbers) != count or not all(0 <= number < 2**16 for number in numbers)):
        what = "whole numbers" if kind is int else "numbers"
        given = ",".join(flag.value)
        raise InputError(f"--{flag.name}={given} is not {count} {what} with commas between")
    return numbers


def _classifier_commands(base: str, old, new) -> list[str]:
    """What can be done with an imported classifier."""
    words = ["dppmask", "eval", f"--config={base}"]
    words += [word for word in sys.argv if word.startswith("--config.")]
    if new.model.pool != old.model.pool:
        words.append(f"--config.model.pool={new.model.pool}")
    if not new.data.source:
        words.append(_PLACEHOLDER)
    words.append(f"--checkpoint={_WORKDIR.value}")
    return [
        f"as it is    {shlex.join([*words, '--config.epochs=0'])}",
        f"go on       {shlex.join(words)}",
        f"pre-train   {shlex.join(_ibot_command(new))}",
    ]


def _ibot_command(new) -> list[str]:
    """The command that pre-trains an iBOT from the encoder of an imported run."""
    from dppmask_jax.recipes import ibot
    from dppmask_jax.weights.pretraining import local_size

    model = new.model
    recipe = ibot.get_config("dataset=imagenet1k")
    recipe.model.patch_size, recipe.image_size = model.patch_size, tuple(new.image_size)
    return [
        "dppmask", "train", f"--config=ibot:dataset=imagenet1k,size={model.size}",
        *(f"--config.model.{part}={model[part]}" for part in ("width", "depth", "heads", "mlp")
          if model.get(part) is not None),
        f"--config.model.patch_size={model.patch_size}",
        f"--config.image_size={tuple(new.image_size)}",
        f"--config.data.local_size={local_size(recipe)}", f"--config.init_from={_WORKDIR.value}",
        _PLACEHOLDER if not new.data.source else f"--config.data.source={new.data.source}",
        "--workdir=RUN",
    ]  # fmt: skip


def _pretraining_commands(base: str, old, new) -> list[str]:
    """What can be done with an imported pre-training run."""
    from dppmask_jax.fields import flatten

    images = [] if _has_images(new) else [_PLACEHOLDER]
    evaluate = ["dppmask", "eval", "--config=eval:task=knn", *images,
                f"--checkpoint={_WORKDIR.value}"]  # fmt: skip
    before = flatten(old)
    train = ["dppmask", "train", f"--config={base}"]
    # What was typed here is in the config before.
    train += [word for word in sys.argv if word.startswith("--config.")]
    train += [
        f"--config.{field}={value}" for field, value in flatten(new).items()
        if value != before[field]
    ]  # fmt: skip
    train += [*images, f"--workdir={_WORKDIR.value}"]
    return [f"evaluate    {shlex.join(evaluate)}", f"go on       {shlex.join(train)}"]


def _has_images(config) -> bool:
    """Whether the images of a config are there."""
    from dppmask_jax.runs.run import open_data

    if not config.data.source:
        return False
    try:
        open_data(config)
    except InputError:
        return False
    return True


def _asked() -> frozenset[str]:
    """The fields of the config that the command names."""
    given = (word.partition("=")[0] for word in sys.argv)
    return frozenset(
        word.removeprefix("--config.") for word in given if word.startswith("--config.")
    )


def _underscored(word: str) -> str:
    """--allow-missing=decoder as --allow_missing=decoder; what is no flag stays."""
    name, separator, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + separator + value if name[:2] == "--" else word


def _with_default_config(words: list[str]) -> list[str]:
    """The words of an import with a --config among them, so that --config.FIELD has what to
    change."""
    if "import" not in words or _option("config", words):
        return words
    if _as_encoder(_option("format", words), _option("kind", words), words):
        return words
    return [f"--config={_default_config(_option('format', words))}", *words]


def _as_encoder(format_name: str, kind: str | None, words: list[str]) -> bool:
    """Whether an import makes an encoder alone.

    Raises:
      InputError: it should, and the format or a --config says otherwise.
    """
    from dppmask_jax.weights.families import FAMILIES

    of_config = next((word for word in words if word.startswith(("--config=", "--config."))), "")
    only_here = format_name in FAMILIES and format_name not in _OF_METHODS
    if kind and format_name not in FAMILIES:
        raise InputError(
            f"--kind={kind} does not go with --format={format_name}: {' | '.join(FAMILIES)}"
        )
    if (kind or only_here) and of_config:
        raise InputError(
            f"{of_config.partition('=')[0]}: --format={format_name} makes an encoder alone, whose "
            "config is the file's; leave it out"
        )
    return bool(kind) or only_here or (format_name == "timm" and not of_config)


def _default_config(format_name: str) -> str:
    if format_name == "mae-finetuned":
        return "eval:task=finetune,dataset=imagenet1k"
    method = "ibot" if format_name.startswith("ibot") else "mae"
    return f"{method}:dataset=imagenet1k"


def _option(name: str, words: list[str]) -> str:
    """The value of a flag among words, "" where it is not given."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, separator, value = word.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            return value if separator else following
    return ""


def run() -> None:
    """Imports or exports as the command line says."""
    try:
        sys.argv[1:] = _with_default_config([_underscored(word) for word in sys.argv[1:]])
    except InputError as error:
        command.fail(error)
    command.run(main, _USUAL, __doc__, None)


if __name__ == "__main__":
    run()
