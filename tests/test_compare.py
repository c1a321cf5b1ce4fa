"""A study: what is run, what is left alone, what is kept, and what is refused."""

import hashlib
import json
import random
import re
import shutil

import numpy as np
import pytest
import tiny

from dppmask_jax import compare, evaluate, pretrain
from dppmask_jax.compare import How
from dppmask_jax.comparing import finished, published, writing
from dppmask_jax.comparing import study as studies
from dppmask_jax.data.sources import identity
from dppmask_jax.errors import InputError, Stopped
from dppmask_jax.evaluating import records, subjects
from dppmask_jax.runs import workdir
from dppmask_jax.runs.run import open_data
from dppmask_jax.training import loop

ALONE = How()
RESULTS = (published.VALUES, published.IMAGES, published.STUDIES)


def study_of(name="small", seeds=(0, 1), images="shapes:size=16,train=96,val=24", **maskers):
    study = studies.defaults(name)
    study.seeds = seeds
    study.source = images
    study.maskers = {
        "random": {"strategy": "random"},
        "dpp": {"strategy": "dpp", "tau": 0.8},
        **maskers,
    }
    study.methods.mae = tiny.config()
    study.evaluations.knn = tiny.evaluation("task=knn")
    study.evaluations.ridge = tiny.evaluation("task=linear", solver="ridge")
    return study


@pytest.fixture
def made(monkeypatch):
    """What is trained and evaluated, in order, by stand-ins that only write the files; a score is a
    function of the run and the evaluation."""
    made = []

    def train(config, folder):
        if (folder / "config.json").exists():
            return
        made.append(("train", folder.name))
        folder.mkdir(parents=True)
        workdir.write_config(config, folder)

    def evaluated(config, folder, command=""):
        made.append((records.name_of(config), folder.name))
        saved = json.loads((folder / "config.json").read_text())
        full = subjects.completed(config, workdir.from_json(saved))
        digest = hashlib.sha256(f"{folder.name} {config.task}".encode()).digest()
        right = np.unpackbits(np.frombuffer(digest, np.uint8))[:24].astype(bool)
        np.save(folder / records.images_name(config), right)
        record = {
            "config": workdir.to_json(full),
            "checkpoint": {"config": saved, "step": 3},
            "score": {"name": config.task, "value": float(right.mean()), "in_percent": True},
            "identity": identity.of_splits(*open_data(full))["digest"],
            "files": [records.images_name(config)],
        }
        path = folder / records.result_name(config)
        path.write_text(json.dumps(record))
        return path

    monkeypatch.setattr(pretrain, "train", train)
    monkeypatch.setattr(evaluate, "evaluate", evaluated)
    return made


def run(config, folder, how=ALONE):
    study = studies.read(config)
    compare.compare(study, folder, how, [])
    return study


def contents(folder):
    """The files of results, without the seconds that runs took."""
    files = {name: (folder / name).read_bytes() for name in RESULTS}
    about = json.loads(files[published.STUDIES])
    for study in about.values():
        for each in study["runs"]:
            each["seconds"] = None
    return files | {published.STUDIES: about}


def trained(made):
    return [name for what, name in made if what == "train"]


def test_runs_go_seed_by_seed_and_what_is_finished_is_left_alone(tmp_path, made):
    study = run(study_of(), tmp_path / "runs")
    assert [(each.masker, each.seed) for each in study.runs] == [
        ("random", 0),
        ("dpp", 0),
        ("random", 1),
        ("dpp", 1),
    ]
    names = [each.point.name for each in study.runs]
    assert made == [(what, name) for name in names for what in ("train", "knn", "linear_ridge")]
    made.clear()
    (tmp_path / "runs" / names[1] / "eval_knn_images.npy").unlink()
    run(study_of(), tmp_path / "runs")
    assert made == [("knn", names[1])]
    made.clear()
    longer = run(study_of(seeds=(0, 1, 2), block={"strategy": "block"}), tmp_path / "runs")
    new = [each.point.name for each in longer.runs if each.seed == 2 or each.masker == "block"]
    assert trained(made) == new and len(new) == 5


def test_parts_that_are_merged_are_one_run(tmp_path, made, capsys):
    whole, halves, merged = (tmp_path / name for name in ("whole", "halves", "merged"))
    run(study_of(), tmp_path / "a", How(results=whole))
    once = sorted(made)
    made.clear()
    run(study_of(), tmp_path / "1", How(part=1, parts=2, results=halves))
    assert len(trained(made)) == 2
    run(study_of(), tmp_path / "2", How(part=2, parts=2))
    assert sorted(made) == once
    assert contents(halves) != contents(whole)

    study = studies.read(study_of())
    target = tmp_path / "together"
    for part in ("1", "2"):
        taken = finished.merge(study, tmp_path / part, compare.look(study, target, merged))
        assert taken == 2
    made.clear()
    run(study_of(), target, How(results=merged))
    assert not made
    assert contents(merged) == contents(whole)
    assert not list(target.glob("*/config.json")), "results, no runs"


def test_parts_on_two_machines_add_to_the_same_results(tmp_path, made, monkeypatch):
    """The second begins before the first has kept anything."""
    config, results = study_of(), tmp_path / "results"
    study = studies.read(config)
    second = compare.look(study, tmp_path / "2", results)
    run(config, tmp_path / "1", How(part=1, parts=2, results=results))
    for planned in How(part=2, parts=2).mine(study):
        compare.run_one(study, planned, second, "")
    published.keep(study, second, results)
    run(config, tmp_path / "whole", How(results=tmp_path / "of_whole"))
    assert contents(results) == contents(tmp_path / "of_whole")


def test_results_alone_finish_runs_of_their_study_and_of_others(tmp_path, made):
    results = tmp_path / "results"
    run(study_of(), tmp_path / "runs", How(results=results))
    before = contents(results)
    shutil.rmtree(tmp_path / "runs")
    made.clear()
    run(study_of(), tmp_path / "runs", How(results=results))
    assert not made and contents(results) == before

    other = study_of("other", seeds=(1,), chance={"strategy": "block"})
    study = run(other, tmp_path / "elsewhere", How(results=results))
    (new,) = [each.point.name for each in study.runs if each.masker == "chance"]
    assert trained(made) == [new]
    after = published.read(results)
    assert [*after.about] == ["other", "small"]
    values = {each[:4]: each.value for each in after.outcomes["small"]}
    shared = [each for each in after.outcomes["other"] if each.masker != "chance"]
    assert len(shared) == 4
    for each in shared:
        assert each.value == values[each[:4]]
    assert contents(results)[published.STUDIES]["small"] == before[published.STUDIES]["small"]


def test_studies_in_one_workdir_share_runs_under_other_names(tmp_path, made):
    run(study_of(), tmp_path)
    made.clear()
    other = study_of("other")
    other.maskers = {"random": {"strategy": "random"}, "mine": {"strategy": "dpp", "tau": 0.8}}
    run(other, tmp_path)
    assert not made


def test_a_run_that_lacks_an_evaluation_in_the_results_is_run_for_it(tmp_path, made):
    results = tmp_path / "results"
    less = study_of()
    del less.evaluations.ridge
    run(less, tmp_path / "runs", How(results=results))
    made.clear()
    study = run(study_of(), tmp_path / "runs", How(results=results))
    assert made == [("linear_ridge", each.point.name) for each in study.runs]


def test_results_that_a_study_does_not_ask_for_any_more_stay(tmp_path, made):
    results = tmp_path / "results"
    config = study_of(block={"strategy": "block"})
    run(config, tmp_path / "runs", How(results=results))
    before = published.read(results)
    shutil.rmtree(tmp_path / "runs")
    less = study_of(seeds=(0,))
    del less.evaluations.ridge
    made.clear()
    run(less, tmp_path / "runs", How(results=results))
    after = published.read(results)

    def values(there):
        return {each[:4]: each.value for each in there.outcomes["small"]}

    assert not made and values(after) == values(before) and len(values(after)) == 3 * 2 * 2
    assert after.about["small"]["seeds"] == [0, 1]
    assert set(writing.write(tmp_path / "page.md", after)) == {
        tmp_path / "page.md",
        tmp_path / "page_small.png",
    }
    run(config, tmp_path / "runs", How(results=results))
    assert not made and values(published.read(results)) == values(before)
    changed = study_of(block={"strategy": "block"})
    run(less, tmp_path / "runs", How(results=results))
    changed.evaluations.ridge = tiny.evaluation("task=linear", solver="ridge", ridge=(0.1,))
    with pytest.raises(InputError, match="another version"):
        run(changed, tmp_path / "runs", How(results=results))


def test_a_row_that_was_not_written_any_more_is_found_out_anew(tmp_path, made):
    """A process can be killed between the three files."""
    results = tmp_path / "results"
    run(study_of(), tmp_path / "runs", How(results=results))
    before = contents(results)
    lines = (results / published.VALUES).read_text().splitlines(keepends=True)
    (results / published.VALUES).write_text("".join(lines[:-1]))
    made.clear()
    run(study_of(), tmp_path / "runs", How(results=results))
    assert not made and contents(results) == before, "from the folder"
    longer = [*lines, lines[-1].replace(",1,", ",2,"), lines[-1].replace("small", "other")]
    (results / published.VALUES).write_text("".join(longer))
    assert {each.seed for each in published.read(results).outcomes["small"]} == {0, 1}
    (results / published.STUDIES).write_text("{}\n")
    run(study_of(), tmp_path / "runs", How(results=results))
    assert not made and contents(results) == before
    (results / published.VALUES).write_text("".join(lines[:-1]))
    shutil.rmtree(tmp_path / "runs")
    study = run(study_of(), tmp_path / "runs", How(results=results))
    assert trained(made) == [study.runs[-1].point.name] and contents(results) == before


def test_a_score_that_is_not_finite_is_none(tmp_path, made):
    study = run(study_of(seeds=(0,)), tmp_path)
    path = tmp_path / study.runs[0].point.name / "eval_knn.json"
    record = json.loads(path.read_text())
    record["score"]["value"] = None
    path.write_text(json.dumps(record))
    made.clear()
    run(study_of(seeds=(0,)), tmp_path, How(results=tmp_path / "results"))
    assert not made
    there = published.read(tmp_path / "results")
    assert [(each.masker, each.evaluation) for each in there.outcomes["small"]] == [
        ("random", "ridge"),
        ("dpp", "knn"),
        ("dpp", "ridge"),
    ]


def test_the_order_of_the_rows_does_not_matter_to_the_page(tmp_path, made):
    results = tmp_path / "results"
    run(study_of(seeds=(0, 1, 2)), tmp_path / "runs", How(results=results))

    def page(name):
        written = writing.write(tmp_path / name / "page.md", published.read(results))
        return {path.name: path.read_bytes() for path in written}

    first = page("first")
    assert set(first) == {"page.md", "page_small.png"}
    for name in (published.VALUES, published.IMAGES):
        heading, *rows = (results / name).read_text().splitlines(keepends=True)
        random.Random(0).shuffle(rows)
        (results / name).write_text(heading + "".join(rows))
    assert page("again") == first


def test_other_images_are_noticed(tmp_path, made):
    results = tmp_path / "results"
    run(study_of(seeds=(0,)), tmp_path / "runs", How(results=results))
    before = contents(results)
    made.clear()
    other = study_of(seeds=(0, 1), images="shapes:size=16,train=88,val=24")
    for folder in ("runs", "elsewhere"):
        with pytest.raises(InputError, match=r"evaluations.knn: the images are not those"):
            run(other, tmp_path / folder, How(results=results))
    assert not made and contents(results) == before


def test_a_study_that_changed_is_refused_where_it_is_kept(tmp_path, made):
    results = tmp_path / "results"
    run(study_of(), tmp_path / "runs", How(results=results))
    before = contents(results)
    made.clear()
    changed = study_of()
    changed.methods.mae.epochs = 2.0
    changed.maskers.dpp.tau = 0.7
    for folder, kept in ((tmp_path / "runs", None), (tmp_path / "new", results)):
        with pytest.raises(InputError) as error:
            run(changed, folder, How(results=kept))
        for words in ("another version of study small", "epochs: ", "maskers.dpp.tau: 0.8 -> 0.7"):
            assert words in str(error.value)
    assert not made and contents(results) == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", [InputError, loop.TrainingDiverged])
def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path, made, monkeypatch, capsys, kind):
    train = pretrain.train

    def failing(config, folder):
        if config.mask.strategy == "dpp" and config.seed == 0:
            raise kind("it cannot be")
        train(config, folder)

    monkeypatch.setattr(pretrain, "train", failing)
    with pytest.raises(Stopped) as stopped:
        run(study_of(), tmp_path / "runs", How(results=tmp_path / "results"))
    study = studies.read(study_of())
    name = study.runs[1].point.name
    assert stopped.value.status == 1 and str(stopped.value) == f"1 run of 4 failed: {name}"
    assert f"failed: {name}: it cannot be" in capsys.readouterr().out
    assert trained(made) == [each.point.name for each in study.runs if each.point.name != name]
    there = published.read(tmp_path / "results")
    assert {each[1:3] for each in there.outcomes["small"]} == {
        ("random", 0),
        ("random", 1),
        ("dpp", 1),
    }


def test_the_study_in_the_documentation_is_one(tmp_path):
    text = (tiny.ROOT / "docs" / "comparing.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(code, names)
    study = studies.read(names["get_config"]())
    assert len(study.runs) == 3 * 3 * 2 and study.base == "random" and not study.left_out
    assert study.methods == {"mae": "MAE", "simmim": "SimMIM"}


def test_merged_runs_of_different_images_are_refused(tmp_path, made):
    run(study_of(), tmp_path / "one", How(part=1, parts=2))
    other = study_of(images="shapes:size=16,train=96,val=48")
    run(other, tmp_path / "other", How(part=2, parts=2))
    study = studies.read(study_of())
    where = compare.look(study, tmp_path / "one", None)
    assert finished.merge(study, tmp_path / "other", where) == 2
    assert finished.merge(study, tmp_path / "other", where) == 0, "all is there"
    with pytest.raises(InputError, match="finished runs saw different images"):
        run(study_of(), tmp_path / "one")


def test_what_is_there_is_not_merged_again(tmp_path, made):
    study = run(study_of(seeds=(0,)), tmp_path / "one")
    run(study_of(seeds=(0,)), tmp_path / "other")
    name = study.runs[0].point.name
    (tmp_path / "one" / name / "eval_knn.json").unlink()
    mine = tmp_path / "one" / name / "eval_linear_ridge.json"
    mine.write_text(mine.read_text() + " ")
    kept = mine.read_text()
    where = compare.look(study, tmp_path / "one", None)
    assert finished.merge(study, tmp_path / "other", where) == 1
    assert finished.is_finished(study, study.runs[0], where) and mine.read_text() == kept


def test_damaged_outcomes_of_images_are_found_anew(tmp_path, made):
    study = run(study_of(seeds=(0,)), tmp_path)
    name = study.runs[0].point.name
    (tmp_path / name / "eval_knn_images.npy").write_bytes(b"no array")
    made.clear()
    run(study_of(seeds=(0,)), tmp_path)
    assert made == [("knn", name)]


def test_a_page_without_a_run_of_the_base(tmp_path, made):
    """A part can have none, or the run of the base may have failed."""
    run(study_of(seeds=(0,)), tmp_path / "runs", How(part=2, parts=2, results=tmp_path))
    there = published.read(tmp_path)
    assert {each.masker for each in there.outcomes["small"]} == {"dpp"}
    assert writing.write(tmp_path / "page.md", there) == [tmp_path / "page.md"]


def test_rows_that_are_there_twice_or_do_not_fit_their_images_are_damaged(tmp_path, made):
    run(study_of(), tmp_path / "runs", How(results=tmp_path))
    values = tmp_path / published.VALUES
    lines = values.read_text().splitlines(keepends=True)
    key = lines[-1].rpartition(",")[0]
    for last, words in (
        (lines[-1] * 2, "is there twice"),
        (f"{key},nan\n", "no number to compare"),
        (f"{key},2.5\n", "the mean of its images"),
    ):
        values.write_text("".join(lines[:-1]) + last)
        with pytest.raises(InputError, match=f"damaged results.*{words}"):
            published.read(tmp_path)


def test_measures_of_masks_stand_beside_each_method(tmp_path, made):
    """Their task says which they are, not their name; other methods hide otherwise."""
    study = study_of()
    study.methods.half = tiny.config(mask__ratio=0.5)
    study.evaluations.objects = tiny.evaluation("task=hidden")
    run(study, tmp_path / "runs", How(results=tmp_path))
    there = published.read(tmp_path)
    (text,) = [path.read_text() for path in writing.write(tmp_path / "page.md", there)[:1]]
    for method in ("mae", "half"):
        values = [
            each.value
            for each in there.outcomes["small"]
            if each[:2] == (method, "random") and each.evaluation == "objects"
        ]
        assert len(values) == 2 and f"| random | {50 * sum(values):.1f} |" in text
    assert "objects" not in text and "hidden, %" not in text


def test_another_file_of_parts_is_another_run(tmp_path):
    def names(seed):
        maps = np.random.default_rng(seed).integers(0, 3, (96, 4, 4), dtype=np.uint8)
        np.save(tmp_path / "parts.npy", maps)
        study = study_of(parts={"strategy": "parts"})
        study.parts = str(tmp_path / "parts.npy")
        return {run.masker: run.point.name for run in studies.read(study).runs}

    one, other = names(0), names(1)
    assert one["random"] == other["random"] and one["parts"] != other["parts"]
