"""Commands of sweeps that documents and recipes show are ones that would start."""

import importlib
import re
import shlex
import sys

import pytest
import tiny
from absl import flags

from dppmask_jax import command as command_line
from dppmask_jax import sweep
from dppmask_jax.sweeps.grid import grid_points

RECIPES = [f"configs.{path.stem}" for path in sorted((tiny.ROOT / "configs").glob("*.py"))]
PAGES = {
    **{name: importlib.import_module(name).__doc__ or "" for name in RECIPES},
    "dppmask_jax.sweep": sweep.__doc__,
    **{path.name: path.read_text() for path in sorted((tiny.ROOT / "docs").glob("*.md"))},
}
# A line, with those that a backslash joins to it; or what stands between backquotes.
COMMAND = re.compile(r"(?:python -m dppmask_jax\.|dppmask )sweep (--config(?:\\\n|[^\n`])*)")
COMMANDS = [(page, found) for page, text in PAGES.items() for found in COMMAND.findall(text)]


def test_commands_are_found():
    assert {page for page, _ in COMMANDS} >= {
        "configs.hybrid", "contrastive.md", "dppmask_jax.sweep", "results.md",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
@pytest.mark.parametrize("command", dict.fromkeys(found for _, found in COMMANDS))
def test_a_sweep_that_is_shown_would_start(command, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    words = ["sweep", *shlex.split(command.replace("\\\n", " "))]
    monkeypatch.setattr(sys, "argv", words)  # where overrides are looked for
    given = flags.FlagValues()
    evals = ("eval", *sweep._MORE)
    for name in ("config", *evals):
        command_line.define_config_flag(name, "", flag_values=given)
    for name in ("grid", "workdir"):
        flags.DEFINE_string(name, None, "", flag_values=given)
    given(words)
    assert given.eval and given.workdir
    points = grid_points(given.config, given.grid)
    sweep._check_configs(points, [given[name].value for name in evals if given[name].value])
