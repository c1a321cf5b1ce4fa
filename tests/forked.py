"""Commands that each run in a process of their own, forked from one that has imported everything.

python tests/forked.py FOLDER < COMMANDS

COMMANDS is a JSON list of argument lists, each what follows `python`. Of command i, stdout and
stderr go to FOLDER/i.out and FOLDER/i.err; the exit statuses are printed as a JSON list. Importing
takes a command that is refused most of its time.
"""

import json
import os
import runpy
import sys
import traceback
from pathlib import Path

from dppmask_jax import evaluate, pretrain  # noqa: F401
from dppmask_jax.weights import exporting, importing  # noqa: F401


def status_of(words):
    """Runs `python WORDS` as this process."""
    try:
        if words[0] == "-m":
            sys.argv[:] = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv[:] = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        return 0 if end.code is None else end.code
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def run(words, stem):
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    for number, suffix in ((1, "out"), (2, "err")):
        file = os.open(f"{stem}.{suffix}", os.O_CREAT | os.O_WRONLY)
        os.dup2(file, number)
    status = status_of(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main():
    commands, folder = json.load(sys.stdin), Path(sys.argv[1])
    sys.path[0] = os.getcwd()  # as of a script that lies there, and of -m
    print(json.dumps([run(words, folder / str(i)) for i, words in enumerate(commands)]))


if __name__ == "__main__":
    main()
