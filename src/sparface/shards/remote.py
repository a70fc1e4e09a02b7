"""Remote shard sets: whole shards are downloaded, checked and kept in a local cache of limited size.

The URL's scheme selects the reader: webdataset's openers (`http`, `https`, `gs`, `hf`, `ais`, `sftp`, …), any
program with `pipe:` ("pipe:aws s3 cp s3://bucket/faces/{} -", where {} is the file name), and fsspec for
the rest (`s3` requires s3fs).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from webdataset.gopen import gopen, gopen_schemes

from sparface.errors import UserError
from sparface.files import locked, remove_leftovers, write_whole, writing_aside
from sparface.shards.manifest import MANIFEST, MAX_MANIFEST, ShardInfo
from sparface.text import printable, without_login

SHARE = 32
"""Maximum number of processes that fill a machine's cache at once: each process scans the cache again once it
has used 1/SHARE of the room that it found. Each deletion frees a tenth of the cache."""
CHECK = "check the URL and its login (a run's config.yaml does not store logins)"
_URL = re.compile(r"(pipe:|[a-z][a-z0-9+]*://).+")
_PART = 1 << 20


def is_url(text: str) -> bool:
    """Whether a string is the URL of a shard set rather than a folder."""
    return _URL.fullmatch(text) is not None


def cache_folder() -> Path:
    """The cache folder: `$SPARFACE_CACHE`, by default `sparface/shards` in the user's cache folder."""
    if chosen := os.environ.get("SPARFACE_CACHE"):
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "sparface" / "shards"


def cache_bytes() -> int:
    """The maximum size of the cache in bytes: `$SPARFACE_CACHE_GB` × 10⁹, by default 200 × 10⁹."""
    text = os.environ.get("SPARFACE_CACHE_GB", "200")
    try:
        found = float(text) * 1e9
        if 0 <= found < 2**63:
            return int(found)
    except ValueError:
        pass
    raise UserError(f"SPARFACE_CACHE_GB: {text} is not allowed; give a number of gigabytes, such as 200")


class Remote:
    """A shard set at a URL, and its folder in the cache."""

    def __init__(self, url: str) -> None:
        """Download the manifest into the cache. Raises `UserError` if that fails."""
        self.url, self._cache, self._limit = url, cache_folder(), cache_bytes()
        self._room = 0
        data = b"".join(self._read(MANIFEST, MAX_MANIFEST))
        self.digest = hashlib.sha256(data).hexdigest()
        # Named after the content: if the set at a URL changes, it gets a new folder.
        self.folder = self._cache / self.digest
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        write_whole(self.folder / MANIFEST, data)

    def fetch(self, shard: ShardInfo) -> None:
        """Download a shard unless it is cached. Raises `UserError` if it does not match the manifest."""
        path = self.folder / shard.file
        with locked(path.with_suffix(".lock")):  # one process per machine downloads
            if path.is_file() and path.stat().st_size == shard.bytes:
                os.utime(path)
                return
            self._make_room(shard.bytes)
            self._download(shard, path)

    def _download(self, shard: ShardInfo, path: Path) -> None:
        digest, size = hashlib.sha256(), 0
        try:
            with writing_aside(path) as file:
                for part in self._read(shard.file, shard.bytes):
                    file.write(part)
                    digest.update(part)
                    size += len(part)
                if (size, digest.hexdigest()) != (shard.bytes, shard.sha256):
                    shown = without_login(self._at(shard.file))
                    raise UserError(f"{shown}: size or sha256 differs from the manifest; upload it again")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); make room in the cache") from None

    def _read(self, file: str, limit: int) -> Iterator[bytes]:
        """Yield the content of a file in parts. Raises `UserError` if it is empty, exceeds `limit` bytes or
        cannot be read."""
        url, size = self._at(file), 0
        shown = without_login(url)
        try:
            with _open(url) as stream:
                while size <= limit and (part := stream.read(_PART)):
                    size += len(part)
                    yield part
        except Exception as error:  # each back end (FTP, HTTP, S3, …) has exceptions of its own
            if size <= limit:  # otherwise the opener complains that we stopped reading
                reason = printable(without_login(str(error) or type(error).__name__))[:200]
                raise UserError(f"{shown}: cannot be read ({reason}); {CHECK}") from None
        if not 0 < size <= limit:
            what = "no data received" if not size else f"more than {limit} bytes received"
            raise UserError(f"{shown}: cannot be read ({what}); {CHECK}")

    def _at(self, file: str) -> str:
        return self.url.replace("{}", file) if "{}" in self.url else f"{self.url.rstrip('/')}/{file}"

    def _make_room(self, wanted: int) -> None:
        """Delete the least recently used shards of all sets; open shards stay readable.

        The cache is scanned only when this process may have used up its share of the free room.
        """
        if wanted > self._room:
            self._room = (self._limit - self._shrink(wanted)) // SHARE
        self._room -= wanted

    def _shrink(self, wanted: int) -> int:
        """Make room for `wanted` bytes if necessary, and return the number of bytes that remain cached."""
        kept = []
        for path in self._cache.glob("*/*.tar"):
            with contextlib.suppress(FileNotFoundError):  # another process may delete shards too
                status = path.stat()
                kept.append((status.st_mtime, status.st_size, path))
        size = sum(size for _, size, _ in kept)
        if size + wanted > self._limit:
            goal = self._limit - self._limit // 10 - wanted
            for _, each, path in sorted(kept):
                if size <= goal:
                    break
                size -= each
                path.unlink(missing_ok=True)
        return size


def _open(url: str) -> Any:
    if "::" in url or url.startswith("reference:"):  # these can name other files and run templates
        raise ValueError("chained URLs are not supported")
    return gopen(url) if url.partition(":")[0] in {"file", *gopen_schemes} else fsspec.open(url, "rb")
