"""What the package asks for is what it uses."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    if sys.version_info < (3, 11):
        pytest.skip("reads pyproject.toml with tomllib, which comes with Python 3.11")
    import tomllib

    with (ROOT / "pyproject.toml").open("rb") as file:
        found: dict[str, Any] = tomllib.load(file)["project"]
    return found


def plain(requirement: str) -> str:
    """The name in a requirement, as PyPI compares names."""
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")


def imported() -> set[str]:
    """Distributions whose modules the package imports somewhere."""
    modules: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.split(".")[0])
    known = packages_distributions()
    return {plain(name) for module in modules for name in known.get(module, [])}


def test_every_runtime_dependency_is_imported_by_the_package(project: dict[str, Any]) -> None:
    unused = {plain(requirement) for requirement in project["dependencies"]} - imported()
    assert not unused, "move to the extra that needs it"


def test_every_extra_that_is_spoken_of_exists(project: dict[str, Any]) -> None:
    texts = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    texts += (ROOT / "benchmarks").glob("*.py")
    named = {name for path in texts for name in re.findall(r"sparface\[(\w+)\]", path.read_text())}
    assert named and named <= project["optional-dependencies"].keys()
