"""MoCo v3 against the authors' code."""

import jax
import oracles
import pytest

from dppmask_jax.losses.contrastive import info_nce

pytestmark = oracles.MARKS


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_loss(temperature):
    oracle, ending = oracles.load("moco_loss"), f"T{temperature}"
    q1, q2, k1, k2 = (oracle[name] for name in ("q1", "q2", "k1", "k2"))
    with_gradient = jax.jit(jax.value_and_grad(info_nce))
    factor = 2 * temperature  # theirs
    first, of_q1 = with_gradient(q1, k2, temperature)
    second, _ = with_gradient(q2, k1, temperature)
    for name, value in (
        (f"loss_q1k2_{ending}", first),
        (f"loss_q2k1_{ending}", second),
        (f"loss_{ending}", first + second),
        (f"grad_q1_{ending}", of_q1),
    ):
        oracles.near(f"moco_loss, {name}", factor * value, oracle[name], 1e-6)
