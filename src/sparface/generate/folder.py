"""A made set on disk: the settings, shards with one record each, and finally the manifest.

Processes do not communicate. A unit is finished when its record exists. Records are written after their
shards and the manifest after all records, each by an atomic rename. All processes write the same bytes, so
it does not matter which one writes last, or whether two write the same file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparface.config import Encoding
from sparface.errors import UserError
from sparface.files import explain_disk, remove_leftovers, write_whole
from sparface.generate.layout import Layout
from sparface.shards import labels
from sparface.shards.format import dump_json, set_name, shard_file
from sparface.shards.manifest import (
    MANIFEST,
    Manifest,
    ShardInfo,
    count_identities,
    parse_shard,
    shard_document,
)
from sparface.shards.set import ShardSet

UNITS = "units"
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Record:
    """A finished unit."""

    shard: ShardInfo
    counts: dict[str, int]
    """Numbers of `made`, `originals` and `given_up`, and of rejected draws by reason."""
    classes: labels.Classes = field(default_factory=dict)
    """Numbers of faces by label, if the sources have labels."""


class MadeFolder:
    """The folder of one made set. `provenance` has everything that determines its bytes."""

    def __init__(self, folder: Path, layout: Layout, provenance: dict[str, Any], encoding: Encoding) -> None:
        """Raises `UserError` if the folder holds another set, or one made with other settings."""
        self.folder, self.layout = folder, layout
        self.provenance: dict[str, Any] = json.loads(dump_json(provenance))
        self.encoding = encoding
        self.name = set_name(folder)
        self._digest = hashlib.sha256(dump_json(self.provenance)).hexdigest()
        with self.explain_disk():
            self._claim()

    def _claim(self) -> None:
        units = self.folder / UNITS
        path = units / SETTINGS
        if not path.exists():
            if self.folder.is_dir() and any(self.folder.glob("*.tar")):
                raise UserError(f"{self.folder}: contains other shards; use a new folder")
            write_whole(path, dump_json(self.provenance), replace=False)
        self._require_same(path)
        remove_leftovers(self.folder)
        remove_leftovers(units)

    def _require_same(self, path: Path) -> None:
        try:
            there = json.loads(path.read_bytes())
        except ValueError:
            raise UserError(f"{path}: damaged; use a new folder") from None
        if there != self.provenance:
            changed = ", ".join(_differences(there, self.provenance))
            raise UserError(
                f"{self.folder}: made with other settings ({changed}); use the same ones or a new folder"
            )

    def explain_disk(self) -> contextlib.AbstractContextManager[None]:
        return explain_disk(self.folder, "the finished shards are kept")

    def shard_file(self, unit: int) -> str:
        return shard_file(self.name, unit)

    def record(self, unit: int) -> Record | None:
        """Return the record of a finished unit whose shard exists, or None if the unit must be made."""
        try:
            document = json.loads(self._record_path(unit).read_bytes())
            shard = parse_shard(document["shard"], self.shard_file(unit))
            counts = {str(name): int(count) for name, count in document["counts"].items()}
            classes = labels.checked(document.get("classes", {}), shard.samples)
            is_there = (self.folder / shard.file).stat().st_size == shard.bytes
            is_ours = is_there and document["settings"] == self._digest
            return Record(shard, counts, classes) if is_ours else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def store(self, unit: int, data: bytes | memoryview, record: Record) -> None:
        """Write a shard, then its record."""
        document = {
            "settings": self._digest,
            "shard": shard_document(record.shard),
            "counts": record.counts,
            **({"classes": record.classes} if record.classes else {}),
        }
        with self.explain_disk():
            write_whole(self.folder / record.shard.file, data)
            write_whole(self._record_path(unit), dump_json(document))

    def finished(self) -> set[int]:
        """Return the units that have a record, from one directory listing."""
        names = os.listdir(self.folder / UNITS)
        return {int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()}

    def finish(self, sources: ShardSet) -> ShardSet | None:
        """Write the manifest if every unit is finished; else return None."""
        if len(self.finished()) < self.layout.units:  # reading all records of a large set takes minutes
            return None
        records = [record for unit in range(self.layout.units) if (record := self.record(unit))]
        if len(records) < self.layout.units:
            return None
        manifest = Manifest(
            name=self.name,
            size=sources.manifest.size,
            encoding=self.encoding,
            identities=count_identities(sources.identities, [record.shard for record in records]),
            shards=tuple(record.shard for record in records),
            provenance=self.provenance | {"counts": dict(total(records))},
            licence=sources.manifest.licence,
            labels=labels.total(record.classes for record in records),
        )
        with self.explain_disk():
            write_whole(self.folder / MANIFEST, manifest.to_json())
            remove_leftovers(self.folder)
        return ShardSet.open(self.folder)

    def _record_path(self, unit: int) -> Path:
        return self.folder / UNITS / f"{unit:06d}.json"


def total(records: list[Record]) -> Counter[str]:
    """Sum the counts of several units, in a fixed order."""
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record.counts)
    return Counter({name: counts[name] for name in sorted(counts)})


def _differences(there: Any, here: Any, prefix: str = "") -> Iterator[str]:
    """Yield `key: OLD there, NEW here` for each difference."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            yield from _differences(there.get(key), here.get(key), f"{prefix}.{key}" if prefix else key)
    elif there != here:
        yield f"{prefix}: {str(there)[:20]} there, {str(here)[:20]} here"
