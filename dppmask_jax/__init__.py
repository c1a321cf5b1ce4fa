"""Masked image modelling in JAX, with visible patches chosen by a determinantal point process.

`dppmask_jax.dpp` and `dppmask_jax.masking` need jax alone; `load_encoder` needs the extra [train].
"""


def load_encoder(workdir, *, image_size=None, dtype=None, projection=None):
    """The trained encoder of a run; see `dppmask_jax.runs.run.load_encoder`."""
    from dppmask_jax import extras

    if absent := extras.missing():
        raise ImportError(absent)
    from dppmask_jax.runs import run

    return run.load_encoder(workdir, image_size=image_size, dtype=dtype, projection=projection)
