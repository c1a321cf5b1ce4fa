"""Evaluate: python eval.py --config=configs/eval.py:task=knn --checkpoint=runs/mine"""

import shlex
import sys

from dppmask_jax import extras

if __name__ == "__main__":  # before what is missing is imported
    extras.require()

from absl import flags
from ml_collections import config_flags

from dppmask_jax import command, paths
from dppmask_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE:task=TASK", lock_config=True)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    "",
    "Workdir of a run, or eval_finetune/seed-N of a fine-tuning; several with commas between "
    "(a comma in the name of a folder that exists separates nothing).",
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    "",
    "Where the result goes; default: the checkpoint's, of several with task inside the first's.",
)
_SHOW = flags.DEFINE_boolean(
    "show_config", False, "Print every field of the config: value, default, meaning; nothing else."
)
_MASKER = flags.DEFINE_string(
    "masker", "", "The config file that defines masks of your own, for task=reconstruct."
)
_PROCESSES = command.define_process_flags()


def main(argv):
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}; flags start with --")
    if _CONFIG.value is None:
        raise InputError(
            "--config is missing: name a config file, such as configs/eval.py:task=knn"
        )
    if _SHOW.value:
        from dppmask_jax import config_table
        from dppmask_jax.tasks import checks

        return config_table.show(_CONFIG.value, checks.fields_for(_CONFIG.value))
    checkpoints = paths.split(_CHECKPOINT.value)
    if not checkpoints:
        raise InputError("--checkpoint is missing: name the workdir of a run, such as runs/mine")

    from dppmask_jax import evaluate, parallel
    from dppmask_jax.masking import own

    parallel.initialize(*_PROCESSES())
    if _MASKER.value:
        own.load(_MASKER.value)
    command_line = shlex.join(sys.argv)
    if len(checkpoints) > 1:
        evaluate.evaluate_all(_CONFIG.value, checkpoints, _WORKDIR.value, command_line)
    else:
        evaluate.evaluate(_CONFIG.value, checkpoints[0], _WORKDIR.value, command_line)


if __name__ == "__main__":
    command.run(main)
