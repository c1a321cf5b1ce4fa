"""The flags of an evaluation."""

from __future__ import annotations

import shlex

from absl import flags

from dppmask_jax import command, paths
from dppmask_jax.errors import InputError

USUAL = "python eval.py"
ABOUT = """\
Evaluates runs: dppmask eval --config=eval:task=knn --checkpoint=runs/first

--config names the recipe `eval` with a task, or a Python file of your own; any field is set with
--config.FIELD=VALUE, and --show_config lists them. The result is a table, and
WORKDIR/eval_TASK.json."""


def main() -> None:
    """Evaluates as the command line says."""
    config = command.define_config_flag("config", "eval:task=TASK, or FILE:task=TASK.")
    checkpoint = flags.DEFINE_string(
        "checkpoint",
        "",
        "Workdir of a run, or eval_finetune/seed-N of a fine-tuning; several with commas between "
        "(a comma in the name of a folder that exists separates nothing).",
    )
    workdir = flags.DEFINE_string(
        "workdir",
        "",
        "Where the result goes; default: the checkpoint's, of several with task inside the "
        "first's.",
    )
    show = command.define_show_flag()
    masker = flags.DEFINE_string(
        "masker", "", "The config file that defines masks of your own, for task=reconstruct."
    )
    processes = command.define_process_flags()

    def run(_):
        if config.value is None:
            raise InputError(command.missing_config("config", "eval:task=knn"))
        if show.value:
            from dppmask_jax import config_table
            from dppmask_jax.tasks import checks

            return config_table.show(config.value, checks.fields_for(config.value))
        checkpoints = paths.split(checkpoint.value)
        if not checkpoints:
            raise InputError(
                "--checkpoint is missing: name the workdir of a run, such as runs/mine"
            )
        _evaluate(config.value, checkpoints, workdir.value, masker.value, processes())

    command.run(run, USUAL, ABOUT)


def _evaluate(config, checkpoints: list[str], workdir: str, masker: str, processes) -> None:
    from dppmask_jax import evaluate, joining
    from dppmask_jax.masking import own

    joining.initialize(*processes)
    if masker:
        own.load(masker)
    command_line = shlex.join(command.words(USUAL))
    if len(checkpoints) > 1:
        evaluate.evaluate_all(config, checkpoints, workdir, command_line)
    else:
        evaluate.evaluate(config, checkpoints[0], workdir, command_line)
