"""Templates of what others add, as files of a package of their own."""

import contextlib
import importlib
import sys

import pytest


def added(folder, name, text):
    """The module NAME of a package in `folder`, written from its text."""
    package = folder / f"package_of_{name}"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / f"{name}.py").write_text(text)
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        return importlib.import_module(f"{package.name}.{name}")
    finally:
        sys.path.remove(str(folder))


@contextlib.contextmanager
def among(table, tmp_path_factory, name, text):
    """The module of a template whose `KIND` is in one of the dicts meanwhile."""
    module = added(tmp_path_factory.mktemp("added"), name, text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(table, name, module.KIND)
        yield module
