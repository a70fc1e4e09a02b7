"""The manifest of a shard set: its fields, how to write it, and how to check an untrusted one.

`docs/shard-format.md` specifies the format. Everything read from disk is checked here before it is used; an
invalid manifest raises `UserError` naming the file and the field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sparface.config import ENCODINGS, LOSSY, Encoding
from sparface.errors import UserError
from sparface.files import read_bounded
from sparface.shards.format import (
    MAX_SAMPLES,
    MAX_SIDE,
    dump_json,
    is_identity,
    is_set_name,
    shard_file,
)
from sparface.shards.labels import Classes, are_classes

SCHEMA = 1
MANIFEST = "manifest.json"
MAX_MANIFEST = 1 << 30
"""Maximum size of a manifest in bytes: about ten million runs."""
MIN_SAMPLE, MAX_SHARD = 4 * 512, 1 << 40
"""Minimum size of a sample in a tar (two headers and one block per file) and maximum size of a shard, in
bytes; they bound what a hostile manifest can make us allocate."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHARD_FIELDS = {"file", "samples", "bytes", "sha256", "runs"}


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """The manifest's entry for one shard."""

    file: str
    samples: int
    bytes: int
    sha256: str
    runs: NDArray[np.int32]
    """[runs, 2]: label and count of each run, in tar order."""


@dataclass(frozen=True)
class Manifest:
    """The table of contents of a shard set; it exists only for a finished set."""

    name: str
    size: tuple[int, int]
    """Height and width of every face, pixels."""
    encoding: Encoding
    identities: dict[str, int]
    """Identity → number of samples. The label of an identity is its position."""
    shards: tuple[ShardInfo, ...]
    provenance: dict[str, Any]
    licence: str
    schema: int = SCHEMA
    labels: Classes = field(default_factory=dict)
    """Label column, such as `expression` → class → number of faces."""

    @property
    def lossy(self) -> bool:
        """Whether the encoding loses information."""
        return self.encoding in LOSSY

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read and check a manifest. Raises `UserError` naming the file and the field."""
        try:
            document = json.loads(read_bounded(path, MAX_MANIFEST), object_hook=_with_array)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check the folder") from None
        except (ValueError, RecursionError):
            raise UserError(f"{path}: is not JSON; restore it or write the shard set again") from None
        return _parse(path, document)

    def to_json(self) -> bytes:
        """The content of the manifest file, with one field or shard per line; deterministic."""
        shards = ",\n".join(" " + dump_json(shard_document(shard)).decode() for shard in self.shards)
        fields = {
            "schema": self.schema,
            "name": self.name,
            "size": list(self.size),
            "encoding": self.encoding,
            "lossy": self.lossy,
            "identities": self.identities,
            **({"labels": self.labels} if self.labels else {}),
            "provenance": self.provenance,
            "licence": self.licence,
        }
        lines = [f'"{name}": {dump_json(value, sort=False).decode()}' for name, value in fields.items()]
        lines.append(f'"shards": [\n{shards}\n]')
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def count_identities(names: Sequence[str], shards: Sequence[ShardInfo]) -> dict[str, int]:
    """Identity → number of samples in the shards, given the identities in label order."""
    runs = np.concatenate([shard.runs for shard in shards])
    counts = np.zeros(len(names), np.int64)
    np.add.at(counts, runs[:, 0], runs[:, 1])
    return dict(zip(names, counts.tolist(), strict=True))


def shard_document(shard: ShardInfo) -> dict[str, Any]:
    """A shard's entry for the manifest and for the writer's journal."""
    return {
        "file": shard.file,
        "samples": shard.samples,
        "bytes": shard.bytes,
        "sha256": shard.sha256,
        "runs": shard.runs.tolist(),
    }


def parse_shard(document: Any, expected_file: str) -> ShardInfo:
    """Parse and check a shard's entry. Raises `ValueError` saying what is wrong."""
    return _parse_shards([_with_array(document)], [expected_file])[0]


def _with_array(entry: Any) -> Any:
    """Replace the runs in a shard's entry with an array, or with None if they are invalid.

    Other objects are returned unchanged. This is called while the JSON is parsed, because ten million runs
    would take gigabytes as lists.
    """
    if isinstance(entry, dict) and entry.keys() == _SHARD_FIELDS:
        entry["runs"] = _pairs(entry["runs"])
    return entry


def _parse_shards(entries: list[Any], files: list[str]) -> tuple[ShardInfo, ...]:
    """Parse and check the entries of all shards. Their runs are checked as one array, for speed."""
    for number, (entry, file) in enumerate(zip(entries, files, strict=True)):
        if problem := _entry_problem(entry, file):
            raise ValueError(f"shard {number} {problem}")
    runs, bounds = _parse_runs([entry["runs"] for entry in entries], [entry["samples"] for entry in entries])
    return tuple(
        ShardInfo(entry["file"], entry["samples"], entry["bytes"], entry["sha256"], runs[first:last])
        for entry, (first, last) in zip(entries, pairwise(bounds), strict=True)
    )


def _entry_problem(entry: Any, expected_file: str) -> str:
    """What is wrong with a shard's entry, apart from the values of its runs; empty if nothing is."""
    if not isinstance(entry, dict):
        return "is not an object"
    if entry.keys() != _SHARD_FIELDS:
        return "has missing or unknown fields"
    if entry["file"] != expected_file:
        return f"has a file other than {expected_file}"
    for name in ("samples", "bytes"):
        if type(entry[name]) is not int or entry[name] <= 0:
            return f"has {name} that is not a count"
    if entry["samples"] > MAX_SAMPLES:
        return f"has more than {MAX_SAMPLES:,} samples"
    if not entry["samples"] * MIN_SAMPLE <= entry["bytes"] <= MAX_SHARD:
        return "has a number of bytes that is impossible for its number of samples"
    if not isinstance(entry["sha256"], str) or _SHA256.fullmatch(entry["sha256"]) is None:
        return "has no valid sha256"
    return "has runs that are not [label, count] pairs" if entry["runs"] is None else ""


def _parse_runs(shards: list[NDArray[np.int64]], samples: list[int]) -> tuple[NDArray[np.int32], list[int]]:
    """Join and check the runs: [all runs, 2], and [shards + 1] bounds of each shard's runs in it.

    Raises `ValueError` naming the shard.
    """
    runs = np.concatenate(shards)
    bounds = np.cumsum([0] + [len(runs) for runs in shards])
    labels, counts = runs[:, 0], runs[:, 1]
    is_repeated = np.concatenate([[False], labels[1:] == labels[:-1]])
    is_repeated[bounds[:-1]] = False
    is_out_of_range = (labels < 0) | (counts <= 0) | (runs >= 2**31).any(1)
    for wrong, problem in (
        (is_out_of_range, "has a run out of range"),
        (is_repeated, "has two consecutive runs of one identity"),
    ):
        if wrong.any():
            number = int(np.searchsorted(bounds, wrong.argmax(), side="right")) - 1
            raise ValueError(f"shard {number} {problem}")
    differs = np.add.reduceat(counts, bounds[:-1]) != np.array(samples)
    if differs.any():
        raise ValueError(f"shard {differs.argmax()} has runs that do not sum to its samples")
    return runs.astype(np.int32), bounds.tolist()


def _pairs(runs: Any) -> NDArray[np.int64] | None:
    """Convert a list of [label, count] pairs of integers to an array; None if it is something else.

    Types are checked first: given strings, NumPy would allocate the length of the longest for every element.
    """
    if not isinstance(runs, list) or not runs or {*map(type, runs)} != {list} or {*map(len, runs)} != {2}:
        return None
    if {*map(type, chain.from_iterable(runs))} != {int}:
        return None
    try:
        return np.array(runs, np.int64)
    except OverflowError:
        return None


def _parse(path: Path, document: Any) -> Manifest:
    if not isinstance(document, dict) or "schema" not in document:
        raise UserError(f"{path}: is not the manifest of a shard set; write the shard set again")
    if document["schema"] != SCHEMA:
        raise UserError(
            f"{path}: schema {document['schema']!r} is not supported (expected {SCHEMA}); update sparface"
        )
    try:
        return _parse_fields(document)
    except ValueError as error:
        raise UserError(f"{path}: {error}; restore it or write the shard set again") from None


def _parse_fields(document: dict[str, Any]) -> Manifest:
    known = ("schema", "name", "size", "encoding", "lossy", "identities", "provenance", "licence", "shards")
    for name in known:
        _check(name in document, f"'{name}' is missing")
    for name in document:
        _check(name in (*known, "labels"), f"'{name}' is unknown")
    _check_field(document, "name", lambda v: isinstance(v, str) and is_set_name(v))
    _check_field(document, "encoding", lambda v: v in ENCODINGS)
    _check_field(document, "lossy", lambda v: v is (document["encoding"] in LOSSY))
    _check_field(document, "size", _is_size)
    _check_field(document, "identities", _are_identities)
    _check_field(document, "provenance", lambda v: isinstance(v, dict))
    _check_field(document, "licence", lambda v: isinstance(v, str))
    _check_field(document, "shards", lambda v: isinstance(v, list) and len(v) > 0)
    files = [shard_file(document["name"], number) for number in range(len(document["shards"]))]
    shards = _parse_shards(document["shards"], files)
    _check_counts(document["identities"], shards)
    if "labels" in document:
        samples = sum(shard.samples for shard in shards)
        _check_field(document, "labels", lambda v: are_classes(v, samples))
    height, width = document["size"]
    return Manifest(
        name=document["name"],
        size=(height, width),
        encoding=cast(Encoding, document["encoding"]),
        identities=document["identities"],
        shards=shards,
        provenance=document["provenance"],
        licence=document["licence"],
        labels=document.get("labels", {}),
    )


def _check_counts(identities: Mapping[str, int], shards: tuple[ShardInfo, ...]) -> None:
    runs = np.concatenate([shard.runs for shard in shards])
    _check(int(runs[:, 0].max()) < len(identities), "a run has a label that has no identity")
    counts = np.bincount(runs[:, 0], weights=runs[:, 1], minlength=len(identities))
    agree = counts.astype(np.int64).tolist() == list(identities.values())
    _check(agree, "'identities' and the shards' runs disagree")


def _is_size(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return all(type(side) is int and 1 <= side <= MAX_SIDE for side in value)


def _are_identities(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(is_identity(name) and type(count) is int and count >= 0 for name, count in value.items())
    )


def _check_field(document: Mapping[str, Any], name: str, is_valid: Callable[[Any], bool]) -> None:
    _check(is_valid(document[name]), f"'{name}' has an invalid value")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
