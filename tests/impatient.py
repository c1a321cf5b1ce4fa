"""train.py that notices the loss of a process after 20 seconds instead of a minute, and that of a
run in a bucket as well, where it gives five signs of life a second instead of one in ten seconds.

python tests/impatient.py FLAGS_OF_TRAIN
"""

import runpy

import tiny

from dppmask_jax import joining
from dppmask_jax.runs import bucket_lock

joining.LOST_AFTER_SECONDS = 20
bucket_lock.DEAD_SECONDS = 20.0
bucket_lock.BEAT_SECONDS = 0.2
runpy.run_path(str(tiny.ROOT / "train.py"), run_name="__main__")
