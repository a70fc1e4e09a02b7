"""Random access to the samples of one shard: an open tar and its members' offsets.

webdataset 1.0 no longer ships its indexed reader (`wids`), and `tarfile` follows links, sparse and extended
headers, which a shard must not have. So the plain ustar headers that the writer makes are read here, and
anything else is refused. All of a shard's headers are read at once: every worker of every rank that reads
from a shard must find its members, and one by one that would cost a good part of decoding them.

Bytes are read by offset rather than through a memory map: a map of a file that somebody truncates ends the
process with SIGBUS.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from numpy.typing import NDArray

from sparface.errors import UserError
from sparface.files import inside, open_regular
from sparface.shards.format import MAX_KEY, Encoding, ShardInfo

_BLOCK = 512
# The fields of a ustar header that matter; numpy drops the zeros that end them.
_HEADER = np.dtype(
    {
        "names": ["name", "size", "checksum", "kind", "magic", "prefix"],
        "formats": ["S100", "S12", "S6", "S1", "S6", "S155"],
        "offsets": [0, 124, 148, 156, 257, 345],
        "itemsize": _BLOCK,
    }
)
_MEMBER = re.compile(rf"([A-Za-z0-9_-]{{1,{MAX_KEY}}})\.([a-z]{{3,4}})".encode())

Ints = NDArray[np.int64]


class ShardFile:
    """An open shard. Close it, or leave its with-block, when done."""

    def __init__(self, folder: Path, info: ShardInfo, encoding: Encoding) -> None:
        """Open the tar and find its samples.

        Raises `UserError` naming the file when it is missing, lies outside of the folder, has not the
        manifest's size, or holds anything but KEY.<encoding> + KEY.json pairs, as many as the manifest says.
        """
        self.path = folder / info.file
        self._file = self._open(folder, info)
        try:
            self._keys, self._offsets = self._index(self._read(0, info.bytes), encoding.encode())
            if len(self) != info.samples:
                raise self._damage(f"holds {len(self)} samples, the manifest says {info.samples}")
        except UserError:
            self._file.close()
            raise

    def __len__(self) -> int:
        return len(self._offsets)

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def key(self, sample: int) -> str:
        """A sample's key."""
        return self._keys[sample].decode()

    def image(self, sample: int) -> bytes:
        """A sample's image file."""
        return self._read(*self._offsets[sample, :2].tolist())

    def sidecar(self, sample: int) -> bytes:
        """A sample's JSON file."""
        return self._read(*self._offsets[sample, 2:].tolist())

    def _open(self, folder: Path, info: ShardInfo) -> IO[bytes]:
        try:
            file = open_regular(inside(folder, info.file))
        except OSError as error:
            raise self._damage(f"cannot be read ({error.strerror})") from None
        size = os.fstat(file.fileno()).st_size
        if size != info.bytes:
            file.close()
            what = "is truncated" if size < info.bytes else "has grown"
            raise self._damage(f"{what}: {size} bytes, the manifest says {info.bytes}")
        return file

    def _read(self, offset: int, size: int) -> bytes:
        """Raises `UserError` when the file has become shorter."""
        try:
            data = os.pread(self._file.fileno(), size, offset)
            while len(data) < size and (
                more := os.pread(self._file.fileno(), size - len(data), offset + len(data))
            ):
                data += more  # Linux reads at most 2 GiB at once
        except OSError as error:
            raise self._damage(f"cannot be read ({error.strerror})") from None
        if len(data) < size:
            raise self._damage("was truncated while it was being read")
        return data

    def _index(self, tar: bytes, encoding: bytes) -> tuple[list[bytes], Ints]:
        """Each sample's key, and [samples, 4]: offset and size of its image and of its JSON, bytes."""
        headers, offsets, sizes = self._chain(tar)
        members = [_MEMBER.fullmatch(name) for name in headers["name"].tolist()]
        plain = (headers["kind"] == b"0") & (headers["prefix"] == b"")
        if not plain.all() or None in members:
            bad = int(np.argmin(plain & np.array([member is not None for member in members])))
            shown = _shown(headers["prefix"][bad], headers["name"][bad])
            raise self._damage(f"member {shown} is not a plain KEY.EXTENSION file: refused")
        keys, extensions = ([member[part] for member in members if member] for part in (1, 2))
        self._check_pairs(keys, extensions, encoding)
        of_image = np.arange(0, len(keys), 2) + np.array([e == b"json" for e in extensions[::2]], dtype=int)
        of_json = of_image ^ 1
        starts = offsets + _BLOCK
        columns = [starts[of_image], sizes[of_image], starts[of_json], sizes[of_json]]
        return keys[::2], np.stack(columns, axis=1)

    def _check_pairs(self, keys: list[bytes], extensions: list[bytes], encoding: bytes) -> None:
        pairs = zip(extensions[::2], extensions[1::2], strict=False)
        if keys[::2] == keys[1::2] and all({encoding, b"json"} == {*pair} for pair in pairs):
            return
        for first in range(0, len(keys), 2):
            if keys[first : first + 1] != keys[first + 1 : first + 2]:
                raise self._damage(f"sample {keys[first].decode()} is not an image and a JSON")
            if {*extensions[first : first + 2]} != {encoding, b"json"}:
                expected = f".{encoding.decode()} and a .json"
                raise self._damage(f"sample {keys[first].decode()} is not a {expected}")

    def _chain(self, tar: bytes) -> tuple[NDArray[np.void], Ints, Ints]:
        """The members from the first block to the end mark: headers, their offsets and sizes, bytes."""
        blocks = np.frombuffer(tar, _HEADER, len(tar) // _BLOCK)
        numbers = np.flatnonzero(blocks["magic"] == b"ustar")  # a block of a picture may look like it, too
        headers = blocks[numbers]
        sizes = _octal(headers["size"], 11)
        ends = numbers + 1 + -(-sizes // _BLOCK)
        following = np.searchsorted(numbers, ends)
        known, until, after = numbers.tolist(), ends.tolist(), following.tolist()
        chain: list[int] = []
        block = place = 0
        while place < len(known) and known[place] == block and sizes[place] >= 0:
            chain.append(place)
            block, place = until[place], after[place]
        self._check_end(tar, block * _BLOCK)
        members = headers[chain]
        bytes_of = np.frombuffer(tar, np.uint8, len(blocks) * _BLOCK).reshape(-1, _BLOCK)[numbers[chain]]
        if (wrong := _checksums(bytes_of) != _octal(members["checksum"], 6)).any():
            raise self._damage(
                f"wrong checksum in the tar header at byte {numbers[chain][wrong.argmax()] * _BLOCK}"
            )
        return members, numbers[chain] * _BLOCK, sizes[chain]

    def _check_end(self, tar: bytes, offset: int) -> None:
        """Raise `UserError` unless the end mark is at `offset`."""
        mark = tar[offset : offset + _BLOCK]
        if len(mark) < _BLOCK:
            raise self._damage("is truncated: the tar's end mark is missing")
        if any(mark):
            raise self._damage(f"damaged tar header at byte {offset}")

    def _damage(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what}; restore the file or write the shard set again")


def _octal(digits: NDArray[np.bytes_], count: int) -> Ints:
    """The numbers [n] in a header's fields [n]; -1 where they do not begin with `count` octal digits."""
    width = digits.dtype.itemsize
    figures = np.ascontiguousarray(digits).view(np.uint8).reshape(-1, width)[:, :count].astype(
        np.int64
    ) - ord("0")
    is_octal = ((figures >= 0) & (figures < 8)).all(1)
    return np.where(is_octal, figures @ 8 ** np.arange(count - 1, -1, -1), -1)


def _checksums(headers: NDArray[np.uint8]) -> Ints:
    """What headers [n, 512] should have as checksums: the sum of their bytes, with blanks in its place."""
    values = headers.astype(np.int64)
    values[:, 148:156] = ord(" ")
    sums: Ints = values.sum(1)
    return sums


def _shown(prefix: bytes, name: bytes) -> str:
    path = prefix + b"/" + name if prefix else name
    return repr(path.decode(errors="replace"))
