"""Draw one photo of a person, aligned as `align` would."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparface.faces.drawn.beard import draw_beard
from sparface.faces.drawn.body import draw_body, draw_ears
from sparface.faces.drawn.camera import photograph
from sparface.faces.drawn.canvas import Canvas
from sparface.faces.drawn.features import draw_face
from sparface.faces.drawn.hair import Hair
from sparface.faces.drawn.head import Head
from sparface.faces.drawn.people import Person
from sparface.faces.drawn.scenes import Scene
from sparface.faces.drawn.wear import draw_wear


def draw(who: Person, view: Scene, size: int) -> NDArray[np.uint8]:
    """Draw one photo, uint8 [size, size, 3], with the face on ArcFace's template; a pure function."""
    rng = np.random.default_rng(view.detail)
    head = Head(who, view, size)
    canvas = Canvas(size, head.unit)
    hair = Hair(head, rng)
    hair.draw_behind(canvas)
    draw_body(canvas, head, rng)
    if not hair.covers_ears:
        draw_ears(canvas, head)
    draw_face(canvas, head)
    draw_beard(canvas, head, rng)
    hair.draw(canvas)
    draw_wear(canvas, head, rng)
    return photograph(canvas, head, rng)
