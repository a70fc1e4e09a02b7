"""Shard sets from afar: shards come whole, are checked, and stay in a bounded folder on the local disk.

webdataset's openers read what they know by its scheme (`http`, `https`, `gs`, `hf`, `ais`, `sftp`, ...), any
other program reads by `pipe:` ("pipe:aws s3 cp s3://bucket/faces/{} -", with {} for the file's name), and
fsspec the rest (`s3` with s3fs installed).
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
from sparface.files import open_lock, remove_leftovers, wait_for_lock, write_whole, writing_aside
from sparface.shards.manifest import MANIFEST, MAX_MANIFEST, ShardInfo
from sparface.text import printable, without_login

SHARE = 32
"""Processes that may fill one machine's cache at once: each looks at the cache again once it has taken this
part of the room that it saw. What is deleted at once makes room for a tenth of the cache."""
CHECK = "check the URL and its login, which no run's config.yaml holds"
_URL = re.compile(r"(pipe:|[a-z][a-z0-9+]*://).+")
_PART = 1 << 20


def is_url(text: str) -> bool:
    """Whether a shard set is named by a URL rather than a folder."""
    return _URL.fullmatch(text) is not None


def cache_folder() -> Path:
    """Where shards are kept: `$SPARFACE_CACHE`, by default `sparface/shards` in the user's cache folder."""
    if chosen := os.environ.get("SPARFACE_CACHE"):
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "sparface" / "shards"


def cache_bytes() -> int:
    """Bytes of shards that stay on the local disk: `$SPARFACE_CACHE_GB` × 10⁹, by default 200 × 10⁹."""
    text = os.environ.get("SPARFACE_CACHE_GB", "200")
    try:
        found = float(text) * 1e9
        if 0 <= found < 2**63:
            return int(found)
    except ValueError:
        pass
    raise UserError(f"SPARFACE_CACHE_GB={text}: must be a number of gigabytes, such as 200")


class Remote:
    """A shard set at a URL, and its part of the cache."""

    def __init__(self, url: str) -> None:
        """Reads the manifest into the cache. Raises `UserError` when it can't be had."""
        self.url, self._cache, self._limit = url, cache_folder(), cache_bytes()
        self._room = 0
        data = b"".join(self._read(MANIFEST, MAX_MANIFEST))
        self.digest = hashlib.sha256(data).hexdigest()
        # By the content's name: a set that changes at its URL is another set, and none is ever mixed with it.
        self.folder = self._cache / self.digest
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        write_whole(self.folder / MANIFEST, data)

    def fetch(self, shard: ShardInfo) -> None:
        """See that a shard is in the folder. Raises `UserError` unless it is the one of the manifest."""
        path = self.folder / shard.file
        with self._locked(path):  # of a machine's processes, one fetches
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
                    raise UserError(f"{shown}: its size or sha256 is not the manifest's; upload it again")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); make room in the cache") from None

    def _read(self, file: str, limit: int) -> Iterator[bytes]:
        """A file's bytes in parts, `limit` of them at most. Raises `UserError`."""
        url, size = self._at(file), 0
        shown = without_login(url)
        try:
            with _open(url) as stream:
                while size <= limit and (part := stream.read(_PART)):
                    size += len(part)
                    yield part
        except (OSError, ValueError, ImportError) as error:
            if size <= limit:  # else it is the reader that minds being left
                reason = printable(without_login(str(error)))[:200]
                raise UserError(f"{shown}: cannot be read ({reason}); {CHECK}") from None
        if not 0 < size <= limit:
            what = "nothing came" if not size else f"more than {limit} bytes came"
            raise UserError(f"{shown}: cannot be read ({what}); {CHECK}")

    def _at(self, file: str) -> str:
        return self.url.replace("{}", file) if "{}" in self.url else f"{self.url.rstrip('/')}/{file}"

    def _make_room(self, wanted: int) -> None:
        """Delete the shards that were not asked for the longest, of all sets; open ones stay readable.

        Looks at the cache only when this process may have filled its share of the room that was there.
        """
        if wanted > self._room:
            self._room = (self._limit - self._shrink(wanted)) // SHARE
        self._room -= wanted

    def _shrink(self, wanted: int) -> int:
        """Make room for so many bytes, if there is too little; the bytes that are kept."""
        kept = []
        for path in self._cache.glob("*/*.tar"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room, too
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

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        with open_lock(path.with_suffix(".lock")) as lock:
            wait_for_lock(lock)
            yield


def _open(url: str) -> Any:
    if "::" in url or url.startswith("reference:"):  # files that name further files, and templates to run
        raise ValueError("URLs inside of URLs are not read")
    return gopen(url) if url.partition(":")[0] in {"file", *gopen_schemes} else fsspec.open(url, "rb")
