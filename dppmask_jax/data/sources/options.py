"""Options behind the place of a source: PLACE,name=value,name=value."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dppmask_jax.errors import InputError


def parted(kind: str, text: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """(place, {name: value}) of what stands behind `kind:`; a name that is not given is "".

    Raises:
      InputError: an unknown name, one without a value, or no place.
    """
    place, *parts = re.split(r",(?=\w+=)", text)
    values = dict.fromkeys(known, "")
    for part in parts:
        name, _, value = part.partition("=")
        if name not in known or not value or values[name]:
            usable = ",".join(f"{name}=…" for name in known)
            raise InputError(
                f"unknown option {part!r} in the data source {kind}:{text}; use "
                f"{kind}:PLACE,{usable} or some of these, each once"
            )
        values[name] = value
    if not place:
        raise InputError(f"{kind}:{text} does not say where the images are")
    return place, values
