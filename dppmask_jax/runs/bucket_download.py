"""What is copied from a run's folder in a bucket, and whether it arrives as it is there."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from etils import epath

from dppmask_jax.errors import InputError
from dppmask_jax.runs import integrity
from dppmask_jax.runs.bucket import Store

CHECKPOINT = re.compile(r"(?:.*/)?checkpoints/(\d+)/")
_OF_RUN = re.compile(
    r"(?:config|trackers)\.json|metrics\.jsonl|checkpoints/\d+/.+"
    # A tracker goes on in its own files; pictures that it keeps are not read again.
    r"|mlruns/(?!.*/artifacts/).+|wandb/offline-run-[^/]+/.+"
)
_TRIES = 5  # to download what a run replaces meanwhile
_DOWNLOADS = 3  # of what does not arrive as it was written


def of_run(name: str) -> bool:
    """Whether a training that goes on reads a file of its folder. All others stay where they are:
    figures, what evaluations found, and whatever else somebody put there."""
    return _OF_RUN.fullmatch(name) is not None


def run(store: Store, folder: Path, names: Mapping[str, int], reads: Callable[[str], bool]) -> None:
    """Downloads what is read of a run's folder: files, and of each folder of checkpoints the newest
    that is whole.

    Args:
      names: {name: bytes} of the files in the store.
      reads: whether the file of a name is read.

    Raises:
      InputError: a file does not arrive whole.
    """
    wanted = {name: size for name, size in names.items() if reads(name)}
    parts = {name: CHECKPOINT.match(name) for name in wanted}
    _files(store, folder, {name: wanted[name] for name in wanted if not parts[name]})
    for below in sorted({found[0].rsplit("/", 2)[0] for found in parts.values() if found}):
        checkpoints(store, folder, wanted, None, f"{below}/")


def _files(store: Store, folder: Path, wanted: Mapping[str, int]) -> None:
    """Downloads files, and those of another length again: a run that goes on with a part of its
    records would write that part over the whole."""
    for _ in range(_DOWNLOADS):
        with contextlib.suppress(FileNotFoundError):  # another process has just removed it
            store.download(wanted, folder)
        wrong = [name for name, size in wanted.items() if _size(folder / name) != size]
        if not wrong:
            return
        for name in wrong:
            (folder / name).unlink(missing_ok=True)
        there = store.files()
        wanted = {name: there[name] for name in wrong if name in there}
    if wanted:
        name, size = next(iter(wanted.items()))
        raise InputError(
            f"{store.url}/{name} has {size:,} bytes there and did not arrive whole, "
            f"{_DOWNLOADS} times; look at the network, and start again"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def checkpoints(
    store: Store, folder: Path, names, step: int | None, below: str = "checkpoints/"
) -> None:
    """Downloads checkpoints, the newest first, until one is whole; or that of a step."""
    for _ in range(_TRIES):
        found = steps(names, below)
        wanted = sorted(found, reverse=True) if step is None else [step] * (step in found)
        try:
            for number in wanted:
                at = f"{below}{number}/"
                if _arrives_whole(store, folder, [n for n in names if n.startswith(at)], at):
                    return
            return
        except FileNotFoundError:  # the run that writes there has replaced it
            shutil.rmtree(folder / at, ignore_errors=True)
            names = store.files(below.rstrip("/"))


def _arrives_whole(store: Store, folder: Path, names: list[str], at: str) -> bool:
    """Downloads a checkpoint, and again what is not as its manifest says: what stays so is damaged
    in the bucket."""
    again = names
    for _ in range(_DOWNLOADS):
        store.download(again, folder)
        wrong = {at + name for name, _ in integrity.faults(epath.Path(folder / at))}
        again = [name for name in names if name in wrong]
        if not again:
            break
    return not wrong


def steps(names: Iterable[str], below: str) -> set[int]:
    """The steps of the checkpoints below a folder that have a manifest."""
    ends = f"/{integrity.MANIFEST}"
    inner = [n[len(below) : -len(ends)] for n in names if n.startswith(below) and n.endswith(ends)]
    return {int(name) for name in inner if name.isdecimal()}
