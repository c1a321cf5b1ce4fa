"""Members of uncompressed tar files and of zip files, read by where they lie in them.

The index is made once, from the headers: of a tar they are spread over the whole file, of a zip
they stand at its end; see cache.of_files for where it is kept. A read opens the file and takes the
member's bytes alone, so that threads and processes do not share a position.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from dppmask_jax.data.sources import cache, links
from dppmask_jax.errors import InputError

MAX_BYTES = 2**29  # of a file; an uncompressed image of decode.MAX_PIXELS has fewer
_STORED, _DEFLATED = 0, 8  # how a member is packed, as zip numbers it
_LINK, _ENCRYPTED, _OTHER = 255, 254, 253
_TAR_BLOCK = 512
_ZIP_HEADER = struct.Struct("<4s22xHH")  # its mark, and the lengths of what stands before the data
_COMPRESSED = {
    b"\x1f\x8b": "gzip -d",
    b"BZh": "bzip2 -d",
    b"\xfd7zXZ": "xz -d",
    b"\x28\xb5\x2f\xfd": "zstd -d",
}


class Packed(NamedTuple):
    """Where n members lie in some files, in flat arrays."""

    paths: tuple[str, ...]  # of the files
    stamps: np.ndarray  # (files, 2) int64, size and time of change of each
    zips: bool  # whether they are zip files
    file_of: np.ndarray  # (n,) int32
    offsets: np.ndarray  # (n,) int64, of a tar's data, of a zip's local header
    sizes: np.ndarray  # (n,) int64, of the member
    packed_sizes: np.ndarray  # (n,) int64, in the file
    methods: np.ndarray  # (n,) uint8
    sums: np.ndarray  # (n,) uint32, zip's CRC; 0 in a tar

    def some(self, rows) -> Packed:
        """Those of some rows, in their order."""
        parts = (self.file_of, self.offsets, self.sizes, self.packed_sizes, self.methods, self.sums)
        return Packed(self.paths, self.stamps, self.zips, *(part[rows] for part in parts))

    def read(self, i: int) -> bytes:
        """The content of member i.

        Raises:
          OSError: it cannot be read, has more than MAX_BYTES, or the file is no longer the one that
            was indexed.
        """
        path = self.paths[self.file_of[i]]
        if why := self._unreadable(i):
            raise OSError(errno.EINVAL, why, path)
        if self.sizes[i] > MAX_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        with open(path, "rb") as file:
            now = os.fstat(file.fileno())
            if [now.st_size, now.st_mtime_ns] != self.stamps[self.file_of[i]].tolist():
                raise OSError(errno.ESTALE, "the file was changed after it was opened", path)
            file.seek(int(self.offsets[i]))
            if self.zips:
                mark, name, extra = _ZIP_HEADER.unpack(_exactly(file, _ZIP_HEADER.size, path))
                if mark != b"PK\3\4":
                    raise OSError(errno.EIO, "damaged in the zip file: no header", path)
                file.seek(name + extra, os.SEEK_CUR)
            data = _exactly(file, int(self.packed_sizes[i]), path)
        return self._unpacked(i, data, path) if self.zips else data

    def _unreadable(self, i: int) -> str:
        """Why member i cannot be read, by how it is packed; "" where it can."""
        method = int(self.methods[i])
        if method in (_STORED, _DEFLATED):
            return ""
        if method == _LINK:
            in_zip = "a link in a zip file; pack what it leads to, with zip -r and without -y"
            return in_zip if self.zips else "a link to what the file lacks"
        known = {_ENCRYPTED: "encrypted", _OTHER: "packed by a method of a high number"}
        how = known.get(method, f"packed by method {method}")
        return f"{how} in the zip file; unpack it, and pack it again with zip -0 -r"

    def _unpacked(self, i: int, data: bytes, path: str) -> bytes:
        if self.methods[i] == _DEFLATED:
            most = int(self.sizes[i]) + 1  # one more shows that it is more than it says
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, most)
            except zlib.error as error:
                raise OSError(errno.EIO, f"damaged in the zip file: {error}", path) from error
        if len(data) != self.sizes[i] or zlib.crc32(data) != self.sums[i]:
            raise OSError(errno.EIO, "damaged in the zip file: its checksum differs", path)
        return data


def index(path: str) -> tuple[Packed, list[str]]:
    """(members of a tar or zip file, their names as they stand there).

    A name that it has twice counts once, as the last of them, as when it is unpacked.

    Raises:
      InputError: it is missing, compressed as a whole, cut short, or no tar or zip file.
    """
    check([path])
    zips = _is_zip(path)
    arrays = cache.of_files([path], "members", lambda: _members(path, zips))
    return of_arrays([path], zips, arrays), cache.texts_of(arrays["names"])


def of_arrays(paths: Sequence[str], zips: bool, arrays: dict[str, np.ndarray]) -> Packed:
    """The members that arrays of the names in ARRAYS describe, which cache.of_files returned."""
    return Packed(tuple(paths), arrays["stamps"], zips, *(arrays[name] for name in ARRAYS))


ARRAYS = {
    "file_of": np.int32,
    "offsets": np.int64,
    "sizes": np.int64,
    "packed_sizes": np.int64,
    "methods": np.uint8,
    "sums": np.uint32,
}
Member = tuple[int, int, int, int, int]  # offset, size, size in the file, method, sum


def _members(path: str, zips: bool) -> dict[str, np.ndarray]:
    members = _of_zip(path) if zips else _of_tar(path)
    return table([members.values()]) | {"names": names_of(path, members)}


def table(members: Sequence[Collection[Member]]) -> dict[str, np.ndarray]:
    """The arrays of the members of some files."""
    rows = [member for of_file in members for member in of_file]
    numbers = np.array(rows, np.int64).reshape(-1, len(ARRAYS) - 1)
    file_of = np.repeat(np.arange(len(members)), [len(of_file) for of_file in members])
    columns = zip(ARRAYS.items(), (file_of, *numbers.T), strict=True)
    return {name: column.astype(dtype) for (name, dtype), column in columns}


def names_of(path: str, names: Iterable[str]) -> np.ndarray:
    """Names as an array; raises InputError where one has a zero byte."""
    names = list(names)
    if any("\0" in name for name in names):
        raise InputError(f"{path}: a member has a zero byte in its name; write it again")
    return cache.joined(names)


def members_of_tar(path: str) -> Iterator[tuple[tarfile.TarInfo, Callable[[], bytes]]]:
    """(header, what reads the data) of each member of a tar, in order.

    Raises:
      InputError: it is cut short or no tar file.
    """
    end, last = os.path.getsize(path), -1
    try:
        with tarfile.open(path, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # it would keep them all
                if info.issparse():
                    raise InputError(f"{path} has the sparse file {info.name}; write it without -S")
                if info.size < 0 or info.offset <= last:  # it would be met again and again
                    raise tarfile.ReadError(f"{info.name} has a size below 0")
                last = info.offset
                if info.isreg() and info.offset_data + info.size > end:
                    raise tarfile.ReadError(f"{info.name} goes on behind its end")
                yield info, lambda info=info: tar.extractfile(info).read()
            _check_end(path, tar.offset)
    except InputError:
        raise
    except (tarfile.TarError, ValueError, OverflowError) as error:  # of numbers in headers, too
        raise InputError(
            f"{path} is cut short or no tar file ({error}); copy or write it again"
        ) from error


def in_tar(info: tarfile.TarInfo) -> Member:
    """Where the data of a regular file in a tar lies."""
    return info.offset_data, info.size, info.size, _STORED, 0


def _of_tar(path: str) -> dict[str, Member]:
    """{name: where it lies} of the files in a tar, those that links lead to under their names
    too."""
    members, targets = {}, {}
    for info, _ in members_of_tar(path):
        name = links.plain(info.name)
        members.pop(name, None)
        targets.pop(name, None)
        if info.issym():
            targets[name] = posixpath.join(posixpath.dirname(name), info.linkname)
        elif info.islnk():
            targets[name] = info.linkname
        elif info.isreg():
            members[name] = in_tar(info)
    try:
        found = links.followed(members, targets)
    except links.TooMany as error:
        raise InputError(f"{path}: {error}; write it with tar -h") from error
    broken = (0, 0, 0, _LINK, 0)
    return members | {
        name: broken if target is None else members[target] for name, target in found.items()
    }


def _check_end(path: str, offset: int) -> None:
    # tarfile takes a damaged header, or the end of a file that was cut between two members, for
    # the end of the archive.
    with open(path, "rb") as file:
        file.seek(offset)
        if file.read(_TAR_BLOCK) != bytes(_TAR_BLOCK):
            raise tarfile.ReadError(f"no member and no end mark at byte {offset}")


def _of_zip(path: str) -> dict[str, Member]:
    """{name: where it lies} of the files in a zip."""
    members = {}
    try:
        with zipfile.ZipFile(path) as file:
            infos = file.infolist()
            # Some programs of Windows write them; elsewhere a file may be called so.
            backslashes = not any("/" in info.filename for info in infos)
            for info in infos:
                name = info.filename.replace("\\", "/") if backslashes else info.filename
                if not name.endswith("/"):
                    members[name] = (
                        info.header_offset, info.file_size, info.compress_size, _method(info),
                        info.CRC,
                    )  # fmt: skip
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read as a zip file ({error}); copy or write it again"
        ) from error
    return members


def _method(info: zipfile.ZipInfo) -> int:
    if stat.S_ISLNK(info.external_attr >> 16):
        return _LINK
    return _ENCRYPTED if info.flag_bits & 1 else min(info.compress_type, _OTHER)


def check(paths: Sequence[str]) -> None:
    """Raises InputError where a file is missing or compressed as a whole."""
    for path in paths:
        cache.stamp_of(path)
        with open(path, "rb") as file:
            first = file.read(8)
        for mark, command in _COMPRESSED.items():
            if first.startswith(mark):
                raise InputError(
                    f"{path} is compressed as a whole, so no image can be read by itself; unpack "
                    f"it: {command} {path}"
                )


def _is_zip(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) in (b"PK\3\4", b"PK\5\6") or path.lower().endswith(".zip")


def _exactly(file: BinaryIO, size: int, path: str) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise OSError(errno.EIO, "the file ends within it", path)
    return data
