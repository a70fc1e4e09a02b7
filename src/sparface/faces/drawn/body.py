"""Shoulders, neck and ears."""

from __future__ import annotations

import numpy as np

from sparface.faces.drawn.canvas import Canvas, bump, ramp, waves
from sparface.faces.drawn.head import Head


def draw_body(canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    """Draw neck and shoulders."""
    who, shape = head.who, head.shape
    x, y = head.behind
    wide = shape["width"] * (0.68 if who.man else 0.55)
    across = np.clip(x / np.float32(wide), -1, 1)
    normal = np.stack([across, np.zeros_like(x), np.sqrt(1.05 - across * across)])
    neck = canvas.inside(np.minimum(wide + 0.25 * ramp(y, 1.0, 1.6) - np.abs(x), y - 0.4))
    canvas.cover(neck, who.skin, normal)
    canvas.tint(
        neck * bump(x, y - shape["chin"] - 0.1, 0.7, 0.3) * np.float32(0.6), who.skin * np.float32(0.35)
    )
    collar = y - rng.uniform(1.32, 1.52) - 0.12 * np.abs(x) - 0.25 * np.maximum(0, np.abs(x) - 0.6)
    share = canvas.inside(np.minimum(collar, 1.6 + 0.3 * ramp(y, 1.3, 2.0) - np.abs(x)))
    pattern = 1 + np.float32(rng.uniform(0, 0.3)) * waves(x, y, rng, rng.uniform(0.1, 0.6), 2)
    slope = np.stack([x / 2, np.full_like(x, -0.5), np.full_like(x, 0.8)])
    canvas.cover(share, head.view.clothes[:, None, None] * pattern, slope)


def draw_ears(canvas: Canvas, head: Head) -> None:
    """Draw the ears, of which one may turn to the front and the other be hidden."""
    shape, skin = head.shape, head.who.skin
    for side in (-1, 1):
        reach = side * (shape["width"] + shape["ear_out"])
        (centre,) = head.project(np.array([[reach, -0.08, -0.12]])).tolist()
        wide = shape["ear"] * (0.75 - 0.6 * side * float(np.sin(head.view.yaw)))
        if wide < 0.03:
            continue
        across = (head.u - np.float32(centre[0])) / np.float32(wide)
        down = (head.v - np.float32(centre[1])) / np.float32(shape["ear"] * 1.7)
        distance = (1 - np.hypot(across + 0.25 * side * down, down)) * np.float32(wide)
        facing = np.stack([np.clip(side * 0.5 + 0.4 * across, -1, 1), 0.2 * down, np.full_like(down, 0.7)])
        canvas.cover(canvas.inside(distance), skin * np.float32(0.85), facing)
        canvas.tint(
            canvas.inside(distance - np.float32(0.35 * wide)) * np.float32(0.35), skin * np.float32(0.4)
        )
