"""What every evaluation task gets and gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dppmask_jax import features, metrics, parallel
from dppmask_jax.data import loader
from dppmask_jax.data.source import Source
from dppmask_jax.errors import InputError
from dppmask_jax.methods import supervised
from dppmask_jax.pretrained import Run


class Evaluation(NamedTuple):
    """A task about to run.

    `config` is checked and has the pre-trained model's fields as well; `folder` receives what the
    task writes; `train` and `val` are the splits of `config.data`, None where there is none.
    """

    config: Any
    run: Run
    folder: Path
    train: Source | None
    val: Source | None
    say: Callable[[str], None]


class Result(NamedTuple):
    """What a task found.

    `metrics` is plain JSON; shares are from 0 to 1. `table` holds rows of texts, the first of them
    the heading. `protocol` says in words how it was measured.
    """

    metrics: dict[str, Any]
    table: list[tuple[str, ...]]
    protocol: str


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def require_labels(evaluation: Evaluation) -> None:
    """Raises InputError unless both splits are there and have one label an image."""
    config = evaluation.config
    where = f"config.data.source={config.data.source}"
    if evaluation.val is None:
        raise InputError(f"{where} has no validation split; raise config.data.val_fraction above 0")
    because = evaluation.train.unlabelled_because or evaluation.val.unlabelled_because
    if because:
        raise InputError(f"task {config.task} needs labels, and {where} has none: {because}")


def batches(evaluation: Evaluation, source: Source, what: str):
    """This process's share of the padded batches of a split, with a progress bar."""
    config = evaluation.config
    shard, num_shards = parallel.process_shard()
    batch_size = parallel.round_up(min(config.batch_size, 256))
    stream = loader.eval_batches(
        source,
        image_size=tuple(config.image_size),
        batch_size=batch_size,
        workers=config.data.workers,
        shard=shard,
        num_shards=num_shards,
        log=evaluation.say,
    )
    total = -(-len(source) // batch_size)
    return metrics.counted(stream, total, what, parallel.is_main())


def frozen_features(evaluation: Evaluation, source: Source, names: tuple[str, ...], what: str):
    """({name: (M, D) float32}, labels (M,) or (M, C)) of all readable images of a split.

    Args:
      names: of what `supervised.encoder_features` gives.
      what: names the split in the progress bar.

    More than `config.memory_gb` are kept in a file below the evaluation's folder that is gone when
    the process ends.
    """
    config = evaluation.config
    encode = supervised.encoder_features(config)

    def chosen(params, extra, images):
        out = encode(params, images)
        return {name: out[name] for name in names}

    encoder = supervised.with_positions(evaluation.run.encoder, config)
    width = encoder["cls_token"].shape[-1]
    too_large = 4 * len(source) * width * len(names) > config.memory_gb * 1e9
    rows = features.OnDisk(evaluation.folder) if too_large else None
    return features.extractor(chosen)(encoder, {}, batches(evaluation, source, what), rows)
