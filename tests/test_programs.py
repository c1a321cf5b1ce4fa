"""Encoders as programs of their own, and the model card of an exported folder."""

import json
import sys
import types

import exported
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dppmask_jax.errors import InputError
from dppmask_jax.runs.run import load_encoder
from dppmask_jax.weights import programs
from dppmask_jax.weights.exporting import export_weights


@pytest.fixture(scope="module")
def mae(tmp_path_factory):
    return exported.run(tmp_path_factory.mktemp("mae") / "run")


def images(number):
    return np.random.default_rng(number).random((number, 16, 24, 3), np.float32)


def test_stablehlo_takes_any_batch_and_gives_the_encoders_tokens(mae, tmp_path):
    path = tmp_path / "encoder.stablehlo"
    said = programs.export_program(mae, path, "stablehlo")
    assert "images: (B, 16, 24, 3) float32" in said
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert program.platforms == ("cpu", "tpu", "cuda")
    encode = load_encoder(mae)
    for number in (1, 3):
        found, wanted = program.call(images(number)), encode(images(number))
        assert found.keys() == wanted.keys()
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], atol=1e-5)


@pytest.mark.peer
@pytest.mark.slow
def test_onnx_takes_any_batch_and_gives_the_encoders_tokens(mae, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("jax2onnx")
    path = tmp_path / "encoder.onnx"
    # In a process of its own: the converter exchanges functions of JAX.
    command = [sys.executable, "-m", "dppmask_jax.weights", "export", str(mae), str(path)]
    done = tiny.run([*command, "--format=onnx"])
    assert done.returncode == 0, done.stderr
    session = onnxruntime.InferenceSession(str(path))
    encode = load_encoder(mae)
    for number in (1, 3):
        found = session.run(["cls", "patches"], {"images": images(number)})
        wanted = encode(images(number))
        for values, name in zip(found, ("cls", "patches"), strict=True):
            np.testing.assert_allclose(values, wanted[name], atol=1e-4)


def test_a_function_for_any_platform_has_no_calls_of_rematerialised_parts():
    def function(x):
        def part(x):
            return jnp.sin(x) * jax.lax.platform_dependent(x, cpu=jnp.cos, default=jnp.exp)

        return jax.checkpoint(part)(x) + 1

    flat = programs._for_any_platform(function)
    x = np.float32([0.1, 0.7])
    np.testing.assert_allclose(flat(x), np.sin(x) * np.exp(x) + 1, rtol=1e-6)
    names = {equation.primitive.name for equation in jax.make_jaxpr(flat)(x).eqns}
    assert names == {"sin", "exp", "mul", "add"}


@pytest.mark.parametrize("words", ["for primitive 'of_tests'", "of another kind"])
def test_what_onnx_lacks_is_named(mae, tmp_path, monkeypatch, words):
    def to_onnx(*_, **__):
        raise NotImplementedError(f"[converter] No plugins registered {words}")

    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "jax2onnx", types.SimpleNamespace(to_onnx=to_onnx))
    named = "primitive" in words
    with pytest.raises(InputError if named else NotImplementedError) as raised:
        programs.export_program(mae, tmp_path / "a.onnx", "onnx")
    assert ("jax2onnx has no way to write 'of_tests'" in str(raised.value)) == named
    assert not (tmp_path / "a.onnx").exists()


def test_what_a_program_cannot_be_written_to(mae, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"is a \.stablehlo file; name one"):
        programs.export_program(mae, tmp_path / "a.onnx", "stablehlo")
    (tmp_path / "a.onnx").write_text("")
    with pytest.raises(InputError, match="exists and is not overwritten"):
        programs.export_program(mae, tmp_path / "a.onnx", "onnx")
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None)
    for name in ("onnx", "stablehlo"):
        with pytest.raises(InputError, match=rf"pip install 'dppmask-jax\[{name}\]'"):
            programs.export_program(mae, tmp_path / f"b.{name}", name)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_a_folder_for_hugging_face_has_a_model_card(mae, tmp_path):
    record = {
        "task": "knn", "protocol": "cosine, k = 5", "metrics": {"cls": {"5": 0.4375}},
        "row": {"cls, k = 5": "43.75 % ± 1.2"},
        "checkpoint": {"workdir": "/home/me/run", "step": 12}, "command": "dppmask eval",
        "config": {"task": "knn", "data": {"source": "folder:/home/me/photos"}},
    }  # fmt: skip
    (mae / "eval_knn.json").write_text(json.dumps(record))
    nothing = record | {"row": None, "score": {"name": "found", "value": None}}
    (mae / "eval_none.json").write_text(json.dumps(nothing))
    (mae / "eval_linear.json").write_text("{}")
    export_weights(mae, tmp_path / "hub", "hf-encoder")
    page = (tmp_path / "hub" / "README.md").read_text()
    assert page.startswith("---\nlibrary_name: transformers\n")
    assert "Encoder of an MAE, masks drawn by dpp, pre-trained" in page
    assert "| knn | cosine, k = 5 | folder:photos | cls, k = 5: 43.75 % ± 1.2 |" in page
    assert "| knn | cosine, k = 5 | folder:photos | found: – |" in page
    assert "/home/me" not in page and "eval_linear" not in page
    assert 'ViTMAEModel.from_pretrained("' in page
    assert json.loads(page.split("```json\n")[1].split("```")[0])["method"] == "mae"
