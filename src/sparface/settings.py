"""Parse YAML files and command lines into a `Config`, and write one as YAML."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from docstring_parser import parse_from_object
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from sparface import config_file
from sparface.config import SHARED, Config, configs_folder, flatten, sections, tree, validate
from sparface.errors import UserError
from sparface.files import write_whole
from sparface.recipes import registry
from sparface.text import without_logins

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file, apply overrides (`["--data.workers", "0"]`) and validate the result.

    Raises `UserError` naming the key and the invalid value, or the nearest known key.
    """
    parser = ArgumentParser(exit_on_error=False)
    add_to(parser)
    file = find(str(path))
    try:
        return from_namespace(parser.parse_args(["--config", str(file), *overrides]))
    except ArgumentError as error:
        raise UserError(f"{file}: {explain(str(error))}") from error


def save(config: Config, path: Path) -> None:
    """Write the whole configuration as YAML, atomically, without credentials and commands (`pipe:`)."""
    write_whole(path, yaml.safe_dump(tree(config), sort_keys=False, allow_unicode=True).encode())


def describe(config: Config) -> str:
    """The whole configuration as YAML, with each setting's description as a comment."""
    lines: list[str] = []
    for name, value in sections(config):
        if not dataclasses.is_dataclass(value):
            lines += [*_comment(_meaning(Config, name)), *_yaml({name: value})]
            continue
        lines += ["", *_comment(inspect.getdoc(type(value)) or ""), f"{name}:"]
        for f in dataclasses.fields(value):
            setting = [*_comment(_meaning(type(value), f.name)), *_yaml({f.name: getattr(value, f.name)})]
            lines += ["  " + line for line in setting]
    return "\n".join(lines)


def _meaning(settings: type, name: str) -> str:
    """The docstring of a field."""
    meanings = {meta.arg_name: meta.description for meta in parse_from_object(settings).params}
    return inspect.cleandoc(meanings.get(name) or "")


def _comment(text: str) -> list[str]:
    return [f"# {line}".rstrip() for line in text.splitlines()]


def _yaml(setting: dict[str, Any]) -> list[str]:
    text = yaml.safe_dump(without_logins(setting), sort_keys=False, allow_unicode=True)
    return list(text.rstrip().splitlines())


def find(name: str) -> Path:
    """The file of a config, given its path or the name of a packaged config.

    Raises `UserError` naming the nearest known config, or what is wrong in the file.
    """
    if (path := Path(name)).is_file():
        config_file.check(path, {*SHARED, *registry.blocks()} - {"recipe", "size"})
        return path
    if (packaged := configs_folder() / f"{Path(name).stem}.yaml").is_file() and path.parent == Path("."):
        return packaged
    known = sorted(p.stem for p in configs_folder().glob("*.yaml"))
    hint = _nearest(name, known) + "; known: " + ", ".join(known)
    raise UserError(f"--config: {name} is neither a file nor a packaged config{hint}")


def add_to(parser: ArgumentParser) -> None:
    """Add `--config` and one dotted option per setting to a parser, including those of all known recipes."""
    parser.add_argument("--config", action="config", help="a YAML file, or the name of a packaged config")
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser.add_class_arguments(Config, skip={"blocks"})
    for name, block in registry.blocks().items():
        parser.add_class_arguments(block, name)


def add_fields(parser: ArgumentParser, settings: type) -> None:
    """Add one option per field of a dataclass to a parser, with the fields' docstrings as help."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser.add_class_arguments(settings)


def from_namespace(namespace: Namespace) -> Config:
    """Build and validate the configuration from a parser's result (see `add_to`)."""
    recipe = registry.find(namespace["recipe"])
    config = filled(Config(), namespace)
    config.blocks = {name: filled(kind(), namespace[name]) for name, kind in registry.blocks().items()}
    validate(config)  # all blocks, including those that this recipe does not use
    config.blocks = {name: config.blocks[name] for name in recipe.blocks}
    recipe.check(config)
    return config


def filled(settings: Settings, namespace: Namespace) -> Settings:
    """Return a copy of a dataclass with the values in a parser's result (see `add_fields`)."""
    given = {f.name: namespace[f.name] for f in dataclasses.fields(settings) if f.name in namespace}
    return dataclasses.replace(
        settings,
        **{
            name: filled(getattr(settings, name), value) if isinstance(value, Namespace) else value
            for name, value in given.items()
        },
    )


def require_typed_sources(settings: Namespace, arguments: Sequence[str]) -> None:
    """Raise `UserError` if a shard set is read from a URL, or by a command (`pipe:`), that was not typed.

    Configuration files, including a run's config.yaml, may be untrusted.
    """
    for key in ("data.shards", "data.mix", "validation.shards"):
        value = settings.get(key) or ()
        for shards in [value] if isinstance(value, str) else value:
            command = shards.startswith("pipe:")
            if (command or "://" in shards) and not any(shards in word for word in arguments):
                what, example = ("a command to run", "'pipe:…'") if command else ("an address", "URL")
                raise UserError(
                    f"{key}: a configuration file cannot name {what}; give it on the command line: "
                    f"--{key} {example}"
                )


def explain(message: str) -> str:
    """Turn a parser's error into one line, with the nearest known key for an unknown key."""
    line = re.sub(r"\s+", " ", message)
    if found := re.search(r"[Gg]roup '([\w.]+)' does not accept option '([\w.]+)'", line):
        unknown = f"{found[1]}.{found[2]}"
    elif found := re.search(
        r"unrecognized arguments: --([\w.]+)|[Oo]ption '([\w.]+)'(?: is not accepted|$)", line
    ):
        unknown = found[1] or found[2]
    else:
        line = re.sub(
            r'Parser key "([\w.]+)": Expected an? (.*?)\. Got value: (.*)',
            r"\1: \3 is not allowed; expected \2",
            line,
        )
        return re.sub(r"typing\.|<class '(\w+)'>", r"\1", line)
    every = Config(blocks={name: kind() for name, kind in registry.blocks().items()})
    return f"unknown config key {unknown}{_nearest(unknown, list(flatten(every)))}"


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f" (did you mean {close[0]}?)" if close else ""
