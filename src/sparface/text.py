"""Text that somebody else wrote, made fit to be stored and printed."""

from __future__ import annotations

import re
from typing import Any

_LOGIN = re.compile(r"://(?:[^\s/@:]*:\S*|[^\s/@]*)@")
"""`user@` or `user:password@`. A password may hold `@` and `/`, so it ends at the last `@`."""
_QUERY = re.compile(r"(://[^\s?]*\?)(?!…)[^\s'\"]+")
_PIPE = re.compile(r"pipe:(?!…).+", re.DOTALL)


def without_login(text: str) -> str:
    """`text` with the logins of all URLs in it removed.

    Removes `user:password@`, query strings (which hold signatures and tokens) and the whole command of
    a `pipe:`. When in doubt it removes too much.
    """
    return _QUERY.sub(r"\1…", _LOGIN.sub("://", _PIPE.sub("pipe:…", text)))


def without_logins(tree: Any) -> Any:
    """A tree of settings with the logins of all texts in it removed, keys included."""
    if isinstance(tree, dict):
        return {without_logins(key): without_logins(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_logins(value) for value in tree]
    return without_login(tree) if isinstance(tree, str) else tree


def printable(text: str) -> str:
    """`text` on one line without control characters, so that it cannot drive a terminal."""
    return "".join(char if char.isprintable() else "�" for char in " ".join(text.split()))
