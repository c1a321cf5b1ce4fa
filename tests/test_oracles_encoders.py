"""The encoder against what the authors' own code computes; the arrays are not part of the
project."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppmask_jax import patches
from dppmask_jax.models.sizes import Size
from dppmask_jax.models.vit import ViT, encoder
from dppmask_jax.weights import names

ORACLES = os.environ.get("DPPMASK_TEST_ORACLES")
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(not ORACLES, reason="DPPMASK_TEST_ORACLES names no folder"),
]
SIZE = Size(24, 2, 3)


def load(name):
    return np.load(f"{ORACLES}/{name}.npz", allow_pickle=False)


def plain(oracle, prefix):
    """The parameters of a plain encoder, by our names."""
    module = ViT(SIZE, (32, 32), 8)
    template = {"encoder": jax.eval_shape(encoder(module).init, jax.random.key(0))}
    tensors = {name: oracle[prefix + name] for name in names.write_names(template, lambda n: (n,))}
    return encoder(module), names.read(template, lambda name: (name,), tensors)["encoder"]


def channels_last(images):
    return jnp.moveaxis(jnp.asarray(images), 1, -1)


def close(value, expected, atol=1e-5):
    np.testing.assert_allclose(np.asarray(value, np.float64), expected, rtol=0, atol=atol)


def test_what_happens_within_the_blocks_is_what_cl_vs_mim_captures():
    oracle, tiny = load("clmim_capture"), load("ibot_tiny")
    vit, params = plain(tiny, "param.backbone.")
    trace = jax.jit(vit.trace)(params, channels_last(tiny["images"]))
    close(trace.embedding, oracle["z0"])
    for i, block in enumerate(trace.blocks):
        close(block.after_attention, oracle[f"z{2 * i + 1}"])
        close(block.after_mlp, oracle[f"z{2 * i + 2}"])
        close(block.attention, oracle[f"attention{i}"])
        close(block.mixed, oracle[f"attention_output{i}"])
        assert block.keys.shape == block.mixed.shape
    close(trace.tokens.cls, oracle["final_cls"])
    close(trace.tokens.prenorm, oracle["z4"])
    # The keys are those that give the attention.
    kernel = params["blocks"]["block_0"]["attn"]["qkv"]["kernel"][:, 24:48]
    bias = params["blocks"]["block_0"]["attn"]["qkv"]["bias"][24:48]
    norm = params["blocks"]["block_0"]["norm1"]
    z = oracle["z0"]
    z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-6)
    keys = (z * norm["scale"] + norm["bias"]) @ kernel + bias
    close(trace.blocks[0].keys, keys.reshape(3, 17, 3, 8).transpose(0, 2, 1, 3))


def test_masked_tokens_and_attention_are_ibots():
    tiny = load("ibot_tiny")
    vit, params = plain(tiny, "param.backbone.")
    images = channels_last(tiny["images"])
    token = tiny["param.backbone.masked_embed"]

    @jax.jit
    def encoded(params, images, local_images):
        mask = tiny["mask"].reshape(3, 16)
        masked = vit.encode(params, images, mask=mask, mask_token=token)
        clean, attention = vit.attended(params, images)
        local = vit.encode(params, local_images)
        return {"latent_masked": masked, "latent_clean": clean, "latent_local": local}, attention

    found, attention = encoded(params, images, channels_last(tiny["local_images"]))
    for name, tokens in found.items():
        close(tokens.cls, tiny[name][:, 0], 5e-6)
        close(tokens.patches, tiny[name][:, 1:], 5e-6)
    close(attention, tiny["last_attention"][:, :, 0, 1:], 5e-6)


def test_visible_patches_alone_are_encoded_as_maes():
    tiny = load("mae_tiny")
    vit, params = plain(tiny, "param.")
    vit = encoder(vit.module.clone(position="fixed"))
    keep = np.argsort(tiny["ids_restore_ratio0.6"], axis=1)[:, :6]

    @jax.jit
    def encoded(params, images):
        return vit.blocks(params, patches.gather(vit.embed(params, images), keep))

    tokens = encoded(params, channels_last(tiny["images"]))
    close(tokens.cls, tiny["latent_ratio0.6"][:, 0], 2e-6)
    close(tokens.patches, tiny["latent_ratio0.6"][:, 1:], 2e-6)


def simmim_params(oracle):
    def tensor(name):
        return oracle[f"param_encoder.{name}"]

    def linear(name):
        return {"kernel": tensor(f"{name}.weight").T, "bias": tensor(f"{name}.bias")}

    def norm(name):
        return {"scale": tensor(f"{name}.weight"), "bias": tensor(f"{name}.bias")}

    def block(name):
        return {
            "norm1": norm(f"{name}.norm1"),
            "norm2": norm(f"{name}.norm2"),
            "scale1": tensor(f"{name}.gamma_1"),
            "scale2": tensor(f"{name}.gamma_2"),
            "attn": {
                "q_bias": tensor(f"{name}.attn.q_bias"),
                "v_bias": tensor(f"{name}.attn.v_bias"),
                "qkv": {"kernel": tensor(f"{name}.attn.qkv.weight").T},
                "proj": linear(f"{name}.attn.proj"),
            },
            "mlp": {"fc1": linear(f"{name}.mlp.fc1"), "fc2": linear(f"{name}.mlp.fc2")},
        }

    patch = tensor("patch_embed.proj.weight").transpose(2, 3, 1, 0).reshape(-1, 24)
    return {
        "cls_token": tensor("cls_token"),
        "patch_embed": {"proj": {"kernel": patch, "bias": tensor("patch_embed.proj.bias")}},
        "relative_bias": {"table": tensor("rel_pos_bias.relative_position_bias_table")},
        "blocks": {f"block_{i}": block(f"blocks.{i}") for i in range(2)},
        "norm": norm("norm"),
    }


def test_the_encoder_with_simmims_options_is_simmims():
    oracle = load("simmim")
    vit = encoder(ViT(SIZE, (32, 32), 8, "none", relative="shared", layer_scale=0.1, qv_bias=True))
    params = simmim_params(oracle)
    shapes = jax.tree.map(np.shape, jax.eval_shape(vit.init, jax.random.key(0)))
    assert jax.tree.map(np.shape, params) == shapes
    mask, images = oracle["mask"].reshape(2, 16) > 0, channels_last(oracle["x"])
    kernel = oracle["param_decoder.0.weight"][:, :, 0, 0].T

    def loss(params, token):
        """The mean distance of masked pixels, 8 x 8 in each patch, and what they come from."""
        encoded = vit.encode(params, images, mask=mask, mask_token=token).patches
        pixels = (encoded @ kernel + oracle["param_decoder.0.bias"]).reshape(2, 4, 4, 3, 8, 8)
        pixels = pixels.transpose(0, 3, 1, 4, 2, 5).reshape(2, 3, 32, 32)
        hidden = jnp.repeat(jnp.repeat(oracle["mask"], 8, axis=1), 8, axis=2)[:, None]
        distance = jnp.sum(jnp.abs(oracle["x"] - pixels) * hidden)
        return distance / (jnp.sum(hidden) + 1e-5) / 3, encoded

    token = jnp.asarray(oracle["param_encoder.mask_token"][0])
    gradient = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (value, encoded), (of_params, of_token) = gradient(params, token)
    close(encoded, oracle["encoder_out"].reshape(2, 24, 16).transpose(0, 2, 1))
    np.testing.assert_allclose(value, oracle["loss"], rtol=1e-6)
    close(of_token, oracle["grad_encoder_mask_token"][0])
    table = oracle["grad_encoder_rel_pos_bias_relative_position_bias_table"]
    close(of_params["relative_bias"]["table"], table)
    close(of_params["blocks"]["block_0"]["scale1"], oracle["grad_encoder_blocks_0_gamma_1"])
    bias = oracle["grad_encoder_patch_embed_proj_bias"]
    close(of_params["patch_embed"]["proj"]["bias"], bias)
