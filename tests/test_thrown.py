"""Patches that are thrown away: neither seen nor predicted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dppmask_jax import config as pretraining
from dppmask_jax import masking, patches
from dppmask_jax.errors import InputError
from dppmask_jax.figures import panels
from dppmask_jax.masking.base import mask_from
from dppmask_jax.methods import METHODS, describing, ibot
from dppmask_jax.methods.base import Plan

THROWN, KEY = 3, jax.random.key(5)


def build(mask):
    """Random masks of which three patches are thrown."""

    def draw(keys, count, seen, most):
        number = seen.grid[0] * seen.grid[1]
        counts = jnp.broadcast_to(jnp.asarray(count), len(keys))
        orders = jax.vmap(lambda key: jax.random.permutation(key, number))(keys)
        return jax.vmap(lambda order, n: mask_from(order, n, THROWN))(orders, counts), {}

    return masking.Masker(draw, frozenset(), "three", num_thrown=lambda number: THROWN)


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    monkeypatch.setitem(masking.MASKERS, "three", masking.MaskerKind(build))


def built(method, **changes):
    config = tiny.config(method, mask__strategy="three", data__flip=False, **changes)
    found = METHODS[method].build(config, Plan(5, 10))
    return found, *tiny.filled(jax.eval_shape(found.init, KEY), seed=1)


def batch_of(size=2):
    image = np.random.default_rng(0).uniform(size=(size, 16, 16, 3)).astype(np.float32)
    return {"image": image, "index": np.arange(size, dtype=np.int32)}


def masks_of(batch, count):
    """The masks that a step of MAE or SimMIM draws for a batch."""
    keys = [jax.random.split(jax.random.fold_in(KEY, i), 3)[1] for i in batch["index"]]
    masker = build(None)
    return masker.draw(jnp.stack(keys), count, masking.Seen((4, 4)), count)[0]


def test_a_mask_shows_hides_and_throws_what_its_order_says():
    order = jnp.array([4, 2, 0, 5, 1, 3])
    mask = mask_from(order, 2, 3)
    assert np.flatnonzero(mask.mask).tolist() == [0] and int(mask.count) == 2
    assert np.flatnonzero(mask.thrown).tolist() == [1, 3, 5]
    assert np.flatnonzero(~mask.hidden).tolist() == [2, 4]
    for count, masked, thrown in ((6, 0, 0), (5, 1, 0), (4, 1, 1), (3, 1, 2), (1, 2, 3)):
        mask = jax.jit(lambda order, count: mask_from(order, count, 3))(order, count)
        assert (int(mask.mask.sum()), int(mask.thrown.sum())) == (masked, thrown), count


@pytest.mark.parametrize("method,changes", [
    ("mae", {}),
    ("simmim", {"model__relative": "none", "model__position": "fixed"}),
    ("simmim", {}),
])  # fmt: skip
def test_thrown_patches_receive_no_gradient_and_no_loss(method, changes):
    found, params, extra = built(method, model__depth=1, **changes)
    batch = batch_of()
    count = 16 - found.num_hidden[0]
    mask = masks_of(batch, count)
    assert (np.asarray(mask.thrown).sum(axis=1) == THROWN).all()

    @jax.jit
    @jax.value_and_grad
    def of_image(image, params, extra):
        return found.turns[0].loss(params, extra, {**batch, "image": image}, KEY, 0)[0]

    def of_pixels(image):
        return of_image(image, params, extra)

    loss, gradient = of_pixels(batch["image"])
    gradient = np.asarray(patches.patchify(np.asarray(gradient), 4))
    moved = np.abs(gradient).max(axis=2) > 0
    np.testing.assert_array_equal(moved, ~np.asarray(mask.thrown))
    cut = patches.patchify(batch["image"], 4).copy()
    cut[np.asarray(mask.thrown)] = 0.5
    others = patches.unpatchify(cut, (4, 4), 4)
    assert of_pixels(others)[0] == loss
    cut[np.asarray(mask.mask)] = 0.5  # those that are predicted
    assert of_pixels(patches.unpatchify(cut, (4, 4), 4))[0] != loss


HALF = {"mask__strategy": "three", "mask__ratio": (0.5,), "mask__ratio_var": (0.0,)}


def test_ibot_says_how_many_patches_are_thrown():
    found = METHODS["ibot"].build(tiny.config("ibot", **HALF), Plan(5, 10))
    assert found.num_hidden == (8, 8)
    assert found.describe[0][1].endswith("8 visible, 5 masked, 3 thrown of 16 patches")


def in_order(mask):
    """As `build`, but the order of the patches is that of the image."""

    def draw(keys, count, seen, most):
        orders = jnp.broadcast_to(jnp.arange(16), (len(keys), 16))
        counts = jnp.broadcast_to(jnp.asarray(count), len(keys))
        return jax.vmap(lambda order, n: mask_from(order, n, THROWN))(orders, counts), {}

    return build(mask)._replace(draw=draw)


@pytest.mark.slow
def test_ibot_hides_thrown_patches_from_the_student_and_predicts_them_not(monkeypatch):
    monkeypatch.setitem(masking.MASKERS, "three", masking.MaskerKind(in_order))
    config = tiny.config("ibot", **HALF, model__depth=1, data__local_views=0)
    of_teacher, of_student, push, hidden = ibot.teacher_logits, ibot.student_logits, [], []

    def teacher_logits(net, teacher, tokens, chosen):
        found = of_teacher(net, teacher, tokens, chosen)
        lean = push[-1][chosen][..., None] * jnp.arange(found["patch"].shape[-1])
        return found | {"patch": found["patch"] + lean}

    def student_logits(net, params, images, is_hidden, *rest):
        hidden.append(is_hidden)
        return of_student(net, params, images, is_hidden, *rest)

    monkeypatch.setattr(ibot, "teacher_logits", teacher_logits)
    monkeypatch.setattr(ibot, "student_logits", student_logits)
    found = METHODS["ibot"].build(config, Plan(5, 10))
    params, extra = tiny.filled(jax.eval_shape(found.init, KEY), seed=1)
    views = np.random.default_rng(0).integers(0, 256, (1, 2, 16, 16, 3), dtype=np.uint8)
    batch = {"global_views": views, "index": np.zeros(1, np.int32)}

    @jax.jit
    def patch_loss(leaning):
        push.append(leaning)
        (_, (metrics, _)) = found.turns[0].loss(params, extra, batch, KEY, 0)
        return metrics["loss_patch"], hidden[-1]

    before, seen_not = patch_loss(jnp.zeros(16))
    np.testing.assert_array_equal(seen_not, np.broadcast_to(np.arange(16) >= 8, (2, 16)))
    for patch in range(8, 16):  # 8 to 12 are masked, 13 to 15 thrown
        after, _ = patch_loss(jnp.zeros(16).at[patch].set(0.1))
        assert (after != before) == (patch < 13), patch


def test_an_order_lacks_what_a_mask_throws_away():
    order = np.stack([np.random.default_rng(i).permutation(16).astype(np.int32) for i in range(2)])
    masks = jax.vmap(lambda order: masking.base.mask_from(order, 4, THROWN))(order)
    np.testing.assert_array_equal(masks.kept, order[:, :-THROWN])
    masks = jax.vmap(lambda order: masking.base.mask_from(order, 4))(order)
    np.testing.assert_array_equal(masks.kept, order)


def test_what_is_thrown_stays_black_in_a_reconstruction():
    whole_images = {"model__relative": "shared", "model__position": "none"}  # are all it takes
    for method, changes in (("mae", {}), ("simmim", {}), ("simmim", whole_images)):
        found, params, extra = built(method, **changes)
        images = batch_of()["image"]
        order = np.stack([np.random.default_rng(i).permutation(16) for i in range(2)])
        reconstruct = jax.jit(found.reconstruct)
        whole = patches.patchify(np.asarray(reconstruct(params, extra, images, order)), 4)
        assert whole.any(axis=2).all(), "an order of all patches throws none away"
        made = reconstruct(params, extra, images, order[:, :-THROWN])
        made, cut = patches.patchify(np.asarray(made), 4), patches.patchify(images, 4)
        for b in range(2):
            shown, thrown = order[b, : 16 - found.num_hidden[0]], order[b, -THROWN:]
            np.testing.assert_allclose(made[b, shown], cut[b, shown], atol=1e-6)
            assert not made[b, thrown].any() and made[b, order[b, 4:-THROWN]].any(axis=1).all()


def test_shares_that_leave_nothing_to_predict_are_refused():
    words = r"hides 3 of 16 patches.* throws 3 away, which leaves none"
    for method, ratio in (("mae", 0.15), ("simmim", 0.15)):
        config = tiny.config(method, mask__strategy="three", mask__ratio=ratio)
        with pytest.raises(InputError, match=words):
            pretraining.check(config)


@pytest.mark.parametrize("ratios, variations, hides", [
    ((0.0, 0.2), (0.0, 0.0), 3),
    ((0.2, 0.7), (0.0, 0.0), 3),  # views of the larger share alone have more
    ((0.0, 0.3), (0.0, 0.15), 2),
    ((0.3,), (0.3,), 1),
    ((0.05, 0.7), (0.0, 0.0), None),  # the smaller share masks none of 16
    ((0.0, 0.7), (0.0, 0.05), None),
])  # fmt: skip
def test_every_share_of_ibot_hides_more_than_is_thrown(ratios, variations, hides):
    config = tiny.config(
        "ibot", mask__strategy="three", mask__ratio=ratios, mask__ratio_var=variations
    )
    if hides is None:
        return pretraining.check(config)
    with pytest.raises(InputError, match=f"hides {hides} of 16 patches of some views, .* throws 3"):
        pretraining.check(config)


@pytest.mark.parametrize("dataset", ["shapes", "small", "imagenet1k"])
def test_the_recipe_of_ibot_with_thrown_patches_is_one_it_takes(dataset):
    config = tiny.RECIPES["ibot"].get_config(f"dataset={dataset},mask=amt")
    config.data.source = "shapes"
    pretraining.check(config)


def test_thrown_patches_are_darker_than_masked_ones():
    image = np.full((4, 8, 3), 200, np.uint8)
    hidden, thrown = np.array([False, True, True, False]), np.array([False, False, True, False])
    panel = panels.mask_panel(image, hidden, (4, 2), thrown=thrown)
    means = panel.reshape(4, 4, 2, 3).mean(axis=(0, 2, 3))
    assert means[0] == means[3] == 200 and means[2] < 15 < 50 < means[1] < 100


def test_numbers_in_words():
    masker = build(None)
    assert describing.described_masks(masker, (0, 8), 16)[1] == (
        "three: 8 to 16 visible, 0 to 5 masked, 0 to 3 thrown of 16 patches"
    )
    none = masker._replace(num_thrown=lambda number: 0)
    assert describing.described_masks(none, (8, 8), 16)[1] == (
        "three: 8 visible, 8 masked of 16 patches"
    )
