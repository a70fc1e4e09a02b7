"""What the documentation names exists: verbs with their options, settings, files, linked pages."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparface import cli
from sparface.config import Config, flatten
from sparface.errors import UserError
from sparface.generate.settings import GenerateConfig
from sparface.recipes import registry

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "slurm").glob("*.md")])
CONFIG = Config(blocks={name: block() for name, block in registry.blocks().items()})
SETTINGS = {*flatten(CONFIG), *(f"filter.{name}" for name in vars(GenerateConfig().filter))}
SECTIONS = {key.split(".")[0] for key in SETTINGS if "." in key}
OURS = re.compile(r"(benchmarks|configs|docs|launch|slurm|tests)/[\w./-]+|\w+/[\w/]+\.py")
FILE_ENDINGS = {"json", "jsonl", "onnx", "py", "safetensors", "yaml"}
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands() -> Iterator[tuple[str, str]]:
    """Every complete `sparface …` command of a shell block, and the page it stands on."""
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                command = re.search(r"(?:^|-m |sudo )sparface (.+)", line)
                if command and "…" not in line:
                    yield command[1], page.name


def code(text: str) -> list[str]:
    """What stands between backticks, and the lines of code blocks."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.S)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    return [*inline, *"\n".join(blocks).split("\n")]


@pytest.mark.parametrize(("command", "page"), sorted(set(commands())))
def test_commands_are_understood(command: str, page: str) -> None:
    words = shlex.split(command, comments=True)
    words = words[: words.index(";")] if ";" in words else words
    if words[0] == "submit":
        words = list(cli.parse(words)[1]["command"])
    if words[0] == "train":  # its parser takes a third of a second to build
        named = {word[2:].split("=")[0] for word in words if word.startswith("--")}
        assert named <= SETTINGS | {"config", "out"}
        return
    try:
        cli.parse(words)
    except UserError as error:
        pytest.fail(f"{page}: sparface {command}: {error}")


@pages
def test_verbs_exist(page: Path) -> None:
    named = {found for text in code(page.read_text()) for found in re.findall(r"\bsparface ([a-z]+)\b", text)}
    assert named <= cli.VERBS.keys()


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=lambda page: page.name
)  # it names old ones
def test_settings_exist(page: Path) -> None:
    pattern = re.compile(rf"(?<![\w./])(?:--)?((?:{'|'.join(sorted(SECTIONS))})\.\w+)\b(?![(/])")
    named = {found for text in code(page.read_text()) for found in pattern.findall(text)}
    assert {name for name in named if name.split(".")[1] not in FILE_ENDINGS} <= SETTINGS


@pages
def test_files_exist(page: Path) -> None:
    named = {text for text in re.findall(r"`([^`\s]+)`", page.read_text()) if OURS.fullmatch(text)}
    folders = [ROOT, ROOT / "src" / "sparface", ROOT / "benchmarks"]
    missing = {n for n in named if "NAME" not in n and not any((folder / n).exists() for folder in folders)}
    assert not missing


@pages
def test_links_lead_somewhere(page: Path) -> None:
    """Their anchors are checked by `make docs`."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    links = {link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link}
    assert not {link for link in links if not (page.parent / link).exists()}


BENCHMARKS = sorted(
    {
        found
        for page in PAGES
        for found in re.findall(r"python (benchmarks/\w+\.py)([^`\n#]*)", page.read_text())
    }
)


@pytest.mark.parametrize(("script", "words"), BENCHMARKS)
def test_benchmarks_take_the_arguments_that_are_shown(script: str, words: str) -> None:
    """By their text: starting one takes seconds."""
    code, (first, *_) = (ROOT / script).read_text(), [*words.split(), ""]
    if 'add_argument("compared"' in code:
        assert f'"{first}"' in code
    for option in re.findall(r"--[\w-]+", words):
        assert f'"{option}"' in code
