"""Faces to image files and back. The only place that decodes what a shard holds."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from sparface.shards.format import Encoding


class BrokenImage(Exception):
    """An image that cannot be decoded or is not what the manifest promises; says why in one line."""


def encode(image: NDArray[np.uint8], encoding: Encoding, quality: int) -> bytes:
    """A face `[H, W, 3]` as an image file. `quality` (1..100) is for jpg and webp only."""
    if encoding == "jpg":
        # Full colour resolution: halving it would blur lips and eyes at 112 pixels.
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorsubsampling="444")
        return bytes(data)
    file = io.BytesIO()
    # PNG level 1 writes faces twice as fast as the default, for files 3 % larger.
    Image.fromarray(image).save(file, encoding, quality=quality, compress_level=1)
    return file.getvalue()


def decode_into(data: bytes, encoding: Encoding, out: NDArray[np.uint8]) -> None:
    """Decode an image file into `out` `[H, W, 3]`.

    The file's header must promise exactly H × W, so no more than that is ever decoded.
    Raises `BrokenImage`.
    """
    try:
        if encoding == "jpg":
            _decode_jpg(data, out)
        else:
            _decode_with_pillow(data, encoding, out)
    except BrokenImage:
        raise
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise BrokenImage(f"does not decode ({' '.join(str(error).split())[:200]})") from None


def _decode_jpg(data: bytes, out: NDArray[np.uint8]) -> None:
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    _check_size(height, width, out)
    simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out)


def _decode_with_pillow(data: bytes, encoding: Encoding, out: NDArray[np.uint8]) -> None:
    with Image.open(io.BytesIO(data), formats=[encoding]) as image:  # reads the header only
        _check_size(image.height, image.width, out)
        out[:] = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _check_size(height: int, width: int, out: NDArray[np.uint8]) -> None:
    if (height, width) != out.shape[:2]:
        raise BrokenImage(f"is {height}x{width} pixels, the manifest says {out.shape[0]}x{out.shape[1]}")
