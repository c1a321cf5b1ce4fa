"""Agreement of clusters and classes: NMI and ACC, by each definition that a paper may mean.

iBOT (arXiv 2111.07832, section 4.1 and code): clusters are the prototypes that the teacher's class
token is nearest to, on the evaluation crop or, as in its training log, on an augmented view. "acc"
in that log is how often teacher and student agree on two views. The student's view is masked there,
and whole here. DPPMask (arXiv 2303.12736, table 2) does not say which it reports.
"""

from __future__ import annotations

import jax
import numpy as np

from dppmask_jax import parallel
from dppmask_jax.data import loader
from dppmask_jax.errors import InputError
from dppmask_jax.evals import base, features, sections
from dppmask_jax.evals.base import (
    ERRORS,
    Evaluation,
    Result,
    Score,
    Task,
    batches,
    frozen_features,
    percent,
    require_labels,
)
from dppmask_jax.evals.sections import Section
from dppmask_jax.evals.seeds import SEEDS, summary
from dppmask_jax.fields import Field, whole
from dppmask_jax.scores.clustering import cluster_scores, fano_bound, kmeans
from dppmask_jax.scores.uncertainty import standard_error
from dppmask_jax.words import count

_POOLS = ("cls", "mean")
_NAMES = ("nmi", "ari", "fmi", "acc")

FIELDS = {
    **base.FIELDS,
    "seeds": Field((0, 1, 2), SEEDS, "of k-means"),
    "num_clusters": Field(0, whole(0), "of k-means; 0: as many as there are classes"),
}


def check(evaluation: Evaluation) -> None:
    """Raises NotServed without labels, and InputError with more clusters than images."""
    require_labels(evaluation)
    clusters, images = evaluation.config.num_clusters, len(evaluation.val)
    if clusters > images:
        raise InputError(
            f"config.num_clusters={clusters} is more than the {images} validation images of "
            f"config.data.source={evaluation.config.data.source}; lower it"
        )


def run(evaluation: Evaluation) -> Result:
    """NMI, ARI, FMI and Hungarian accuracy of k-means, of the head, and the agreement of views."""
    config, run = evaluation.config, evaluation.run
    num_classes = evaluation.val.num_classes
    num_clusters = config.num_clusters or num_classes

    found, labels = frozen_features(evaluation, evaluation.val, _POOLS, "validation")
    scores = {
        f"k-means ({pool})": _over_seeds(found[pool], labels, num_clusters, config.seeds)
        for pool in _POOLS
    }
    if num_clusters <= num_classes:  # for more clusters there is no such bound
        for values in scores.values():
            values["least_nmi"] = fano_bound(values["acc"]["mean"], num_classes)
    if run.method.logits is not None:
        scores["arg-max of the head"] = _plain(_head_scores(evaluation))
    agreement = None
    if run.method.view_clusters is not None:
        of_views, agreement = _view_scores(evaluation)
        scores["arg-max of the head, augmented view"] = _plain(of_views)

    def share(value):
        return percent(value, standard_error(value, len(labels)))

    rows = [("clusters", "NMI", "ARI", "FMI", "ACC", "least NMI at that ACC")]
    for name, values in scores.items():
        bound = f"{values['least_nmi']:.4f}" if "least_nmi" in values else ""
        plain = (f"{values[key]['mean']:.4f}" for key in _NAMES if key != "acc")
        rows.append((name, *plain, share(values["acc"]["mean"]), bound))
    if agreement is not None:
        rows.append(("agreement of views", "", "", "", share(agreement), ""))
    # iBOT reports the head's clusters; a method without one has k-means alone.
    of = "arg-max of the head" if "arg-max of the head" in scores else "k-means (mean)"
    return Result(
        {"clusters": scores, "agreement": agreement},
        rows,
        f"{len(labels):,} validation images of {num_classes} classes; k-means with {num_clusters} "
        f"clusters, mean over {count(len(config.seeds), 'seed')}; "
        "ACC by Hungarian matching; the least NMI is Fano's bound for even classes and no more "
        "clusters than classes",
        Score(
            f"normalised mutual information, {of}",
            scores[of]["nmi"]["mean"],
            scores[of]["nmi"]["std"],
            in_percent=False,
        ),
        f"{ERRORS}; NMI, ARI and FMI are no shares and have none in closed form",
        {
            f"{name.upper()}, {one}": words(scores[one][name]["mean"])
            for one in dict.fromkeys(("k-means (mean)", of))
            for name, words in (("nmi", "{:.4f}".format), ("acc", share))
        }
        | ({} if agreement is None else {"agreement of views": share(agreement)}),
    )


def _over_seeds(values, labels, num_clusters, seeds):
    found = [cluster_scores(kmeans(values, num_clusters, seed), labels) for seed in seeds]
    return {name: summary([of_seed[name] for of_seed in found]) for name in _NAMES}


def _plain(values):
    return {name: summary([values[name]]) for name in _NAMES}


def _head_scores(evaluation):
    run = evaluation.run

    def best(params, extra, images):
        return {"best": run.method.logits(params, extra, images).argmax(axis=-1)}

    found, labels = features.extractor(best)(
        run.params, run.extra, batches(evaluation, evaluation.val, "validation")
    )
    return cluster_scores(found["best"], labels)


def _view_scores(evaluation):
    """(scores of the teacher's clusters on the first view, agreement with the student on the
    second), over training views of all readable images, each once."""
    config, run, source = evaluation.config, evaluation.run, evaluation.val
    clusters = parallel.data_parallel_map(
        lambda state, batch: run.method.view_clusters(*state, batch, jax.random.key(0))
    )
    batch_size = features.batch_size(config)
    shard, num_shards = parallel.process_shard()
    parts = []
    with loader.train_stream(
        source,
        example=run.method.example,
        extras=run.method.extras,
        batch_size=batch_size,
        seed=0,
        shard=shard,
        num_shards=num_shards,
        workers=config.data.workers,
        log=evaluation.say,
    ) as stream:
        for _ in range(-(-len(source) // batch_size)):
            batch = next(stream)
            out = clusters((run.params, run.extra), batch)
            parts.append(parallel.all_rows({**out, "label": batch["label"], "bad": batch["bad"]}))
    # The first pass over the images ends within the last batch. A bad row shows another image.
    found = jax.tree.map(lambda *rows: np.concatenate(rows)[: len(source)], *parts)
    teacher, student, labels = (found[n][~found["bad"]] for n in ("teacher", "student", "label"))
    return cluster_scores(teacher, labels), float(np.mean(teacher == student))


def _cells(record) -> list[dict[str, str]]:
    rows = [
        {
            "clusters": name,
            "nmi": sections.plain(scores["nmi"]),
            "acc": sections.mean(scores["acc"], sections.images(record)),
        }
        for name, scores in record["metrics"]["clusters"].items()
    ]
    agreement = record["metrics"]["agreement"]
    if agreement is not None:
        acc = sections.share(agreement, sections.images(record))
        rows.append({"clusters": "agreement of two views", "acc": acc})
    return rows


TASK = Task(
    check,
    run,
    FIELDS,
    section=Section(
        "Clusters",
        {"clusters": "clusters", "nmi": "NMI", "acc": "ACC"},
        _cells,
        of_paper="The paper does not define its NMI and ACC. By Fano's inequality both cannot come "
        "from one assignment of its 100 balanced classes to 100 clusters.",
    ),
)
