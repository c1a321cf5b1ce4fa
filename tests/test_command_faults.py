"""Wrong command lines, and config files that cannot be read or run."""

import importlib.metadata
import os
import re
import socket
import subprocess
import sys

import jax
import pytest
import tiny
from absl import flags

from dppmask_jax import cli, command, config_faults, extras, joining, paths
from dppmask_jax.errors import InputError

# ml_collections reads config files so.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
CONFIG_FILES = {
    "syntax.py": ("def get_config(:", "invalid syntax (syntax.py, line 1)"),
    "raises.py": ("def get_config(argument=''):\n    return 1 / 0", "line 2: ZeroDivisionError"),
    "own_words.py": ("def get_config(a=''):\n    raise ValueError('use\\nx=1')", "error: use x=1"),
    "imports.py": ("import no_such_module", "line 1: ModuleNotFoundError"),
    "empty.py": ("", "defines no function get_config"),
    "number.py": ("def get_config(argument=''):\n    return 5", "the config is 5"),
    "nothing.py": ("def get_config(argument=''):\n    pass", "--config is missing"),
    "latin.py": ("x = '\xe9'\n", "(latin.py, line 1)"),
    "exits.py": ("import sys\nsys.exit()", "the config file calls sys.exit"),
}
MAE = """from configs import mae
def get_config(a=''):
    c = mae.get_config('dataset=shapes')
    """
FAULTS_OF_USERS = {  # of get_config: the end of what is said
    "c.epochs = 'ten'": "line 4: TypeError: Could not override field 'epochs'",
    "return 'a' + 1": "line 4: TypeError: can only concatenate str",
    "return int('ten')": "line 4: ValueError: invalid literal for int() with base 10: 'ten'",
    "c.nosuch.field = 1": "line 4: AttributeError: nosuch",
    "c.lock().new = 1": 'line 4: AttributeError: Key "new" does not exist and cannot be added',
    "open('/no/such')": "line 4: FileNotFoundError: [Errno 2]",
    "raise ValueError('say x=1')": "say x=1",
    "try: 1 / 0\n    except ArithmeticError: raise RuntimeError('why')": "RuntimeError: why",
}
FIELDS = {
    "--config.nosuch.field=1": "unknown config field 'nosuch.field'; known: batch_size, epochs,",
    "--config.dta.source=x": "did you mean data.source?",
    "--config.modle.size=S\n": "did you mean model.size?",
    "--config.modle.size=S\\n": "did you mean model.size?",
    "--config.modle.sz=S": "did you mean model.size?",
    "--config.modle=S": "did you mean one of model.decoder_depth, model.decoder_heads,",
    "--config.tau=1": "did you mean mask.tau?",
    "--config.mask.tau.x=1": "config.mask.tau is no group of fields; set it with --config.mask.tau",
    "--noconfig.flip": "did you mean data.flip?",
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
    "--config.nosuch.field=1": "unknown config field 'nosuch.field'",
    "--config.model.patch_size=7": "config.image_size, config.model.patch_size",
    "--config.data.source=folder:a\nb": "config.data.source='folder:a\\nb' is not allowed",
    "--config.data.source=shapes:size=0": "shapes",
    "--config.init_from=/no/such": "no checkpoint in /no/such",
    "--config=configs/mae.py:mask=foo": "mask=foo: it takes dpp | random | block",
    "--config=configs/mae.py:mask": "unknown config argument 'mask'",
    "--config=": "--config is empty: name a recipe (adios, dino,",
    "--config=configs": "--config=configs is a folder: name a file in it, or a recipe (adios,",
    "--config=mea:mask=dpp": "there is no recipe 'mea'; did you mean mae?",
    "--no_such_flag": "no_such_flag",
    "--profile=abc": "--profile=abc",
    "--workdir=": "--workdir is missing",
    "--workdir=README.md": "README.md is a file",
    "--workdir=README.md/x": "README.md is a file",
}


def said(*words):
    """What is said of the flags of a command, parsed as it parses them; "" where they are right."""
    argv = config_faults.files_first(["train.py", *words])
    values = flags.FlagValues()
    for name in ("config", "eval"):
        command.define_config_flag(name, "", flag_values=values, sys_argv=argv)
    try:
        values(argv)
        [value.items() for value in values.flag_values_dict().values() if hasattr(value, "items")]
    except Exception as error:
        return config_faults.what_is_wrong(error, argv)
    return ""


@pytest.mark.parametrize("body", FAULTS_OF_USERS)
def test_a_fault_in_a_config_file_is_named_with_file_and_line(body, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MAE + body)
    words = FAULTS_OF_USERS[body]
    answer = said(f"--config={path}")
    assert words in answer and len(answer) < 400
    assert answer == words or answer.startswith(f"{path}, line ")


def test_a_config_file_whose_get_config_takes_no_argument(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config(): return {}")
    assert "takes no argument; leave out" in said(f"--config={tmp_path / 'mine.py'}:x=1")


@pytest.mark.parametrize("flag", FIELDS)
def test_an_unknown_field_or_group_is_answered_with_what_is_near(flag):
    answer = said("--config=configs/mae.py:dataset=shapes", "--config.epochs=2.0", flag)
    assert FIELDS[flag] in answer
    assert FIELDS[flag] in said("--config", "configs/mae.py:dataset=shapes", flag)


def test_a_task_says_which_fields_it_has():
    answer = said("--config=configs/eval.py:task=reconstruct", "--config.data.source=shapes")
    assert answer.startswith("unknown config field 'data.source'; known: ") and "images" in answer


def test_files_of_configs_may_stand_after_their_fields():
    words = ["c.py", "--config.a=1", "word", "--eval.b=2", "--config", "x.py", "--eval=y.py", "--",
             "--config=z.py"]  # fmt: skip
    assert config_faults.files_first(words) == [
        "c.py", "--config", "x.py", "--eval=y.py", "--config.a=1", "word", "--eval.b=2", "--",
        "--config=z.py",
    ]  # fmt: skip
    assert not said("--config.epochs=2.0", "--config=configs/mae.py")
    assert (
        said("--config.epochs=2.0") == "--config.epochs needs --config=FILE, whose field it changes"
    )


@pytest.mark.parametrize(
    "flags,words",
    [
        (("localhost", 2, 0), "is not HOST:PORT"),
        (("localhost:", 2, 0), "is not HOST:PORT"),
        (("localhost:99999", 2, 0), "is not HOST:PORT"),
        ((":1234", 2, 0), "is not HOST:PORT"),
        (("localhost:1234", 2, 2), "--process_id=2 is not below --num_processes=2"),
        (("localhost:1234", None, 1), "belong together"),
        ((None, 2, 1), "belong together"),
        (("no such host:1234", 2, 1), "there is no host no such host"),
    ],
)
def test_a_wrong_coordinator_is_said_before_anything_connects(flags, words, monkeypatch):
    monkeypatch.setattr(joining, "_join", lambda *who: pytest.fail("connects"))
    with pytest.raises(InputError, match=re.escape(words)) as error:
        joining.initialize(*flags)
    assert "\n" not in str(error.value)


def test_process_0_needs_a_port_that_no_other_program_has(monkeypatch):
    joined = []
    monkeypatch.setattr(joining, "_join", lambda *who: joined.append(who))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=r"process 0 cannot listen on port \d+ \(Address"):
            joining.initialize(where, 2, 0)
        joining.initialize(where, 2, 1)
    joining.initialize(where, 2, 0)
    assert joined == [(where, 2, 1), (where, 2, 0)]


def test_commands_say_what_to_install(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n in ('absl', 'orbax') else find(n, *a)\n"
    )
    variables = os.environ | {"PYTHONPATH": str(tmp_path)}
    modules = ("cli data", "figures", "results", "sweep", "weights")
    for words in (
        ["train.py"], ["eval.py"], *[["-m", *f"dppmask_jax.{name}".split()] for name in modules],
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, *words], cwd=tiny.ROOT, env=variables, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (2, ""), words
        assert re.fullmatch(
            r"error: not installed for \S+: absl, orbax; pip install 'dppmask-jax\[train\]'.*\n",
            done.stderr,
        ), (words, done.stderr)


def test_what_the_commands_need_is_what_the_extra_installs():
    provided = importlib.metadata.packages_distributions()
    plain = lambda name: re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()  # noqa: E731
    ours = {plain(provided[module][0]) for module in extras.MODULES}
    wanted = {
        plain(line)
        for line in importlib.metadata.requires("dppmask-jax")
        if "extra" not in line or re.search(r"""extra == ["']train["']""", line)
    }
    assert ours == wanted


def test_paths_with_commas_between_and_within(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.jpg", "c.jpg", "d,e,f"):
        (tmp_path / name).touch()
    assert paths.split("a,b.jpg") == ["a,b.jpg"]
    assert paths.split("c.jpg,a,b.jpg,d,e,f") == ["c.jpg", "a,b.jpg", "d,e,f"]
    assert paths.split("no,such,c.jpg") == ["no", "such", "c.jpg"]
    assert paths.split("") == [] and paths.split("c.jpg,") == ["c.jpg"]


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


@pytest.mark.slow
def test_help_ends_with_status_0():
    modules = ("figures", "results", "sweep", "weights")
    commands = [["train.py"], ["eval.py"], *(["-m", f"dppmask_jax.{name}"] for name in modules)]
    commands = [*([*words, "--help"] for words in commands), ["train.py", "-h"]]
    named = [["-m", "dppmask_jax", name, "--help"] for name in cli.COMMANDS]
    for words in [*commands, *named]:
        done = tiny.run([sys.executable, *words])
        assert (done.returncode, done.stderr) == (0, "") and "--" in done.stdout, done
        if done.args[1:] in named:
            assert done.stdout.startswith(f"usage: dppmask {done.args[3]} "), done


def test_settings_of_jax_that_change_a_run_are_put_back_and_named(capsys):
    changed = {"jax_default_prng_impl": "rbg", "jax_threefry_partitionable": False}
    before = {name: getattr(jax.config, name) for name in changed}
    try:
        for name, value in changed.items():
            jax.config.update(name, value)
        joining.initialize(None, None, None)
        assert {name: getattr(jax.config, name) for name in changed} == before
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    said = capsys.readouterr().out
    assert "warning: jax_default_prng_impl=rbg would change the numbers" in said
    assert said.count("warning") == 2 and "x64" not in said
