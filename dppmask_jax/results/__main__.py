"""`python -m dppmask_jax.results`, see `writing`."""

from dppmask_jax import extras

if __name__ == "__main__":  # before what is missing is imported
    extras.require()

from dppmask_jax import command
from dppmask_jax.results import writing

if __name__ == "__main__":
    command.run_parsed(writing.main)
