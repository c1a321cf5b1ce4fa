import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppmask_jax.losses.classification import (
    asymmetric_loss,
    binary_cross_entropy,
    soft_cross_entropy,
)

LN3 = float(np.log(3.0))  # the logit of 3 / 4


def test_soft_cross_entropy_by_hand():
    logits = jnp.array([[0.0, LN3], [LN3, 0.0]])  # probabilities 1/4, 3/4 and 3/4, 1/4
    targets = jnp.array([[0.5, 0.5], [1.0, 0.0]])
    first = -(0.5 * np.log(0.25) + 0.5 * np.log(0.75))
    expected = (first - np.log(0.75)) / 2
    np.testing.assert_allclose(soft_cross_entropy(logits, targets), expected, rtol=1e-6)
    gradient = jax.grad(soft_cross_entropy)(logits, targets)
    np.testing.assert_allclose(gradient, [[-0.125, 0.125], [-0.125, 0.125]], rtol=1e-6)


def test_soft_cross_entropy_of_large_logits():
    logits = jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    targets = jnp.array([[0.1, 0.9, 0.0], [0.0, 1.0, 0.0]])
    value, gradient = jax.value_and_grad(soft_cross_entropy)(logits, targets)
    np.testing.assert_allclose(value, 0.9 * 2e4 / 2, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0.45, -0.45, 0], [0, 0, 0]], rtol=1e-6, atol=1e-9)


def test_binary_cross_entropy_by_hand():
    logits = jnp.array([[LN3, -LN3, 0.0], [LN3, 0.0, LN3]])  # 3/4, 1/4, 1/2 / 3/4, 1/2, 3/4
    targets = jnp.array([[1.0, 1.0, 0.0], [0.0, 0.5, 1.0]])
    right = np.array([0.75, 0.25, 0.5, 0.25, 0.5, 0.75])  # the soft target costs ln 2 as well
    expected = -np.log(right).mean()
    np.testing.assert_allclose(binary_cross_entropy(logits, targets), expected, rtol=1e-6)
    gradient = jax.grad(binary_cross_entropy)(logits, targets)
    by_hand = np.array([[-0.25, -0.75, 0.5], [0.75, 0.0, -0.25]]) / 6
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-6, atol=1e-9)


def test_binary_cross_entropy_of_large_logits():
    logits, targets = jnp.array([[1e4, 1e4, -1e4, -1e4]]), jnp.array([[1.0, 0.0, 1.0, 0.0]])
    value, gradient = jax.value_and_grad(binary_cross_entropy)(logits, targets)
    np.testing.assert_allclose(value, 2e4 / 4, rtol=1e-6)
    np.testing.assert_array_equal(gradient, [[0.0, 0.25, -0.25, 0.0]])


def test_asymmetric_loss_by_hand():
    logits = jnp.array([[LN3, LN3], [-LN3, -4.0]])  # probabilities 3/4, 3/4 / 1/4, below 0.05
    targets = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    # The hard negative counts as 0.7, the easy one as nothing.
    negative = -(0.7**4) * np.log(0.3)
    expected = (-np.log(0.75) + negative - np.log(0.25)) / 2
    np.testing.assert_allclose(asymmetric_loss(logits, targets), expected, rtol=1e-6)
    expected = (-0.25 * np.log(0.75) + negative - 0.75 * np.log(0.25)) / 2
    found = asymmetric_loss(logits, targets, gamma_pos=1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    found = asymmetric_loss(logits, targets, gamma_neg=1.0, clip=0.25)
    expected = (-np.log(0.75) - 0.5 * np.log(0.5) - np.log(0.25)) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_gradient_of_the_asymmetric_loss_is_the_papers():
    logits = jnp.array([[LN3, LN3, -4.0]])
    targets = jnp.array([[1.0, 0.0, 0.0]])
    gradient = jax.grad(asymmetric_loss)(logits, targets, 4.0, 2.0, 0.05)
    positive = 0.25**2 * (2 * 0.75 * np.log(0.75) - 0.25)
    negative = 0.7**4 * (1 / 0.3 - 4 * np.log(0.3) / 0.7) * 0.75 * 0.25
    np.testing.assert_allclose(gradient, [[positive, negative, 0.0]], rtol=1e-5)


def test_asymmetric_loss_without_asymmetry_is_the_sum_of_cross_entropies():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(4, 5)) * 20, jnp.float32)
    targets = jnp.asarray(rng.random((4, 5)), jnp.float32)

    def plain(logits):
        return asymmetric_loss(logits, targets, 0.0, 0.0, 0.0)

    def expected(logits):
        return 5 * binary_cross_entropy(logits, targets)

    for found, wanted in zip(
        jax.value_and_grad(plain)(logits), jax.value_and_grad(expected)(logits), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_asymmetric_loss_of_large_logits(gamma, clip):
    logits = jnp.array([[1e4, 200.0, 20.0, 0.0, -20.0, -200.0, -1e4]])
    for target in (0.0, 1.0):
        targets = jnp.full_like(logits, target)
        value, gradient = jax.value_and_grad(asymmetric_loss)(logits, targets, gamma, gamma, clip)
        assert np.isfinite(value) and np.all(np.isfinite(gradient))
        # What is certain and right costs nothing, what is certain and wrong costs a lot.
        right = [4, 5, 6] if target == 0.0 else [0, 1, 2]
        np.testing.assert_allclose(np.asarray(gradient)[0, right], 0.0, atol=1e-8)
        if target == 1.0 or clip == 0.0:
            middle = 0.5**gamma * np.log(2)
            np.testing.assert_allclose(value, 10220.0 + middle, rtol=1e-4)
            np.testing.assert_allclose(abs(gradient[0, -1 if target else 0]), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        soft_cross_entropy,
        binary_cross_entropy,
        asymmetric_loss,
    ],
)
def test_classification_losses_are_float32_from_low_precision(loss):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(64, 9)), jnp.bfloat16)
    targets = jax.nn.one_hot(jnp.arange(64) % 9, 9, dtype=jnp.bfloat16)
    value = loss(logits, targets)
    assert value.dtype == jnp.float32 and value.shape == ()
    exact = loss(logits.astype(jnp.float32), targets.astype(jnp.float32))
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    with pytest.raises(AssertionError):
        loss(logits, targets[:, :8])
