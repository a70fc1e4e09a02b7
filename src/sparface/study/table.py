"""Tables of a study file, whose entries are checked as they are read.

Errors are one line that names the file and the dotted key.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sparface.errors import UserError
from sparface.forms import LARGEST
from sparface.text import printable

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,63}")
"""Names become parts of file names and job names, joined by dots."""
KEY = re.compile(r"recipe|size|[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
"""A setting of a config. Without a dot, `--KEY` could be another option, or a whole section."""
MOST = 1000
"""Maximum number of entries of a table or a list."""
LONGEST, LONGEST_KEY = 10_000, 200
"""Maximum number of characters of a text, and of a key."""
MERGED = ("texts", "arms", "evaluate")
"""Tables of an experiment of which another experiment, or a size, may change single entries."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def require_plain(value: Any, file: str, key: str = "") -> None:
    """Raise `UserError` unless a tree holds only texts, 64-bit integers, finite numbers, lists and tables."""
    where = ": ".join(filter(None, [file, key[-LONGEST_KEY:]]))
    if isinstance(value, dict):
        for name, one in value.items():
            if not isinstance(name, str) or len(name) > LONGEST_KEY or not name.isprintable():
                raise UserError(f"{where}: has a key that is no short text; put it into quotes")
            require_plain(one, file, f"{key}.{name}".strip("."))
    elif isinstance(value, list):
        for one in value:
            require_plain(one, file, key)
    elif isinstance(value, str):
        if len(value) > LONGEST or _CONTROL.search(value):
            raise UserError(f"{where}: has control characters, or more than {LONGEST:,} characters")
    elif not (value is None or (isinstance(value, int | float) and abs(value) < LARGEST)):
        raise UserError(f"{where}: must be a text or a finite number; put anything else into quotes")


class Table:
    """A table of the file, whose entries are checked as they are read."""

    def __init__(self, values: Mapping[str, Any], file: str, key: str = "") -> None:
        self.values, self.file, self.key = values, file, key
        if len(values) > MOST:
            raise UserError(f"{self.where()}: has more than {MOST} entries; split the study")

    def where(self, name: str = "") -> str:
        """File and dotted key, for an error."""
        return ": ".join(filter(None, [self.file, ".".join(filter(None, [self.key, name]))]))

    def allow(self, *names: str) -> None:
        """Raise `UserError` for a key that is not one of `names`."""
        for name in self.values:
            if name not in names:
                raise UserError(f"{self.where(name)}: is unknown; known keys: {', '.join(names)}")

    def entries(self) -> list[str]:
        """Return the keys, which must be names."""
        for name in self.values:
            if not NAME.fullmatch(name):
                shown = self.where(printable(name)[:LONGEST_KEY])
                raise UserError(f"{shown}: is no name; use letters, digits and _ + -")
        return list(self.values)

    def table(self, name: str, *, required: bool = False) -> Table:
        value = self.values.get(name)
        if value is None and not required:
            value = {}
        if not isinstance(value, dict):
            raise UserError(f"{self.where(name)}: must be a table of settings")
        return Table(value, self.file, ".".join(filter(None, [self.key, name])))

    def tables(self, name: str) -> list[Table]:
        found = self._list(name)
        return [Table({f"{name}[{i}]": one}, self.file, self.key).table(f"{name}[{i}]", required=True)
                for i, one in enumerate(found)]  # fmt: skip

    def text(self, name: str, default: str = "", *, required: bool = False) -> str:
        value = self.values.get(name, default)
        if not isinstance(value, str | int | float) or isinstance(value, bool) or (required and value == ""):
            raise UserError(f"{self.where(name)}: must be a text")
        return str(value).strip()

    def number(self, name: str) -> float:
        value = self.values.get(name, 0)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise UserError(f"{self.where(name)}: must be a number")
        return float(value)

    def count(self, name: str, default: int, most: int = 10**12) -> int:
        value = self.values.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise UserError(f"{self.where(name)}: must be a whole number from 0 to {most:,}")
        return value

    def counts(self, name: str) -> list[int]:
        """A whole number, or a list of them."""
        found = self._list(name)
        return [Table({name: one}, self.file, self.key).count(name, 0) for one in found]

    def texts(self, name: str) -> list[str]:
        """A text, or a list of them."""
        return [Table({name: one}, self.file, self.key).text(name) for one in self._list(name)]

    def names(self, name: str) -> list[str]:
        """A name, or a list of them."""
        found = self._list(name)
        return Table({str(one): "" for one in found}, self.file, f"{self.key}.{name}".strip(".")).entries()

    def command(self, name: str, verbs: Sequence[str]) -> tuple[str, ...]:
        """The words of a command, which must start with one of `verbs` if there are any."""
        try:
            words = shlex.split(self.text(name, required=True))
        except ValueError as error:
            raise UserError(f"{self.where(name)}: {error}") from None
        if verbs and words[:1] and words[0] not in verbs:
            raise UserError(f"{self.where(name)}: must start with one of {', '.join(verbs)}")
        if any("pipe:" in word for word in words):
            raise UserError(f"{self.where(name)}: a study file cannot name a command to run (pipe:)")
        return tuple(words)

    def settings(self, name: str = "") -> dict[str, Any]:
        """Config settings: dotted key → value. Nested tables are flattened."""
        flat: dict[str, Any] = {}
        for key, value in (self.table(name) if name else self).values.items():
            if isinstance(value, dict) and "." not in key:
                flat |= {f"{key}.{inner}": one for inner, one in value.items()}
            else:
                flat[key] = value
        for key, value in flat.items():
            text = str(value)
            if not KEY.fullmatch(key):
                raise UserError(f"{self.where(key)}: is not a config key")
            if key == "tracking.uri":
                raise UserError(
                    f"{self.where(key)}: a study file cannot name a server; set MLFLOW_TRACKING_URI"
                )
            if "pipe:" in text or (key == "recipe" and ":" in text):
                raise UserError(f"{self.where(key)}: a study file cannot name code or a command to run")
        return flat

    def at(self, size: str) -> Table:
        """Return the table with what `at` changes for a size."""
        changes = self.table("at").table(size)
        return Table(changes.values, self.file, self.key).over(self)

    def over(self, base: Table) -> Table:
        """Return the table with what it leaves out from `base`, and the tables of `MERGED` entry by entry."""
        values = dict(base.values) | dict(self.values)
        for name in MERGED:
            if name in base.values and name in self.values:
                merged = dict(base.table(name).values) | dict(self.table(name).values)
                values[name] = Table(merged, self.file, self.table(name).key).values  # not too many
        if "train" in self.values:
            values["train"] = base.settings("train") | self.settings("train")
        return Table(values, self.file, self.key)

    def filled(self, reserved: Collection[str]) -> Table:
        """Return the table with its `texts` in place of their names in all of its values.

        Raises `UserError` for a text with one of the names `reserved`, and if an entry gets too long.
        """
        texts = self.table("texts")
        named = {f"{{{name}}}": texts.text(name) for name in texts.entries()}
        if taken := sorted(set(texts.values) & set(reserved)):
            raise UserError(f"{texts.where(taken[0])}: is the name of something else; choose another")

        def fill(value: Any, key: str) -> Any:
            if isinstance(value, dict):
                return {name: fill(one, f"{key}.{name}") for name, one in value.items()}
            if isinstance(value, list):
                return [fill(one, key) for one in value]
            if isinstance(value, str):
                for name, text in named.items():
                    value = value.replace(name, text)
                    if len(value) > LONGEST:
                        raise UserError(f"{self.where(key)}: has more than {LONGEST:,} characters")
            return value

        others = {name: fill(one, name) for name, one in self.values.items() if name != "texts"}
        return Table(others | {"texts": dict(texts.values)}, self.file, self.key)

    def _list(self, name: str) -> list[Any]:
        value = self.values.get(name, [])
        found = value if isinstance(value, list) else [value]
        if len(found) > MOST:
            raise UserError(f"{self.where(name)}: has more than {MOST} entries; split the study")
        return found
