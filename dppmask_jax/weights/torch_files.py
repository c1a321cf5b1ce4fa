"""Reads files that PyTorch saved without running what stands in them.

`torch.load(weights_only=True)` makes tensors and plain containers. Allowed besides are the
arguments of a training, an `argparse.Namespace`, and NumPy's numbers: both are data. Every other
pickled object is refused.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dppmask_jax.errors import InputError

_MISSING = "PyTorch is not installed: pip install 'dppmask-jax[torch]', or use a .safetensors file"
# Where trainings keep a model in what they save; the first that is there counts.
_CONTAINERS = ("state_dict", "model", "model_state_dict", "model_state", "module", "net", "network")
_DEEPEST = 8  # dicts in dicts; a pickle can hold one within itself


class Entry(NamedTuple):
    """A tensor of a file, not yet read.

    Attributes:
      shape: of it.
      spacing: between the numbers of its own type at 1; None where it holds no floats.
      load: gives it as float32.
    """

    shape: tuple[int, ...]
    spacing: float | None
    load: Callable[[], np.ndarray]


def torch():
    """The module.

    Raises:
      InputError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(_MISSING) from error
    return torch


def entries(
    path: Path, containers: tuple[str, ...], prefix: str
) -> tuple[dict[str, Entry], list[str]]:
    """({name: Entry}, what else the file holds); see `files.opened`."""
    tensors, beside = _tensors_of(path, _load(path), containers, prefix)
    return {name: _entry(path, name, tensor) for name, tensor in tensors.items()}, beside


def _load(path: Path) -> Any:
    torch_module = torch()
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(m.compress_type != zipfile.ZIP_STORED for m in archive.infolist())
        if packed:  # PyTorch never compresses; a small file could unpack to any size
            raise InputError(f"{path} is a compressed archive, not a file that PyTorch saved")
        with torch_module.serialization.safe_globals(_harmless()):
            return torch_module.load(path, map_location="cpu", weights_only=True, mmap=True)
    except InputError:
        raise
    except Exception as error:  # a hostile file can make the reader fail in any way
        # PyTorch's message ends with advice on how to run the pickle.
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {asked[1]}" if asked else str(error).split("\n")[0].split(". ")[0]
        raise InputError(
            f"{path} is refused: torch.load(weights_only=True) cannot read it "
            f"({type(error).__name__}: {reason}); nothing of it was run. If you trust it, save its "
            "tensors alone, as safetensors, where it came from"
        ) from error


def _harmless() -> list:
    """What a file may hold beside tensors: a Namespace, and NumPy's numbers by the two names that
    NumPy 1 and 2 give to what makes them."""
    types = [np.dtype(kind) for kind in (*np.typecodes["AllInteger"], *"efd?")]
    scalar = np.float64(0).__reduce__()[0]
    return [
        argparse.Namespace,
        np.dtype,
        *{type(kind) for kind in types},
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
    ]


def _tensors_of(path, saved, containers, prefix: str) -> tuple[dict[str, Any], list[str]]:
    """The tensors of the dict that holds them, and what else there is."""
    if not isinstance(saved, dict):
        raise InputError(f"{path} holds a {type(saved).__name__}, not a dict of tensors")
    if not containers:
        found = _flattened(saved)
        kept = {name.split(".")[0] for name in found}
        return found, [str(key) for key in saved if str(key) not in kept]
    beside: list[str] = []
    taken = ""  # the part of the prefix that is keys
    for _ in range(_DEEPEST):
        if any(_is_tensor(value) for value in saved.values()):
            break
        inner = [key for key, value in saved.items() if _holds(value, _is_tensor_called, set())]
        rest = prefix.removeprefix(taken)
        asked = [key for key in inner if f"{rest}.".startswith(f"{key}.")]
        key = next(iter(asked), None) or _container(saved, inner, containers)
        if key is None:
            raise InputError(
                f"{path} has its tensors under none of the keys {', '.join(containers)}; it has "
                f"{', '.join(map(str, saved))}"
                + (f"; add --strip_prefix={taken}{inner[0]} or another of them" if inner else "")
            )
        beside += [str(other) for other in saved if other != key]
        taken += f"{key}." if asked else ""
        saved = saved[key]
    else:
        raise InputError(f"{path} holds dicts in dicts, more than {_DEEPEST} deep; no model is so")
    strange = [str(name) for name, value in saved.items() if not _is_tensor(value)]
    if strange:
        raise InputError(f"{path}: not tensors: {', '.join(strange)}")
    return {f"{taken}{name}": tensor for name, tensor in saved.items()}, beside


def _container(saved, keys: Sequence, containers: tuple[str, ...]):
    """The key of the dict to look into; None where nothing says which."""
    known = [key for key in (*containers, *_CONTAINERS) if key in keys]
    if known:
        return known[0]
    of_models = [key for key in keys if _holds(saved[key], _is_class_token, set())]
    return of_models[0] if len(of_models) == 1 else keys[0] if len(keys) == 1 else None


def _holds(value, wanted: Callable[[Any, Any], bool], seen: set[int]) -> bool:
    """Whether a dict, or one within it that was not seen, holds what is wanted of key and value."""
    if not isinstance(value, dict) or id(value) in seen:
        return False
    seen.add(id(value))
    return any(wanted(key, inner) or _holds(inner, wanted, seen) for key, inner in value.items())


def _is_tensor_called(name, value) -> bool:
    return _is_tensor(value)


def _is_class_token(name, value) -> bool:
    return str(name).endswith("cls_token") and _is_tensor(value)


def _is_tensor(value) -> bool:
    return isinstance(value, torch().Tensor)


def _flattened(saved) -> dict[str, Any]:
    """The tensors of the dicts in a dict of which all values are tensors of floats."""
    return {
        f"{key}.{name}": tensor
        for key, inner in saved.items()
        if isinstance(inner, dict) and inner
        if all(_is_tensor(value) and _spacing(value) for value in inner.values())
        for name, tensor in inner.items()
    }


def _spacing(tensor) -> float | None:
    floats = (torch().float64, torch().float32, torch().float16, torch().bfloat16)
    return float(torch().finfo(tensor.dtype).eps) if tensor.dtype in floats else None


def _entry(path, name: str, tensor) -> Entry:
    # With strides of 0 a tensor repeats few values without end.
    if (
        tensor.layout != torch().strided
        or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
    ):
        raise InputError(f"{path} is refused: {name} claims more values than the file holds")
    return Entry(
        tuple(tensor.shape),
        _spacing(tensor),
        lambda: np.ascontiguousarray(tensor.detach().float().numpy()),
    )
