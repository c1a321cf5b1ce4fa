"""Data sets: splits of encoded images and what is known about them."""

from dppmask_jax.data.sources.opening import open_source, open_splits

__all__ = ["open_source", "open_splits"]
