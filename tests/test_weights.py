"""Weights in other formats, without PyTorch: names, layouts, sizes, round trips, bad files."""

import json
import math
import re
import shlex
import struct
import sys

import exported
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny
from reference_ibot import resize_positions

import dppmask_jax
from configs import simmim
from dppmask_jax import patches
from dppmask_jax.errors import InputError
from dppmask_jax.imagenet import MEAN, STD
from dppmask_jax.models.sizes import Size
from dppmask_jax.runs.metrics import read_metrics
from dppmask_jax.runs.run import load_run
from dppmask_jax.weights import exporting, files, names, opened, positions, pretraining, sizes
from dppmask_jax.weights.exporting import export_weights, loaded_by
from dppmask_jax.weights.importing import Options, import_weights
from dppmask_jax.weights.sizes import Known

KNOWN = Known(image_size=(16, 24), decoder_heads=2)


@pytest.fixture(scope="module")
def mae(tmp_path_factory):
    return exported.run(tmp_path_factory.mktemp("mae") / "run")


@pytest.fixture(scope="module")
def ibot(tmp_path_factory):
    return exported.run(tmp_path_factory.mktemp("ibot") / "run", "ibot", model__shared_head=False)


def taken(path, format_name, folder, method="mae", options=None, **changes):
    """Imports with the tiny config as the base."""
    options = Options(KNOWN) if options is None else options
    return import_weights(path, format_name, folder, tiny.config(method, **changes), options)


def refused(path, format_name, folder, *words, method="mae", options=None, **changes):
    """The import fails in one line with these words, and writes nothing."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(InputError) as caught:
        taken(path, format_name, folder, method, options, **changes)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    assert sorted(folder.parent.rglob("*")) == before


def read(path, format_name, options):
    """(the opened file, its tensors), without an import, which takes longer."""
    with opened.opened(path, format_name, options) as file:
        return file, {name: entry.load() for name, entry in file.entries.items()}


def tensors_of(run, format_name, tmp_path):
    path = export_weights(run, tmp_path / "weights.safetensors", format_name)
    return safetensors.numpy.load_file(path)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# Names and layouts.

MAE_B = {
    "cls_token": (1, 1, 768),
    "pos_embed": (1, 197, 768),
    "patch_embed.proj.weight": (768, 3, 16, 16),
    "patch_embed.proj.bias": (768,),
    "blocks.0.norm1.weight": (768,),
    "blocks.11.attn.qkv.weight": (2304, 768),
    "blocks.3.attn.qkv.bias": (2304,),
    "blocks.3.attn.proj.weight": (768, 768),
    "blocks.3.mlp.fc1.weight": (3072, 768),
    "blocks.3.mlp.fc2.weight": (768, 3072),
    "norm.bias": (768,),
    "mask_token": (1, 1, 512),
    "decoder_pos_embed": (1, 197, 512),
    "decoder_embed.weight": (512, 768),
    "decoder_blocks.7.mlp.fc1.weight": (2048, 512),
    "decoder_norm.weight": (512,),
    "decoder_pred.weight": (768, 512),
}


def abstract_mae_b():
    from configs import mae as mae_config
    from dppmask_jax.training.build import method_from, plan_from

    config = mae_config.get_config("dataset=imagenet1k")
    method = method_from(config, plan_from(config, config.batch_size))
    params, _ = jax.eval_shape(method.init, jax.random.key(0))
    for part, width in (("encoder", 768), ("decoder", 512)):
        params[part] = {**params[part], "positions": names.abstract((1, 197, width))}
    return params


def test_vit_b_has_the_published_names_and_shapes():
    spell = names.FORMATS["mae-full"].spell
    found = {
        name: array.shape
        for name, array in jax.eval_shape(
            lambda tree: names.write(tree, spell), abstract_mae_b()
        ).items()
    }
    assert MAE_B.items() <= found.items()
    # 12 and 8 blocks of 12 tensors; 6 others of the encoder, 8 of the decoder.
    assert len(found) == 20 * 12 + 6 + 8
    assert sum(np.prod(shape) for shape in found.values()) == 111_907_840


def test_huggingface_names():
    spell = names.FORMATS["hf"].spell
    found = {slot.path: slot.names for slot in names.slots(abstract_mae_b(), spell)}
    block = ("encoder", "blocks", "block_2")
    assert found[(*block, "attn", "qkv", "kernel")] == (
        "vit.encoder.layer.2.attention.attention.query.weight",
        "vit.encoder.layer.2.attention.attention.key.weight",
        "vit.encoder.layer.2.attention.attention.value.weight",
    )
    assert found[(*block, "mlp", "fc2", "bias")] == ("vit.encoder.layer.2.output.dense.bias",)
    block = ("decoder", "blocks", "block_2")
    assert found[(*block, "attn", "proj", "bias")] == (
        "decoder.decoder_layers.2.attention.output.dense.bias",
    )
    assert found[("decoder", "mask_token")] == ("decoder.mask_token",)
    assert found[("encoder", "norm", "scale")] == ("vit.layernorm.weight",)
    alone = names.FORMATS["hf-encoder"]
    assert alone.spell("pos_embed") == ("embeddings.position_embeddings",)


@pytest.mark.parametrize(
    "other,v4",
    [
        ("vit.layers.4.attention.q_proj.weight",
         "vit.encoder.layer.4.attention.attention.query.weight"),
        ("vit.layers.4.attention.o_proj.bias", "vit.encoder.layer.4.attention.output.dense.bias"),
        ("vit.layers.4.mlp.fc1.bias", "vit.encoder.layer.4.intermediate.dense.bias"),
        ("decoder.decoder_layers.4.mlp.fc2.bias", "decoder.decoder_layers.4.output.dense.bias"),
        ("decoder.decoder_encoder.layer.4.output.dense.bias",
         "decoder.decoder_layers.4.output.dense.bias"),
        ("embeddings.cls_token", "vit.embeddings.cls_token"),
        ("vit.encoder.layer.4.layernorm_before.bias", "vit.encoder.layer.4.layernorm_before.bias"),
    ],
)  # fmt: skip
def test_every_spelling_of_huggingface_is_read(other, v4):
    assert names.FORMATS["hf"].respell([other]) == {other: v4}
    assert names.FORMATS["hf-encoder"].respell([other]) == {other: v4.removeprefix("vit.")}


@pytest.mark.parametrize(
    "format_name,found,new",
    [
        ("ibot-teacher", "norm.bias", "backbone.norm.bias"),
        ("ibot-teacher", "module.backbone.norm.bias", "backbone.norm.bias"),
        ("ibot-teacher", "head.mlp.0.bias", "head.mlp.0.bias"),
        ("ibot-student", "backbone.masked_embed", "module.backbone.masked_embed"),
        ("ibot-student", "module.head.mlp.0.bias", "module.head.mlp.0.bias"),
        ("ibot", "student.backbone.norm.bias", "student.module.backbone.norm.bias"),
        ("ibot", "teacher.module.head.mlp.0.bias", "teacher.head.mlp.0.bias"),
        ("ibot", "ibot_loss.center2", "ibot_loss.center2"),
    ],
)
def test_ibot_names_are_read_with_and_without_their_prefixes(format_name, found, new):
    assert names.FORMATS[format_name].respell([found]) == {found: new}


def test_layouts_are_those_of_pytorch(mae, tmp_path):
    """A convolution and a linear layer by their definitions, with loops."""
    tensors = tensors_of(mae, "mae", tmp_path)
    encoder = exported.state_of(mae)["params"]["encoder"]
    weight, kernel = tensors["patch_embed.proj.weight"], encoder["patch_embed"]["proj"]["kernel"]
    for row, column, channel, out in [(0, 0, 0, 0), (1, 3, 2, 7), (3, 0, 1, 95), (2, 2, 0, 40)]:
        ours = kernel[(row * 4 + column) * 3 + channel, out]
        assert weight[out, channel, row, column] == ours
    qkv = encoder["blocks"]["block_1"]["attn"]["qkv"]["kernel"]
    assert tensors["blocks.1.attn.qkv.weight"][200, 5] == qkv[5, 200]
    square = encoder["blocks"]["block_1"]["attn"]["proj"]["kernel"]
    assert tensors["blocks.1.attn.proj.weight"][70, 5] == square[5, 70] != square[70, 5]
    table = patches.sincos_positions((4, 6), 96)
    np.testing.assert_array_equal(tensors["pos_embed"][0, 1:], table)
    assert not tensors["pos_embed"][0, 0].any()


def test_ibot_files_have_the_published_names(ibot, tmp_path):
    tensors = tensors_of(ibot, "ibot", tmp_path)
    shapes = {name: array.shape for name, array in tensors.items()}
    published = {
        "student.module.backbone.masked_embed": (1, 96),
        "student.module.head.mlp.2.weight": (32, 32),
        "student.module.head.mlp.4.weight": (16, 32),
        "teacher.backbone.blocks.0.attn.qkv.weight": (288, 96),
        "teacher.head.last_layer.weight_g": (24, 1),
        "teacher.head.last_layer.weight_v": (24, 16),
        "teacher.head.last_layer2.weight_v": (24, 16),
        "ibot_loss.center": (1, 24),
        "ibot_loss.center2": (1, 1, 24),
    }
    assert published.items() <= shapes.items()
    assert "teacher.backbone.masked_embed" not in shapes


def test_a_shared_last_layer_is_written_twice(tmp_path):
    run = exported.run(tmp_path / "run", "ibot", model__norm_last_layer=True)
    tensors = tensors_of(run, "ibot-teacher", tmp_path)
    for part in ("weight_g", "weight_v"):
        first, second = (tensors[f"head.{name}.{part}"] for name in ("last_layer", "last_layer2"))
        np.testing.assert_array_equal(first, second)
    # Prototypes of fixed length have no scale here.
    assert (tensors["head.last_layer.weight_g"] == 1).all()


def test_the_tree_of_a_file_is_what_was_written(tmp_path):
    run = exported.finetuned(tmp_path / "run")
    params = exported.state_of(run)["params"]
    assert set(params) == {"encoder", "fc_norm", "head"} and "norm" not in params["encoder"]
    tensors = tensors_of(run, "mae-finetuned", tmp_path)
    assert {"fc_norm.weight", "head.weight", "blocks.3.norm2.bias"} <= tensors.keys()
    assert "norm.weight" not in tensors and tensors["head.weight"].shape == (5, 96)
    same(names.read(params, names.FORMATS["mae-finetuned"].spell, tensors), params)


# Round trips.


def test_a_whole_autoencoder_comes_back_bit_for_bit(tmp_path):
    mae = exported.run(tmp_path / "run", image_size=(8, 32), mask__ratio=0.5, loss__norm_pix=False)
    path = export_weights(mae, tmp_path / "hf", "hf")
    described = json.loads((path / "config.json").read_text())
    assert described["image_size"] == [8, 32] and described["decoder_num_attention_heads"] == 2
    assert described["layer_norm_eps"] == 1e-6 and described["norm_pix_loss"] is False
    pixels = json.loads((path / "preprocessor_config.json").read_text())
    assert pixels["size"] == {"height": 8, "width": 32} and pixels["image_std"] == list(STD)
    # All that the tensors do not say stands in config.json.
    made = taken(path, "hf", tmp_path / "back", options=Options(), image_size=(32, 32))
    assert made.fresh == ("optimiser",) and not made.left_aside
    assert made.config.image_size == (8, 32) and made.config.model.decoder_heads == 2
    assert made.config.mask.ratio == 0.5 and made.config.loss.norm_pix is False
    assert made.config.model.dtype == "float32"
    options = Options(asked=frozenset(("mask.ratio", "loss.norm_pix", "model.dtype")))
    file, tensors = read(path, "hf", options)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    found = sizes.read(shapes, file.name_of, file.stated, options.known, fixed=True)
    wanted = tiny.config("mae", mask__ratio=0.25, model__dtype="bfloat16")
    kept = pretraining.adapted(wanted, found, file, options)
    assert kept.mask.ratio == 0.25 and kept.loss.norm_pix and kept.model.dtype == "bfloat16"
    same(exported.state_of(tmp_path / "back")["params"], exported.state_of(mae)["params"])

    again = export_weights(tmp_path / "back", tmp_path / "again", "hf")
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        assert (again / name).read_bytes() == (path / name).read_bytes()
    assert not list(tmp_path.glob(".*"))
    # safetensors lets only the owner read what it writes.
    modes = {(path / name).stat().st_mode for name in ("model.safetensors", "config.json")}
    assert len(modes) == 1


@pytest.mark.slow
def test_a_whole_ibot_comes_back_bit_for_bit(ibot, tmp_path):
    path = export_weights(ibot, tmp_path / "ibot.safetensors", "ibot")
    made = taken(path, "ibot", tmp_path / "back", "ibot", model__prototypes=7)
    assert made.config.model.prototypes == 24 and not made.config.model.shared_head
    before, after = exported.state_of(ibot), exported.state_of(tmp_path / "back")
    same(after["params"], before["params"])
    for part in ("teacher", "class_center", "patch_center"):
        same(after["extra"][part], before["extra"][part])


@pytest.mark.slow
def test_learned_positions_are_resized_by_choice(ibot, tmp_path):
    """An encoder alone, its pixels normalised in another way, in an iBOT run of another size."""
    path = export_weights(ibot, tmp_path / "vit.safetensors", "timm")
    (tmp_path / "config.json").write_text(
        json.dumps({"pretrained_cfg": {"input_size": [3, 16, 24], "mean": [0.5] * 3,
                                       "std": [0.5] * 3}})
    )  # fmt: skip
    options = Options(allow_missing=("head",), resize_positions=(24, 16))
    refused(path, "timm", tmp_path / "back", "--mean=0.5,0.5,0.5 --std=0.5,0.5,0.5",
            method="ibot", options=options)  # fmt: skip
    options = options._replace(mean=(0.5,) * 3, std=(0.5,) * 3)
    made = taken(path, "timm", tmp_path / "back", "ibot", options)
    assert made.config.image_size == (24, 16)
    assert made.fresh == ("optimiser", "head", "mask_embed", "centers")

    before = exported.state_of(ibot)["extra"]["teacher"]["encoder"]
    state = exported.state_of(tmp_path / "back")
    after = state["params"]["encoder"]
    same(state["extra"]["teacher"]["encoder"], after)
    same(after["blocks"], before["blocks"])
    expected = resize_positions(before["positions"], (4, 6), (6, 4), offset=0.0)
    np.testing.assert_allclose(after["positions"], expected, atol=1e-6)
    np.testing.assert_array_equal(after["positions"][0, 0], before["positions"][0, 0])
    # As loading the run for that size does.
    run = load_run(ibot, image_size=(24, 16))
    assert "learned positions resized" in run.resized and run.image_size == (24, 16)
    np.testing.assert_array_equal(run.encoder["positions"], after["positions"])
    np.testing.assert_array_equal(
        run.params["encoder"]["positions"].shape, after["positions"].shape, "the student's as well"
    )

    pixels = np.random.default_rng(0).uniform(size=(1, 24, 16, 3))

    def embedded(encoder, mean, std):
        cut = np.asarray(patches.patchify((pixels - np.asarray(mean)) / np.asarray(std), 4))
        proj = encoder["patch_embed"]["proj"]
        return cut @ proj["kernel"] + proj["bias"]

    np.testing.assert_allclose(
        embedded(after, MEAN, STD), embedded(before, (0.5,) * 3, (0.5,) * 3), atol=1e-5
    )


def test_exported_positions_can_be_resized(mae, tmp_path):
    path = export_weights(mae, tmp_path / "a.safetensors", "timm", resize_positions=(32, 32))
    table = np.concatenate([np.zeros((1, 96)), patches.sincos_positions((4, 6), 96)])[None]
    expected = resize_positions(table, (4, 6), (8, 8), offset=0.0)
    found = safetensors.numpy.load_file(path)["pos_embed"]
    assert loaded_by(mae, path, "timm", (32, 32)) == (
        "timm.create_model('vit_base_patch16_224', num_classes=0, img_size=(32, 32), patch_size=4, "
        "embed_dim=96, depth=4, num_heads=3, pretrained_cfg_overlay={'input_size': (3, 32, 32), "
        f"'mean': {MEAN}, 'std': {STD}}}, checkpoint_path='{path}')"
    )
    assert not loaded_by(mae, path, "mae")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for size, word in (((30, 32), "patch size"), ((16, 24), None)):
        target = tmp_path / f"b{size[0]}.safetensors"
        if word is None:
            export_weights(mae, target, "timm", resize_positions=size)
        else:
            with pytest.raises(InputError, match=word):
                export_weights(mae, target, "timm", resize_positions=size)
    with pytest.raises(InputError, match="has a decoder"):
        export_weights(mae, tmp_path / "c.safetensors", "mae-full", resize_positions=(32, 32))


# Files that do not fit.


@pytest.fixture
def encoder_file(mae, tmp_path):
    """The tensors of an encoder, to be changed, and a function that saves them."""
    tensors = tensors_of(mae, "mae", tmp_path)

    def save(changed):
        safetensors.numpy.save_file(changed, tmp_path / "changed.safetensors")
        return tmp_path / "changed.safetensors"

    return tensors, save


DECODER = Options(KNOWN, allow_missing=("decoder",))


def test_all_faults_are_listed_at_once(encoder_file, tmp_path):
    tensors, save = encoder_file
    del tensors["blocks.2.mlp.fc1.bias"]
    tensors["head.weight"] = np.zeros((10, 96), np.float32)
    tensors["blocks.0.attn.qkv.bias"] = np.zeros(287, np.float32)
    tensors["blocks.5.norm1.bias"] = np.zeros(96, np.float32)
    refused(
        save(tensors), "mae", tmp_path / "run",
        "4 tensors", "missing blocks.2.mlp.fc1.bias (384,)", "unmatched head.weight (10, 96)",
        "blocks.0.attn.qkv.bias has shape (287,), wanted (288,)", "unmatched blocks.5.norm1.bias",
        options=DECODER,
    )  # fmt: skip


def test_values_that_are_not_finite_are_refused(encoder_file, tmp_path):
    tensors, save = encoder_file
    tensors["norm.bias"][3] = np.nan
    refused(save(tensors), "mae", tmp_path / "run", "norm.bias is not finite", options=DECODER)


def test_exceptions_are_explicit(encoder_file, tmp_path):
    tensors, save = encoder_file
    path = save(tensors)
    refused(path, "mae-full", tmp_path / "run", "has no decoder", "--allow_missing=decoder")
    refused(path, "mae", tmp_path / "run", "--drop=head: no tensor",
            options=DECODER._replace(drop=("head",)))  # fmt: skip
    for name in ("norm.weight", "norm.bias"):
        del tensors[name]
    refused(save(tensors), "mae", tmp_path / "run", "has no norm", options=DECODER)
    refused(path, "mae", tmp_path / "run", "decoder | head | norm",
            options=DECODER._replace(allow_missing=("everything",)))  # fmt: skip


OTHER_ENCODERS = {
    # what: (tensors more, tensors fewer, words)
    "registers": ({"reg_token": (1, 4, 96), "pos_embed": (1, 29, 96)}, (),
                  "register tokens (reg_token)"),
    "layer scale": ({f"blocks.{i}.ls{j}.gamma": (96,) for i in range(4) for j in (1, 2)}, (),
                    "LayerScale (blocks.0.ls1.gamma and 7 more)"),
    "qk-norm": ({"blocks.0.attn.q_norm.weight": (32,)}, (),
                "normalised queries and keys (blocks.0.attn.q_norm.weight"),
    "distillation": ({"dist_token": (1, 1, 96)}, (), "a distillation token (dist_token)"),
    "pre-norm": ({"norm_pre.weight": (96,)}, (), "a layer norm before the blocks (norm_pre.weight"),
    "rotary": ({"rope.freqs": (2, 8)}, (), "rotary positions (rope.freqs"),
    "relative": ({"blocks.0.attn.relative_position_bias_table": (9, 3)}, (), "relative positions"),
    "gated": ({"blocks.0.mlp.fc1.weight": (768, 96)}, (), "gated MLPs (SwiGLU)"),
    "stem": ({"patch_embed.backbone.conv.weight": (3, 3, 3, 3)}, (), "several layers"),
    "no biases": ({}, [f"blocks.{i}.attn.qkv.bias" for i in range(4)], "no biases of queries"),
    "no class token": ({}, ["cls_token"], "no class token"),
    "no class position": ({"pos_embed": (1, 24, 96)}, (), "none for the class token"),
    "another": ({"blocks.0.attn.shift": (96,)}, (), "no encoder here has (blocks.0.attn.shift)"),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHER_ENCODERS)
def test_another_architecture_is_refused_by_name(what, encoder_file, tmp_path):
    """And no hint leads around it: neither a size nor leaving the tensor aside."""
    tensors, save = encoder_file
    more, fewer, words = OTHER_ENCODERS[what]
    tensors |= {name: np.ones(shape, np.float32) for name, shape in more.items()}
    path = save({name: tensor for name, tensor in tensors.items() if name not in fewer})
    for options in (DECODER, DECODER._replace(known=KNOWN._replace(image_size=None))):
        if what != "no class position" or options == DECODER:  # else 5x5 less one, or 4x6
            refused(path, "mae", tmp_path / "run", words, "not supported yet", options=options)
    for name in more:
        refused(path, "mae", tmp_path / "run", f"{name} is no head", "another one without it",
                options=DECODER._replace(drop=(name,)))  # fmt: skip


def test_what_leaves_no_trace_in_tensors_is_read_from_a_config(encoder_file, tmp_path):
    path = encoder_file[1](encoder_file[0])
    for stated, words in (
        ({"architecture": "vit_small_patch16_rope_224"}, "rotary positions (config.json: vit_s"),
        ({"model_args": {"act_layer": "quick_gelu"}}, "act_layer='quick_gelu' (config.json)"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(stated))
        refused(path, "mae", tmp_path / "run", words, "not supported yet", options=DECODER)


def test_heads_are_left_aside_by_choice(encoder_file, tmp_path):
    tensors, save = encoder_file
    tensors |= {
        name: np.zeros((3, 96), np.float32)
        for name in ("head.weight", "decoder_embed.bias", "projector.0.bias")
    }
    tensors["projector.1.num_batches_tracked"] = np.zeros((), np.int64)
    path = save(tensors)
    refused(path, "mae", tmp_path / "run", "projector.1.num_batches_tracked", options=DECODER)
    options = DECODER._replace(drop=("projector",))
    refused(
        path, "mae", tmp_path / "run", "(--drop=decoder,head leaves", "mae-full", options=options
    )
    file, _ = read(path, "mae", options._replace(drop=("projector", "decoder", "head")))
    assert file.left_aside == (
        "projector.0.bias", "projector.1.num_batches_tracked", "decoder_embed.bias", "head.weight"
    )  # fmt: skip


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "model.encoder."])
def test_what_stands_before_all_names_is_taken_off(prefix, encoder_file):
    tensors, save = encoder_file
    path = save({prefix + name: tensor for name, tensor in tensors.items()})
    file, found = read(path, "mae", DECODER)
    assert file.prefix == prefix and not file.left_aside
    same(found, tensors)


def test_a_prefix_of_some_names_has_to_be_asked_for(encoder_file, tmp_path):
    tensors, save = encoder_file
    path = save(
        {f"module.base.{name}": tensor for name, tensor in tensors.items()}
        | {"module.neck.weight": np.zeros(3, np.float32), "queue": np.zeros(3, np.float32)}
    )
    refused(path, "mae", tmp_path / "run", "start with module. (55), queue (1)",
            "add --strip_prefix=module.base.")  # fmt: skip
    refused(path, "mae", tmp_path / "run", "--strip_prefix=base: no tensor", "module. (55)",
            options=DECODER._replace(strip_prefix="base"))  # fmt: skip
    for asked in ("module.base", "module."):
        if asked == "module.":  # the rest is found where all of them have it
            path = save({f"module.base.{name}": tensor for name, tensor in tensors.items()})
        file, found = read(path, "mae", DECODER._replace(strip_prefix=asked))
        assert file.prefix == "module.base."
        assert file.left_aside == (("module. (1), queue (1)",) if asked != "module." else ())
        same(found, tensors)


@pytest.mark.parametrize(
    "name, part",
    [("reg_token", "register tokens"), ("module.norm_pre.weight", "a layer norm before"),
     ("module.pos_embed", "positions")],
)  # fmt: skip
def test_a_prefix_leaves_no_part_of_the_encoder_aside(name, part, encoder_file, tmp_path):
    tensors, save = encoder_file
    path = save(
        {f"module.vit.{name}": tensor for name, tensor in tensors.items()}
        | {name: np.zeros(3, np.float32), "other.reg_token": np.zeros(3, np.float32)}
    )
    refused(path, "mae", tmp_path / "run", part, f"({name}) beside module.vit.",
            options=DECODER._replace(strip_prefix="module.vit"))  # fmt: skip


def test_shards_are_one_file(encoder_file, tmp_path):
    tensors, _ = encoder_file
    names_of = sorted(tensors)
    where = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names_of)}
    folder = tmp_path / "parts"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    refused(folder, "mae", tmp_path / "run", "names model-0.safetensors, which is not beside it")
    for shard in set(where.values()):
        inside = {name: tensors[name] for name in names_of if where[name] == shard}
        safetensors.numpy.save_file(inside, folder / shard)
    for path in (folder, index):
        same(read(path, "mae", DECODER)[1], tensors)
    safetensors.numpy.save_file({"norm.bias": tensors["norm.bias"]}, folder / "model-1.safetensors")
    index.write_text(json.dumps({"weight_map": where}))
    refused(folder, "mae", tmp_path / "run", "that its files do not have")
    index.write_text(json.dumps({"weight_map": {"norm.bias": "../changed.safetensors"}}))
    refused(folder, "mae", tmp_path / "run", "which is no file beside it")


def test_fixed_positions_may_be_left_out_and_zeros_are_none(mae, tmp_path):
    tensors = tensors_of(mae, "mae-full", tmp_path)
    tables = {name: tensors.pop(name) for name in ("pos_embed", "decoder_pos_embed")}
    path = tmp_path / "without.safetensors"
    safetensors.numpy.save_file(tensors, path)
    refused(path, "mae-full", tmp_path / "run", "add --image_size",
            options=Options(KNOWN._replace(image_size=None)))  # fmt: skip
    refused(path, "timm", tmp_path / "run", "the file has no pos_embed")
    taken(path, "mae-full", tmp_path / "run")
    same(*(exported.state_of(run)["params"] for run in (tmp_path / "run", mae)))
    zeros = {name: np.zeros_like(table) for name, table in tables.items()}
    safetensors.numpy.save_file(tensors | zeros, path)
    refused(path, "mae-full", tmp_path / "again", "pos_embed is all zero", "never trained")


def test_half_a_part_is_not_a_missing_part(mae, tmp_path):
    tensors = tensors_of(mae, "mae-full", tmp_path)
    del tensors["mask_token"]
    safetensors.numpy.save_file(tensors, tmp_path / "half.safetensors")
    refused(tmp_path / "half.safetensors", "mae-full", tmp_path / "run", "missing mask_token",
            options=DECODER)  # fmt: skip


def test_positions_that_an_mae_cannot_have(encoder_file, tmp_path):
    tensors, save = encoder_file
    tensors["pos_embed"][0, 5, 5] += 2e-4
    refused(save(tensors), "mae", tmp_path / "run", "pos_embed is not the sine-cosine",
            "an MAE", "0.0002", "--config=ibot", options=DECODER)  # fmt: skip
    # 4x6 patches taken for 6x4 ones.
    tensors["pos_embed"][0, 5, 5] -= 2e-4
    refused(save(tensors), "mae", tmp_path / "run", "of 6x4 patches",
            options=DECODER._replace(known=Known(image_size=(24, 16))))  # fmt: skip
    refused(save(tensors), "mae", tmp_path / "run", "import it for its own 16x24",
            options=DECODER._replace(resize_positions=(32, 24)))  # fmt: skip


def test_rounding_of_a_half_precision_file_is_no_other_table():
    table = patches.fixed_positions((4, 6), 96)
    rough = table.astype(ml_dtypes.bfloat16).astype(np.float32)
    positions.check_fixed(rough, table, (4, 6), "pos_embed", 2.0**-7, "an MAE")
    with pytest.raises(InputError, match="pos_embed is not"):
        positions.check_fixed(rough, table, (4, 6), "pos_embed", 2.0**-23, "an MAE")


def test_files_of_other_precisions_are_read_as_float32(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 4))
    for dtype, spacing in (
        (np.float64, 2.0**-52),
        (np.float32, 2.0**-23),
        (np.float16, 2.0**-10),
        (ml_dtypes.bfloat16, 2.0**-7),
    ):
        path = tmp_path / f"{np.dtype(dtype).name}.safetensors"
        safetensors.numpy.save_file({"x": values.astype(dtype)}, path)
        with files.opened(path, ()) as (entries, rest):
            assert entries["x"].shape == (3, 4) and entries["x"].spacing == spacing and not rest
            found = entries["x"].load()
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, values.astype(dtype).astype(np.float32))


def test_an_encoder_of_no_usual_size_goes_out_and_comes_back(tmp_path):
    sizes = {"model__depth": 2, "model__heads": 4, "model__mlp": 100}
    run = tiny.save_run(tmp_path / "run", image_size=(16, 24), **sizes)
    path = export_weights(run, tmp_path / "a.safetensors", "mae-full")
    options = Options(KNOWN._replace(heads=4))
    config = tiny.config(image_size=(16, 24))
    made = import_weights(path, "mae-full", tmp_path / "back", config, options).config.model
    assert (made.size, made.width, made.depth, made.heads, made.mlp) == ("Pi", None, 2, 4, 100)
    call = loaded_by(run, path, "timm")
    assert "embed_dim=96, depth=2, num_heads=4, mlp_ratio=" in call
    assert int(96 * float(re.search(r"mlp_ratio=([\d.]+)", call)[1])) == 100


@pytest.mark.slow
def test_mocos_positions_have_the_row_first_and_are_no_maes(tmp_path):
    run = exported.run(tmp_path / "run", "moco", model__depth=1)
    path = export_weights(run, tmp_path / "a.safetensors", "mae")
    of_mae = patches.sincos_positions((4, 6), 96)
    table = np.concatenate([of_mae[:, 48:], of_mae[:, :48]], axis=1)
    found = safetensors.numpy.load_file(path)["pos_embed"][0]
    np.testing.assert_array_equal(found, np.concatenate([np.zeros((1, 96)), table]))
    refused(path, "mae", tmp_path / "mae", "is not the sine-cosine table that an MAE has",
            options=DECODER)  # fmt: skip
    made = taken(path, "mae", tmp_path / "back", "moco")
    assert set(made.fresh) == {"optimiser", "projector", "predictor"}
    of_run, back = (exported.state_of(folder)["params"] for folder in (run, tmp_path / "back"))
    same(back["encoder"], of_run["encoder"])


def test_timm_makes_the_hidden_width_of_its_ratio():
    for width in (28, 44, 96, 768):
        for hidden in range(1, 4 * width + 2):
            assert int(width * exporting._mlp_ratio(Size(width, 1, 4, hidden))) == hidden


def test_an_encoder_of_oblong_patches_of_any_method(tmp_path):
    """SimMIM's, without what published formats have no place for, goes out and comes back."""
    config = simmim.get_config("dataset=shapes")
    config.image_size, config.model.patch_size = (16, 24), (8, 4)
    config.model.width, config.model.depth, config.model.heads = 24, 1, 2
    params, extra = exported.weights(config)
    run = exported.save(tmp_path / "whole", config, params, extra)
    for target, format_name in (
        ("a.safetensors", "timm"),
        ("b.safetensors", "mae"),
        ("a", "hf-encoder"),
    ):
        with pytest.raises(InputError) as refusal:
            export_weights(run, tmp_path / target, format_name)
        assert "relative positions and layer scale and" in str(refusal.value)
    with pytest.raises(
        InputError, match=r"run of simmim.* does not fit; use mae \| hf-encoder \| timm$"
    ):
        export_weights(run, tmp_path / "a.safetensors", "mae-full")
    path = exported.run(tmp_path / "mae", model__patch_size=(8, 4))
    with pytest.raises(InputError, match=r"mae-full is for square patches.* are 8x4; use mae"):
        export_weights(path, tmp_path / "a.safetensors", "mae-full")

    plain = {"position": "fixed", "relative": "none", "layer_scale": 0.0, "qv_bias": False}
    config.model.update(plain)
    params, extra = exported.weights(config)
    run = exported.save(tmp_path / "run", config, params, extra)
    path = export_weights(run, tmp_path / "a.safetensors", "timm")
    assert "patch_size=(8, 4), embed_dim=24" in loaded_by(run, path, "timm")
    found = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(found["pos_embed"][0, 1:], patches.sincos_positions((2, 6), 24))
    kernel, weight = (
        params["encoder"]["patch_embed"]["proj"]["kernel"],
        found["patch_embed.proj.weight"],
    )
    for row, column, channel in ((0, 0, 0), (7, 3, 2), (1, 0, 1), (0, 1, 0)):
        ours = kernel[(4 * row + column) * 3 + channel]
        np.testing.assert_array_equal(weight[:, channel, row, column], ours)
    recipe = simmim.get_config("dataset=shapes")
    recipe.model.update(plain)
    options = Options(Known(image_size=(16, 24), heads=2))
    made = import_weights(path, "mae", tmp_path / "back", recipe, options)
    assert made.fresh == ("optimiser", "head", "mask_token")
    assert made.config.model.patch_size == (8, 4) and made.config.image_size == (16, 24)
    same(exported.state_of(tmp_path / "back")["params"]["encoder"], params["encoder"])
    recipe = simmim.get_config("dataset=shapes")
    with pytest.raises(InputError, match="--config of simmim has an encoder with"):
        import_weights(path, "mae", tmp_path / "other", recipe, options)


def test_a_decoder_with_other_mlps_is_refused_by_name(mae, tmp_path):
    tensors = tensors_of(mae, "mae-full", tmp_path)
    tensors["decoder_blocks.0.mlp.fc1.weight"] = np.zeros((64, 32), np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "b.safetensors")
    refused(tmp_path / "b.safetensors", "mae-full", tmp_path / "back",
            "the MLPs of the decoder are 64 wide", "--drop=decoder,mask_token")  # fmt: skip


def test_what_tensors_do_not_say_has_to_be_said(mae, tmp_path):
    path = export_weights(mae, tmp_path / "a.safetensors", "mae-full")
    run = tmp_path / "run"
    refused(path, "mae-full", run, "width 32", "add --decoder_heads",
            options=Options(Known(image_size=(16, 24))))  # fmt: skip
    refused(path, "mae-full", run, "24 patches make no square", "add --image_size",
            options=Options(Known(decoder_heads=2)))  # fmt: skip
    refused(path, "mae-full", run, "positions for 24 patches", "16x16",
            options=Options(Known(image_size=(16, 16), decoder_heads=2)))  # fmt: skip
    refused(path, "mae-full", run, "width 96 has not 5 heads", "--heads",
            options=Options(KNOWN._replace(heads=5)))  # fmt: skip
    refused(path, "mae-full", run, "decoder_width=32", "decoder_heads=3",
            options=Options(KNOWN._replace(decoder_heads=3)))  # fmt: skip
    (tmp_path / "config.json").write_text('{"layer_norm_eps": 0.001}')
    refused(path, "mae-full", run, "epsilon 0.001", "--layer_norm_eps=1e-06")
    (tmp_path / "config.json").write_text('{"hidden_act": "relu"}')
    refused(path, "mae-full", run, "relu")
    (tmp_path / "config.json").write_text('{"num_attention_heads": "3"}')
    refused(path, "mae-full", run, "num_attention_heads is '3'")
    (tmp_path / "config.json").write_text('{"image_size": [16]}')
    refused(path, "mae-full", run, "image_size is [16]", options=Options(Known(decoder_heads=2)))
    (tmp_path / "config.json").write_text("{")
    refused(path, "mae-full", run, "config.json is not readable JSON")


def test_a_format_that_does_not_fit(mae, ibot, tmp_path):
    run = tmp_path / "run"
    path = export_weights(ibot, tmp_path / "a.safetensors", "ibot-teacher")
    refused(path, "mae", run, "not of --format=mae", "backbone. (54), head. (10)", "ibot-teacher",
            "--strip_prefix=backbone.")  # fmt: skip
    refused(path, "ibot-teacher", run, "--config=ibot")
    refused(path, "hf", run, "has a decoder", "hf-encoder", method="ibot")
    refused(path, "ibot-teacher", run, "lengths of their own", "norm_last_layer=False",
            method="ibot", model__norm_last_layer=True)  # fmt: skip
    path = export_weights(mae, tmp_path / "h", "hf-encoder")
    with pytest.raises(InputError) as refusal:
        read(path, "mae", DECODER)
    assert "it looks like hf or hf-encoder" in str(refusal.value)
    assert "--strip_prefix" not in str(refusal.value)  # what it would take is no whole encoder
    path = export_weights(ibot, tmp_path / "b.safetensors", "mae")
    refused(path, "mae", run, "learned", "--config=ibot", options=DECODER)
    for folder, format_name, words in (
        (ibot, "mae-full", "is a run of ibot, which --format=mae-full does not fit; use mae |"),
        (mae, "ibot", "is a run of mae"),
        (exported.finetuned(tmp_path / "tuned"), "timm", "use mae-finetuned"),
        (tmp_path, "mae", "there is no checkpoint"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            export_weights(folder, tmp_path / "c.safetensors", format_name)
    with pytest.raises(InputError, match="24 patches are no square number"):
        export_weights(mae, tmp_path / "c", "hf")
    assert not list(tmp_path.glob("c*"))


def header(**tensors):
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


HOSTILE = {
    "empty": b"",
    "text": b"<!DOCTYPE html><html>not found</html>",
    "endless header": struct.pack("<Q", 2**60) + b"{}",
    "cut": header(cls_token={"dtype": "F32", "shape": [1, 1, 96], "data_offsets": [0, 384]})
    + bytes(100),
    "more than it holds": header(
        cls_token={"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 4]}
    )
    + bytes(4),
    "deep": struct.pack("<Q", 40000) + b"[" * 40000,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused(what, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(HOSTILE[what])
    refused(path, "mae", tmp_path / "run", "no whole safetensors file")


def test_an_oversized_file_is_refused_before_it_is_read(encoder_file, tmp_path):
    """A sparse file that says that it holds a terabyte."""
    tensors, _ = encoder_file
    described, offset = {}, 0
    shapes = {name: x.shape for name, x in tensors.items()} | {"head.weight": (3 * 10**9, 96)}
    for name, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        described[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    path = tmp_path / "weights.safetensors"
    with path.open("wb") as file:
        file.write(header(**described))
        file.truncate(file.tell() + offset)
    refused(path, "mae", tmp_path / "run", "2.9e+11 numbers", options=DECODER)
    with pytest.raises(InputError, match=re.escape("2.9e+11 numbers")):
        classifier = tiny.evaluation("task=finetune")
        import_weights(path, "mae-finetuned", tmp_path / "run", classifier, Options(KNOWN))
    path.unlink()
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**25)
    path.write_bytes(b"")
    refused(path, "mae", tmp_path / "run", "config.json is too large")


def test_other_files_are_refused(tmp_path):
    run = tmp_path / "run"
    refused(tmp_path / "none.pth", "mae", run, "there is no file")
    refused(tmp_path, "hf", run, "holds none of model.safetensors")
    path = tmp_path / "weights.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused(path, "mae", run, "Git LFS pointer")
    safetensors.numpy.save_file({"cls_token": np.zeros((1, 1, 8), np.int32)}, path)
    refused(path, "mae", run, "not of floats: cls_token")
    safetensors.numpy.save_file({"cls_token": np.zeros((1, 8), np.float32)}, path)
    refused(path, "mae", run, "cls_token has shape (1, 8)")
    path = tmp_path / "weights.pth"
    path.write_bytes(b"\x80\x04junk")
    refused(path, "mae", run, "truncated")


def test_absurd_sizes_are_refused(encoder_file, tmp_path):
    tensors, save = encoder_file
    for name, shape, word in (
        ("patch_embed.proj.weight", (96, 3, 0, 0), "no pixels"),
        ("patch_embed.proj.weight", (96, 3, 4, 2), "with 4x2 px patches have not"),
        ("patch_embed.proj.weight", (96, 1, 4, 4), "(96, 3, any, any) is wanted"),
        ("pos_embed", (1, 0, 96), "add --image_size"),
        ("cls_token", (1, 1, 0), "has shape (96, 3, 4, 4)"),
    ):
        changed = {**tensors, name: np.zeros(shape, np.float32)}
        refused(save(changed), "mae", tmp_path / "run", word, options=DECODER)
    (tmp_path / "config.json").write_text('{"pretrained_cfg": {"mean": ["a", 0, 0]}}')
    refused(save(tensors), "mae", tmp_path / "run", "are no numbers", options=DECODER)
    (tmp_path / "config.json").write_text('{"pretrained_cfg": {"std": [1, 1, 0]}}')
    refused(save(tensors), "mae", tmp_path / "run", "std above 0", options=DECODER)


def test_pytorch_files_need_pytorch(mae, tmp_path, monkeypatch):
    import zipfile

    monkeypatch.setitem(sys.modules, "torch", None)
    with zipfile.ZipFile(tmp_path / "weights.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    refused(
        tmp_path / "weights.pth", "mae", tmp_path / "run", "PyTorch is not installed", "[torch]"
    )
    with pytest.raises(InputError, match="PyTorch is not installed"):
        export_weights(mae, tmp_path / "out.pth", "mae")


def test_nothing_is_overwritten(mae, tmp_path):
    path = export_weights(mae, tmp_path / "a.safetensors", "mae")
    old = path.read_bytes()
    for target, format_name, words in (
        (path, "mae", "exists"),
        (tmp_path, "hf", "exists"),
        (tmp_path / "b.safetensors", "hf", "is a folder"),
        (tmp_path / "b.npz", "mae", ".safetensors or .pth"),
        (path / "b.safetensors", "mae", "no folder"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            export_weights(mae, target, format_name)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    refused(path, "mae", mae, "is not empty", options=DECODER)
    refused(path, "mae", path, "is a file", options=DECODER)


def test_names_of_a_file_say_nothing_to_the_terminal(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({"\x1b[31mred": np.zeros(1, np.float32)}, path)
    refused(path, "mae", tmp_path / "run", r"called '\x1b[31mred'")


# The command.


def weights_command(*arguments):
    return tiny.run([sys.executable, "-m", "dppmask_jax.weights", *map(str, arguments)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "method,format_name",
    [("mae", "mae"), pytest.param("ibot", "ibot-student", marks=pytest.mark.long)],
)
def test_an_imported_run_can_be_evaluated_and_trained_on(method, format_name, tmp_path):
    before = exported.run(tmp_path / "before", method, model__depth=2)
    path, run = tmp_path / "weights.safetensors", tmp_path / "run"
    done = weights_command("export", before, path, f"--format={format_name}")
    assert done.returncode == 0, done.stderr

    train = tiny.command(run, image_size=(16, 24), method=method)
    config = [word for word in train if word.startswith("--config")]
    done = weights_command(
        "import", path, f"--format={format_name}", f"--workdir={run}", "--image_size=16,24",
        *(["--allow_missing=decoder"] if method == "mae" else []), *config,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{method} 96x2x3/4, 16x24 px, step 0" in done.stdout and "go on" in done.stdout

    # As it is printed.
    evaluation = done.stdout.partition("evaluate")[2].split("\n")[0].split()
    assert evaluation[:2] == ["dppmask", "eval"] and evaluation[-1] == f"--checkpoint={run}"
    done = tiny.run([sys.executable, "-m", "dppmask_jax", *evaluation[1:], "--config.k=(5,)"])
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "eval_knn.json").read_text())["checkpoint"]["step"] == 0
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    if method == "mae":  # an iBOT's encoder is its teacher's, which the file has not
        one, two = (dppmask_jax.load_encoder(folder)(images) for folder in (before, run))
        same(one, two)
    # As if a first training had been interrupted before it saved anything.
    (run / "metrics.jsonl").write_text('{"step": 0, "knn": 0.5}\n{"step": 1, "loss": 0.5}\n')
    done = tiny.run(train)
    assert done.returncode == 0, done.stderr
    assert "starting at step 0" in done.stdout and "changed" not in done.stdout
    records = read_metrics(run / "metrics.jsonl")
    assert len([record for record in records if record["step"] == 0]) == 1
    assert len([record for record in records if record["step"] == 1]) == 1


@pytest.mark.slow
def test_the_printed_commands_say_where_images_are_wanted(mae, tmp_path):
    """An import without a config reads no images, and its commands run once they have some."""
    path, run = export_weights(mae, tmp_path / "a.safetensors", "mae"), tmp_path / "run"
    done = weights_command("import", path, "--format=mae", f"--workdir={run}", "--image_size=16,24",
                          "--config.model.decoder_depth=1", "--config.model.decoder_width=32",
                          "--config.model.decoder_heads=2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "fresh       optimiser, decoder" in done.stdout and "tfds:" not in done.stdout
    assert "PATH stands for a folder of your images" in done.stdout
    assert json.loads((run / "config.json").read_text())["data"]["source"] == ""
    for line in re.findall(r"dppmask (.*folder:PATH.*)", done.stdout):
        words = shlex.split(line.replace("folder:PATH", "shapes:size=16,train=40,val=24"))
        assert words[0] in ("eval", "train")
        small = {"train": ["--config.batch_size=8", "--config.epochs=0.2",
                              "--config.optim.warmup_epochs=0",
                              "--config.evaluate.figure_images=0"],
                 "eval": ["--config.k=(5,)"]}[words[0]]  # fmt: skip
        ran = tiny.run([sys.executable, "-m", "dppmask_jax", *words, *small])
        assert ran.returncode == 0, ran.stderr
