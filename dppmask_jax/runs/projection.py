"""A linear map of patch tokens in a file, and which encoder and layer it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from dppmask_jax import whole_files
from dppmask_jax.errors import InputError

if TYPE_CHECKING:
    from dppmask_jax.runs.run import Run

_FORMAT = "dppmask_jax projection"
_ASYMMETRY = 1e-4  # of entries that differ by rounding alone


class Projection(NamedTuple):
    """Attributes:
    matrix: (D, D) float32; tokens @ matrix are the projected tokens.
    path: of the file.
    arrays: all that is in the file by name, "projector" among it.
    """

    matrix: np.ndarray
    path: Path
    arrays: Mapping[str, np.ndarray]

    def digest(self) -> str:
        """Tells the matrix from any other."""
        return hashlib.sha256(np.ascontiguousarray(self.matrix).tobytes()).hexdigest()[:16]


def write(path: str | Path, *, arrays: Mapping[str, np.ndarray], layer: int, run: Run) -> None:
    """Writes a safetensors file whole; its folder is made where it is missing.

    Args:
      arrays: "projector" (D, D) symmetric, and what else is worth keeping; written as float32.
      layer: where the tokens were taken: l is the output of block l, the last is after the final
        norm.
      run: whose encoder they are of.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "format": _FORMAT,
        "encoder": fingerprint(run),
        "layer": str(layer),
        "run": f"{run.kind}, step {run.step}",
    }
    arrays = {name: np.ascontiguousarray(a, np.float32) for name, a in arrays.items()}
    with whole_files.replacing(path) as partial:
        safetensors.numpy.save_file(arrays, partial, metadata)


def read(
    path: str | Path, run: Run, layer: int | None = None, whose: str = "this run"
) -> Projection:
    """Reads what `write` wrote for the encoder of a run.

    Args:
      layer: that it has to belong to; None is the last, after the final norm.
      whose: names the run in errors.

    Raises:
      InputError: there is no such file, it is damaged or something else, or it belongs to another
        encoder or layer.
    """
    path, encoder = Path(path), run.method.encoder
    layer = encoder.depth if layer is None else layer
    if not path.is_file():
        raise InputError(f"there is no projection {path}; task soap writes one, soap.safetensors")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in list(file.keys())}
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is no whole safetensors file ({error}); fit it again") from error
    if metadata.get("format") != _FORMAT or "projector" not in arrays:
        raise InputError(f"{path} is no projection; task soap writes one, soap.safetensors")
    matrix = arrays["projector"]
    if because := _no_projector_because(matrix):
        raise InputError(f"{path} holds no projector: {because}; fit it again: task soap")
    if matrix.shape != (encoder.width, encoder.width):
        raise InputError(
            f"{path} projects tokens of width {matrix.shape[0]}, and those of {whose}, "
            f"{run.name} run, have {encoder.width}; fit one for it: task soap"
        )
    if metadata.get("layer") != str(layer):
        raise InputError(
            f"{path} was fitted to layer {metadata.get('layer')}, and layer {layer} is asked for; "
            "fit one for it: task soap"
        )
    if metadata.get("encoder") != fingerprint(run):
        raise InputError(
            f"{path} was fitted to another encoder ({metadata.get('run')}) than that of {whose} "
            f"({run.kind}, step {run.step}); fit one for it: task soap"
        )
    return Projection(matrix, path, arrays)


def _no_projector_because(matrix: np.ndarray) -> str:
    """Why an array is no symmetric map of finite numbers, in words; "" where it is."""
    if matrix.dtype != np.float32:
        return f"its numbers are {matrix.dtype}, not float32"
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        return f"its shape is {matrix.shape}, not (D, D)"
    if not np.isfinite(matrix).all():
        return "some of its numbers are not finite"
    if np.abs(matrix - matrix.T).max(initial=0) > _ASYMMETRY:
        return "it is not symmetric"
    return ""


def fingerprint(run: Run) -> str:
    """Of the parameters of a run's encoder, but for positions: these change with the image size."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(run.encoder):
        if getattr(path[-1], "key", None) != "positions":
            leaf = np.asarray(leaf)
            found.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
            found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()
