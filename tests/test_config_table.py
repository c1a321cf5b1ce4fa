"""The fields as users see them, and that each is read."""

import ast
import subprocess
import sys

import pytest
import tiny
from test_config_faults import KINDS

from dppmask_jax import config as pretraining
from dppmask_jax import config_table
from dppmask_jax.errors import InputError
from dppmask_jax.fields import Field, number
from dppmask_jax.masking import MASKERS, MaskerKind, own
from dppmask_jax.methods import METHODS
from dppmask_jax.methods.base import MethodKind
from dppmask_jax.targets import TARGETS, TargetKind


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_every_field_is_shown_and_what_differs_is_marked(kind):
    config = kind.changed({})
    fields = config_table.fields_of(config)
    lines = config_table.text(config, fields, 80).splitlines()
    assert max(map(len, lines)) <= 100, "values are not wrapped, all else is"
    of_name = {line[2:].partition(" = ")[0]: line for line in lines[2:] if " = " in line[:60]}
    assert set(kind.fields) == set(fields) == {name for name in of_name if name in fields}
    for name, field in fields.items():
        same = config_table._words(field.default) in of_name[name]
        differs = of_name[name].startswith("* ")
        assert same and differs == ("(default " in of_name[name])
    if kind.name == "mae":
        assert of_name["batch_size"] == "* batch_size = 64  (default 256)"
        assert of_name["mask.tau"] == "  mask.tau = 0.9"


@pytest.mark.slow  # of a config, without the commands, are those above
def test_both_commands_show_fields_and_start_nothing(tmp_path):
    commands = {
        "train.py": ("configs/ibot.py", "--config.data.source=folder:/no/such", "loss.patch_temp"),
        "eval.py": ("configs/eval.py:task=knn", "--config.k=(5,)", "(default (10, 20, 100, 200))"),
    }
    running = {
        script: subprocess.Popen(
            [sys.executable, tiny.ROOT / script, f"--config={config}", "--show_config", changed],
            cwd=tiny.ROOT, env=tiny.environment(1), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        for script, (config, changed, _) in commands.items()
    }  # fmt: skip
    for script, process in running.items():
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0 and not err, err
        assert commands[script][2] in out and "\n* " in out


def test_the_page_of_fields_is_current(monkeypatch):
    for name, kind in [*MASKERS.items()]:
        if own._file_of(kind):  # of another test
            monkeypatch.delitem(MASKERS, name)
    page = (tiny.ROOT / "docs" / "configuration.md").read_text()
    assert page == config_table.markdown(), "run `make docs`"


def test_kinds_that_a_config_file_adds_bring_their_fields(monkeypatch):
    share = Field(0.5, number(0, 1), "share")
    monkeypatch.setitem(MASKERS, "mine", MaskerKind(MASKERS["random"].build, {"mask.share": share}))
    monkeypatch.setitem(TARGETS, "mine", TargetKind(TARGETS["pixels"].build, {"loss.share": share}))
    config = tiny.config("mae", mask__strategy="mine", mask__share=0.25, loss__target="mine")
    pretraining.check(config)
    assert (config.mask.share, config.loss.share) == (0.25, 0.5)
    config.mask.share = 2.0
    with pytest.raises(InputError, match=r"config\.mask\.share=2\.0 is not allowed: a number"):
        pretraining.check(config)
    monkeypatch.delitem(MASKERS, "mine")
    with pytest.raises(InputError, match=r"unknown config field config\.mask\.share"):
        pretraining.check(config)


def test_a_method_without_masks_has_no_fields_of_masks(monkeypatch):
    fields = {name: f for name, f in METHODS["mae"].fields.items() if not name.startswith("mask.")}
    monkeypatch.setitem(METHODS, "plain", MethodKind(None, "Plain", fields, masks=False))
    config = pretraining.defaults("plain")
    assert "mask" not in config and "loss" not in config
    pretraining.check(config)


def test_every_field_is_read_somewhere():
    read = set()
    for path in (tiny.ROOT / "dppmask_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                read.add(node.attr)
            elif isinstance(node, (ast.Tuple, ast.Call)):  # names for `get`, `getattr`, `in`
                parts = node.elts if isinstance(node, ast.Tuple) else node.args
                read |= {part.value for part in parts if isinstance(part, ast.Constant)}
    dead = {name for kind in KINDS for name in kind.fields if name.rpartition(".")[2] not in read}
    assert not dead
