"""The flags of a pre-training."""

from __future__ import annotations

from absl import flags

from dppmask_jax import command
from dppmask_jax.errors import InputError

USUAL = "python train.py"
ABOUT = """\
Pre-trains a model: dppmask train --config=mae:dataset=shapes,mask=dpp --workdir=runs/first

--config names a recipe, or a Python file of your own, with arguments after a colon; any field is
set with --config.FIELD=VALUE, and --show_config lists them. The same command resumes a run."""


def main() -> None:
    """Trains as the command line says."""
    config = command.define_config_flag("config", "RECIPE[:key=value,...], or FILE[:...].")
    workdir = flags.DEFINE_string(
        "workdir", None, "Where the run is written; resumed if it exists."
    )
    profile = flags.DEFINE_integer(
        "profile", 0, "Trace this many steps into WORKDIR/profile.", lower_bound=0
    )
    allow_change = flags.DEFINE_boolean(
        "allow_change",
        False,
        "Go on in a workdir with another config; config.json keeps the history.",
    )
    show = command.define_show_flag()
    processes = command.define_process_flags()

    def run(_):
        if config.value is None:
            raise InputError(command.missing_config("config", "mae:dataset=shapes"))
        if show.value:
            from dppmask_jax import config as training
            from dppmask_jax import config_table

            return config_table.show(config.value, training.fields_for(config.value))
        if not workdir.value:
            raise InputError("--workdir is missing: name a folder for the run, such as runs/mine")

        from dppmask_jax import joining, pretrain

        joining.initialize(*processes())
        pretrain.train(
            config.value,
            workdir.value,
            profile_steps=profile.value,
            allow_change=allow_change.value,
        )

    command.run(run, USUAL, ABOUT)
