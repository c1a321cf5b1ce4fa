"""Published weights in, and a run's weights out: `python -m dppmask_jax.weights --help`."""
