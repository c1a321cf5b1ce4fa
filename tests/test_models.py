import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_mae import predict
from scipy.special import ndtr
from tiny import config, filled

from dppmask_jax.models.decoders import MAE, Decoder
from dppmask_jax.models.layers import branch_scales, gelu
from dppmask_jax.models.relative import relative_index
from dppmask_jax.models.sizes import SIZES, Size, name_of, set_size
from dppmask_jax.models.vit import encoder
from dppmask_jax.models.vit_module import MAE_START, MOCO_START, ViT, cut_start

TINY = {"encoder_size": Size(32, 3, 4), "decoder_size": Size(16, 2, 2)}


def tiny(image_size=(12, 20), **changes):
    dtypes = {name: changes[name] for name in ("remat", "dtype") if name in changes}
    encoder = ViT(TINY["encoder_size"], image_size, 4, "fixed", start=MAE_START, **changes)
    return MAE(encoder, Decoder(TINY["decoder_size"], encoder.grid, 3 * 4**2, **dtypes))


def tiny_inputs(model, batch=3, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(batch, *model.encoder.image_size, 3)).astype(np.float32)
    num_patches = model.decoder.grid[0] * model.decoder.grid[1]
    order = np.stack([rng.permutation(num_patches) for _ in range(batch)]).astype(np.int32)
    return images, order


def noisy_params(model, images, order, num_keep):
    """No parameter is zero: zeros hide mistakes."""
    init = functools.partial(model.init, num_keep=num_keep)
    return filled(jax.eval_shape(init, jax.random.key(1), images, order)["params"], seed=2)


def predicted(model, params, images, order):
    return jax.jit(functools.partial(model.apply, num_keep=4))({"params": params}, images, order)


def count(tree):
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def abstract_params(size, patch_size):
    encoder = ViT(SIZES[size], (224, 224), patch_size, "fixed", start=MAE_START)
    model = MAE(encoder, Decoder(Size(512, 8, 16), encoder.grid, 3 * patch_size**2))
    num_patches = (224 // patch_size) ** 2
    return jax.eval_shape(
        lambda key: model.init(
            key, jnp.zeros((1, 224, 224, 3)), jnp.zeros((1, num_patches), jnp.int32), 49
        )["params"],
        jax.random.key(0),
    )


def formula(width, depth, patch_size):
    """Patch projection, class token, blocks (qkv, proj, two MLP layers, two norms), final norm."""
    patch = 3 * patch_size**2
    block = 12 * width**2 + 13 * width
    return (patch + 1) * width + width + depth * block + 2 * width


@pytest.mark.parametrize(
    "size", ["Ti", "B", *(pytest.param(name, marks=pytest.mark.slow) for name in ("S", "L", "H"))]
)
def test_encoder_parameter_counts(size):
    patch_size = 14 if size == "H" else 16
    params = abstract_params(size, patch_size)
    width, depth, *_ = SIZES[size]
    assert count(params["encoder"]) == formula(width, depth, patch_size)


def test_published_parameter_counts_of_vit_b():
    params = abstract_params("B", 16)
    assert count(params["encoder"]) == 85_647_360
    assert count(params["decoder"]) == 26_008_320
    # With the fixed positions of 196 patches and a zero row for the class token.
    assert count(params) + 197 * 768 + 197 * 512 == 111_907_840


def test_vit_s_has_the_published_backbone_size():
    # 21,665,664 in the reference counts 197 learned positions of width 384, fixed here.
    assert count(abstract_params("S", 16)["encoder"]) + 197 * 384 == 21_665_664


@pytest.mark.parametrize(
    "image_size",
    [(16, 16), *(pytest.param(size, marks=pytest.mark.slow) for size in ((12, 20), (20, 8)))],
)
def test_prediction_equals_a_float64_restatement(image_size):
    model = tiny(image_size)
    images, order = tiny_inputs(model)
    num_keep = 3
    params = noisy_params(model, images, order, num_keep)
    pred = jax.jit(lambda p: model.apply({"params": p}, images, order, num_keep))(params)
    reference = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    for b in range(len(images)):
        expected = predict(
            reference,
            images[b].astype(np.float64),
            order[b],
            num_keep,
            patch_size=4,
            encoder=TINY["encoder_size"],
            decoder=TINY["decoder_size"],
        )
        np.testing.assert_allclose(pred[b], expected, rtol=2e-4, atol=2e-5)


def test_masked_pixels_do_not_reach_the_prediction():
    model = tiny()
    images, order = tiny_inputs(model)
    params = noisy_params(model, images, order, 4)
    apply = jax.jit(lambda x: model.apply({"params": params}, x, order, 4))
    pred = apply(images)
    changed = images.copy()
    hidden, seen = order[0, 10], order[0, 1]
    row, column = divmod(int(hidden), 5)
    changed[0, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 5.0
    np.testing.assert_array_equal(apply(changed), pred)
    row, column = divmod(int(seen), 5)
    changed[0, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 5.0
    assert not np.allclose(apply(changed)[0], pred[0])
    np.testing.assert_array_equal(apply(changed)[1:], pred[1:])


def test_order_among_visible_patches_does_not_matter():
    model = tiny()
    images, order = tiny_inputs(model)
    params = noisy_params(model, images, order, 4)
    shuffled = np.concatenate([order[:, [2, 0, 3, 1]], order[:, :3:-1]], axis=1)
    a = predicted(model, params, images, order)
    b = predicted(model, params, images, shuffled)
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.slow
def test_initialisation():
    encoder = ViT(SIZES["S"], (32, 32), 16, "fixed", start=MAE_START)
    params = MAE(encoder, Decoder(Size(128, 1, 4), (2, 2), 768)).init(
        jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.arange(4)[None], 1
    )["params"]
    encoder = params["encoder"]
    block = encoder["blocks"]["block_0"]
    for kernel in (block["attn"]["qkv"]["kernel"], block["mlp"]["fc1"]["kernel"],
                   encoder["patch_embed"]["proj"]["kernel"]):  # fmt: skip
        bound = np.sqrt(6 / sum(kernel.shape))
        assert np.abs(kernel).max() <= bound
        np.testing.assert_allclose(np.std(kernel), bound / np.sqrt(3), rtol=0.02)
    bias = np.asarray(encoder["patch_embed"]["proj"]["bias"])
    assert 0.9 / np.sqrt(768) < np.abs(bias).max() <= 1 / np.sqrt(768)
    assert not np.any(block["attn"]["qkv"]["bias"]) and not np.any(block["mlp"]["fc2"]["bias"])
    np.testing.assert_allclose(np.std(encoder["cls_token"]), 0.02, rtol=0.15)
    np.testing.assert_allclose(np.std(params["decoder"]["mask_token"]), 0.02, rtol=0.25)


@pytest.mark.parametrize("remat", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradients_reach_every_parameter(remat):
    model = tiny(remat=remat)
    images, order = tiny_inputs(model)
    params = noisy_params(model, images, order, 4)
    keys = jax.random.split(jax.random.key(0), 3)

    def loss(params):
        tokens = model.apply({"params": params}, images, method="embed")
        pred = model.apply({"params": params}, tokens, order, 4, keys, method="predict")
        return jnp.mean(pred**2)

    grads = jax.jit(jax.grad(loss))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.any(np.asarray(grad) != 0), jax.tree_util.keystr(path)


def test_remat_changes_no_value():
    images, order = tiny_inputs(tiny())
    params = noisy_params(tiny(), images, order, 4)
    plain = predicted(tiny(), params, images, order)
    again = predicted(tiny(remat=True), params, images, order)
    np.testing.assert_allclose(again, plain, atol=1e-6)


@pytest.mark.slow
def test_bfloat16_keeps_parameters_and_norms_in_float32():
    model = tiny(dtype=jnp.bfloat16)
    images, order = tiny_inputs(model)
    params = noisy_params(model, images, order, 4)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    exact = predicted(tiny(), params, images, order)
    rough = predicted(model, params, images, order)
    assert rough.dtype == jnp.float32
    error = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 3e-2

    jaxpr = str(jax.make_jaxpr(lambda p: model.apply({"params": p}, images, order, 4))(params))
    assert "exp" in jaxpr
    exponentials = [line for line in jaxpr.splitlines() if "= exp " in line]
    assert exponentials and all(":f32" in line.split("=")[0] for line in exponentials)


@pytest.mark.parametrize("dtype,tolerance", [(jnp.float32, 2e-6), (jnp.bfloat16, 2**-8)])
def test_gelu_and_its_derivative(dtype, tolerance):
    x = jnp.linspace(-6.0, 6.0, 97).astype(dtype)
    exact = np.asarray(x, np.float64)
    value, derivative = jax.vmap(jax.value_and_grad(gelu))(x)
    assert value.dtype == derivative.dtype == dtype
    density = np.exp(-0.5 * exact**2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(
        np.asarray(value, np.float64), exact * ndtr(exact), rtol=tolerance, atol=1e-6
    )
    np.testing.assert_allclose(
        np.asarray(derivative, np.float64), ndtr(exact) + exact * density, rtol=tolerance, atol=1e-6
    )


def test_drop_path_drops_whole_examples_at_its_rate():
    keys = jax.random.split(jax.random.key(0), 4000)
    scales = np.asarray(branch_scales(keys, (0.0, 0.25, 0.5)))
    assert scales.shape == (4000, 3, 2)
    np.testing.assert_array_equal(scales[:, 0], 1.0)
    for block, rate in ((1, 0.25), (2, 0.5)):
        for branch in (0, 1):
            values, counts = np.unique(scales[:, block, branch], return_counts=True)
            np.testing.assert_allclose(values, [0.0, 1 / (1 - rate)], rtol=1e-6)
            assert abs(counts[0] / 4000 - rate) < 0.03
    both = np.mean((scales[:, 1] == 0).all(axis=1))
    assert abs(both - 0.25**2) < 0.015  # the branches of a block are dropped independently


def test_drop_path_of_an_example_does_not_depend_on_its_neighbours():
    model = tiny(drop_path_rate=0.5)
    images, order = tiny_inputs(model)
    params = noisy_params(model, images, order, 4)
    keys = jax.random.split(jax.random.key(3), 3)

    @jax.jit
    def predict(images, order, keys):
        tokens = model.apply({"params": params}, images, method="embed")
        return model.apply({"params": params}, tokens, order, 4, keys, method="predict")

    def predict_with(rows):
        return predict(images[rows], order[rows], keys[rows])

    rows = np.array([2, 0, 1])
    np.testing.assert_allclose(predict_with(rows), predict_with(np.arange(3))[rows], atol=1e-5)
    still = predicted(tiny(), params, images, order)
    assert not np.allclose(predict_with(np.arange(3)), still, atol=1e-3)


def test_wrong_image_size_is_named():
    model = ViT(Size(16, 1, 1), (16, 16), 4, "fixed")
    with pytest.raises(ValueError, match="16x16"):
        model.init(jax.random.key(0), jnp.zeros((1, 16, 20, 3)), method="embed")


OPTIONS = {
    "position": "none",
    "registers": 2,
    "layer_scale": 0.5,
    "qv_bias": True,
    "start": cut_start(0.02),
}


def test_an_encoder_with_options_starts_as_simmims():
    vit = encoder(ViT(Size(64, 2, 2), (16, 16), 4, **OPTIONS))
    params = jax.jit(vit.init)(jax.random.key(0))
    blocks = params["blocks"]
    for kernel, std in (
        (params["patch_embed"]["proj"]["kernel"], 0.0108),
        (blocks["block_0"]["mlp"]["fc1"]["kernel"], 0.0108),
        (blocks["block_0"]["mlp"]["fc2"]["kernel"], 0.0108 / 2**0.5),
        (blocks["block_1"]["attn"]["proj"]["kernel"], 0.0108 / 4**0.5),
    ):
        np.testing.assert_allclose(np.std(kernel), std, rtol=0.05)
        assert np.abs(kernel).max() <= 0.02 * std / 0.0108 * 1.001
    assert not np.any(params["patch_embed"]["proj"]["bias"])
    assert set(np.unique(blocks["block_0"]["scale1"])) == {0.5}
    assert blocks["block_0"]["attn"].keys() == {"qkv", "proj", "q_bias", "v_bias"}
    assert blocks["block_0"]["attn"]["qkv"].keys() == {"kernel"}
    assert params["registers"].shape == (1, 2, 64) and "positions" not in params


def test_an_encoder_starts_as_mocos():
    vit = encoder(ViT(Size(64, 2, 2), (16, 16), 4, "fixed", start=MOCO_START, first_axis="row"))
    params = jax.jit(vit.init)(jax.random.key(0))
    attention, mlp = (params["blocks"]["block_1"][part] for part in ("attn", "mlp"))
    kernels = [  # and the bounds that they are uniform within, by hand
        (params["patch_embed"]["proj"]["kernel"], (6 / (48 + 64)) ** 0.5),
        (attention["proj"]["kernel"], (6 / (64 + 64)) ** 0.5),
        (mlp["fc1"]["kernel"], (6 / (64 + 256)) ** 0.5),
        (mlp["fc2"]["kernel"], (6 / (256 + 64)) ** 0.5),
        # One kernel of 192 outputs would be within (6 / 256) ** .5.
        *((part, (6 / (64 + 64)) ** 0.5) for part in np.split(attention["qkv"]["kernel"], 3, 1)),
    ]
    for kernel, bound in kernels:
        assert 0.98 * bound < np.abs(kernel).max() <= bound
        np.testing.assert_allclose(np.std(kernel), bound / 3**0.5, rtol=0.05)
    query, key, value = np.split(attention["qkv"]["kernel"], 3, 1)
    assert not np.any(query == key) and not np.any(key == value)
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    assert not any(np.any(x) for path, x in flat if path[-1].key == "bias")
    np.testing.assert_allclose(np.std(params["cls_token"]), 1e-6, rtol=0.3)
    assert "positions" not in params


def test_registers_are_tokens_of_their_own_and_without_positions_order_is_no_matter():
    module = ViT(Size(16, 2, 2), (8, 12), 4, **OPTIONS)
    vit = encoder(module)
    params = filled(jax.eval_shape(vit.init, jax.random.key(0)), seed=1)
    images = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
    run = jax.jit(lambda params, images: (vit.encode(params, images), vit.attended(params, images)))
    tokens, (_, weights) = run(params, images)
    assert tokens.patches.shape == (2, 6, 16) and tokens.prenorm.shape == (2, 9, 16)
    assert weights.shape == (2, 2, 6)
    turned, _ = run(
        params, images[:, ::-1].copy().reshape(2, 2, 4, 12, 3)[:, :, ::-1].reshape(images.shape)
    )
    swapped = np.asarray(tokens.patches).reshape(2, 2, 3, 16)[:, ::-1].reshape(2, 6, 16)
    np.testing.assert_allclose(turned.patches, swapped, atol=1e-5)
    other = {**params, "registers": params["registers"] + 1}
    assert not np.allclose(run(other, images)[0].cls, tokens.cls)
    assert vit.layer_of(("registers",)) == 0


def test_relative_biases_of_each_block_and_of_all():
    images = np.random.default_rng(0).normal(size=(1, 8, 12, 3)).astype(np.float32)
    shapes = {}
    for relative in ("shared", "each"):
        vit = encoder(ViT(Size(16, 2, 2), (8, 12), 4, relative=relative))
        assert vit.blocks is None
        params = jax.eval_shape(vit.init, jax.random.key(0))
        shapes[relative] = params
        with pytest.raises(ValueError, match="8x12"):
            jax.eval_shape(vit.encode, params, images[:, :, :8])
    table = (3 * 5 + 3, 2)
    assert shapes["shared"]["relative_bias"]["table"].shape == table
    assert shapes["each"]["blocks"]["block_1"]["attn"]["relative"]["table"].shape == table
    index = relative_index((2, 3))
    assert index[1, 1] == index[6, 6] == 7  # (2 - 1) * 5 + 3 - 1: no difference
    assert index[1, 6] == 0 and index[6, 1] == 14  # the farthest both ways
    assert (index[0, 1:] == 15).all() and (index[1:, 0] == 16).all() and index[0, 0] == 17


@pytest.mark.parametrize("name", SIZES)
def test_a_usual_size_has_its_name_and_another_its_numbers(name):
    model, size = config().model, SIZES[name]
    set_size(model, size)
    assert name_of(model) == name
    set_size(model, size._replace(depth=3))
    assert name_of(model) == f"{size.width}x3x{size.heads}"
