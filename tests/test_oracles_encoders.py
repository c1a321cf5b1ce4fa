"""The encoder against what the authors' own code computes; the arrays are not part of the
project."""

import jax
import numpy as np
import oracles

from dppmask_jax import patches
from dppmask_jax.models.sizes import Size
from dppmask_jax.models.vit import encoder
from dppmask_jax.models.vit_module import ViT
from dppmask_jax.weights import names

pytestmark = oracles.MARKS
SIZE = Size(24, 2, 3)


def plain(oracle, prefix):
    """The parameters of a plain encoder, by our names."""
    module = ViT(SIZE, (32, 32), 8)
    template = {"encoder": jax.eval_shape(encoder(module).init, jax.random.key(0))}
    tensors = {name: oracle[prefix + name] for name in names.write_names(template, lambda n: (n,))}
    return encoder(module), names.read(template, lambda name: (name,), tensors)["encoder"]


def test_what_happens_within_the_blocks_is_what_cl_vs_mim_captures():
    oracle, tiny = oracles.load("clmim_capture"), oracles.load("ibot_tiny")
    vit, params = plain(tiny, "param.backbone.")
    trace = jax.jit(vit.trace)(params, oracles.images(tiny["images"]))
    oracles.near("clmim_capture, embedding", trace.embedding, oracle["z0"], 1e-5)
    for i, block in enumerate(trace.blocks):
        oracles.near(
            f"clmim_capture, after attention {i}",
            block.after_attention,
            oracle[f"z{2 * i + 1}"],
            1e-5,
        )
        oracles.near(
            f"clmim_capture, after MLP {i}", block.after_mlp, oracle[f"z{2 * i + 2}"], 1e-5
        )
        oracles.near(
            f"clmim_capture, attention {i}", block.attention, oracle[f"attention{i}"], 1e-5
        )
        oracles.near(f"clmim_capture, A V {i}", block.mixed, oracle[f"attention_output{i}"], 1e-5)
        assert block.keys.shape == block.mixed.shape
    oracles.near("clmim_capture, class token", trace.tokens.cls, oracle["final_cls"], 1e-5)
    oracles.near("clmim_capture, last block", trace.tokens.prenorm, oracle["z4"], 1e-5)
    # The keys are those that give the attention.
    kernel = params["blocks"]["block_0"]["attn"]["qkv"]["kernel"][:, 24:48]
    bias = params["blocks"]["block_0"]["attn"]["qkv"]["bias"][24:48]
    norm = params["blocks"]["block_0"]["norm1"]
    z = oracle["z0"]
    z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-6)
    keys = (z * norm["scale"] + norm["bias"]) @ kernel + bias
    oracles.near(
        "clmim_capture, keys",
        trace.blocks[0].keys,
        keys.reshape(3, 17, 3, 8).transpose(0, 2, 1, 3),
        1e-5,
    )


def test_masked_tokens_and_attention_are_ibots():
    tiny = oracles.load("ibot_tiny")
    vit, params = plain(tiny, "param.backbone.")
    images = oracles.images(tiny["images"])
    token = tiny["param.backbone.masked_embed"]

    @jax.jit
    def encoded(params, images, local_images):
        mask = tiny["mask"].reshape(3, 16)
        masked = vit.encode(params, images, mask=mask, mask_token=token)
        clean, attention = vit.attended(params, images)
        local = vit.encode(params, local_images)
        return {"latent_masked": masked, "latent_clean": clean, "latent_local": local}, attention

    found, attention = encoded(params, images, oracles.images(tiny["local_images"]))
    for name, tokens in found.items():
        oracles.near(f"ibot_tiny, {name}", tokens.cls, tiny[name][:, 0], 5e-6)
        oracles.near(f"ibot_tiny, {name}", tokens.patches, tiny[name][:, 1:], 5e-6)
    oracles.near("ibot_tiny, attention", attention, tiny["last_attention"][:, :, 0, 1:], 5e-6)


def test_visible_patches_alone_are_encoded_as_maes():
    tiny = oracles.load("mae_tiny")
    vit, params = plain(tiny, "param.")
    vit = encoder(vit.module.clone(position="fixed"))
    keep = np.argsort(tiny["ids_restore_ratio0.6"], axis=1)[:, :6]

    @jax.jit
    def encoded(params, images):
        return vit.blocks(params, patches.gather(vit.embed(params, images), keep))

    tokens = encoded(params, oracles.images(tiny["images"]))
    oracles.near("mae_tiny, visible alone", tokens.cls, tiny["latent_ratio0.6"][:, 0], 2e-6)
    oracles.near("mae_tiny, visible alone", tokens.patches, tiny["latent_ratio0.6"][:, 1:], 2e-6)


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
    """Its gradients are those of the method's loss, see test_oracles_simmim.py."""
    oracle = oracles.load("simmim")
    vit = encoder(ViT(SIZE, (32, 32), 8, "none", relative="shared", layer_scale=0.1, qv_bias=True))
    params, images = simmim_params(oracle), oracles.images(oracle["x"])
    shapes = jax.tree.map(np.shape, jax.eval_shape(vit.init, jax.random.key(0)))
    assert jax.tree.map(np.shape, params) == shapes
    mask, token = oracle["mask"].reshape(2, 16) > 0, oracle["param_encoder.mask_token"][0]
    encoded = jax.jit(vit.encode)(params, images, mask=mask, mask_token=token).patches
    expected = oracle["encoder_out"].reshape(2, 24, 16).transpose(0, 2, 1)
    oracles.near("simmim, encoder", encoded, expected, 1e-5)
