"""An encoder alone in one file: its parameters, and in the file's metadata what made them.

The zoo is a folder of the package with such files, NAME.safetensors, a card, NAME.md, beside each;
"zoo:NAME" names one wherever a run is named.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from dppmask_jax import pixel_format, whole_files
from dppmask_jax.data.sources import opening
from dppmask_jax.data.sources.classes import IMAGENET100
from dppmask_jax.errors import InputError
from dppmask_jax.fields import flatten
from dppmask_jax.models.sizes import size_of
from dppmask_jax.runs import checkpoint, workdir
from dppmask_jax.runs.kinds import ENCODER, encoder_config, encoder_options, method_of

if TYPE_CHECKING:
    from dppmask_jax.runs.run import Run

ZOO = Path(__file__).parents[1] / "weights" / "zoo"
SUFFIX = ".safetensors"
PRECISIONS = ("float32", "float16")
_PREFIX = "zoo:"
_ABOUT = "dppmask_jax encoder"  # in the metadata: what made the file


def names() -> list[str]:
    """What the zoo has, in alphabetical order."""
    return sorted(path.stem for path in ZOO.glob(f"*{SUFFIX}"))


def is_one(where: str | Path) -> bool:
    """Whether a path, or "zoo:NAME", is that of a file of an encoder rather than of a run's folder,
    be it there or not."""
    path = Path(where)
    return str(where).startswith(_PREFIX) or (path.suffix == SUFFIX and not path.is_dir())


def results_of(where: str | Path) -> Path:
    """The folder for what is found of an encoder, unless another is named: that of a run itself;
    beside a file the folder of its name; runs/zoo/NAME of one of the zoo."""
    if str(where).startswith(_PREFIX):
        return Path("runs", "zoo", str(where).removeprefix(_PREFIX))
    return Path(where).with_suffix("") if is_one(where) else Path(where)


def write(path: str | Path, run: Run, precision: str = "float32") -> None:
    """Writes the encoder of a run into a safetensors file, whole.

    The file says what the run was trained on, unless that is a folder or file of this machine.

    Args:
      precision: of PRECISIONS; float16 rounds parameters, and the file takes half the space.

    Raises:
      InputError: the run trains no encoder, or one that is no ViT; or parameters are too large for
        float16.
    """
    run.check_encodes()
    model = run.config.model
    if (kind := model.get("encoder", "vit")) != "vit":
        raise InputError(f"a run with an encoder {kind!r} was named, and these files are of ViTs")
    config = encoder_config(
        size_of(model),
        run.image_size,
        model.patch_size,
        encoder_options(run.config),
        label=run.label,
        knn_feature=run.knn_feature,
        dtype=model.dtype,
    )
    config.update_from_flattened_dict(_of_images(run.config))
    about = {
        "config": workdir.to_json(config),
        "step": run.step,
        "data_identity": run.data_identity,
        "history": run.history,
    }
    with np.errstate(over="ignore"):  # refused below
        arrays = {
            name: np.ascontiguousarray(array, precision)
            for name, array in traverse_util.flatten_dict(run.encoder, sep=".").items()
        }
    if large := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise InputError(f"{large[0]} has numbers that {precision} has not; write float32")
    with whole_files.replacing(Path(path)) as partial:
        # One key alone: safetensors writes several in any order.
        partial.write_bytes(safetensors.numpy.save(arrays, {_ABOUT: json.dumps(about)}))


def _of_images(config) -> dict[str, Any]:
    """What images an encoder takes, and where such are, unless that is a path; fields by name."""
    kept = flatten(config)
    named = ("data.source", "data.classes", "data.val_fraction")
    kind = str(kept.get("data.source", "")).partition(":")[0]
    here = kind in opening.OF_PATHS or kept.get("data.classes") not in ("", None, IMAGENET100)
    wanted = [*pixel_format.FIELDS, *([] if here else named)]
    return {name: kept[name] for name in wanted if name in kept}


def read(where: str | Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    """What `write` wrote, as `checkpoint.read_newest` gives a run: (meta, state, step).

    Args:
      where: the path of the file, or "zoo:NAME".

    Raises:
      InputError: there is no such file, it is damaged or something else.
    """
    path = _path_of(where)
    if not path.is_file():
        raise InputError(f"there is no file {path}; name a file of an encoder, or zoo:NAME")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in list(file.keys())}
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is no whole safetensors file ({error}); fetch it again"
        ) from error
    if _ABOUT not in metadata:
        raise InputError(
            f"{path} is no encoder that was exported here; of published weights "
            f"`dppmask weights import {path} --format=… --workdir=…` makes a run"
        )
    about = _about(path, metadata[_ABOUT])
    _check_whole(path, arrays, workdir.from_json(about["config"]))
    encoder = traverse_util.unflatten_dict(
        {name: np.asarray(array, np.float32) for name, array in arrays.items()}, sep="."
    )
    return about, {"params": {"encoder": encoder}, "extra": {}}, about["step"]


def newest(where: str | Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    """`read` of a file, `checkpoint.read_newest` of the folder of a run."""
    return read(where) if is_one(where) else checkpoint.read_newest(where)


def _about(path: Path, text: str) -> dict[str, Any]:
    """What `write` says beside the parameters."""
    try:
        about = json.loads(text)
        if about["config"]["method"] == ENCODER and about["step"] >= 0:
            return about
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{path} is damaged: it does not say what made it; fetch it again")


def _check_whole(path: Path, arrays: dict[str, np.ndarray], config) -> None:
    """Raises InputError unless a file has the parameters that its config is of."""
    params, _ = jax.eval_shape(method_of(config).init, jax.random.key(0))
    wanted = traverse_util.flatten_dict(params["encoder"], sep=".")
    shapes = {name: leaf.shape for name, leaf in wanted.items()}
    found = {name: array.shape for name, array in arrays.items()}
    if differ := sorted(name for name, _ in shapes.items() ^ found.items()):
        name = differ[0]
        raise InputError(
            f"{path} is damaged: {name} is {found.get(name, 'missing')}, and its config wants "
            f"{shapes.get(name, 'none')}; fetch it again"
        )


def _path_of(where: str | Path) -> Path:
    if not str(where).startswith(_PREFIX):
        return Path(where)
    name, known = str(where).removeprefix(_PREFIX), names()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise InputError(
            f"{where}: the zoo has no such encoder{f' (did you mean {near[0]}?)' if near else ''}; "
            f"it has {', '.join(known)}"
        )
    return ZOO / f"{name}{SUFFIX}"
