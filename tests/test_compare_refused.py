"""Bad input of a comparison: one line, status 2, and nothing is written or lost."""

import json
import os
import sys

import pytest
import tiny

from dppmask_jax.comparing import published

STUDY = """
import tiny
from dppmask_jax.comparing import study as studies

def get_config(change=""):
    study = studies.defaults("small")
    study.seeds = (0, 1)
    study.source = "shapes:size=16,train=96,val=24"
    study.maskers.random = {"strategy": "random"}
    study.maskers.dpp = {"strategy": "dpp", "tau": 0.8}
    study.methods.mae = tiny.config(model__depth=2)
    study.evaluations.knn = tiny.evaluation("task=knn")
    exec(change)
    return study
"""
HEADING = "study,method,masker,seed,evaluation"
ABOUT = {
    "title": "",
    "about": "",
    "base": "random",
    "seeds": [0],
    "labels": {"random": "random"},
    "methods": {"mae": "MAE"},
    "scores": {},
    "runs": [],
    "definition": {"methods": {}, "maskers": {"dpp": {"tau": 0.5}}, "evaluations": {}},
}


@pytest.fixture
def folder(tmp_path):
    """A folder with a study, and with results that are those of another version, or damaged."""
    (tmp_path / "small.py").write_text(STUDY)
    other = json.dumps({"small": ABOUT})
    for name, changed in {
        "other": {},
        "values": {published.VALUES: "study,method,masker\n1,2,3\n"},
        "number": {
            published.VALUES: f"{HEADING},value\nsmall,mae,random,0,knn,x\n",
        },
        "images": {
            published.IMAGES: f"{HEADING},images,right\nsmall,mae,random,0,knn,24,?\n",
        },
        "json": {published.STUDIES: other[:-20]},
        "field": {published.STUDIES: json.dumps({"other": ABOUT | {"runs": [{"name": "a"}]}})},
        "list": {published.STUDIES: "[]"},
        "gone": {published.VALUES: None},
    }.items():
        files = {
            published.STUDIES: other,
            published.VALUES: f"{HEADING},value\n",
            published.IMAGES: f"{HEADING},images,right\n",
        } | changed
        (tmp_path / name / published.STUDIES).parent.mkdir(parents=True)
        for file, text in files.items():
            if text is not None:
                (tmp_path / name / file).write_text(text)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "study_small.json").write_text(json.dumps(ABOUT["definition"]))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "study_small.json").write_text("{")
    return tmp_path


def there(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.slow
def test_bad_input_is_one_line_and_nothing_is_written_or_lost(folder):
    before = there(folder)
    new = f"--workdir={folder / 'new'}"

    def study(change="", *words):
        """With a workdir and flags, or a change of the study alone."""
        file = f"--study={folder / 'small.py'}" + (f":{change}" if change else "")
        return [file, *(words or (new,))]

    def results(name):
        return study("", new, f"--results={folder / name}")

    unknown = "study.maskers.odd = {'strategy': 'dpq'}"
    cases = {
        "nothing": ([], "--study is missing"),
        "no workdir": (study()[:1], "--workdir is missing"),
        "extra word": (study("", new, "more"), "'more'"),
        "no study": (["--study=configs/mae.py:dataset=shapes", new], "--study is no study"),
        "masker": (study(unknown), "study.maskers.odd.strategy='dpq' is not known: dpp | exact"),
        "no masker": (study("study.maskers.odd = 3"), "study.maskers.odd=3 is not allowed"),
        "name": (study("study.maskers['a/b'] = study.maskers.dpp"), "study.maskers has 'a/b'"),
        "twice": (
            study("study.maskers.same = {'strategy': 'dpp', 'tau': 0.8}"),
            "study.maskers.same would be the run of study.methods.mae with study.maskers.dpp",
        ),
        "setting": (
            study("study.maskers.dpp = {'strategy': 'dpp', 'tua': 1.0}"),
            "config.mask.tua",
        ),
        "value": (study("study.maskers.dpp.tau = -1.0"), "config.mask.tau=-1.0 is not allowed"),
        "seeds": (study("", new, "--study.seeds=(0,1,0)"), "study.seeds=(0, 1, 0)"),
        "field": (study("study.sedes = (1,)"), "unknown field study.sedes"),
        "base": (study("study.base = 'none'"), "study.base=none is none of study.maskers"),
        "no methods": (study("del study.methods.mae"), "study.methods is empty"),
        "method without masks": (
            study("del study.methods.mae.mask"),
            "this method draws no masks",
        ),
        "objects": (study("study.of_objects = ('knm',)"), "study.of_objects names knm"),
        "part": (study("", new, "--part=3/2"), "--part=3/2 is no part"),
        "part of none": (study("", new, "--part=one"), "--part=one is no part"),
        "jobs": (study("", new, "--jobs=4096"), "--jobs=4096 is more than"),
        "run": (study("", new, "--run=none"), "--run=none is none of study small"),
        "merge": (study("", new, f"--merge={folder / 'other'}"), "holds nothing of study small"),
        "page": (["--page=page.md"], "--page is made from --results"),
        "page of nothing": (
            [f"--page={folder / 'page.md'}", f"--results={folder / 'none'}"],
            "holds no results",
        ),
        "version": (
            study("", f"--workdir={folder / 'runs'}"),
            "another version of study small (maskers.dpp.",
        ),
        "torn": (study("", f"--workdir={folder / 'torn'}"), "study_small.json is damaged"),
        "other results": (results("other"), "another version of study small"),
        "data": (study("", new, "--study.source=folder:/nowhere"), "/nowhere"),
    } | {
        name: (results(name), "holds damaged results of comparisons")
        for name in ("values", "number", "images", "json", "field", "list", "gone")
    }
    command = [sys.executable, "-m", "dppmask_jax.compare"]
    tiny.assert_refused(
        {name: ([*command, *words], say) for name, (words, say) in cases.items()},
        PYTHONPATH=os.pathsep.join([str(tiny.ROOT), str(tiny.ROOT / "tests")]),
    )
    assert there(folder) == before and not (folder / "new").exists()
