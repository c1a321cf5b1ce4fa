"""The page of task inside: what each figure says, for readers who know none of the papers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dppmask_jax.analyses.inside_words import WORDS, Figure, Words
from dppmask_jax.evals.base import Part
from dppmask_jax.words import by_whom, count

_HOW_TO_READ = """\
An image is cut into square patches, and the encoder turns each patch into a token, a list of
numbers. It does so in blocks, one after the other; depth 0 is what enters the first block, depth l
what leaves block l. Nothing of the encoder was trained for this page.

± and the bands and bars of figures are one standard error over the images: what other images of the
same kind could have changed. Another training of the same encoder could change more. Two numbers
are told apart here where they differ by more than twice the error that their difference would have
if they were of different images. Mostly they are of the same ones, and their errors partly cancel:
a difference may be real although it is not told apart here."""


def text(parts: Sequence[Part], encoders: Mapping[str, str], command: str) -> str:
    """See `Together.page`."""
    shown = [part for part in parts if part.records]
    blocks = [f"# Inside {_listed(encoders)}", _of_encoders(encoders), *_of_images(shown)]
    blocks += [_HOW_TO_READ, *_in_short(shown)]
    for part in shown:
        blocks += _section(part)
    blocks += _left_out(parts)
    blocks += ["## How it was made", f"    {command}"] if command else []
    return "\n\n".join(blocks) + "\n"


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _of_encoders(encoders: Mapping[str, str]) -> str:
    return "\n".join(f"- **{name}**: {words}" for name, words in encoders.items())


def _of_images(parts: Sequence[Part]) -> Iterator[str]:
    """Where the images are from."""
    records = [record for part in parts for record in part.records.values()]
    lines = {}
    for record in records:
        config, data = record["config"], record["data"]
        size = "x".join(map(str, config["image_size"]))
        lines[
            f"{config['data']['source']}, {size} pixels: {data['train_images']:,} for training, "
            f"{data['val_images']:,} for validation"
        ] = None
    if lines:
        yield "Images: " + "; ".join(lines) + "."


def _in_short(parts: Sequence[Part]) -> Iterator[str]:
    """The finding of each part's first figure that has one."""
    lines = []
    for part in parts:
        words = WORDS[part.name]
        figure = next((f for f in words.figures.values() if f.says), None)
        if figure:
            said = _findings(figure, part.records, "  ")
            lines.append(" ".join([f"- **{words.title}.**", *_of_whom(part)]) + said)
    if lines:
        yield "## In short"
        yield "\n".join(lines)


def _of_whom(part: Part) -> Iterator[str]:
    """Whose records there are, where not of all."""
    if part.left_out:
        yield f"Of {_listed(part.records)} alone."


def _findings(figure: Figure, records: Mapping[str, Mapping[str, Any]], indent: str = "") -> str:
    """What the figure says: a sentence after a space, or a list of what it says of which runs."""
    said: dict[str, list[str]] = {}
    for label, record in records.items():
        said.setdefault(figure.says(record["metrics"]), []).append(label)
    if len(said) == 1:
        return f" {next(iter(said))}"
    lines = (f"\n{indent}- *{_listed(labels)}*: {sentence}" for sentence, labels in said.items())
    return ("" if indent else "\n") + "".join(lines)


def _section(part: Part) -> Iterator[str]:
    words = WORDS[part.name]
    yield f"## {words.title}"
    yield " ".join([words.asks, *_of_whom(part)])
    for name, figure in words.figures.items():
        yield from _of_figure(part, name, figure, words)
    if part.table:
        yield _table(part.table)
    yield "How it was measured:"
    yield _measured(part.records)


def _measured(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Protocols and the lines of notes, a list; what several runs have in common stands once."""
    pieces = by_whom({who: record["protocol"].split("; ") for who, record in records.items()})
    notes = by_whom({who: record["note"].splitlines() for who, record in records.items()})
    return "\n".join(f"- {line}." for line in ("; ".join(pieces), *notes))


def _of_figure(part: Part, name: str, figure: Figure, words: Words) -> Iterator[str]:
    pictures = part.pictures.get(name, {})
    if name in part.figures:
        yield _image(words.title, part.figures[name])
    elif not pictures:
        return
    elif len({Path(path).parent for path in pictures.values()}) > 1:  # of several runs
        links = (f"[{label}]({quote(path)})" for label, path in pictures.items())
        yield f"Of each run: {', '.join(links)}."
    else:
        for label, path in pictures.items():
            yield _image(f"{words.title}, {label}", path)
            if len(pictures) > 1:
                yield f"*{label}*"
    yield f"*To read it:* {figure.reads}"
    if figure.says:
        yield f"*Here:*{_findings(figure, part.records)}"


def _image(words: str, path: str) -> str:
    return f"![{words}]({quote(path)})"


def _table(rows: Sequence[Sequence[str]]) -> str:
    heading, *body = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    lines = [heading, ["---"] * len(heading), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _left_out(parts: Sequence[Part]) -> Iterator[str]:
    lines = [
        f"- **{WORDS[part.name].title}** (task {part.name})"
        + (f", of {label}" if part.records or len(part.left_out) > 1 else "")
        + f": {why}."
        for part in parts
        for label, why in part.left_out.items()
    ]
    if lines:
        yield f"## Left out: {count(sum(bool(part.left_out) for part in parts), 'part')}"
        yield "\n".join(lines)
