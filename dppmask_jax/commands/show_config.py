"""The command that prints the fields of a config."""

from __future__ import annotations

from dppmask_jax import command
from dppmask_jax.errors import InputError

USUAL = "python -m dppmask_jax show-config"
ABOUT = """\
Prints every field of a config with its value, its default, what it means and what is allowed:
dppmask show-config --config=mae:dataset=small,mask=dpp, or --config=eval:task=knn

A star marks what the recipe, or a --config.FIELD=VALUE, changes. Nothing is started."""


def main() -> None:
    """Prints the fields of --config."""
    config = command.define_config_flag("config", "RECIPE[:key=value,...], or FILE[:...].")

    def run(_):
        if config.value is None:
            raise InputError(command.missing_config("config", "mae:dataset=shapes"))
        from dppmask_jax import config_table

        config_table.show(config.value, config_table.fields_of(config.value))

    command.run(run, USUAL, ABOUT)
