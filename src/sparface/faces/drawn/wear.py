"""What covers a face in a photo: glasses, masks, scarves, hats, hands and things."""

from __future__ import annotations

import numpy as np

from sparface.faces.drawn.canvas import Canvas, Plane, waves
from sparface.faces.drawn.head import Head
from sparface.faces.drawn.people import Colour, Person
from sparface.faces.drawn.scenes import Scene


def worn(who: Person, view: Scene) -> str:
    """What a person wears in a scene: people with glasses wear them in seven of ten photos."""
    if view.wears == "none" and who.glasses and view.detail % 10 < 7:
        return "glasses"
    return view.wears


def draw_wear(canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    """Draw what a person wears in a scene."""
    shade = np.asarray(rng.uniform(0.05, 0.95, 3) ** 2, np.float32)
    wears = worn(head.who, head.view)
    if wears in ("glasses", "sunglasses"):
        _draw_glasses(canvas, head, rng, shade * np.float32(0.4), dark=wears == "sunglasses")
    elif wears in ("mask", "scarf"):
        _draw_cloth(canvas, head, rng, shade, mask=wears == "mask")
    elif wears in ("cap", "hat"):
        _draw_hat(canvas, head, rng, shade, cap=wears == "cap")
    elif wears == "hand":
        _draw_hand(canvas, head, rng)
    elif wears == "thing":
        _draw_thing(canvas, head, rng, shade)


def _draw_glasses(canvas: Canvas, head: Head, rng: np.random.Generator, shade: Colour, *, dark: bool) -> None:
    shape = head.shape
    x, y = head.plane(shape["depth"] * 0.97)
    thick, wide, tall, power = (
        rng.uniform(0.025, 0.06),
        rng.uniform(0.22, 0.31),
        rng.uniform(0.15, 0.26),
        rng.uniform(2, 5),
    )
    across = np.abs(np.abs(x) - np.float32(max(shape["eye_apart"], wide + 0.05))) / np.float32(wide)
    down = np.abs(y - np.float32(shape["eye_y"] + 0.04)) / np.float32(tall)
    edge = 1 - (across ** np.float32(power) + down ** np.float32(power)) ** np.float32(1 / power)
    edge = edge * np.float32(min(wide, tall))
    lens = canvas.inside(edge)
    if dark:
        canvas.cover(lens, shade * np.float32(0.2), gloss=1.0)
    else:
        canvas.gloss += lens * np.float32(0.3)
    bridge = canvas.line(y - np.float32(shape["eye_y"]), thick) * canvas.inside(0.12 - np.abs(x))
    arms = canvas.line(y - np.float32(shape["eye_y"] - 0.02), thick) * canvas.inside(
        np.abs(x) - shape["eye_apart"] - wide
    )
    arms = arms * canvas.inside(shape["width"] - np.abs(x))
    frame = np.maximum(canvas.line(edge, thick), np.maximum(bridge, arms) * (1 - lens))
    canvas.cover(frame, shade, gloss=0.6)


def _draw_cloth(canvas: Canvas, head: Head, rng: np.random.Generator, shade: Colour, *, mask: bool) -> None:
    """A mask over mouth and nose, or a scarf up to them."""
    x, y = head.x, head.y
    top = rng.uniform(-0.05, 0.2) if mask else rng.uniform(0.2, 0.55)
    edge = y - np.float32(top) - (0.25 if mask else 0.1) * x * x
    if mask:
        edge = np.minimum(edge, head.edge)
    else:
        edge = np.maximum(np.minimum(edge, head.edge + 0.2), head.plane(0.2)[1] - 0.9)
    folds = waves(x, y * 2.5, rng, rng.uniform(0.2, 0.6), 3)
    fabric = shade[:, None, None] * (1 + np.float32(0.15) * folds)
    normal = np.stack([np.clip(0.8 * x, -0.9, 0.9), 0.25 * (y - 0.5), np.full_like(x, 0.8)]).astype(
        np.float32
    )
    canvas.cover(canvas.inside(edge), fabric, normal)


def _draw_hat(canvas: Canvas, head: Head, rng: np.random.Generator, shade: Colour, *, cap: bool) -> None:
    shell = head.shell(0.16, rng.uniform(0.05, 0.3))
    x, y, edge = shell.x, shell.y, shell.edge
    low = np.float32(rng.uniform(-0.85, -0.6))
    line = low + (0.12 if cap else 0.02) * x * x
    pattern = 1 + np.float32(0.15) * waves(x, y, rng, rng.uniform(0.1, 0.5), 2)
    canvas.cover(canvas.inside(np.minimum(edge, line - y)), shade[:, None, None] * pattern, shell.normal)
    if cap:
        u, v = head.plane(1.35)
        peak = np.minimum(0.11 - np.abs(v - low + 0.04 + 0.05 * u * u), 0.85 - np.abs(u))
        canvas.cover(canvas.inside(peak), shade * np.float32(0.7))
    else:
        band = canvas.inside(edge) * canvas.inside(0.09 - np.abs(line - 0.09 - y))
        canvas.tint(band, shade * np.float32(0.6))


def _draw_hand(canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    x, y = head.plane(1.15)
    left, top = rng.uniform(-0.8, 0.8), rng.uniform(0.2, 0.9)
    lean = rng.uniform(-0.5, 0.5)
    for finger in range(4):
        start = np.array([left + 0.19 * finger - 0.3, top - rng.uniform(0.25, 0.5)])
        end = np.array([start[0] * 0.9 + lean, 1.9])
        away, along = _capsule(x, y, start, end)
        radius = np.float32(0.095)
        round_finger = np.stack([np.clip(along / radius, -1, 1), np.zeros_like(x), np.full_like(x, 0.6)])
        canvas.cover(canvas.inside(radius - away), head.who.skin, round_finger, 0.2)


def _capsule(x: Plane, y: Plane, start: np.ndarray, end: np.ndarray) -> tuple[Plane, Plane]:
    """Distance to a line from start to end, and the signed distance across it."""
    way = (end - start) / np.hypot(*(end - start))
    right, down = x - np.float32(start[0]), y - np.float32(start[1])
    across = right * np.float32(way[1]) - down * np.float32(way[0])
    before = np.minimum(0, right * np.float32(way[0]) + down * np.float32(way[1]))
    return np.hypot(across, before), across


def _draw_thing(canvas: Canvas, head: Head, rng: np.random.Generator, shade: Colour) -> None:
    """Something between the camera and the face: a turned box of any colour."""
    turn = rng.uniform(0, np.pi)
    right, down = head.u - np.float32(rng.uniform(-1, 1)), head.v - np.float32(rng.uniform(-0.6, 1))
    x = right * np.float32(np.cos(turn)) + down * np.float32(np.sin(turn))
    y = down * np.float32(np.cos(turn)) - right * np.float32(np.sin(turn))
    edge = np.minimum(rng.uniform(0.15, 0.5) - np.abs(x), rng.uniform(0.1, 0.9) - np.abs(y))
    pattern = 1 + np.float32(0.3) * waves(x, y, rng, rng.uniform(0.1, 0.8), 3)
    canvas.cover(canvas.inside(edge.astype(np.float32)), shade[:, None, None] * pattern)
