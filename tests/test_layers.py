import ast
import sys
from pathlib import Path

import pytest

import dppmask_jax
from dppmask_jax import extras

ROOT = Path(dppmask_jax.__file__).parent

# A file imports only from rooms of earlier rows, or from its own room; "" is the package itself.
ROWS = (
    {"errors", "words", "paths", "whole_files", "imagenet", "terminal", "extras"},
    {"recipes", "patches"},
    {"config_faults", "fields"},
    {"dpp", "losses", "command", "joining", "parallel", "scores"},
    {"pixel_format"},
    {"masking", "models", "data", "optim", "config_dicts", "trackers"},
    {"targets"},
    {"methods"},
    {"runs"},
    {"training"},
    {"figures"},
    {"evals"},
    {"analyses"},
    {"tasks"},
    {"announcement", "config"},
    {"config_table"},
    {"evaluating"},
    {"pretrain", "evaluate"},
    {"results"},
    {"sweeps", "weights", "masklab", "part_maps"},
    {"comparing"},
    {"sweep", "compare", "commands"},
    {"cli"},
    {"__main__"},
    {""},
)
LAYERS = {name: row for row, names in enumerate(ROWS) for name in names}
USER_2_FILES = ("dpp", "masking", "patches")


MODULES = [
    (path, path.relative_to(ROOT).with_suffix("").parts) for path in sorted(ROOT.rglob("*.py"))
]


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


@pytest.mark.parametrize("path,parts", MODULES, ids=["/".join(parts) for _, parts in MODULES])
def test_a_file_imports_only_from_lower_layers(path, parts):
    name = "" if parts == ("__init__",) else parts[0]
    assert name in LAYERS, f"give {name} a layer"
    for imported in project_imports(path):
        assert imported == name or LAYERS[imported] < LAYERS[name], f"{name} imports {imported}"


def imported_at_once(body):
    """First parts of the names that statements import when they are run, not in a function, and
    not for a type checker alone."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from imported_at_once(node.orelse)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for part in ("body", "orelse", "finalbody"):
                yield from imported_at_once(getattr(node, part, ()))


def test_what_is_imported_at_once_is_what_the_extra_installs():
    known = {*sys.stdlib_module_names, *extras.MODULES, "dppmask_jax", "etils"}  # orbax has etils
    for path, _ in MODULES:
        found = set(imported_at_once(ast.parse(path.read_text()).body)) - known
        assert not found, f"{path} imports {found}: in a function, or name it in pyproject.toml"


def test_only_parallel_knows_the_devices():
    words = (
        "pmap(",
        "pmean(",
        "Mesh(",
        "device_put(",
        "device_count(",
        "jax.distributed",
        "process_index(",
        "process_count(",
        "jax.devices(",
        "NamedSharding(",
        "shard_map(",
    )
    allowed = {"parallel": set(words), "joining": {"jax.distributed"}}
    for path, parts in MODULES:
        found = {word for word in words if word in path.read_text()}
        assert found <= allowed.get(parts[0], set()), path


CONFIGS_IMPORT = (
    "difflib", "dppmask_jax.config", "dppmask_jax.tasks.checks", "dppmask_jax.comparing.study",
    *(
        f"dppmask_jax.recipes.{name}"
        for name in ("common", "eval", "ibot", "mae", "moco", "simmim", "studies.cpu")
    ),
)  # fmt: skip


def test_configs_import_only_what_builds_configs():
    for path in (ROOT.parent / "configs").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                assert name in CONFIGS_IMPORT or name.startswith("ml_collections")


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
