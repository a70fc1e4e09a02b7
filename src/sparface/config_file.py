"""Read and check a configuration file before it is parsed into settings.

A file may be untrusted: it must be small, plain YAML that does not name other files to read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sparface.errors import UserError
from sparface.files import read_bounded
from sparface.text import printable

MAX_BYTES = 1 << 20
MOST_BRACKETS = 1000


class _Loader(yaml.SafeLoader):
    """A loader that refuses a key that is given twice, of which the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    problem = f"the key {key.value[:40]!r} is given twice"
                    raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        return dict(super().construct_mapping(node, deep))


def check(path: Path, sections: set[str]) -> None:
    """Raise `UserError` if a file is not a YAML mapping with string keys.

    The `sections` must also be mappings: the parser would take a string in their place as the path of
    another file.
    """
    tree = read(path)
    if "config" in tree:
        raise UserError(f"{path}: config: a configuration file cannot include another one")
    for name in sections & tree.keys():
        if not isinstance(tree[name], dict):
            raise UserError(f"{path}: {name}: must be a table of settings, not {_shown(tree[name])}")


def read(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file of at most 1 MiB.

    Raises `UserError` naming the file and, for a syntax error, the line.
    """
    try:
        text = read_bounded(path, MAX_BYTES).decode()
        if text.count("[") + text.count("{") > MOST_BRACKETS:  # nesting takes time quadratic in its depth
            raise UserError(f"{path}: has more than {MOST_BRACKETS} brackets; give a configuration file")
        # a few nested aliases can expand to gigabytes
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, yaml.SafeLoader)):
            raise UserError(f"{path}: YAML aliases (*name) are not allowed; write the values out")
        tree = yaml.load(text, _Loader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a text file; give a YAML file") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: is not valid YAML ({printable(str(error.problem))})") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"{path}: is not valid YAML") from None
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UserError(f"{path}: contains no settings; give a YAML file with lines like `size: 112`")
    return tree


def _shown(value: Any) -> str:
    return printable(repr(value))[:40]
