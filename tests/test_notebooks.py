"""The notebooks: kept without outputs, run in fresh kernels, and what one asks of a TPU."""

import importlib.util
import json
import re

import nbformat
import pytest
import tiny
from test_tpu import compiled

from dppmask_jax.config import check

FOLDER = tiny.ROOT / "notebooks"
MASKS, PRETRAIN, OWN = (
    "masks_for_your_pipeline",
    "pretrain_and_look_inside",
    "add_your_own_masker",
)
SMALL = {"SOURCE": "shapes:size=64,train=320,val=128"}
CHOICES = {MASKS: {}, PRETRAIN: SMALL | {"EPOCHS": 5}, OWN: SMALL | {"EPOCHS": 1}}
NUM_FIGURES = {MASKS: 3, PRETRAIN: 7, OWN: 2}


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def tagged(notebook, tag):
    """The place of the one cell that has a tag."""
    (place,) = [
        place for place, cell in enumerate(notebook.cells) if tag in cell.metadata.get("tags", ())
    ]
    return place


def test_all_notebooks_are_known():
    assert {path.stem for path in FOLDER.iterdir()} == set(CHOICES)
    page = (tiny.ROOT / "docs" / "notebooks.md").read_text()
    assert set(re.findall(r"(\w+)\.ipynb", page)) == set(CHOICES)


@pytest.mark.parametrize("name", CHOICES)
def test_notebooks_are_kept_without_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (FOLDER / f"{name}.ipynb").read_text() == nbformat.writes(notebook) + "\n"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids) and all(re.fullmatch("[a-z-]+", each) for each in ids)
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}, cell.id
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.id


def config_of(device):
    """What the notebook trains on a kind of device, by its own cells."""
    names = {"device": device}
    exec(cells_of_config(), names)
    return names["config"]


def cells_of_config():
    notebook = read(PRETRAIN)
    cells = (notebook.cells[tagged(notebook, tag)] for tag in ("parameters", "config"))
    return "\n".join(cell.source for cell in cells)


@pytest.mark.parametrize("device", ["cpu", "gpu", "tpu"])
def test_what_the_notebook_trains_is_allowed_everywhere(device):
    config = config_of(device)
    check(config)
    assert config.batch_size % 8 == 0 and config.mask.strategy == "dpp"
    assert config.model.size == ("Pi" if device == "cpu" else "S")


def execute(name, folder):
    """The notebook with its outputs, run in a fresh kernel; {id of a cell: what it printed}."""
    from nbclient import NotebookClient

    notebook = read(name)
    if choices := CHOICES[name]:
        lines = "\n".join(f"{choice} = {value!r}" for choice, value in choices.items())
        cell = nbformat.v4.new_code_cell(lines)
        notebook.cells.insert(tagged(notebook, "parameters") + 1, cell)
    client = NotebookClient(
        notebook, timeout=900, startup_timeout=300, resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=tiny.environment(1) | {"PYTHONPATH": str(tiny.ROOT)})
    outputs = {cell.id: cell.get("outputs", []) for cell in notebook.cells}
    printed = {name: "".join(each.get("text", "") for each in of) for name, of in outputs.items()}
    shown = [each for of in outputs.values() for each in of if "image/png" in each.get("data", {})]
    assert len(shown) == NUM_FIGURES[name]
    return outputs, printed


@pytest.mark.slow
def test_masks_for_your_pipeline(tmp_path):
    _, printed = execute(MASKS, tmp_path)
    assert "tokens (8, 196, 768) -> (8, 49, 768) visible" in printed["select"]
    assert "l2           [1 1 1 1 1 1 1 1]" in printed["center"]
    if importlib.util.find_spec("torch") is None:
        assert "PyTorch is not installed" in printed["torch"] and printed["loader"] == ""
    assert "'mask': (8, 196)" in printed["file"]


@pytest.mark.peer
def test_masks_for_a_loader_of_pytorch(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[peer]'")
    _, printed = execute(MASKS, tmp_path)
    lines = [
        f"epoch {epoch} tokens (4, 196, 192) -> visible (4, 49, 192)\n" for epoch in (0, 0, 1, 1)
    ]
    assert printed["loader"] == "".join(lines)


@pytest.mark.slow
def test_pretrain_and_look_inside(tmp_path):
    outputs, printed = execute(PRETRAIN, tmp_path)
    assert "resuming at step 20" in printed["resume"]
    kept = [int(step) for step in re.search(r"at \[(.*)\]", printed["resume"])[1].split(", ")]
    checkpoints = tmp_path / "runs" / "first" / "checkpoints"  # the disconnect is played on a copy
    assert kept == sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
    assert "resuming" not in printed["train"]
    before, after = re.search(r"before (\(.*?\)) after (\(.*?\))\n", printed["resume"]).groups()
    assert before == after
    assert "k-NN" in printed["knn"]
    assert (tmp_path / "runs" / "first" / "inside.md").exists()
    assert any("text/markdown" in each.get("data", {}) for each in outputs["page"])
    assert "'cls': (2, 96)" in printed["use"] and (tmp_path / "run.zip").exists()


@pytest.mark.slow
def test_add_your_own_masker(tmp_path):
    outputs, printed = execute(OWN, tmp_path)
    table = outputs["lab"][-1]["data"]["text/markdown"]
    assert "spotlight (spread 0.3)" in table
    config = json.loads((tmp_path / "runs" / "spotlight" / "config.json").read_text())
    assert "spotlight" in str(config) and "starting at step 0" in printed["train"]
    for run in ("spotlight", "zoo"):
        assert (tmp_path / "runs" / run / "eval_knn.json").exists()


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("topology", "chips", "effort"),
    [
        ("v5e:1x1", 1, "-1"),
        pytest.param("v5e:1x1", 1, "0", marks=pytest.mark.slow),
        pytest.param("v5e:2x4", 8, "0", marks=pytest.mark.slow),
    ],
)
def test_the_step_of_the_notebook_compiles(topology, chips, effort, tmp_path):
    file = tmp_path / "notebook.py"
    file.write_text(
        f"CELLS = {cells_of_config()!r}\n\n\n"
        "def get_config():\n"
        "    names = {'device': 'tpu'}\n"
        "    exec(CELLS, names)\n"
        "    return names['config']\n"
    )
    found = compiled(tmp_path, f"--config={file}", f"--topology={topology}", effort=effort)
    assert (found["chips"], found["images_per_chip"]) == (chips, 256 // chips)
    assert found["memory"]["peak"] < found["memory"]["room"]
    assert found["parts"]["selection"] > 0 and found["parts"]["decoder"] > 0
