import functools

import jax
import numpy as np
import oracles

from dppmask_jax.targets import hog

pytestmark = oracles.MARKS


def test_hog_of_noise_and_of_edges():
    oracle = oracles.load("maskfeat_hog")
    noise = oracles.images(oracle["noise"])
    for window, name in ((False, ""), (True, "_window16")):
        found = jax.jit(functools.partial(hog.features, window=window))(noise)
        oracles.near(f"maskfeat_hog, target{name}", found, oracle[f"target{name}"], 1e-6)
        found = hog.histograms(noise, window=window)
        oracles.near(f"maskfeat_hog, cells{name}", found, oracle[f"hog_raw{name}"], 1e-6)
    edge = oracles.images(oracle["edge"])
    found = hog.histograms(edge)
    oracles.near("maskfeat_hog, vertical edge", found, oracle["hog_edge"], 1e-6)
    found = hog.histograms(edge.transpose(0, 2, 1, 3))
    oracles.near("maskfeat_hog, horizontal edge", found, oracle["hog_edge_horizontal"], 1e-6)
    place = np.arange(32)
    diagonal = (place[:, None] + place >= 31).astype(np.float32)[None, :, :, None]
    found = hog.histograms(diagonal)
    oracles.near("maskfeat_hog, diagonal", found, oracle["hog_diagonal"], 1e-6)


def test_hog_of_whole_numbers_and_of_normalised_pixels():
    oracle = oracles.load("maskfeat_hog_uint8")
    image = oracle["image"][None]
    for window, name in ((False, ""), (True, "_window16")):
        found = np.asarray(hog.histograms(image, window=window))
        expected = oracle[f"hog_from_integers{name}"]
        oracles.near(f"maskfeat_hog_uint8, whole numbers{name}", found, expected, 1e-6)
        robust = oracle["robust_cells"]  # (3, 14, 14): cells that rounding does not decide
        expected = oracle[f"hog_from_normalised{name}"][0].transpose(0, 2, 3, 1)[robust]
        found = found[0].transpose(0, 2, 3, 1)[robust]
        oracles.near(f"maskfeat_hog_uint8, robust cells{name}", found, expected, 2e-6)
