"""Lists of classes to keep of a data set."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from dppmask_jax.errors import InputError
from dppmask_jax.fields import Field, Rule, is_text

IMAGENET100 = "imagenet100"
FIELDS = {
    "data.classes": Field(
        "",
        Rule(
            lambda value: is_text(value) and (value in ("", IMAGENET100) or value.endswith(".txt")),
            "imagenet100, or a FILE.txt with the name of a class on each line; '' for all classes",
        ),
        "the only classes that are taken",
    ),
}


def class_list(chosen: str, field: str = "data.classes") -> tuple[str, ...]:
    """Reads a list of classes.

    Args:
      field: of the config that chooses it, for messages.
      chosen: imagenet100, the 100 classes of ImageNet (WordNet ids, in ascending order) of CMC
        (arXiv 1906.05849), which ADIOS and DPPMask use as well; or a text file in UTF-8 with the
        name of a class on each line.

    Returns:
      The names in the order of the list; blank lines do not count.

    Raises:
      InputError: a missing, unreadable or empty file, or a class listed twice.
    """
    if chosen == IMAGENET100:
        path = importlib.resources.files("dppmask_jax.data.sources") / "imagenet100.txt"
    else:
        path = Path(chosen).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(
            f"config.{field}={chosen}: {error.strerror}; give imagenet100 or a text file with "
            "a class on each line"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"config.{field}={chosen} is no text in UTF-8: {error}") from error
    names = tuple(filter(None, map(str.strip, lines)))
    if not names:
        raise InputError(f"config.{field}={chosen} lists no class; write one on each line")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"config.{field}={chosen} lists {twice[0]!r} twice; remove one")
    return names
