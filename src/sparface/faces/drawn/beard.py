"""Beards."""

from __future__ import annotations

import numpy as np

from sparface.faces.drawn.canvas import Canvas, waves
from sparface.faces.drawn.head import Head


def draw_beard(canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    who, shape, x, y = head.who, head.shape, head.x, head.y
    beard = head.view.beard or who.beard
    if beard == "none" or not who.man:
        return
    aside = np.abs(x)
    wide, mouth = shape["mouth_width"], shape["mouth_y"] + 0.05 * head.view.mouth_open
    hairs = 0.82 + 0.18 * waves(x, y, rng, 0.07)
    lip = np.minimum(
        wide * 1.15 - aside, np.minimum(mouth - 0.035 + 0.12 * aside - y, y - mouth + 0.19 - 0.1 * aside)
    )
    cheek = y - np.float32(0.42) + 0.55 * np.maximum(0, aside - 0.3)
    ring = np.minimum(wide * 1.25 - aside, y - mouth + 0.05)
    around = 1 - canvas.inside(
        0.9 - np.hypot(x / (wide * 1.08), (y - mouth) / (0.11 + shape["lip_lower"])), 0.3
    )
    shares = {
        "moustache": canvas.inside(lip, 0.04),
        "goatee": canvas.inside(np.minimum(0.2 - aside, y - mouth - 0.2), 0.05),
        "circle": np.maximum(canvas.inside(lip, 0.04), canvas.inside(ring, 0.06) * around),
    }
    whole = np.maximum(canvas.inside(cheek, 0.15) * around, canvas.inside(lip, 0.05))
    share = shares.get(beard, whole) * canvas.inside(head.edge)
    dense = 0.3 if beard == "stubble" else 0.9
    canvas.tint(np.clip(share * hairs, 0, 1) * np.float32(dense), who.brows * np.float32(1.2))
    canvas.gloss *= 1 - share * np.float32(dense)
