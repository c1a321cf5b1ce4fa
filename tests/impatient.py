"""train.py that notices the loss of a process after 20 seconds instead of a minute.

python tests/impatient.py FLAGS_OF_TRAIN
"""

import runpy

import tiny

from dppmask_jax import joining

joining.LOST_AFTER_SECONDS = 20
runpy.run_path(str(tiny.ROOT / "train.py"), run_name="__main__")
