"""Training methods. A new one is a file beside these and a line here."""

from dppmask_jax.methods import ibot, mae

METHODS = {
    "mae": mae.KIND,
    "ibot": ibot.KIND,
}
