"""The head in space: its surface, how a pose projects it, and which point of it each pixel shows."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparface.faces.drawn.canvas import Plane, bump, ramp
from sparface.faces.drawn.people import Person, Points
from sparface.faces.drawn.scenes import Scene
from sparface.faces.templates import arcface_template, similarity

_MIDDLE = -0.1
"""y of the centre of the ellipsoid that the head is built from."""
_LEVELS = np.linspace(-1.6, 1.6, 81)
_ROUNDS = 2
"""Iterations to find the point that a pixel shows."""


class Surface(NamedTuple):
    """What each pixel shows of a surface, all [H, W] but for the normals."""

    x: Plane
    y: Plane
    z: Plane
    depth: Plane
    """Towards the viewer."""
    edge: Plane
    """Distance to the outline, positive inside."""
    normal: NDArray[np.float32]
    """[3, H, W]: unit vectors; x to the right, y down, z to the viewer."""


class Head:
    """A head in a pose. Planes are [H, W]; `x`, `y`, `z` are the head coordinates that each pixel shows."""

    def __init__(self, who: Person, view: Scene, size: int) -> None:
        self.shape, self.who, self.view = who.shape, who, view
        shape = who.shape
        self._chin = shape["chin"] + 0.13 * view.mouth_open - _MIDDLE
        self._top = shape["top"] + _MIDDLE
        marks = [-1.3, -0.65, 0.0, 0.55, 1.1]
        widths = [1.0, shape["temples"], 1.0, shape["jaw"], shape["chin_width"]]
        outline = np.interp(_LEVELS, marks, widths)
        self._outline = np.convolve(np.pad(outline, 6, "edge"), np.full(13, 1 / 13), "valid")
        yaw, pitch = view.yaw, view.pitch
        turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        nod = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
        self._rotation = nod @ turn
        to_picture = self._aligned(size)
        self.unit = float(np.sqrt(np.linalg.det(to_picture[:, :2])))
        """Pixels per unit of head coordinates."""
        self.u, self.v = _grid(to_picture, size)
        self._find()

    def _aligned(self, size: int) -> NDArray[np.float64]:
        """The transform [2, 3] from the projection to pixels that `align` would find, but for an error."""
        view = self.view
        points = similarity(self.project(self._landmarks()), arcface_template(size))
        scale = view.scale * np.array(
            [[np.cos(view.roll), -np.sin(view.roll)], [np.sin(view.roll), np.cos(view.roll)]]
        )
        centre = np.full(2, (size - 1) / 2)
        return np.column_stack(
            [scale @ points[:, :2], scale @ (points[:, 2] - centre) + centre + view.shift * size]
        )

    def _landmarks(self) -> Points:
        """Eyes, tip of the nose and corners of the mouth, [5, 3]."""
        shape = self.shape
        apart, wide = shape["eye_apart"], shape["mouth_width"]
        x = np.array([-apart, apart, shape["nose_bend"], -wide, wide], np.float32)
        y = np.array([shape["eye_y"]] * 2 + [shape["nose_y"]] + [shape["mouth_y"]] * 2, np.float32)
        half, up = self._half_width(y), self._half_height(y)
        base = np.sqrt(np.maximum(0, 1 - (x / half) ** 2 - ((y - _MIDDLE) / up) ** 2)) * shape["depth"]
        return np.column_stack([x, y, base + self._relief(x, y)]).astype(float)

    def project(self, points: Points) -> Points:
        """Project head coordinates [N, 3] to the plane of the picture, [N, 2]."""
        seen = points @ self._rotation.T
        return np.asarray(seen[:, :2] / (1 - seen[:, 2:] / self.view.distance))

    def _half_width(self, y: Plane) -> Plane:
        widths = np.interp(y, _LEVELS, self._outline * self.shape["width"])
        return np.asarray(widths, np.float32)

    def _half_height(self, y: Plane) -> Plane:
        return np.where(y > _MIDDLE, np.float32(self._chin), np.float32(self._top))

    def _ray(self, depth: Plane | float) -> tuple[Plane, Plane, Plane]:
        """Head coordinates of the points at depth 0 of the rays that reach a depth where they should."""
        near = 1 - depth / np.float32(self.view.distance)
        u, v = self.u * near, self.v * near
        turn = self._rotation.astype(np.float32)
        x, y, z = (u * turn[0, axis] + v * turn[1, axis] for axis in range(3))
        return x, y, z

    def _find(self) -> None:
        """Find the surface point of each pixel: intersect its ray with an ellipsoid whose axes and relief
        are those of the point found before."""
        y: Plane = self.v
        lift: Plane = np.zeros_like(y)
        depth: Plane = np.full_like(y, 0.7)
        for _ in range(_ROUNDS):
            axes = (self._half_width(y), self._half_height(y), np.float32(self.shape["depth"]))
            x, y, z, depth, edge = self._meet(depth, axes, lift)
            lift = self._relief(x, y)
        self.x, self.y, self.z, self.depth, self.edge = x, y, z + lift, depth, edge
        self.normal = _normals(depth, self.unit)
        self._bend()

    def _meet(
        self, depth: Plane, axes: tuple[Plane, Plane, np.float32], lift: Plane | float
    ) -> tuple[Plane, Plane, Plane, Plane, Plane]:
        """Where the rays meet an ellipsoid: x, y, z, depth, and the distance to its outline."""
        x, y, z = self._ray(depth)
        y, z = y - np.float32(_MIDDLE), z - lift
        along = self._rotation[2].astype(np.float32)
        inverse = [1 / axis**2 for axis in axes]
        a = sum(d * d * i for d, i in zip(along, inverse, strict=True))
        b = sum(o * d * i for o, d, i in zip((x, y, z), along, inverse, strict=True))
        c = sum(o * o * i for o, i in zip((x, y, z), inverse, strict=True)) - 1
        under = b * b - a * c
        found = (np.sqrt(np.maximum(under, 0)) - b) / a
        edge = under / (a * a) * np.float32(self.shape["width"] / 2) * inverse[2]
        x, y, z = x + found * along[0], y + found * along[1] + np.float32(_MIDDLE), z + found * along[2]
        return x, y, z, found, edge

    def shell(self, grow: float, higher: float = 0.0) -> Surface:
        """A smooth shell around the head; `higher` raises its top."""
        wide = self.shape["width"] * max(1.0, self.shape["temples"]) + grow
        up = np.where(self.v > _MIDDLE, np.float32(self._chin + grow), np.float32(self._top + grow + higher))
        axes = (np.float32(wide), up, np.float32(self.shape["depth"] + grow))
        x, y, z, depth, edge = self._meet(np.float32(0.7), axes, 0.0)  # type: ignore[arg-type]
        return Surface(x, y, z, depth, edge, _normals(depth, self.unit))

    def plane(self, z: float) -> tuple[Plane, Plane]:
        """Where the rays meet the plane at a height above the ears: x, y."""
        along = self._rotation[2]
        x, y, start = self._ray(z)
        reach = (np.float32(z) - start) / np.float32(along[2])
        return x + reach * np.float32(along[0]), y + reach * np.float32(along[1])

    @cached_property
    def behind(self) -> tuple[Plane, Plane]:
        """x, y on the plane of neck and shoulders, which follow a turn of the head by half."""
        x, y = self.plane(-0.25)
        return x * np.float32(np.cos(self.view.yaw)), y

    def _bend(self) -> None:
        """Make the face asymmetric: what is painted at (x, y) is moved."""
        shape = self.shape
        level = ramp(self.y, -0.5, 0.1) * (1 - ramp(self.y, 0.1, 0.5))
        self.x = self.x - np.float32(shape["nose_bend"]) * level
        upper = 1 - ramp(self.y, -0.2, 0.1)
        tilt = shape["eyes_tilt"] * upper + shape["mouth_tilt"] * (1 - upper)
        self.y = self.y - tilt * np.tanh(3 * self.x)

    def _relief(self, x: Plane, y: Plane) -> Plane:
        """Height of the features above the ellipsoid."""
        shape, view = self.shape, self.view
        aside, eye_y, mouth_y = np.abs(x), shape["eye_y"], shape["mouth_y"] + 0.06 * self.view.mouth_open
        eye = aside - np.float32(shape["eye_apart"])
        smiling = max(0.0, view.smile)
        total = -np.float32(shape["socket"]) * bump(eye * 0.9, y - eye_y, 0.2, 0.15)
        total += np.float32(0.35 * shape["socket"] + 0.03) * bump(eye, y - eye_y, 0.13, 0.1)
        total += np.float32(shape["brow_ridge"]) * bump(aside - 0.3, y - eye_y + 0.2, 0.3, 0.09)
        total += np.float32(shape["cheekbone"]) * bump(aside - 0.6, y - shape["cheek_y"], 0.24, 0.2)
        full = shape["cheek"] + 0.07 * smiling
        total += np.float32(full) * bump(aside - 0.48, y - 0.36 + 0.12 * smiling, 0.24, 0.24)
        total += np.float32(shape["jaw_corner"]) * bump(aside - 0.72, y - 0.6, 0.2, 0.25)
        total += np.float32(shape["muzzle"]) * bump(x, y - mouth_y, 0.3, 0.2)
        chin = y - np.float32(self._chin + _MIDDLE - 0.22)
        total += np.float32(shape["chin_out"]) * bump(x, chin, 0.24, 0.16)
        total -= np.float32(max(0.0, shape["cleft"])) * bump(x, chin, 0.04, 0.1)
        for at, lip in ((-0.05, "lip_upper"), (0.06 + 0.05 * view.mouth_open, "lip_lower")):
            total += np.float32(0.5 * shape[lip]) * bump(x, y - (mouth_y + at), shape["mouth_width"], 0.05)
        return total + self._nose(x, y)

    def _nose(self, x: Plane, y: Plane) -> Plane:
        shape = self.shape
        tip, start = shape["nose_y"], shape["eye_y"] - 0.06
        share = np.clip((y - start) * np.float32(1 / (tip - start)), -0.5, 1.3)
        height = np.float32(shape["bridge_out"]) + np.float32(
            shape["nose_out"] - shape["bridge_out"]
        ) * np.clip(share, 0, 1)
        height = height + np.float32(shape["hump"]) * np.exp(-(((share - 0.4) * 4) ** 2))
        across = np.float32(shape["bridge"]) + np.float32(
            0.75 * shape["tip"] + 0.02 - shape["bridge"] * 0.6
        ) * np.clip(share, 0, 1)
        ends = np.exp(-((np.maximum(y - tip, 0) * 11) ** 2) - (np.maximum(start - y, 0) * 5) ** 2)
        ridge = height * ends * np.exp(-((x / (across * 1.5)) ** 2))
        wing = bump(np.abs(x) - np.float32(shape["nose_width"] * 0.72), y - tip, 0.075, 0.085)
        return np.asarray(ridge + np.float32(0.13) * wing)


def _grid(to_picture: NDArray[np.float64], size: int) -> tuple[Plane, Plane]:
    """The point of the projection at the centre of each pixel: u, v."""
    linear = np.linalg.inv(to_picture[:, :2])
    offset = -linear @ to_picture[:, 2]
    pixels = np.arange(size, dtype=np.float32)
    u, v = (
        np.float32(row[0]) * pixels[None, :] + np.float32(row[1]) * pixels[:, None] + np.float32(start)
        for row, start in zip(linear, offset, strict=True)
    )
    return u, v


def _normals(depth: Plane, unit: float) -> NDArray[np.float32]:
    """Unit vectors [3, H, W] towards the viewer's side of a surface, from its depth."""
    down, right = np.gradient(depth * np.float32(unit))
    length = 1 / np.sqrt(right * right + down * down + 1)
    return np.stack([-right * length, -down * length, length])
