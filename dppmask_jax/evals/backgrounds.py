"""The background challenge on an ImageNet-9 folder, or on variants built from masks (arXiv
2006.09994)."""

from __future__ import annotations

import json
import math

import jax.numpy as jnp
import numpy as np

from dppmask_jax import parallel, pixel_format
from dppmask_jax.data.sources import imagenet9, mixed_backgrounds
from dppmask_jax.errors import InputError, one_line
from dppmask_jax.evals import base, linear, sections, seeds
from dppmask_jax.evals.base import (
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
from dppmask_jax.evals.starting_head import head_for
from dppmask_jax.fields import TEXT, Field, one_of, whole
from dppmask_jax.methods import supervised
from dppmask_jax.methods.base import Plan
from dppmask_jax.runs import checkpoint
from dppmask_jax.runs.workdir import from_json
from dppmask_jax.scores import ridge
from dppmask_jax.scores.challenge import challenge
from dppmask_jax.scores.uncertainty import standard_error
from dppmask_jax.words import count

FIELDS = {
    **base.FIELDS,
    "seed": Field(0, whole(0), "of the backgrounds that are mixed"),
    "root": Field(
        "", TEXT, "an ImageNet-9 folder; '' builds the variants from masks of the source"
    ),
    "classifier": Field(
        "ridge",
        one_of("ridge", "finetune", "linear", "own"),
        "ridge: on frozen features, at once; own: the checkpoint's head, where it is a classifier; "
        "finetune, linear: of a training that eval finished in the same workdir",
    ),
    "classifier_seed": Field(0, whole(0), "seed of that training"),
    "mapping": Field(
        "wnid",
        one_of("same", "imagenet100", "imagenet1k", "wnid"),
        "how the model's classes are those of root: by their WordNet ids, the numbers of "
        "imagenet100 or imagenet1k, or the same classes",
    ),
    **linear.RIDGE_FIELDS,
}


def check(evaluation: Evaluation) -> None:
    """Raises InputError without labels, without variants or masks, or without the classifier."""
    require_labels(evaluation)
    config = evaluation.config
    pixel_format.check_rgb(config, "task backgrounds", "run another task")
    if config.root:
        _of_root(config, evaluation.train.class_names, lambda line: None)
    else:
        mixed_backgrounds.require_masks(evaluation.val)
    _classifier(evaluation)


def run(evaluation: Evaluation) -> Result:
    """Accuracy on every variant, and the gap between mixed_same and mixed_rand."""
    config = evaluation.config
    trained = _classifier(evaluation)
    classes = evaluation.train.class_names
    if config.root:
        variants, mapping = _of_root(config, classes, evaluation.say)
        test_classes = next(iter(variants.values())).class_names
    else:
        built = mixed_backgrounds.build(
            evaluation.val, image_size=tuple(config.image_size), seed=config.seed
        )
        for name, because in built.left_out.items():
            if because.startswith("cannot be read"):
                evaluation.say(one_line(f"left out: {name} {because}"))
        variants, test_classes = built.variants, classes
        mapping = imagenet9.in9_of_model_class(classes, "same")
    predict, how = trained or _ridge(evaluation)

    def labelled(source, name):
        for batch in batches(evaluation, source, name):
            labels = np.where(batch["valid"], batch["label"], -1)
            yield batch["image"], parallel.all_rows(labels)

    found, right = challenge(
        predict,
        {name: labelled(source, name) for name, source in variants.items()},
        mapping,
        class_names=test_classes,
    )
    rows = [("variant", "accuracy", "images")]
    errors = {}
    for name, values in found["variants"].items():
        errors[name] = standard_error(values["accuracy"], values["images"])
        rows.append((name, percent(values["accuracy"], errors[name]), f"{values['images']:,}"))
    if "bg_gap" in found:
        error = math.hypot(errors["mixed_same"], errors["mixed_rand"])
        rows.append(("BG-gap", percent(found["bg_gap"], error), ""))
    shown = {name: cell for name, cell, _ in rows[1:]}
    rows.append(("highest possible", percent(found["ceiling"]), ""))
    where = config.root or (
        f"variants built from the masks of {config.data.source} "
        f"({count(len(built.left_out), 'image')} left out, unreadable or without a usable mask)"
    )
    # Where the background says nothing of the class, unless a folder lacks that variant.
    hardest = "mixed_rand" if "mixed_rand" in found["variants"] else next(iter(found["variants"]))
    return Result(
        found,
        rows,
        f"{how}; {where}; {len(test_classes)} classes",
        Score(
            f"accuracy on {hardest}",
            found["variants"][hardest]["accuracy"],
            None,
            errors[hardest],
            of_images=right[hardest],
        ),
        "± is the standard error over a variant's images; that of the gap is for variants that err "
        "independently",
        shown,
        {"chance": 1 / len(test_classes)},
    )


def _classifier(evaluation: Evaluation):
    """(uint8 images -> classes, what it is in words) of a trained classifier, None for ridge, which
    is yet to be fitted."""
    find = {"ridge": lambda _: None, "own": _own, "finetune": _trained, "linear": _trained}
    return find[evaluation.config.classifier](evaluation)


def _of_root(config, classes, say):
    """The variants of an ImageNet-9 folder, and which of its classes each of the model's is."""
    variants = imagenet9.open_variants(config.root)
    mapping = imagenet9.in9_of_model_class(classes, config.mapping, log=say)
    of_test = next(iter(variants.values())).num_classes
    same = config.mapping == "same"
    if mapping.max() >= of_test or (same and len(classes) != of_test):
        raise InputError(
            f"config.mapping={config.mapping} makes the model's {len(classes)} classes "
            f"{len(classes) if same else mapping.max() + 1} of the test, but config.root="
            f"{config.root} has {of_test}; choose the mapping that goes with it"
        )
    return variants, mapping


def _trained(evaluation: Evaluation):
    """(uint8 images -> classes, what it is in words) of a training in the evaluation's folder."""
    config = evaluation.config
    folder = seeds.folder_of(evaluation.folder, config.classifier, config.classifier_seed)
    result = evaluation.folder / f"eval_{config.classifier}.json"
    finished = json.loads(result.read_text())["config"]["seeds"] if result.is_file() else []
    if config.classifier_seed not in finished:
        raise InputError(
            f"config.classifier={config.classifier} needs a finished training in {folder}; run "
            f"task={config.classifier} in this workdir first, or set config.classifier=ridge"
        )
    meta, state, step = checkpoint.read_newest(folder)
    trained = from_json(meta["config"])
    if not seeds.is_of(trained, evaluation):
        raise InputError(
            f"the classifier in {folder} was not trained on this checkpoint; name the --checkpoint "
            "that it belongs to, or another --workdir"
        )
    if (size := tuple(trained.image_size)) != tuple(config.image_size):
        raise InputError(
            f"the classifier in {folder} takes images of {size[0]}x{size[1]}; add "
            f'--config.image_size="({size[0]},{size[1]})"'
        )
    names = trained.class_names
    if differ := seeds.other_names(names, evaluation.train.class_names):
        raise InputError(
            f"the classifier in {folder} knows other classes than config.data.source="
            f"{config.data.source} has ({differ}); give the source that it was trained on"
        )
    build = {"finetune": supervised.finetune, "linear": supervised.linear}[config.classifier]
    method = build(trained, Plan(1, 1), num_outputs=len(names), several=False)
    return (
        _best(method, state["params"], state.get("extra", {})),
        f"{config.classifier} (seed {config.classifier_seed}, step {step})",
    )


def _own(evaluation: Evaluation):
    """As `_trained`, of the checkpoint's own head."""
    run, names = evaluation.run, evaluation.train.class_names
    head, because = head_for(run, names, several=False, pool=run.config.model.get("pool"))
    if head is None:
        raise InputError(
            f"config.classifier=own is the checkpoint's own head, but {because}; give the source "
            "that it was trained on, or set config.classifier=ridge"
        )
    return _best(run.method, run.params, run.extra), f"the classifier as it is (step {run.step})"


def _best(method, params, extra):
    """uint8 images -> the class with the highest score."""
    best = parallel.data_parallel_map(
        lambda state, images: jnp.argmax(method.logits(*state, images), axis=-1)
    )
    return lambda images: parallel.all_rows(best((params, extra), images))


def _ridge(evaluation: Evaluation):
    """As `_trained`, fitted now."""
    config = evaluation.config
    found, labels = frozen_features(evaluation, evaluation.train, ("mean",), "training")
    fitted = ridge.fit(found["mean"], labels, evaluation.train.num_classes, tuple(config.ridge))
    run = evaluation.run
    encode = supervised.encoder_features(run.method.encoder)
    features = parallel.data_parallel_map(lambda encoder, images: encode(encoder, images)["mean"])
    return (
        lambda images: np.argmax(fitted(parallel.all_rows(features(run.encoder, images))), axis=1),
        f"ridge classifier on frozen features ({fitted.words})",
    )


def _cells(record) -> list[dict[str, str]]:
    found = record["metrics"]
    row = {
        name: sections.share(values["accuracy"], values["images"])
        for name, values in found["variants"].items()
    }
    two = (found["variants"].get(name) for name in ("mixed_same", "mixed_rand"))
    errors = [standard_error(values["accuracy"], values["images"]) for values in two if values]
    return [row | {"gap": sections.share(found.get("bg_gap"), error=math.hypot(*errors))}]


TASK = Task(
    check,
    run,
    FIELDS,
    section=Section(
        "Background challenge",
        {
            "original": "original",
            "only_fg": "only foreground",
            "mixed_same": "mixed same",
            "mixed_rand": "mixed random",
            "mixed_next": "mixed next",
            "gap": "gap",
        },
        _cells,
        "Gap: mixed same less mixed random; its error is for variants that err independently.",
    ),
    unprojected=lambda config: (
        ""
        if config.classifier == "ridge"
        else f"config.classifier={config.classifier} was trained without; leave it at ridge"
    ),
    unswept=lambda config: (
        ""
        if config.classifier == "ridge"
        else f"config.classifier={config.classifier} needs a training that a sweep does not make; "
        "leave it at ridge"
    ),
)
