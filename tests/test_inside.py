"""Task inside: parts run once, left out, gone on with, compared, and the page about them."""

import copy
import json
import math
import re
import shutil
from urllib.parse import unquote

import numpy as np
import pytest
import tiny
from matplotlib.figure import Figure
from PIL import Image
from test_metrics_page import keys_of, unnamed
from test_projection import fitted, half_space

from dppmask_jax import evaluate
from dppmask_jax.analyses import base, inside
from dppmask_jax.errors import InputError, NotServed
from dppmask_jax.evals.base import Result
from dppmask_jax.evaluating import records, subjects
from dppmask_jax.runs import checkpoint
from dppmask_jax.runs.run import load_run
from dppmask_jax.tasks import TASKS

pytestmark = pytest.mark.usefixtures("fewer_blocks")
FOUND = {
    "saliency": {
        "images": 9, "foreground": 0.2, "uncut": 1,
        "masks": {name: {"IoU": {"value": value, "error": 0.01}}
                  for name, value in (("tokencut", 0.5), ("whole", 0.2))},
    },
    "layers": {
        "chance": 0.25,
        "tokens": {"patches": {"ridge": {"mean": [0.3, 0.6, 0.4], "error": [0.02, None, 0.02]}}},
    },
    "tsne": {"points": [[0, 0]] * 7, "depth": 1, "blocks": 2, "classes": ["a", "b"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(fewer_blocks, tmp_path_factory):
    return tiny.save_run(tmp_path_factory.mktemp("inside") / "run")


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "mine")


@pytest.fixture
def ran(monkeypatch):
    """Tasks that cost nothing; the names of those that ran, in their order."""
    names = []

    def faked(name):
        def run(evaluation):
            names.append(name)
            table = [("what", "value"), (f"a|b of {evaluation.config.images}", "1")]
            row = None if name == "tsne" else {"value": "1"}
            metrics = copy.deepcopy(FOUND[name])
            if name == "saliency" and (
                evaluation.config.projection or evaluation.folder.name == "an other"
            ):
                metrics["masks"]["tokencut"]["IoU"]["value"] = 0.21
            return Result(
                metrics, table, f"{name} by hand", row=row,
                figures={f"{name}_more.png": Figure((1, 1))},
            )  # fmt: skip

        return TASKS[name]._replace(
            check=lambda evaluation: None,
            run=run,
            compare=lambda found: {f"{name}{'_scores' * (name == 'saliency')}.png": Figure((1, 1))},
        )

    for name in FOUND:
        monkeypatch.setitem(TASKS, name, faked(name))
    return names


def settings(**changes):
    return tiny.evaluation("task=inside", **{"tasks": ("saliency", "layers", "tsne")} | changes)


def refusing(monkeypatch, name, error):
    def check(evaluation):
        raise error

    monkeypatch.setitem(TASKS, name, TASKS[name]._replace(check=check))


def pictures(page):
    """The files of a page's pictures and links, all of which are there."""
    names = [unquote(path) for path in re.findall(r"\]\(([^)]+\.png)\)", page.read_text())]
    assert names and all((page.parent / name).is_file() for name in names), names
    return names


def test_a_part_that_is_done_is_not_run_again(run, ran, monkeypatch, capsys):
    page = evaluate.evaluate(settings(), run, command="python eval.py")
    assert page == run / "inside.md" and ran == ["saliency", "layers", "tsne"]
    text = page.read_text()
    assert "share 50.00 % ± 1.00 of the area" in text
    assert "better than calling the whole image the object (20.00 % ± 1.00)" in text
    assert "best at depth 1 of 2, 60.00 %, not told apart from the 40.00 % ± 2.00" in text
    assert "| a\\|b of 1000 | 1 |" in text and "    python eval.py" in text
    assert pictures(page) == [
        f"figures/{name}.png" for name in ("saliency_scores", "layers", "tsne")
    ]
    assert "part 2 of 3: layers of mine" in capsys.readouterr().out
    alone = json.loads((run / "eval_layers.json").read_text())
    assert alone["config"]["task"] == "layers" and alone["config"]["images"] == 2000
    assert json.loads((run / "eval_tsne.json").read_text())["config"]["images"] == 24

    ran.clear()
    evaluate.evaluate(settings(memory_gb=1.0), run, command="python eval.py")
    assert not ran and page.read_text() == text
    assert f"layers: done, {run / 'eval_layers.json'}" in capsys.readouterr().out
    (run / "figures" / "layers.png").unlink()
    (run / "eval_tsne.json").write_text("{")
    evaluate.evaluate(settings(), run)
    assert ran == ["layers", "tsne"]
    # Alone it does the same work, and leaves the same record.
    evaluate.evaluate(tiny.evaluation("task=saliency"), run)
    evaluate.evaluate(settings(images=50), run)
    assert ran[2:] == ["saliency", "saliency", "layers"]
    ran.clear()
    evaluate.evaluate(settings(images=50, data__source="shapes:size=16,train=96,val=20"), run)
    assert ran == ["saliency", "layers", "tsne"]
    other = tiny.save_run(run.parent / "other", seed=4)
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints")
    evaluate.evaluate(settings(images=50, data__source="shapes:size=16,train=96,val=20"), run)
    assert ran[3:] == ["saliency", "layers", "tsne"]


def test_what_cannot_be_served_is_left_out_and_named(run, ran, monkeypatch):
    refusing(monkeypatch, "saliency", NotServed("there are no masks"))

    def unreadable(evaluation):
        raise NotServed("1 of 9 images can be read")

    monkeypatch.setitem(TASKS, "tsne", TASKS["tsne"]._replace(run=unreadable))
    page = evaluate.evaluate(settings(), run)
    text = page.read_text()
    assert ran == ["layers"] and pictures(page) == ["figures/layers.png"]
    left = text.split("## Left out: 2 parts")[1]
    assert "- **Objects without training** (task saliency): there are no masks." in left
    assert "(task tsne): 1 of 9 images can be read." in left
    assert "shift" not in text

    page.unlink()
    with pytest.raises(InputError, match=r"all 1 part .* tsne: 1 of 9 images can be read"):
        evaluate.evaluate(settings(tasks=("tsne",)), run)
    assert not page.exists()

    refusing(monkeypatch, "layers", NotServed("there are no labels"))
    (run / "eval_layers.json").unlink()
    refusing(monkeypatch, "tsne", NotServed("there are no labels"))
    with pytest.raises(
        InputError, match=r"nothing to run, all 3 parts .* saliency: there are no m"
    ):
        evaluate.evaluate(settings(), run)


def test_an_interrupted_command_goes_on_with_the_part_that_is_missing(run, ran, monkeypatch):
    whole = TASKS["layers"]

    def interrupted(evaluation):
        raise KeyboardInterrupt

    monkeypatch.setitem(TASKS, "layers", whole._replace(run=interrupted))
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(settings(), run)
    assert ran == ["saliency"] and not (run / "inside.md").exists()
    assert not list(run.glob(".lock*")) and not (run / "eval_layers.json").exists()

    def drawing(found):  # stopped between the figures and the record
        raise KeyboardInterrupt

    monkeypatch.setitem(TASKS, "layers", whole._replace(compare=drawing))
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(settings(), run)
    assert not (run / "eval_layers.json").exists()
    monkeypatch.setitem(TASKS, "layers", whole)
    evaluate.evaluate(settings(), run)
    assert ran == ["saliency", "layers", "layers", "tsne"]


def test_several_runs_share_a_page(run, ran, tmp_path, capsys):
    other = tiny.save_run(tmp_path / "an other", seed=4)
    (page,) = evaluate.evaluate_all(settings(), [run, other])
    assert page == run / "inside.md" and len(ran) == 6
    assert (other / "eval_layers.json").is_file() and not (other / "inside.md").exists()
    text = page.read_text()
    assert "# Inside mine and an other" in text and "\n  - *an other*: The cut and the true" in text
    assert "not told apart from calling the whole image" in text
    assert text.count("best at depth 1 of 2") == 2  # of both runs, in short and in full
    assert "| an other | 12 | 1 |" in text
    compared = [f"figures/compare_{name}.png" for name in ("saliency_scores", "layers", "tsne")]
    assert pictures(page) == compared

    ran.clear()
    (page,) = evaluate.evaluate_all(settings(), [run, other], tmp_path / "out")
    found = [path.relative_to(tmp_path / "out").as_posix() for path in page.parent.rglob("eval_*")]
    assert page == tmp_path / "out" / "inside.md" and len(ran) == len(found) == 6
    assert {"mine/eval_layers.json", "an other/eval_layers.json"} <= set(found)
    with pytest.raises(InputError, match="--workdir takes the result of one --checkpoint"):
        evaluate.evaluate_all(tiny.evaluation("task=knn"), [run, other], tmp_path / "out")


def test_with_a_projection_a_part_runs_without_and_with(run, ran, tmp_path):
    loaded = load_run(run)
    file = fitted(tmp_path / "p.safetensors", loaded, half_space(loaded.method.encoder.width)[0])
    evaluate.evaluate(settings(), run)
    page = evaluate.evaluate(settings(projection=str(file)), run)
    assert ran == ["saliency", "layers", "tsne", "saliency"]
    text = page.read_text()
    assert "| mine, with projection | 12 | 1 |" in text
    assert "\n- *mine, without projection*: The cut" in text
    assert pictures(page) == [
        "figures/compare_projected_saliency_scores.png", "figures/layers.png", "figures/tsne.png"
    ]  # fmt: skip
    fitted(file, loaded, np.eye(loaded.method.encoder.width, dtype=np.float32))
    evaluate.evaluate(settings(projection=str(file)), run)
    assert ran[4:] == ["saliency"]  # another projection under the same name
    with pytest.raises(InputError, match="changes none of layers, tsne; leave it out"):
        evaluate.evaluate(settings(projection=str(file), tasks=("layers", "tsne")), run)


def test_a_projection_that_a_part_would_write_over_is_refused(run, ran, tmp_path, monkeypatch):
    loaded = load_run(run)
    file = fitted(run / "soap.safetensors", loaded, np.eye(loaded.method.encoder.width))
    (tmp_path / "link").symlink_to(run)
    given = tmp_path / "link" / "soap.safetensors"
    before = sorted(run.rglob("*")), file.read_bytes()
    chosen = settings(tasks=("soap", "saliency"), projection=str(given))
    with pytest.raises(InputError, match=r"task soap would write over .*link/soap\.s.*; copy") as e:
        evaluate.evaluate(chosen, run)
    assert "\n" not in str(e.value) and not ran
    assert before == (sorted(run.rglob("*")), file.read_bytes())

    # Where soap is done, its file stays and can be used.
    found = {"scores": [0.5], "errors": [0.1], "above": 0, "removed_variance": 0.1}
    by_hand = Result(found, [("a",), ("b",)], "by hand")
    fake = TASKS["soap"]._replace(run=lambda evaluation: by_hand, compare=lambda found: {})
    monkeypatch.setitem(TASKS, "soap", fake)
    evaluate.evaluate(tiny.evaluation("task=soap"), run)
    evaluate.evaluate(chosen, run)
    assert ran == ["saliency", "saliency"]


def test_a_record_does_not_outlive_the_files_that_it_tells_of(run, ran, monkeypatch):
    evaluate.evaluate(settings(tasks=("layers",)), run)
    before = (run / "eval_layers.json").read_bytes()
    with monkeypatch.context() as patch:
        refusing(patch, "tsne", InputError("damaged"))
        with pytest.raises(InputError, match="damaged"):
            evaluate.evaluate(settings(images=50, tasks=("layers", "tsne")), run)
    assert (run / "eval_layers.json").read_bytes() == before

    def interrupted(*_):
        raise KeyboardInterrupt

    whole = TASKS["layers"]
    cases = (  # before anything is written, at the first figure, beside a file of the task's own
        (TASKS, "layers", whole._replace(run=interrupted), []),
        (records, "save", interrupted, ["layers"]),
        (TASKS, "layers", whole._replace(run=interrupted, files=("projector",)), ["layers"]),
    )
    for where, name, value, run_again in cases:
        with monkeypatch.context() as patch:
            (patch.setitem if where is TASKS else patch.setattr)(where, name, value)
            with pytest.raises(KeyboardInterrupt):
                evaluate.evaluate(settings(images=50, tasks=("layers",)), run)
        ran.clear()
        evaluate.evaluate(settings(tasks=("layers",)), run)
        assert ran == run_again, name


def test_a_page_is_about_one_checkpoint(run, ran, monkeypatch):
    def training_goes_on(evaluation):
        meta, state, _ = checkpoint.read_newest(run)
        checkpoints = checkpoint.Checkpoints(run / checkpoint.FOLDER)
        checkpoints.save(13, state, meta)
        checkpoints.close()

    whole = TASKS["layers"]
    monkeypatch.setitem(TASKS, "layers", whole._replace(check=training_goes_on))
    with pytest.raises(InputError, match="mine was step 12 and now is step 13; run the c") as error:
        evaluate.evaluate(settings(), run)
    assert "\n" not in str(error.value) and not ran and not (run / "inside.md").exists()
    monkeypatch.setitem(TASKS, "layers", whole)
    assert "step 13" in evaluate.evaluate(settings(), run).read_text()


def test_what_is_not_a_number_is_compared_alike_before_and_after(run, ran, monkeypatch, tmp_path):
    curve = {"mean": (math.nan, 0.5, math.inf), "error": (None, 0.1, 0.2)}
    drawn = []

    def compare(found):
        drawn.append({label: base.in_percent(metrics["curve"]) for label, metrics in found.items()})
        return {}

    def measured(evaluation):
        return Result({"curve": curve}, [("a",), ("b",)], "by hand")

    kind = TASKS["tsne"]._replace(run=measured, compare=compare)
    monkeypatch.setitem(TASKS, "tsne", kind)
    twin = shutil.copytree(run, tmp_path / "twin")
    for _ in range(2):
        evaluate.evaluate_all(settings(tasks=("tsne",)), [run, twin])
    assert [list(found) for found in drawn] == [["mine"], ["twin"]] + 2 * [["mine", "twin"]]
    nan = math.nan
    for found in drawn:
        for values in found.values():
            np.testing.assert_array_equal(values["mean"], [nan, 50, nan])
            np.testing.assert_array_equal(values["error"], [nan, 10, 20])
    kept = json.loads((run / "eval_tsne.json").read_text())["metrics"]["curve"]
    assert kept == {"mean": [None, 0.5, None], "error": [None, 0.1, 0.2]}


def test_changed_images_are_part_of_what_a_result_is_of(run, tmp_path):
    for name in ("circle", "square"):
        (tmp_path / "changed" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "changed" / name / "1.png")
    chosen = tiny.evaluation("task=shift", changed=f"folder:{tmp_path}/changed")
    subject = subjects.Subject(chosen, run, run, "mine")
    evaluation = subjects.evaluation_of(subject, subjects.loaded(subject))

    def identity(evaluation):
        return records._subject_of(evaluation, run)["identity"]

    first = identity(evaluation)
    assert first == identity(evaluation)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "changed" / "circle" / "1.png")
    without = evaluation._replace(config=subjects.with_fields(evaluation.config, changed=""))
    assert len({first, identity(evaluation), identity(without)}) == 3


def test_files_of_runs_with_a_projection_are_named_after_it_whoever_is_last(
    run, ran, monkeypatch, tmp_path
):
    loaded = load_run(run)
    file = fitted(tmp_path / "p.safetensors", loaded, half_space(loaded.method.encoder.width)[0])
    twin, whole = shutil.copytree(run, tmp_path / "twin"), TASKS["saliency"]

    def unreadable(evaluation):
        if evaluation.config.projection and evaluation.folder == twin:
            raise NotServed("1 of 9 images can be read")
        return whole.run(evaluation)

    monkeypatch.setitem(TASKS, "saliency", whole._replace(run=unreadable))
    chosen = settings(tasks=("saliency",), projection=str(file))
    (page,) = evaluate.evaluate_all(chosen, [run, twin])
    assert pictures(page) == ["figures/compare_projected_saliency_scores.png"]
    assert [path.name for path in run.glob("compared_*")] == ["compared_saliency_projected.json"]
    compared = json.loads((run / "compared_saliency_projected.json").read_text())
    assert compared["task"] == "saliency_projected" and len(compared["runs"]) == 3


def test_a_damaged_record_is_none_and_a_fault_of_ours_shows(run, ran, monkeypatch):
    chosen = tiny.evaluation("task=tsne")
    evaluate.evaluate(chosen, run)
    subject = subjects.Subject(chosen, run, run, "mine")
    evaluation = subjects.opened(subject)
    path = run / "eval_tsne.json"
    record = json.loads(path.read_text())
    assert records.finished(subject, evaluation) == record
    changes = ({"checkpoint": 3}, {"config": "x"}, {"files": [3]}, {"files": None})
    damaged = [json.dumps(record | change) for change in changes]
    for text in ("", "{", "[]", "3", "{}", *damaged):
        path.write_text(text)
        assert records.finished(subject, evaluation) is None, text

    def faulty(values):
        raise KeyError("ours")

    path.write_text(json.dumps(record))
    monkeypatch.setattr(records.fields, "flatten", faulty)
    with pytest.raises(KeyError, match="ours"):
        records.finished(subject, evaluation)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"tasks": ("layers", "knn")}, r"config\.tasks=\('layers', 'knn'\) is not allowed"),
        ({"tasks": ("layers", "layers")}, "is not allowed: a list of different ones"),
        ({"images": 1}, r"config\.images=1 is not allowed"),
        ({"images": 5, "tasks": ("soap",)}, r"soap: config\.images=5 is not allowed: a whole n"),
        ({"data__source": "folder:/nowhere"}, "/nowhere"),
        ({"projection": "/nowhere"}, "there is no projection /nowhere"),
        ({"image_size": (17, 16)}, "17"),
    ],
)
def test_a_wrong_config_is_refused_before_any_work(changes, words, run, ran):
    before = sorted(run.rglob("*"))
    with pytest.raises(InputError, match=words) as error:
        evaluate.evaluate(settings(**changes), run)
    assert not ran and sorted(run.rglob("*")) == before
    assert "\n" not in str(error.value) and not isinstance(error.value, NotServed)


def test_a_fault_of_the_data_is_none_of_what_cannot_be_served(run, ran, monkeypatch):
    refusing(monkeypatch, "tsne", InputError("masks of another size"))
    with pytest.raises(InputError, match="another size"):
        evaluate.evaluate(settings(), run)
    assert not ran


@pytest.mark.slow
def test_all_parts_of_a_run(trained, tmp_path):
    config = tiny.evaluation("task=inside", data__source="shapes:size=16,train=96,val=96")
    page = evaluate.evaluate(config, trained, tmp_path / "out")
    text = page.read_text()
    assert text.count("\n## ") == 1 + len(inside.PARTS)  # in short, and shift left out
    left = text.split("## Left out: 1 part")[1]
    assert "config.changed is empty" in left
    drawn = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert {name.removeprefix("figures/") for name in pictures(page)} == drawn
    assert "nan" not in text and "None" not in text
    assert (tmp_path / "out" / "soap.safetensors").is_file()
    kept = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("eval_*.json")]
    assert len(kept) == len(inside.PARTS) - 1  # shift is left out
    for record in kept:
        assert not unnamed(set(record) | keys_of(record["metrics"], set()))
