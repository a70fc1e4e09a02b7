"""List photos on disk with their identities, and open them safely."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sparface.errors import USERS_ERRNOS, MachineError, UserError
from sparface.files import open_regular, read_table
from sparface.shards.format import is_identity
from sparface.shards.labels import is_class, require_columns

MAX_PIXELS = 50_000_000
"""Photos with more pixels are not decoded."""
MAX_SIDE = 10_000
"""Photos with a longer side are not decoded: an already cropped photo is padded to a square of that side."""
LEAVES = "link leaves the photo folder; use --follow-links to follow it"

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
FIXED = ("path", "identity")
"""The columns that every CSV of photos has."""
_KEY_LENGTH = 64
_MAX_PATH = 4000
_THREADS, _STATS = 16, 256
"""Number of threads that query file sizes, and photos per task."""


Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Photo:
    """A photo of one person.

    `source` is the POSIX path relative to the photo folder (or the CSV's folder). A non-empty `problem` says
    why the photo must not be opened.
    """

    path: Path
    source: str
    identity: str
    problem: str = ""
    labels: Labels = ()
    """Further labels from a CSV, as (column, class)."""


class BadPhoto(Exception):
    """A photo that cannot be used. The message is the reason, without the path."""


def list_photos(photos: Path, *, follow_links: bool = False) -> list[Photo]:
    """List the photos in a folder with one folder per identity, or in a CSV with columns `path`, `identity`.

    Folders are searched recursively; the top-level folder is the identity. Hidden files and files beside the
    identity folders are ignored. Paths in a CSV are relative to its folder, and its other columns are labels,
    such as `expression`; cells of them may be empty. The list is sorted by identity, then path. Symbolic
    links that leave the folder are listed with a problem, unless `follow_links` is set.

    Raises `UserError` if the path does not exist, there are no photos, the CSV is malformed, or a folder
    cannot be listed.
    """
    if not photos.exists():
        raise UserError(f"{photos}: no such folder or CSV; give a folder with one folder per identity")
    lister = _Lister(photos if photos.is_dir() else photos.parent, follow_links)
    found = list(lister.walk() if photos.is_dir() else lister.rows(photos))
    if not found:
        raise UserError(f"{photos}: contains no photos; give a folder with one folder of images per identity")
    return sorted(found, key=lambda photo: (photo.identity, photo.source))


class _Lister:
    """Lists the photos in a folder with few file system calls: there may be millions."""

    def __init__(self, root: Path, follow_links: bool) -> None:
        self._root, self._follow_links = root, follow_links
        self._real_root = os.path.realpath(root)
        self._real_folder = functools.cache(os.path.realpath)

    def walk(self) -> Iterator[Photo]:
        """Yield the photos in all identity folders."""
        for entry in _entries(self._root):
            yield from self._folder(entry, PurePosixPath(entry.name), in_link=False)

    def _folder(self, folder: os.DirEntry[str], relative: PurePosixPath, in_link: bool) -> Iterator[Photo]:
        """Yield the photos in a folder, recursively; none if `folder` is a file."""
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
        """Why a link to a folder is not followed; empty if it is."""
        real, here = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
        if not self._follow_links and not _is_below(real, self._real_root):
            return LEAVES
        if _is_below(here, real):
            return "link to a folder that contains it"
        return "link to a folder inside a linked folder" if in_link else ""

    def _is_inside(self, link: str) -> bool:
        return _is_below(os.path.realpath(link), self._real_root)

    def rows(self, table: Path) -> Iterator[Photo]:
        """Yield the photos in a CSV."""
        seen: set[str] = set()
        listed = read_table(table, FIXED)
        columns = [name for name in (listed[0] if listed else ()) if name not in (None, "", *FIXED)]
        require_columns(columns, str(table))
        for line, row in enumerate(listed, start=2):
            path, identity = (row["path"] or "").strip(), (row["identity"] or "").strip()
            if not path or not identity:
                raise UserError(
                    f"{table}, line {line}: path or identity is empty; fill it in or remove the line"
                )
            relative = PurePosixPath(os.path.normpath(path))
            if "\0" in path or len(path) > _MAX_PATH or not relative.name:
                raise UserError(f"{table}, line {line}: {path[:40]!r} is not a valid path; correct it")
            labels = _labels(row, columns, f"{table}, line {line}")
            photo = self._photo(relative, identity, self._row_problem(relative), labels)
            if photo.source in seen:
                raise UserError(f"{table}, line {line}: {path} is listed twice; remove one of the lines")
            seen.add(photo.source)
            yield photo

    def _row_problem(self, relative: PurePosixPath) -> str:
        path = os.path.abspath(self._root / relative)
        if not _is_below(path, os.path.abspath(self._root)):
            return "outside the folder of the CSV; move the CSV to a folder that contains all photos"
        if self._follow_links:
            return ""
        folder, name = os.path.split(path)
        real = os.path.join(self._real_folder(folder), name)
        return (
            ""
            if _is_below(os.path.realpath(real) if os.path.islink(real) else real, self._real_root)
            else LEAVES
        )

    def _photo(self, relative: PurePosixPath, identity: str, problem: str = "", labels: Labels = ()) -> Photo:
        source = str(relative)
        if not source.isprintable():
            source = source.encode(errors="backslashreplace").decode()
            problem = problem or "name has characters that are not printable"
        if not is_identity(identity):
            problem = problem or "identity is not 1 to 200 printable characters"
        return Photo(self._root / relative, source, identity, problem, labels)


def _labels(row: Mapping[str, str | None], columns: Sequence[str], where: str) -> Labels:
    """The labels in a row of a CSV; an empty cell is none."""
    found = tuple((column, name) for column in columns if (name := (row[column] or "").strip()))
    if wrong := [column for column, name in found if not is_class(name)]:
        raise UserError(f"{where}: {wrong[0]} is not 1 to 200 printable characters; correct it")
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """List a folder without hidden files."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        kind = UserError if error.errno in USERS_ERRNOS else MachineError
        raise kind(
            f"{folder}: cannot be listed ({error.strerror}); make it readable or move it elsewhere"
        ) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; needs a system call for links only."""
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _is_below(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or inside it; both must be absolute and normalised."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def fingerprint(photos: Sequence[Photo]) -> str:
    """A digest of all sources, identities, labels and file sizes, which changes if the photos change."""
    digest = hashlib.sha256()
    parts = [photos[first : first + _STATS] for first in range(0, len(photos), _STATS)]
    with ThreadPoolExecutor(_THREADS) as pool:  # network file systems handle many requests at once
        for part, sizes in zip(parts, pool.map(_sizes, parts), strict=True):
            for photo, size in zip(part, sizes, strict=True):
                labels = "".join(f"\0{column}\0{name}" for column, name in photo.labels)
                line = f"{photo.source}\0{photo.identity}\0{size}{labels}\n"
                digest.update(line.encode(errors="backslashreplace"))
    return digest.hexdigest()


def _sizes(photos: Sequence[Photo]) -> list[int]:
    return [-1 if photo.problem else _size(photo.path) for photo in photos]


def _size(path: Path) -> int:
    """The size of a file in bytes; -1 if it is not a regular file."""
    try:
        status = os.stat(path)
    except OSError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def keys(photos: Iterable[Photo]) -> list[str]:
    """One sample key per photo, in order: the source without its suffix, in [A-Za-z0-9_-].

    A digest of the source is appended to keys that would be ambiguous or very long. Keys are therefore unique
    and depend only on the list of photos.
    """
    sources = [photo.source for photo in photos]
    plain = [re.sub(r"[^A-Za-z0-9_-]", "_", str(PurePosixPath(source).with_suffix(""))) for source in sources]
    count = Counter(plain)
    return [
        key if count[key] == 1 and len(key) <= _KEY_LENGTH else f"{key[:_KEY_LENGTH]}-{_short_digest(source)}"
        for key, source in zip(plain, sources, strict=True)
    ]


def _short_digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def open_photo(path: Path) -> np.ndarray:
    """Decode a photo to uint8 [H, W, 3] RGB, upright according to its EXIF orientation.

    The size in the header is checked before decoding. Grey, palette and transparent images are converted to
    RGB; of an animation, only the first frame is used.

    Raises `BadPhoto` if the photo is missing, unreadable, not an image, truncated or too large.
    """
    try:
        if not path.is_file():
            raise BadPhoto("missing or not a file")
        with open_regular(path) as file, Image.open(file, formats=_FORMATS) as image:
            _check_size(*image.size)
            return np.asarray(_eight_bit(ImageOps.exif_transpose(image)).convert("RGB"))
    except BadPhoto:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadPhoto(f"too large: the limit is {MAX_PIXELS / 1e6:g} million pixels") from None
    except UnidentifiedImageError:
        raise BadPhoto("not an image in a supported format") from None
    except PermissionError:
        raise BadPhoto("no permission to read it") from None
    except Exception as error:  # decoders and EXIF readers may raise anything on hostile bytes
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadPhoto(f"{'truncated' if 'truncated' in detail else 'broken'} image ({detail})") from None


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadPhoto(f"too large: {width}x{height} pixels, the limit is {MAX_PIXELS / 1e6:g} million")
    if max(width, height) > MAX_SIDE:
        raise BadPhoto(f"too large: {width}x{height} pixels, the limit per side is {MAX_SIDE:,}")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey images to 8 bits; PIL's conversion would clip them to white."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.clip(values / 257, 0, 255).round().astype(np.uint8))
    return image
