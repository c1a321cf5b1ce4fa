"""A projection of patch tokens in an exported file: the head behind the final norm."""

import re
import sys

import exported
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import tiny

from dppmask_jax.data.images.augment import normalize
from dppmask_jax.errors import InputError
from dppmask_jax.runs import projection
from dppmask_jax.runs.run import load_run
from dppmask_jax.weights import exporting, names
from dppmask_jax.weights.exporting import export_weights, loaded_by
from dppmask_jax.weights.importing import Options, import_weights
from dppmask_jax.weights.sizes import Known

# Compiling is what takes time where the size does not matter.
SMALL = {"model__width": 24, "model__depth": 2, "model__heads": 2}


def fitted(path, run, width=None, layer=None):
    """A file with a symmetric matrix that is far from the identity, and the matrix."""
    encoder = run.method.encoder
    rng, width = np.random.default_rng(3), width or encoder.width
    drawn = 0.2 * rng.normal(size=(width, width))
    matrix = (np.eye(width) + drawn + drawn.T).astype(np.float32)
    layer = encoder.depth if layer is None else layer
    projection.write(path, arrays={"projector": matrix}, layer=layer, run=run)
    return path, matrix


@pytest.fixture(scope="module")
def mae(tmp_path_factory):
    return exported.run(tmp_path_factory.mktemp("mae") / "run", **SMALL)


@pytest.fixture(scope="module")
def soap(mae):
    return fitted(mae.parent / "soap.safetensors", load_run(mae))


def layer_norm(x, weight, bias):
    x = x.astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * weight + bias


def test_the_head_of_a_file_is_the_projection(mae, soap, tmp_path):
    file, matrix = soap
    path = export_weights(mae, tmp_path / "a.safetensors", "timm", projection=file)
    with safetensors.safe_open(path, framework="np") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    plain = export_weights(mae, tmp_path / "b.safetensors", "timm")
    with safetensors.safe_open(plain, framework="np") as opened:
        assert set(tensors) - set(opened.keys()) == {"head.weight", "head.bias"}
        assert opened.metadata() == {"format": "pt"}
    np.testing.assert_array_equal(tensors["head.weight"], matrix.T)
    assert not tensors["head.bias"].any()
    assert "not for the class token" in metadata["head"] and len(metadata["projection"]) == 16

    # Norm, then head, in float64, are the projected tokens of the run; and so is their mean.
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    wanted = load_run(mae, projection=file).encode(images)
    normed = layer_norm(
        np.asarray(wanted["patches_prenorm"]), tensors["norm.weight"], tensors["norm.bias"]
    )
    found = normed @ tensors["head.weight"].T.astype(np.float64) + tensors["head.bias"]
    np.testing.assert_allclose(found, wanted["patches"], atol=2e-5)
    found = normed.mean(1) @ tensors["head.weight"].T.astype(np.float64)
    np.testing.assert_allclose(found, wanted["patches"].mean(1), atol=2e-5)

    words = loaded_by(mae, path, "timm", projected=True)
    width = len(matrix)
    assert f"num_classes={width}, global_pool='avg', fc_norm=False, img_size=(16, 24)" in words
    assert "num_classes=0" in loaded_by(mae, plain, "timm")


def test_an_exported_encoder_comes_back_without_its_head(mae, soap, tmp_path):
    """The projection is then attached as before: it still belongs to the same encoder."""
    file, _ = soap
    path = export_weights(mae, tmp_path / "a.safetensors", "timm", projection=file)
    options = Options(Known((16, 24), 2))
    made = import_weights(path, "timm", tmp_path / "back", None, options)
    assert made.left_aside == ("head. (2)",)
    images = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3), np.uint8)
    before, after = (
        load_run(folder, projection=file).encode(images) for folder in (mae, tmp_path / "back")
    )
    np.testing.assert_allclose(after["patches"], before["patches"], atol=1e-5)


def test_formats_without_a_place_for_it(mae, soap, tmp_path):
    """They are refused before the run is read."""
    for format_name in sorted(names.FORMATS.keys() - exporting.PROJECTED.keys()):
        path = tmp_path / ("c" if format_name.startswith("hf") else "c.safetensors")
        with pytest.raises(InputError, match=r"has no place for a projection: .*timm") as refusal:
            export_weights(tmp_path / "none", path, format_name, projection=soap[0])
        assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_a_projection_of_another_encoder(mae, soap, tmp_path):
    run = load_run(mae)
    other = exported.run(tmp_path / "other", seed=5, **SMALL)
    wide, _ = fitted(tmp_path / "wide", run, width=run.method.encoder.width + 1)
    inner, _ = fitted(tmp_path / "inner", run, layer=1)
    for folder, file, words in (
        (other, soap[0], f"was fitted to another encoder (mae, step 0) than that of {other}"),
        (mae, wide, "projects tokens of width 25, and those of"),
        (mae, inner, "was fitted to layer 1, and layer 2 is asked for"),
        (mae, tmp_path / "missing", "there is no projection"),
        (exported.finetuned(tmp_path / "tuned"), soap[0], "use mae-finetuned"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            export_weights(folder, tmp_path / "c.safetensors", "timm", projection=file)
    assert not list(tmp_path.glob("*c.safetensors*"))


@pytest.mark.slow
def test_the_command_says_what_the_head_is(mae, soap, tmp_path):
    command = [sys.executable, "-m", "dppmask_jax.weights", "export", str(mae)]
    path = tmp_path / "a.safetensors"
    done = tiny.run([*command, str(path), "--format=timm", f"--projection={soap[0]}"])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == str(path) and "fc_norm=False" in lines[1]
    assert "not for the class token" in lines[2]
    done = tiny.run([*command[:3], "import", str(path), "--format=timm", "--workdir=x",
                     f"--projection={soap[0]}"])  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--projection is for export" in done.stderr


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("method", ["mae", "ibot"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_timm_projects_with_its_head(timm, method, suffix, tmp_path):
    torch = pytest.importorskip("torch")
    folder = exported.run(tmp_path / "run", method, **SMALL)
    file, _ = fitted(tmp_path / "soap", load_run(folder))
    path = export_weights(folder, tmp_path / f"a{suffix}", "timm", projection=file)
    expression = loaded_by(folder, path, "timm", projected=True)
    model = eval(expression, {"timm": timm}).eval()
    images = np.random.default_rng(2).integers(0, 256, (3, 16, 24, 3), np.uint8)
    pixels = np.asarray(normalize(jnp.asarray(images))).transpose(0, 3, 1, 2)
    pixels = torch.from_numpy(np.ascontiguousarray(pixels))
    with torch.no_grad():
        mean, tokens = model(pixels), model.forward_features(pixels)
        patches = model.head(tokens[:, 1:])
    wanted = load_run(folder, projection=file).encode(images)
    plain = load_run(folder).encode(images)
    assert np.abs(np.asarray(wanted["patches"] - plain["patches"])).max() > 0.1
    for ours, theirs in (
        (wanted["patches"], patches),
        (np.mean(wanted["patches"], axis=1), mean),
        (wanted["cls"], tokens[:, 0]),
    ):
        ours = np.asarray(ours, np.float64)
        error = np.abs(ours - theirs.double().numpy()).max() / np.abs(ours).max()
        assert error < 1e-4
    # Where timm would have the norm, the file does not fit.
    with pytest.raises(RuntimeError, match="fc_norm"):
        eval(expression.replace("fc_norm=False, ", ""), {"timm": timm})
