"""What the commands and `load_encoder` import beside jax and numpy: the extra [train]."""

from __future__ import annotations

import importlib.util
import sys

MODULES = (
    "absl", "array_record", "chex", "cykooz_resizer", "dm_pix", "filelock", "flax", "grain",
    "importlib_resources", "jax", "matplotlib", "ml_collections", "numpy", "optax", "orbax", "PIL",
    "safetensors", "scipy", "simplejpeg", "sklearn", "tensorboardX", "tensorflow_datasets",
    "threadpoolctl", "tqdm",
)  # fmt: skip


def missing() -> str:
    """What is not installed and how to install it, in one line; "" where all is there."""
    absent = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if not absent:
        return ""
    return (
        f"not installed for {sys.executable}: {', '.join(absent)}; pip install "
        "'dppmask-jax[train]', or in the project's folder pip install '.[train]'"
    )


def require() -> None:
    """Ends the command with one line and status 2 where anything is missing.

    Called before the imports that would fail one after another.
    """
    if line := missing():
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
