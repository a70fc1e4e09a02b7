"""Random access to the samples of one shard: a memory-mapped tar and its members' offsets.

webdataset 1.0 no longer ships its indexed reader (`wids`), and `tarfile` needs about ten times as
long for the offsets while it also follows links, sparse and extended headers, which a shard must
not have. So the plain ustar headers that the writer makes are read here, and anything else is refused.
"""

from __future__ import annotations

import mmap
import re
import struct
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparface.errors import UserError
from sparface.shards.format import MAX_KEY, Encoding, ShardInfo

_BLOCK = 512
# name, size, type, magic, prefix: the fields of a ustar header that matter
_HEADER = struct.Struct("100s 24x 12s 20x c 100x 6s 82x 155s 12x")
_MEMBER = re.compile(rf"([A-Za-z0-9_-]{{1,{MAX_KEY}}})\.([a-z]{{3,4}})".encode())


class _Member(NamedTuple):
    key: bytes
    extension: bytes
    offset: int
    size: int


class ShardFile:
    """An open shard. Close it (or leave its with-block) to drop the map."""

    def __init__(self, folder: Path, info: ShardInfo, encoding: Encoding) -> None:
        """Map the tar and find its samples.

        Raises `UserError` naming the file when it is missing, its size is not the manifest's, or it
        holds anything but KEY.<encoding> + KEY.json pairs, as many as the manifest says.
        """
        self.path = folder / info.file
        self._map = self._open(info.bytes)
        try:
            self._offsets = self._index(encoding.encode())
        except UserError:
            self._map.close()
            raise
        if len(self) != info.samples:
            self._map.close()
            raise self._damage(f"holds {len(self)} samples, the manifest says {info.samples}")

    def __len__(self) -> int:
        return len(self._offsets)

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._map.close()

    def key(self, sample: int) -> str:
        """A sample's key."""
        start = int(self._offsets[sample, 0]) - _BLOCK
        return self._map[start : start + 100].split(b".", 1)[0].decode()

    def image(self, sample: int) -> bytes:
        """A sample's image file."""
        offset, size = self._offsets[sample, :2].tolist()
        return self._map[offset : offset + size]

    def sidecar(self, sample: int) -> bytes:
        """A sample's JSON file."""
        offset, size = self._offsets[sample, 2:].tolist()
        return self._map[offset : offset + size]

    def _open(self, expected: int) -> mmap.mmap:
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                if size != expected:
                    what = "is truncated" if size < expected else "has grown"
                    raise self._damage(f"{what}: {size} bytes, the manifest says {expected}")
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise self._damage(f"cannot be read ({error.strerror})") from None

    def _index(self, encoding: bytes) -> NDArray[np.int64]:
        """[samples, 4]: offset and size of each image and of its JSON, bytes."""
        rows: list[tuple[int, int, int, int]] = []
        offset = 0
        while (first := self._member(offset)) is not None:
            second = self._member(_end(first))
            if second is None or second.key != first.key:
                raise self._damage(f"sample {first.key.decode()} is not an image and a JSON")
            image, sidecar = (second, first) if first.extension == b"json" else (first, second)
            if (image.extension, sidecar.extension) != (encoding, b"json"):
                expected = f".{encoding.decode()} and a .json"
                raise self._damage(f"sample {first.key.decode()} is not a {expected}")
            rows.append((image.offset, image.size, sidecar.offset, sidecar.size))
            offset = _end(second)
        return np.array(rows, dtype=np.int64).reshape(-1, 4)

    def _member(self, offset: int) -> _Member | None:
        """The member whose header is at `offset`; None at the end mark."""
        if offset + _BLOCK > len(self._map):
            raise self._damage("is truncated: the tar's end mark is missing")
        name, size, kind, magic, prefix = _HEADER.unpack_from(self._map, offset)
        if magic != b"ustar\0":
            if self._map[offset : offset + _BLOCK].count(0) == _BLOCK:
                return None
            raise self._damage(f"damaged tar header at byte {offset}")
        name = name.rstrip(b"\0")
        match = _MEMBER.fullmatch(name)
        if match is None or kind != b"0" or prefix[0]:
            raise self._damage(f"member {_shown(prefix, name)} is not a plain KEY.EXTENSION file: refused")
        return _Member(match[1], match[2], offset + _BLOCK, self._size(size, offset))

    def _damage(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what}; restore the file or write the shard set again")

    def _size(self, digits: bytes, offset: int) -> int:
        try:
            size = int(digits.rstrip(b"\0 "), 8)
        except ValueError:
            size = -1
        if not 0 <= size <= len(self._map) - offset - _BLOCK:
            raise self._damage(f"damaged tar header at byte {offset}")
        return size


def _end(member: _Member) -> int:
    return member.offset + (member.size + _BLOCK - 1) // _BLOCK * _BLOCK


def _shown(prefix: bytes, name: bytes) -> str:
    path = prefix.rstrip(b"\0") + b"/" + name if prefix[0] else name
    return repr(path.decode(errors="replace"))
