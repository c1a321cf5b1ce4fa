"""The models against PyTorch's: transformers' ViTMAE and ViT, and iBOT's head and losses.

Needs PyTorch and transformers: `pip install '.[peer]'`, then `pytest -m peer`.
"""

import argparse
import json
import os
import zipfile

import exported
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny

from dppmask_jax import patches
from dppmask_jax.data.images.augment import normalize
from dppmask_jax.errors import InputError
from dppmask_jax.losses import distillation
from dppmask_jax.methods import ibot as ibot_method
from dppmask_jax.methods import mae as mae_method
from dppmask_jax.methods import single_view
from dppmask_jax.models.sizes import SIZES
from dppmask_jax.runs.run import load_run
from dppmask_jax.targets.base import masked_square_error
from dppmask_jax.targets.pixels import pixel_target
from dppmask_jax.weights import files, names
from dppmask_jax.weights.exporting import export_weights
from dppmask_jax.weights.importing import Options, import_weights
from dppmask_jax.weights.sizes import Known

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[peer]'")

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
TOLERANCE = 1e-4


def close(ours, theirs, what=""):
    """Relative to the largest value."""
    ours = np.asarray(ours, np.float64)
    theirs = np.asarray(theirs.detach() if isinstance(theirs, torch.Tensor) else theirs, np.float64)
    assert ours.shape == theirs.shape, what
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert error < TOLERANCE, (what, error)


def channels_first(images):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


# The masked autoencoder.

B16 = {
    "image_size": (224, 224),
    "model.size": "B",
    "model.patch_size": 16,
    "model.decoder_width": 512,
    "model.decoder_depth": 8,
    "model.decoder_heads": 16,
}
# transformers builds no decoder unless the number of patches is a square; 2x8 is one.
TINY = {"image_size": (8, 32)}


@pytest.fixture(scope="module", params=["tiny", "B/16"])
def autoencoder(request, tmp_path_factory, transformers):
    """(config, parameters, the same model in transformers) with random weights."""
    changes = {"tiny": TINY, "B/16": B16}[request.param]
    changes = {name.replace(".", "__"): value for name, value in changes.items()}
    folder = tmp_path_factory.mktemp("autoencoder")
    config = tiny.config("mae", **changes)
    params, extra = exported.weights(config)
    exported.save(folder / "run", config, params, extra)
    path = export_weights(folder / "run", folder / "hf", "hf")
    processor = transformers.AutoImageProcessor.from_pretrained(path, backend="pil")
    size = processor.size  # without torchvision
    assert (size["height"], size["width"]) == tuple(config.image_size)
    model = transformers.ViTMAEForPreTraining.from_pretrained(
        path, attn_implementation="eager"
    ).eval()
    # It refuses images that are not square, although only its check wants them so.
    cut = model.patchify
    model.patchify = lambda images, interpolate_pos_encoding=False: cut(images, True)
    return config, params, model


@pytest.mark.parametrize("norm_pix", [False, True])
def test_mae_is_transformers_vit_mae(autoencoder, norm_pix):
    config, params, theirs = autoencoder
    theirs.config.norm_pix_loss = norm_pix
    rng = np.random.default_rng(1)
    images = rng.normal(size=(2, *config.image_size, 3)).astype(np.float32)
    grid = patches.grid_shape(tuple(config.image_size), config.model.patch_size)
    noise = rng.uniform(size=(2, grid[0] * grid[1])).astype(np.float32)
    order = np.argsort(noise, axis=1).astype(np.int32)
    num_keep = single_view.visible_count(config)
    encoder = mae_method.encoder_from(config)
    model = mae_method.model_from(config, encoder)
    mask = np.argsort(order, axis=1) >= num_keep

    def forward(params):
        apply = {"params": params}
        tokens = model.apply(apply, images, method="embed")
        seen = encoder.blocks(params["encoder"], patches.gather(tokens, order[:, :num_keep]))
        latent = jnp.concatenate([seen.cls[:, None], seen.patches], axis=1)
        pred = model.apply(apply, tokens, order, num_keep, method="predict")
        target = pixel_target(patches.patchify(images, config.model.patch_size), norm_pix)
        return masked_square_error(pred, target, mask), (tokens, latent, pred)

    (loss, (tokens, latent, pred)), grads = jax.jit(jax.value_and_grad(forward, has_aux=True))(
        params
    )
    pixels = channels_first(images)
    embeddings = theirs.vit.embeddings
    out = theirs(pixels, noise=torch.from_numpy(noise))
    encoded = theirs.vit(pixels, noise=torch.from_numpy(noise))
    placed = embeddings.patch_embeddings(pixels) + embeddings.position_embeddings[:, 1:]
    close(tokens, placed, "patch embeddings")
    close(latent, encoded.last_hidden_state, "encoder")
    close(mask, out.mask, "mask")
    close(pred, out.logits, "prediction")
    close(loss, out.loss, "loss")

    theirs.zero_grad()
    out.loss.backward()
    of_theirs = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    of_theirs = {names.FORMATS["hf"].respell([n])[n]: grad for n, grad in of_theirs.items()}
    frozen = {
        part: {**grads[part], "positions": np.zeros((1, 1 + noise.shape[1], width), np.float32)}
        for part, width in (
            ("encoder", grads["encoder"]["cls_token"].shape[-1]),
            ("decoder", config.model.decoder_width),
        )
    }
    of_ours = names.write(jax.device_get(frozen), names.FORMATS["hf"].spell)
    fixed = {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}
    compared = set(of_ours) - fixed
    assert compared == set(of_theirs) - fixed
    largest = max(float(grad.abs().max()) for grad in of_theirs.values())
    for name in sorted(compared):
        # A key's bias moves all of a query's logits alike: its gradient is nothing but rounding.
        if not name.endswith("key.bias"):
            ours, grad = of_ours[name], of_theirs[name].numpy()
            scale = max(np.abs(grad).max(), 1e-3 * largest)
            assert np.abs(ours - grad).max() < TOLERANCE * scale, name


def test_all_three_spellings_of_transformers_are_imported(autoencoder, tmp_path):
    config, params, theirs = autoencoder
    if config.model.size == "B":
        pytest.skip("names do not depend on the size")
    theirs.save_pretrained(tmp_path / "saved")
    (tmp_path / "memory").mkdir()
    in_memory = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    safetensors.numpy.save_file(in_memory, tmp_path / "memory" / "model.safetensors")
    text = (tmp_path / "saved" / "config.json").read_text()
    (tmp_path / "memory" / "config.json").write_text(text)
    saved = safetensors.numpy.load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() != in_memory.keys()
    for folder in ("saved", "memory"):
        run = tmp_path / f"run-{folder}"
        made = import_weights(
            tmp_path / folder, "hf", run, tiny.config("mae", loss__norm_pix=False), Options()
        )
        assert made.config.loss.norm_pix == json.loads(text)["norm_pix_loss"]
        found = exported.state_of(run)["params"]
        jax.tree.map(np.testing.assert_array_equal, found, params)


# Encoders as plain vision transformers.


@pytest.mark.parametrize("method", ["mae", "ibot"])
def test_an_encoder_is_transformers_vit(method, tmp_path, transformers):
    run = exported.run(tmp_path / "run", method)
    path = export_weights(run, tmp_path / "hf", "hf-encoder")
    images = np.random.default_rng(2).integers(0, 256, (3, 16, 24, 3), np.uint8)
    ours = load_run(run).encode(images)
    pixels = channels_first(np.asarray(normalize(jnp.asarray(images))))
    vit = transformers.ViTModel.from_pretrained(path, add_pooling_layer=False).eval()
    with torch.no_grad():
        theirs = vit(pixels).last_hidden_state
        noise = torch.arange(24.0)[None].expand(3, -1)  # which leaves the patches in their order
        alone = transformers.ViTMAEModel.from_pretrained(path).eval()(pixels, noise=noise)
    for found in (theirs, alone.last_hidden_state):
        close(ours["cls"], found[:, 0])
        close(ours["patches"], found[:, 1:])


@pytest.mark.parametrize("new_grid", [(5, 7), (3, 4), (9, 12), (4, 6)])
def test_positions_are_resized_as_by_pytorch(new_grid):
    table = np.random.default_rng(0).normal(size=(1, 25, 8)).astype(np.float32)
    on_grid = torch.from_numpy(table[:, 1:].reshape(1, 4, 6, 8)).permute(0, 3, 1, 2)

    def as_table(resized):
        return np.concatenate([table[:, :1], resized.permute(0, 2, 3, 1).reshape(1, -1, 8)], axis=1)

    interpolate = torch.nn.functional.interpolate
    plain = interpolate(on_grid, size=new_grid, mode="bicubic", align_corners=False)
    close(patches.resize_positions(table, (4, 6), new_grid, 0.0), as_table(plain))
    if new_grid == (4, 6):
        return
    factor = tuple((new + 0.1) / old for new, old in zip(new_grid, (4, 6), strict=True))
    dino = interpolate(on_grid, scale_factor=factor, mode="bicubic", align_corners=False)
    close(patches.resize_positions(table, (4, 6), new_grid), as_table(dino))


# Fine-tuned classifiers.


class Attention(torch.nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = torch.nn.Linear(width, 3 * width)
        self.proj = torch.nn.Linear(width, width)

    def forward(self, x):
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        weights = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(dim=-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2))


class Block(torch.nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        nn = torch.nn
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential()
        self.mlp.fc1 = nn.Linear(width, 4 * width)
        self.mlp.act = nn.GELU()
        self.mlp.fc2 = nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class FineTuned(torch.nn.Module):
    """A classifier by the description of MAE's appendix, with the names of the published files."""

    def __init__(self, size, patch_size, num_patches, num_classes, pool):
        super().__init__()
        nn, width = torch.nn, size.width
        self.pool = pool
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + num_patches, width))
        self.patch_embed = nn.Sequential()
        self.patch_embed.proj = nn.Conv2d(3, width, patch_size, patch_size)
        self.blocks = nn.Sequential(*(Block(width, size.heads) for _ in range(size.depth)))
        setattr(self, {"mean": "fc_norm", "cls": "norm"}[pool], nn.LayerNorm(width, 1e-6))
        self.head = nn.Linear(width, num_classes)

    def forward(self, pixels):
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], dim=1)
        tokens = self.blocks(tokens + self.pos_embed)
        if self.pool == "mean":
            return self.head(self.fc_norm(tokens[:, 1:].mean(dim=1)))
        return self.head(self.norm(tokens)[:, 0])


@pytest.mark.parametrize(
    "size,patch_size,image_size,pool",
    [("Pi", 4, (16, 24), "mean"), ("Pi", 4, (16, 24), "cls"), ("B", 16, (224, 224), "mean")],
)
def test_a_fine_tuned_classifier_is_imported(size, patch_size, image_size, pool, tmp_path):
    """Its logits and its gradients are PyTorch's; both kinds of file make the same run."""
    num_patches = image_size[0] * image_size[1] // patch_size**2
    theirs = FineTuned(SIZES[size], patch_size, num_patches, 11, pool)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in theirs.named_parameters():
            around = 1.0 if name.endswith("weight") and "norm" in name else 0.0
            tensor.copy_(around + 0.05 * torch.randn(tensor.shape))
    saved = theirs.state_dict()
    torch.save({"model": saved}, tmp_path / "tuned.pth")
    safetensors.numpy.save_file(
        {name: tensor.numpy() for name, tensor in saved.items()}, tmp_path / "tuned.safetensors"
    )
    options = Options(Known(image_size=image_size))
    for suffix in ("pth", "safetensors"):
        made = import_weights(
            tmp_path / f"tuned.{suffix}", "mae-finetuned", tmp_path / suffix,
            tiny.evaluation("task=finetune", model__dtype="float32"), options,
        )  # fmt: skip
        assert made.classes == 11 and made.config.model.pool == pool
    runs = [load_run(tmp_path / suffix) for suffix in ("pth", "safetensors")]
    jax.tree.map(np.testing.assert_array_equal, *(run.params for run in runs))

    images = np.random.default_rng(5).integers(0, 256, (3, *image_size, 3), np.uint8)
    labels = np.array([3, 0, 10])
    run = runs[0]

    def loss(params):
        logits = run.method.logits(params, {}, images)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(3), labels]), logits

    (found, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(run.params)
    pixels = channels_first(np.asarray(normalize(jnp.asarray(images))))
    their_logits = theirs(pixels)
    their_loss = torch.nn.functional.cross_entropy(their_logits, torch.from_numpy(labels))
    close(logits, their_logits, "logits")
    close(found, their_loss, "loss")
    their_loss.backward()
    of_ours = names.write(jax.device_get(grads), names.FORMATS["mae-finetuned"].spell)
    of_theirs = {name: tensor.grad for name, tensor in theirs.named_parameters()}
    assert of_ours.keys() == of_theirs.keys() == saved.keys()
    largest = max(float(grad.abs().max()) for grad in of_theirs.values())
    for name, grad in of_theirs.items():
        # Small gradients are held to the largest: next to it they are nothing but rounding.
        scale = max(float(grad.abs().max()), 1e-3 * largest)
        assert np.abs(of_ours[name] - grad.numpy()).max() < TOLERANCE * scale, name


# iBOT.


class Head(torch.nn.Module):
    """The projection head by its description, with the names of the published files."""

    def __init__(self, width, hidden, bottleneck, prototypes):
        super().__init__()
        nn = torch.nn
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )  # fmt: skip
        for name in ("last_layer", "last_layer2"):
            layer = nn.utils.weight_norm(nn.Linear(bottleneck, prototypes, bias=False))
            setattr(self, name, layer)

    def forward(self, tokens):
        x = torch.nn.functional.normalize(self.mlp(tokens), dim=-1)
        return self.last_layer(x), self.last_layer2(x)


@pytest.mark.parametrize("shared", [True, False])
def test_ibot_head_and_losses_are_pytorchs(shared, tmp_path):
    run = exported.run(tmp_path / "run", "ibot", model__shared_head=shared)
    path = export_weights(run, tmp_path / "ibot.pth", "ibot")
    saved = torch.load(path, weights_only=True)
    state, config = exported.state_of(run), tiny.config("ibot", model__shared_head=shared)
    _, head = ibot_method.model_from(config)
    rng = np.random.default_rng(4)
    views, images, num, width = 4, 3, 24, 96
    tokens = {
        "teacher": rng.normal(size=(2, images, 1 + num, width)).astype(np.float32),
        "student": rng.normal(size=(views, images, 1 + num, width)).astype(np.float32),
    }
    mask = rng.uniform(size=(2, images, num)) < 0.6
    mask[1, 2] = False
    temp, student_temp = 0.05, 0.1

    theirs, ours = {}, {}
    for network, prefix in (("teacher", "head."), ("student", "module.head.")):
        module = Head(width, 32, 16, 24)
        kept = {k.removeprefix(prefix): v for k, v in saved[network].items() if prefix in k}
        module.load_state_dict(kept)  # strict: all names, all shapes
        theirs[network] = module(torch.from_numpy(tokens[network]))
        params = (state["params"] if network == "student" else state["extra"]["teacher"])["head"]
        ours[network] = head.apply({"params": params}, tokens[network])
        for our_logits, their_logits in zip(ours[network], theirs[network], strict=True):
            close(our_logits, their_logits, network)

    def probabilities(logits, center):
        return torch.softmax((logits - center) / temp, dim=-1)

    # Class tokens: each teacher's view against every other view of the student.
    target = probabilities(theirs["teacher"][0][:, :, 0], saved["ibot_loss"]["center"])
    log_student = torch.log_softmax(theirs["student"][0][:, :, 0] / student_temp, dim=-1)
    terms = [
        -(target[q] * log_student[v]).sum(-1).mean()
        for q in range(2)
        for v in range(views)
        if q != v
    ]
    our_target = distillation.teacher_probabilities(
        ours["teacher"][0][:, :, 0], state["extra"]["class_center"], temp
    )
    close(
        distillation.class_token_loss(our_target, ours["student"][0][:, :, 0], student_temp),
        sum(terms) / len(terms),
        "class loss",
    )
    # Patch tokens: the same view, the mean over the masked patches of each image.
    target = probabilities(theirs["teacher"][1][:, :, 1:], saved["ibot_loss"]["center2"])
    log_student = torch.log_softmax(theirs["student"][1][:2, :, 1:] / student_temp, dim=-1)
    weights = torch.from_numpy(mask).float()
    of_images = (-(target * log_student).sum(-1) * weights).sum(-1) / weights.sum(-1).clamp(min=1)
    our_target = distillation.teacher_probabilities(
        ours["teacher"][1][:, :, 1:], state["extra"]["patch_center"], temp
    )
    found = distillation.patch_token_loss(
        our_target.reshape(6, num, -1),
        ours["student"][1][:2, :, 1:].reshape(6, num, -1),
        jnp.asarray(mask.reshape(6, num)),
        student_temp,
    )
    close(found, of_images.mean(), "patch loss")


# PyTorch's files.


@pytest.mark.parametrize("format_name", ["mae-full", "ibot", "ibot-teacher", "ibot-student"])
def test_a_pytorch_file_is_a_safetensors_file_with_a_container(format_name, tmp_path):
    run = exported.run(tmp_path / "run", "mae" if format_name == "mae-full" else "ibot")
    containers = names.FORMATS[format_name].containers
    found = {}
    for suffix in (".pth", ".safetensors"):
        path = export_weights(run, tmp_path / f"weights{suffix}", format_name)
        with files.opened(path, containers) as (entries, rest):
            assert not rest
            found[suffix] = {name: entry.load() for name, entry in entries.items()}
    assert found[".pth"].keys() == found[".safetensors"].keys()
    jax.tree.map(np.testing.assert_array_equal, *found.values())


def test_a_pytorch_file_with_an_optimizer_is_imported(tmp_path):
    run = exported.run(tmp_path / "run")
    path = export_weights(run, tmp_path / "weights.pth", "mae-full")
    saved = torch.load(path, weights_only=True)
    beside = {  # as trainings leave it: arguments and numbers of NumPy
        "epoch": 3, "optimizer": {"state": {0: torch.zeros(2)}}, "best": np.float32(0.5),
        "args": argparse.Namespace(lr=1e-3, betas=(0.9, 0.95), seed=np.int64(3)),
    }  # fmt: skip
    torch.save({**saved, **beside}, path)
    made = import_weights(
        path, "mae-full", tmp_path / "back", tiny.config("mae"),
        Options(Known(image_size=(16, 24), decoder_heads=2)),
    )  # fmt: skip
    assert made.left_aside == tuple(beside)
    before, after = exported.state_of(run), exported.state_of(tmp_path / "back")
    jax.tree.map(np.testing.assert_array_equal, after["params"], before["params"])


def test_a_model_is_found_in_dicts_in_dicts(tmp_path):
    tensors = {"module.cls_token": torch.zeros(1, 1, 8), "module.norm.bias": torch.ones(8)}
    path = tmp_path / "weights.pth"
    torch.save({"saved": {"model_state": tensors}, "optimizer": {"m": torch.zeros(2)}}, path)
    for prefix in ("", "saved.model_state"):
        with files.opened(path, ("model",), prefix) as (entries, beside):
            start = f"{prefix}." if prefix else ""
            assert list(entries) == [start + name for name in tensors] and beside == ["optimizer"]
    torch.save({"a": {"x": torch.zeros(1)}, "b": {"x": torch.ones(1)}}, path)
    with files.opened(path, ("model",), "b") as (entries, beside):
        assert entries["b.x"].load() == [1.0] and beside == ["a"]


class Runs:
    """Unpickling one makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_no_pickle_is_executed(tmp_path):
    tensors = {"cls_token": torch.zeros(1, 1, 8)}
    ran = tmp_path / "ran"
    hostile = {
        "runs": {"model": tensors, "more": Runs(ran)},
        "path": {"model": tensors, "args": argparse.Namespace(out=ran)},
        "endless": {"model": {"cls_token": torch.zeros(1).expand(10**6, 10**6)}},
        "numbers": {"model": {**tensors, "norm": 3}},
        "other": {"one": tensors, "two": tensors},
        "round": {"model": {}, "x": {"y": tensors}},
        "list": [tensors],
    }
    words = {
        "runs": "mkdir", "path": "PosixPath", "endless": "more values than the file",
        "numbers": "not tensors: norm", "other": "it has one, two; add --strip_prefix=one",
        "round": "more than 8 deep", "list": "holds a list",
    }  # fmt: skip
    hostile["round"]["model"] = hostile["round"]
    for name, content in hostile.items():
        path = tmp_path / f"{name}.pth"
        torch.save(content, path)
        with pytest.raises(InputError, match=words[name]) as caught, files.opened(path, ("model",)):
            pass
        assert "\n" not in str(caught.value)
    assert not ran.exists()

    torch.save({"model": tensors}, tmp_path / "good.pth")
    good = (tmp_path / "good.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(good[: len(good) // 2])
    with zipfile.ZipFile(tmp_path / "good.pth") as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    torch.save({"model": tensors}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name, word in (("cut", "truncated"), ("packed", "compressed"), ("old", "newer PyTorch")):
        with (
            pytest.raises(InputError, match=word),
            files.opened(tmp_path / f"{name}.pth", ("model",)),
        ):
            pass
    with files.opened(tmp_path / "good.pth", ("model",)) as (entries, _):
        assert list(entries) == ["cls_token"]
