"""Detect the face in a photo in memory and align it to a template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from sparface.errors import UserError
from sparface.faces.detect import Detection, Detector, choose
from sparface.faces.photos import BadPhoto
from sparface.faces.templates import (
    BOX_MARGIN,
    Template,
    arcface_template,
    similarity,
    square_transform,
    warp,
)

OnNoFace = Literal["skip", "center"]
Result = tuple[np.ndarray, dict[str, Any]] | str
"""A face and its metadata, or the reason why there is no face."""

NO_FACE = "no face found"
_CENTRE = 0.6
"""Side of the centred crop for a photo without a detected face, as a fraction of the shorter side: the
average extent of faces in LFW's 250-pixel photos."""


@dataclass(frozen=True)
class Alignment:
    """Alignment settings. Training and test faces must use the same ones, or accuracy is meaningless."""

    size: int = 128
    template: Template = "arcface"
    already_cropped: bool = False
    on_no_face: OnNoFace = "skip"

    def validate(self) -> None:
        """Raise `UserError` for the first invalid setting."""
        if not 16 <= self.size <= 1024:
            raise UserError(f"size: {self.size} is not allowed; must be 16 to 1024 pixels")
        for name, kind in (("template", Template), ("on_no_face", OnNoFace)):
            if getattr(self, name) not in get_args(kind):
                raise UserError(
                    f"{name}: {getattr(self, name)!r} is not allowed; use one of {', '.join(get_args(kind))}"
                )


class Aligner:
    """Aligns photos in memory. Loads the detector when created, so reuse an instance."""

    def __init__(self, alignment: Alignment) -> None:
        alignment.validate()
        self.alignment = alignment
        self._detector = Detector()

    def align(self, image: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """Align a photo, uint8 [H, W, 3] RGB; returns a face, uint8 [size, size, 3], and its metadata.

        The metadata holds `method` (`landmarks`, `box` or `center`), `found` (number of faces in the photo)
        and, if a face was found, its `box` (left, top, right, bottom) and `landmarks` (five x, y), both in
        pixels of the upright photo, and its `score`. Raises `BadPhoto` if no face was found, unless the
        settings allow a centred crop instead.
        """
        return self._face(image, self._detections([image])[0])

    def align_every(self, image: np.ndarray) -> list[tuple[np.ndarray, dict[str, Any]]]:
        """Align every face in a photo, from left to right; like `align` for a photo without one."""
        found = self._detections([image])[0]
        if self.alignment.already_cropped or not found:
            return [self._face(image, found)]
        ordered = sorted(found, key=lambda face: face.box[0])
        return [self._face(image, [face]) for face in ordered]

    def align_all(self, images: Sequence[np.ndarray]) -> list[Result]:
        """Align photos of one size; returns a result or the reason for failure for each."""
        results: list[Result] = []
        for image, detections in zip(images, self._detections(images), strict=True):
            try:
                results.append(self._face(image, detections))
            except BadPhoto as problem:
                results.append(str(problem))
        return results

    def _detections(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        if not self.alignment.already_cropped:
            return self._detector.detect(images)
        return self._detector.detect_cropped(images)

    def _face(self, image: np.ndarray, detections: list[Detection]) -> tuple[np.ndarray, dict[str, Any]]:
        size = self.alignment.size
        face = choose(detections, image.shape[1], image.shape[0])
        face = face.rounded() if face else None
        transform = self._transform(face) if face else None
        if face is None or transform is None:
            if self.alignment.on_no_face == "skip" and not self.alignment.already_cropped:
                raise BadPhoto(NO_FACE)
            return warp(image, self._centred(image), size), {"method": "center", "found": 0}
        meta = {
            "method": "landmarks" if self.alignment.template == "arcface" else "box",
            "box": list(face.box),
            "landmarks": face.landmarks.tolist(),
            "score": round(face.score, 6),
            "found": len(detections),
        }
        return warp(image, transform, size), meta

    def _transform(self, face: Detection) -> np.ndarray | None:
        """The transform from photo to face coordinates, or None if the landmarks are degenerate."""
        size = self.alignment.size
        if self.alignment.template == "box":
            left, top, right, bottom = face.box
            side = max(face.side * (1 + BOX_MARGIN), 1.0)
            return square_transform(((left + right) / 2, (top + bottom) / 2), side, size)
        try:
            return similarity(face.landmarks, arcface_template(size))
        except ValueError:
            return None

    def _centred(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        side = max(width, height) if self.alignment.already_cropped else _CENTRE * min(width, height)
        return square_transform(((width - 1) / 2, (height - 1) / 2), side, self.alignment.size)
