"""`python -m dppmask_jax COMMAND ...` is `dppmask COMMAND ...`."""

from dppmask_jax import cli

if __name__ == "__main__":
    cli.main()
