"""Reads and writes files of named tensors without running anything that stands in them.

safetensors needs no PyTorch. A .pth or .bin file is read by PyTorch with `weights_only=True`, which
makes tensors and plain containers and refuses every other pickled object.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from dppmask_jax.errors import InputError

_FLOATS = {"F64", "F32", "F16", "BF16"}
_LARGEST_CONFIG = 2**24  # bytes; a model is described in some thousand
_TORCH = "PyTorch is not installed: pip install 'dppmask-jax[torch]', or use a .safetensors file"


class Entry(NamedTuple):
    """A tensor of a file, not yet read. `load` gives it as float32; `itself` is the spacing of its
    own type at 1."""

    shape: tuple[int, ...]
    spacing: float
    load: Callable[[], np.ndarray]


def find(path: str | Path) -> Path:
    """The file of a path; of a folder, its model.safetensors or pytorch_model.bin.

    Raises:
      InputError: there is none.
    """
    path = Path(path)
    if path.is_dir():
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (path / name).is_file():
                return path / name
        raise InputError(f"{path} holds no model.safetensors or pytorch_model.bin; name the file")
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    return path


def read_config(path: Path) -> dict[str, Any]:
    """config.json beside a file; empty where there is none.

    Raises:
      InputError: it is no JSON object, or too large for one.
    """
    beside = path.parent / "config.json"
    if not beside.is_file():
        return {}
    if beside.stat().st_size > _LARGEST_CONFIG:
        raise InputError(f"{beside} is too large for the config of a model; mend or remove it")
    try:
        values = json.loads(beside.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{beside} is not readable JSON: {error}; mend or remove it") from error
    if not isinstance(values, dict):
        raise InputError(f"{beside} is not a JSON object; mend or remove it")
    return values


@contextlib.contextmanager
def opened(path: Path, containers: tuple[str, ...]) -> Iterator[tuple[dict[str, Entry], list[str]]]:
    """({name: Entry}, what else the file holds) while the file is open.

    Args:
      path: told apart by its content, not its name.
      containers: keys under which a PyTorch file may keep the tensors; where there are none, all
        dicts of tensors are taken, their names joined by dots.

    Raises:
      InputError: the file is damaged, foreign, or needs more than tensors and plain containers.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if start.startswith(b"version https://git-lfs"):
        raise InputError(
            f"{path} is a Git LFS pointer, not the weights; fetch it with git lfs pull"
        )
    if zipfile.is_zipfile(path) and start.startswith(b"PK"):
        yield _torch_entries(path, containers)
        return
    if path.suffix in (".pth", ".pt", ".bin"):
        raise InputError(
            f"{path} is truncated, or no file that PyTorch 1.6 or newer saved; download it again, "
            "or save it again with a newer PyTorch"
        )
    try:
        with safetensors.safe_open(path, framework="np") as file:
            yield {name: _safe_entry(path, file, name) for name in file.keys()}, []  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise InputError(
            f"{path} is no whole safetensors file ({error}); download it again"
        ) from error


def _safe_entry(path, file, name: str) -> Entry:
    view = file.get_slice(name)
    if view.get_dtype() not in _FLOATS:
        raise InputError(
            f"{path}: {name} is of type {view.get_dtype()}, not one of {', '.join(sorted(_FLOATS))}"
        )
    spacing = {"F64": 2.0**-52, "F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7}
    return Entry(
        tuple(view.get_shape()),
        spacing[view.get_dtype()],
        lambda: np.asarray(file.get_tensor(name), np.float32),
    )


def _torch_entries(path: Path, containers) -> tuple[dict[str, Entry], list[str]]:
    torch = _torch()
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(m.compress_type != zipfile.ZIP_STORED for m in archive.infolist())
        if packed:  # PyTorch never does it; a small file could unpack to any size
            raise InputError(f"{path} is a compressed archive, not a file that PyTorch saved")
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except InputError:
        raise
    except Exception as error:  # a hostile file can make the reader fail in any way
        # PyTorch's own words go on to recommend how to run the pickle after all.
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {asked[1]}" if asked else str(error).split("\n")[0].split(". ")[0]
        raise InputError(
            f"{path} is refused: torch.load(weights_only=True) cannot read it "
            f"({type(error).__name__}: {reason}); nothing of it was run. If you trust it, save its "
            "tensors alone, as safetensors, where it came from"
        ) from error
    tensors, rest = _tensors_of(path, saved, containers, torch)
    return {name: _torch_entry(path, name, tensor) for name, tensor in tensors.items()}, rest


def _tensors_of(path, saved, containers, torch):
    if not isinstance(saved, dict):
        raise InputError(f"{path} holds a {type(saved).__name__}, not a dict of tensors")
    if not containers:
        found = _flattened(saved, torch)
        kept = {name.split(".")[0] for name in found}
        return found, [str(key) for key in saved if str(key) not in kept]
    if any(isinstance(value, torch.Tensor) for value in saved.values()):
        containers, saved = ("",), {"": saved}
    for key in containers:
        inner = saved.get(key)
        if not isinstance(inner, dict):
            continue
        strange = [str(name) for name, value in inner.items() if not _is_float(value, torch)]
        if strange:
            raise InputError(f"{path}: not tensors of floats: {', '.join(map(str, strange))}")
        return {str(k): v for k, v in inner.items()}, [str(k) for k in saved if k != key]
    raise InputError(
        f"{path} has its tensors under none of the keys {', '.join(containers)}; it has "
        f"{', '.join(map(str, saved))}"
    )


def _flattened(saved, torch) -> dict[str, Any]:
    """The tensors of the dicts in a dict of which all values are tensors of floats."""
    return {
        f"{key}.{name}": tensor
        for key, inner in saved.items()
        if isinstance(inner, dict) and inner
        if all(_is_float(value, torch) for value in inner.values())
        for name, tensor in inner.items()
    }


def _is_float(value, torch) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
    )


def _torch_entry(path, name: str, tensor) -> Entry:
    # A tensor can repeat its few values without end.
    if (
        tensor.layout != _torch().strided
        or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
    ):
        raise InputError(f"{path} is refused: {name} claims more values than the file holds")
    return Entry(
        tuple(tensor.shape),
        float(_torch().finfo(tensor.dtype).eps),
        lambda: np.ascontiguousarray(tensor.detach().float().numpy()),
    )


def _torch():
    try:
        import torch
    except ImportError as error:
        raise InputError(_TORCH) from error
    return torch


# Writing.


def check_target(path: Path, folder: bool) -> None:
    """Raises InputError unless `path` is free and can be written.

    Args:
      folder: whether it will be a folder with model.safetensors and config.json.
    """
    if path.exists():
        raise InputError(f"{path} exists and is not overwritten; name another, or remove it")
    if folder:
        if path.suffix in (".safetensors", ".pth", ".pt", ".bin"):
            raise InputError(
                f"{path}: this format is a folder with model.safetensors and config.json; name a "
                "folder"
            )
    elif path.suffix not in (".safetensors", ".pth"):
        raise InputError(f"{path}: name a file that ends in .safetensors or .pth")
    elif path.suffix == ".pth":
        _torch()
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{path}: {there} is no folder that can be written; name another place")


def write(path: Path, tensors: dict[str, np.ndarray], containers: tuple[str, ...]) -> None:
    """Writes tensors into a new file, .safetensors or .pth, whole or not at all.

    Args:
      containers: the first is the key that a .pth file keeps the tensors under; without any, the
        parts of the names before the first dot are.
    """
    # safetensors writes the memory of a transposed array in the order in which it lies.
    tensors = {name: np.array(array, np.float32, order="C") for name, array in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        if path.suffix == ".pth":
            torch = _torch()
            saved = {name: torch.from_numpy(array) for name, array in tensors.items()}
            torch.save(_nested(saved, containers), partial)
        else:
            safetensors.numpy.save_file(tensors, partial, metadata={"format": "pt"})
        mask = os.umask(0)
        os.umask(mask)
        partial.chmod(0o666 & ~mask)  # safetensors lets nobody else read what it writes
        os.link(partial, path)  # unlike a rename it takes no other file's place
    finally:
        partial.unlink(missing_ok=True)


def _nested(tensors, containers) -> dict[str, Any]:
    if containers:
        return {containers[0]: tensors}
    nested: dict[str, Any] = {}
    for name, tensor in tensors.items():
        key, _, rest = name.partition(".")
        nested.setdefault(key, {})[rest] = tensor
    return nested
