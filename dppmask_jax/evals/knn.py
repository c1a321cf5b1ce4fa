"""k-nearest-neighbour classification of frozen features (iBOT, arXiv 2111.07832, section 4.1)."""

from __future__ import annotations

import numpy as np

from dppmask_jax.evals import base, sections
from dppmask_jax.evals.base import (
    ERRORS,
    Evaluation,
    Result,
    Score,
    Task,
    frozen_features,
    percent,
    require_labels,
)
from dppmask_jax.evals.sections import Section
from dppmask_jax.fields import FLAG, Field, above, several, whole
from dppmask_jax.scores.nearest import predictions
from dppmask_jax.scores.uncertainty import standard_error

_FEATURES = ("cls", "patches", "pixels")
_CENTRED = "_centred"  # after the name of a feature in metrics

FIELDS = {
    **base.FIELDS,
    "k": Field(
        (10, 20, 100, 200),
        several(
            whole(1), "a list of different whole numbers such as (10, 20, 100, 200)", different=True
        ),
        "neighbours; the best is usually 20",
    ),
    "temperature": Field(0.07, above(0), "of the votes"),
    "center": Field(
        False,
        FLAG,
        "also of features less the training mean; not in the protocol of DINO and iBOT",
    ),
}


def check(evaluation: Evaluation) -> None:
    """Raises NotServed unless both splits have one label an image."""
    require_labels(evaluation)


def run(evaluation: Evaluation) -> Result:
    """Accuracy for each feature and k, and that of the raw pixels.

    The probe of a run logs the same measure while it trains, for one feature and one k. Centred
    features are another measure, shown beside it where `config.center` asks for them.
    """
    config = evaluation.config
    train, labels = frozen_features(evaluation, evaluation.train, _FEATURES, "training")
    val, val_labels = frozen_features(evaluation, evaluation.val, _FEATURES, "validation")
    num_classes, count = evaluation.train.num_classes, len(val_labels)

    right, found = {}, {}
    for suffix in ("", _CENTRED) if config.center else ("",):
        for name in train:
            of_k = predictions(
                train[name],
                labels,
                val[name],
                num_classes=num_classes,
                ks=tuple(config.k),
                temperature=config.temperature,
                mean=train[name].mean(axis=0) if suffix else 0.0,
            )
            right[name + suffix] = {k: classes == val_labels for k, classes in of_k.items()}
            found[name + suffix] = {
                str(k): float(np.mean(of_images)) for k, of_images in right[name + suffix].items()
            }
    rows = [("feature", *(f"k = {k}" for k in config.k))]
    for name, of_k in found.items():
        cells = (percent(share, standard_error(share, count)) for share in of_k.values())
        rows.append((_words(name), *cells))
    rows.append(("chance", *[percent(1 / num_classes)] * len(config.k)))
    # The run's own probe says which feature its method trains.
    feature = evaluation.run.knn_feature
    k = _standing(config.k)
    value = found[feature][str(k)]
    return Result(
        found,
        rows,
        f"cosine k-NN, votes weighted by exp(similarity / {config.temperature:g}), "
        f"{len(labels):,} training and {count:,} validation images; cls: class token, patches: "
        "mean patch token, pixels: 32x32 means"
        + ("; centred: less the training mean, not the papers' protocol" if config.center else ""),
        Score(
            f"k-NN accuracy (k = {k}, {feature})",
            value,
            None,
            standard_error(value, count),
            of_images=right[feature][k],
        ),
        ERRORS,
        {
            f"{_words(name)}, k = {k}": percent(of_k[str(k)], standard_error(of_k[str(k)], count))
            for name, of_k in found.items()
        },
        {"raw pixels": found["pixels"][str(k)], "chance": 1 / num_classes},
    )


def _standing(ks) -> int:
    """The k that stands for all: 20, iBOT's usual best, if it is among them."""
    return 20 if 20 in ks else ks[0]


def _words(name: str) -> str:
    return name.replace(_CENTRED, ", centred")


def _cells(record) -> list[dict[str, str]]:
    found, count = record["metrics"], sections.images(record)
    return [
        {"k": k, **{name: sections.share(found[name][k], count) for name in found}}
        for k in next(iter(found.values()))
    ]


def _untrained(record, logged) -> dict[str, float]:
    """The untrained encoder's accuracy, where the probe of the run measured what the record did."""
    if "knn_untrained" not in logged:
        return {}
    tested, trained = record["config"], record["checkpoint"]["config"]
    probe, data = trained["evaluate"], record["data"]
    same = (
        {"k": _standing(tested["k"]), "temperature": tested["temperature"]}
        == {"k": probe["knn_k"], "temperature": probe["knn_temperature"]}
        and probe["knn_images"] >= max(data["train_images"], data["val_images"])
        and tested["image_size"] == trained["image_size"]
        and all(
            tested["data"][name] == trained["data"][name]
            for name in ("source", "classes", "val_fraction")
        )
    )
    return {"untrained": logged["knn_untrained"]} if same else {}


_TOKENS = {"patches": "patch tokens", "cls": "class token", "pixels": "raw pixels"}
_CENTRED_TOKENS = {f"{name}{_CENTRED}": f"{words}, centred" for name, words in _TOKENS.items()}

TASK = Task(
    check,
    run,
    FIELDS,
    section=Section(
        "k nearest neighbours",
        {"k": "k"} | _TOKENS | _CENTRED_TOKENS,
        _cells,
        of_paper="The paper gives no k-NN accuracy.",
        optional=frozenset(_CENTRED_TOKENS),
    ),
    of_run=_untrained,
)
