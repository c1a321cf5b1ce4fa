"""Published encoders against timm's and transformers' own, of small sizes and with random values in
every tensor.

Needs PyTorch, timm and transformers: `pip install '.[peer]'`, then `pytest -m peer`.
"""

import re

import numpy as np
import pytest
import safetensors.numpy

from dppmask_jax.data.images.augment import normalize
from dppmask_jax.models.relative import relative_index
from dppmask_jax.runs.run import load_run
from dppmask_jax.weights import published
from dppmask_jax.weights.importing import Options, import_weights
from dppmask_jax.weights.sizes import Known

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[peer]'")

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
TOLERANCE = 1e-4
HEADS = 4


def filled(model, seed=0):
    """The model with random values in every tensor: layer norms and layer scales lie around 1, and
    nothing is 0 or 1 that could hide what was left out."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            drawn = torch.randn(tensor.shape, generator=generator)
            scales = ("norm" in name and name.endswith("weight")) or "gamma" in name
            scales = scales or "lambda" in name
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 16
            spread = 0.3 if scales or tensor.ndim != 2 else fan_in**-0.5
            tensor.copy_(1.0 + 0.3 * drawn if scales else spread * drawn)
    return model.eval()


def close(ours, theirs, what):
    """Relative to the largest value."""
    ours, theirs = np.asarray(ours, np.float64), theirs.detach().double().numpy()
    assert ours.shape == theirs.shape, what
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert error < TOLERANCE, (what, error)


def images_of(size):
    """The same images for us and for PyTorch."""
    images = np.random.default_rng(1).integers(0, 256, (2, *size, 3)).astype(np.uint8)
    return images, torch.from_numpy(np.array(normalize(images)).transpose(0, 3, 1, 2).copy())


def compared(
    tmp_path, model, format_name, image_size, tokens, *,
    file=None, prefix=1, pth=False, folder=None,
):  # fmt: skip
    """Imports a model and compares its tokens with `tokens(images)`: (B, P + N, D), patches last.

    Args:
      image_size: that is told; None where the folder says it.
      file: the tensors -> what stands in the file; None: they, by the model's own names.
      folder: where the model is saved already.
    """
    path = folder or tmp_path / ("weights.pth" if pth else "weights.safetensors")
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    state = file(state) if file else state
    if pth:
        torch.save(state, path)
    elif not folder:
        safetensors.numpy.save_file({name: x.numpy() for name, x in state.items()}, path)
    options = Options(Known(image_size, HEADS if image_size else None))
    imported = import_weights(path, format_name, tmp_path / "run", None, options)
    run = load_run(tmp_path / "run")
    images, channels_first = images_of(tuple(run.config.image_size))
    with torch.no_grad():
        wanted = tokens(channels_first)
    got = run.encode(images)
    close(got["patches"], wanted[:, prefix:], "patches")
    close(got["cls"], wanted[:, 0] if prefix else wanted.mean(1), "class token or mean of patches")
    return imported


def vit(timm, name, image_size, patch_size, **changes):
    """A small model of timm's with everything that sets `name` apart."""
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": HEADS, "num_classes": 0} | changes
    return filled(timm.create_model(name, img_size=image_size, patch_size=patch_size, **sizes))


TIMM = {
    "dino": ("vit_small_patch16_224.dino", (24, 40), 8, {}, "dino"),
    "plain": ("vit_tiny_patch16_224", (16, 48), (8, 16), {"mlp_ratio": 3.0}, "timm"),
    "dinov2": ("vit_small_patch14_dinov2", (28, 42), 14, {}, "dinov2"),
    "registers": ("vit_small_patch14_reg4_dinov2", (42, 28), 7, {}, "dinov2"),
    "giant": ("vit_giant_patch14_reg4_dinov2", (28, 28), 14, {"mlp_ratio": 4.0}, "dinov2"),
    "deit3": ("deit3_small_patch16_224", (16, 24), 4, {"num_classes": 5}, "deit3"),
    "positions of registers": (
        "vit_small_patch14_reg4_dinov2", (28, 42), 14, {"no_embed_class": False}, "timm",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TIMM)
def test_timm(timm, tmp_path, case):
    name, image_size, patch_size, changes, family = TIMM[case]
    model = vit(timm, name, image_size, patch_size, **changes)
    prefix = model.num_prefix_tokens
    compared(tmp_path, model, family, image_size, model.forward_features, prefix=prefix)


def test_timm_gate_apart(timm, tmp_path):
    from timm.layers import SwiGLU

    model = vit(timm, "vit_tiny_patch16_224", (16, 24), 8, mlp_layer=SwiGLU, act_layer="silu")
    compared(tmp_path, model, "timm", (16, 24), model.forward_features)


# The authors' files: timm's models with the names of the authors' code.


def renamed(state, *pairs, before="", beside=()):
    for old, new in pairs:
        state = {re.sub(old, new, name): tensor for name, tensor in state.items()}
    return {f"{before}{name}": x for name, x in state.items()} | {
        name: torch.ones(2, 3) for name in beside
    }


def dino_checkpoint(state):
    teacher = renamed(state, before="backbone.", beside=["head.mlp.0.weight"])
    student = {f"module.{name}": 2 * tensor for name, tensor in teacher.items()}
    return {"student": student, "teacher": teacher, "epoch": 3, "optimizer": {"state": {}}}


def dinov2_training(state):
    named = renamed(
        state, (r"reg_token", "register_tokens"), (r"mlp\.fc1", "mlp.w12"),
        (r"mlp\.fc2", "mlp.w3"), (r"^blocks\.(\d)\.", r"blocks.\1.\1."), before="backbone.",
        beside=["backbone.mask_token", "dino_head.mlp.0.weight"],
    )  # fmt: skip
    return {"teacher": named}


def moco_v3_checkpoint(state):
    base = renamed(
        state, before="module.base_encoder.", beside=["module.base_encoder.head.0.weight"]
    )
    other = renamed(state, before="module.momentum_encoder.", beside=["module.predictor.0.weight"])
    return {"epoch": 1, "arch": "vit_small", "state_dict": base | other}


def ijepa_checkpoint(state):
    target = renamed(state, before="module.")
    context = {name: 2 * tensor for name, tensor in target.items()}
    return {"encoder": context, "predictor": {"module.x": torch.ones(2)}, "target_encoder": target}


def deit3_file(state):
    return {"model": renamed(state, (r"\.ls(\d)\.gamma", r".gamma_\1"), beside=["head.weight"])}


AUTHORS = {
    "dino": ("vit_small_patch16_224.dino", {}, dino_checkpoint, "dino"),
    "dinov2": ("vit_giant_patch14_reg4_dinov2", {"mlp_ratio": 4.0}, dinov2_training, "dinov2"),
    "deit3": ("deit3_small_patch16_224", {}, deit3_file, "deit3"),
    "moco v3": ("vit_tiny_patch16_224", {}, moco_v3_checkpoint, "moco-v3"),
    "ijepa": (
        "vit_tiny_patch16_224", {"class_token": False, "global_pool": "", "mlp_ratio": 48 / 11},
        ijepa_checkpoint, "ijepa",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", AUTHORS)
def test_authors(timm, tmp_path, case):
    name, changes, file, family = AUTHORS[case]
    model = vit(timm, name, (16, 24), 8, **changes)
    prefix = model.num_prefix_tokens
    compared(tmp_path, model, family, (16, 24), model.forward_features, file=file, prefix=prefix,
             pth=True)  # fmt: skip


@pytest.mark.parametrize("shared", [True, False], ids=["pretrained", "finetuned"])
def test_simmim(timm, tmp_path, shared):
    from timm.models.beit import Beit

    model = filled(
        Beit(
            (16, 24), 8, embed_dim=32, depth=2, num_heads=HEADS, num_classes=0, init_values=0.1,
            use_abs_pos_emb=False, use_rel_pos_bias=not shared, use_shared_rel_pos_bias=shared,
            global_pool="token",
        )
    )  # fmt: skip

    def file(state):
        index = relative_index((2, 3)).astype(np.int64)
        indices = ["rel_pos_bias"] if shared else [f"blocks.{i}.attn" for i in range(2)]
        state |= {f"{i}.relative_position_index": torch.from_numpy(index) for i in indices}
        return {"model": renamed(state, before="encoder.", beside=["decoder.0.weight"])}

    compared(tmp_path, model, "simmim", (16, 24), model.forward_features, file=file, pth=True)


# transformers.


def config_of(cls, **changes):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": HEADS}
    return cls(**sizes | {"image_size": (16, 40), "patch_size": 8} | changes)


TRANSFORMERS = {
    "ViT": ("vit", 1, {"intermediate_size": 48}),
    "Dinov2": ("dinov2", 1, {"image_size": 24}),  # its positions are those of a square
    "Dinov2WithRegisters": (
        "dinov2", 4, {"image_size": 24, "use_swiglu_ffn": True, "num_register_tokens": 3},
    ),
    "IJepa": ("ijepa", 0, {"intermediate_size": 80}),
}  # fmt: skip


@pytest.mark.parametrize("saved", [True, False], ids=["saved", "in memory"])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(transformers, tmp_path, name, saved):
    """As `save_pretrained` writes them, by the names of transformers 4, and as they are."""
    family, prefix, changes = TRANSFORMERS[name]
    config = config_of(getattr(transformers, f"{name}Config"), **changes)
    model = filled(getattr(transformers, f"{name}Model")(config))

    def tokens(images):
        return model(pixel_values=images).last_hidden_state

    if saved:
        model.save_pretrained(tmp_path / "saved")
    image_size = None if saved else (changes.get("image_size", 0),) * 2
    image_size = (16, 40) if image_size == (0, 0) else image_size
    folder = tmp_path / "saved" if saved else None
    compared(tmp_path, model, family, image_size, tokens, prefix=prefix, folder=folder)


def test_transformers_at_another_size(transformers, tmp_path):
    """Positions are interpolated as `Dinov2Model` does it."""
    model = filled(transformers.Dinov2Model(config_of(transformers.Dinov2Config, image_size=24)))
    model.save_pretrained(tmp_path / "saved")
    import_weights(tmp_path / "saved", "dinov2", tmp_path / "run", None, Options())
    run = load_run(tmp_path / "run", image_size=(16, 40))
    images, channels_first = images_of((16, 40))
    with torch.no_grad():
        wanted = model(pixel_values=channels_first).last_hidden_state
    close(run.encode(images)["patches"], wanted[:, 1:], "patches")


@pytest.mark.parametrize(
    "file,format_name,prefix",
    [(dino_checkpoint, "dino", "student"), (ijepa_checkpoint, "ijepa", "encoder")],
)
def test_the_other_network_of_a_checkpoint(timm, tmp_path, file, format_name, prefix):
    class_token = {} if format_name == "dino" else {"class_token": False, "global_pool": ""}
    model = vit(timm, "vit_tiny_patch16_224", (16, 24), 8, **class_token)
    torch.save(file(dict(model.state_dict())), tmp_path / "weights.pth")
    for asked, factor in (("", 1), (prefix, 2)):
        options = Options(Known((16, 24), HEADS), strip_prefix=asked)
        found = published.read(tmp_path / "weights.pth", format_name, options)
        close(found.encoder["positions"], factor * model.pos_embed, asked)
