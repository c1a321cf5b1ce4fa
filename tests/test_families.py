"""Published encoders by their names, which are written down here by hand, without PyTorch."""

import re
import shlex
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny

from dppmask_jax.errors import InputError
from dppmask_jax.models.relative import relative_index
from dppmask_jax.models.sizes import Size
from dppmask_jax.runs.kinds import encoder_config, method_of
from dppmask_jax.weights import canonical, published
from dppmask_jax.weights.families import FAMILIES
from dppmask_jax.weights.opened import Options
from dppmask_jax.weights.sizes import Known

SIZE, PATCH, IMAGES = Size(8, 2, 2, 12), 4, (8, 12)
KNOWN = Options(Known(image_size=IMAGES, heads=2))


def linear(ours, *theirs):
    return {
        f"{ours}/kernel": [f"{name}.weight" for name in theirs],
        f"{ours}/bias": [f"{name}.bias" for name in theirs],
    }


def norm(ours, theirs):
    return {f"{ours}/scale": [f"{theirs}.weight"], f"{ours}/bias": [f"{theirs}.bias"]}


# Our arrays and the tensors that they are, of block {i}.
MLP = linear("mlp/fc1", "blocks.{i}.mlp.fc1") | linear("mlp/fc2", "blocks.{i}.mlp.fc2")
BLOCK = (
    norm("norm1", "blocks.{i}.norm1") | norm("norm2", "blocks.{i}.norm2")
    | linear("attn/qkv", "blocks.{i}.attn.qkv") | linear("attn/proj", "blocks.{i}.attn.proj")
)  # fmt: skip
SCALES = {"scale1": ["blocks.{i}.ls1.gamma"], "scale2": ["blocks.{i}.ls2.gamma"]}
GAMMAS = {"scale1": ["blocks.{i}.gamma_1"], "scale2": ["blocks.{i}.gamma_2"]}
OUTSIDE = {
    "patch_embed/proj/kernel": ["patch_embed.proj.weight"],
    "patch_embed/proj/bias": ["patch_embed.proj.bias"],
    "positions": ["pos_embed"],
    **norm("norm", "norm"),
}
CLS = {"cls_token": ["cls_token"]}
HF_OUTSIDE = {
    "patch_embed/proj/kernel": ["embeddings.patch_embeddings.projection.weight"],
    "patch_embed/proj/bias": ["embeddings.patch_embeddings.projection.bias"],
    "positions": ["embeddings.position_embeddings"],
    **norm("norm", "layernorm"),
}
HF_CLS = {"cls_token": ["embeddings.cls_token"]}
HF_ATTENTION = linear(
    "attn/qkv",
    "encoder.layer.{i}.attention.attention.query",
    "encoder.layer.{i}.attention.attention.key",
    "encoder.layer.{i}.attention.attention.value",
) | linear("attn/proj", "encoder.layer.{i}.attention.output.dense")
HF_BLOCK = (
    HF_ATTENTION
    | norm("norm1", "encoder.layer.{i}.layernorm_before")
    | norm("norm2", "encoder.layer.{i}.layernorm_after")
    | linear("mlp/fc1", "encoder.layer.{i}.intermediate.dense")
    | linear("mlp/fc2", "encoder.layer.{i}.output.dense")
)
HF_DINOV2 = (
    HF_ATTENTION
    | norm("norm1", "encoder.layer.{i}.norm1") | norm("norm2", "encoder.layer.{i}.norm2")
    | {"scale1": ["encoder.layer.{i}.layer_scale1.lambda1"]}
    | {"scale2": ["encoder.layer.{i}.layer_scale2.lambda1"]}
    | linear("mlp/w12", "encoder.layer.{i}.mlp.weights_in")
    | linear("mlp/w3", "encoder.layer.{i}.mlp.weights_out")
)  # fmt: skip
TIMM_GATED = {
    **linear("mlp/w12", "blocks.{i}.mlp.fc1_g", "blocks.{i}.mlp.fc1_x"),
    **linear("mlp/w3", "blocks.{i}.mlp.fc2"),
}


def inside(before, names):
    return {ours: [before + name for name in theirs] for ours, theirs in names.items()}


def chunked(names):
    return {
        ours: [name.replace("blocks.{i}", "blocks.0.{i}") for name in theirs]
        for ours, theirs in names.items()
    }


SIMMIM_BLOCK = BLOCK | MLP | GAMMAS | {"attn/qkv/kernel": ["blocks.{i}.attn.qkv.weight"]}
SIMMIM_BLOCK |= {"attn/q_bias": ["blocks.{i}.attn.q_bias"]}
SIMMIM_BLOCK |= {"attn/v_bias": ["blocks.{i}.attn.v_bias"]}
del SIMMIM_BLOCK["attn/qkv/bias"]
SIMMIM_OUTSIDE = (
    OUTSIDE | CLS | {"relative_bias/table": ["rel_pos_bias.relative_position_bias_table"]}
)
del SIMMIM_OUTSIDE["positions"]

LEARNED = {"position": "learned"}
DINOV2 = LEARNED | {"layer_scale": 1.0}
GATED = DINOV2 | {"mlp": "swiglu", "registers": 3}
CASES = {
    # format, options, tensors outside of blocks and of a block, what is left aside
    "dino": ("dino", LEARNED, OUTSIDE | CLS, BLOCK | MLP, []),
    "dino, data parallel": (
        "dino", LEARNED, inside("module.backbone.", OUTSIDE | CLS),
        inside("module.backbone.", BLOCK | MLP), ["module.head.mlp.0.weight"],
    ),
    "dinov2": (
        "dinov2", DINOV2, OUTSIDE | CLS, BLOCK | MLP | SCALES, ["mask_token"],
    ),
    "dinov2, giant with registers": (
        "dinov2", GATED, OUTSIDE | CLS | {"registers": ["register_tokens"]},
        BLOCK | SCALES | linear("mlp/w12", "blocks.{i}.mlp.w12")
        | linear("mlp/w3", "blocks.{i}.mlp.w3"), ["mask_token"],
    ),
    "dinov2, training": (
        "dinov2", DINOV2, inside("backbone.", OUTSIDE | CLS),
        inside("backbone.", chunked(BLOCK | MLP | SCALES)),
        ["backbone.mask_token", "dino_head.mlp.0.weight", "ibot_head.mlp.0.bias"],
    ),
    "dinov2 in transformers": (
        "dinov2", GATED, HF_OUTSIDE | HF_CLS | {"registers": ["embeddings.register_tokens"]},
        HF_DINOV2, ["embeddings.mask_token"],
    ),
    "deit3": (
        "deit3", DINOV2 | {"class_position": False}, OUTSIDE | CLS, BLOCK | MLP | GAMMAS,
        ["head.weight", "head.bias"],
    ),
    "moco v3": (
        "moco-v3", LEARNED, inside("module.base_encoder.", OUTSIDE | CLS),
        inside("module.base_encoder.", BLOCK | MLP),
        ["module.base_encoder.head.0.weight", "module.momentum_encoder.cls_token",
         "module.momentum_encoder.patch_embed.proj.weight", "module.predictor.0.weight"],
    ),
    "ijepa": (
        "ijepa", LEARNED | {"class_token": False}, inside("module.", OUTSIDE),
        inside("module.", BLOCK | MLP), [],
    ),
    "ijepa in transformers": (
        "ijepa", LEARNED | {"class_token": False}, HF_OUTSIDE, HF_BLOCK, ["pooler.dense.weight"],
    ),
    "simmim": (
        "simmim",
        {"position": "none", "relative": "shared", "layer_scale": 1.0, "qv_bias": True},
        inside("encoder.", SIMMIM_OUTSIDE), inside("encoder.", SIMMIM_BLOCK),
        ["encoder.mask_token", "decoder.0.weight", "decoder.0.bias"],
    ),
    "vit": ("vit", LEARNED, HF_OUTSIDE | HF_CLS, HF_BLOCK, ["pooler.dense.bias"]),
    "timm": (
        "timm", GATED, OUTSIDE | CLS | {"registers": ["reg_token"]},
        BLOCK | SCALES | TIMM_GATED, ["head.weight"],
    ),
    "mae": ("mae", LEARNED, OUTSIDE | CLS, BLOCK | MLP, ["mask_token", "decoder_pred.weight"]),
    "vitmae": (
        "hf-encoder", LEARNED, inside("vit.", HF_OUTSIDE | HF_CLS), inside("vit.", HF_BLOCK),
        ["decoder.mask_token"],
    ),
}  # fmt: skip


def flat(tree, before=""):
    """{"a/b": array} of nested dicts."""
    if not isinstance(tree, dict):
        return {before: tree}
    names = {f"{before}/{key}".lstrip("/"): value for key, value in tree.items()}
    return {k: v for name, value in names.items() for k, v in flat(value, name).items()}


def written(case):
    """(format, config, {our path: array}, {name in the file: tensor}) of a case."""
    format_name, options, outside, block, aside = CASES[case]
    config = encoder_config(SIZE, IMAGES, PATCH, options)
    shapes, _ = jax.eval_shape(method_of(config).init, jax.random.key(0))
    ours = flat(tiny.filled(shapes["encoder"], seed=5))
    table = dict(outside)
    for i in range(SIZE.depth):
        table |= {
            f"blocks/block_{i}/{path}": [name.format(i=i) for name in names]
            for path, names in block.items()
        }
    assert table.keys() == ours.keys()
    tensors = {}
    for path, names in table.items():
        for name, part in zip(names, np.split(ours[path], len(names), axis=-1), strict=True):
            if path == "patch_embed/proj/kernel":  # rows, columns, channels
                part = np.moveaxis(part.reshape(PATCH, PATCH, 3, -1), (3, 2), (0, 1))
            elif path.endswith("kernel"):
                part = part.T
            tensors[name] = np.ascontiguousarray(part)
    return format_name, config, ours, tensors | {name: np.ones(3, np.float32) for name in aside}


def read(tmp_path, tensors, format_name, options=KNOWN):
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(tensors, path)
    return published.read(path, format_name, options)


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_comes_to_its_place(tmp_path, case):
    format_name, config, ours, tensors = written(case)
    found = read(tmp_path, tensors, format_name)
    assert found.config.model == config.model and found.config.image_size == IMAGES
    got = flat(found.encoder)
    assert got.keys() == ours.keys()
    for path, array in ours.items():
        np.testing.assert_array_equal(got[path], array, err_msg=path)
    counts = re.findall(r"\((\d+)\)", ", ".join(found.left_aside))
    assert sum(map(int, counts)) == len(CASES[case][4])
    assert found.fresh == ()


def test_every_family_has_a_case():
    assert {case[0] for case in CASES.values()} == set(FAMILIES)


def faults(tmp_path, tensors, format_name, *words, options=KNOWN):
    with pytest.raises(InputError) as caught:
        read(tmp_path, tensors, format_name, options)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def without(tensors, *names):
    return {name: x for name, x in tensors.items() if name not in names}


def test_tensors_out_of_place_are_named_as_in_the_file(tmp_path):
    _, _, _, tensors = written("vit")
    query = "encoder.layer.1.attention.attention.query.weight"
    faults(tmp_path, without(tensors, query), "vit", f"missing {query} (8, 8)")
    spoiled = tensors | {
        "embeddings.cls_token": np.full((1, 1, 8), np.nan, np.float32),
        query: np.ones((8, 4), np.float32),
    }
    faults(tmp_path, spoiled, "vit", f"{query} has shape (8, 4), wanted (8, 8)")
    spoiled[query] = tensors[query]
    faults(tmp_path, spoiled, "vit", "embeddings.cls_token is not finite")
    odd = tensors | {"embeddings.odd": np.ones(3, np.float32)}
    faults(tmp_path, odd, "vit", "1 tensor out of place: unmatched embeddings.odd (3,)")


def test_what_no_encoder_has_is_refused_by_name(tmp_path):
    _, _, _, tensors = written("dinov2")
    more = {"rope_embed.periods": np.ones(2, np.float32)}
    faults(tmp_path, tensors | more, "dinov2", "rotary positions (rope_embed.periods)")
    faults(tmp_path, tensors, "timm", "--drop=mask_token leaves")
    # A head is left aside where the family says so.
    faults(tmp_path, tensors | {"attn_pool.q": np.ones(3, np.float32)}, "dinov2", "attn_pool")
    faults(tmp_path, without(tensors, "pos_embed"), "dinov2", "no positions (pos_embed): rotary")
    biases = [name for name in tensors if name.endswith("qkv.bias")]
    faults(tmp_path, without(tensors, *biases), "dinov2", "no biases of queries, keys and values")
    _, _, _, registers = written("dinov2, giant with registers")
    faults(tmp_path, registers, "dino", "register tokens", "looks like --format=dinov2")
    _, _, _, other = written("vit")
    faults(
        tmp_path,
        other,
        "deit3",
        "no patch_embed.proj.weight",
        "looks like --format=dino or ijepa or vit",
    )


def test_networks_of_a_checkpoint(tmp_path):
    """MoCo's other encoder on request, and no mixture of the two."""
    _, _, ours, tensors = written("moco v3")
    other = {name.replace("base_encoder", "momentum_encoder"): 2 * x for name, x in tensors.items()
             if "base_encoder" in name and "head" not in name}  # fmt: skip
    tensors |= other
    first = read(tmp_path, tensors, "moco-v3")
    np.testing.assert_array_equal(first.encoder["positions"], ours["positions"])
    options = KNOWN._replace(strip_prefix="module.momentum_encoder")
    second = read(tmp_path, tensors, "moco-v3", options)
    np.testing.assert_array_equal(second.encoder["positions"], 2 * ours["positions"])
    stray = tensors | {"module.base_encoder_2.cls_token": np.ones((1, 1, 8), np.float32)}
    faults(tmp_path, stray, "moco-v3", "add --strip_prefix=module.base_encoder.")


def test_positions(tmp_path):
    """Of registers are added to them; of another size are resized; a missing norm on request."""
    _, _, ours, tensors = written("timm")
    table = np.arange(1 * 10 * 8, dtype=np.float32).reshape(1, 10, 8)  # 1 + 3 + 6 positions
    found = read(tmp_path, tensors | {"pos_embed": table}, "timm")
    np.testing.assert_array_equal(found.encoder["positions"], table[:, [0, 4, 5, 6, 7, 8, 9]])
    np.testing.assert_array_equal(found.encoder["registers"], ours["registers"] + table[:, 1:4])
    faults(tmp_path, tensors | {"pos_embed": table[:, :9]}, "timm", "9 positions", "8x12 have 6")
    small = without(tensors, "norm.weight", "norm.bias")
    faults(tmp_path, small, "timm", "--allow_missing=norm")
    options = KNOWN._replace(allow_missing=("norm",), resize_positions=(16, 12))
    found = read(tmp_path, small, "timm", options)
    assert found.fresh == ("norm",) and found.config.image_size == (16, 12)
    assert found.encoder["positions"].shape == (1, 13, 8)
    np.testing.assert_array_equal(found.encoder["positions"][:, :1], ours["positions"][:, :1])


def test_relative_positions_are_those_of_here(tmp_path):
    _, _, _, tensors = written("simmim")
    index, name = relative_index((2, 3)), "encoder.rel_pos_bias.relative_position_index"
    assert read(tmp_path, tensors | {name: index}, "simmim").left_aside
    faults(tmp_path, tensors | {name: index[::-1].copy()}, "simmim", "another order")
    # The grid is told by the table where it is square.
    faults(tmp_path, tensors, "simmim", "no square grid", options=Options(Known(heads=2)))


def test_mae_has_fixed_positions_where_the_file_has_none(tmp_path):
    _, _, _, tensors = written("mae")
    found = read(tmp_path, without(tensors, "pos_embed"), "mae")
    assert found.config.model.options.position == "fixed" and "positions" not in found.encoder
    faults(tmp_path, {n: x for n, x in tensors.items() if "blocks" not in n}, "mae", "no blocks")


@pytest.mark.slow
def test_the_command(tmp_path):
    """It imports, prints a command that runs, and answers bad input in one line."""
    _, _, _, tensors = written("dino")
    path, run = tmp_path / "dino.safetensors", tmp_path / "run"
    safetensors.numpy.save_file(tensors | {"head.x": np.ones(3, np.float32)}, path)
    command = [sys.executable, "-m", "dppmask_jax.weights", "import", str(path), "--heads=2"]
    command += ["--image_size=8,12", f"--workdir={run}"]
    done = tiny.run([*command, "--format=dino"])
    assert done.returncode == 0, done.stderr
    assert "DINO, an encoder alone, 8x2x2h12/4, 8x12 px" in done.stdout
    assert "left aside  head. (1)" in done.stdout
    evaluate, train = re.findall(r"dppmask (.*folder:PATH.*)", done.stdout)
    source = "shapes:size=16,train=40,val=24"
    words = shlex.split(evaluate.replace("folder:PATH", source))
    assert (
        tiny.run([sys.executable, "-m", "dppmask_jax", *words, "--config.k=(5,)"]).returncode == 0
    )
    assert "init_from" in train  # a plain ViT with learned positions is an iBOT's
    again = [word for word in command if not word.startswith("--workdir")]
    again.append(f"--workdir={tmp_path / 'other'}")
    tiny.assert_refused({
        "rotary": ([*again, "--format=dinov3"], "rotary positions"),
        "config": ([*again, "--format=dino", "--config.seed=1"], "--config.seed: --format=dino"),
    })  # fmt: skip


def published_shapes(width, depth, hidden, positions, *, patch=14, registers=0, gated=False):
    """Those of a released file, by the names of timm and DINOv2, as far as sizes go."""
    shapes = {
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "cls_token": (1, 1, width),
        "pos_embed": (1, positions, width),
        "blocks.0.attn.qkv.bias": (3 * width,),
        f"blocks.0.mlp.{'w3' if gated else 'fc2'}.weight": (width, hidden),
    }
    shapes |= {f"blocks.{i}.ls1.gamma": (width,) for i in range(depth)}
    return shapes | ({"reg_token": (1, registers, width)} if registers else {})


@pytest.mark.parametrize(
    "format_name,shapes,size,image_size,in_front",
    [
        ("dinov2", published_shapes(384, 12, 1536, 1370), Size(384, 12, 6), 518, 1),
        (
            "dinov2", published_shapes(1536, 40, 4096, 1370, registers=4, gated=True),
            Size(1536, 40, 24, 4096), 518, 1,
        ),
        ("deit3", published_shapes(512, 12, 2048, 196, patch=16), Size(512, 12, 8), 224, 0),
        ("deit3", published_shapes(1280, 32, 5120, 256), Size(1280, 32, 16), 224, 0),
        ("moco-v3", published_shapes(384, 12, 1536, 197, patch=16), Size(384, 12, 12), 224, 1),
        ("dino", published_shapes(768, 12, 3072, 785, patch=8), Size(768, 12, 12), 224, 1),
    ],
)  # fmt: skip
def test_sizes_of_released_files(format_name, shapes, size, image_size, in_front):
    found = canonical.read("file", shapes, FAMILIES[format_name], {}, Known())
    assert (found.size, found.image_size) == (size, (image_size, image_size))
    assert found.in_front == in_front
    assert found.options.get("class_position", True) == bool(in_front)


def test_ijepa_has_no_class_token():
    shapes = published_shapes(1408, 40, 6144, 256)
    del shapes["cls_token"]
    found = canonical.read("file", shapes, FAMILIES["ijepa"], {}, Known())
    assert (found.size, found.in_front) == (Size(1408, 40, 16, 6144), 0)
    assert found.options["class_token"] is False and "class_position" not in found.options
