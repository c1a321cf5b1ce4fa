"""Which spatial frequencies an encoder's tokens carry, and which its classifier relies on (arXiv
2305.00729, sections 3 and 4; the measures are those of arXiv 2202.06709)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dppmask_jax.analyses import base, classifiers, ring_noise
from dppmask_jax.errors import NotServed
from dppmask_jax.evals.base import BLOCKS_ALONE, Evaluation, Result, Score, Task, encoder_of
from dppmask_jax.figures.depths import Panel, draw_panels

_FLOOR = 1e-6  # below every amplitude, as in the authors' code
LEAST_SIDE = 3  # patches, for a second frequency

FIELDS = {**base.FIELDS, **ring_noise.FIELDS, **classifiers.FIELDS}


def num_bins(grid: tuple[int, int]) -> int:
    """How many frequencies stand on the diagonal of a grid of patches, 0 among them and the highest
    of an even side, which has no sign, left out."""
    return (min(grid) + 1) // 2


def log_amplitude(tokens, grid: tuple[int, int]):
    """The Fourier spectrum of a map of tokens along its diagonal, relative to its mean.

    The log amplitudes log(|F| + 1e-6) of the 2-D transform, averaged over images and channels, at
    the same frequency down and across. On an oblong grid that is the same share of the highest
    frequency of either side, to the nearest one that the longer side has.

    Args:
      tokens: (B, N, D) without class token, row by row.
      grid: (rows, columns) of patches, at least 3 x 3.

    Returns:
      (bins,) float32, see `num_bins`, from the lowest frequency, which is 0, to the highest.

    Raises:
      NotServed: a smaller grid.
    """
    amplitudes = jnp.mean(of_images(tokens, grid), axis=0)
    return amplitudes - amplitudes[0]


def of_images(tokens, grid: tuple[int, int]):
    """(B, bins) float32: the log amplitudes of `log_amplitude` of each image, not relative."""
    check_grid(grid)
    if tokens.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"{tokens.shape[1]} tokens do not fit {grid[0]}x{grid[1]} patches")
    tokens = jnp.asarray(tokens, jnp.float32)
    mean = jnp.mean(tokens, axis=1, keepdims=True)
    # The few frequencies alone, as a matrix product; without the mean, which only the first has,
    # rounding leaves nothing of it in the others.
    waves = _waves(grid)
    parts = jnp.einsum("kn,bnd->kbd", waves, tokens - mean, precision=jax.lax.Precision.HIGHEST)
    real, imaginary = jnp.split(parts, 2)
    amplitude = jnp.sqrt(jnp.square(real) + jnp.square(imaginary))
    amplitude = amplitude.at[0].set(tokens.shape[1] * jnp.abs(mean[:, 0]))
    return jnp.mean(jnp.log(amplitude + _FLOOR), axis=-1).T


def check_grid(grid: tuple[int, int]) -> None:
    """Raises NotServed where a grid of patches has one frequency alone."""
    if min(grid) < LEAST_SIDE:
        raise NotServed(
            f"frequencies need at least {LEAST_SIDE} x {LEAST_SIDE} patches, and the images have "
            f"{grid[0]} x {grid[1]}; give larger images with --config.image_size"
        )


def _waves(grid: tuple[int, int]) -> np.ndarray:
    """(2 bins, N) float32: the cosines of all frequencies, then the sines."""
    rows, columns = grid
    steps = np.arange(num_bins(grid)) / min(grid)  # of a whole turn
    down, across = np.rint(steps * rows) / rows, np.rint(steps * columns) / columns
    y, x = np.indices(grid).reshape(2, -1)
    angle = 2 * np.pi * (down[:, None] * y + across[:, None] * x)
    return np.concatenate([np.cos(angle), np.sin(angle)]).astype(np.float32)


def check(evaluation: Evaluation) -> None:
    """Raises NotServed without blocks to look into, for too few patches, or where a projection
    changes nothing, and InputError where the classifier that is to be tested under noise cannot be
    had."""
    base.require_trace(evaluation)
    base.require_images(evaluation, 2)
    check_grid(encoder_of(evaluation).grid)
    ring_noise.check(evaluation)
    because = ring_noise.unprojected_because(evaluation)
    if evaluation.config.projection and because:
        raise NotServed(
            f"config.projection={evaluation.config.projection} does nothing for task frequencies: "
            f"{because}, and the amplitudes are taken before the final norm; leave it out"
        )


def run(evaluation: Evaluation) -> Result:
    """The relative log amplitude of each depth, and the accuracy under noise of each frequency."""
    grid = evaluation.run.method.encoder.grid

    def statistic(trace):
        found = [of_images(tokens, grid) for tokens in base.patch_tokens(trace)]
        return {"amplitude": jnp.stack(found, axis=1)}

    found = base.per_image(evaluation, statistic, "spectra")["amplitude"]
    delta = found - found[..., :1]
    spectra = [base.curve(delta[:, depth]) for depth in range(delta.shape[1])]
    highest = base.curve(delta[..., -1])
    rows = [("what", "value")]
    rows += [
        (f"Δ log amplitude, depth {depth}", base.with_error(highest, depth, 3))
        for depth in range(len(spectra))
    ]
    metrics = {
        "images": len(found),
        "grid": list(grid),
        "frequencies": (2 * np.arange(delta.shape[-1]) / min(grid)).tolist(),  # shares of pi
        "highest": highest,
        "spectra": spectra,
    }
    protocol = (
        f"Fourier amplitudes of the patch tokens of {len(found):,} images, the highest frequency "
        f"of the diagonal ({metrics['frequencies'][-1]:.2f} π) against the mean, {_of_grid(grid)}; "
        "depth 0 is the embedding, l the output of block l"
    )
    row = dict(rows[1 + depth] for depth in _shown_depths(rows))
    note = "± is the standard error over the images. 0: as strong as the mean; below 0: weaker"
    noise, because = ring_noise.measured(evaluation)
    if noise:
        metrics["noise"] = noise
        rows += ring_noise.rows(noise)
        row |= ring_noise.row(noise)
        protocol += f"; {ring_noise.in_words(noise)}"
        note += f". {ring_noise.NOTE}"
    else:
        protocol += f"; no accuracy under noise: {because}"
    return Result(
        metrics,
        rows,
        protocol,
        Score(
            "Δ log amplitude, last block",
            highest["mean"][-1],
            standard_error=highest["error"][-1],
            in_percent=False,
            images=metrics["images"],
        ),
        note=note,
        row=row,
    )


def _of_grid(grid: tuple[int, int]) -> str:
    return f"{grid[0]} x {grid[1]} patches"


def _shown_depths(rows) -> tuple[int, ...]:
    """The depths that a table over several runs has: first, middle and last."""
    last = len(rows) - 2
    return tuple(dict.fromkeys((0, (last + 1) // 2, last)))


def compare(found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The figure: the highest frequency by depth, and the drop under noise by frequency."""
    highest = Panel(
        {label: metrics["highest"] for label, metrics in found.items()},
        "Δ log amplitude (natural log),\nhighest frequency less mean",
        xlabel="depth (0: embedding, l: output of block l)",
        first=0,
    )
    panels = [highest, *ring_noise.panels(found)]
    return {"frequencies.png": draw_panels(panels, note=_note(found.values()))}


def _note(found: Iterable[Mapping[str, Any]]) -> str:
    """What the bands are, and of which images, where those under noise are others."""
    found = list(found)
    noise = [metrics["noise"] for metrics in found if "noise" in metrics]
    under_noise = f", under noise over {base.counted_images(noise)}" if noise else ""
    return base.over_images(found) + under_noise


TASK = Task(
    check,
    run,
    FIELDS,
    compare=compare,
    unprojected=lambda config: "" if config.noise.classifier in ("auto", "ridge") else BLOCKS_ALONE,
)
