"""Wrong command lines, and config files that cannot be read or run."""

import sys

import pytest
import tiny

CONFIG_FILES = {
    "syntax.py": ("def get_config(:", "invalid syntax (syntax.py, line 1)"),
    "raises.py": ("def get_config(argument=''):\n    return 1 / 0", "line 2: ZeroDivisionError"),
    "own_words.py": ("def get_config(a=''):\n    raise ValueError('use\\nx=1')", "error: use x=1"),
    "imports.py": ("import no_such_module", "line 1: ModuleNotFoundError"),
    "empty.py": ("", "defines no function get_config"),
    "number.py": ("def get_config(argument=''):\n    return 5", "the config is 5"),
    "nothing.py": ("def get_config(argument=''):\n    pass", "--config is missing"),
    "latin.py": ("x = '\xe9'\n", "(latin.py, line 1)"),
}
FLAGS = {
    "--config.mask.tau=abc": "config.mask.tau='abc' is not allowed: a number",
    "--config.mask=random": "config.mask is a group of fields",
    "--config.batch_size=1e3": "config.batch_size='1e3' is not allowed: a whole number",
    "--config.batch_size=" + "9" * 400: "config.batch_size=<a whole number of 1329 bits>",
    "--config.image_size=64": "config.image_size=(64,) is not allowed",
    "--config.image_size=(64,64": "config.image_size='(64,64' is not allowed: a list",
    "--config.data.flip=maybe": "config.data.flip='maybe' is not allowed: True or False",
    "--config.mask.tau_end=none": "config.mask.tau_end='none' is not allowed: a number",
    "--config.epochs=1e400": "config.epochs=inf is not allowed",
    "--config.epochs=nan": "config.epochs=nan is not allowed",
    "--config.seed=": "config.seed='' is not allowed: a whole number",
    "--config.seed": "--config.seed",
    "--config.mask.tau.x=1": "mask.tau.x",
    "--config.model.patch_size=7": "config.image_size, config.model.patch_size",
    "--config.data.source=folder:a\nb": "config.data.source='folder:a\\nb' is not allowed",
    "--config.data.source=shapes:size=0": "shapes",
    "--config.init_from=/no/such": "no checkpoint in /no/such",
    "--config=configs/mae.py:mask=foo": "mask=foo: it takes dpp | random | block",
    "--config=configs/mae.py:mask": "unknown config argument 'mask'",
    "--config=": "Path to config file is an empty string",
    "--config=configs": "Is a directory: 'configs'",
    "--no_such_flag": "no_such_flag",
    "--profile=abc": "--profile=abc",
    "--workdir=": "--workdir is missing",
    "--workdir=README.md": "README.md is a file",
    "--workdir=README.md/x": "README.md is a file",
}


@pytest.mark.slow
def test_wrong_command_lines_are_one_line_and_status_2(tmp_path):
    cases = dict(FLAGS)
    for name, (text, words) in CONFIG_FILES.items():
        (tmp_path / name).write_bytes(text.encode("latin1"))
        cases[f"--config={tmp_path / name}"] = words
    workdir = tmp_path / "run"
    usual = ["--config=configs/mae.py:dataset=shapes", f"--workdir={workdir}"]

    def command(flag):
        name = flag.split("=")[0]  # a flag given twice is another matter
        return [sys.executable, "train.py", *(w for w in usual if w.split("=")[0] != name), flag]

    tiny.assert_refused({flag: (command(flag), words) for flag, words in cases.items()})
    assert not workdir.exists()
