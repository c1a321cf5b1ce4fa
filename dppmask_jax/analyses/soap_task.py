"""Task soap: a projector that damps the position noise of an encoder's patch tokens, see `soap`.

A run makes three passes, in batches on all devices: two over the images, one over as many
synthetic ones. Nothing is kept to be resumed: 2,000 images take a minute or two on two cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dppmask_jax import parallel
from dppmask_jax.analyses import base, components, soap, synthetic
from dppmask_jax.analyses.components import Basis, Place, Responses
from dppmask_jax.errors import InputError, NotServed
from dppmask_jax.evals import base as evals
from dppmask_jax.evals import features
from dppmask_jax.evals.base import Evaluation, Result, Task, percent
from dppmask_jax.fields import TEXT, Field, above, one_of, optional, whole
from dppmask_jax.figures import colours
from dppmask_jax.figures import soap as drawing
from dppmask_jax.runs import metrics as logging
from dppmask_jax.runs import projection
from dppmask_jax.words import count

FILE = "soap.safetensors"
_LEAST = 10  # images; a probability from fewer says nothing
_ROWS = 10  # of the table
_SHOWN = 3  # components in figures
_PHOTOGRAPHS = 3  # in figures

FIELDS = {
    **base.FIELDS,
    "images": Field(2000, whole(_LEAST), "of the split, evenly spread, and as many synthetic ones"),
    "seed": Field(0, whole(0), "of the synthetic images"),
    "mode": Field(
        "soft",
        one_of(*soap.MODES),
        "soft: the mu components of highest SI are damped by their SI; auto: those above "
        f"{soap.HIGH}; hard: the mu highest, wholly; scores: all by their SI, to look at only",
    ),
    "mu": Field(2.0, above(0), "components that are damped; soft and hard"),
    "temperature": Field(0.05, above(0), "how soft the border between damped and kept ones is"),
    "gamma": Field(1.0, above(0), "power of the agreement in SI"),
    "layer": Field(
        None,
        optional(whole(0)),
        "0 is the embedding, l the output of block l; None, as the last, is after the final norm: "
        "the one that can be attached",
    ),
    "layers": Field("one", one_of("one", "all"), "all: SI at every depth beside it"),
    "against": Field(
        "", TEXT, "another soap.safetensors of the same encoder and layer, compared by cosine"
    ),
}


class _At(NamedTuple):
    """What was found at a place."""

    place: Place
    basis: Basis
    real: Responses
    synthetic: Responses
    fit: soap.Fit
    errors: np.ndarray

    @property
    def order(self) -> np.ndarray:
        """Components by SI in descending order."""
        return np.argsort(-self.fit.scores, kind="stable")

    @property
    def shares(self) -> np.ndarray:
        """Of the variance, by rank; 0 where tokens are all alike."""
        values = np.maximum(self.fit.eigenvalues, 0)
        return values / (values.sum() or 1)


def check(evaluation: Evaluation) -> None:
    """Raises NotServed where there are too few images, and InputError where the encoder has no such
    layer, config.images is too small, or the projector would replace the one it is held against."""
    config, encoder = evaluation.config, evaluation.run.method.encoder
    layer = config.layer
    if layer is not None and layer > encoder.depth:
        raise InputError(
            f"config.layer={layer} is none of this encoder: 0 is the embedding, {encoder.depth} "
            "its last block"
        )
    if encoder.trace is None and (
        config.layers == "all" or _chosen(config, encoder).normed is False
    ):
        raise InputError(
            f"{evaluation.run.name} run does not show what leaves its blocks; leave config.layer "
            "and config.layers as they are"
        )
    patches = encoder.grid[0] * encoder.grid[1]
    # More tokens than components, or the covariance leaves some without a direction.
    base.require_images(evaluation, max(_LEAST, encoder.width // patches + 1))
    if config.against:
        projection.read(config.against, evaluation.run, _chosen(config, encoder).layer)
        if Path(config.against).resolve() == (evaluation.folder / FILE).resolve():
            raise InputError(
                f"the projector would be written over config.against={config.against}; copy that "
                "file elsewhere and name the copy, or give another --workdir"
            )


def run(evaluation: Evaluation) -> Result:
    """Fits the projector, and writes it to soap.safetensors."""
    config, encoder = evaluation.config, evaluation.run.method.encoder
    chosen = _chosen(config, encoder)
    places = components.places(encoder) if config.layers == "all" else (chosen,)
    found = _found(evaluation, places)
    of_chosen = found[places.index(chosen)]
    if (images := int(of_chosen.real.sizes.sum())) < _LEAST:
        raise NotServed(
            f"{images} of {len(base.chosen(evaluation))} images can be read, and task soap needs "
            f"{_LEAST}; the lines above name the others and say why"
        )
    metrics = _metrics(of_chosen)
    if config.layers == "all":
        metrics["depths"] = [_summary(at) for at in found]
    if config.against:
        other = projection.read(config.against, evaluation.run, chosen.layer)
        found_there = soap.similarity(of_chosen.fit.projector, other.matrix)
        metrics["against"] = {"path": config.against, **found_there}
    if parallel.is_main():
        _write(evaluation, of_chosen)
    return Result(
        metrics,
        _by_depth(metrics["depths"]) if config.layers == "all" else _by_component(metrics),
        _protocol(config, metrics),
        note=_note(metrics),
        row=_row(metrics),
        figures=_figures(evaluation, of_chosen),
    )


def _write(evaluation: Evaluation, at: _At) -> None:
    fit, path = at.fit, evaluation.folder / FILE
    names = ("projector", "mean", "scores", "weights", "eigenvalues", "eigenvectors")
    arrays = {name: getattr(fit, name) for name in names}
    projection.write(path, arrays=arrays, layer=at.place.layer, run=evaluation.run)
    evaluation.say(f"projector of layer {_where(_summary(at))}: {path}")


def _chosen(config, encoder) -> Place:
    last = components.last(encoder)
    return last if config.layer in (None, last.layer) else Place(config.layer, False)


def _found(evaluation: Evaluation, places) -> list[_At]:
    config, run = evaluation.config, evaluation.run
    encoder, indices = run.method.encoder, base.chosen(evaluation)
    size, count = features.batch_size(config), len(indices)

    def images(what):
        return evals.batches(evaluation, base.split_of(evaluation), what, indices)

    def numbered(what) -> Iterator[dict]:
        for number, batch in zip(components.numbers(count, size), images(what), strict=True):
            yield {**batch, "number": number["number"]}

    def blank(params, batch):
        key = jax.random.key(config.seed)
        drawn = synthetic.numbered(key, batch["number"], tuple(config.image_size), encoder.pixels)
        return components.tokens(encoder, places, params, drawn)

    read = components.photographs(encoder, places)
    bases = components.bases(read, run.encoder, images("covariance"))
    real = components.responses(read, run.encoder, numbered("responses"), bases)
    numbers = logging.counted(
        components.numbers(count, size), -(-count // size), "synthetic images", parallel.is_main()
    )
    without = components.responses(blank, run.encoder, numbers, bases)
    how = config.gamma, config.mode, config.mu, config.temperature
    return [
        _At(*of, soap.fitted(*of[1:], *how), soap.score_errors(*of[2:], config.gamma))
        for of in zip(places, bases, real, without, strict=True)
    ]


def _summary(at: _At) -> dict[str, Any]:
    """What is worth saying of one depth, as JSON."""
    fit, top = at.fit, at.order[:_ROWS]
    return {
        "layer": at.place.layer,
        "after_norm": at.place.normed,
        "scores": fit.scores[top].tolist(),
        "errors": at.errors[top].tolist(),
        "ranks": top.tolist(),
        "above": int(np.sum(fit.scores > soap.HIGH)),
        "removed_variance": float(np.sum(at.shares * (1 - (1 - fit.weights) ** 2))),
    }


def _metrics(at: _At) -> dict[str, Any]:
    """Of every component, by SI in descending order."""
    order = at.order
    return {
        **_summary(at),
        "images": int(at.real.sizes.sum()),
        "synthetic_images": int(at.synthetic.sizes.sum()),
        "scores": at.fit.scores[order].tolist(),
        "errors": at.errors[order].tolist(),
        "ranks": order.tolist(),
        "shares": at.shares[order].tolist(),
        "weights": at.fit.weights[order].tolist(),
    }


def _score(score: float, error: float) -> str:
    return f"{score:.4f} ± {error:.4f}"


def _where(depth: dict) -> str:
    if depth["after_norm"]:
        return f"{depth['layer']}, after the final norm"
    return str(depth["layer"])


def _by_component(metrics) -> list[tuple[str, ...]]:
    rows = [("component (0: largest variance)", "SI", "share of variance", "damped by")]
    names = ("ranks", "scores", "errors", "shares", "weights")
    for rank, score, error, share, weight in zip(
        *(metrics[name][:_ROWS] for name in names), strict=True
    ):
        rows.append((str(rank), _score(score, error), percent(share), f"{weight:.3f}"))
    return rows


def _by_depth(depths) -> list[tuple[str, ...]]:
    above = f"components above {soap.HIGH}"
    rows = [("block (0: embedding)", "highest SI", "second", "third", above, "variance removed")]
    for depth in depths:
        scores = zip(depth["scores"][:3], depth["errors"][:3], strict=True)
        cells = [_score(*one) for one in scores]
        rows.append(
            (_where(depth), *cells, str(depth["above"]), percent(depth["removed_variance"]))
        )
    return rows


def _protocol(config, metrics) -> str:
    how = {
        "soft": f"soft, the {config.mu:g} highest",
        "auto": f"auto, the {metrics['above']} above {soap.HIGH}",
        "hard": f"hard, the {config.mu:g} highest",
        "scores": "every component by its SI",
    }[config.mode]
    return (
        f"patch tokens of {metrics['images']:,} images and of {metrics['synthetic_images']:,} "
        f"without content, layer {_where(metrics)}; damped: {how}; "
        f"{percent(metrics['removed_variance'])} of the variance goes"
    )


def _note(metrics) -> str:
    note = (
        f"SI is 1 where a component responds to the position alone, {soap.CHANCE:.2f} by chance; "
        f"above {soap.HIGH}: {count(metrics['above'], 'component')} of {len(metrics['scores'])}; "
        "± is the standard error over images, the components held fixed"
    )
    if not metrics["above"] and max(metrics["weights"]) > 0:
        note += (
            f"\nno component is above {soap.HIGH}: what is damped need not be noise of the position"
            "; config.mode=auto would damp nothing"
        )
    if other := metrics.get("against"):
        note += (
            f"\nagainst {other['path']}: cosine of the projectors {other['projectors']:.5f}, of "
            f"what they remove {other['removed']:.4f}"
        )
    return note


def _row(metrics) -> dict[str, str]:
    names = ("highest SI", "second", "third")
    scores = zip(metrics["scores"], metrics["errors"], strict=True)
    return {
        **{name: _score(*score) for name, score in zip(names, scores, strict=False)},
        f"above {soap.HIGH}": str(metrics["above"]),
        "variance removed": percent(metrics["removed_variance"]),
    }


def _figures(evaluation: Evaluation, at: _At) -> dict[str, Any]:
    """Maps of the components of highest SI, and how photographs respond to them."""
    top, encoder = at.order[:_SHOWN], evaluation.run.method.encoder
    titles = [f"Component {rank}\nSI {at.fit.scores[rank]:.2f}" for rank in top]
    maps = [
        drawing.Component(
            title.replace("\n", ", "),
            at.fit.P[:, rank],
            at.fit.Q[:, rank],
            at.real.mean()[:, rank],
            at.synthetic.mean()[:, rank],
        )
        for title, rank in zip(titles, top, strict=True)
    ]
    images, responses = _examples(evaluation, at, top)
    of_images = drawing.draw_responses(
        colours.shown(evaluation.run.pixels, images),
        responses,
        titles,
        evaluation.config.model.patch_size,
        "the last row is an image without content; component 0 has the largest variance",
    )
    return {
        "soap_maps.png": drawing.draw_maps(maps, encoder.grid),
        "soap_responses.png": of_images,
    }


def _examples(evaluation: Evaluation, at: _At, top) -> tuple[np.ndarray, np.ndarray]:
    """(images (R, H, W, C), responses (R, N, K)) of some photographs and a synthetic one."""
    config, run = evaluation.config, evaluation.run
    size = tuple(config.image_size)
    pixels = run.pixels
    blank = soap.synthetic_images(jax.random.key(config.seed), 1, size, pixels)
    blank = pixels.as_loaded(np.asarray(pixels.denormalize(blank)))
    images = np.concatenate([base.pictures(evaluation, _PHOTOGRAPHS), blank])
    read = components.photographs(run.method.encoder, (at.place,))
    (tokens,) = jax.jit(read)(run.encoder, {"image": images})
    return images, (np.asarray(tokens) - at.basis.mean) @ at.basis.eigenvectors[:, top]


def compare(found) -> dict[str, Any]:
    """SI in descending order, and by depth where every run has that, a line a run."""
    levels = {f"high ({soap.HIGH})": soap.HIGH, f"chance ({soap.CHANCE:.2f})": soap.CHANCE}

    def curve(values):
        return {"mean": values["scores"], "error": values["errors"]}

    figures = {
        "soap_scores.png": drawing.draw_scores(
            {label: curve(metrics) for label, metrics in found.items()},
            levels,
            "1: responds to the position alone; band: one standard error over images",
        )
    }
    if all("depths" in metrics for metrics in found.values()):
        highest = {
            label: [(d["scores"][0], d["errors"][0]) for d in metrics["depths"]]
            for label, metrics in found.items()
        }
        figures["soap_depths.png"] = drawing.draw_by_depth(
            {
                label: dict(zip(("mean", "error"), zip(*values[:-1], strict=True), strict=True))
                for label, values in highest.items()
            },
            {label: values[-1][0] for label, values in highest.items()},
            levels,
        )
    return figures


TASK = Task(
    check,
    run,
    FIELDS,
    compare=compare,
    unprojected=lambda config: "it fits one; config.against compares with another",
    files=(FILE,),
    unswept=base.no_score,
)
