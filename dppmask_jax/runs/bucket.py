"""Folders of runs in buckets, gs:// and s3://, through fsspec: files by name, each read and written
whole."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dppmask_jax.errors import InputError

SCHEMES = {"gs": "gcsfs", "s3": "s3fs"}  # scheme: the package that knows it, beside fsspec
_SCHEME = re.compile(r"([a-z][a-z0-9+.]+):/+")


class Store(NamedTuple):
    """A folder in a bucket: fsspec's file system, the folder's name in it, and its URL."""

    fs: Any
    root: str
    url: str

    def apart(self) -> Store:
        """The same folder, through a file system with connections of its own."""
        kind, options = type(self.fs), self.fs.storage_options
        fs = kind(*self.fs.storage_args, **options, skip_instance_cache=True)
        return self._replace(fs=fs)

    def path(self, name: str) -> str:
        """The name of a file of the folder in the file system."""
        return f"{self.root}/{name}"

    def files(self, below: str = "") -> dict[str, int]:
        """{name: bytes} of the files in the folder, or of those whose names begin with `below/`."""
        at = self.path(below) if below else self.root
        found = self.fs.find(at, detail=True)
        start = len(self.root) + 1
        names = {path.lstrip("/")[start:]: info["size"] or 0 for path, info in found.items()}
        # Keys of a bucket hold anything, and become paths here.
        inside = {n for n in names if n and not {"", ".", ".."} & set(n.split("/"))}
        return {name: names[name] for name in sorted(inside)}

    def read(self, name: str) -> bytes:
        """A file; raises FileNotFoundError where there is none."""
        return self.fs.cat_file(self.path(name))

    def write(self, name: str, data: bytes) -> None:
        """Writes a file whole."""
        self.fs.pipe_file(self.path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file unless there is one; False where there was. Google's and Amazon's stores
        decide it at one place, others may not, see `bucket_lock`."""
        try:
            self.fs.pipe_file(self.path(name), data, mode="create")
        except Exception:  # libraries differ in what they raise
            if self.fs.exists(self.path(name)):
                return False
            raise
        return True

    def download(self, names: Iterable[str], folder: Path) -> None:
        """Copies files into a local folder; raises FileNotFoundError where one has gone."""
        names = list(names)
        for parent in {(folder / name).parent for name in names}:
            parent.mkdir(parents=True, exist_ok=True)
        if names:
            self.fs.get([self.path(n) for n in names], [str(folder / n) for n in names])

    def upload(self, folder: Path, names: Iterable[str]) -> None:
        """Copies files of a local folder here, each whole."""
        names = list(names)
        if names:
            self.fs.put([str(folder / n) for n in names], [self.path(n) for n in names])

    def remove(self, names: Iterable[str]) -> None:
        """Removes files; those that are gone already are no fault."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(self.path(name))  # `rm` takes names for patterns


def is_one(where: str | Path) -> bool:
    """Whether a run is named by a URL. A `Path` keeps one of its two slashes, which is enough."""
    return _SCHEME.match(str(where)) is not None


def check_local(path: str | Path | None, flag: str) -> None:
    """Raises InputError where a flag of what is written locally names a URL: as a path it would be
    a folder called gs:"""
    if path and is_one(path):
        raise InputError(f"{flag}={url_of(path)} is not a local path; name one")


def url_of(where: str | Path) -> str:
    """The URL, with two slashes and none at its end."""
    scheme, rest = str(where).split(":", 1)
    return f"{scheme}://{rest.strip('/')}"


def opened(where: str | Path) -> Store:
    """The folder that a URL names; the bucket is not asked yet.

    Raises:
      InputError: another scheme, no bucket or no folder in it, a name that is a pattern, or a
        package is missing.
    """
    url = url_of(where)
    scheme, _, root = url.partition("://")
    if scheme not in SCHEMES:
        known = " and ".join(f"{name}://" for name in SCHEMES)
        raise InputError(
            f"{url} is not a local folder; runs are written to local or NFS folders, {known}"
        )
    if "/" not in root or {".", "..", ""} & set(root.split("/")):
        raise InputError(f"{url} names no folder in a bucket: {scheme}://BUCKET/RUN")
    if found := set("*?[]") & set(root):
        raise InputError(f"{url} holds {min(found)}, which stores take for patterns; rename it")
    for package in ("fsspec", SCHEMES[scheme]):
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"{url} needs the package {package}, which is not installed: "
                f"pip install 'dppmask-jax[{scheme}]'"
            )
    import fsspec

    try:
        fs = fsspec.filesystem(scheme, use_listings_cache=False)
    except Exception as error:  # credentials that are no longer valid, say
        if not is_of_store(error):
            raise
        raise refused(url, error) from error
    return Store(fs, root, url)


def is_of_store(error: Exception) -> bool:
    """Whether an error is one that the library of a store raises: of the network, of the store, of
    credentials. Libraries have classes of their own for these, and use OSError and ValueError; any
    other of Python's is a fault of a program, and keeps its traceback."""
    return isinstance(error, OSError | ValueError) or type(error).__module__ != "builtins"


def refused(url: str, error: Exception) -> InputError:
    """What to say where a bucket cannot be used, whatever its library raised."""
    bucket = "/".join(url.split("/")[:3])
    scheme = url.partition(":")[0]
    if isinstance(error, FileNotFoundError):
        why = f"there is no bucket {bucket}, or it is not shown to you"
    else:
        why = f"{type(error).__name__}: {error}".strip(": ")
    return InputError(f"{url} cannot be used ({why}); check the name and {_CREDENTIALS[scheme]}")


_CREDENTIALS: Mapping[str, str] = {
    "gs": "the credentials (gcloud auth application-default login, or the machine's service "
    "account with the role Storage Object User)",
    "s3": "the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the "
    "machine's role; AWS_ENDPOINT_URL for other stores than Amazon's)",
}
