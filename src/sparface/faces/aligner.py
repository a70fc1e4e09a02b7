"""A photo in memory → a face: find it, and bring it onto a template."""

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
"""A face and how it was made, or the reason why there is none."""

NO_FACE = "no face found"
_CENTRE = 0.6
"""Side of the centred square of a photo without a face, share of the shorter side: what the faces
of LFW's 250-pixel photos take up on average."""


@dataclass(frozen=True)
class Alignment:
    """How photos become faces; the same for training and test faces, or accuracy means nothing."""

    size: int = 128
    template: Template = "arcface"
    already_cropped: bool = False
    on_no_face: OnNoFace = "skip"

    def validate(self) -> None:
        """Raises UserError naming the setting."""
        if not 16 <= self.size <= 1024:
            raise UserError(f"size: {self.size} is not a face size; use 16 to 1024 pixels")
        for name, kind in (("template", Template), ("on_no_face", OnNoFace)):
            if getattr(self, name) not in get_args(kind):
                raise UserError(f"{name}: {getattr(self, name)!r} is unknown; use one of {get_args(kind)}")


class Aligner:
    """Aligns photos in memory. Holds the detector, so make one and keep it."""

    def __init__(self, alignment: Alignment) -> None:
        alignment.validate()
        self.alignment = alignment
        self._detector = Detector()

    def align(self, image: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """A photo, uint8 [H, W, 3] RGB, as a face, uint8 [size, size, 3], and how it was made.

        The dictionary has `method` (`landmarks`, `box` or `center`) and, when a face was found,
        `box` (left, top, right, bottom), `landmarks` (five x, y), both in pixels of the upright
        photo, `score` and `found` (faces in the photo). Raises BadPhoto without a face, unless a
        centred crop is wanted instead.
        """
        return self._face(image, self._detections([image])[0])

    def align_all(self, images: Sequence[np.ndarray]) -> list[Result]:
        """Photos of one size, as faces or the reasons why there are none."""
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
        """From photo to face coordinates; None if the landmarks are of no use."""
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
