"""Detect and align faces in photos, inspect the results, and draw demo faces that need no photos."""

from sparface.faces.align import AlignReport, align
from sparface.faces.aligner import Aligner, Alignment
from sparface.faces.demo import demo_face, demo_faces, write_demo_set
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
    "demo_face",
    "demo_faces",
    "list_photos",
    "open_photo",
    "write_demo_set",
]
