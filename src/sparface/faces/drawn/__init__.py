"""Drawn people: labelled faces without end, from numbers alone, so nobody's photos are needed."""

from sparface.faces.drawn.drawing import draw
from sparface.faces.drawn.people import person
from sparface.faces.drawn.scenes import scene
from sparface.faces.drawn.set import draw_set, drawn_face, drawn_faces

__all__ = ["draw", "draw_set", "drawn_face", "drawn_faces", "person", "scene"]
