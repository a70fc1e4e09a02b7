"""Alignment templates (the target positions of the five landmarks) and the transforms to them.

Coordinates are (x, y) in pixels, with the centre of the first pixel at (0, 0). The five landmarks are the
eyes, the tip of the nose and the corners of the mouth, left before right as seen in the photo.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

Template = Literal["arcface", "box"]

ARCFACE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""The five landmarks in ArcFace's 112-pixel faces (Deng et al. 2019, insightface)."""

BOX_MARGIN = 20 / 160
"""Margin of the `box` template as a fraction of the face: 20 of 160 pixels, as in facenet-pytorch."""
_BORDER_BLUR = 0.08
"""Standard deviation of the blur beyond the photo's border, as a fraction of the shorter side."""


def arcface_template(size: int) -> np.ndarray:
    """ArcFace's five landmarks [5, 2] in a face of `size` × `size` pixels."""
    return (ARCFACE_112 + 0.5) * (size / 112) - 0.5


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The least-squares similarity transform [2, 3] from `source` to `target` (Umeyama 1991).

    Both are [N, 2] with N ≥ 2. The transform consists of rotation, scale and translation, without reflection.
    Raises `ValueError` if all source points coincide.
    """
    source_mean, target_mean = source.mean(0), target.mean(0)
    source_centred, target_centred = source - source_mean, target - target_mean
    variance = (source_centred**2).sum()
    if not variance > 1e-12:
        raise ValueError("the points coincide")
    u, singular, vt = np.linalg.svd(target_centred.T @ source_centred)
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt)) or 1.0])
    linear = (u * sign) @ vt * ((singular * sign).sum() / variance)
    return np.column_stack([linear, target_mean - linear @ source_mean])


def square_transform(centre: tuple[float, float], side: float, size: int) -> np.ndarray:
    """The transform [2, 3] from an upright square in the photo to a face of `size` × `size` pixels."""
    scale = size / side
    return np.array(
        [
            [scale, 0.0, (size - 1) / 2 - scale * centre[0]],
            [0.0, scale, (size - 1) / 2 - scale * centre[1]],
        ]
    )


def warp(image: np.ndarray, transform: np.ndarray, size: int) -> np.ndarray:
    """Resample a photo, uint8 [H, W, 3], into a face, uint8 [size, size, 3].

    `transform` [2, 3] maps photo to face coordinates. Shrinking averages all source pixels of a target pixel,
    which avoids aliasing. Areas outside the photo are filled with its blurred border.
    """
    inverse = _inverse(transform)
    shrink = float(np.sqrt(abs(np.linalg.det(inverse[:, :2]))))
    finer = 2 if shrink > 1 else 1
    region, offset = _region(image, inverse, size)
    factor = max(1, math.floor(shrink))
    pixels = Image.fromarray(region).reduce(factor)
    # The origin is the corner of the first pixel in PIL, but its centre here.
    linear = inverse[:, :2] / (finer * factor)
    corner = (inverse[:, 2] - offset + 0.5 - inverse[:, :2] @ (0.5, 0.5)) / factor
    matrix = (linear[0, 0], linear[0, 1], corner[0], linear[1, 0], linear[1, 1], corner[1])
    # Four bilinear samples are close to the average when shrinking by less than 2 (exact for an upright face
    # at 2), and take half the time of four bicubic ones.
    smooth = Image.Resampling.BILINEAR if factor < finer else Image.Resampling.BICUBIC
    face = pixels.transform((size * finer, size * finer), Image.Transform.AFFINE, matrix, smooth)
    return np.asarray(face.reduce(finer))


def _inverse(transform: np.ndarray) -> np.ndarray:
    linear = np.linalg.inv(transform[:, :2])
    return np.column_stack([linear, -linear @ transform[:, 2]])


def _region(image: np.ndarray, inverse: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of the photo that the face covers, extended beyond the border, and its origin (x, y)."""
    corners = np.array([[-0.5, -0.5], [size - 0.5, -0.5], [-0.5, size - 0.5], [size - 0.5, size - 0.5]])
    needed = corners @ inverse[:, :2].T + inverse[:, 2]
    slack = 4 * max(1.0, float(np.abs(inverse[:, :2]).max()))
    low = np.floor(needed.min(0) - slack).astype(int)
    high = np.ceil(needed.max(0) + slack).astype(int)
    (left, top), (right, bottom) = low, high
    height, width = image.shape[:2]
    rows = np.clip(np.arange(top, bottom + 1), 0, height - 1)
    columns = np.clip(np.arange(left, right + 1), 0, width - 1)
    if left >= 0 and top >= 0 and right < width and bottom < height:
        return image[top : bottom + 1, left : right + 1], low
    # Repeating a sharp border makes streaks, which are more salient to a network than the face.
    soft = ImageFilter.GaussianBlur(_BORDER_BLUR * min(height, width))
    region = np.asarray(Image.fromarray(image).filter(soft))[rows][:, columns]
    inside = slice(max(-top, 0), max(height - top, 0)), slice(max(-left, 0), max(width - left, 0))
    region[inside] = image[max(top, 0) : bottom + 1, max(left, 0) : right + 1]
    return region, low
