"""How a study is shown: its words, its order, and what it wants to have run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from dppmask_jax.comparing.outcomes import Measure, Outcome


class Description(NamedTuple):
    """What a page and a plot say of a study beside its numbers.

    Attributes:
      title: the heading.
      sentences: what is asked and how it was run; a paragraph.
      maskers: {name: label}, in the order of rows; the base is among them.
      methods: {name: label}, a table each.
      measures: {evaluation: what its score is}, in the order of columns.
      seeds: that are wanted.
      base: the masker that the others are compared with.
      lost: {method: {masker: share of images whose object has no visible patch}}, where it is
        known.
    """

    title: str
    sentences: Sequence[str]
    maskers: Mapping[str, str]
    methods: Mapping[str, str]
    measures: Mapping[str, Measure]
    seeds: Sequence[int]
    base: str = "random"
    lost: Mapping[str, Mapping[str, float]] = MappingProxyType({})


def check(description: Description, outcomes: Sequence[Outcome]) -> None:
    """Raises ValueError where the study lacks its own base, or an outcome is of another study."""
    if description.base not in description.maskers:
        raise ValueError(f"{description.title}: {description.base} is none of its maskers")
    for outcome in outcomes:
        for what, name, known in (
            ("method", outcome.method, description.methods),
            ("masker", outcome.masker, description.maskers),
            ("evaluation", outcome.evaluation, description.measures),
            ("seed", outcome.seed, description.seeds),
        ):
            if name not in known:
                raise ValueError(
                    f"{description.title}: an outcome is of {what} {name}, which is not of this "
                    f"study; known are {', '.join(map(str, known))}"
                )
