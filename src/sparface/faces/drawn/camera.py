"""Light a drawn head and photograph it: background, shadows, exposure, blur, noise and compression."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from sparface.faces.drawn.canvas import Canvas, Plane
from sparface.faces.drawn.head import Head
from sparface.faces.drawn.scenes import Scene

_ROUGH = 24
"""Side of the small picture that a background is enlarged from."""


def photograph(canvas: Canvas, head: Head, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Light what was drawn, put it before a background and take a photo, uint8 [size, size, 3]."""
    view = head.view
    seen = _lit(canvas, head)
    seen += (1 - canvas.shown) * (_background(canvas.size, view, rng) - seen)
    return _exposed(seen, view, rng)


def _lit(canvas: Canvas, head: Head) -> NDArray[np.float32]:
    """Light from everywhere, mostly above, one main light with shadow and gloss, and a second one."""
    view, normal = head.view, canvas.normal
    main = view.light.astype(np.float32)
    facing = main[0] * normal[0] + main[1] * normal[1] + main[2] * normal[2]
    direct = np.maximum(0, 0.85 * facing + 0.15) * (1 - _shadow(head, canvas.pixel))
    around = 0.75 - 0.25 * normal[1]
    behind = view.rim.astype(np.float32)
    second = np.maximum(0, behind[0] * normal[0] + behind[1] * normal[1] + behind[2] * normal[2])
    half = main + np.array([0, 0, 1], np.float32)
    half /= max(1e-3, float(np.hypot.reduce(half)))
    shine = np.maximum(0, half[0] * normal[0] + half[1] * normal[1] + half[2] * normal[2]) ** 16
    hard = np.float32(view.hard)
    light = (1.25 * hard) * direct * view.warm[:, None, None] + (1.1 * (1 - hard) + 0.12) * around + second
    gloss = (0.25 * hard) * shine * (direct > 0.05) * canvas.gloss
    return np.asarray(canvas.albedo * light + gloss)


def _shadow(head: Head, pixel: float) -> Plane:
    """Share of the main light that the head itself keeps away: is there something between here and it?"""
    light = head.view.light
    aside = float(np.hypot(light[0], light[1]))
    if aside < 0.15 or light[2] < 0.05:
        return np.zeros_like(head.depth)
    depth = np.where(head.edge > 0, head.depth, np.float32(-9))
    covered = np.full_like(depth, -9)
    for reach in (0.1, 0.2, 0.34):
        right, down = (round(reach * step / aside / pixel) for step in light[:2])
        rise = reach * light[2] / aside
        covered = np.maximum(covered, _moved(depth, right, down) - depth - np.float32(rise))
    return np.clip(covered * np.float32(12), 0, 1) * np.float32(0.8)


def _moved(plane: Plane, right: int, down: int) -> Plane:
    """The values `right` and `down` of each pixel; beyond the border, those at the border."""
    height, width = plane.shape
    rows = np.clip(np.arange(height) + down, 0, height - 1)
    columns = np.clip(np.arange(width) + right, 0, width - 1)
    return plane[rows[:, None], columns]


def _background(size: int, view: Scene, rng: np.random.Generator) -> NDArray[np.float32]:
    """Blurred shapes, by enlarging a small picture; [3, size, size]."""
    first, second = view.backdrop
    image = Image.new("RGB", (_ROUGH, _ROUGH), _bytes(first))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 8))):
        x, y = rng.uniform(0, _ROUGH, 2)
        width, height = rng.uniform(0.05, 0.8, 2) * _ROUGH
        shape = pen.rectangle if rng.random() < 0.6 else pen.ellipse
        shape(
            (x - width / 2, y - height / 2, x + width / 2, y + height / 2),
            fill=_bytes(second * rng.uniform(0.3, 1.7, 3)),
        )
    kind = Image.Resampling.BICUBIC if rng.random() < 0.8 else Image.Resampling.NEAREST
    pixels = np.asarray(image.resize((size, size), kind), np.float32).transpose(2, 0, 1)
    return (pixels * np.float32(1 / 255)) ** 2


def _bytes(linear: NDArray[np.floating]) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in np.clip(255 * np.sqrt(linear), 0, 255))
    return red, green, blue


def _exposed(seen: NDArray[np.float32], view: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Apply colour cast, exposure, contrast, saturation, blur, resolution, noise and compression."""
    size = seen.shape[-1]
    seen = np.maximum(seen * view.cast[:, None, None] * np.float32(view.gain), 0)
    seen = seen / (1 + 0.25 * seen)  # bright areas saturate softly
    tone = seen ** np.float32(0.5 * view.gamma)
    grey = tone.mean(0)
    tone = grey + np.float32(view.saturation) * (tone - grey)
    tone = np.float32(0.45) + np.float32(view.contrast) * (tone - np.float32(0.45))
    pixels = np.clip(255 * tone, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if view.blur > 0.1:
        image = image.filter(ImageFilter.BoxBlur(view.blur * size / 128))
    if view.shrink < 1:
        small = max(16, round(view.shrink * size))
        image = image.resize((small, small), Image.Resampling.BILINEAR).resize(
            (size, size), Image.Resampling.BICUBIC
        )
    noisy = np.asarray(image, np.float32) + rng.standard_normal((size, size, 3), np.float32) * np.float32(
        255 * view.noise
    )
    return _compressed(np.clip(noisy, 0, 255).astype(np.uint8), view.quality)


def _compressed(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return np.asarray(image)
