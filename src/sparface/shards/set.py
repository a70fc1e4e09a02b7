"""Open a finished shard set, and read its faces in order or by position."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparface.errors import UserError
from sparface.shards.codec import BrokenImage, decode_into, room
from sparface.shards.format import Face, parse_sidecar
from sparface.shards.index import Index, ShardFile
from sparface.shards.labels import IDENTITY
from sparface.shards.manifest import MANIFEST, Manifest
from sparface.shards.remote import Remote, is_url

INDEXED = 1_000_000
"""Maximum number of faces whose positions in their shards are cached, at about 60 bytes each."""


class ShardSet:
    """A folder of shards with a manifest. `len()` is the number of samples."""

    def __init__(self, folder: Path, manifest: Manifest, digest: str, remote: Remote | None = None) -> None:
        self.folder = folder
        """The folder of the shards; for a remote set, its folder in the cache."""
        self.remote = remote
        self.manifest = manifest
        self.digest = digest
        """sha256 of the manifest file; identifies the exact content of the set."""
        self.identities = list(manifest.identities)
        """The identity of each label."""
        self._indexes = _Indexes()

    @classmethod
    def open(cls, folder: str | Path) -> ShardSet:
        """Open a finished set in a folder or at a URL (see `shards/remote.py`).

        Raises `UserError` if there is no finished set or its manifest is damaged.
        """
        if isinstance(folder, str) and is_url(folder):
            remote = Remote(folder)
            return cls(remote.folder, Manifest.load(remote.folder / MANIFEST), remote.digest, remote)
        folder = Path(folder)
        path = folder / MANIFEST
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give the folder of a shard set")
        if not path.is_file():
            raise UserError(
                f"{path}: is missing, so the shard set is not finished; "
                "run the command that writes it again (it resumes where it stopped)"
            )
        manifest = Manifest.load(path)
        return cls(folder, manifest, hashlib.sha256(path.read_bytes()).hexdigest())

    def __len__(self) -> int:
        return self.manifest.samples

    def require_size(self, size: int) -> None:
        """Raise `UserError` unless the faces are `size` × `size` pixels, as configured."""
        height, width = self.manifest.size
        if (height, width) != (size, size):
            raise UserError(
                f"{self.folder}: has faces of {height}×{width} pixels, but size is {size}; "
                f"give a set aligned with --size {size}, or change size"
            )

    @property
    def owners(self) -> NDArray[np.int64]:
        """[faces]: the number of each face's identity in `identities`."""
        runs = np.concatenate([shard.runs for shard in self.manifest.shards])
        return np.repeat(runs[:, 0], runs[:, 1]).astype(np.int64)

    def classes(self, label: str) -> list[str]:
        """The classes of a label: of `identity` in the order of the manifest, of a column such as
        `expression` sorted by name. Raises `UserError` unless every face has that label."""
        if label == IDENTITY:
            return self.identities
        counts = self.manifest.labels.get(label, {})
        if (labelled := sum(counts.values())) < len(self):
            few = f"only {labelled} of {len(self)} faces have" if counts else "its faces do not have"
            raise UserError(
                f"{self.folder}: {few} the label {label}; align the photos again from a CSV with the columns "
                f"path,identity,{label}, filled in on every line"
            )
        return sorted(counts)

    def shard(self, number: int) -> ShardFile:
        """Open a shard for random access. Raises `UserError` if it is missing or damaged."""
        self.fetch(number)
        return ShardFile(self.folder, self.manifest.shards[number], self.manifest.encoding)

    def fetch(self, number: int) -> None:
        """Download a shard of a remote set unless it is cached. Raises `UserError` if that fails."""
        if self.remote:
            self.remote.fetch(self.manifest.shards[number])

    def faces(self) -> Iterator[Face]:
        """Decode every face, in the order of writing. Raises `UserError` at a broken sample."""
        for number, info in enumerate(self.manifest.shards):
            labels = np.repeat(info.runs[:, 0], info.runs[:, 1]).tolist()
            with self.shard(number) as shard:
                for sample, label in enumerate(labels):
                    yield self.face(shard, sample, self.identities[label])

    def faces_at(self, places: Collection[int]) -> Iterator[tuple[int, Face]]:
        """Decode the faces at some positions in the order of `faces()`; yields (position, face) in order."""
        wanted = np.unique(np.fromiter(places, np.int64, len(places)))
        numbers = np.searchsorted(self._ends, wanted, side="right")
        for number in np.unique(numbers).tolist():
            info, inside = self.manifest.shards[number], wanted[numbers == number]
            samples = inside - (self._ends[number] - info.samples)
            runs = np.searchsorted(np.cumsum(info.runs[:, 1]), samples, side="right")
            with self._known_shard(number) as shard:
                labels = info.runs[runs, 0].tolist()
                for place, sample, label in zip(inside.tolist(), samples.tolist(), labels, strict=True):
                    yield place, self.face(shard, sample, self.identities[label])

    @functools.cached_property
    def _ends(self) -> NDArray[np.int64]:
        """[shards]: position after the last face of each shard."""
        return np.cumsum([info.samples for info in self.manifest.shards])

    def _known_shard(self, number: int) -> ShardFile:
        """Open a shard with its cached index, if there is one.

        Reading a thousand headers takes as long as decoding a hundred faces.
        """
        self.fetch(number)
        index = self._indexes.get(number)
        shard = ShardFile(self.folder, self.manifest.shards[number], self.manifest.encoding, index)
        self._indexes.keep(number, shard.index)
        return shard

    def face(self, shard: ShardFile, sample: int, identity: str) -> Face:
        """Decode one face of an open shard; `identity` is its identity in the manifest."""
        key = shard.key(sample)
        image = room(*self.manifest.size, 3)
        try:
            decode_into(shard.image(sample), self.manifest.encoding, image)
            found, _, source, meta = parse_sidecar(shard.sidecar(sample))
        except (BrokenImage, ValueError) as error:
            raise UserError(f"{shard.path}: sample {key} {error}; write the shard set again") from None
        if found != identity:
            raise UserError(
                f"{shard.path}: sample {key} has identity {found!r}, the manifest says {identity!r}; "
                "write the shard set again"
            )
        return Face(key, image, identity, source, meta)


class _Indexes:
    """A thread-safe LRU cache of shard indexes. A pickled copy starts empty."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, Index] = OrderedDict()
        self._samples = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[_Indexes], tuple[()]]:
        return _Indexes, ()

    def get(self, number: int) -> Index | None:
        with self._lock:
            return self._kept.get(number)

    def keep(self, number: int, index: Index) -> None:
        """Cache a shard's index, and drop the least recently used ones if there are too many."""
        with self._lock:
            if number not in self._kept:
                self._samples += len(index.keys)
            self._kept[number] = index
            self._kept.move_to_end(number)
            while self._samples > INDEXED and len(self._kept) > 1:
                _, forgotten = self._kept.popitem(last=False)
                self._samples -= len(forgotten.keys)
