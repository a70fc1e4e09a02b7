"""Make untrusted text safe to store and print."""

from __future__ import annotations

import re
from typing import Any

_LOGIN = re.compile(r"://(?:[^\s/@:]*:\S*|[^\s/@]*)@")
"""`user@` or `user:password@`. A password may contain `@` and `/`, so it ends at the last `@`."""
_QUERY = re.compile(r"(://[^\s?]*\?)(?!…)[^\s'\"]+")
_PIPE = re.compile(r"pipe:(?!…).+", re.DOTALL)


def without_login(text: str) -> str:
    """Remove the credentials from all URLs in `text`.

    Removes `user:password@`, query strings (which may hold signatures and tokens) and the whole command
    of a `pipe:`. When in doubt, removes too much.
    """
    return _QUERY.sub(r"\1…", _LOGIN.sub("://", _PIPE.sub("pipe:…", text)))


def without_logins(tree: Any) -> Any:
    """Remove the credentials from all strings in a tree of settings, including keys."""
    if isinstance(tree, dict):
        return {without_logins(key): without_logins(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_logins(value) for value in tree]
    return without_login(tree) if isinstance(tree, str) else tree


def printable(text: str) -> str:
    """Put `text` on one line and replace control characters, which could drive a terminal."""
    return "".join(char if char.isprintable() else "�" for char in " ".join(text.split()))
