"""Arrows between modules run one way, and every file and function is short enough to be read at once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sparface"
GROUND = {
    *("errors", "files", "text", "forms", "randomness", "machine"),
    *("progress", "sharded", "config_file", "config", "groups"),
}
LAYERS = (
    GROUND,
    {"shards", "faces", "kernels"},
    {"models", "objectives", "variation"},
    {"sparring"},
    {"attacks", "recipes"},
    {"settings"},
    {"runs"},
    {"evaluation"},
    {"training"},
    {"generate", "report", "study", "export", "doctor", "gallery"},
    {"api", "commands", "evaluate_commands", "shards_commands", "cli", "__main__"},
)
"""Rooms: a file or a folder of the package. Each imports those of its own layer and of the layers before."""
ASIDE = "cluster"
"""It starts the command line and reads folders: it imports the ground only (and needs no settings), and only
commands import it."""
MOST_LINES, MOST_FUNCTION_LINES = 350, 50

Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """Every module of the package but its root, which says its version only."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    del found[""]
    return found


def imported(path: Path) -> Iterator[str]:
    """What a file imports of the package, wherever in it: also in functions, and for types only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: import it by its full name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("sparface.") for name in names if name.startswith("sparface."))


@pytest.fixture(scope="module")
def graph() -> Graph:
    """Module → modules that it imports. (`from room import name` may name a module, or what is in one.)"""
    known = modules()
    return {
        module: {name if name in known else name.rpartition(".")[0] for name in imported(path)} & known.keys()
        for module, path in known.items()
    }


@pytest.fixture(scope="module")
def rooms(graph: Graph) -> Graph:
    """Room → other rooms that it imports."""
    found: Graph = {}
    for module, others in graph.items():
        found.setdefault(room(module), set()).update(map(room, others))
    return {name: others - {name} for name, others in found.items()}


def room(module: str) -> str:
    return module.partition(".")[0]


def circle(graph: Graph) -> str:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " ← ".join(error.args[1])
    return ""


def test_the_imports_are_found(graph: Graph) -> None:
    assert "cluster" in graph["commands"], "imports in functions"
    assert "kernels.whiten_triton" in graph["kernels.whiten"]
    assert "shards.format" in graph["shards.manifest"] and "shards.manifest" in graph["shards"]


def test_no_modules_import_each_other(graph: Graph) -> None:
    assert not circle(graph)


def test_no_rooms_import_each_other(rooms: Graph) -> None:
    assert not circle(rooms)


def test_every_arrow_points_down(rooms: Graph) -> None:
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}
    assert rooms.keys() <= layer.keys() | {ASIDE}, "give the new room a layer"
    up = [
        f"{name} imports {other}"
        for name, others in rooms.items()
        for other in others - {ASIDE}
        if name != ASIDE and layer[other] > layer[name]
    ]
    assert not up


def test_the_cluster_stands_aside(rooms: Graph) -> None:
    assert rooms[ASIDE] <= GROUND - {"config", "groups"}
    assert {name for name, others in rooms.items() if ASIDE in others} <= {"commands", "cli", "study"}


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "launch"])
def test_files_are_short(folder: str) -> None:
    lines = {path: len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert not {path.relative_to(ROOT).as_posix(): n for path, n in lines.items() if n > MOST_LINES}


@pytest.mark.parametrize("folder", ["src", "benchmarks", "launch"])
def test_functions_are_short(folder: str) -> None:
    long = {}
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MOST_FUNCTION_LINES:
                    long[f"{path.relative_to(ROOT)}: {node.name}"] = lines
    assert not long
