"""Training methods: each builds a `base.Method` from a config."""

from dppmask_jax.methods import ibot, mae

METHODS = {"mae": mae.build, "ibot": ibot.build}
