"""Text that somebody else wrote, made fit to be stored and printed."""

from __future__ import annotations

import re

_LOGIN = re.compile(r"://(?:[^\s/@:]*:\S*|[^\s/@]*)@")
"""`user@` or `user:password@`. A password may hold `@` and `/`, so it ends at the last `@`."""
_QUERY = re.compile(r"(://[^\s?]*\?)[^\s'\"]+")
_PIPE = re.compile(r"pipe:.+", re.DOTALL)


def without_login(text: str) -> str:
    """`text` with the logins of all URLs in it removed.

    Removes `user:password@`, query strings (which hold signatures and tokens) and the whole command of
    a `pipe:`. When in doubt it removes too much.
    """
    return _QUERY.sub(r"\1…", _LOGIN.sub("://", _PIPE.sub("pipe:…", text)))


def printable(text: str) -> str:
    """`text` on one line without control characters, so that it cannot drive a terminal."""
    return "".join(char if char.isprintable() else "�" for char in " ".join(text.split()))
