"""What is measured in an encoder, against CL-vs-MIM's own code; the arrays are not part of the
project."""

import numpy as np
import oracles
import pytest

from dppmask_jax.analyses import attention, frequencies, ring_noise, spectra

pytestmark = oracles.MARKS
# Attention that the oracle describes in words.
ONE_KEY, ITSELF = np.eye(37)[np.full(37, 5)], np.eye(37)
MADE = {
    "onekey": ONE_KEY,
    "identity": ITSELF,
    "uniform": np.full((37, 37), 1 / 37),
    "cls_only": ITSELF[np.zeros(37, int)],
}


@pytest.mark.parametrize("kind", ["random", "local", "collapsed", *MADE])
def test_attention_distance_and_mutual_information(kind):
    oracle = oracles.load("clmim_attention")
    weights = np.broadcast_to(MADE[kind], (2, 3, 37, 37)) if kind in MADE else None
    weights = oracle[f"{kind}_attention"] if weights is None else weights
    apart = attention.distance(weights, (6, 6), 16)
    nmi = attention.mutual_information(weights)
    oracles.near(f"clmim_attention, {kind}", apart, oracle[f"{kind}_distance_per_head"], 1e-4)
    oracles.near(f"clmim_attention, {kind} NMI", nmi, oracle[f"{kind}_nmi_per_head"], 1e-5)
    assert nmi.min() >= 0


def test_uniform_attention_over_14_by_14_patches():
    expected = oracles.load("clmim_attention")["uniform14_distance"]
    found = attention.uniform_distance((14, 14), 16)
    oracles.near("clmim_attention, uniform 14x14", found, expected, 1e-4)


def test_singular_values_of_tokens_and_of_images():
    oracle = oracles.load("clmim_spectra")
    latents, valid = oracle["latents"], oracle["image_log_sv_valid"]
    of_images = spectra.image_log_singular_values(latents)
    of_tokens = spectra.token_log_singular_values(latents)
    oracles.near("clmim_spectra, images", of_images, oracle["image_log_sv"][:valid], 1e-4)
    oracles.near("clmim_spectra, tokens", of_tokens, oracle["token_log_sv"], 1e-4)
    alone = [spectra.token_log_singular_values(latents[i : i + 1]) for i in range(3)]
    oracles.near("clmim_spectra, an image", alone, oracle["token_log_sv_per_image"][:3], 1e-4)
    # As the task has them, from sums over groups of images.
    found = spectra.of_vectors(latents[:, 1:].mean(axis=1))
    for name, expected in (("log_singular_values", "image_log_sv"), ("drop", "image_delta")):
        values = found[name]["mean"]
        oracles.near(f"clmim_spectra, {name}", values, oracle[expected][: len(values)], 1e-4)
    assert len(values) == valid - 1  # without a group, which is one image here


@pytest.mark.parametrize("kind,side", [("white", 14), ("low", 14), ("odd7", 7), ("const", 14)])
def test_relative_log_amplitudes(kind, side):
    oracle = oracles.load("clmim_fourier")
    found = frequencies.log_amplitude(oracle[f"{kind}_tokens"], (side, side))
    oracles.near(f"clmim_fourier, {kind}", found, oracle[f"{kind}_delta"], 2e-5)


def test_frequency_noise():
    oracle = oracles.load("clmim_frequency_noise")
    noise = oracles.images(oracle["delta"])
    kept = [name for name in oracle if name.startswith("s") and not name.endswith("_cells")]
    assert len(kept) == 12
    for name in kept:
        half_width, frequency = (float(part[1:]) for part in name.split("_"))
        inside = ring_noise.ring(noise.shape[1:3], frequency, half_width)
        oracles.same(f"clmim_frequency_noise, {name}", inside.sum(), oracle[f"{name}_mask_cells"])
        found = ring_noise.filtered(noise, inside)
        oracles.near(f"clmim_frequency_noise, {name}", found, oracles.images(oracle[name]), 5e-4)
