"""A hook of mkdocs: the tables of settings, made from the parser of `sparface train`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentParser

from sparface import settings

PLACE = "<!-- the tables of settings -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs calls this with every page before it is rendered."""
    return markdown.replace(PLACE, "\n".join(tables())) if PLACE in markdown else markdown


def tables() -> Iterator[str]:
    """A heading, what the block is for, and a row for each setting."""
    parser = ArgumentParser()
    settings.add_to(parser)
    for group in parser._action_groups:
        found = [action for action in group._group_actions if hasattr(action, "_typehint")]
        if not found:
            continue
        block = found[0].dest.rpartition(".")[0]
        yield f"\n### {f'`{block}`' if block else 'The whole'}\n\n{group.title}.\n"
        yield "| Setting | Default | Meaning |\n|---|---|---|"
        for setting in found:
            meaning = " ".join([*options(setting._typehint), " ".join((setting.help or "").split())])
            yield f"| `{setting.dest}` | {shown(setting.default)} | {escaped(meaning)} |"


def options(kind: object) -> Iterator[str]:
    """The values to choose from, if they are listed."""
    if get_origin(kind) is Literal:
        yield ", ".join(f"`{value}`" for value in get_args(kind)) + "."


def shown(default: object) -> str:
    """A default as YAML has it; empty for an empty text."""
    if default == "":
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def escaped(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", text)
