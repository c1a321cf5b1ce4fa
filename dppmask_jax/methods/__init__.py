"""Training methods. A new one is a file beside these and a line here."""

from dppmask_jax.methods import ibot, mae, simmim

METHODS = {
    "mae": mae.KIND,
    "simmim": simmim.KIND,
    "ibot": ibot.KIND,
}
