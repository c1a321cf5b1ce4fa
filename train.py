"""Pre-train: python train.py --config=configs/mae.py:mask=dpp --workdir=runs/mine"""

from dppmask_jax import extras

if __name__ == "__main__":  # before what is missing is imported
    extras.require()

from absl import flags
from ml_collections import config_flags

from dppmask_jax import command
from dppmask_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE[:key=value,...]", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is written; resumed if it exists.")
_PROFILE = flags.DEFINE_integer(
    "profile", 0, "Trace this many steps into WORKDIR/profile.", lower_bound=0
)
_ALLOW = flags.DEFINE_boolean(
    "allow_change", False, "Go on in a workdir with another config; config.json keeps the history."
)
_SHOW = flags.DEFINE_boolean(
    "show_config", False, "Print every field of the config: value, default, meaning; nothing else."
)
_PROCESSES = command.define_process_flags()


def main(argv):
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}; flags start with --")
    if _CONFIG.value is None:
        raise InputError("--config is missing: name a config file, such as configs/mae.py")
    if _SHOW.value:
        from dppmask_jax import config, config_table

        return config_table.show(_CONFIG.value, config.fields_for(_CONFIG.value))
    if not _WORKDIR.value:
        raise InputError("--workdir is missing: name a folder for the run, such as runs/mine")

    from dppmask_jax import parallel, pretrain

    parallel.initialize(*_PROCESSES())
    pretrain.train(
        _CONFIG.value,
        _WORKDIR.value,
        profile_steps=_PROFILE.value,
        allow_change=_ALLOW.value,
    )


if __name__ == "__main__":
    command.run(main)
