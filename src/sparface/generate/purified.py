"""Purify faces: a photo, or every face of a set once, by the machinery of made sets."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparface.errors import UserError
from sparface.evaluation.embed import to_floats
from sparface.evaluation.purifiers import Cleaner, open_cleaner
from sparface.evaluation.verification import DEFAULT_SIZE
from sparface.faces.aligner import NO_FACE, Aligner, Alignment
from sparface.faces.photos import BadPhoto, open_photo
from sparface.files import require_writable, write_whole
from sparface.generate.settings import GenerateConfig, PurifyConfig
from sparface.generate.variants import Drawing, Maker
from sparface.shards.codec import encode
from sparface.shards.set import ShardSet


class PurifyMaker(Maker):
    """Makes one purified face of each face of a set."""

    verb: ClassVar[str] = "purify"

    def __init__(
        self, cleaner: Cleaner, storage: PurifyConfig, sources: ShardSet, device: torch.device
    ) -> None:
        settings = GenerateConfig(
            factor=1,
            strength_low=1.0,
            strength_high=1.0,
            encoding=storage.encoding,
            shard_samples=storage.shard_samples,
            batch_size=storage.batch_size,
            seed=storage.seed,
        )
        super().__init__(settings.resolved(1.0), sources, device)
        self.cleaner, self.storage = cleaner, storage
        self.provenance = {"maker": f"purified by {cleaner.digest}"}

    def described(self) -> dict[str, Any]:
        return dataclasses.asdict(self.storage)

    def change_faces(self, drawing: Drawing) -> tuple[Tensor, Tensor, list[str | None]]:
        count = len(drawing.variants)
        return self.cleaner.network(drawing.x), torch.ones_like(drawing.strength), [None] * count


def open_purify(checkpoint: str, shards: Path, storage: PurifyConfig, device: torch.device) -> PurifyMaker:
    """Open a purifier for the faces of a set. Raises `UserError` if one of them cannot be used."""
    storage.validate()
    cleaner, sources = open_cleaner(checkpoint, device, storage.seed), ShardSet.open(shards)
    if cleaner.size is not None:
        sources.require_size(cleaner.size)
    return PurifyMaker(cleaner, storage, sources, device)


@torch.no_grad()
def purify_photo(
    checkpoint: str, photo: Path, out: Path, *, already_cropped: bool = False, seed: int = 0
) -> None:
    """Align the face of a photo as the purifier's training faces were, purify it, and write it as a PNG.

    Raises `UserError` if the purifier or the photo cannot be used, or `out` does not end in .png.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"{out}: is written as PNG; name a file that ends in .png")
    require_writable(out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cleaner = open_cleaner(checkpoint, device, seed)
    aligner = Aligner(Alignment(cleaner.size or DEFAULT_SIZE, cleaner.template, already_cropped))
    try:
        image, _ = aligner.align(open_photo(photo))
    except BadPhoto as problem:
        hint = "; if it is a tight crop of a face, give --already-cropped" if str(problem) == NO_FACE else ""
        raise UserError(f"{photo}: {problem}{hint}") from None
    made = cleaner.network(to_floats([image], device))[0]
    pixels = (made * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
    write_whole(out, encode(pixels, "png", 0))
