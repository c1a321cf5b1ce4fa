"""A new evaluation is one file and one line: config check, run, figure and page take it."""

import json

import pytest
import templates
import tiny

from dppmask_jax import evaluate
from dppmask_jax.errors import InputError
from dppmask_jax.results.page import page
from dppmask_jax.results.records import load
from dppmask_jax.tasks import TASKS, checks

TEMPLATE = '''
"""How bright the images are that the encoder sees."""

from matplotlib.figure import Figure

from dppmask_jax.evals import base, sections
from dppmask_jax.evals.base import Result, Score, Task
from dppmask_jax.evals.sections import Section
from dppmask_jax.fields import Field, number


def run(evaluation):
    found, _ = base.frozen_features(evaluation, evaluation.val, ("pixels",), "validation")
    bright = float((found["pixels"] / 255).mean() ** evaluation.config.power)
    return Result(
        {"bright": bright},
        [("brightness",), (f"{bright:.2f}",)],
        f"brightness to the power of {evaluation.config.power:g}",
        Score("brightness", bright),
        row={"brightness": base.percent(bright)},
        figures={"brightness.png": Figure((1, 1))},
    )


TASK = Task(
    base.require_validation,
    run,
    fields=base.FIELDS | {"power": Field(1.0, number(0.5, 2), "of the brightness")},
    section=Section(
        "Brightness",
        {"bright": "brightness"},
        lambda record: [{"bright": sections.share(record["metrics"]["bright"])}],
        "Of pixels.",
    ),
)
'''


@pytest.fixture
def brightness(tmp_path, monkeypatch):
    module = templates.added(tmp_path, "brightness", TEMPLATE)
    monkeypatch.setitem(TASKS, "brightness", module.TASK)


def test_a_new_evaluation_is_checked_run_and_shown(tmp_path, brightness, capsys):
    config = checks.defaults("brightness")
    checks.check(config)
    config.power = 3.0
    with pytest.raises(InputError, match=r"config\.power=3\.0 is not allowed"):
        checks.check(config)
    config.power = 2.0

    path = evaluate.evaluate(config, tiny.save_run(tmp_path / "run"), command="typed")
    record = json.loads(path.read_text())
    assert path.name == "eval_brightness.json" and record["config"]["power"] == 2.0
    drawn = tmp_path / "run" / "figures" / "brightness.png"
    assert drawn.is_file() and f"figure  {drawn}" in capsys.readouterr().out

    section = page([load(path)], False).split("\n## Brightness\n")[1]
    assert f"| {100 * record['metrics']['bright']:.2f} |" in section
    assert "Of pixels." in section and "brightness to the power of 2" in section
