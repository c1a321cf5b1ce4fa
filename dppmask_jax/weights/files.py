"""Reads and writes files of named tensors without running anything that stands in them.

safetensors needs no PyTorch. A .pth or .bin file is read by `torch_files`.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from dppmask_jax.errors import InputError
from dppmask_jax.weights import torch_files
from dppmask_jax.weights.torch_files import Entry

_SPACINGS = {"F64": 2.0**-52, "F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7}
_LARGEST_CONFIG = 2**24  # bytes; a model is described in some thousand, its shards in as many
_INDEX = ".index.json"
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_IN_FOLDERS = (*_WHOLE, *(name + _INDEX for name in _WHOLE))


def find(path: str | Path) -> Path:
    """The file of a path; of a folder, its model.safetensors or pytorch_model.bin, or the index of
    their shards.

    Raises:
      InputError: there is none.
    """
    path = Path(path)
    if path.is_dir():
        for name in _IN_FOLDERS:
            if (path / name).is_file():
                return path / name
        raise InputError(f"{path} holds none of {', '.join(_IN_FOLDERS)}; name the file")
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The object of a small JSON file; empty where there is no file.

    Raises:
      InputError: it is no JSON object, or too large for one.
    """
    if not path.is_file():
        return {}
    if path.stat().st_size > _LARGEST_CONFIG:
        raise InputError(f"{path} is too large for what describes a model; mend or remove it")
    try:
        values = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON: {error}; mend or remove it") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object; mend or remove it")
    return values


@contextlib.contextmanager
def opened(
    path: Path, containers: tuple[str, ...], prefix: str = ""
) -> Iterator[tuple[dict[str, Entry], list[str]]]:
    """({name: Entry}, what else the file holds) while the file is open, or all of its shards.

    Args:
      path: told apart by its content, not its name, but for the index of shards.
      containers: keys under which a PyTorch file may keep the tensors; where there are none, all
        dicts of tensors are taken, their names joined by dots.
      prefix: of the names that are wanted; keys of a PyTorch file may be a part of it.

    Raises:
      InputError: the file is damaged, foreign, or needs more than tensors and plain containers.
    """
    if path.name.endswith(_INDEX):
        with contextlib.ExitStack() as stack:
            yield _shards(path, containers, prefix, stack)
        return
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
        yield torch_files.entries(path, containers, prefix)
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


def _shards(index: Path, containers, prefix: str, stack) -> tuple[dict[str, Entry], list[str]]:
    """What the files of an index hold together."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise InputError(f"{index} has no weight_map; download it again, or name a file of weights")
    entries: dict[str, Entry] = {}
    for shard in sorted({str(shard) for shard in where.values()}):
        path = index.parent / shard
        if Path(shard).name != shard or shard.endswith(_INDEX):
            raise InputError(f"{index} names {shard!r}, which is no file beside it")
        if not path.is_file():
            raise InputError(f"{index} names {shard}, which is not beside it; download it as well")
        found, _ = stack.enter_context(opened(path, containers, prefix))
        twice = found.keys() & entries.keys()
        if twice:
            raise InputError(f"{index}: two of its files have {min(twice)}")
        entries |= found
    lacking = [name for name in where if name not in entries]
    if lacking:
        raise InputError(
            f"{index} names {lacking[0]} and {len(lacking) - 1} more that its files do not have; "
            "download them again"
        )
    return entries, []


def _safe_entry(path, file, name: str) -> Entry:
    view = file.get_slice(name)
    return Entry(
        tuple(view.get_shape()),
        _SPACINGS.get(view.get_dtype()),
        lambda: np.asarray(file.get_tensor(name), np.float32),
    )


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
        torch_files.torch()
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{path}: {there} is no folder that can be written; name another place")


def write(
    path: Path,
    tensors: dict[str, np.ndarray],
    containers: tuple[str, ...],
    notes: Mapping[str, str] | None = None,
) -> None:
    """Writes tensors into a new file, .safetensors or .pth, whole or not at all.

    Args:
      containers: the first is the key that a .pth file keeps the tensors under; without any, the
        parts of the names before the first dot are.
      notes: what a file says of itself by name: the metadata of safetensors, texts beside the
        container of a .pth file.
    """
    notes = dict(notes or {})
    # safetensors ignores strides: it would write a transposed array as it lies in memory.
    tensors = {name: np.array(array, np.float32, order="C") for name, array in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        if path.suffix == ".pth":
            torch = torch_files.torch()
            saved = {name: torch.from_numpy(array) for name, array in tensors.items()}
            torch.save(_nested(saved, containers) | notes, partial)
        else:
            safetensors.numpy.save_file(tensors, partial, metadata={"format": "pt", **notes})
        mask = os.umask(0)
        os.umask(mask)
        partial.chmod(0o666 & ~mask)  # safetensors writes files that only the owner reads
        os.link(partial, path)  # unlike a rename, a link replaces no other file
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
