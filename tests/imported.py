"""What the server of tests/forked.py imports before its first command."""

from dppmask_jax import evaluate, pretrain  # noqa: F401
from dppmask_jax.weights import exporting, importing  # noqa: F401
