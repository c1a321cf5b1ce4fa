"""Commands that start as copies of a process that has imported everything.

Importing is most of what a short command does. The process is multiprocessing's fork server; a
command has its own environment, output and signals. What is left to `atexit` is not done at its
end. Python itself starts, as for users, in the tests of the wheel and the notebooks.
"""

import functools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
import uuid
from multiprocessing import forkserver

import jax
import pytest

CACHE = "JAX_COMPILATION_CACHE_DIR"
_CONTEXT = multiprocessing.get_context("forkserver")


@functools.cache
def _outputs():
    """A folder; commands, which import this too, make none."""
    return tempfile.TemporaryDirectory(prefix="dppmask_jax_outputs")


def _status_of(words):
    """Runs `python WORDS` as this process; the exit status."""
    try:
        if words[0] == "-m":
            sys.argv[:] = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv[:] = words
            sys.path[0] = os.path.dirname(os.path.abspath(words[0]))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _become(words, folder, environment, outputs):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may be what began the tests
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, name in enumerate(outputs, start=1):
        os.dup2(os.open(name, os.O_CREAT | os.O_APPEND | os.O_WRONLY), number)
    jax.config.update("jax_compilation_cache_dir", environment.get(CACHE))
    sys.path.insert(0, folder)
    if "PYTHONPATH" in environment:
        sys.path[1:1] = environment["PYTHONPATH"].split(os.pathsep)
    sys.exit(_status_of(words))


def _read_once(environment):
    """What JAX reads when it is imported: all commands of one server have the same."""
    names = {name for name in environment if name.startswith("JAX_")} - {CACHE}
    return {name: environment[name] for name in names}


_started_with = {}


def _ensure_server(environment):
    """Starts the server, once, with what JAX reads of an environment when it is imported."""
    if not _started_with:
        _started_with.update(_read_once(environment))
        here = os.path.dirname(os.path.abspath(__file__))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in _started_with.items():
                patch.setenv(name, value)
            # A module that the server does not find is left out without a word.
            patch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(here), here]))
            _CONTEXT.set_forkserver_preload(["imported"])
            forkserver.ensure_running()
    assert _read_once(environment) == _started_with, "JAX would not see what the command is given"


class Process:
    """What a test needs of subprocess.Popen.

    Args:
      arguments: as of subprocess.Popen; the first is sys.executable.
      folder: where the command runs.
      output: the file for stdout and stderr alike; None: `communicate` returns them.
    """

    def __init__(self, arguments, folder, environment, output=None):
        assert arguments[0] == sys.executable, arguments
        _ensure_server(environment)
        stem = os.path.join(_outputs().name, uuid.uuid4().hex)
        self._outputs = [str(output)] * 2 if output else [f"{stem}.out", f"{stem}.err"]
        words = [str(word) for word in arguments[1:]]
        self._process = _CONTEXT.Process(
            target=_become, args=(words, str(folder), environment, self._outputs)
        )
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self._process.kill()

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self.returncode

    def communicate(self, timeout=None):
        """(stdout, stderr) once the command has ended; killed where that takes too long."""
        try:
            self.wait(timeout)
        finally:
            if self.poll() is None:
                self.kill()
        texts = []
        for name in self._outputs:
            with open(name) as file:
                texts.append(file.read())
        return tuple(texts)
