"""The recipes by name: `mae` is configs/mae.py of a checkout and ships with the package.

A wheel has the files of configs/ in the folder `files` of this package, where the build puts them;
a checkout has no second copy. Both ways they are modules of this package, and import one another
as such: `from dppmask_jax.recipes import common`. A folder `configs` of a user's own, or of another
project, is never taken for theirs.
"""

from __future__ import annotations

import ast
import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from dppmask_jax.errors import InputError

_PACKAGED = Path(__file__).absolute().parent / "files"
FOLDER = _PACKAGED if _PACKAGED.is_dir() else _PACKAGED.parents[2] / "configs"
CHECKOUT = None if FOLDER == _PACKAGED else FOLDER.parent  # whose configs/ is a package as well
__path__ = [str(FOLDER)]

BELOW = {"study": "studies"}  # flags whose recipes lie in a folder of their own: its name

_NAME = re.compile(r"[A-Za-z_]\w*")


def names(below: str = "") -> list[str]:
    """The recipes of a folder of configs/, or of itself: files that define `get_config`."""
    files = sorted((FOLDER / below).glob("*.py"))
    return [file.stem for file in files if "\ndef get_config(" in file.read_text(encoding="utf-8")]


def about(name: str, below: str = "") -> str:
    """What a recipe says of itself: its arguments, what to expect, and where it comes from."""
    text = (FOLDER / below / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text), clean=False) or "").strip()


def path_of(file: str, flag: str = "config") -> str:
    """The path of a config file, which --FLAG names by its path or, of a recipe, by its name.

    A name is a recipe's, whatever folder or NAME.py lies in the current folder: a folder is no
    config, and a file is named with its ending, which `shadowed` tells. A file that is called just
    so could be meant as well, and is refused.

    Args:
      file: what stands before the colon.
      flag: one of `BELOW` has the recipes of its own folder.

    Raises:
      InputError: there is no such recipe and no such file, or both.
    """
    below = BELOW.get(flag, "")
    known = names(below)
    if not file:
        raise InputError(f"--{flag} is empty: name a recipe ({', '.join(known)}) or a file")
    ours = FOLDER / below / f"{file}.py"
    if file in known:
        if os.path.isfile(file):
            raise InputError(
                f"--{flag}={file} is a recipe and a file of the current folder: name the file "
                f"./{file}, or the recipe {ours}"
            )
        return str(ours)
    if os.path.isdir(file):
        raise InputError(
            f"--{flag}={file} is a folder: name a file in it, or a recipe ({', '.join(known)})"
        )
    if os.path.exists(file):
        return file
    raise InputError(_unknown(file, flag, known))


def shadowed(file: str, flag: str = "config") -> str:
    """The note that a recipe was named where a config file NAME.py lies in the current folder; ""
    elsewhere, as beside the eval.py of a checkout, which is none."""
    other = Path(f"{file}.py")
    if file not in names(BELOW.get(flag, "")) or not other.is_file():
        return ""
    if b"def get_config(" not in other.read_bytes():
        return ""
    return f"note: --{flag}={file} is the recipe; the file here is --{flag}={other}"


def _unknown(file: str, flag: str, known: Iterable[str]) -> str:
    """The message for a file that does not exist."""
    if _NAME.fullmatch(file):
        near = difflib.get_close_matches(file, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        return (
            f"--{flag}: there is no recipe {file!r}{hint} Known: {', '.join(known)}; a file of "
            "your own is named with its path"
        )
    where = "" if os.path.isabs(file) else f" in {os.getcwd()}"
    stem = Path(file).stem
    hint = f"--{flag}={stem} is the recipe" if stem in known else f"name one with --{flag}=FILE"
    return f"there is no config file {file}{where}; {hint}"
