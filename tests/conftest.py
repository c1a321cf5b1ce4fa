import gc
import importlib.util
import os
import tempfile

import compiling
import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# Threads that XLA computes with. It takes as many as there are cores or devices; all of them may be
# in eigendecompositions then, each of which waits for a thread that does a part of it, for ever.
os.environ["NPROC"] = "16"
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), compiling.xla_flags(4, as_users=False)]
).strip()
# For what commands compile and draw, as long as `_compiled` lives: workers of pytest-xdist inherit
# the name. A folder that stays could hold what an older program drew.
if "DPPMASK_TESTS_COMPILED" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="dppmask_jax_compiled")
    os.environ["DPPMASK_TESTS_COMPILED"] = _compiled.name
os.environ["DPPMASK_CACHE"] = os.path.join(os.environ["DPPMASK_TESTS_COMPILED"], "drawn")

# Started first, in this order, so that no core is left alone with one of them at the end.
LONGEST = [
    "tpu", "training", "faults_stops", "weights", "learning", "notebooks", "state_shares", "hybrid",
    "own_masks", "overlay", "ibot_method", "classifier_run", "elastic", "eval_tasks", "studies",
    "sweep", "zoo",
]  # fmt: skip


def pytest_addoption(parser):
    parser.addoption(
        "--first-cases", action="store_true", help="Of each parametrised test the first case alone."
    )


# After the markers have taken out theirs.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    if config.option.first_cases:
        first = {}
        for item in items:
            first.setdefault((item.path, item.parent.name, item.originalname), item)
        items[:] = first.values()

    def place(item):
        name = item.path.stem.removeprefix("test_")
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


def pytest_collection_finish():
    """What was imported stays: the collector of garbage need not look at it again and again.

    What one file compiles, other files, workers and stages find. The folder has no limit, unlike
    that of the commands: JAX would look at all of its files to add one. Nothing is locked then,
    so half of a file may be read; the warning of that is ignored, and the program is compiled.
    """
    gc.freeze()
    if importlib.util.find_spec("libtpu") is None:  # what is compiled for a TPU cannot be loaded
        import jax

        folder = os.path.join(os.environ["DPPMASK_TESTS_COMPILED"], "tests")
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(scope="module")
def fewer_blocks():
    """Compiling is what takes time where the size does not matter."""
    from dppmask_jax.models.sizes import SIZES, Size

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "Pi", Size(24, 2, 2))
        yield


@pytest.fixture(scope="session")
def torchvision():
    """Can be imported, or is not there: its wheel is built with CUDA, and beside a PyTorch without
    its operators do not load, so that importing it fails where it describes them."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[peer]'")
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    yield  # they are there as long as `operators` is


@pytest.fixture(scope="module")
def timm(torchvision):
    return pytest.importorskip("timm", reason="timm is not installed: pip install '.[peer]'")


@pytest.fixture(scope="module")
def transformers(torchvision):
    os.environ["HF_HUB_OFFLINE"] = "1"
    return pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install '.[peer]'"
    )


@pytest.fixture(autouse=True, scope="module")
def nothing_compiled_is_kept():
    """What one file compiled would double the memory of a worker."""
    import jax

    yield
    jax.clear_caches()
