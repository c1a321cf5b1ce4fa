"""The page: what was measured, for readers who know none of the masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dppmask_jax.masklab import findings, tables
from dppmask_jax.masklab.rows import EXACT
from dppmask_jax.words import count

_COMMON = """\
All masks of an image are drawn with the same random key. A cell is the mean over the images and the
draws. Behind ± stands the standard error over the images; in brackets the difference from random
masks of the same images and keys, with its own error. 0.0 beside an error of 0.0 says that
something was never seen, not that it cannot happen."""
_SUMMARY = f"""\
Bold numbers differ from those of random masks by more than {tables.SURE} errors of the difference.
Columns are explained below, where the errors are."""
_SHAPE = """\
- *visible patches*: where a mask shows another number than it is asked to, as AttMask does that
  gives hints.
- *equal neighbours*: the share of the pairs of patches side by side that are both hidden or both
  visible.
- *largest piece*: the part of the hidden patches that lies in their largest connected piece.
- *low frequencies*: the power of a mask at low frequencies over that at all. 1 is white noise;
  below 1 hidden patches are spaced, above they are in clumps.
- *to the nearest visible*: the mean distance of a hidden patch from the nearest visible one, in
  patches; 1 is the least.
- *inner − outer*: how much more often a patch in the middle of the image is visible than one near
  the border."""
_GUESS = """\
- *error of copying*: a hidden patch is taken for a copy of the nearest visible one; the root of the
  mean squared error of its pixels, in grey levels of 255. *error of interpolation*: the same, for a
  linear interpolation between the visible patches around it. The lower they are, the less a model
  has to know to fill in what is hidden. Both are of one mask an image.
- *log det*: of the kernel of the visible patches: the higher, the more they differ. A DPP asks for
  it, so that it says only that the selection works.
- *ms an image*: of the choice alone, in a batch on this machine; what masks are drawn from was
  there."""
_OBJECTS = """\
A patch is an object's if at least half its pixels are; an object too small for that consists of the
one patch that holds most of it. *Almost none*: fewer than {almost:g} of the object's fair share of
the visible patches. *{exact}* is the hypergeometric distribution, without any draw."""


class _Section(NamedTuple):
    """A table with its title above and what its columns mean below."""

    title: str
    table: str
    words: str = ""


def text(report: Mapping[str, Any], figures: Sequence[str]) -> str:
    """The page of a report, see `__main__`.

    Args:
      figures: the paths of the galleries from the page, one a ratio.
    """
    blocks = ["# Masks, measured", _introduction(report), _COMMON]
    for part, figure in zip(report["ratios"], figures, strict=True):
        blocks.append(f"## {part['ratio']:.0%} hidden: {part['visible']} patches visible")
        blocks.append("\n".join(f"- {line}" for line in findings.of(part["masks"])))
        for section in _sections(part["masks"], report["almost"]):
            blocks += [f"### {section.title}", section.table, *filter(None, [section.words])]
        blocks += _left_out(part["left_out"])
        blocks += ["### Gallery", f"![The same photographs under every mask]({figure})"]
    blocks += ["## How it was made", f"    {report['command']}"]
    return "\n\n".join(blocks) + "\n"


def only_tables(report: Mapping[str, Any]) -> str:
    """The tables of a report without the page around them."""
    blocks = []
    for part in report["ratios"]:
        blocks.append(f"**{part['ratio']:.0%} hidden, {part['visible']} patches visible**")
        for section in _sections(part["masks"], report["almost"]):
            blocks += [f"{section.title}:", section.table]
    return "\n\n".join(blocks) + "\n"


def _introduction(report: Mapping[str, Any]) -> str:
    (rows, columns), (height, width) = report["grid"], report["image_size"]
    without = report["without_foreground"]
    return (
        f"{count(report['images'], 'image')} of {report['source']} at {height}x{width} pixels, "
        f"{rows}x{columns} patches, {count(report['objects'], 'object')}"
        + (f"; {count(without, 'image')} without any foreground left out" if without else "")
        + f". {count(report['seeds'], 'mask')} of each kind an image. Masks that look at images "
        f"look at what is shown by {report['shown_by']}. Masks that change over a run are those "
        f"{_when(report['progress'])}. Nothing was trained for this page."
    )


def _when(progress: float) -> str:
    ends = {0.0: "of its start", 1.0: "of its end"}
    return ends.get(progress, f"after {progress:.0%} of it")


def _sections(records: Sequence[dict[str, Any]], almost: float) -> Iterator[_Section]:
    yield _Section("In one table", tables.summary(records), _SUMMARY)
    yield _Section("Shape of the masks", tables.of_images(records, tables.SHAPE), _SHAPE)
    yield _Section(
        "What is left to guess, and the cost",
        tables.of_images(records, tables.LEFT_TO_GUESS),
        _GUESS,
    )
    *first, last = tables.OF_OBJECTS
    for column in first:
        yield _Section(f"Objects: {column.heading}", tables.of_objects(records, column))
    words = _OBJECTS.format(almost=almost, exact=EXACT)
    yield _Section(f"Objects: {last.heading}", tables.of_objects(records, last), words)


def _left_out(left_out: Mapping[str, str]) -> Iterator[str]:
    if left_out:
        yield f"### Left out: {count(len(left_out), 'mask')}"
        yield "\n".join(f"- **{label}**: {why}." for label, why in left_out.items())
