"""The PNG writer of our own, read back by Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from sparface.shards.codec import decode_into, encode


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
