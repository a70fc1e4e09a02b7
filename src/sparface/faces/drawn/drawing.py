"""Draw a person in a scene, with the face positioned as in ArcFace's template."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from sparface.faces.drawn.people import Colour, Person, Points, Scene

_TURN = np.linspace(0, 2 * np.pi, 40, endpoint=False)
_CIRCLE = np.column_stack([np.cos(_TURN), np.sin(_TURN)])
_ACROSS = np.linspace(-1, 1, 17)


class _Canvas:
    """Draws shapes in face coordinates, projected according to the scene's pose."""

    def __init__(self, pixels: int, view: Scene) -> None:
        self.image = Image.new("RGB", (pixels, pixels))
        self.draw = ImageDraw.Draw(self.image)
        self.pixels = pixels
        self.unit = 0.4 * pixels * view.scale
        yaw, pitch, roll = view.yaw, view.pitch, view.roll
        # Rows x and y of the rotation: first yaw, then pitch; roll rotates the image.
        turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        nod = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)]])
        tilt = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
        self._matrix = self.unit * tilt @ nod @ turn
        anchor = np.array([0.0, 0.1, 0.75])
        self._origin = pixels * (np.array([0.5, 0.64]) + view.shift) - self._matrix @ anchor

    def place(self, points: Points, lift: float | None = 0.0) -> Points:
        """Project face coordinates [N, 2] to pixels. `lift` is the height above the face's surface; with
        None, the points are in the plane of the ears."""
        flat = points @ self._matrix[:, :2].T + self._origin
        if lift is None:
            return np.asarray(flat)
        square = ((points * (1 / 1.15, 1 / 1.5)) ** 2).sum(1)
        depth = 0.9 * np.sqrt(np.maximum(0, 1 - square)) + lift
        return np.asarray(flat + depth[:, None] * self._matrix[:, 2])

    def fill(self, points: Points, colour: Colour, lift: float | None = 0.0) -> None:
        self.draw.polygon(self.place(points, lift).ravel().tolist(), fill=_rgb(colour))

    def line(self, points: Points, colour: Colour, width: float, lift: float | None = 0.0) -> None:
        pixels = max(1, round(width * self.unit))
        self.draw.line(
            self.place(points, lift).ravel().tolist(), fill=_rgb(colour), width=pixels, joint="curve"
        )

    def soften(self, radius: float) -> None:
        self.image = self.image.filter(ImageFilter.BoxBlur(radius * self.unit))
        self.draw = ImageDraw.Draw(self.image)


def _rgb(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = colour.tolist()
    return min(max(int(red), 0), 255), min(max(int(green), 0), 255), min(max(int(blue), 0), 255)


def _ellipse(x: float, y: float, width: float, height: float) -> Points:
    return _CIRCLE * (width, height) + (x, y)


def draw(who: Person, view: Scene, size: int) -> NDArray[np.uint8]:
    """Draw one image, uint8 [size, size, 3]; a pure function."""
    canvas = _Canvas(2 * size, view)
    rng = np.random.default_rng(view.detail)
    _draw_background(canvas, view, rng)
    _draw_head(canvas, who, view)
    canvas.soften(0.02)
    _draw_beard(canvas, who, view)
    _draw_mouth(canvas, who, view)
    _draw_nose(canvas, who)
    for side in (-1, 1):
        _draw_eye(canvas, who, view, side)
    _draw_marks(canvas, who)
    _draw_hair(canvas, who)
    _draw_occlusion(canvas, who, view, rng)
    face = canvas.image.reduce(2)
    if view.blur > 0.1:
        face = face.filter(ImageFilter.BoxBlur(view.blur * size / 192))
    return _expose(np.asarray(face), view, rng)


def _draw_background(canvas: _Canvas, view: Scene, rng: np.random.Generator) -> None:
    """Draw blurred shapes, by enlarging a small image."""
    side = 24
    image = Image.new("RGB", (side, side), _rgb(view.backdrop[0]))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 6))):
        x, y = rng.uniform(0, side, 2)
        width, height = rng.uniform(0.1, 0.8, 2) * side
        colour = _rgb(view.backdrop[1] + rng.normal(0, 30, 3))
        shape = pen.rectangle if rng.random() < 0.5 else pen.ellipse
        shape((x - width / 2, y - height / 2, x + width / 2, y + height / 2), fill=colour)
    canvas.image.paste(image.resize(canvas.image.size, Image.Resampling.BILINEAR))


def _outline(shape: dict[str, float], grow: float = 1.0) -> Points:
    """The contour of the head [40, 2], from the right ear over the chin to the top."""
    cos, sin = _CIRCLE.T
    power = np.where(sin > 0, 2 / shape["square"], 1.0)
    narrow = np.where(sin > 0, 1 - (1 - shape["jaw"]) * np.abs(sin), 1.0)
    x = shape["width"] * np.sign(cos) * np.abs(cos) ** power * narrow
    y = np.where(sin > 0, shape["chin"], shape["top"]) * np.sign(sin) * np.abs(sin) ** power
    return np.asarray(np.column_stack([x, y]) * grow)


def _draw_head(canvas: _Canvas, who: Person, view: Scene) -> None:
    shape, shadow = who.shape, who.skin * 0.78
    if who.style == "long":
        canvas.fill(_ellipse(0, 0.1, shape["width"] + 0.25 + shape["volume"], 1.5), who.hair * 0.8, None)
    canvas.fill(_ellipse(0, 1.9, 1.7, 0.65), view.clothes, None)
    neck = 0.55 * shape["width"]
    canvas.fill(np.array([[-neck, 0.5], [neck, 0.5], [neck, 1.5], [-neck, 1.5]]), shadow, None)
    for side in (-1, 1):
        canvas.fill(_ellipse(side * shape["width"], -0.1, shape["ear"], shape["ear"] * 1.8), shadow, None)
    canvas.fill(_outline(shape), who.skin * 0.9, None)
    canvas.fill(_outline(shape, 0.93), who.skin, None)
    for side in (-1, 1):
        canvas.fill(_ellipse(side * 0.5, 0.2, 0.18, 0.14), who.skin * (1.03, 0.95, 0.94))
        canvas.fill(_ellipse(side * shape["eye_apart"], shape["eye_y"], 0.24, 0.17), who.skin * 0.9)
        fold = np.array([[side * 0.2, 0.25], [side * 0.34, 0.45], [side * (0.36 + 0.06 * view.smile), 0.62]])
        canvas.line(fold, who.skin * (1 - 0.5 * shape["fold"]), 0.03)


def _draw_beard(canvas: _Canvas, who: Person, view: Scene) -> None:
    if who.beard == "none":
        return
    shape, mouth = who.shape, who.shape["mouth_y"]
    share = 0.3 if who.beard == "stubble" else 0.85
    colour = who.skin * (1 - share) + who.hair * share
    if who.beard in ("stubble", "full"):
        contour = _outline(shape, 0.97)
        lower = contour[contour[:, 1] > 0.15]
        inner = np.column_stack([_ACROSS * 0.55, mouth - 0.18 + 0.12 * np.abs(_ACROSS)])
        canvas.fill(np.concatenate([lower, inner]), colour, None)
        canvas.soften(0.03)
    if who.beard in ("moustache", "full"):
        width = shape["mouth_width"] * 1.1
        upper = np.column_stack([_ACROSS * width, mouth - 0.17 + 0.1 * _ACROSS**2])
        lower = np.column_stack([-_ACROSS * width, mouth - 0.03 + 0.06 * _ACROSS**2])
        canvas.fill(np.concatenate([upper, lower]), colour, 0.03)
    if who.beard == "goatee":
        canvas.fill(_ellipse(0, mouth + 0.28 + 0.1 * view.mouth_open, 0.2, 0.2), colour, 0.02)


def _draw_mouth(canvas: _Canvas, who: Person, view: Scene) -> None:
    shape = who.shape
    width = shape["mouth_width"] * (1 + 0.18 * view.smile)
    corner = -0.1 * view.smile * _ACROSS**2
    gap = 0.16 * view.mouth_open * (1 - _ACROSS**2)
    round_off = np.sqrt(np.maximum(0, 1 - _ACROSS**2))
    bow = 0.35 * np.exp(-((_ACROSS / 0.18) ** 2))
    upper = shape["mouth_y"] + corner - gap * 0.3 - shape["lip_upper"] * (round_off - bow * 0.5)
    lower = shape["mouth_y"] + corner + gap + shape["lip_lower"] * round_off
    x = _ACROSS * width
    both = np.concatenate([np.column_stack([x, upper]), np.column_stack([x, lower])[::-1]])
    canvas.fill(both, who.lips, 0.02)
    inside_upper = np.column_stack([x, shape["mouth_y"] + corner - gap * 0.3])
    inside_lower = np.column_stack([x, shape["mouth_y"] + corner + gap])
    if view.mouth_open > 0.1:
        canvas.fill(np.concatenate([inside_upper, inside_lower[::-1]]), np.array([70.0, 24, 26]), 0.02)
        teeth = np.column_stack([x, shape["mouth_y"] + corner - gap * 0.3 + np.minimum(0.06, gap * 0.5)])
        canvas.fill(np.concatenate([inside_upper, teeth[::-1]]), np.array([236.0, 230, 220]), 0.02)
    else:
        canvas.line(inside_upper, who.lips * 0.55, 0.02, 0.02)


def _draw_nose(canvas: _Canvas, who: Person) -> None:
    shape, skin = who.shape, who.skin
    tip, width = shape["nose_y"], shape["nose_width"]
    canvas.fill(_ellipse(0, tip + 0.03, width, shape["nose_tip"] * 1.1), skin * 0.86, 0.12)
    ridge = np.array(
        [
            [-shape["bridge"], shape["eye_y"]],
            [shape["bridge"], shape["eye_y"]],
            [width * 0.6, tip],
            [-width * 0.6, tip],
        ]
    )
    canvas.fill(ridge, skin * 0.97, 0.12)
    canvas.line(ridge[[1, 2]], skin * 0.84, 0.03, 0.1)
    canvas.fill(_ellipse(0, tip - 0.02, width * 0.62, shape["nose_tip"]), skin * 1.05, 0.2)
    for side in (-1, 1):
        canvas.fill(_ellipse(side * width * 0.5, tip + 0.05, width * 0.22, 0.025), skin * 0.45, 0.16)


def _draw_eye(canvas: _Canvas, who: Person, view: Scene, side: int) -> None:
    shape = who.shape
    width, height = shape["eye_width"], shape["eye_height"] * view.eyes_open
    slant = -side * np.tan(shape["eye_slant"])
    centre = np.array([side * shape["eye_apart"], shape["eye_y"]])

    def eye(points: Points) -> Points:
        sheared = points + np.column_stack([np.zeros(len(points)), slant * points[:, 0]])
        return np.asarray(sheared + centre)

    lid = 1 - _ACROSS**2
    upper = np.column_stack([_ACROSS * width, -height * lid])
    lower = np.column_stack([_ACROSS * width, 0.75 * height * lid])
    canvas.fill(eye(np.concatenate([upper, lower[::-1]])), np.array([238.0, 234, 230]))
    looking = view.gaze * (width * 0.5, shape["eye_height"] * 0.5)
    for radius, colour in ((shape["iris_size"], who.iris), (shape["iris_size"] * 0.45, np.full(3, 12.0))):
        iris = _CIRCLE * radius + looking
        limit = np.maximum(0, 1 - (iris[:, 0] / width) ** 2) * height
        iris[:, 1] = np.clip(iris[:, 1], -limit, 0.75 * limit)
        canvas.fill(eye(iris), colour)
    canvas.line(eye(upper), who.skin * 0.3, 0.025)
    canvas.line(eye(lower), who.skin * 0.7, 0.012)
    _draw_brow(canvas, who, view, side)


def _draw_brow(canvas: _Canvas, who: Person, view: Scene, side: int) -> None:
    shape = who.shape
    x = _ACROSS * shape["brow_length"]
    y = side * shape["brow_slope"] * x * 0.8 - shape["brow_arch"] * (1 - _ACROSS**2)
    centre = (side * (shape["eye_apart"] + 0.02), shape["eye_y"] - shape["brow_gap"] - view.brow_raise)
    taper = shape["brow_thick"] * (1 - 0.6 * np.clip(side * _ACROSS, 0, 1))
    brow = np.concatenate([np.column_stack([x, y - taper]), np.column_stack([x, y + taper])[::-1]])
    canvas.fill(brow + centre, who.hair * 0.75 + who.skin * 0.1, 0.03)


def _draw_marks(canvas: _Canvas, who: Person) -> None:
    for x, y, radius in who.moles.tolist():
        canvas.fill(_ellipse(x, y, radius, radius), who.skin * 0.4)
    for x, y in who.freckles.tolist():
        canvas.fill(_ellipse(x, y, 0.016, 0.016)[::5], who.skin * 0.72)


def _draw_hair(canvas: _Canvas, who: Person) -> None:
    if who.style == "bald":
        return
    shape = who.shape
    bumps = 0.06 * np.sin(np.arange(21) * 2.6) if who.style == "curly" else np.zeros(21)
    over = np.linspace(np.pi, 2 * np.pi, 21)
    grow = 1 + shape["volume"] * (2 if who.style == "curly" else 1) + bumps
    outer = np.column_stack([shape["width"] * np.cos(over), shape["top"] * np.sin(over)]) * grow[:, None]
    side = 0.6 if who.style == "long" else shape["side"]
    x = -_ACROSS * 0.9 * shape["width"]
    inner = np.column_stack([x, _hairline(who, -_ACROSS)])
    edge = 0.9 * shape["width"]
    right, left = (
        np.array([[outer[-1, 0], side], [edge, side]]),
        np.array([[-edge, side], [outer[0, 0], side]]),
    )
    canvas.fill(np.concatenate([outer, right, inner, left]), who.hair, None)
    for share in (0.25, 0.5, 0.75):
        strand = outer[2:-2] * share + np.column_stack(
            [outer[2:-2, 0] * 0.8, np.full(17, shape["hairline"])]
        ) * (1 - share)
        canvas.line(strand, who.hair * (0.8 + 0.5 * share), 0.02, None)


def _hairline(who: Person, across: Points) -> Points:
    """The lower edge of the hair, from one side of the forehead to the other."""
    shape = who.shape
    line = shape["hairline"] + 0.35 * across**4
    if who.style == "fringe":
        line = line * 0 - 0.62 + 0.1 * across**2
    elif who.style == "parted":
        line = line + 0.22 * np.abs(across - shape["part"]) - 0.12
    elif who.style == "peaked":
        line = line + 0.22 * np.exp(-((across / 0.22) ** 2)) - 0.15
    return np.asarray(line)


def _draw_occlusion(canvas: _Canvas, who: Person, view: Scene, rng: np.random.Generator) -> None:
    shape, colour = who.shape, rng.uniform(10, 230, 3)
    if view.occlusion in ("glasses", "sunglasses"):
        _draw_glasses(canvas, shape, dark=view.occlusion == "sunglasses", colour=colour * 0.5)
    elif view.occlusion == "scarf":
        top = float(rng.uniform(0.25, 0.5))
        upper = np.column_stack([_ACROSS * 1.15, top + 0.1 * (1 - _ACROSS**2)])
        canvas.fill(np.concatenate([upper, [[1.4, 1.8], [-1.4, 1.8]]]), colour, None)
        for stripe in (0.3, 0.6, 0.9):
            canvas.line(upper + np.array([0, stripe]), colour * 0.7, 0.05, None)
    elif view.occlusion == "cap":
        upper = _outline(shape, 1.12)
        canvas.fill(upper[upper[:, 1] < -0.6], colour, None)
        canvas.line(
            np.column_stack([_ACROSS * 1.05, -0.62 - 0.1 * (1 - _ACROSS**2)]), colour * 0.6, 0.14, 0.2
        )
    elif view.occlusion == "hand":
        x, y = rng.uniform(-0.7, 0.7), rng.uniform(0.2, 0.9)
        for finger in range(4):
            tip = np.array([x + 0.17 * finger - 0.25, y - rng.uniform(0.3, 0.5)])
            canvas.line(
                np.array([tip, (x * 1.2 + 0.14 * finger - 0.2, 1.6)]),
                who.skin * (0.95 - 0.04 * finger),
                0.16,
                0.3,
            )


def _draw_glasses(canvas: _Canvas, shape: dict[str, float], *, dark: bool, colour: Colour) -> None:
    for side in (-1, 1):
        lens = _ellipse(side * shape["eye_apart"], shape["eye_y"] + 0.03, 0.27, 0.2)
        if dark:
            canvas.fill(lens, colour * 0.25, 0.15)
        canvas.line(np.concatenate([lens, lens[:2]]), colour, 0.035, 0.15)
        arm = np.array([[side * (shape["eye_apart"] + 0.27), shape["eye_y"]], [side * shape["width"], -0.25]])
        canvas.line(arm, colour, 0.035, 0.05)
    bridge = np.array(
        [[-shape["eye_apart"] + 0.27, shape["eye_y"]], [shape["eye_apart"] - 0.27, shape["eye_y"]]]
    )
    canvas.line(bridge, colour, 0.035, 0.2)


def _expose(image: NDArray[np.uint8], view: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Apply side light, colour cast, gain, gamma and noise."""
    size = len(image)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    falloff = np.tanh(1.5 * (view.light[0] * ramp[None, :] + view.light[1] * ramp[:, None])).astype(
        np.float32
    )
    shade = view.gain * (1 + 0.8 * falloff)
    curve = (255 * np.linspace(0, 1, 256) ** view.gamma).astype(np.float32)
    lit = curve[image] * shade[:, :, None] * view.cast.astype(np.float32)
    lit += rng.standard_normal((size, size, 1), np.float32) * np.float32(view.noise)
    return np.asarray(np.clip(lit, 0, 255).astype(np.uint8))
