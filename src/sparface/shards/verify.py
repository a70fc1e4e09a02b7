"""Is a shard set what its manifest says, down to the last byte, and what is in it?"""

from __future__ import annotations

import hashlib
import os
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sparface.errors import UserError
from sparface.files import inside, open_regular
from sparface.shards.codec import BrokenImage, decode_into
from sparface.shards.format import parse_sidecar
from sparface.shards.index import ShardFile
from sparface.shards.manifest import Manifest, ShardInfo
from sparface.shards.set import ShardSet
from sparface.text import printable


def verify(folder: str | Path) -> list[str]:
    """Problems of a shard set, one line each; none when it is sound.

    Checks the manifest, each shard's presence, size and digest, the names in it, that keys are
    unique, that each sample's JSON agrees with the manifest and that its image decodes to the
    manifest's size; also shards that the manifest does not know. Memory: the keys. Raises `UserError` when
    there is no set, or no sound manifest.
    """
    shard_set = ShardSet.open(folder)
    problems = list(_stray_shards(shard_set))
    keys: dict[str, str] = {}
    for number in range(len(shard_set.manifest.shards)):
        problems += dict.fromkeys(_shard_problems(shard_set, number, keys))
    return problems


def damaged(shard_set: ShardSet, number: int) -> str | None:
    """What keeps a shard from having the manifest's bytes; nothing of what is in them is looked at."""
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
        return f"{path}: sha256 is not the manifest's: the file was altered; restore or write it again"
    return None


def describe(folder: str | Path) -> str:
    """What is in a shard set, for people. Raises `UserError` when there is no finished set."""
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
        "one image": f"{ones:,} identities; each gives groups of copies of its image",
        "shards": f"{len(manifest.shards):,}, {_bytes(manifest) / 1e6:,.1f} MB",
        "digest": shard_set.digest,
        "licence": manifest.licence or "not stated",
    }
    rows |= {f"from {name}": str(value) for name, value in manifest.provenance.items()}
    return "\n".join(_row(name, value) for name, value in rows.items())


def _row(name: str, value: str) -> str:
    """A line of the table. Names and values come from a file that somebody else may have written."""
    return f"{printable(name):<12} {printable(value)}"


def _bytes(manifest: Manifest) -> int:
    return sum(shard.bytes for shard in manifest.shards)


def _stray_shards(shard_set: ShardSet) -> Iterator[str]:
    known = {shard.file for shard in shard_set.manifest.shards}
    for path in sorted(shard_set.folder.glob("*.tar")):
        if path.name not in known:
            yield f"{path}: is not in the manifest; delete it if it is not yours"


def _shard_problems(shard_set: ShardSet, number: int, keys: dict[str, str]) -> Iterator[str]:
    info = shard_set.manifest.shards[number]
    if problem := damaged(shard_set, number):
        yield problem
    if os.access(shard_set.folder / info.file, os.R_OK):
        try:
            with shard_set.shard(number) as shard:
                yield from _sample_problems(shard_set, shard, info, keys)
        except UserError as error:
            yield str(error)


def _sample_problems(
    shard_set: ShardSet, shard: ShardFile, info: ShardInfo, keys: dict[str, str]
) -> Iterator[str]:
    manifest, identities = shard_set.manifest, shard_set.identities
    image = np.empty((*manifest.size, 3), np.uint8)
    for sample, label in enumerate(np.repeat(info.runs[:, 0], info.runs[:, 1]).tolist()):
        key = shard.key(sample)
        if key in keys:
            yield f"{shard.path}: sample {key} is also in {keys[key]}; keys must be unique"
        keys[key] = info.file
        try:
            identity, told_label, _, _ = parse_sidecar(shard.sidecar(sample))
            if (identity, told_label) != (identities[label], label):
                raise ValueError(f"is of {identity!r}, the manifest says {identities[label]!r}")
            decode_into(shard.image(sample), manifest.encoding, image)
        except (BrokenImage, ValueError) as error:
            yield f"{shard.path}: sample {key} {error}"
