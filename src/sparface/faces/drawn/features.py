"""Paint the face on a head: skin, eyes, brows, nose and mouth."""

from __future__ import annotations

import numpy as np

from sparface.faces.drawn.canvas import Canvas, Plane, bump, ramp, waves
from sparface.faces.drawn.head import Head
from sparface.faces.drawn.people import Colour, colour

_BLOOD = np.array([1.0, 0.62, 0.6], np.float32)
_WHITE, _DARK, _MOUTH, _TEETH = (
    colour(226, 220, 216),
    colour(14, 12, 12),
    colour(66, 22, 24),
    colour(222, 212, 200),
)


def draw_face(canvas: Canvas, head: Head) -> None:
    """Draw the head without hair, and everything on its skin but a beard."""
    _draw_skin(canvas, head)
    _draw_wrinkles(canvas, head)
    _draw_nose(canvas, head)
    _draw_mouth(canvas, head)
    _draw_eyes(canvas, head)
    _draw_brows(canvas, head)


def _draw_skin(canvas: Canvas, head: Head) -> None:
    who, shape, x, y = head.who, head.shape, head.x, head.y
    aside = np.abs(x)
    rng = np.random.default_rng(who.texture)
    share = canvas.inside(head.edge)
    canvas.cover(share, who.skin, head.normal, 0.1 + 0.5 * shape["gloss"])
    canvas.albedo *= 1 + np.float32(0.05) * share * waves(x, y, rng, 0.35)
    red = bump(aside - 0.5, y - 0.22, 0.26, 0.2) + bump(x, y - shape["nose_y"], 0.18, 0.12)
    canvas.tint(share * red * np.float32(0.1 + 0.45 * who.ruddy), who.skin * _BLOOD)
    around = bump(aside - shape["eye_apart"], y - shape["eye_y"] - 0.02, 0.22, 0.16)
    canvas.tint(share * around * np.float32(0.15 + 0.35 * shape["bags"]), who.skin * np.float32(0.55))
    if who.freckles:
        spots = waves(x, y, rng, 0.07) + waves(x, y, rng, 0.1)
        place = bump(aside - 0.35, y - 0.08, 0.42, 0.28)
        canvas.tint(ramp(spots, 0.7, 1.5) * place * np.float32(who.freckles), who.skin * np.float32(0.45))
    for left, top, radius in who.moles.tolist():
        away = radius - np.hypot(x - np.float32(left), y - np.float32(top))
        canvas.tint(canvas.inside(away) * np.float32(0.85), who.skin * np.float32(0.2))


def _draw_wrinkles(canvas: Canvas, head: Head) -> None:
    who, view, shape, x, y = head.who, head.view, head.shape, head.x, head.y
    aside = np.abs(x)
    shadow = who.skin * np.float32(0.45)
    smiling = max(0.0, view.smile)
    reach = (y - shape["nose_y"]) / (shape["mouth_y"] + 0.12 - shape["nose_y"])
    fold = aside - (shape["nose_width"] + 0.06 + (0.2 + 0.1 * smiling) * np.clip(reach, 0, 1))
    strength = np.float32(min(0.75, shape["fold"] + 0.3 * smiling))
    within = ramp(reach, -0.1, 0.2) * (1 - ramp(reach, 0.8, 1.2))
    canvas.tint(np.exp(-((fold * 22) ** 2)) * within * strength, shadow)
    bag = y - shape["eye_y"] - 0.15 - 0.5 * (aside - shape["eye_apart"]) ** 2
    near = bump(aside - shape["eye_apart"], y - shape["eye_y"], 0.2, 0.4)
    canvas.tint(np.exp(-((bag * 30) ** 2)) * near * np.float32(0.2 + 0.6 * shape["bags"]), shadow)
    creased = who.wrinkles + 6 * max(0.0, view.brow_raise)
    if creased > 0.05:
        lines = np.sin((y + 0.06 * aside**2) * 42) * bump(x, y + 0.8, 0.6, 0.16)
        canvas.tint(ramp(lines, 0.2, 1) * np.float32(min(0.5, 0.5 * creased)), shadow)
        feet = np.sin(np.arctan2(y - shape["eye_y"], aside - shape["eye_apart"]) * 14)
        place = bump(aside - shape["eye_apart"] - shape["eye_width"] - 0.1, y - shape["eye_y"], 0.08, 0.12)
        canvas.tint(
            ramp(feet, 0, 1) * place * np.float32(min(0.5, 0.5 * who.wrinkles + 0.2 * smiling)), shadow
        )
    if view.frown > 0.2:
        frown = np.exp(-(((aside - 0.08) * 30) ** 2)) * bump(x, y - shape["eye_y"] + 0.12, 0.2, 0.12)
        canvas.tint(frown * np.float32(min(0.6, 0.5 * view.frown)), shadow)


def _draw_nose(canvas: Canvas, head: Head) -> None:
    who, shape, x, y = head.who, head.shape, head.x, head.y
    aside, tip, width = np.abs(x), shape["nose_y"], shape["nose_width"]
    shadow = who.skin * np.float32(0.4)
    under = bump(x, y - tip - 0.1, width * 0.9, 0.04)
    canvas.tint(under * np.float32(0.45), shadow)
    wing = np.hypot((aside - width * 0.7) / 0.1, (y - tip) / 0.1) - 1
    outer = np.exp(-((wing * 6) ** 2)) * ramp(aside, width * 0.75, width)
    canvas.tint(outer * np.float32(0.45), shadow)
    hole = 1 - np.hypot((aside - width * 0.42) / (width * 0.3), (y - tip - 0.065 + 0.1 * aside) / 0.035)
    canvas.tint(
        canvas.inside(hole * 0.035) * np.float32(0.4 + 0.5 * shape["nostril"]), who.skin * np.float32(0.08)
    )


def _draw_mouth(canvas: Canvas, head: Head) -> None:
    who, view, shape, x, y = head.who, head.view, head.shape, head.x, head.y
    wide = shape["mouth_width"] * (1 + 0.2 * view.smile)
    across = np.clip(x * np.float32(1 / wide), -1, 1)
    square = across * across
    bow = shape["bow"] * np.exp(-((across * 5) ** 2))
    full = np.sqrt(1 - square)
    middle = y - shape["mouth_y"] - np.float32(shape["mouth_corner"] - 0.1 * view.smile) * square
    gap = np.float32(0.17 * view.mouth_open) * (1 - square)
    upper = middle + 0.3 * gap + np.float32(shape["lip_upper"]) * full * (1 - bow) * (1 - 0.3 * square)
    lower = gap + np.float32(shape["lip_lower"]) * full - middle
    inside = canvas.inside(np.minimum(wide - np.abs(x), np.minimum(upper, lower)), 0.02)
    canvas.tint(inside, who.lips)
    canvas.gloss += inside * np.float32(0.5 * who.makeup)
    if view.mouth_open > 0.08:
        hole = canvas.inside(np.minimum(middle + 0.3 * gap, gap - middle))
        canvas.tint(hole * inside, _MOUTH)
        teeth = canvas.inside(np.minimum(middle + 0.3 * gap, np.minimum(0.1, 0.9 * gap) - 0.3 * gap - middle))
        canvas.tint(teeth * hole * inside * (1 - square) * np.float32(0.9), _TEETH)
    else:
        seam = canvas.line(middle, 0.025) * canvas.inside(wide * 1.05 - np.abs(x))
        canvas.tint(seam * np.float32(0.85), who.lips * np.float32(0.2))
    shade = bump(x, y - shape["mouth_y"] - shape["lip_lower"] - 0.07 - gap, wide * 0.6, 0.05)
    canvas.tint(shade * np.float32(0.3), who.skin * np.float32(0.5))


def _draw_eyes(canvas: Canvas, head: Head) -> None:
    who, view, shape, x, y = head.who, head.view, head.shape, head.x, head.y
    side = np.sign(x)
    wide = np.float32(shape["eye_width"])
    along = np.abs(x) - np.float32(shape["eye_apart"])  # outwards
    level = y - np.float32(shape["eye_y"]) + np.float32(np.tan(shape["eye_slant"])) * along
    tall = shape["eye_height"] * (1 + shape["eye_uneven"] * side) * view.eyes_open
    tall = tall * (1 - 0.2 * max(0.0, view.smile))
    across = np.clip(along / wide, -1, 1)
    arch = (1 - across * across) * (1 + np.float32(shape["eye_skew"]) * across)
    upper, lower = level + tall * arch, 0.65 * tall * arch - level
    makeup = np.float32(0.5 * who.makeup)
    lid = bump(along, level + shape["eye_height"] + 0.03, float(wide), 0.05)
    canvas.tint(lid * makeup, who.skin * np.float32(0.35))
    crease = canvas.line(upper + shape["crease"], 0.03, shape["crease_depth"]) * canvas.inside(
        wide - np.abs(along)
    )
    canvas.tint(crease, who.skin * np.float32(0.3))
    opening = canvas.inside(np.minimum(np.minimum(upper, lower), wide - np.abs(along)))
    canvas.tint(opening, _WHITE)
    canvas.gloss += opening * np.float32(0.6)
    across_iris = along * side - np.float32(view.gaze[0] * 0.4 * wide)
    radius = np.hypot(across_iris, level - np.float32(view.gaze[1] * 0.05 - 0.15 * shape["eye_height"]))
    ball = opening * canvas.inside(shape["iris"] - radius)
    canvas.tint(ball, _iris(who.iris, radius, shape["iris"]))
    canvas.tint(opening * canvas.inside(0.42 * shape["iris"] - radius), _DARK)
    spot = np.hypot(across_iris - np.float32(0.03 * view.light[0]), level + 0.03)
    canvas.tint(opening * canvas.inside(0.016 - spot), _WHITE * np.float32(1.2))
    canvas.tint(opening * np.exp(-((upper * 18) ** 2)) * np.float32(0.5), _DARK)  # the lid's shadow
    beside = canvas.inside(wide + 0.02 + 0.05 * makeup - np.abs(along))
    canvas.tint(
        canvas.line(upper, 0.02 + 0.035 * shape["lash"]) * beside * np.float32(0.9),
        who.brows * np.float32(0.3),
    )
    canvas.tint(canvas.line(lower, 0.015, 0.3 + 0.4 * float(makeup)) * beside, who.skin * np.float32(0.3))


def _iris(shade: Colour, radius: Plane, size: float) -> np.ndarray:
    """Darker at the edge, lighter in the middle, [3, H, W]."""
    rim = 1.25 - 0.75 * np.clip(radius / np.float32(size), 0, 1) ** 4
    return np.asarray(shade[:, None, None] * rim.astype(np.float32))


def _draw_brows(canvas: Canvas, head: Head) -> None:
    who, view, shape, x, y = head.who, head.view, head.shape, head.x, head.y
    side = np.sign(x)
    length = np.float32(shape["brow_length"])
    along = (np.abs(x) - np.float32(shape["eye_apart"] + 0.02 + shape["brow_in"])) / length  # −1: inner end
    raised = shape["brow_gap"] + view.brow_raise + shape["brow_uneven"] * side
    drop = 0.06 * view.frown * np.clip(-along, 0, 1)
    middle = y - (shape["eye_y"] - raised + drop)
    middle = (
        middle
        + np.float32(shape["brow_arch"]) * (1 - (along - 0.25) ** 2)
        - 0.3 * shape["brow_slope"] * along
    )
    half = np.float32(shape["brow_thick"]) * np.clip(1.1 - 0.55 * np.clip(along + 0.2, 0, 2), 0.2, 1)
    hairs = 0.8 + 0.2 * np.sin(along * 40 + middle * 60)
    share = canvas.inside(half - np.abs(middle), 0.03) * canvas.inside((1 - np.abs(along)) * length, 0.08)
    canvas.tint(share * hairs * np.float32(shape["brow_dense"]), who.brows)
