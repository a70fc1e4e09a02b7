"""Hair: a shell around the head with a hairline, and what falls behind and beside the face."""

from __future__ import annotations

import numpy as np

from sparface.faces.drawn.canvas import Canvas, Plane, ramp, waves
from sparface.faces.drawn.head import Head

_FALLS = {"long": 2.2, "bob": 0.75, "afro": 0.25, "curly": 0.5}
"""y to which the hair of a style falls at the sides; that of others ends at the ears."""
_VOLUME = {"buzzed": 0.15, "receding": 0.6, "tied": 0.4, "afro": 2.6, "curly": 1.6}
"""Factor on the volume."""


class Hair:
    """The hair of a person in a scene."""

    def __init__(self, head: Head, rng: np.random.Generator) -> None:
        self._head = head
        self.style = head.view.style or head.who.style
        self.covers_ears = False
        if self.style == "bald":
            return
        self._curly = self.style in ("curly", "afro")
        self._falls = _FALLS.get(self.style, head.shape["side"])
        self.covers_ears = self._falls > 0.4
        volume = head.shape["volume"] * head.view.volume * _VOLUME.get(self.style, 1)
        self._shell = head.shell(volume, 0.0 if self.style == "buzzed" else 0.4 * volume)
        self._strands = self._pattern(rng)
        ragged = self._strands * np.float32(0.06 if self._curly else 0.03)
        self._line = self._hairline() + ragged
        self._edge = self._shell.edge + ragged if self._curly else self._shell.edge

    def draw_behind(self, canvas: Canvas) -> None:
        """Draw what the head covers."""
        if self.style == "bald":
            return
        head, shell = self._head, self._shell
        shade = head.who.hair * np.float32(0.5)
        canvas.cover(canvas.inside(np.minimum(self._edge, self._falls - shell.y), 0.06), shade, shell.normal)
        if self.covers_ears:
            x, y = head.behind
            wide = head.shape["width"] + head.shape["volume"] * head.view.volume + 0.12 * ramp(y, -0.2, 1.2)
            share = canvas.inside(np.minimum(wide - np.abs(x), np.minimum(self._falls - y, y + 0.5)), 0.06)
            strands = 1 + 0.3 * np.sin(x * 23 + 2 * np.sin(y * 2 + 5 * head.shape["part"]))
            normal = np.stack([np.clip(x * 0.7, -0.8, 0.8), np.zeros_like(x), np.full_like(x, 0.6)])
            canvas.cover(share, head.who.hair[:, None, None] * strands * np.float32(0.7), normal, 0.2)

    def draw(self, canvas: Canvas) -> None:
        """Draw what covers the head, and its shadow on the forehead."""
        if self.style == "bald":
            return
        head, shell, shape = self._head, self._shell, self._head.shape
        below = shell.y - self._line
        shadow = np.exp(np.maximum(below, 0) * np.float32(-9)) * canvas.inside(head.edge)
        canvas.tint(shadow * np.float32(0.35), head.who.skin * np.float32(0.35))
        back = np.minimum(-0.12 - shell.z, self._falls - shell.y)
        share = canvas.inside(np.minimum(self._edge, np.maximum(-below, back)), 0.05)
        if self.style == "buzzed":
            share = share * np.float32(0.55 + 0.4 * shape["curl"])
        shade = head.who.hair[:, None, None] * (1 + np.float32(0.35) * self._strands)
        canvas.cover(share, np.maximum(shade, np.float32(0.002)), shell.normal, 0.15 + 0.5 * shape["gloss"])

    def _pattern(self, rng: np.random.Generator) -> Plane:
        """A pattern along the hair, about −1 to 1."""
        x, y, z = self._shell.x, self._shell.y, self._shell.z
        if self._curly:
            return waves(x, y, rng, 0.16 + 0.12 * self._head.shape["curl"], 4)
        around = (x - np.float32(self._head.shape["part"] * 0.5)) / np.maximum(0.6, 1.3 + y * np.float32(0.4))
        return waves(around * 2, z * 0.25 + y * 0.15, rng, 0.22, 4)

    def _hairline(self) -> Plane:
        """y of the lower edge of the hair on the forehead and at the sides, for each x of the shell."""
        shape, style = self._head.shape, self.style
        across = self._shell.x * np.float32((-1 if self._head.view.mirrored else 1) / shape["width"])
        middle = np.float32(shape["hairline"]) + 0.3 * across**2
        if style in ("fringe", "bob"):
            middle = np.float32(-0.66 + 0.2 * shape["curl"]) + 0.1 * across**2 + 0.05 * np.sin(across * 12)
        elif style == "parted":
            middle = middle + 0.3 * np.abs(across - np.float32(shape["part"])) - 0.1
        elif style == "swept":
            middle = middle + 0.3 * (across + 0.3)
        elif style == "receding":
            middle = middle - 0.3 * np.exp(-(((np.abs(across) - 0.5) / 0.25) ** 2)) - 0.05
        elif style == "long":
            middle = middle + 0.45 * np.maximum(0, np.abs(across - np.float32(0.5 * shape["part"])) - 0.25)
        start = 0.62 if self.covers_ears else 0.78
        side = ramp(np.abs(across), start, start + 0.17)
        return middle * (1 - side) + side * np.float32(self._falls)
