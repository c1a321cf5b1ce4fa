import ast
from pathlib import Path

import pytest

import dppmask_jax

ROOT = Path(dppmask_jax.__file__).parent

# A file imports only from lower layers, or from its own folder.
LAYERS = {
    "errors": 0, "dpp": 0, "patches": 0, "losses": 0, "metrics": 0, "command": 0,
    "parallel": 1, "checkpoint": 1, "masking": 1, "models": 1, "data": 1, "optim": 1,
    "methods": 2, "loop": 2.5, "features": 2, "config": 2, "workdir": 2.5,
    "evals": 3, "pretrained": 3, "figures": 3.5, "trainer": 4, "": 5,
}  # fmt: skip
USER_2_FILES = ("dpp", "masking", "patches")


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        yield path, path.relative_to(ROOT).with_suffix("").parts


def project_imports(path):
    """Second parts of the names that a file imports from this package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "dppmask_jax":
                names = [alias.name for alias in node.names]
                yield from [parts[1]] if len(parts) > 1 else names
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "dppmask_jax":
                    yield parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize(
    "path,parts", modules(), ids=lambda x: "/".join(x) if isinstance(x, tuple) else ""
)
def test_a_file_imports_only_from_lower_layers(path, parts):
    name = "" if parts == ("__init__",) else parts[0]
    assert name in LAYERS, f"give {name} a layer"
    for imported in project_imports(path):
        assert imported == name or LAYERS[imported] < LAYERS[name], f"{name} imports {imported}"


def test_only_parallel_knows_the_devices():
    words = (
        "pmap(",
        "pmean(",
        "Mesh(",
        "device_put(",
        "device_count(",
        "jax.distributed",
        "process_index(",
    )
    for path, parts in modules():
        if parts != ("parallel",):
            text = path.read_text()
            assert not [word for word in words if word in text], path


def test_configs_import_only_ml_collections_and_common():
    for path in (ROOT.parent / "configs").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                assert name in ("difflib", "configs.common") or name.startswith("ml_collections")


@pytest.mark.parametrize("name", USER_2_FILES)
def test_the_masker_needs_jax_alone(name):
    import subprocess
    import sys

    code = (
        f"import sys, dppmask_jax.{name}\n"
        "heavy = {'flax', 'optax', 'orbax', 'tensorflow', 'tensorflow_datasets', 'grain', 'chex',\n"
        "         'ml_collections', 'matplotlib', 'PIL', 'jaxtyping', 'absl', 'tqdm'}\n"
        "found = heavy & {name.split('.')[0] for name in sys.modules}\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
