"""The model card of an exported run: README.md of a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dppmask_jax.errors import InputError
from dppmask_jax.results.portable import last_part, portable
from dppmask_jax.results.records import load
from dppmask_jax.words import with_article

_HEAD = """\
---
library_name: transformers
pipeline_tag: image-feature-extraction
tags:
{tags}
---

# {title}

{what}, pre-trained with dppmask_jax for {steps:,} steps on {data}.

```python
from transformers import {loader}

model = {loader}.from_pretrained("FOLDER_OR_REPOSITORY")
```

Images of {height}x{width} pixels, standardised as preprocessor_config.json says. The licence of
these weights and of the images is for whoever publishes them to name.

## Evaluations

{evaluations}

## Config

```json
{config}
```
"""


def card(folder: Path, config, label: str, step: int, loader: str, image_size) -> str:
    """The text of the card, without paths of this machine.

    Args:
      folder: of the run; its eval_TASK.json are the table.
      config: of the run, as an export has read it.
      label: what its method is called.
      step: of the checkpoint.
      loader: the class of transformers that reads the folder.
      image_size: (height, width).
    """
    record = portable({"config": json.loads(json.dumps(config.to_dict()))})
    strategy = config.get("mask", {}).get("strategy")
    masks = f", masks drawn by {strategy}" if strategy else ""
    source = config.data.get("source") or ""
    tags = ["dppmask-jax", *filter(None, (config.get("method"), strategy))]
    return _HEAD.format(
        tags="\n".join(f"- {tag}" for tag in tags),
        title=folder.resolve().name,
        what=f"Encoder of {with_article(label)}{masks}",
        steps=step,
        data=last_part(source) if source else "images that are not named",
        loader=loader,
        height=image_size[0],
        width=image_size[1],
        evaluations=_table(folder),
        config=json.dumps(record["config"], indent=2),
    )


def _table(folder: Path) -> str:
    """The scores of the run's evaluations of the encoder, with their standard errors."""
    rows = []
    for path in sorted(folder.glob("eval_*.json")):
        try:
            record = load(path)
        except InputError as error:
            print(f"warning: {error}; the card lacks it", flush=True)
            continue
        rows.append(_row(record))
    if not rows:
        return "None were made."
    head = ["| task | protocol | images | found |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows])


def _row(record: dict[str, Any]) -> str:
    found = record.get("row") or {}
    if not found and (score := record.get("score")):
        value = score["value"]
        found = {score["name"]: "–" if value is None else f"{value:.4g}"}
    numbers = "; ".join(f"{name}: {value}" for name, value in found.items())
    source = record["config"].get("data", {}).get("source") or "of the run"
    cells = (record["task"], str(record["protocol"]), source, numbers)
    return "| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in cells) + " |"
