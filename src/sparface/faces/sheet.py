"""Contact sheets: faces of several shard sets side by side, to compare their alignment by eye."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sparface.errors import UserError
from sparface.faces.templates import arcface_template
from sparface.files import require_writable, write_whole
from sparface.shards.format import Face
from sparface.shards.set import ShardSet

_MEAN_OF = 200
"""Faces averaged into the mean face: where eyes and mouth stay sharp, the alignment agrees."""
_GAP = 6
_TITLE = 34


def contact_sheet(
    sets: Sequence[ShardSet | str | Path],
    out: Path,
    *,
    columns: int = 6,
    rows: int = 8,
    seed: int = 0,
    tile: int = 96,
) -> None:
    """Write a PNG with one block per shard set: a title, the mean face, and random faces.

    A block is `columns` wide; its first row shows the mean of up to 200 faces and guides at
    ArcFace's eyes and mouth, and `rows` rows of faces follow, drawn with `seed`. Tiles are `tile`
    pixels wide, whatever the sets' size.

    Raises UserError: no set, or one that is missing or broken.
    """
    if not sets:
        raise UserError("contact sheet: no shard set given; name at least one")
    require_writable(Path(out))
    opened = [shards if isinstance(shards, ShardSet) else ShardSet.open(shards) for shards in sets]
    blocks = [_block(shards, columns, rows, seed, tile) for shards in opened]
    width = sum(block.width for block in blocks) + _GAP * (len(blocks) - 1)
    sheet = Image.new("RGB", (width, max(block.height for block in blocks)), "white")
    left = 0
    for block in blocks:
        sheet.paste(block, (left, 0))
        left += block.width + _GAP
    picture = io.BytesIO()
    sheet.save(picture, format="PNG")
    write_whole(Path(out), picture.getvalue())


def sample_faces(shards: ShardSet, count: int, seed: int) -> list[Face]:
    """Up to `count` random faces of a set, in random order; reads only their shards."""
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(shards), min(count, len(shards)), replace=False))
    identities, faces, first = shards.identities, [], 0
    for number, info in enumerate(shards.manifest.shards):
        inside = chosen[(chosen >= first) & (chosen < first + info.samples)] - first
        first += info.samples
        if not len(inside):
            continue
        labels = np.repeat(info.runs[:, 0], info.runs[:, 1])
        with shards.shard(number) as shard:
            faces += [shards.face(shard, sample, identities[labels[sample]]) for sample in inside.tolist()]
    return [faces[position] for position in rng.permutation(len(faces))]


def _block(shards: ShardSet, columns: int, rows: int, seed: int, tile: int) -> Image.Image:
    faces = sample_faces(shards, max(_MEAN_OF, columns * rows), seed)
    block = Image.new("RGB", (columns * tile, _TITLE + (rows + 1) * tile), "white")
    draw = ImageDraw.Draw(block)
    height, width = shards.manifest.size
    counts = f"{len(shards)} faces, {len(shards.identities)} identities, {width} x {height}"
    draw.text((2, 1), shards.manifest.name, fill="black", font=ImageFont.load_default(15))
    draw.text((2, 19), counts, fill="gray", font=ImageFont.load_default(11))
    block.paste(_tile(_mean(faces), tile), (0, _TITLE))
    block.paste(_guided(_mean(faces), tile), (tile, _TITLE))
    for position, face in enumerate(faces[: columns * rows]):
        row, column = divmod(position, columns)
        block.paste(_tile(face.image, tile), (column * tile, _TITLE + (row + 1) * tile))
    return block


def _mean(faces: Sequence[Face]) -> NDArray[np.uint8]:
    total = np.zeros(faces[0].image.shape, np.float64)
    for face in faces:
        total += face.image
    return np.asarray((total / len(faces)).round().astype(np.uint8))


def _tile(image: NDArray[np.uint8], tile: int) -> Image.Image:
    return Image.fromarray(image).resize((tile, tile), Image.Resampling.LANCZOS)


def _guided(image: NDArray[np.uint8], tile: int) -> Image.Image:
    """A face with crosses where ArcFace's template has the landmarks."""
    marked = _tile(image, tile)
    draw = ImageDraw.Draw(marked)
    for x, y in arcface_template(tile).tolist():
        draw.line((x - 3, y, x + 3, y), fill="red")
        draw.line((x, y - 3, x, y + 3), fill="red")
    return marked
