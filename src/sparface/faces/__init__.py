"""Detect and align faces in photos, inspect the results, and draw people who do not exist."""

from sparface.faces.align import AlignReport, align
from sparface.faces.aligner import Aligner, Alignment
from sparface.faces.drawn import draw_set, drawn_face, drawn_faces
from sparface.faces.photos import BadPhoto, Photo, list_photos, open_photo
from sparface.faces.sheet import contact_sheet

__all__ = [
    "AlignReport",
    "Aligner",
    "Alignment",
    "BadPhoto",
    "Photo",
    "align",
    "contact_sheet",
    "draw_set",
    "drawn_face",
    "drawn_faces",
    "list_photos",
    "open_photo",
]
