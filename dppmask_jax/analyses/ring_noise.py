"""Noise of one frequency at a time, and what it costs a classifier (arXiv 2202.06709, section 4;
`FreqAttack` of its code)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dppmask_jax.analyses import base, classifiers
from dppmask_jax.errors import InputError
from dppmask_jax.evals import features
from dppmask_jax.evals.base import Evaluation, batches, percent, points
from dppmask_jax.fields import Field, above, one_of, optional, several, whole
from dppmask_jax.figures.depths import Panel
from dppmask_jax.methods import supervised

_HALF_WIDTH = 0.05 * math.pi
_FREQUENCY = above(0, math.pi)

FIELDS = {
    "noise.classifier": Field(
        "auto",
        one_of("auto", "own", "ridge", "none"),
        "tested under noise: own head of the checkpoint, ridge on frozen features, or none; auto: "
        "the first that there is",
    ),
    "noise.images": Field(
        400, whole(2), "validation images under noise, evenly spread; encoded once for each ring"
    ),
    "noise.frequencies": Field(
        (0.4, 0.8, 1.2, 1.6, 2.0, 2.4, 2.8),
        several(_FREQUENCY, "a list of numbers above 0 and below pi such as (0.5, 1.5)", True),
        "middles of the rings, in radians a pixel",
    ),
    "noise.half_width": Field(
        None,
        optional(_FREQUENCY),
        "of a ring, in radians a pixel; None: 0.05 pi, more for images below 20 pixels",
    ),
    "noise.eps": Field(
        1.0,
        above(0),
        "noise before the filter is this or less this, in deviations of the channels, data.std",
    ),
    "noise.seed": Field(0, whole(0), "of the noise"),
}


def ring(size: tuple[int, int], frequency: float, half_width: float) -> np.ndarray:
    """Which frequencies a ring holds: a square of the spectrum about 0, less a smaller one.

    As in the authors' code a square of half side m covers -m to m - 1, so what it keeps of real
    noise has an imaginary part. On oblong images squares reach the same frequencies in radians.

    Args:
      size: (height, width) in pixels.
      frequency, half_width: in radians a pixel; the squares end at their sum and difference.

    Returns:
      (height, width) bool, in the order of `jnp.fft.fft2`.
    """
    inside = _square(size, frequency + half_width) & ~_square(size, frequency - half_width)
    return np.fft.ifftshift(inside)


def _square(size: tuple[int, int], end: float) -> np.ndarray:
    along = []
    for side in size:
        half = max(int(end * side / (2 * math.pi)), 0)
        place = np.arange(side) - side // 2
        along.append((place >= -half) & (place < half))
    return np.logical_and.outer(*along)


def sign_noise(keys, shape: tuple[int, int, int], eps: float):
    """(B, H, W, 3) float32 of eps and -eps, one key an image."""
    return eps * jnp.sign(jax.vmap(lambda key: jax.random.normal(key, shape))(keys))


def filtered(noise, inside):
    """What a ring keeps of noise: its real part.

    Args:
      noise: (B, H, W, C).
      inside: (H, W), as `ring` gives it.
    """
    spectrum = jnp.fft.fft2(noise, axes=(1, 2))
    return jnp.real(jnp.fft.ifft2(spectrum * inside[..., None], axes=(1, 2)))


def check(evaluation: Evaluation) -> None:
    """Raises InputError where the classifier that is asked for cannot be had, or a ring holds no
    frequency of the images."""
    name, _ = _classifier(evaluation)
    if name:
        _rings(evaluation.config)


def unprojected_because(evaluation: Evaluation) -> str:
    """Why a projection changes no accuracy under noise, in words; "" where it does."""
    name, because = _classifier(evaluation)
    own = "the checkpoint's own head was trained without; set config.noise.classifier=ridge"
    return {"": f"no accuracy under noise: {because}", "own": own}.get(name, "")


def measured(evaluation: Evaluation) -> tuple[dict[str, Any] | None, str]:
    """(accuracies under noise of each ring, ""), or (None, why there are none, in words)."""
    name, because = _classifier(evaluation)
    if not name:
        return None, because
    config = evaluation.config
    params, extra, scores, words = {"own": _own, "ridge": _ridge}[name](evaluation)
    rings, half_width = _rings(config)
    rings = np.concatenate([np.zeros_like(rings[:1]), rings])  # the first leaves no noise
    key = jax.random.key(config.noise.seed)
    pixels = evaluation.run.pixels
    deviation = jnp.asarray(pixels.std)

    def encode(params, extra, batch):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
        noise = sign_noise(keys, batch["image"].shape[1:], config.noise.eps)
        images = pixels.unit(batch["image"])

        def under(inside):
            added = filtered(noise, inside)
            best = jnp.argmax(scores(params, extra, images + added * deviation), axis=-1)
            return best == batch["label"], jnp.mean(jnp.square(added), axis=(1, 2, 3))

        right, power = jax.lax.map(under, jnp.asarray(rings, jnp.float32))
        return {"right": right.T, "power": power.T}

    stream = batches(
        evaluation,
        evaluation.val,
        "noise",
        base.spread(len(evaluation.val), config.noise.images),
    )
    found, _ = features.extractor(encode)(params, extra, base.numbered(stream))
    right = found["right"].astype(np.float64)
    return {
        "classifier": name,
        "words": words,
        "images": len(right),
        "classes": evaluation.train.num_classes,
        "eps": config.noise.eps,
        "half_width": half_width,
        "frequencies": list(config.noise.frequencies),
        "clean": {key: value[0] for key, value in base.curve(right[:, :1]).items()},
        "accuracy": base.curve(right[:, 1:]),
        "drop": base.curve(right[:, :1] - right[:, 1:]),
        "deviation": np.sqrt(found["power"][:, 1:].mean(axis=0, dtype=np.float64)).tolist(),
    }, ""


def _classifier(evaluation: Evaluation) -> tuple[str, str]:
    """("own" or "ridge", "") or ("", why neither is tested, in words).

    Raises:
      InputError: it is asked for and cannot be had.
    """
    config = evaluation.config
    wanted = config.noise.classifier
    if wanted == "none":
        return "", "config.noise.classifier is none"
    because = _unlabelled_because(evaluation)
    if because and wanted == "auto":
        return "", because
    if because:
        raise InputError(
            f"config.noise.classifier={wanted} needs labels of both splits, and {because}; set "
            "it to none"
        )
    because = "" if wanted == "ridge" else classifiers.no_own_head_because(evaluation)
    if because and wanted == "own":
        raise InputError(
            f"config.noise.classifier=own is the checkpoint's own head, but {because}; give the "
            "source that it was trained on, or set it to ridge"
        )
    return ("ridge" if wanted == "ridge" or because else "own"), ""


def _unlabelled_because(evaluation: Evaluation) -> str:
    where = f"config.data.source={evaluation.config.data.source}"
    if evaluation.val is None:
        return f"{where} has no validation split"
    because = evaluation.train.unlabelled_because or evaluation.val.unlabelled_because
    return f"{where} has no labels: {because}" if because else ""


def _rings(config) -> tuple[np.ndarray, float]:
    """((frequencies, H, W) bool, half of their width)."""
    size = tuple(config.image_size)
    half_width = config.noise.half_width or max(_HALF_WIDTH, math.pi / min(size))
    rings = [ring(size, frequency, half_width) for frequency in config.noise.frequencies]
    for frequency, inside in zip(config.noise.frequencies, rings, strict=True):
        if not inside.any():
            raise InputError(
                f"the ring of config.noise.frequencies about {frequency:g} holds no frequency of "
                f"images of {size[0]}x{size[1]}; raise config.noise.half_width above "
                f"{half_width:.3g} or leave it out"
            )
    return np.stack(rings), half_width


def _own(evaluation: Evaluation):
    """(parameters, more of them, (both, images in 0..1 and beyond) -> (B, C), what it is in
    words)."""
    run = evaluation.run
    return run.params, run.extra, run.method.logits, "the checkpoint's own head"


def _ridge(evaluation: Evaluation):
    """As `_own`, of a ridge classifier that is fitted now."""
    run = evaluation.run
    encode = supervised.encoder_features(run.method.encoder)
    fitted, _ = classifiers.fitted_ridge(evaluation)
    layer = {"weights": fitted.weights.astype(np.float32), "bias": fitted.bias.astype(np.float32)}

    def scores(params, layer, images):
        return encode(params, images)["patches"] @ layer["weights"] + layer["bias"]

    return run.encoder, layer, scores, f"a ridge classifier ({fitted.words})"


# What is shown of it.

NOTE = (
    "A drop is the accuracy without noise less that under it, in percentage points; its error is "
    "that of the same images; the largest of them is chosen on these very images, and so overstated"
)


def in_words(found: Mapping[str, Any]) -> str:
    """How it was measured."""
    return (
        f"accuracy of {found['words']} on {found['images']:,} images under noise of "
        f"±{found['eps']:g} deviations, filtered by rings {2 * found['half_width']:.3g} rad wide"
    )


def rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of a table: the accuracy without noise, and the drop for each ring."""
    clean, drop = found["clean"], found["drop"]
    table = [("accuracy without noise", percent(clean["mean"], clean["error"]))]
    for place, frequency in enumerate(found["frequencies"]):
        lost = points(drop["mean"][place], drop["error"][place])
        deviation = found["deviation"][place]
        table.append((f"drop under noise at {frequency:g} rad, deviation {deviation:.2f}", lost))
    return table


def row(found: Mapping[str, Any]) -> dict[str, str]:
    """For a table over several runs: the accuracy without noise, and the largest drop."""
    table = rows(found)
    worst = int(np.argmax(found["drop"]["mean"]))
    return dict(
        [table[0], ("largest drop", f"{table[1 + worst][1]} ({found['frequencies'][worst]:g} rad)")]
    )


def panels(found: Mapping[str, dict[str, Any]]) -> list[Panel]:
    """A panel of the drops of those of some results that have them, if at the same frequencies."""
    noise = {label: metrics["noise"] for label, metrics in found.items() if "noise" in metrics}
    alike = {tuple(of_one["frequencies"]) for of_one in noise.values()}
    if len(alike) != 1:
        return []
    return [
        Panel(
            {label: base.in_percent(of_one["drop"]) for label, of_one in noise.items()},
            "drop of accuracy (percentage points)",
            xlabel="frequency of the noise (radians a pixel)",
            places=alike.pop(),
            levels={"no drop": 0.0},
        )
    ]
