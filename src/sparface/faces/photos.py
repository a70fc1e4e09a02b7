"""Photos on disk: which there are, who is on them, and opening one safely."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sparface.errors import USERS_ERRNOS, MachineError, UserError
from sparface.files import open_regular, read_bounded
from sparface.shards.format import is_identity

MAX_PIXELS = 50_000_000
"""Photos with more pixels than this are not decoded."""
MAX_SIDE = 10_000
"""Photos with a longer side are not decoded: an already cropped one is made a square of that side."""
LEAVES = "a link out of the photo folder; use --follow-links to take it"

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
_KEY_LENGTH = 64
_MAX_TABLE = 1 << 30
_MAX_PATH = 4000
_THREADS, _STATS = 16, 256
"""Threads that ask for file sizes, and how many photos each takes at a time."""


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


def list_photos(photos: Path, *, follow_links: bool = False) -> list[Photo]:
    """All photos of a folder per identity or of a CSV with the columns `path` and `identity`.

    A folder is walked to any depth; the first folder name is the identity, hidden files are left
    out, and files beside the identity folders belong to nobody and are left out too. The paths of
    a CSV are relative to its folder. The list is sorted by identity, then path. Symbolic links
    that leave the folder are listed with their problem and not followed, unless `follow_links`.

    Raises UserError: nothing there, no photos, a malformed CSV, a folder that cannot be listed.
    """
    if not photos.exists():
        raise UserError(f"{photos}: no such folder or CSV; give a folder with one folder per identity")
    lister = _Lister(photos if photos.is_dir() else photos.parent, follow_links)
    found = list(lister.walk() if photos.is_dir() else lister.rows(photos))
    if not found:
        raise UserError(f"{photos}: no photos in it; expected one folder per identity with image files")
    return sorted(found, key=lambda photo: (photo.identity, photo.source))


class _Lister:
    """Lists photos below a folder, and asks the file system as little as it can: there may be millions."""

    def __init__(self, root: Path, follow_links: bool) -> None:
        self._root, self._follow_links = root, follow_links
        self._real_root = os.path.realpath(root)
        self._real_folder = functools.cache(os.path.realpath)

    def walk(self) -> Iterator[Photo]:
        """The photos in a folder for each identity."""
        for entry in _entries(self._root):
            yield from self._folder(entry, PurePosixPath(entry.name), in_link=False)

    def _folder(self, folder: os.DirEntry[str], relative: PurePosixPath, in_link: bool) -> Iterator[Photo]:
        """The photos in a folder, to any depth; none if it is a file beside the identities."""
        identity = relative.parts[0]
        if not _is_folder(folder):
            return
        if folder.is_symlink():
            if problem := self._link_problem(folder.path, in_link):
                yield self._photo(relative, identity, problem)
                return
            in_link = True
        for entry in _entries(Path(folder.path)):
            if _is_folder(entry):
                yield from self._folder(entry, relative / entry.name, in_link)
            elif entry.is_symlink() and not self._follow_links and not self._is_inside(entry.path):
                yield self._photo(relative / entry.name, identity, LEAVES)
            else:
                yield self._photo(relative / entry.name, identity)

    def _link_problem(self, link: str, in_link: bool) -> str:
        """Why a link to a folder is not followed; nothing if it is."""
        real, here = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
        if not self._follow_links and not _is_below(real, self._real_root):
            return LEAVES
        if _is_below(here, real):
            return "a link to a folder that it is in"
        return "a link to a folder, inside of a linked folder" if in_link else ""

    def _is_inside(self, link: str) -> bool:
        return _is_below(os.path.realpath(link), self._real_root)

    def rows(self, table: Path) -> Iterator[Photo]:
        """The photos of a CSV."""
        seen: set[str] = set()
        for line, row in enumerate(_read_csv(table), start=2):
            path, identity = (row["path"] or "").strip(), (row["identity"] or "").strip()
            if not path or not identity:
                raise UserError(
                    f"{table}: line {line}: path or identity is empty; fill it in or remove the line"
                )
            relative = PurePosixPath(os.path.normpath(path))
            if "\0" in path or len(path) > _MAX_PATH or not relative.name:
                raise UserError(f"{table}: line {line}: {path[:40]!r} is not the path of a photo")
            photo = self._photo(relative, identity, self._row_problem(relative))
            if photo.source in seen:
                raise UserError(f"{table}: line {line}: {path} is listed twice; remove one of the lines")
            seen.add(photo.source)
            yield photo

    def _row_problem(self, relative: PurePosixPath) -> str:
        path = os.path.abspath(self._root / relative)
        if not _is_below(path, os.path.abspath(self._root)):
            return "outside of the folder that the CSV is in; move the CSV above all photos"
        if self._follow_links:
            return ""
        folder, name = os.path.split(path)
        real = os.path.join(self._real_folder(folder), name)
        return (
            ""
            if _is_below(os.path.realpath(real) if os.path.islink(real) else real, self._real_root)
            else LEAVES
        )

    def _photo(self, relative: PurePosixPath, identity: str, problem: str = "") -> Photo:
        source = str(relative)
        if not source.isprintable():
            source = source.encode(errors="backslashreplace").decode()
            problem = problem or "its name is not readable text"
        if not is_identity(identity):
            problem = problem or "its identity is not 1 to 200 printable characters"
        return Photo(self._root / relative, source, identity, problem)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        kind = UserError if error.errno in USERS_ERRNOS else MachineError
        raise kind(
            f"{folder}: cannot be listed ({error.strerror}); make it readable or move it away"
        ) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; asks the file system about links only."""
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _is_below(path: str, folder: str) -> bool:
    """Whether a path is the folder or in it; both absolute and normalised."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _read_csv(table: Path) -> list[dict[str, str | None]]:
    try:
        text = read_bounded(table, _MAX_TABLE).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        missing = {"path", "identity"} - set(reader.fieldnames or ())
        if missing:
            raise UserError(f"{table}: no column {' and '.join(sorted(missing))}; name it in the first line")
        return list(reader)
    except OSError as error:
        raise UserError(f"{table}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}: not a readable CSV ({error}); give a folder or a UTF-8 CSV") from None


def fingerprint(photos: Sequence[Photo]) -> str:
    """Digest of the list: sources, identities and file sizes. Changes when the photos change."""
    digest = hashlib.sha256()
    parts = [photos[first : first + _STATS] for first in range(0, len(photos), _STATS)]
    with ThreadPoolExecutor(_THREADS) as pool:  # a network file system answers many at once
        for part, sizes in zip(parts, pool.map(_sizes, parts), strict=True):
            for photo, size in zip(part, sizes, strict=True):
                digest.update(f"{photo.source}\0{photo.identity}\0{size}\n".encode(errors="backslashreplace"))
    return digest.hexdigest()


def _sizes(photos: Sequence[Photo]) -> list[int]:
    return [-1 if photo.problem else _size(photo.path) for photo in photos]


def _size(path: Path) -> int:
    """Bytes of a file; -1 where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


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


def open_photo(path: Path) -> np.ndarray:
    """Decode a photo to uint8 [H, W, 3] RGB, turned upright by its EXIF orientation.

    The size in the header is checked before any pixel is decoded. Grey, palette and transparent
    images become RGB; of an animation the first frame is taken.

    Raises BadPhoto with a reason: missing, unreadable, not an image, truncated, too large.
    """
    try:
        if not path.is_file():
            raise BadPhoto("missing, or not a file")
        with open_regular(path) as file, Image.open(file, formats=_FORMATS) as image:
            _check_size(*image.size)
            return np.asarray(_eight_bit(ImageOps.exif_transpose(image)).convert("RGB"))
    except BadPhoto:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadPhoto(f"too large: the limit is {MAX_PIXELS / 1e6:g} million pixels") from None
    except UnidentifiedImageError:
        raise BadPhoto("not an image in a known format") from None
    except PermissionError:
        raise BadPhoto("no permission to read it") from None
    except Exception as error:  # decoders and readers of EXIF raise anything on hostile bytes
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadPhoto(f"{'truncated' if 'truncated' in detail else 'broken'} image ({detail})") from None


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadPhoto(f"too large: {width}x{height} pixels, the limit is {MAX_PIXELS / 1e6:g} million")
    if max(width, height) > MAX_SIDE:
        raise BadPhoto(f"too long: {width}x{height} pixels, the limit of a side is {MAX_SIDE:,}")


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits: PIL's own conversion clips it to white instead."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.clip(values / 257, 0, 255).round().astype(np.uint8))
    return image
