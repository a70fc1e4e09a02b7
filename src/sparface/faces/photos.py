"""Photos on disk: which there are, who is on them, and opening one safely."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sparface.errors import UserError
from sparface.files import open_regular, read_bounded

MAX_PIXELS = 50_000_000
"""Photos with more pixels than this are not decoded."""
MAX_RATIO = 50
"""Photos whose longer side is more times the shorter are refused: the detector scales the shorter side up."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
_KEY_LENGTH = 64
_MAX_TABLE = 1 << 30
_MAX_PATH = 4000


@dataclass(frozen=True)
class Photo:
    """A file that should show one person.

    `source` is its posix path below the photo folder (or below the CSV's folder), and `problem`
    says why it must not be opened, if so.
    """

    path: Path
    source: str
    identity: str
    problem: str = ""


class BadPhoto(Exception):
    """A photo that cannot be used; the message is the reason, without the path."""


def list_photos(photos: Path) -> list[Photo]:
    """All photos of a folder per identity or of a CSV with the columns `path` and `identity`.

    A folder is walked to any depth; the first folder name is the identity, hidden files are left
    out, and files beside the identity folders belong to nobody and are left out too. The paths of
    a CSV are relative to its folder. The list is sorted by identity, then path. Symbolic links
    that leave the folder are listed with their problem and never followed.

    Raises UserError: nothing there, no photos, a malformed CSV.
    """
    if not photos.exists():
        raise UserError(f"{photos}: no such folder or CSV; give a folder with one folder per identity")
    found = list(_walk(photos) if photos.is_dir() else _read_csv(photos))
    if not found:
        raise UserError(f"{photos}: no photos in it; expected one folder per identity with image files")
    return sorted(found, key=lambda photo: (photo.identity, photo.source))


def _walk(root: Path) -> Iterator[Photo]:
    for directory, folders, files in os.walk(root, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(directory).relative_to(root)
        for name in folders:
            if (root / inside / name).is_symlink():
                yield from _linked_folder(root, inside / name)
        for name in files:
            if inside.parts and not name.startswith("."):
                yield _photo(root, inside / name, inside.parts[0])


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed must not be left out without a word: a person would be missing."""
    raise UserError(f"{error.filename}: cannot be listed ({error.strerror}); mend its rights or move it away")


def _linked_folder(root: Path, relative: Path) -> Iterator[Photo]:
    """A folder that is a link: its files if it stays inside the root, else one refused entry."""
    link = root / relative
    if not link.resolve().is_relative_to(root.resolve()):
        yield _photo(root, relative, relative.parts[0])
        return
    for path in link.iterdir():
        if path.is_file() and not path.name.startswith("."):
            yield _photo(root, relative / path.name, relative.parts[0])


def _read_csv(table: Path) -> Iterator[Photo]:
    seen: set[str] = set()
    try:
        text = read_bounded(table, _MAX_TABLE).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        missing = {"path", "identity"} - set(reader.fieldnames or ())
        if missing:
            raise UserError(f"{table}: no column {' and '.join(sorted(missing))}; name it in the first line")
        rows = list(reader)
    except OSError as error:
        raise UserError(f"{table}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}: not a readable CSV ({error}); give a folder or a UTF-8 CSV") from None
    for line, row in enumerate(rows, start=2):
        path, identity = (row["path"] or "").strip(), (row["identity"] or "").strip()
        if not path or not identity:
            raise UserError(f"{table}: line {line}: path or identity is empty; fill it in or remove the line")
        if "\0" in path or len(path) > _MAX_PATH or (relative := os.path.normpath(path)) == ".":
            raise UserError(f"{table}: line {line}: {path[:40]!r} is not the path of a photo")
        photo = _photo(table.parent, Path(relative), identity)
        if photo.source in seen:
            raise UserError(f"{table}: line {line}: {path} is listed twice; remove one of the lines")
        seen.add(photo.source)
        yield photo


def _photo(root: Path, relative: Path, identity: str) -> Photo:
    path, problem = root / relative, ""
    try:
        if not path.resolve().is_relative_to(root.resolve()):
            problem = "points outside the photo folder"
    except (OSError, RuntimeError) as error:  # a circle of links, a name that is too long
        problem = f"not a path to follow ({getattr(error, 'strerror', None) or 'a circle of links'})"
    source = relative.as_posix()
    if not source.isprintable():
        source = source.encode(errors="backslashreplace").decode()
        problem = problem or "its name is not readable text"
    return Photo(path, source, identity, problem)


def fingerprint(photos: Iterable[Photo]) -> str:
    """Digest of the list: sources, identities and file sizes. Changes when the photos change."""
    digest = hashlib.sha256()
    for photo in photos:
        size = photo.path.stat().st_size if not photo.problem and photo.path.is_file() else -1
        digest.update(f"{photo.source}\0{photo.identity}\0{size}\n".encode())
    return digest.hexdigest()


def keys(photos: Iterable[Photo]) -> list[str]:
    """One sample key per photo, in order: the source without its suffix, in [A-Za-z0-9_-].

    Sources that would share a key, or would give a very long one, get a digest of the source
    appended, so that keys are unique and depend on the list of photos only.
    """
    sources = [photo.source for photo in photos]
    plain = [re.sub(r"[^A-Za-z0-9_-]", "_", str(PurePosixPath(source).with_suffix(""))) for source in sources]
    count = Counter(plain)
    return [
        key if count[key] == 1 and len(key) <= _KEY_LENGTH else f"{key[:_KEY_LENGTH]}-{_short_digest(source)}"
        for key, source in zip(plain, sources, strict=True)
    ]


def set_name(out: Path) -> str:
    """A name for a shard set out of its folder's name: the characters of keys, 64 at most."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", out.resolve().name)[:64] or "faces"


def _short_digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def open_photo(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a photo to uint8 [H, W, 3] RGB, turned upright by its EXIF orientation.

    The size in the header is checked before any pixel is decoded. Grey, palette and transparent
    images become RGB; of an animation the first frame is taken.

    Raises BadPhoto with a reason: missing, unreadable, not an image, truncated, too large.
    """
    try:
        if not path.is_file():
            raise BadPhoto("missing, or not a file")
        with open_regular(path) as file, Image.open(file, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                limit = f"the limit is {max_pixels / 1e6:g} million"
                raise BadPhoto(f"too large: {width}x{height} pixels, {limit}")
            if max(width, height) > MAX_RATIO * min(width, height):
                raise BadPhoto(
                    f"too narrow: {width}x{height} pixels, no side may be {MAX_RATIO} times the other"
                )
            return np.asarray(_eight_bit(ImageOps.exif_transpose(image)).convert("RGB"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadPhoto(f"too large: the limit is {max_pixels / 1e6:g} million pixels") from None
    except UnidentifiedImageError:
        raise BadPhoto("not an image in a known format") from None
    except PermissionError:
        raise BadPhoto("no permission to read it") from None
    except BadPhoto:
        raise
    except UserError as error:
        raise BadPhoto(str(error).rpartition(": ")[2]) from None
    except Exception as error:  # a decoder, and what reads EXIF, may raise anything on hostile bytes
        detail = str(error).partition("\n")[0] or type(error).__name__
        raise BadPhoto(f"{'truncated' if 'truncated' in detail else 'broken'} image ({detail})") from None


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits: PIL's own conversion clips it to white instead."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.clip(values / 257, 0, 255).round().astype(np.uint8))
    return image
