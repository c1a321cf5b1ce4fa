"""Encoders that are no run of ours: what published ViTs have beside MAE's and iBOT's, and the run
that holds one."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import dppmask_jax
from dppmask_jax import config_table, evaluate, patches, pretrain
from dppmask_jax.errors import InputError
from dppmask_jax.figures import __main__ as figures
from dppmask_jax.models.layers import GatedMlp
from dppmask_jax.models.sizes import Size
from dppmask_jax.models.vit import OPTIONS, encoder
from dppmask_jax.models.vit_module import ViT
from dppmask_jax.results.page import page as page_of
from dppmask_jax.results.records import load as load_record
from dppmask_jax.runs import checkpoint, workdir
from dppmask_jax.runs.kinds import ENCODER, encoder_config, encoder_options, method_of
from dppmask_jax.runs.run import load_run
from dppmask_jax.weights.exporting import export_weights

SIZE = Size(16, 2, 2, 24)
FAMILIES = {
    "DINOv2": {"registers": 2, "layer_scale": 1.0, "mlp": "swiglu"},
    "DeiT III": {"layer_scale": 1e-4, "class_position": False},
    "I-JEPA": {"class_token": False},
    "plain": {},
}
PREFIX = {"DINOv2": 3, "DeiT III": 1, "I-JEPA": 0, "plain": 1}
CLASS_ROWS = {"DINOv2": 1, "DeiT III": 0, "I-JEPA": 0, "plain": 1}
each_family = pytest.mark.parametrize("family", FAMILIES)


def save(folder, family, **changes):
    """The workdir of an encoder, as an import makes it."""
    options = {**FAMILIES[family], **changes}
    config = encoder_config(SIZE, (16, 24), 4, options, label=family)
    params, extra = tiny.filled(jax.eval_shape(method_of(config).init, jax.random.key(0)), seed=1)
    checkpoints = checkpoint.Checkpoints(Path(folder) / checkpoint.FOLDER)
    meta = {"config": workdir.to_json(config)}
    checkpoints.save(0, {"params": params, "extra": extra}, meta)
    checkpoints.close()
    workdir.write_config(config, Path(folder))
    return Path(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{family: workdir}."""
    folder = tmp_path_factory.mktemp("encoders")
    return {family: save(folder / family.replace(" ", "_"), family) for family in FAMILIES}


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)


def test_the_gated_mlp_is_swiglu_with_the_gate_first():
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    mlp = GatedMlp(5)
    params = tiny.filled(jax.eval_shape(mlp.init, jax.random.key(0), x), seed=2)["params"]
    assert params["w12"]["kernel"].shape == (8, 10) and params["w3"]["kernel"].shape == (5, 8)
    wide = {name: {k: np.float64(v) for k, v in layer.items()} for name, layer in params.items()}
    both = x @ wide["w12"]["kernel"] + wide["w12"]["bias"]
    gate, passed = both[:, :5], both[:, 5:]
    hidden = gate / (1 + np.exp(-gate)) * passed
    wanted = hidden @ wide["w3"]["kernel"] + wide["w3"]["bias"]
    np.testing.assert_allclose(mlp.apply({"params": params}, x), wanted, rtol=1e-5)


@pytest.mark.parametrize("family", ["DINOv2", "DeiT III", "I-JEPA"])
def test_all_ways_through_an_encoder_agree(family):
    vit = encoder(ViT(SIZE._replace(depth=1), (8, 12), 4, **FAMILIES[family]))
    params = tiny.filled(jax.eval_shape(vit.init, jax.random.key(0)), seed=1)
    x = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
    hiding = {"mask": np.ones((2, 6), bool), "mask_token": jnp.zeros((1, 16))}

    @jax.jit
    def run(params, x):
        embedded = vit.embed(params, x)
        attended = vit.attended(params, x) if vit.attended else None
        hidden = vit.encode(params, x, **hiding)
        return embedded, vit.blocks(params, embedded), vit.trace(params, x), attended, hidden

    embedded, of_blocks, trace, attended, hidden = run(params, x)
    tokens = trace.tokens
    prefix, rows = PREFIX[family], CLASS_ROWS[family]
    assert trace.embedding.shape == (2, prefix + 6, 16) == trace.blocks[0].after_mlp.shape
    assert trace.blocks[0].attention.shape == (2, 2, prefix + 6, prefix + 6)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, of_blocks, tokens)
    close(trace.blocks[-1].after_mlp, tokens.prenorm)
    close(trace.embedding[:, prefix:], embedded)

    # What enters the blocks, by hand.
    flat = np.asarray(patches.patchify(x, 4))
    proj = params["patch_embed"]["proj"]
    table = params["positions"]
    assert table.shape == (1, rows + 6, 16)
    close(embedded, flat @ proj["kernel"] + proj["bias"] + table[:, rows:])
    if prefix:
        first = params["cls_token"][0, 0] + (table[0, 0] if rows else 0)
        close(trace.embedding[:, 0], np.stack([first, first]))
        close(attended[1], trace.blocks[-1].attention[:, :, 0, prefix:])
        close(tokens.cls, normed(tokens.prenorm[:, 0], params["norm"]))
    else:
        assert vit.attended is None and "cls_token" not in params
        close(tokens.cls, np.mean(tokens.patches, axis=1))
    close(trace.embedding[:, 1:prefix], np.stack([params["registers"][0]] * 2) if rows and
          prefix > 1 else np.zeros((2, 0, 16)))  # fmt: skip
    # Without pixels, positions alone tell patches apart.
    assert not np.allclose(hidden.patches, tokens.patches)
    close(hidden.patches[0], hidden.patches[1])


def normed(x, norm):
    x = np.float64(x)
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
    return x * norm["scale"] + norm["bias"]


@each_family
def test_every_parameter_has_its_layer(family):
    vit = encoder(ViT(SIZE, (8, 12), 4, **FAMILIES[family]))
    params = jax.eval_shape(vit.init, jax.random.key(0))
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    names = [tuple(key.key for key in path) for path, _ in flat]
    layers = {name: vit.layer_of(name) for name in names}
    assert {layers[name] for name in names if name[0] == "blocks"} == {1, 2}
    first = {"patch_embed", "cls_token", "positions", "registers"}
    assert all(layers[name] == 0 for name in names if name[0] in first)
    assert layers["norm", "scale"] == 3


def test_a_fixed_table_whose_first_half_is_the_row():
    """The tokens, the parameters that a training and another image size have, and an encoder that
    is made again from its options."""
    fixed = encoder(ViT(SIZE, (8, 12), 4, "fixed", first_axis="row"))
    params = tiny.filled(jax.eval_shape(fixed.init, jax.random.key(0)), seed=1)
    x = np.random.default_rng(0).normal(size=(1, 8, 12, 3)).astype(np.float32)
    without = encoder(ViT(SIZE, (8, 12), 4, "none")).embed(params, x)
    of_columns = patches.sincos_positions((2, 3), 16)
    table = np.concatenate([of_columns[:, 8:], of_columns[:, :8]], axis=1)
    again = encoder(ViT(SIZE, (8, 12), 4, **fixed.options))
    trainable = fixed.trainable(params)
    np.testing.assert_array_equal(trainable["positions"][0, 1:], table)
    for one, given in ((fixed, params), (again, params), (fixed, trainable)):
        np.testing.assert_allclose(one.embed(given, x), without + table, atol=1e-6)


@pytest.mark.parametrize("options", [{"class_token": False}, {"class_position": False}])
def test_a_fixed_table_without_a_row_for_the_class_token(options):
    """As parameters, as a training and another image size have it, it is the same table."""
    fixed = encoder(ViT(SIZE, (8, 12), 4, "fixed", **options))
    params = tiny.filled(jax.eval_shape(fixed.init, jax.random.key(0)), seed=1)
    trainable = fixed.trainable(params)
    assert "positions" not in params and trainable["positions"].shape == (1, 6, 16)
    x = np.random.default_rng(0).normal(size=(1, 8, 12, 3)).astype(np.float32)
    wanted = fixed.embed(params, x)
    for found in (fixed.embed(trainable, x), fixed.tuned().embed(trainable, x)):
        np.testing.assert_array_equal(found, wanted)
    assert jax.tree.map(jnp.shape, fixed.tuned().trainable(trainable)) == jax.tree.map(
        jnp.shape, jax.eval_shape(fixed.tuned().init, jax.random.key(0))
    )


@pytest.mark.parametrize(
    "options,words",
    [
        ({"rope": True}, "no option 'rope'"),
        ({"mlp": "relu"}, "mlp='relu' is not allowed: 'gelu' | 'swiglu'"),
        ({"position": "rotary"}, "position='rotary'"),
        ({"first_axis": "x"}, "first_axis='x' is not allowed: 'column' | 'row'"),
        ({"class_token": False, "registers": 4}, "without class token has no registers"),
        ({"relative": "each", "registers": 4}, "with registers has no relative"),
        ({"heads": 3}, "width 16 with 3 heads"),
        ({"patches": 5}, "patch_size: "),
    ],
)
def test_what_no_encoder_is_is_refused(options, words):
    options = dict(options)
    size = SIZE._replace(heads=options.pop("heads", 2))
    with pytest.raises(InputError, match=words.replace("|", r"\|")) as caught:
        encoder_config(size, (16, 24), options.pop("patches", 4), options)
    assert "\n" not in str(caught.value)


def test_a_built_encoder_says_every_option():
    options = method_of(tiny.config("mae")).encoder.options
    assert tuple(options) == OPTIONS and options["position"] == "fixed" and options["class_token"]


@each_family
def test_a_run_of_it_loads_encodes_and_is_resized(runs, images, family):
    run = load_run(runs[family])
    assert run.kind == ENCODER and run.label == family and run.step == 0
    assert run.has_class_token == bool(PREFIX[family]) == run.has_attention
    assert not run.has_masks and not run.can_reconstruct and run.method.turns == ()
    options = encoder_options(run.config)
    assert options.items() >= FAMILIES[family].items()
    if family == "I-JEPA":
        found = dppmask_jax.load_encoder(runs[family])(images)
        assert found["patches"].shape == (2, 24, 16)
        np.testing.assert_allclose(found["cls"], found["patches"].mean(axis=1), atol=1e-6)
    rows, table = CLASS_ROWS[family], run.encoder["positions"]
    assert table.shape == (1, rows + 24, 16)

    larger = load_run(runs[family], image_size=(24, 20))
    assert "learned positions resized" in larger.resized
    resized = larger.encoder["positions"]
    assert resized.shape == (1, rows + 30, 16)
    np.testing.assert_array_equal(resized[:, :rows], table[:, :rows])
    # As that of patches alone.
    with_class = np.concatenate([np.zeros((1, 1, 16), np.float32), table[:, rows:]], axis=1)
    wanted = patches.resize_positions(jnp.asarray(with_class), (4, 6), (6, 5), 0.0)
    np.testing.assert_allclose(resized[:, rows:], wanted[:, 1:], atol=1e-6)


def test_relative_positions_of_an_encoder_stay_at_their_size(tmp_path):
    options = {"relative": "shared", "qv_bias": True, "position": "none", "layer_scale": 0.1}
    folder = save(tmp_path / "simmim", "plain", **options)
    assert not load_run(folder).resized
    with pytest.raises(InputError, match="relative positions, which are not resized"):
        load_run(folder, image_size=(24, 24))


def test_evaluations_take_it(runs, tmp_path, capsys):
    source = tiny.COMMON["data.source"]
    with pytest.raises(InputError, match=r"config\.data\.source is empty, and the checkpoint"):
        evaluate.evaluate(tiny.evaluation("task=knn", data__source=""), runs["I-JEPA"])
    config = tiny.evaluation("task=knn", data__source=source, k=(3,))
    path = evaluate.evaluate(config, runs["I-JEPA"], tmp_path, "python eval.py")
    assert "knn: " in (out := capsys.readouterr().out) and "(I-JEPA 16x2x2h24/4, step 0)" in out
    record = json.loads(path.read_text())
    assert "no class token, its mean patch token stands for one (cls)" in record["protocol"]
    assert record["metrics"]["cls"] == record["metrics"]["patches"]
    assert "I-JEPA 16x2x2h24/4, 16×24" in (page := page_of([load_record(path)]))
    assert "imported encoder" in page
    fields = config_table.fields_of(load_run(runs["I-JEPA"]).config)
    assert fields["method"].default == ENCODER and fields["image_size"].fixed


def test_figures_show_what_its_class_token_attends_to(runs, images, tmp_path):
    from PIL import Image

    Image.fromarray(images[0]).save(tmp_path / "one.png")
    arguments = ["--images", str(tmp_path / "one.png"), "--out", str(tmp_path / "figures")]
    figures.main([f"--workdir={runs['DINOv2']}", *arguments])
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["attention.png"]
    with pytest.raises(InputError, match="is an I-JEPA run, which masks nothing and shows no att"):
        figures.main([f"--workdir={runs['I-JEPA']}", *arguments])


@pytest.mark.parametrize(
    "family,method,words",
    [
        ("DINOv2", "ibot", "mlp='swiglu', and that of ibot has registers=0, layer_scale=False"),
        ("I-JEPA", "ibot", "an I-JEPA encoder with class_token=False, and that of ibot"),
        ("DeiT III", "mae", "class_position=False"),
        ("plain", "mae", "has a plain encoder, which learned its positions"),
        ("plain", "ibot", "16x2x2h24/4 for images of 16x24, which does not fit"),
    ],
)
def test_a_training_does_not_start_from_another_build(runs, tmp_path, family, method, words):
    config = tiny.config(method, init_from=str(runs[family]))
    with pytest.raises(InputError) as caught:
        pretrain.train(config, tmp_path / "new")
    assert words in str(caught.value) and not (tmp_path / "new").exists()


def test_its_own_folder_is_not_trained_in_nor_exported_with_a_decoder(runs):
    def files():
        return sorted(path for path in runs["plain"].rglob("*") if path.name != ".lock")

    before = files()
    with pytest.raises(InputError, match="is an encoder alone, which --format=mae-full does not"):
        export_weights(runs["plain"], runs["plain"] / "new.safetensors", "mae-full")
    with pytest.raises(InputError, match="holds an encoder alone, which is not trained on; start"):
        pretrain.train(tiny.config("ibot"), runs["plain"])
    assert files() == before


@pytest.mark.slow
def test_trainings_start_from_it(runs, tmp_path):
    """An iBOT of its build, whose learning rate hardly moves it; and a classifier of any build."""
    build = dict(zip(("width", "depth", "heads", "mlp"), SIZE, strict=True))
    still = {
        "image_size": (16, 24),
        "epochs": 0.1,
        "optim__base_lr": 1e-9,
        "optim__warmup_epochs": 0.0,
        "optim__freeze_last_layer_epochs": 0.0,
        "evaluate__knn_images": 0,
        **{f"model__{name}": value for name, value in build.items()},
    }
    config = tiny.config("ibot", init_from=str(runs["plain"]), **still)
    pretrain.train(config, tmp_path / "warm")
    encoder = checkpoint.read_newest(tmp_path / "warm")[1]["extra"]["teacher"]["encoder"]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, encoder, dict(load_run(runs["plain"]).encoder))

    gated = save(tmp_path / "gated", "I-JEPA", mlp="swiglu", layer_scale=0.5)
    tuning = tiny.evaluation(
        "task=finetune,epochs=1",
        data__source=tiny.COMMON["data.source"],
        batch_size=16,
        model__pool="cls",
    )
    for _ in range(2):  # the same command finds it done
        path = evaluate.evaluate(tuning, gated, tmp_path / "tuned")
    assert "mean patch token stands for one" in json.loads(path.read_text())["protocol"]
    of_patches = tiny.evaluation("task=diversity", data__source=tiny.COMMON["data.source"])
    other = evaluate.evaluate(of_patches, gated, tmp_path / "tuned")
    assert "class token" not in json.loads(other.read_text())["protocol"]
    tuned = load_run(tmp_path / "tuned" / "eval_finetune" / "seed-0")
    assert not tuned.has_class_token and "w12" in tuned.encoder["blocks"]["block_1"]["mlp"]
    before = load_run(gated).encoder["blocks"]["block_1"]["mlp"]["w12"]["kernel"]
    assert not np.array_equal(tuned.encoder["blocks"]["block_1"]["mlp"]["w12"]["kernel"], before)
