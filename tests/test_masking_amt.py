"""Masks and thrown patches by attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs import ibot, mae, simmim
from dppmask_jax import config as pretraining
from dppmask_jax import masking
from dppmask_jax.errors import InputError
from dppmask_jax.masking import MASKERS
from dppmask_jax.masking.amt import amt, attention_weights
from dppmask_jax.methods import METHODS
from dppmask_jax.methods.base import Plan

FIELDS = {name.removeprefix("mask."): f.default for name, f in MASKERS["amt"].fields.items()}


class Settings:
    def __init__(self, **changes):
        vars(self).update(FIELDS | changes)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def draws(key, weights, grid, count, num_thrown, number, cell=1):
    keys = jax.random.split(key, number)
    draw = functools.partial(amt, grid=grid, count=count, num_thrown=num_thrown, cell=cell)
    return jax.vmap(lambda key: draw(key, weights))(keys)


def first_drawn(weights, number):
    """P(patch i is among the first `number` of a draw without replacement), by all orders."""
    size = len(weights)

    @functools.cache
    def chance(left, steps):
        """(size,): of each patch, of being drawn in so many steps from those that are left."""
        if not steps:
            return np.zeros(size)
        total = sum(weights[i] for i in left)
        found = np.zeros(size)
        for i in left:
            found += weights[i] / total * (np.eye(size)[i] + chance(left - {i}, steps - 1))
        return found

    return chance(frozenset(range(size)), number)


def test_patches_are_drawn_one_after_the_other_in_proportion_to_their_weights():
    """Each patch's share of the draws in which it is masked, and of those in which it is thrown."""
    weights, number = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6), 8000
    masks = draws(jax.random.key(0), jnp.float32(weights), (2, 3), 1, 2, number)
    assert (np.asarray(masks.mask).sum(axis=1) == 3).all()
    masked = first_drawn(weights, 3)
    hidden = first_drawn(weights, 5)
    for found, expected in ((masks.mask, masked), (masks.thrown, hidden - masked)):
        counts = np.asarray(found).sum(axis=0)
        for count, share in zip(counts, expected, strict=True):
            cells = [count, number - count], [share * number, (1 - share) * number]
            assert stats.chisquare(*cells).pvalue > 1e-4, (counts / number, expected)


def test_the_order_of_a_draw_is_that_of_all_patches():
    """The first that is drawn, of two masked patches, by hand: weight over the sum of weights."""
    weights = np.float32([3, 1, 0, 4])
    masks = draws(jax.random.key(1), jnp.asarray(weights), (2, 2), 3, 0, 4000)
    counts = np.asarray(masks.mask).sum(axis=0)
    assert counts[2] == 0
    assert stats.chisquare(counts[[0, 1, 3]], np.float64([3, 1, 4]) / 8 * 4000).pvalue > 1e-4


def test_heads_are_scaled_one_by_one():
    attention = jnp.float32([[0.1, 0.3, 0.2, 0.4], [0.25] * 4, [0.0, 0.02, 0.0, 0.01]])
    expected = [0, (2 / 3 + 1) / 3, (1 / 3) / 3, (1 + 0.5) / 3]
    np.testing.assert_allclose(attention_weights(attention), expected, atol=1e-6)


@pytest.mark.parametrize(("count", "masked", "thrown"), [(30, 88, 78), (1, 117, 78), (195, 1, 0)])
def test_counts(count, masked, thrown):
    masker = MASKERS["amt"].build(Settings())
    attention = jax.random.uniform(jax.random.key(2), (5, 3, 196))
    seen = masking.Seen((14, 14), attention=lambda: attention)
    keys = jax.random.split(jax.random.key(3), 5)
    mask, _ = jax.jit(lambda keys: masker.draw(keys, count, seen, count))(keys)
    assert masker.num_thrown(196) == 78
    for name, number in (("mask", masked), ("thrown", thrown)):
        assert (np.asarray(getattr(mask, name)).sum(axis=1) == number).all(), name
    order = np.asarray(mask.order)
    assert (np.sort(order, axis=1) == np.arange(196)).all()
    for b in range(5):
        assert not np.asarray(mask.hidden)[b, order[b, :count]].any()
        assert np.asarray(mask.thrown)[b, order[b, 196 - thrown :]].all()
    traced, _ = jax.jit(lambda keys, count: masker.draw(keys, count, seen, 196))(
        keys, jnp.full(5, count)
    )
    np.testing.assert_array_equal(traced.order, order)


def test_masks_are_uniform_until_attention_guides_them():
    masker = MASKERS["amt"].build(Settings(thrown=0.25, guided_from=0.5))
    keys = jax.random.split(jax.random.key(4), 600)
    attention = jnp.zeros((600, 2, 16)).at[:, :, :4].set(1.0)

    @jax.jit
    def masked(progress):
        seen = masking.Seen((4, 4), progress, attention=lambda: attention)
        return masker.draw(keys, 8, seen, 8)[0].mask

    before, after = (np.asarray(masked(progress)) for progress in (0.49, 0.5))
    assert (after == ([True] * 4 + [False] * 12)).all()
    counts = before.sum(axis=0)
    assert stats.chisquare(counts, np.full(16, 600 * 4 / 16)).pvalue > 1e-4
    guided = masker.schedules["mask.guided_from"]
    assert [float(guided(p)) for p in (0.0, 0.49, 0.5, 1.0)] == [0, 0, 1, 1]


def test_cells_are_drawn_whole_by_the_sum_of_their_weights():
    weights = jnp.zeros((4, 6)).at[:2, 2:4].set(0.1).at[2:, 4:].set(jnp.float32([[0, 3], [0, 0]]))
    masks = draws(jax.random.key(5), weights.ravel(), (4, 6), 24 - 8, 4, 400, 2)
    cells = np.asarray(masks.mask).reshape(-1, 2, 2, 3, 2).transpose(0, 1, 3, 2, 4)
    cells = cells.reshape(-1, 6, 4)
    assert (cells.all(axis=2) | ~cells.any(axis=2)).all()
    first = cells.all(axis=2).sum(axis=0)
    assert first[[0, 2, 3, 4]].sum() == 0
    share = 0.4 / 3.4
    assert stats.chisquare(first[[1, 5]], np.array([share, 1 - share]) * 400).pvalue > 1e-4


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (mae, "30 visible, 88 masked, 78 thrown of 196"),
        (simmim, "56 visible, 88 masked, 52 thrown of 196"),  # 14, 22 and 13 cells of four
        (ibot, "49 to 69 visible, 88 to 108 masked, 39 thrown of 196"),
    ],
)
def test_the_recipes_hide_as_many_patches_as_they_say(recipe, words):
    config = recipe.get_config("dataset=imagenet1k,mask=amt")
    pretraining.check(config)
    method = METHODS[config.method].build(config, Plan(5, 10))
    assert words in dict(method.describe)["masks"]


def test_images_alone_do_not_do():
    images = np.zeros((1, 32, 32, 3), np.uint8)
    with pytest.raises(
        ValueError, match=r"strategy='amt' needs a class token's attention, which images"
    ):
        masking.export_masks(images, strategy="amt")
    with pytest.raises(InputError, match="throws 8 away, which leaves none to predict"):
        masking.kinds.check_thrown(Settings(strategy="amt", ratio=0.4, thrown=0.5), 16, 7)
