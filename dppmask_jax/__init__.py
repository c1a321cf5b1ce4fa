"""Masked image modelling in JAX, with visible patches chosen by a determinantal point process."""
