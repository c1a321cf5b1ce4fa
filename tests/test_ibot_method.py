import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_ibot as reference
import tiny

from dppmask_jax import dpp, masking, optim, parallel, patches
from dppmask_jax.data.images import views
from dppmask_jax.data.images.augment import denormalize, normalize
from dppmask_jax.losses import distillation
from dppmask_jax.methods import chunks, ibot, ibot_masks
from dppmask_jax.methods.base import Plan
from dppmask_jax.models.heads import ProjectionHead
from dppmask_jax.models.sizes import SIZES, Size
from dppmask_jax.models.vit_module import ViT
from dppmask_jax.training.step import init_state, make_step

KEY = jax.random.key(5)
# These tests mostly compile: two blocks instead of the four of the smallest size on offer, and
# views that are only normalised unless a test asks for more.
SIZES["nano"] = Size(48, 2, 3)
PLAIN = {
    "data__jitter_prob": 0.0,
    "data__grey_prob": 0.0,
    "data__blur_prob": (0.0, 0.0, 0.0),
    "data__solarize_prob": 0.0,
}
AUGMENTED = {
    "data__jitter_prob": 0.8,
    "data__grey_prob": 0.2,
    "data__blur_prob": (1.0, 0.1, 0.5),
    "data__solarize_prob": 0.2,
}
STRATEGIES = ("dpp", "block", "random", "attention")


def batch_of(size=4, first=0, num_local=2):
    rng = np.random.default_rng(first)
    batch = {
        "global_views": rng.integers(0, 256, (size, 2, 16, 16, 3), dtype=np.uint8),
        "local_views": rng.integers(0, 256, (size, num_local, 8, 8, 3), dtype=np.uint8),
        "label": np.zeros(size, np.int32),
        "index": np.arange(first, first + size, dtype=np.int32),
        "row": np.arange(first, first + size, dtype=np.int32),
        "bad": np.zeros(size, bool),
    }
    return batch if num_local else {k: v for k, v in batch.items() if k != "local_views"}


@functools.cache
def built(strategy="dpp", **changes):
    """With parameters away from their start, where masks, centres and teachers make no
    difference."""
    changes = PLAIN | {"mask__strategy": strategy, "model__size": "nano"} | changes
    config = tiny.config("ibot", **changes)
    method = ibot.build(config, Plan(4, 20))
    params, extra = tiny.filled(jax.eval_shape(method.init, jax.random.key(1)), seed=2)
    unused = np.full(config.model.prototypes, -100, np.int32)  # for so many steps
    return config, method, params, extra | {"last_use": unused}


# The network.


@pytest.mark.parametrize("shared,fixed", [(True, False), (False, True)])
def test_parameter_counts_are_those_of_the_published_model(shared, fixed):
    backbone = ViT(SIZES["S"], (224, 224), 16)
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(backbone.init, jax.random.key(0), images)["params"]
    assert count(params) == 21_665_664
    assert params["positions"].shape == (1, 197, 384)
    head = ProjectionHead(2048, 256, 8192, trainable_scale=not fixed, shared=shared)
    tokens = jax.ShapeDtypeStruct((1, 384), jnp.float32)
    params = jax.eval_shape(head.init, jax.random.key(0), tokens)["params"]
    mlp = 384 * 2048 + 2048 + 2048 * 2048 + 2048 + 2048 * 256 + 256
    last = 256 * 8192 + (0 if fixed else 8192)
    assert count(params) == mlp + last * (1 if shared else 2)


@pytest.mark.slow
def test_init_is_the_published_one():
    config = tiny.config("ibot", model__size="S", model__prototypes=512)
    method = ibot.build(config, Plan(1, 1))
    params, extra = jax.jit(method.init)(jax.random.key(0))
    encoder, head = params["encoder"], params["head"]
    for table in (encoder["blocks"]["block_3"]["attn"]["qkv"]["kernel"], head["mlp_1"]["kernel"]):
        np.testing.assert_allclose(np.std(table), 0.02, rtol=0.2)
    np.testing.assert_allclose(np.std(encoder["positions"]), 0.02, rtol=0.1)
    bound = (3 * 4 * 4) ** -0.5
    kernel = encoder["patch_embed"]["proj"]["kernel"]
    assert 0.95 * bound < np.abs(kernel).max() <= bound
    direction = head["last_layer"]["direction"]
    assert 0.24 < np.abs(direction).max() <= 16**-0.5
    assert np.all(head["last_layer"]["scale"] == 1) and np.all(params["mask_embed"] == 0)
    same = {"encoder": encoder, "head": head}
    jax.tree.map(np.testing.assert_array_equal, extra["teacher"], same)
    assert "mask_embed" not in extra["teacher"]


@pytest.mark.slow  # the oracle of a tiny iBOT is the shorter one
@pytest.mark.parametrize("shared,fixed", [(True, False), (False, True)])
def test_head_is_the_reference(shared, fixed):
    head = ProjectionHead(12, 7, 9, trainable_scale=not fixed, shared=shared)
    tokens = np.random.default_rng(0).normal(size=(3, 4, 10)).astype(np.float32)
    shapes = jax.eval_shape(head.init, jax.random.key(0), tokens)["params"]
    params = tiny.filled(shapes, seed=1)
    assert ("scale" in params["last_layer"]) is not fixed
    logits = jax.jit(head.apply)({"params": params}, tokens)
    names = ("last_layer", "last_layer" if shared else "patch_last_layer")
    for name, value in zip(names, logits, strict=True):
        np.testing.assert_allclose(
            value, reference.head(tokens, params, name), rtol=2e-4, atol=1e-5
        )
    assert shared == np.array_equal(*logits)


@pytest.mark.slow  # the oracle of a tiny iBOT is the shorter one
def test_masked_patches_leave_no_trace_and_get_the_mask_embedding():
    config, _, params, _ = built()
    encoder, _ = ibot.model_from(config)
    images = normalize(batch_of()["global_views"][:, 0])
    mask = np.zeros((4, 16), bool)
    mask[:, [0, 5]] = True
    encode = jax.jit(
        lambda images, mask, embed: encoder.module.apply(
            {"params": params["encoder"]}, images, mask=mask, mask_token=embed
        )[0]
    )
    latent = encode(images, mask, params["mask_embed"])
    changed = images.at[:, :4, :4].set(9.0)  # patch 0
    np.testing.assert_array_equal(latent, encode(changed, mask, params["mask_embed"]))
    assert not np.allclose(latent, encode(changed, ~mask, params["mask_embed"]))
    assert not np.allclose(latent, encode(images, mask, params["mask_embed"] + 1))
    # Nothing masked: the same as without a mask.
    plain = jax.jit(encoder.module.apply)({"params": params["encoder"]}, images)[0]
    np.testing.assert_allclose(
        encode(images, np.zeros_like(mask), params["mask_embed"]), plain, rtol=1e-5, atol=1e-5
    )


# The masks.


HALF = {"mask__ratio": (0.0, 0.5), "mask__ratio_var": (0.0, 0.25)}


@functools.cache
def drawn(strategy, num_views=400, step=0, **changes):
    config = tiny.config("ibot", mask__strategy=strategy, **changes)
    draw = ibot_masks.drawer(config, masking.masker_of(config.mask), Plan(4, 20))
    keys = jax.random.split(jax.random.key(0), num_views)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(num_views, 16, 8)).astype(np.float32)
    weights = rng.uniform(size=(num_views, 16)).astype(np.float32)
    heads = np.stack([0.5 * weights, 1.5 * weights], axis=1)
    shown = {"features": lambda: features, "attention": lambda: heads}
    masks, metrics = jax.jit(lambda keys: draw(keys, KEY, step, **shown))(keys)
    return jax.device_get(masks), metrics.get("num_greedy"), features, weights


@pytest.mark.parametrize("strategy", ["dpp", "block", "random"])
def test_a_half_of_the_views_is_masked_by_exactly_what_was_drawn(strategy):
    masks, *_ = drawn(strategy, **HALF)
    counts = masks.mask.sum(axis=1)
    np.testing.assert_array_equal(counts, 16 - masks.count)
    assert set(counts) == {0, *range(4, 12)}  # int(16 r) with r from 0.25 to 0.75
    assert 0.4 < (counts == 0).mean() < 0.6
    assert np.all(np.bincount(counts)[4:12] >= 10)
    config = tiny.config("ibot", **HALF)
    assert ibot_masks.masked_range(config) == (4, 12)
    bounds = reference.ratio_bounds((0.0, 0.5), (0.0, 0.25))
    assert ibot_masks.masked_range(config) == tuple(int(16 * r) for r in bounds)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_order_has_the_visible_patches_first(strategy):
    masks, *_ = drawn(strategy) if strategy == "attention" else drawn(strategy, **HALF)
    for order, mask, count in zip(*masks[:3], strict=True):
        assert sorted(order) == list(range(16))
        assert not mask[order[:count]].any() and mask[order[count:]].all()


@pytest.mark.parametrize("strategy", ["dpp", "random"])
def test_one_entry_masks_every_view(strategy):
    masks, *_ = drawn(strategy, mask__ratio=(0.7,), mask__ratio_var=(0.05,))
    assert set(masks.mask.sum(axis=1)) == {10, 11}


def test_nothing_is_masked_before_the_start_epoch():
    late = {"mask__start_epoch": 2.0, "mask__ratio": (0.5,), "mask__ratio_var": (0.0,)}
    assert not drawn("random", 20, step=7, **late)[0].mask.any()
    assert np.all(drawn("random", 20, step=8, **late)[0].mask.sum(axis=1) == 8)


def test_probability_of_a_mask():
    masks, *_ = drawn("block", mask__ratio=(0.5,), mask__ratio_var=(0.0,), mask__prob=0.25)
    assert 0.18 < masks.mask.any(axis=1).mean() < 0.32


def test_dpp_is_the_selector_on_the_same_tokens_truncated():
    masks, greedy, features, _ = drawn("dpp", 50)
    keys = jax.vmap(lambda key: jax.random.split(key, 3)[2])(
        jax.random.split(jax.random.key(0), 50)
    )
    for i, key in enumerate(keys):
        order, num_greedy = dpp.select(key, features[i], 6, 0.9)  # 6 = 16 - int(16 * 0.65)
        np.testing.assert_array_equal(masks.order[i], order)
        assert greedy[i] == min(num_greedy, masks.count[i])
        if masks.count[i] < 16:
            alone, _ = dpp.select(key, features[i], int(masks.count[i]), 0.9)
            assert set(np.flatnonzero(~masks.mask[i])) == set(alone[: masks.count[i]].tolist())
    assert len(set(masks.count.tolist())) == 3  # 4 and 5 visible patches, or all


@pytest.mark.slow
def test_dpp_masks_come_from_the_teachers_tokens():
    config, method, params, extra = built(
        mask__ratio=(0.7,), mask__ratio_var=(0.0,), mask__tau=0.0, model__drop_path=0.0
    )
    batch = batch_of()
    aux = jax.jit(method.turns[0].loss)(params, extra, batch, KEY, 0)[1][1]
    assert float(method.report(extra, aux, 0)["num_greedy"]) == 5  # tau 0: all 16 - int(16 * 0.7)
    images = batch["global_views"][:, 0]
    encoder, _ = ibot.model_from(config)
    tokens = encoder.encode(extra["teacher"]["encoder"], normalize(images)).patches
    np.testing.assert_allclose(method.features(params, extra, images), tokens, rtol=1e-5, atol=1e-6)
    _, method, params, extra = built(mask__features="pixels")
    cut = patches.patchify(normalize(images), 4)
    np.testing.assert_allclose(method.features(params, extra, images), cut, rtol=1e-5)
    _, method, params, extra = built(mask__features="head", model__shared_head=False)
    tokens = encoder.encode(extra["teacher"]["encoder"], normalize(images)).patches
    np.testing.assert_allclose(
        method.features(params, extra, images),
        reference.head(tokens, extra["teacher"]["head"], "patch_last_layer"),
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.slow
def test_greedy_picks_are_those_of_masked_views():
    ratio = {"mask__ratio": (0.0, 0.7), "mask__ratio_var": (0.0, 0.0), "mask__tau": 0.0}
    _, method, params, extra = built(**ratio)
    _, (metrics, aux) = jax.jit(method.turns[0].loss)(params, extra, batch_of(), KEY, 0)
    assert 0 < float(aux["masked_views"]) < 1
    np.testing.assert_allclose(method.report(extra, aux, 0)["num_greedy"], 5.0, rtol=1e-6)
    np.testing.assert_allclose(metrics["masked_share"], aux["masked_views"] * 11 / 16, rtol=1e-6)


@pytest.mark.parametrize("variant", ["high", "low"])
def test_attention_masks_follow_a_planted_map(variant):
    ratio = {"mask__ratio": (0.3,), "mask__ratio_var": (0.2,), "mask__prob": 0.5}
    masks, _, _, weights = drawn("attention", mask__attention=variant, **ratio)
    counts = masks.mask.sum(axis=1)
    shared = counts.max()
    assert set(counts) == {0, shared} and 0.4 < (counts > 0).mean() < 0.6
    for mask, row in zip(masks.mask[counts > 0], weights[counts > 0], strict=True):
        np.testing.assert_array_equal(mask, reference.attmask(row, shared, variant))


def test_the_attention_ratio_is_one_draw_a_step():
    config = tiny.config(
        "ibot", mask__strategy="attention", mask__ratio=(0.5,), mask__ratio_var=(0.4,)
    )
    draw = ibot_masks.drawer(config, masking.masker_of(config.mask), Plan(4, 20))
    draw = jax.jit(functools.partial(draw, attention=lambda: np.ones((5, 2, 16), np.float32)))
    counts = set()
    for step in range(30):
        keys = jax.random.split(jax.random.key(step), 5)
        masks, _ = draw(keys, jax.random.key(step), step)
        (count,) = set(np.asarray(masks.count).tolist())
        counts.add(count)
    assert len(counts) > 5


def test_hints_in_the_step_are_a_tenth_of_the_patches_times_a_draw_of_the_ratio():
    config = tiny.config(
        "ibot", mask__strategy="attention", mask__attention="hint", image_size=(56, 56),
        mask__ratio=(0.3,), mask__ratio_var=(0.2,), mask__prob=1.0,
    )  # fmt: skip
    draw = ibot_masks.drawer(config, masking.masker_of(config.mask), Plan(4, 20))
    weights = np.random.default_rng(0).uniform(size=(3, 196)).astype(np.float32)
    draw = jax.jit(functools.partial(draw, attention=lambda: weights[:, None]))
    for seed in range(12):
        key = jax.random.key(seed)
        masks, _ = draw(jax.random.split(key, 3), key, 0)
        masked_key, shown_key = jax.random.split(jax.random.fold_in(key, 2**31))
        ratio, shown_ratio = (
            float(masking.draw_ratio(k, (0.3,), (0.2,))) for k in (masked_key, shown_key)
        )
        for mask, row in zip(masks.mask, weights, strict=True):
            top = np.argsort(-row)[:19]
            shown = np.setdiff1d(top, np.flatnonzero(mask))
            if int(196 * ratio) >= 19:
                assert len(shown) == int(196 * 0.1 * shown_ratio)
            np.testing.assert_array_equal(
                mask, reference.attmask(row, int(196 * ratio), "hint", shown)
            )


def test_hints_show_a_few_of_the_most_attended_patches():
    rng = np.random.default_rng(0)
    weights = rng.uniform(size=196).astype(np.float32)
    top = np.argsort(-weights)[:19]
    shown_before = np.zeros(196)
    for seed in range(200):
        key = jax.random.key(seed)
        mask = masking.attention(key, weights, 80, variant="hint", num_shown=6, num_top=19)
        shown = np.setdiff1d(top, np.flatnonzero(mask.mask))
        assert len(shown) == 6 and mask.mask.sum() == 74 == 196 - mask.count
        np.testing.assert_array_equal(mask.mask, reference.attmask(weights, 80, "hint", shown))
        shown_before[shown] += 1
    assert shown_before[top].min() > 35  # 63 expected
    with pytest.raises(ValueError, match="'high', 'low' or 'hint'"):
        masking.attention(jax.random.key(0), weights, 80, variant="middle")


def test_attention_weights_are_the_last_blocks():
    """Softmax of the class token's query against all keys, written out from the parameters."""
    _, method, params, extra = built()
    images = batch_of()["global_views"][:, 0]
    weights = np.asarray(jax.jit(method.attention)(params, extra, images))
    assert weights.shape == (4, 3, 16)
    encoder = jax.tree.map(lambda x: np.asarray(x, np.float64), extra["teacher"]["encoder"])
    blocks = encoder["blocks"]
    shortened = ViT(SIZES["nano"]._replace(depth=1), (16, 16), 4)
    kept = {**extra["teacher"]["encoder"], "blocks": {"block_0": blocks["block_0"]}}
    x = np.asarray(jax.jit(shortened.apply)({"params": kept}, normalize(images))[1], np.float64)
    last = blocks["block_1"]
    x = reference.layer_norm(x, last["norm1"]["scale"], last["norm1"]["bias"])
    qkv = (x @ last["attn"]["qkv"]["kernel"] + last["attn"]["qkv"]["bias"]).reshape(4, 17, 3, 3, 16)
    logits = np.einsum("bhd,bkhd->bhk", qkv[:, 0, 0], qkv[:, :, 1]) / np.sqrt(16)
    np.testing.assert_allclose(weights, reference.softmax(logits)[:, :, 1:], rtol=1e-3, atol=1e-6)


# The loss.


def written_out(config, params, extra, batch, key, step):
    """Losses, centres and masks as the paper has them, with every patch through both heads."""
    num, num_views = len(batch["index"]), 2 + config.data.local_views
    keys = [
        [
            jax.random.split(jax.random.fold_in(jax.random.fold_in(key, index), view), 3)
            for index in batch["index"]
        ]
        for view in range(num_views)
    ]
    data, images = config.data, []
    for view in range(num_views):
        raw = batch["global_views"][:, view] if view < 2 else batch["local_views"][:, view - 2]
        blur = data.blur_prob[min(view, 2)]
        sun = data.solarize_prob if view == 1 else 0.0
        images.append(
            views.augment_view(
                raw, jnp.stack([k[0] for k in keys[view]]), jitter=tuple(data.jitter),
                jitter_prob=data.jitter_prob, grey_prob=data.grey_prob, blur_prob=blur,
                blur_sigma=tuple(data.blur_sigma), solarize_prob=sun,
            )
        )  # fmt: skip
    encoder, _ = ibot.model_from(config)
    # Without keys no path is dropped: that is the teacher.
    network = encoder.module
    teacher = jax.jit(lambda x: network.apply({"params": extra["teacher"]["encoder"]}, x)[0])
    of_student = jax.jit(
        lambda *args, **masked: network.apply({"params": params["encoder"]}, *args, **masked)[0]
    )
    latents = [teacher(images[view]) for view in range(2)]
    attended = jax.jit(ibot.build(config, Plan(4, 20)).attention)
    attention = [
        attended(params, extra, np.asarray(denormalize(images[view]), np.float32)).mean(axis=1)
        for view in range(2)
    ]
    shared_key, _ = jax.random.split(jax.random.fold_in(key, 2**31))
    list_of_ratios = (tuple(config.mask.ratio), tuple(config.mask.ratio_var))
    fewest, _ = ibot_masks.masked_range(config)
    masks, student = [], []
    for view in range(num_views):
        drops = jnp.stack([k[2] for k in keys[view]])
        if view >= 2:
            student.append(of_student(images[view], drops))
            continue
        rows = []
        for i in range(num):
            chance, ratio, mask_key = jax.random.split(keys[view][i][1], 3)
            if config.mask.strategy == "attention":
                num_masked = int(16 * float(masking.draw_ratio(shared_key, *list_of_ratios)))
                chosen = jax.random.uniform(chance) <= config.mask.prob
                weights = np.asarray(attention[view][i])
                none = np.zeros(16, bool)
                rows.append(reference.attmask(weights, num_masked, "high") if chosen else none)
                continue
            visible = 16 - int(16 * float(masking.draw_ratio(ratio, *list_of_ratios)))
            mask, _ = masking.dpp(
                mask_key, latents[view][i, 1:], visible, 0.9, num_keep=max(visible, 16 - fewest)
            )
            rows.append(np.asarray(mask.mask))
        masks.append(np.stack(rows))
        student.append(
            of_student(images[view], drops, mask=masks[view], mask_token=params["mask_embed"])
        )
    teacher_logits = [reference.head(x, extra["teacher"]["head"]) for x in latents]
    student_logits = [reference.head(x, params["head"]) for x in student]
    epoch = step // 4
    temperature = {
        which: reference.teacher_temperatures(
            settings.start, settings.end, settings.warmup_epochs, 5
        )[epoch]
        for which, settings in (
            ("class", config.loss.class_temp),
            ("patch", config.loss.patch_temp),
        )
    }
    class_loss = reference.class_loss(
        [x[:, 0] for x in teacher_logits], [x[:, 0] for x in student_logits],
        np.asarray(extra["class_center"]), temperature["class"],
    )  # fmt: skip
    patch_loss = reference.patch_loss(
        [x[:, 1:] for x in teacher_logits], [x[:, 1:] for x in student_logits[:2]],
        masks, np.asarray(extra["patch_center"]), temperature["patch"],
    )  # fmt: skip
    centers = {
        name: reference.new_center(
            np.asarray(extra[name]), np.stack([x[part] for x in teacher_logits])
        )
        for name, part in (("class_center", np.s_[:, 0]), ("patch_center", np.s_[:, 1:]))
    }
    return class_loss, patch_loss, centers, np.stack(masks)


@pytest.mark.parametrize(
    "strategy,step,num_local",
    [
        ("attention", 9, 2),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("dpp", 0, 2), ("dpp", 19, 0))),
    ],
)
def test_loss_and_centers_are_the_reference(strategy, step, num_local):
    ratio = {"mask__ratio": (0.4,), "mask__ratio_var": (0.1,), "mask__prob": 0.5}
    config, method, params, extra = built(
        strategy,
        data__local_views=num_local,
        loss__class_temp__end=0.05,
        loss__patch_weight=0.5,
        model__drop_path=0.3,
        **(ratio if strategy == "attention" else AUGMENTED),
    )
    batch = batch_of(num_local=num_local)
    loss, (metrics, aux) = jax.jit(method.turns[0].loss)(params, extra, batch, KEY, step)
    class_loss, patch_loss, centers, masks = written_out(config, params, extra, batch, KEY, step)
    assert 0 < masks.any(axis=2).sum() < 8  # some views are masked and some are not
    np.testing.assert_allclose(metrics["loss_class"], class_loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss_patch"], patch_loss, rtol=1e-4)
    np.testing.assert_allclose(loss, class_loss + 0.5 * patch_loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["masked_share"], masks.mean(), rtol=1e-6)
    after = jax.jit(method.after_step)(params, extra, aux, step)
    for name, center in centers.items():
        np.testing.assert_allclose(after[name], center, rtol=1e-4, atol=1e-5)


def test_temperatures_at_their_ends_and_in_the_middle():
    config, *_ = built(
        loss__class_temp__start=0.04,
        loss__class_temp__end=0.07,
        loss__class_temp__warmup_epochs=4,
    )
    expected = reference.teacher_temperatures(0.04, 0.07, 4, 12)
    np.testing.assert_allclose(
        [ibot.temperature(config.loss.class_temp, epoch) for epoch in range(12)],
        expected,
        rtol=1e-6,
    )
    assert expected[0] == 0.04 and expected[3] == expected[11] == 0.07
    one = config.loss.class_temp.copy_and_resolve_references()
    one.warmup_epochs = 0
    assert ibot.temperature(one, 0) == 0.07 == reference.teacher_temperatures(0.04, 0.07, 0, 3)[0]
    one.warmup_epochs = 1
    expected = reference.teacher_temperatures(0.04, 0.07, 1, 3)
    np.testing.assert_allclose([ibot.temperature(one, e) for e in range(3)], expected, rtol=1e-6)


def test_losses_by_hand():
    half = np.log([[[0.5, 0.5]], [[0.75, 0.25]]])
    teacher = distillation.teacher_probabilities(jnp.asarray(half), jnp.zeros(2), 1.0)
    np.testing.assert_allclose(teacher[1, 0], [0.75, 0.25], rtol=1e-6)
    sharp = distillation.teacher_probabilities(
        jnp.asarray(half), jnp.log(jnp.array([3.0, 1.0])), 0.5
    )
    np.testing.assert_allclose(sharp[0, 0], [0.1, 0.9], rtol=1e-5)
    student = jnp.log(jnp.array([[[0.5, 0.5]], [[0.2, 0.8]], [[0.9, 0.1]]]))
    # Pairs (teacher 0: students 1, 2), (teacher 1: students 0, 2).
    cross = lambda p, q: -np.dot(p, np.log(q))  # noqa: E731
    pairs = [
        cross([0.5, 0.5], [0.2, 0.8]), cross([0.5, 0.5], [0.9, 0.1]),
        cross([0.75, 0.25], [0.5, 0.5]), cross([0.75, 0.25], [0.9, 0.1]),
    ]  # fmt: skip
    np.testing.assert_allclose(
        distillation.class_token_loss(teacher, student, 1.0), np.mean(pairs), rtol=1e-6
    )
    # Two views of two patches: both masked in the first, none in the second.
    targets = jnp.array([[[0.5, 0.5], [1.0, 0.0]]] * 2)
    logits = jnp.log(jnp.array([[[0.2, 0.8], [0.25, 0.75]]] * 2))
    mask = np.array([[True, True], [False, False]])
    by_hand = 0.5 * (cross([0.5, 0.5], [0.2, 0.8]) - np.log(0.25)) / 2
    np.testing.assert_allclose(
        distillation.patch_token_loss(targets, logits, mask, 1.0), by_hand, rtol=1e-6
    )
    np.testing.assert_allclose(distillation.entropy(teacher)[0, 0], np.log(2), rtol=1e-6)


# The step.


def floats(tree):
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


@pytest.mark.parametrize(
    "strategy",
    ["dpp", "attention", "block", "random"],
)
@pytest.mark.slow
def test_gradients_reach_the_student_and_never_the_teacher(strategy):
    _, method, params, extra = built(strategy)
    whole = {name: value for name, value in extra.items() if name != "last_use"}

    def loss(params, whole):
        return method.turns[0].loss(params, {**extra, **whole}, batch_of(8), KEY, 0)[0]

    of_student, of_teacher = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, whole)
    assert all(np.all(g == 0) for g in jax.tree.leaves(of_teacher["teacher"]))
    for path, gradient in jax.tree_util.tree_leaves_with_path(of_student):
        assert np.any(gradient != 0), jax.tree_util.keystr(path)


@pytest.mark.slow
def test_a_thrown_patch_is_hidden_from_the_student_and_not_predicted(monkeypatch):
    def build(mask):
        def draw(keys, count, seen, most):
            order = jnp.broadcast_to(jnp.arange(16), (len(keys), 16))
            thrown = order >= count[:, None]
            return masking.Mask(order, jnp.zeros_like(thrown), count, thrown), {}

        return masking.Masker(draw, frozenset(), "thrown")

    monkeypatch.setitem(masking.MASKERS, "thrown", masking.MaskerKind(build))
    config = tiny.config(
        "ibot", **PLAIN, data__local_views=0, model__size="nano", mask__strategy="thrown",
        mask__ratio=(0.5,), mask__ratio_var=(0.0,),
    )  # fmt: skip
    _, _, params, extra = built()
    loss = ibot.build(config, Plan(4, 20)).turns[0].loss

    def of_embed(embed):
        value, (metrics, _) = loss({**params, "mask_embed": embed}, extra, batch, KEY, 0)
        return value, metrics["loss_patch"]

    batch = batch_of(num_local=0)
    gradient, of_patches = jax.jit(jax.grad(of_embed, has_aux=True))(params["mask_embed"])
    assert np.any(gradient != 0) and of_patches == 0


def adamw(**changes):
    arguments = {
        "learning_rate": optim.linspace_cosine(1e-3, 1e-6, 2, 20),
        "weight_decay": optim.cosine(0.04, 0.4, 20),
        "b1": 0.9,
        "b2": 0.999,
        "epsilon": 1e-8,
        "clip": optim.clip_by_tensor_norm(3.0),
        "frozen_steps": 2,
    }
    return optim.adamw(**arguments | changes)


@pytest.mark.slow
def test_teacher_averages_the_new_student_whose_last_layer_is_frozen_at_first():
    _, method, *_ = built()
    method = tiny.with_optimizer(method, adamw(learning_rate=lambda step: 1e-2))
    step = make_step(method)
    state = parallel.replicate(init_state(method, jax.random.key(0)))
    momentum = reference.cosine(0.996, 1.0, 5, 4)
    start = parallel.to_host(state.params["head"])
    for i in range(3):
        before = parallel.to_host(state.extra["teacher"])
        state, metrics = step(state, parallel.split_batch(batch_of(8, 8 * i)), KEY)
        student = {name: state.params[name] for name in ("encoder", "head")}
        jax.tree.map(
            lambda t, old, new, m=momentum[i]: np.testing.assert_allclose(
                t, m * np.float64(old) + (1 - m) * np.float64(new), rtol=1e-5, atol=1e-7
            ),
            state.extra["teacher"], before, parallel.to_host(student),
        )  # fmt: skip
        now = parallel.to_host(state.params["head"])
        frozen = jax.tree.map(np.array_equal, now["last_layer"], start["last_layer"])
        assert frozen == {"direction": i < 2, "scale": i < 2}
        assert not np.array_equal(now["mlp_1"]["kernel"], start["mlp_1"]["kernel"])
        assert np.isfinite(float(metrics["loss"]))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["dpp", pytest.param("attention", marks=pytest.mark.long)])
def test_one_device_is_several(strategy):
    """The losses, centres and parameters of a global batch do not depend on who computes it."""
    _, method, *_ = built(strategy)
    # Adam makes whole steps of the rounding errors that are the gradient of the keys' biases.
    method = tiny.with_optimizer(method, adamw(epsilon=1e-3))
    start = init_state(method, jax.random.key(0))
    several = make_step(method)
    alone = jax.pmap(
        lambda state, batch: one_step(method, state, batch),
        axis_name=parallel.AXIS, devices=jax.devices()[:1],
    )  # fmt: skip
    one = jax.tree.map(lambda x: x[None], start)
    many = parallel.replicate(start)
    for i in range(3):
        batch = batch_of(8, 8 * i)
        many, metrics = several(many, parallel.split_batch(batch), KEY)
        one, expected = alone(one, jax.tree.map(lambda x: x[None], batch))
        assert metrics.keys() - expected.keys() == {"wish"}
        for name, (value,) in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    for x, y in zip(
        floats((many.params, many.extra)), floats((one.params, one.extra)), strict=True
    ):
        np.testing.assert_allclose(x, y[0], rtol=1e-4, atol=1e-5)


def one_step(method, state, batch):
    """`make_step` written out for one device."""
    key = jax.random.fold_in(KEY, state.step)
    optimizer, (opt_state,) = method.turns[0].optimizer, state.opt_state
    (loss, (metrics, aux)), grads = jax.value_and_grad(method.turns[0].loss, has_aux=True)(
        state.params, state.extra, batch, key, state.step
    )
    updates, opt_state = optimizer.tx.update(grads, opt_state, state.params, train_step=state.step)
    lr = optimizer.learning_rate(state.step)
    params = optax.apply_updates(state.params, optax.tree.scale(lr, updates))
    extra = method.after_step(params, state.extra, aux, state.step)
    metrics = {
        "loss": loss, **metrics, **method.report(extra, aux, state.step), "lr": lr,
        "grad_norm": optax.tree.norm(grads), "bad_steps": 0, "bad_images": 0,
    }  # fmt: skip
    state = state._replace(step=state.step + 1, params=params, opt_state=(opt_state,), extra=extra)
    return state, metrics


@pytest.mark.slow
def test_micro_batches_and_chunks_equal_one_batch(monkeypatch):
    """Accumulated, or as many images at a time as the fast memory of a TPU holds."""
    _, method, *_ = built("dpp")
    optimizer = adamw(epsilon=1e-3, learning_rate=lambda step: 1e-2)
    method = tiny.with_optimizer(method, optimizer)
    results = []
    (turn,) = method.turns
    for accum_steps, images_that_fit in ((1, 8), (2, 8), (1, 1)):  # of two on each device
        monkeypatch.setattr(parallel, "on_tpu", lambda devices: True)
        monkeypatch.setattr(chunks, "FAST_BYTES", images_that_fit * turn.logits_bytes)
        step = make_step(method, accum_steps=accum_steps)
        state = parallel.replicate(init_state(method, jax.random.key(0)))
        for i in range(2):
            state, metrics = step(state, parallel.split_batch(batch_of(8, 8 * i)), KEY)
        results.append((state, metrics))
    one, metrics = results[0]
    for several, accumulated in results[1:]:
        for name, value in metrics.items():
            np.testing.assert_allclose(accumulated[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(one.extra["last_use"], several.extra["last_use"])
        for trees in ((one.params, several.params), (one.extra, several.extra)):
            for x, y in zip(*map(floats, trees), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_and_recomputation_change_rounding_alone():
    _, method, params, extra = built("dpp", model__drop_path=0.2)
    _, lower, *_ = built("dpp", model__drop_path=0.2, model__dtype="bfloat16", model__remat=True)
    batch = batch_of()
    exact = jax.jit(method.turns[0].loss)(params, extra, batch, KEY, 0)
    rough, grads = jax.jit(jax.value_and_grad(lower.turns[0].loss, has_aux=True))(
        params, extra, batch, KEY, 0
    )
    np.testing.assert_allclose(rough[0], exact[0], rtol=0.1)
    assert float(rough[0]) != float(exact[0])
    assert all(g.dtype == jnp.float32 and np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.slow
def test_an_example_is_treated_alike_in_any_batch():
    """Augmentation, masks and dropped paths follow the index in the stream, not the place."""
    _, method, params, extra = built("dpp", model__drop_path=0.3, **AUGMENTED)
    batch = batch_of(4)
    of = jax.jit(lambda batch: method.turns[0].loss(params, extra, batch, KEY, 0))
    whole = of(batch)[0]
    halves = [
        of(jax.tree.map(lambda x, part=part: x[part], batch))[0] for part in (slice(2), slice(2, 4))
    ]
    np.testing.assert_allclose(whole, np.mean(halves), rtol=1e-5)
    turned = of(jax.tree.map(lambda x: x[::-1], batch))[0]
    np.testing.assert_allclose(whole, turned, rtol=1e-5)


# Health.


def test_report_counts_the_prototypes_in_use():
    _, method, params, extra = built()
    best = np.zeros(24, np.float32)
    best[[3, 4, 9]] = 1 / 3
    aux = {
        "best": best,
        "class_target": best,
        "class_logits": np.ones(24, np.float32),
        "patch_logits": np.zeros(24, np.float32),
    }
    extra = {**extra, "class_center": jnp.zeros(24)}
    assert np.all(np.asarray(extra["last_use"]) < -90)
    after = jax.jit(method.after_step)(params, extra, aux, 0)
    values = method.report(after, aux, 0)
    np.testing.assert_allclose(values["prototypes_used"], 3 / 24)
    np.testing.assert_allclose(values["prototype_entropy"], np.log(3), rtol=1e-6)
    np.testing.assert_allclose(values["class_center_norm"], 0.1 * np.sqrt(24), rtol=1e-5)
    assert float(method.report(after, aux, 99)["prototypes_used"]) == 3 / 24
    assert float(method.report(after, aux, 100)["prototypes_used"]) == 0.0


@pytest.mark.parametrize(
    "name,entropies,field",
    [("uniform", (0.99, 1.0), "class_temp"), ("point", (0.0, 0.005), "norm_last_layer")],
)
def test_a_lasting_collapse_is_named_with_its_cures(name, entropies, field):
    # In both, what the answers have in common is all that there is in them.
    _, method, *_ = built()
    watch, largest = method.watch(), np.log(24)
    values = {
        "teacher_entropy": entropies[0] * largest,
        "prototype_entropy": entropies[1] * largest,
    }
    healthy = {"teacher_entropy": 0.5 * largest, "prototype_entropy": 0.9 * largest}
    assert watch(10, values) == watch(100, values) == ""
    assert watch(105, healthy) == ""
    assert watch(110, values) == watch(200, values) == ""
    warning = watch(210, values)
    assert f"collapse to {'uniform' if name == 'uniform' else 'a point'}" in warning
    assert field in warning and "\n" not in warning
    assert watch(220, healthy) == "" and watch(230, values) == ""
