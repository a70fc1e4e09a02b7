"""Embed faces, and find the faces of a shard set that pairs refer to."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparface.errors import UserError
from sparface.evaluation.pairs import identity_of
from sparface.progress import track
from sparface.recipes.base import evaluating
from sparface.shards.format import parse_sidecar
from sparface.shards.set import ShardSet

T = TypeVar("T")
Image = npt.NDArray[np.uint8]
Embedding = npt.NDArray[np.float32]


class Mirrored(nn.Module):
    """Embeds a face as the normalised sum of the embeddings of the face and of its mirror image."""

    def __init__(self, recognizer: nn.Module) -> None:
        super().__init__()
        self.recognizer = recognizer
        self.training = recognizer.training

    def forward(self, faces: Tensor) -> Tensor:
        """Map faces [N,3,H,W] in [0,1] to embeddings [N,E] of length 1."""
        return F.normalize(self.recognizer(faces).float() + self.recognizer(faces.flip(3)).float(), dim=1)


def as_validated(recognizer: nn.Module, mirror: bool) -> nn.Module:
    """Return the recognizer in the form that `validation.mirror` sets."""
    return Mirrored(recognizer) if mirror else recognizer


def embed(
    recognizer: nn.Module, faces: Iterable[tuple[T, Image]], *, batch_size: int = 64
) -> dict[T, Embedding]:
    """Embed named faces uint8 [H, W, 3], without variation; returns name → embedding [E].

    Runs on the recognizer's device in eval mode and fp32, one batch in memory at a time, and restores the
    modes of its modules afterwards.
    """
    device = next((p.device for p in recognizer.parameters()), torch.device("cpu"))
    found: dict[T, Embedding] = {}
    with evaluating(recognizer), torch.autocast(device.type, enabled=False):
        for batch in batches(faces, batch_size):
            rows = recognizer(to_floats([image for _, image in batch], device)).float().cpu().numpy()
            found.update((name, row) for (name, _), row in zip(batch, rows, strict=True))
    return found


def to_floats(faces: Sequence[Image], device: torch.device) -> Tensor:
    """Stack faces uint8 [H,W,3] into floats [N,3,H,W] in [0,1]."""
    return torch.from_numpy(np.stack(faces)).to(device).permute(0, 3, 1, 2).float() / 255


def pixels_digest(image: Image) -> bytes:
    """SHA-256 of the pixels, by which equal pictures are found in several sets."""
    return hashlib.sha256(image.tobytes()).digest()


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Divide items into lists of `size`; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


@dataclass(frozen=True)
class Sample:
    """Embedded faces of a shard set, in its order."""

    places: npt.NDArray[np.int64]
    """[N]: index of each face in the set, ascending."""
    keys: list[str]
    identity: npt.NDArray[np.int64]
    """[N]: index of each face's person in `people`."""
    people: list[str]
    """The people of these faces, sorted."""
    embeddings: npt.NDArray[np.float64]
    """[N, E]"""


def embed_faces(recognizer: nn.Module, shard_set: ShardSet, places: Collection[int]) -> Sample:
    """Embed some faces of a set. Raises `UserError` naming the first one whose embedding is not finite."""
    keys: list[str] = []
    names: list[str] = []

    def stream() -> Iterator[tuple[int, Image]]:
        for place, face in shard_set.faces_at(places):
            keys.append(face.key)
            names.append(face.identity)
            yield place, face.image

    found = embed(recognizer, track(stream(), total=len(places), unit="faces"))
    people = sorted(set(names))
    index = {name: number for number, name in enumerate(people)}
    require_finite(dict(zip(keys, found.values(), strict=True)))
    return Sample(
        np.fromiter(found, np.int64),
        keys,
        np.array([index[name] for name in names], np.int64),
        people,
        np.stack(list(found.values())).astype(np.float64),
    )


def require_finite(embeddings: Mapping[str, Embedding]) -> None:
    """Raise `UserError` naming the first face whose embedding is not finite."""
    bad = [name for name, row in embeddings.items() if not np.isfinite(row).all()]
    if bad:
        raise UserError(
            f"{bad[0]}: its embedding is not finite, like those of {len(bad)} of {len(embeddings)} faces; "
            "the recognizer has diverged, or cannot embed this face"
        )


def locate(shard_set: ShardSet, references: Collection[str]) -> dict[str, int]:
    """Find the referenced faces; returns reference → index in the order of `shard_set.faces()`.

    A reference is `#index`, a face's source without its suffix, the file name in it, or its key. Raises
    `UserError` if faces are missing, with their number and the first few, or if a reference is ambiguous.
    """
    placed = {name: int(name[1:]) for name in references if re.fullmatch(r"#[0-9]+", name)}
    named = set(references) - set(placed)
    found = {name: place for name, place in placed.items() if place < len(shard_set)}
    found |= unique(_names(shard_set) if named else (), named, str(shard_set.folder))
    hint = "align skips photos without a face; use --photos instead of --shards to crop them at the centre"
    require_all(references, found, f"{shard_set.folder}", "faces", hint)
    return found


def unique(named: Iterable[tuple[str, T]], wanted: Collection[str], where: str) -> dict[str, T]:
    """Return the wanted ones of (name, thing) pairs. Raises `UserError` if a wanted name is ambiguous."""
    found: dict[str, T] = {}
    for name, thing in named:
        if name in wanted and found.setdefault(name, thing) != thing:
            raise UserError(f"{where}: {name} is ambiguous; keep only one of this name")
    return found


def require_all(wanted: Collection[str], found: Collection[str], where: str, what: str, hint: str) -> None:
    """Raise `UserError` if something wanted was not found, with its number, the first few and a hint."""
    if missing := [name for name in wanted if name not in found]:
        few = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        count = f"{len(missing)} of the {len(wanted)} {what} named are missing"
        raise UserError(f"{where}: {count}: {few}; {hint}")


def without_suffix(source: str) -> str:
    """Turn `NAME/NAME_0001.jpg` into `NAME/NAME_0001`."""
    return str(PurePosixPath(source).with_suffix(""))


def _names(shard_set: ShardSet) -> Iterator[tuple[str, int]]:
    """Yield every name of every face with its index; reads only the JSON files."""
    start = 0
    for number, info in enumerate(shard_set.manifest.shards):
        with shard_set.shard(number) as shard:
            for sample in range(info.samples):
                try:
                    source = without_suffix(parse_sidecar(shard.sidecar(sample))[2])
                except ValueError as error:
                    raise UserError(f"{shard.path}: sample {shard.key(sample)} {error}") from None
                names = {shard.key(sample), source, PurePosixPath(source).name}
                yield from ((name, start + sample) for name in names)
        start += info.samples


class PairFaces:
    """The faces that pairs refer to, as a stream to embed; counts how they were aligned."""

    def __init__(self, shard_set: ShardSet, references: Collection[str]) -> None:
        """Raises `UserError` if the set lacks faces."""
        self.shard_set = shard_set
        self.places = locate(shard_set, references)
        self.methods: Counter[str] = Counter()
        self._names: dict[int, tuple[str, str]] = {}

    def __len__(self) -> int:
        return len(set(self.places.values()))

    def __iter__(self) -> Iterator[tuple[int, Image]]:
        self.methods.clear()
        for place, face in self.shard_set.faces_at(self.places.values()):
            self.methods[str(face.meta.get("method", "as stored"))] += 1
            self._names[place] = face.key, face.identity
            yield place, face.image

    def key(self, reference: str) -> str:
        """The key of a face that has been embedded."""
        return self._names[self.places[reference]][0]

    def identity(self, reference: str) -> str:
        """The person of a face that has been embedded."""
        return identity_of(reference) or self._names[self.places[reference]][1]

    def embed(
        self,
        recognizer: nn.Module,
        faces: Iterable[tuple[int, Image]] | None = None,
    ) -> dict[str, Embedding]:
        """Return reference → embedding. `faces` is this stream, if wrapped, for example to show progress."""
        by_place = embed(recognizer, self if faces is None else faces)
        return {reference: by_place[place] for reference, place in self.places.items()}
