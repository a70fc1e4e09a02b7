"""Write faces as a shard set; a crash at any moment loses at most one shard.

Each shard is assembled in memory, written under a temporary name, synced and renamed, and then recorded in
the journal (`unfinished.jsonl`). The manifest is written last. The same faces and settings produce the same
bytes, interrupted or not.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import webdataset

from sparface.config import ENCODINGS, Encoding
from sparface.errors import UserError
from sparface.files import explain_disk, remove_leftovers, sync_folder, write_whole
from sparface.shards.codec import encode
from sparface.shards.format import (
    MAX_KEY,
    MAX_SAMPLES,
    MAX_SIDE,
    Face,
    dump_json,
    is_identity,
    is_key,
    is_set_name,
    is_shard_of,
    shard_file,
    sidecar,
)
from sparface.shards.index import ShardFile
from sparface.shards.journal import ERASE, JOURNAL, Journal, listed_shards
from sparface.shards.labels import Classes, checked, count, is_class, labels_of, require_columns, total
from sparface.shards.manifest import (
    MANIFEST,
    Manifest,
    ShardInfo,
    count_identities,
    parse_shard,
    shard_document,
)


class OpenShard:
    """A shard that is being assembled in memory."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._buffer = io.BytesIO()
        self._tar = webdataset.TarWriter(
            self._buffer, user="sparface", group="sparface", encoder=False, compress=False, mtime=0
        )
        self.runs: list[list[int]] = []
        """[label, count] of each run so far."""

    @property
    def samples(self) -> int:
        return sum(count for _, count in self.runs)

    def add(self, key: str, image: bytes, info: bytes, label: int) -> None:
        """Append a sample: its image file and its JSON file."""
        self._tar.write({"__key__": key, self._encoding: image, "json": info})
        if not self.runs or self.runs[-1][0] != label:
            self.runs.append([label, 0])
        self.runs[-1][1] += 1

    def close(self, file: str) -> tuple[memoryview, ShardInfo]:
        """Finish the tar, and return its bytes and its manifest entry."""
        self._tar.close()
        data = self._buffer.getbuffer()
        runs = np.array(self.runs, dtype=np.int32)
        return data, ShardInfo(file, self.samples, len(data), hashlib.sha256(data).hexdigest(), runs)


class ShardSetWriter:
    """Writes one shard set; a context manager.

    Leaving the with-block normally writes the manifest. After an exception (or a kill), the finished shards
    are kept and a new writer with the same arguments resumes after them; the caller must skip the input up to
    and including `resumed`. The faces of an identity must be consecutive. A shard ends at the first identity
    boundary at or after `shard_samples`; an identity with more faces than that is split.

    `overwrite` deletes a finished set, or an unfinished one with other settings; an unfinished set with the
    same settings is resumed. Only shards listed in the old manifest or the journal are ever deleted. Keeps
    one shard (fewer than 2 × `shard_samples` faces) and all keys in memory.
    """

    resumed: Any | None
    """The `progress` stored with the last finished shard of an interrupted write, or None for a new set."""
    resumed_notes: list[Any]
    """The notes stored with all finished shards of an interrupted write."""

    def __init__(
        self,
        folder: str | Path,
        *,
        name: str,
        size: tuple[int, int],
        encoding: Encoding = "png",
        quality: int = 95,
        shard_samples: int = 1000,
        provenance: Mapping[str, Any] | None = None,
        licence: str = "",
        overwrite: bool = False,
        companions: Sequence[str] = (),
        columns: Sequence[str] = (),
    ) -> None:
        """Start or resume. `size` is (height, width) in pixels; `provenance` must be JSON-serializable and
        the same when resuming; `companions` are the names of other files that the caller will write to the
        folder; `columns` are the entries of the faces' `meta` that are labels, whose classes the manifest
        lists. Raises `UserError` for an invalid setting, a finished set, a set interrupted under other
        settings, files in the folder that would be overwritten, or a second writer."""
        self.folder = Path(folder)
        self._companions = companions
        self._settings = {
            "name": name,
            "size": list(size),
            "encoding": encoding,
            "quality": quality,
            "shard_samples": shard_samples,
            "provenance": json.loads(dump_json(dict(provenance or {}))),
            "licence": licence,
            **({"columns": list(columns)} if columns else {}),
        }
        _check_settings(name, size, encoding, quality, shard_samples)
        require_columns(columns, str(self.folder))
        self._found: dict[str, Any] = {}
        self._name, self._size, self._encoding, self._quality = name, size, encoding, quality
        self._shard_samples = shard_samples
        self._labels: dict[str, int] = {}
        self._names: list[str] = []
        self._keys: set[str] = set()
        self._columns, self._classes = columns, list[Classes]()
        self._labelled: list[dict[str, Any]] = []  # the labels of each face of the open shard
        self._shards: list[ShardInfo] = []
        self._identity = ""
        self._progress: Any = None
        self._notes: list[Any] = []
        self.resumed, self.resumed_notes = None, []
        self._open = OpenShard(encoding)
        with self._explain_disk():
            self._start(overwrite)

    def __enter__(self) -> ShardSetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                with self._explain_disk():
                    self._finish()
        finally:
            # without a finished shard there is nothing to resume
            self._journal.close(delete=not self._shards)

    def add(self, face: Face, progress: Any = None, notes: Sequence[Any] = ()) -> None:
        """Append a face.

        After an interruption, `resumed` is the `progress` of the last face in a finished shard, and
        `resumed_notes` are the `notes` of all faces up to that one; both must be JSON-serializable. Raises
        `UserError` for an invalid face, a repeated key, an identity whose faces are not consecutive, or a
        full disk.
        """
        self._check_face(face)
        image = encode(face.image, self._encoding, self._quality)
        info = sidecar(face, self._labels.get(face.identity, len(self._names)))
        if self._shard_is_full(face.identity):
            with self._explain_disk():
                self._close_shard()
        label = self._label(face.identity)
        self._open.add(face.key, image, info, label)
        self._keys.add(face.key)
        self._labelled.append(labels_of(face.meta, self._columns))
        self._identity, self._progress = face.identity, progress
        self._notes += notes

    def _check_face(self, face: Face) -> None:
        if not is_key(face.key):
            raise UserError(f"key {face.key!r}: must be 1 to {MAX_KEY} letters, digits, '_' or '-'")
        if face.key in self._keys:
            raise UserError(f"key {face.key}: is already in {self.folder}; give every sample a unique key")
        if not is_identity(face.identity):
            raise UserError(
                f"face {face.key}: identity {face.identity!r} is not 1 to 200 printable characters"
            )
        if face.identity != self._identity and face.identity in self._labels:
            raise UserError(f"face {face.key}: identity {face.identity} is not consecutive; sort by identity")
        for column, name in labels_of(face.meta, self._columns).items():
            if not is_class(name):
                raise UserError(f"face {face.key}: {column} {name!r} is not 1 to 200 printable characters")
        if face.image.dtype != np.uint8 or face.image.shape != (*self._size, 3):
            expected = (*self._size, 3)
            raise UserError(f"face {face.key}: {face.image.dtype} {face.image.shape} is not uint8 {expected}")

    def _label(self, identity: str) -> int:
        """The label of an identity; a new identity gets the next free label."""
        if identity not in self._labels:
            self._labels[identity] = len(self._names)
            self._names.append(identity)
        return self._labels[identity]

    def _shard_is_full(self, identity: str) -> bool:
        if not self._open.runs:
            return False
        if identity == self._identity:
            return self._open.runs[-1][1] >= self._shard_samples
        return self._open.samples >= self._shard_samples

    def _close_shard(self) -> None:
        data, shard = self._open.close(shard_file(self._name, len(self._shards)))
        write_whole(self.folder / shard.file, data)
        names = self._names[int(shard.runs[0, 0]) : int(shard.runs[-1, 0]) + 1]
        record = {"shard": shard_document(shard), "names": names, "progress": self._progress}
        self._classes.append(count(self._labelled, self._columns))
        if self._columns:
            record["classes"] = self._classes[-1]
        self._journal.append(record | {"notes": self._notes})
        self._notes, self._labelled = [], []
        self._shards.append(shard)
        self._open = OpenShard(self._encoding)

    def _finish(self) -> None:
        if self._open.runs:
            self._close_shard()
        if not self._shards:
            raise UserError(f"{self.folder}: no faces were written; check the input")
        write_whole(self.folder / MANIFEST, self._manifest().to_json())
        self._journal.close(delete=True)
        sync_folder(self.folder)

    def record(self, **found: Any) -> None:
        """Add JSON-serializable results, such as counts, to the manifest's provenance."""
        self._found |= found

    def _manifest(self) -> Manifest:
        return Manifest(
            name=self._name,
            size=self._size,
            encoding=self._encoding,
            identities=count_identities(self._names, self._shards),
            shards=tuple(self._shards),
            provenance=self._settings["provenance"] | self._found,
            licence=self._settings["licence"],
            labels=total(self._classes),
        )

    def _start(self, overwrite: bool) -> None:
        self._require_unfinished(overwrite)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not overwrite and not (self.folder / JOURNAL).exists():
            for name in self._companions:
                if (self.folder / name).exists():
                    raise UserError(f"{self.folder / name}: already exists; move it, or use --overwrite")
        self._journal = Journal(self.folder)
        try:
            self._require_unfinished(overwrite)  # another writer may have finished before we got the lock
            self._resume_or_clear(overwrite)
        except BaseException:
            self._journal.close(delete=not self._shards and not self._journal.read())
            raise

    def _require_unfinished(self, overwrite: bool) -> None:
        if not overwrite and (self.folder / MANIFEST).exists():
            raise UserError(f"{self.folder}: is a finished shard set; use --overwrite or another folder")

    def _resume_or_clear(self, overwrite: bool) -> None:
        records = self._journal.read()
        is_finished = (self.folder / MANIFEST).exists()
        is_same = bool(records) and records[0] == {"settings": self._settings}
        is_erased = bool(records) and records[0].keys() == {ERASE} and not is_finished
        if records and not (is_same or is_erased or overwrite):
            raise UserError(
                f"{self.folder}: contains a shard set interrupted under other settings or provenance; "
                "use the same ones, --overwrite or another folder"
            )
        remove_leftovers(self.folder, alone=True)
        if is_same and not is_finished:
            self._resume(records[1:])
        else:
            self._erase(listed_shards(self.folder, records))

    def _erase(self, ours: set[str]) -> None:
        """Delete the shards of the previous set, after its manifest: a crash in between leaves an unfinished
        set whose journal lists what remains to be deleted."""
        for path in self.folder.glob(f"{self._name}-*.tar"):
            if is_shard_of(self._name, path.name) and path.name not in ours:
                raise UserError(
                    f"{path}: would be overwritten, but no manifest or journal lists it; "
                    "move it or use another folder"
                )
        self._journal.clear()
        if ours:
            self._journal.append({ERASE: sorted(ours)})
        (self.folder / MANIFEST).unlink(missing_ok=True)
        sync_folder(self.folder)
        for name in ours:
            (self.folder / name).unlink(missing_ok=True)
        self._journal.clear()
        self._journal.append({"settings": self._settings})

    def _resume(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            try:
                shard = parse_shard(record["shard"], shard_file(self._name, len(self._shards)))
                names, self._progress = record["names"], record["progress"]
                self.resumed_notes += record["notes"]
                self._classes.append(checked(record.get("classes", {}), shard.samples))
            except (KeyError, TypeError, ValueError):
                raise UserError(
                    f"{self._journal.path}: is damaged; write the set again with --overwrite"
                ) from None
            for name in names:
                self._label(name)
            with ShardFile(self.folder, shard, self._encoding) as file:
                self._keys.update(file.key(sample) for sample in range(len(file)))
            self._shards.append(shard)
            self._identity, self.resumed = names[-1], self._progress

    def _explain_disk(self) -> contextlib.AbstractContextManager[None]:
        return explain_disk(self.folder, f"{len(self._shards)} finished shards are kept")


def _check_settings(
    name: str, size: tuple[int, int], encoding: str, quality: int, shard_samples: int
) -> None:
    if not is_set_name(name):
        raise UserError(f"name: {name!r} is not allowed; must be 1 to 64 letters, digits, '_' or '-'")
    if len(size) != 2 or not all(1 <= side <= MAX_SIDE for side in size):
        raise UserError(f"size: {size} is not allowed; height and width must be 1 to {MAX_SIDE} pixels")
    if encoding not in ENCODINGS:
        raise UserError(f"encoding: {encoding!r} is not allowed; must be one of {', '.join(ENCODINGS)}")
    if not 1 <= quality <= 100:
        raise UserError(f"quality: {quality} is not allowed; must be 1 to 100")
    if not 1 <= shard_samples <= MAX_SAMPLES // 2:  # a shard may get nearly twice as many
        raise UserError(f"shard_samples: {shard_samples} is not allowed; must be 1 to {MAX_SAMPLES // 2}")
