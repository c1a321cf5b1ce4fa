"""One page from the results of evaluations and sweeps, next to the paper's figures.

    python -m dppmask_jax.results FILE... --out results.md [--no_paper] [--keep FOLDER]

FILE is an eval_TASK.json of eval.py or a sweep.json of dppmask_jax.sweep; --no_paper leaves the
paper's rows, and what is said of them, out. The page says nothing of where the files lay; --keep
also writes a copy of each FILE, without the paths of this machine.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dppmask_jax import command
from dppmask_jax.errors import InputError
from dppmask_jax.results import paper
from dppmask_jax.results.portable import last_part, portable
from dppmask_jax.runs import history
from dppmask_jax.scores.uncertainty import standard_error

_INTRODUCTION = """\
# Results

Made by `python -m dppmask_jax.results`; do not edit. Rows marked *paper* are what DPPMask (arXiv
2303.12736) reports, with its table. Rows marked *measured here* come from the runs that they name:
where data, model or schedule are not the paper's, compare the masks of these runs among themselves,
never their level with the paper's."""
_INTRODUCTION_ALONE = """\
# Results

Made by `python -m dppmask_jax.results`; do not edit. All rows come from the runs that they name."""
_UNITS = """\
Accuracies, mAP and F1 are in percent. ± is the standard error over the validation images, where it
has a closed form; σ is the standard deviation over seeds. Commands stand at the end, where RUN and
IMAGES are folders."""
_NONE = "–"
_ACCURACIES = ("knn", "linear", "linear_ridge", "finetune", "classifier")  # what these score
_METHODS = {"mae": "MAE", "ibot": "iBOT"}


class Section(NamedTuple):
    """A part of the page: the tasks whose records it shows, its columns {key: heading}, and
    `cells(record)`, the rows {key: text} of a record. Keys of the paper's rows are the same.
    `footnote(record)` says how the record was measured; `note` stands below the table, and
    `of_paper` after it where the paper's rows do."""

    title: str
    tasks: tuple[str, ...]
    columns: dict[str, str]
    cells: Callable[[dict[str, Any]], list[dict[str, str]]]
    footnote: Callable[[dict[str, Any]], str]
    note: str
    of_paper: str = ""


def load(path: str | Path) -> dict[str, Any]:
    """The record of an eval_TASK.json or sweep.json, made portable.

    Raises:
      InputError: the file is missing, or something else.
    """
    try:
        record = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    wanted = {"task", "protocol", "metrics", "checkpoint", "config", "command"}
    try:
        known = all(wanted <= evaluation.keys() for evaluation in _evaluations(record))
    except (AttributeError, KeyError, TypeError):
        known = False
    if not known:
        raise InputError(f"{path} is no result; name an eval_TASK.json or a sweep.json")
    return portable(record)


def keep(records: Sequence[dict[str, Any]], folder: str | Path) -> list[Path]:
    """Writes records of `load` into a folder, as TASK_RUN.json or sweep_NAME.json.

    Returns:
      The paths, in the order of the records.

    Raises:
      InputError: two different records would have the same name; nothing was written.
    """
    files: dict[Path, str] = {}
    paths = []
    for record in records:
        path = Path(folder) / _file_name(record)
        text = json.dumps(record, indent=2) + "\n"
        if files.setdefault(path, text) != text:
            raise InputError(
                f"--keep: two results would be {path.name}; rename the workdir of one of them"
            )
        paths.append(path)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        path.write_text(text)
    return paths


def _file_name(record) -> str:
    if "points" in record:
        name = f"sweep_{record['name']}"
    else:
        name = f"{record['task']}_{record['checkpoint']['workdir']}"
    return re.sub(r"[^\w.+-]+", "-", name) + ".json"


def page(records: Sequence[dict[str, Any]], with_paper: bool = True) -> str:
    """The page of some records of `load`, the same for any order of them; those of the task
    reconstruct have no number to show. Without the paper's rows, sections without a row are left
    out."""
    evaluations, sweeps = [], []
    for record in records:
        evaluations += _evaluations(record)
        sweeps += [record] if record.get("points") else []
    parts = [_INTRODUCTION if with_paper else _INTRODUCTION_ALONE, _UNITS]
    commands: list[str] = []
    for section in SECTIONS:
        shown = [record for record in evaluations if record["task"] in section.tasks]
        parts.append(_section(section, shown, with_paper, commands))
    if sweeps or with_paper:
        parts.append("## Sweeps")
    if with_paper:
        parts.append("*paper*: " + paper.RATIO_SWEEP)
    parts += sorted({_sweep(record) for record in sweeps})
    if commands:
        numbered = (f"{number}. {text}" for number, text in enumerate(commands, 1))
        parts.append("## Commands\n\n" + "\n".join(numbered))
    return "\n\n".join(filter(None, parts)) + "\n"


def _evaluations(record) -> list[dict]:
    """A record itself, or those of a sweep's points with what their pre-trainings came to."""
    if "points" not in record:
        return [record]
    return [
        point["evaluation"] | {"pretraining": point["pretraining"]} for point in record["points"]
    ]


# Sections.


def _percent(share: float | None, count: int | None = None, error: float | None = None) -> str:
    """A share in percent, with its standard error, which for one of `count` images is known."""
    if share is None:
        return _NONE
    error = standard_error(share, count) if count else error
    return f"{100 * share:.2f}" + ("" if error is None else f" ± {100 * error:.2f}")


def _mean(values: dict[str, Any], count: int | None = None, error: float | None = None) -> str:
    """Of {"mean", "std"}, as `_percent`."""
    spread = "" if values["std"] is None else f", σ {_percent(values['std'])}"
    return _percent(values["mean"], count, error) + spread


def _plain_mean(values: dict[str, Any]) -> str:
    """Of {"mean", "std"}, as a number from 0 to 1."""
    spread = "" if values["std"] is None else f", σ {values['std']:.3f}"
    return f"{values['mean']:.3f}{spread}"


def _images(record) -> int:
    return record["data"]["val_images"]


def _accuracies(first: str):
    """Top-1, under the key `first`, and top-5, of the last epoch or of the closed form."""

    def cells(record):
        found, count = record["metrics"].get("last", record["metrics"]), _images(record)
        texts = {
            name: _mean(value, count) if isinstance(value, dict) else _percent(value, count)
            for name, value in found.items()
            if name in ("top1", "top5")
        }
        row = {first: texts["top1"], "top5": texts.get("top5", _NONE)}
        if "best" in record["metrics"]:
            row["best"] = _mean(record["metrics"]["best"]["top1"], count)
        return [row]

    return cells


def _neighbours(record):
    found = record["metrics"]
    return [
        {"k": k, **{name: _percent(found[name][k], _images(record)) for name in found}}
        for k in next(iter(found.values()))
    ]


def _clusters(record):
    rows = []
    for name, scores in record["metrics"]["clusters"].items():
        rows.append(
            {
                "clusters": name,
                "nmi": _plain_mean(scores["nmi"]),
                "acc": _mean(scores["acc"], _images(record)),
            }
        )
    agreement = record["metrics"]["agreement"]
    if agreement is not None:
        rows.append(
            {"clusters": "agreement of two views", "acc": _percent(agreement, _images(record))}
        )
    return rows


def _backgrounds(record):
    found = record["metrics"]
    row = {
        name: _percent(values["accuracy"], values["images"])
        for name, values in found["variants"].items()
    }
    two = (found["variants"].get(name) for name in ("mixed_same", "mixed_rand"))
    errors = [standard_error(values["accuracy"], values["images"]) for values in two if values]
    return [row | {"gap": _percent(found.get("bg_gap"), error=math.hypot(*errors))}]


def _multilabel(record):
    found = record["metrics"]
    errors = {"accuracy": found.get("accuracy_standard_error")}
    return [{name: _mean(values, error=errors.get(name)) for name, values in found["last"].items()}]


def _pretraining(record):
    found = record.get("pretraining", {})
    if "loss" not in found:
        return []
    row = {name: f"{found[name]:.3f}" for name in ("loss", "val_loss") if name in found}
    if "knn_images" in found:  # or it is not known what the accuracy was measured on
        row["knn"] = _percent(found["knn"], found["knn_images"])
    return [row]


def _footnote(record) -> str:
    config = record["config"]
    seeds = config.get("seeds", [config["seed"]] if "seed" in config else [])
    words = f"{record['protocol']}; "
    if seeds:
        words += f"evaluation seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}, "
    return words + _how_trained(record)


def _how_trained(record) -> str:
    config = record["checkpoint"]["config"]
    training = "pre-training" if "method" in config else "fine-tuning"
    words = f"{training} seed {config['seed']}" if "seed" in config else "imported classifier"
    past = history.of_run(record["checkpoint"].get("history", ()), config)
    return words + (f"; {past}" if past else "")


def _command(record) -> str:
    """What made a record, and where."""
    devices = f" ({record['devices']})" if record.get("devices") else ""
    return f"`{record['command']}`{devices}" if record["command"] else ""


SECTIONS = (
    Section(
        "Loss of pre-training",
        ("finetune", "linear", "linear_ridge", "knn", "cluster", "multilabel", "backgrounds"),
        {"loss": "loss", "val_loss": "validation loss", "knn": "k-NN"},
        _pretraining,
        _how_trained,
        "Of the runs of sweeps, at their last step. Losses under different masks are not "
        "comparable.",
        "The paper's prose says that the loss falls as τ rises; its table shows the opposite.",
    ),
    Section(
        "Fine-tuning",
        ("finetune", "classifier"),
        {"finetune": "top-1", "top5": "top-5", "best": "top-1, best epoch"},
        _accuracies("finetune"),
        _footnote,
        "Measured: the last epoch. The best epoch is chosen on the validation images and flatters.",
        "The paper does not say which it reports.",
    ),
    Section(
        "Linear probing",
        ("linear", "linear_ridge"),
        {"linear": "top-1", "top5": "top-5", "best": "top-1, best epoch"},
        _accuracies("linear"),
        _footnote,
        "Closed-form ridge regression is a shortcut of this project, not MAE's protocol.",
    ),
    Section(
        "k nearest neighbours",
        ("knn",),
        {"k": "k", "patches": "patch tokens", "cls": "class token", "pixels": "raw pixels"}
        | {
            f"{name}_centred": f"{words}, centred"
            for name, words in (
                ("patches", "patch tokens"),
                ("cls", "class token"),
                ("pixels", "raw pixels"),
            )
        },
        _neighbours,
        _footnote,
        "",
        "The paper gives no k-NN accuracy.",
    ),
    Section(
        "Clusters",
        ("cluster",),
        {"clusters": "clusters", "nmi": "NMI", "acc": "ACC"},
        _clusters,
        _footnote,
        "",
        "The paper does not define its NMI and ACC. By Fano's inequality both cannot come from one "
        "assignment of its 100 balanced classes to 100 clusters.",
    ),
    Section(
        "Background challenge",
        ("backgrounds",),
        {
            "original": "original",
            "only_fg": "only foreground",
            "mixed_same": "mixed same",
            "mixed_rand": "mixed random",
            "mixed_next": "mixed next",
            "gap": "gap",
        },
        _backgrounds,
        _footnote,
        "Gap: mixed same less mixed random; its error is for variants that err independently.",
    ),
    Section(
        "Several labels an image",
        ("multilabel",),
        {
            "mAP": "mAP",
            "f1_micro": "F1, all (micro)",
            "f1_macro": "F1, class (macro)",
            "f1_weighted": "F1, weighted",
            "accuracy": "accuracy",
        },
        _multilabel,
        _footnote,
        "Measured: the last epoch.",
        "The paper does not say whether its encoders were fine-tuned, or its threshold.",
    ),
)


def _section(section: Section, records, with_paper: bool, commands: list[str]) -> str:
    """The text of a section, "" where it is empty; new commands are added to the page's."""
    rows = [
        (f"*paper*, table {row.table}", row.data, row.method, row.masks, _NONE, row.figures)
        for row in paper.ROWS
        if with_paper and row.figures.keys() & section.columns.keys()
    ]
    measured = []
    for record in records:
        common = (_data(record), _model(record), _masks(record), _checkpoint(record))
        note = (section.footnote(record), _command(record))
        measured += [(*common, cells, note) for cells in section.cells(record)]
    notes: list[tuple[str, str]] = []
    seen = []
    for *common, cells, note in sorted(measured, key=_sort_key):
        if (common, cells, note) in seen:  # an evaluation that a sweep holds as well
            continue
        seen.append((common, cells, note))
        if note not in notes:
            notes.append(note)
        rows.append((f"*measured here* ({notes.index(note) + 1})", *common, cells))
    if not rows and not with_paper:
        return ""
    columns = {
        key: words
        for key, words in section.columns.items()
        if not key.endswith("_centred") or any(key in row[-1] for row in rows)
    }
    heading = ["", "data", "method", "masks", "checkpoint", *columns.values()]
    body = [[*common, *(cells.get(key, _NONE) for key in columns)] for *common, cells in rows]
    parts = [f"## {section.title}"]
    parts += [_markdown_table(heading, body)] if body else []
    words = " ".join(filter(None, (section.note, section.of_paper * with_paper)))
    parts += [words] if words else []
    if notes:
        lines = (_footnote_line(note, commands) for note in notes)
        parts.append("\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1)))
    return "\n\n".join(parts)


def _footnote_line(note: tuple[str, str], commands: list[str]) -> str:
    words, command_line = note
    if not command_line:
        return f"{words}."
    if command_line not in commands:
        commands.append(command_line)
    return f"{words}; command {commands.index(command_line) + 1}."


def _sort_key(row):
    """By the words, with numbers in them by size."""
    texts = [*row[:4], *row[5], *row[4].values()]
    return [
        [(0, float(part), "") if part[0].isdigit() else (1, 0.0, part) for part in parts]
        for parts in (re.findall(r"\d+(?:\.\d+)?|\D+", text) for text in texts)
    ]


def _markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells):
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    return "\n".join([line(heading), "|" + "---|" * len(heading), *map(line, rows)])


def _source(spec: str) -> str:
    kind, _, rest = spec.partition(":")
    return rest if kind in ("folder", "coco", "clevr", "csv") and rest else spec


def _data(record) -> str:
    trained = record["checkpoint"]["config"]["data"]
    words = []
    for data in (record["config"].get("data", trained), trained):
        some = f", classes of {data['classes']}" if data.get("classes") else ""
        words.append((_source(data["source"]) or "unknown") + some)
    tested, learned = words
    return tested if tested == learned else f"{tested}, pre-trained on {learned}"


def _model(record) -> str:
    config = record["checkpoint"]["config"]
    model, (height, width) = config["model"], config["image_size"]
    method = config.get("method", "classifier")
    name, epochs = _METHODS.get(method, method), config["epochs"]
    tested = record["config"].get("image_size", [height, width])
    other = f", tested at {tested[0]}×{tested[1]}" if tested != [height, width] else ""
    return (
        f"{name} {model['size']}/{model['patch_size']}, {height}×{width}, "
        f"{epochs:g} epoch{'s' * (epochs != 1)}{other}"
    )


def _masks(record) -> str:
    config = record["checkpoint"]["config"]
    while "pretrained" in config:  # a fine-tuned one
        config = config["pretrained"]["config"]
    if "mask" not in config:
        return _NONE
    mask = config["mask"]
    ratio = mask["ratio"]
    several = ratio if isinstance(ratio, list) else [ratio]
    masked = " or ".join(f"{100 * share:g}" for share in several) + " % masked"
    if mask["strategy"] == "attention":
        return f"AttMask ({mask['attention']}), {masked}"
    if mask["strategy"] != "dpp":
        return f"{mask['strategy']}, {masked}"
    end = "" if mask["tau_end"] is None else f" to {mask['tau_end']:g}"
    random = " (random)" if mask["tau"] >= 1 and not end else ""
    return f"DPP, τ {mask['tau']:g}{end}{random}, {masked}"


def _checkpoint(record) -> str:
    found = record["checkpoint"]
    return f"{last_part(found['workdir'])}, step {found['step']:,}"


# Sweeps.


def _sweep(record) -> str:
    """The scores of a sweep: a row for each value of the first field, a column for each combination
    of the others."""
    grid, points = record["grid"], record["points"]
    first, *others = grid
    scores = {
        json.dumps([point["values"][field] for field in grid]): point["evaluation"]["score"]
        for point in points
    }
    columns = list(itertools.product(*(grid[field] for field in others)))
    heading = [
        f"`{first}`",
        *(
            ", ".join(f"`{f}` {_value(v)}" for f, v in zip(others, values, strict=True))
            for values in columns
        ),
    ]
    if not others:
        heading[1:] = ["score"]
    evaluation = points[0]["evaluation"]
    count = _images(evaluation) if evaluation["task"] in _ACCURACIES else None
    rows = []
    for x in grid[first]:
        cells = []
        for values in columns:
            score = scores.get(json.dumps([x, *values]))
            cells.append(_NONE if score is None else _score(score, count))
        rows.append([_value(x), *cells])
    where = f"{_data(evaluation)}; {_model(evaluation)}"
    return "\n\n".join(
        [
            f"### {record['name']}: {evaluation['score']['name']}",
            f"*measured here*: {where}. `{record['command']}`",
            _markdown_table(heading, rows),
        ]
    )


def _score(score: dict[str, Any], count: int | None) -> str:
    values = {"mean": score["value"], "std": score["std"]}
    if not score.get("in_percent", True):
        return _plain_mean(values)
    return _mean(values, count, score.get("standard_error"))


def _value(value) -> str:
    if isinstance(value, list):
        return f"({', '.join(map(_value, value))})"
    return f"{value:g}" if isinstance(value, float) else str(value)


# The command.


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the page; see the module's docstring."""
    parser = command.ArgumentParser(
        prog="python -m dppmask_jax.results",
        description="Writes one page from results of evaluations and sweeps.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="eval_TASK.json or sweep.json")
    parser.add_argument("--out", required=True, metavar="PAGE.md", help="the page")
    parser.add_argument("--keep", metavar="FOLDER", help="for copies without paths")
    parser.add_argument("--no_paper", action="store_true", help="without the paper's rows")
    args = parser.parse_args(argv)
    records = [load(path) for path in args.files]
    text = page(records, not args.no_paper)
    if args.keep:
        keep(records, args.keep)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    print(out)
