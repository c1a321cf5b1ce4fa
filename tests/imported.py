"""What the server of tests/forked.py imports before its first command."""

import gc

from dppmask_jax import evaluate, pretrain  # noqa: F401
from dppmask_jax.weights import exporting, importing  # noqa: F401

# A command's collector of garbage need not look at all of it, and copy it by doing so.
gc.freeze()
