"""What the page says of a record beside its numbers: data, model, masks, checkpoint, protocol."""

from __future__ import annotations

from types import SimpleNamespace

from dppmask_jax.data.sources import opening
from dppmask_jax.evals.sections import NONE
from dppmask_jax.masking import masker_of
from dppmask_jax.methods import METHODS
from dppmask_jax.models.encoders import name_of
from dppmask_jax.results.portable import last_part
from dppmask_jax.runs import history, workdir
from dppmask_jax.targets import TARGETS
from dppmask_jax.words import count


def of(record) -> tuple[str, str, str, str]:
    """(data, model, masks, checkpoint) of a record."""
    return data(record), model(record), masks(record), checkpoint(record)


def footnote(record) -> str:
    """How a record was measured, and its encoder trained."""
    config = record["config"]
    seeds = config.get("seeds", [config["seed"]] if "seed" in config else [])
    words = f"{record['protocol']}; "
    if seeds:
        words += f"evaluation seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}, "
    return words + how_trained(record)


def how_trained(record) -> str:
    """The seed and the history of the run that was measured."""
    config = record["checkpoint"]["config"]
    training = "pre-training" if "method" in config else "fine-tuning"
    imported = f"imported {'encoder' if 'method' in config else 'classifier'}"
    words = f"{training} seed {config['seed']}" if "seed" in config else imported
    past = history.of_run(record["checkpoint"].get("history", ()), config)
    return words + (f"; {past}" if past else "")


def command(record) -> str:
    """What made a record, and where."""
    devices = f" ({record['devices']})" if record.get("devices") else ""
    return f"`{record['command']}`{devices}" if record["command"] else ""


def _source(spec: str) -> str:
    kind, _, rest = spec.partition(":")
    return rest if kind in opening.OF_PATHS and rest else spec


def data(record) -> str:
    """The images that were tested, and those of pre-training where they are others."""
    trained = record["checkpoint"]["config"]["data"]
    words = []
    for images in (record["config"].get("data", trained), trained):
        some = f", classes of {images['classes']}" if images.get("classes") else ""
        words.append((_source(images["source"]) or "unknown") + some)
    tested, learned = words
    return tested if tested == learned else f"{tested}, pre-trained on {learned}"


def model(record) -> str:
    """Method and what it predicts, if that is not the usual, or whose encoder it is; size, image
    size and epochs."""
    config = record["checkpoint"]["config"]
    height, width = config["image_size"]
    method = config.get("method", "classifier")
    name = METHODS[method].label if method in METHODS else config.get("label", method)
    target = config.get("loss", {}).get("target", next(iter(TARGETS)))
    if target != next(iter(TARGETS)):
        name += f" ({target})"
    name += ", shape alone" if record["config"].get("scratch") else ""
    name += ", projected tokens" if record["config"].get("projection") else ""
    tested = record["config"].get("image_size", [height, width])
    other = f", tested at {tested[0]}×{tested[1]}" if tested != [height, width] else ""
    trained = f", {count(config['epochs'], 'epoch')}" if "epochs" in config else ""
    return f"{name} {name_of(config['model'])}, {height}×{width}{trained}{other}"


def masks(record) -> str:
    """The masks of pre-training."""
    config = record["checkpoint"]["config"]
    while "pretrained" in config:  # a fine-tuned one
        config = config["pretrained"]["config"]
    if "mask" not in config or config["mask"].get("ratio") == 0:
        return NONE
    mask = workdir.completed(config)["mask"]
    label = masker_of(SimpleNamespace(**mask)).label
    ratio = config["mask"].get("ratio", [])
    several = ratio if isinstance(ratio, list) else [ratio]
    masked = " or ".join(f"{100 * share:g}" for share in several)
    return f"{label}, {masked} % masked" if masked else label


def checkpoint(record) -> str:
    """The last part of the workdir, and the step."""
    found = record["checkpoint"]
    return f"{last_part(found['workdir'])}, step {found['step']:,}"
