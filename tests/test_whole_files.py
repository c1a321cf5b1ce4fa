"""Files that are there whole or not at all."""

import json

import pytest

from dppmask_jax import whole_files


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "eval.json"
    whole_files.write_json(path, {"a": 1})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    unknown = {"b": [float("nan"), (float("inf"), 1.5)], "c": None}
    whole_files.write_json(tmp_path / "other.json", unknown)
    assert json.loads((tmp_path / "other.json").read_text()) == {
        "b": [None, [None, 1.5]],
        "c": None,
    }
    (tmp_path / "other.json").unlink()
    with pytest.raises(TypeError):
        whole_files.write_json(path, {"a": object()})
    with pytest.raises(KeyboardInterrupt), whole_files.replacing(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]
