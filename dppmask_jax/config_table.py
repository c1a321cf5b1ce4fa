"""Every field of a config: its value, its default, what is allowed and what it means.

`python -m dppmask_jax.config_table` prints docs/configuration.md.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping

from dppmask_jax import config as pretraining
from dppmask_jax import terminal
from dppmask_jax.errors import one_line
from dppmask_jax.fields import Field, flatten, shown
from dppmask_jax.methods import METHODS, frozen
from dppmask_jax.tasks import TASKS, checks

_INDENT = "      "
_ORDER = ("", "data", "model", "mask", "loss", "teacher", "optim", "checkpoint", "evaluate", "log")
_DOCS = """\
# Fields of the configs

`--config.NAME=VALUE` sets a field. `dppmask show-config --config=RECIPE` prints those of a config
with their values. The recipes set what differs from the defaults. One of your own is a Python
file:

```python
from dppmask_jax import config as pretraining


def get_config():
    config = pretraining.defaults("mae")
    config.data.source = "folder:/path/to/images"
    config.mask.tau = 0.6
    return config
```

This page is made by `make docs`.
"""


def fields_of(config) -> dict[str, Field]:
    """The fields of the config of a pre-training, an evaluation, or an encoder alone.

    Raises:
      InputError: it is none of these.
    """
    if config.get("method") == frozen.NAME:
        return frozen.fields()
    return (checks if "task" in config else pretraining).fields_for(config)


def show(config, fields: Mapping[str, Field]) -> None:
    """Prints `text`, as wide as the terminal, within reason."""
    columns = shutil.get_terminal_size((100, 24)).columns
    terminal.show(text(config, fields, min(max(columns, 80), 120)), sys.stdout)


def text(config, fields: Mapping[str, Field], width: int) -> str:
    """The fields with their values, a blank line between groups.

    Args:
      width: of a line, in characters.
    """
    values = flatten(config)
    lines = ["  NAME = VALUE, or * NAME = VALUE (default OTHER)", f"{_INDENT}MEANING [ALLOWED]"]
    for group in _groups(fields):
        lines.append("")
        for name in group:
            field = fields[name]
            value, default = (_words(v) for v in (values.get(name), field.default))
            changed = value != default
            line = f"{'*' if changed else ' '} {name} = {value}"
            lines.append(line + (f"  (default {default})" if changed else ""))
            lines += textwrap.wrap(
                f"{field.note} [{field.rule.allowed}]",
                width,
                initial_indent=_INDENT,
                subsequent_indent=_INDENT,
                break_on_hyphens=False,
            )
    return "\n".join(lines)


def _groups(fields: Mapping[str, Field]) -> Iterator[list[str]]:
    """The names by their first part, in `_ORDER`; others come last."""
    groups: dict[str, list[str]] = {group: [] for group in _ORDER}
    for name in fields:
        group, dot, _ = name.partition(".")
        groups.setdefault(group if dot else "", []).append(name)
    yield from filter(None, groups.values())


def _words(value) -> str:
    """A value as a flag takes it."""
    if isinstance(value, str) and value:
        return one_line(value)
    return shown(tuple(value) if isinstance(value, list) else value)


def markdown() -> str:
    """docs/configuration.md."""
    methods = {name: pretraining.fields_of(name) for name in METHODS}
    tasks = {}
    for name, task in TASKS.items():
        for train in task.by_train or ("",):
            tasks[f"{name} ({train})" if train else name] = checks.fields_of(name, train)
    parts = [
        _DOCS,
        "## Pre-training\n",
        *_tables(methods, "method"),
        "## Evaluations\n",
        *_tables(tasks, "task"),
    ]
    return "\n".join(parts)


def _tables(kinds: Mapping[str, Mapping[str, Field]], what: str) -> Iterator[str]:
    """A table for each group of fields. A field that is not the same for all kinds has several
    lines, which name theirs."""
    every = {name: field for fields in kinds.values() for name, field in fields.items()}
    for group in _groups(every):
        first = group[0].partition(".")
        if first[1]:
            yield f"### {first[0]}\n"
        yield f"| field | default | allowed | meaning | {what} |\n|---|---|---|---|---|"
        for name in group:
            if name == what:
                yield f"| `{name}` | | {_cell(' | '.join(kinds))} | {every[name].note} | |"
                continue
            rows: dict[tuple, list[str]] = {}
            for kind, fields in kinds.items():
                if name in fields:
                    field = fields[name]
                    row = (_words(field.default), field.rule.allowed, field.note)
                    rows.setdefault(row, []).append(kind)
            for (default, allowed, note), of in rows.items():
                whose = "" if len(of) == len(kinds) else ", ".join(of)
                yield f"| `{name}` | `{default}` | {_cell(allowed)} | {_cell(note)} | {whose} |"
        yield ""


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("_", "\\_").replace("*", "\\*")


if __name__ == "__main__":
    print(markdown(), end="")
