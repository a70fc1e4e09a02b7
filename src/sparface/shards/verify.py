"""Verify a shard set against its manifest, byte for byte, and describe its content."""

from __future__ import annotations

import hashlib
import os
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparface.errors import UserError
from sparface.files import inside, open_regular
from sparface.shards.codec import BrokenImage, decode_into
from sparface.shards.format import parse_sidecar
from sparface.shards.index import ShardFile
from sparface.shards.labels import Classes, count, labels_of, total
from sparface.shards.manifest import Manifest, ShardInfo
from sparface.shards.set import ShardSet
from sparface.text import printable

LOOKED_INTO, LOOKED_AT, LONGEST_MAKER = 4, 1_000, 80
"""For the origin of the faces: shards and faces that are looked at, and the longest name that is shown."""
SHOWN = 20
"""Maximum number of classes in a summary."""


def verify(folder: str | Path) -> list[str]:
    """Find the problems of a shard set, as one line each; empty if there are none.

    Checks the manifest; the presence, size, digest and member names of each shard; that keys are unique; that
    the JSON of each sample agrees with the manifest and its image decodes to the right size; and that no
    other shards are in the folder. Keeps all keys in memory. Raises `UserError` if there is no finished set
    or its manifest is invalid.
    """
    shard_set = ShardSet.open(folder)
    problems = list(_stray_shards(shard_set))
    keys: dict[str, str] = {}
    classes: list[Classes] = []
    for number in range(len(shard_set.manifest.shards)):
        problems += dict.fromkeys(_shard_problems(shard_set, number, keys, classes))
    if not problems and total(classes) != shard_set.manifest.labels:
        problems.append(f"{shard_set.folder}: the faces have other labels than the manifest says")
    return problems


def damaged(shard_set: ShardSet, number: int) -> str | None:
    """Why a shard's bytes differ from those in the manifest, or None. The content is not parsed."""
    info = shard_set.manifest.shards[number]
    path = shard_set.folder / info.file
    digest = hashlib.sha256()
    try:
        with open_regular(inside(shard_set.folder, info.file)) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror}); restore the file or write the shard set again"
    if digest.hexdigest() != info.sha256:
        return f"{path}: sha256 differs from the manifest; restore the file or write the shard set again"
    return None


def describe(folder: str | Path) -> str:
    """A readable summary of a shard set. Raises `UserError` if there is no finished set."""
    shard_set = ShardSet.open(folder)
    manifest = shard_set.manifest
    counts = list(manifest.identities.values())
    ones = sum(count == 1 for count in counts)
    rows = {
        "shard set": f"{manifest.name} in {shard_set.folder}",
        "faces": f"{manifest.samples:,} of {manifest.size[0]}x{manifest.size[1]} pixels",
        "encoding": f"{manifest.encoding} ({'lossy' if manifest.lossy else 'lossless'})",
        "identities": f"{len(counts):,}, images each: min {min(counts)}, "
        f"median {statistics.median(counts):g}, max {max(counts)}",
        "one image": f"{ones:,} identities; each forms groups of copies of its image",
        "shards": f"{len(manifest.shards):,}, {_bytes(manifest) / 1e6:,.1f} MB",
        "digest": shard_set.digest,
        "licence": manifest.licence or "not stated",
    }
    rows |= {name: _classes(counts) for name, counts in manifest.labels.items()}
    rows["origin"] = origin(shard_set)
    rows |= {f"from {name}": str(value) for name, value in manifest.provenance.items()}
    return "\n".join(_row(name, value) for name, value in rows.items())


def origin(shard_set: ShardSet) -> str:
    """Whether the faces are real or made, and by what, as up to 1,000 of them say; "not known" if they
    cannot be read, or are not on this machine."""
    shards, found = shard_set.manifest.shards, Counter[str]()
    if shard_set.remote:
        return "not known: the set is not on this machine"
    try:
        for number in np.unique(np.linspace(0, len(shards) - 1, LOOKED_INTO).astype(int)).tolist():
            samples = min(shards[number].samples, LOOKED_AT // LOOKED_INTO)
            with shard_set.shard(number) as shard:
                found.update(_maker(parse_sidecar(shard.sidecar(sample))[3]) for sample in range(samples))
    except (UserError, ValueError):
        return "not known: the faces cannot be read"
    content = shard_set.manifest.provenance.get("content")
    other = content[:LONGEST_MAKER] if isinstance(content, str) else "real"
    shares = [(name or other, count / found.total()) for name, count in found.most_common(SHOWN)]
    return ", ".join(f"{share:.0%} {name}" for name, share in shares)


def _maker(meta: Mapping[str, Any]) -> str:
    """What a face says that it was made by; empty if nothing."""
    return f"made by {str(meta.get('maker', 'unknown'))[:LONGEST_MAKER]}" if meta.get("synthetic") else ""


def _classes(counts: Mapping[str, int]) -> str:
    shown = [f"{number:,} {name}" for name, number in list(counts.items())[:SHOWN]]
    return ", ".join(shown) + (f", … ({len(counts):,} classes)" if len(counts) > SHOWN else "")


def _row(name: str, value: str) -> str:
    """Format a line of the table. Names and values may come from an untrusted file."""
    return f"{printable(name):<12} {printable(value)}"


def _bytes(manifest: Manifest) -> int:
    return sum(shard.bytes for shard in manifest.shards)


def _stray_shards(shard_set: ShardSet) -> Iterator[str]:
    known = {shard.file for shard in shard_set.manifest.shards}
    for path in sorted(shard_set.folder.glob("*.tar")):
        if path.name not in known:
            yield f"{path}: is not in the manifest; move or delete it"


def _shard_problems(
    shard_set: ShardSet, number: int, keys: dict[str, str], classes: list[Classes]
) -> Iterator[str]:
    info = shard_set.manifest.shards[number]
    if problem := damaged(shard_set, number):
        yield problem
    if os.access(shard_set.folder / info.file, os.R_OK):
        try:
            with shard_set.shard(number) as shard:
                yield from _sample_problems(shard_set, shard, info, keys, classes)
        except UserError as error:
            yield str(error)


def _sample_problems(
    shard_set: ShardSet, shard: ShardFile, info: ShardInfo, keys: dict[str, str], classes: list[Classes]
) -> Iterator[str]:
    manifest, identities = shard_set.manifest, shard_set.identities
    metas: list[dict[str, Any]] = []
    image = np.empty((*manifest.size, 3), np.uint8)
    for sample, label in enumerate(np.repeat(info.runs[:, 0], info.runs[:, 1]).tolist()):
        key = shard.key(sample)
        if key in keys:
            yield f"{shard.path}: sample {key} is also in {keys[key]}; keys must be unique"
        keys[key] = info.file
        try:
            identity, found_label, _, meta = parse_sidecar(shard.sidecar(sample))
            metas.append(labels_of(meta, manifest.labels))
            if (identity, found_label) != (identities[label], label):
                raise ValueError(
                    f"has identity {identity!r} (label {found_label}), "
                    f"the manifest says {identities[label]!r} ({label})"
                )
            decode_into(shard.image(sample), manifest.encoding, image)
        except (BrokenImage, ValueError) as error:
            yield f"{shard.path}: sample {key} {error}"
    classes.append(count(metas, manifest.labels))
