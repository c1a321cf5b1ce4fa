"""Maskers of a user's own: the file that defines them, and how it is run.

train.py and sweeps need a config file alone that adds a `MaskerKind` to `MASKERS` before it builds
its config. The config of a run names that file. Commands that load the run do not run it by
themselves, only where --masker names it: no checkpoint has code run.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import runpy
import shlex
from pathlib import Path

from dppmask_jax.errors import InputError
from dppmask_jax.fields import TEXT, Field
from dppmask_jax.masking.base import MaskerKind
from dppmask_jax.masking.kinds import MASKERS, check_known

_PACKAGE = Path(__file__).absolute().parents[1]


def fields() -> dict[str, Field]:
    """The fields that say where the masks are defined; {} where the package defines all."""
    files = list(dict.fromkeys(filter(None, map(_file_of, MASKERS.values()))))
    if not files:
        return {}
    return {
        "mask.defined_in": Field(
            ", ".join(map(str, files)),
            TEXT,
            "the file that defines masks of your own",
            free="carried out",
        ),
        "mask.defined_as": Field(", ".join(map(_sha256, files)), TEXT, "the SHA-256 of that file"),
    }


def load(file: str) -> None:
    """Runs a config file that adds to `MASKERS`.

    Raises:
      InputError: there is no such file, or what it raised.
    """
    if not os.path.isfile(file):
        raise InputError(f"--masker={file}: there is no such file")
    try:
        runpy.run_path(os.path.abspath(file), run_name="masker")
    except Exception as error:  # whatever the user's file does
        words = " ".join(str(error).split())
        raise InputError(f"--masker={file}: {type(error).__name__}: {words}") from error


def flag(mask) -> str:
    """The flag " --masker=FILE" that names the file of the masks; "" where the package has them."""
    own = mask.strategy in MASKERS and _file_of(MASKERS[mask.strategy])
    return f" --masker={shlex.quote(str(own))}" if own else ""


def check(mask) -> None:
    """Raises InputError where the masks of a run are not known, and prints a note where the file
    that defines them has changed since."""
    check_known(mask)
    file = _file_of(MASKERS[mask.strategy])
    if file and _sha256(file) not in getattr(mask, "defined_as", ""):
        print(f"note: {file} is not what it was when the run was made; its masks may be others")


def _file_of(kind: MaskerKind) -> Path | None:
    """The file that defines a masker; None for those of the package."""
    build = kind.build
    while isinstance(build, functools.partial):
        build = build.func
    try:
        file = Path(inspect.getfile(inspect.unwrap(build))).absolute()
    except TypeError:  # it is no function
        return None
    return None if file.is_relative_to(_PACKAGE) or not file.is_file() else file


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
