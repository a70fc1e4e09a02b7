"""Random access to the samples of one shard: an open tar and the offsets of its members.

webdataset 1.0 no longer includes its indexed reader (`wids`), and `tarfile` follows links and supports
sparse files and extended headers, none of which a shard may contain. This reader accepts only the plain
ustar headers that the writer produces. It finds the members from their headers, which it checks all together.

Everything is read with `pread`: if a file is truncated while it is open, `pread` raises an error, whereas
accessing a memory map would kill the process (SIGBUS).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from sparface.config import Encoding
from sparface.errors import USERS_ERRNOS, MachineError, UserError
from sparface.files import inside, open_regular
from sparface.shards.format import MAX_KEY
from sparface.shards.manifest import ShardInfo

_BLOCK = 512
_END = bytes(_BLOCK)
_PART = 4096
"""Bytes read at once while looking for headers: a JSON and the header behind it, but little of an image."""
# The ustar header fields that we need; NumPy strips their trailing zeros.
_HEADER = np.dtype(
    {
        "names": ["name", "kind", "prefix"],
        "formats": ["S100", "S1", "S155"],
        "offsets": [0, 156, 345],
        "itemsize": _BLOCK,
    }
)
_SIZE, _CHECKSUM, _MAGIC = slice(124, 135), slice(148, 156), slice(257, 263)
_MEMBER = re.compile(rf"([A-Za-z0-9_-]{{1,{MAX_KEY}}})\.([a-z]{{3,4}})".encode())

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Index:
    """The location of each sample in a shard."""

    keys: NDArray[np.bytes_]
    """[samples]"""
    offsets: Ints
    """[samples, 4]: offset and size of the image, offset and size of the JSON, in bytes."""


class ShardFile:
    """An open shard; a context manager."""

    def __init__(self, folder: Path, info: ShardInfo, encoding: Encoding, index: Index | None = None) -> None:
        """Open the tar and find its samples, or reuse the `index` of an earlier opening.

        Raises `UserError` naming the file if it is missing, is outside the folder, differs in size from the
        manifest, or contains anything but the manifest's number of KEY.<encoding> + KEY.json pairs.
        """
        self.path = folder / info.file
        try:
            self._file = open_regular(inside(folder, info.file))
        except OSError as error:
            raise self._unreadable(error) from None
        try:
            self._check_size(info.bytes)
            self.index = index or self._find(encoding.encode(), info.samples)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self.index.offsets)

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def key(self, sample: int) -> str:
        """The key of a sample."""
        return bytes(self.index.keys[sample]).decode()

    def image(self, sample: int) -> bytes:
        """The image file of a sample. Raises `UserError` if the shard was truncated after it was opened."""
        offset, size = self.index.offsets[sample, :2].tolist()
        return self._member(offset, size)

    def sidecar(self, sample: int) -> bytes:
        """The JSON file of a sample. Raises `UserError` if the shard was truncated after it was opened."""
        offset, size = self.index.offsets[sample, 2:].tolist()
        return self._member(offset, size)

    def _member(self, offset: int, size: int) -> bytes:
        data = self._read(offset, size)
        if len(data) < size:
            raise self._damage("was truncated while it was being read")
        return data

    def _read(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._file.fileno(), size, offset)
        except OSError as error:
            raise self._unreadable(error) from None

    def _check_size(self, expected: int) -> None:
        size = os.fstat(self._file.fileno()).st_size
        if size != expected:
            what = "is truncated" if size < expected else "has grown"
            raise self._damage(f"{what}: {size} bytes, the manifest says {expected}")

    def _find(self, encoding: bytes, samples: int) -> Index:
        blocks, starts, sizes = self._headers(2 * samples)
        headers = blocks.view(_HEADER)[:, 0]
        members = [_MEMBER.fullmatch(name) for name in headers["name"].tolist()]
        plain = (headers["kind"] == b"0") & (headers["prefix"] == b"")
        if not plain.all() or None in members:
            bad = int(np.argmin(plain & np.array([member is not None for member in members])))
            shown = _shown(headers["prefix"][bad], headers["name"][bad])
            raise self._damage(f"member {shown} is not a plain KEY.EXTENSION file")
        keys, extensions = ([member[part] for member in members if member] for part in (1, 2))
        self._check_pairs(keys, extensions, encoding)
        if len(keys) != 2 * samples:
            raise self._damage(f"holds {len(keys) // 2} samples, the manifest says {samples}")
        of_image = np.arange(0, len(keys), 2) + np.array([e == b"json" for e in extensions[::2]], dtype=int)
        of_json = of_image ^ 1
        contents = starts + _BLOCK
        columns = [contents[of_image], sizes[of_image], contents[of_json], sizes[of_json]]
        return Index(np.array(keys[::2], dtype=np.bytes_), np.stack(columns, axis=1))

    def _headers(self, expected: int) -> tuple[NDArray[np.uint8], Ints, Ints]:
        """The headers [members, 512] up to the end mark, and the members' offsets and sizes in bytes."""
        headers: list[bytes] = []
        starts: list[int] = []
        part, first, start = b"", 0, 0
        while len(headers) <= expected:
            at = start - first
            if at + _BLOCK > len(part):
                part, first, at = self._read(start, _PART), start, 0
            header = part[at : at + _BLOCK]
            if len(header) < _BLOCK:
                raise self._damage("is truncated: the tar's end mark is missing")
            if header == _END:
                break
            headers.append(header)
            starts.append(start)
            try:
                size = int(header[_SIZE], 8)
            except ValueError:
                break  # reported by _checked_sizes
            start += _BLOCK + -(-size // _BLOCK) * _BLOCK
            if size < 0:
                break
        else:
            raise self._damage(f"holds more than the {expected // 2} samples that the manifest says")
        blocks = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, _BLOCK)
        return blocks, np.array(starts, np.int64), self._checked_sizes(blocks, starts)

    def _checked_sizes(self, blocks: NDArray[np.uint8], starts: list[int]) -> Ints:
        """The sizes of the members. Raises `UserError` for an invalid header.

        Each header stores the sum of its bytes, computed with eight spaces in the checksum field.
        """
        sizes, stored = _octal(blocks[:, _SIZE]), _octal(blocks[:, _CHECKSUM][:, :6])
        sums = blocks.sum(1, dtype=np.int64) - blocks[:, _CHECKSUM].sum(1, dtype=np.int64) + 8 * ord(" ")
        is_ustar = (blocks[:, _MAGIC] == np.frombuffer(b"ustar\0", np.uint8)).all(1)
        for is_valid, problem in (
            (is_ustar & (sizes >= 0), "damaged tar header"),
            (stored == sums, "wrong checksum in the tar header"),
        ):
            if not is_valid.all():
                raise self._damage(f"{problem} at byte {starts[int(is_valid.argmin())]}")
        return sizes

    def _check_pairs(self, keys: list[bytes], extensions: list[bytes], encoding: bytes) -> None:
        pairs = zip(extensions[::2], extensions[1::2], strict=False)
        if keys[::2] == keys[1::2] and all({encoding, b"json"} == {*pair} for pair in pairs):
            return
        for first in range(0, len(keys), 2):
            if keys[first : first + 1] != keys[first + 1 : first + 2]:
                raise self._damage(f"sample {keys[first].decode()} is not a pair of an image and a JSON")
            if {*extensions[first : first + 2]} != {encoding, b"json"}:
                expected = f".{encoding.decode()} and a .json"
                raise self._damage(f"sample {keys[first].decode()} is not a {expected}")

    def _damage(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what}; restore the file or write the shard set again")

    def _unreadable(self, error: OSError) -> UserError:
        if error.errno in USERS_ERRNOS:
            return self._damage(f"cannot be read ({error.strerror})")
        return MachineError(f"{self.path}: cannot be read ({error.strerror}); check the disk")


def _octal(digits: NDArray[np.uint8]) -> Ints:
    """Parse header fields [n, digits] as octal numbers [n]; -1 for a field with other characters."""
    figures = digits.astype(np.int64) - ord("0")
    is_octal = ((figures >= 0) & (figures < 8)).all(1)
    return np.where(is_octal, figures @ 8 ** np.arange(digits.shape[1] - 1, -1, -1), -1)


def _shown(prefix: bytes, name: bytes) -> str:
    path = prefix + b"/" + name if prefix else name
    return repr(path.decode(errors="replace"))
