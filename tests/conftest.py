import os
import tempfile

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        # Halves the time spent compiling, which is most of what these tests do.
        "--xla_backend_optimization_level=0",
    ]
).strip()
os.environ.setdefault("DPPMASK_CACHE", os.path.join(tempfile.gettempdir(), "dppmask_jax_tests"))
# For what commands compile, as long as `_compiled` lives: workers of pytest-xdist inherit the name.
if "DPPMASK_TESTS_COMPILED" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="dppmask_jax_compiled")
    os.environ["DPPMASK_TESTS_COMPILED"] = _compiled.name

# Started first, so that no core is left alone with one of them at the end.
LONGEST = {
    f"test_{name}.py"
    for name in ("training", "ibot_method", "faults_kills", "elastic", "endurance", "sweep")
}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="module")
def fewer_blocks():
    """Compiling is what takes time where the size does not matter."""
    from dppmask_jax.models.vit import SIZES, Size

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "Pi", Size(24, 2, 2))
        yield
