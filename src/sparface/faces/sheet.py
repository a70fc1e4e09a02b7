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
"""Number of faces in the mean face; eyes and mouth are sharp in it if the alignment is consistent."""
_COLUMNS, _ROWS = 6, 8
"""Layout of the faces in a block."""
_TILE, _GAP, _TITLE = 96, 6, 34
"""Width of a face, gap between blocks, and height of a block's title, in pixels."""


def contact_sheet(sets: Sequence[str | Path], out: Path) -> None:
    """Write a PNG with one block per shard set: a title, the mean face and random faces.

    The first row of a block shows the mean of up to 200 faces, without and with marks at ArcFace's landmarks;
    the other rows show faces, which are the same in every call. All faces are scaled to the same size.

    Raises `UserError` if no set is given, or a set is missing or damaged.
    """
    if not sets:
        raise UserError("contact sheet: no shard set given; give at least one")
    require_writable(Path(out))
    blocks = [_block(ShardSet.open(shards)) for shards in sets]
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
    """Sample up to `count` faces of a set, in random order; reads only their shards."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(shards), min(count, len(shards)), replace=False)
    faces = [face for _, face in shards.faces_at(chosen.tolist())]
    return [faces[place] for place in rng.permutation(len(faces))]


def _block(shards: ShardSet) -> Image.Image:
    faces = sample_faces(shards, _MEAN_OF, seed=0)
    block = Image.new("RGB", (_COLUMNS * _TILE, _TITLE + (_ROWS + 1) * _TILE), "white")
    draw = ImageDraw.Draw(block)
    height, width = shards.manifest.size
    counts = f"{len(shards)} faces, {len(shards.identities)} identities, {width} x {height}"
    draw.text((2, 1), shards.manifest.name, fill="black", font=ImageFont.load_default(15))
    draw.text((2, 19), counts, fill="gray", font=ImageFont.load_default(11))
    mean = _mean(faces)
    block.paste(_tile(mean), (0, _TITLE))
    block.paste(_guided(mean), (_TILE, _TITLE))
    for position, face in enumerate(faces[: _COLUMNS * _ROWS]):
        row, column = divmod(position, _COLUMNS)
        block.paste(_tile(face.image), (column * _TILE, _TITLE + (row + 1) * _TILE))
    return block


def _mean(faces: Sequence[Face]) -> NDArray[np.uint8]:
    total = np.zeros(faces[0].image.shape, np.float64)
    for face in faces:
        total += face.image
    return np.asarray((total / len(faces)).round().astype(np.uint8))


def _tile(image: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(image).resize((_TILE, _TILE), Image.Resampling.LANCZOS)


def _guided(image: NDArray[np.uint8]) -> Image.Image:
    """A face with crosses at the landmarks of ArcFace's template."""
    marked = _tile(image)
    draw = ImageDraw.Draw(marked)
    for x, y in arcface_template(_TILE).tolist():
        draw.line((x - 3, y, x + 3, y), fill="red")
        draw.line((x, y - 3, x, y + 3), fill="red")
    return marked
