"""A gallery: one safetensors file with the embeddings of enrolled photos, and JSON in its header.

It may come from somebody else, so everything is checked before it is used.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from sparface.errors import UserError
from sparface.faces.templates import Template
from sparface.files import read_bounded, write_whole
from sparface.forms import COUNT, NUMBER, fits
from sparface.shards.format import is_identity

MAX_BYTES = 1 << 31
_KEY = "gallery"
_FORM = {
    "version": range(2, 3),
    "people": [str],
    "person": [COUNT],
    "sources": [str],
    "covers": [str],
    "recognizer": {"name": str, "digest": re.compile("[0-9a-f]{64}")},
    "size": range(16, 1025),
    "template": re.compile("arcface|box"),
    "threshold": NUMBER,
    "basis": str,
}


@dataclass(frozen=True)
class Gallery:
    """Enrolled people."""

    people: list[str]
    embeddings: npt.NDArray[np.float32]
    """[N, E], of length 1: one per photo, and one per photo and cover."""
    person: npt.NDArray[np.int64]
    """[N]: index of each row's person in `people`."""
    sources: list[str]
    """[N]: the photos, as paths relative to the photo folder."""
    covers: list[str]
    """[N]: what is drawn on each photo; empty for the photo as it is."""
    recognizer: str
    """Name of the recognizer."""
    digest: str
    """Digest of the recognizer: only its embeddings may be compared with these."""
    size: int
    """Side of the aligned faces in pixels."""
    template: Template
    threshold: float
    """Faces whose best score (cosine) is not above it are of strangers."""
    basis: str
    """What the threshold is based on, in words."""

    def save(self, path: Path) -> None:
        """Write the file; raises `OSError` naming it if that fails."""
        about = {
            "version": 2,
            "people": self.people,
            "person": self.person.tolist(),
            "sources": self.sources,
            "covers": self.covers,
            "recognizer": {"name": self.recognizer, "digest": self.digest},
            "size": self.size,
            "template": self.template,
            "threshold": self.threshold,
            "basis": self.basis,
        }
        data = save_tensors({"embeddings": self.embeddings}, {_KEY: json.dumps(about)})
        write_whole(path, data, replace=False)


def load(path: Path) -> Gallery:
    """Read a gallery. Raises `UserError` naming the file if it is not one, or is damaged."""
    try:
        data = read_bounded(path, MAX_BYTES)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give a file of `sparface enrol`"
        ) from None
    try:
        about = _about(data)
        embeddings = load_tensors(data)["embeddings"]
        _check(about, embeddings)
    except Exception as error:  # on hostile bytes, the reader may raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: is not a gallery ({reason}); give a file of `sparface enrol`") from None
    return Gallery(
        about["people"],
        embeddings,
        np.array(about["person"], np.int64),
        about["sources"],
        about["covers"],
        about["recognizer"]["name"],
        about["recognizer"]["digest"],
        about["size"],
        about["template"],
        float(about["threshold"]),
        about["basis"],
    )


def _about(data: bytes) -> Any:
    """The JSON in the header of a safetensors file, which starts with the header's length."""
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise ValueError("not a safetensors file, or truncated")
    header = json.loads(data[8 : 8 + length])
    return json.loads(header["__metadata__"][_KEY])


def _check(about: Any, embeddings: npt.NDArray[Any]) -> None:
    """Raise ValueError for what does not belong into a gallery."""
    if not fits(about, _FORM):
        raise ValueError("its description is damaged")
    people, person, sources, covers = (about[name] for name in ("people", "person", "sources", "covers"))
    texts = [*sources, *covers, about["recognizer"]["name"], about["basis"]]
    if not all(map(is_identity, people)) or len(set(people)) < len(people):
        raise ValueError("its people have no names, or the same")
    if not all(text.isprintable() for text in texts):
        raise ValueError("it has texts that cannot be printed")
    if not -1 <= about["threshold"] <= 1:
        raise ValueError("its threshold is not a cosine")
    rows = len(embeddings) if embeddings.ndim == 2 and embeddings.dtype == np.float32 else 0
    if (
        not rows
        or {len(person), len(sources), len(covers)} != {rows}
        or set(person) != set(range(len(people)))
    ):
        raise ValueError("its embeddings do not belong to its people")
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    if not (abs(lengths - 1) < 1e-3).all():  # also false for NaN
        raise ValueError("its embeddings do not have length 1")
