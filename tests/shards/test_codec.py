"""Our own PNG and NumPy files, read back by Pillow and NumPy; hostile NumPy files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sparface.shards.codec import BrokenImage, decode_into, encode
from traps import Trap


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (48, 48), (112, 96), (257, 3)])
@pytest.mark.parametrize("kind", ["noise", "flat", "ramp"])
def test_png_keeps_every_bit(size: tuple[int, int], kind: str) -> None:
    height, width = size
    image = {
        "noise": np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8),
        "flat": np.full((height, width, 3), 255, np.uint8),
        "ramp": (np.arange(height * width * 3).reshape(height, width, 3) % 256).astype(np.uint8),
    }[kind]
    data = encode(image, "png", 95)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "PNG" and picture.mode == "RGB"
        assert (np.asarray(picture) == image).all()
    out = np.empty_like(image)
    decode_into(data, "png", out)
    assert (out == image).all()
    assert encode(np.asfortranarray(image), "png", 95) == data


def test_numpy_reads_our_npy_files() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    data = encode(np.asfortranarray(image), "npy", 95)
    assert (np.load(io.BytesIO(data)) == image).all()
    out = np.zeros_like(image)
    decode_into(saved(image), "npy", out)
    assert (out == image).all()


def saved(array: Any) -> bytes:
    """The array as NumPy writes it."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def test_other_npy_files_are_refused(tmp_path: Path) -> None:
    image = np.zeros((5, 7, 3), np.uint8)
    sound = saved(image)
    hostile = {
        "pickled": saved(np.array([Trap(tmp_path / "run")], dtype=object)),
        "of another size": saved(image[:4]),
        "huge": sound.replace(b"(5, 7, 3), }   ", b"(10**14, 7, 3)}"),
        "of another type": saved(image.astype(np.int8)),
        "by columns": saved(np.asfortranarray(image)),
        "cut off": sound[:-1],
        "too long": sound + b"x",
        "empty": b"",
    }
    assert sound not in hostile.values()
    for data in hostile.values():
        with pytest.raises(BrokenImage, match=r"is not a NumPy file of uint8 \[5, 7, 3\]"):
            decode_into(data, "npy", image)
    assert not (tmp_path / "run").exists()
