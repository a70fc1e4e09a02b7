"""Parts of a study: variables are filled, dependencies found, circles refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from study_files import small_study, write_study

from sparface import cli
from sparface.config import Config, flatten
from sparface.errors import UserError
from sparface.recipes import registry
from sparface.study import file as study_file
from sparface.study.plan import Plan

ROOT = Path(__file__).parents[2]
SETTINGS = flatten(Config(blocks={name: block() for name, block in registry.blocks().items()})).keys()
DATA = {"faces": "/data/faces", "others": "/data/with space"}


def plan_of(tree: dict[str, Any], folder: Path) -> Plan:
    return Plan(study_file.read(write_study(folder / "few.yaml", tree)), folder / "out", DATA)


def test_what_an_arm_uses_is_prepared_before(tmp_path: Path) -> None:
    """Drawn people once for all, a made set for each seed, from the longest run of another arm."""
    tree = small_study()
    tree["prepare"] = {
        "drawn": "draw {out} --people 4 --photos 2",
        "made": "generate --checkpoint {run:varied} --shards {faces} --out {out}",
    }
    arms = tree["experiments"]["S"]["arms"]
    arms["plain"]["training.start_from"] = "{drawn}"
    arms["varied"]["images"] = [16, 32]
    arms["mixed"] = {"data.mix": {"{made}": 2, "{drawn}": 1}}
    parts = plan_of(tree, tmp_path).parts
    assert [name for name in parts if name.startswith("prepare.")] == [
        "prepare.drawn", "prepare.made.S.s0", "prepare.made.S.s1",
    ]  # fmt: skip
    made = parts["prepare.made.S.s1"]
    assert made.needs == ("train.S.varied.32.s1",)
    assert made.words[:3] == ("generate", "--checkpoint", str(tmp_path / "out/runs/S.varied.32.s1"))
    mixed = parts["train.S.mixed.16.s1"]
    assert set(mixed.needs) == {"prepare.made.S.s1", "prepare.drawn"}
    folder = tmp_path / "out/prepared"
    assert f'--data.mix={{"{folder}/made.S.s1": 2, "{folder}/drawn": 1}}' in mixed.words
    assert parts["train.S.plain.16.s0"].needs == ("prepare.drawn",)


def test_every_part_comes_after_those_that_it_needs(tmp_path: Path) -> None:
    tree = small_study(sets={"few": "{few}", "more": "{faces}"})
    tree["prepare"] = {"few": "shards subset {faces} {out} --people 2 --photos 2 --seed {seed}"}
    arms = tree["experiments"]["S"]["arms"]
    arms["plain"] |= {"training.start_from": "{run:varied}", "sets": ["more", "few"]}
    parts = list(plan_of(tree, tmp_path).parts.values())
    names = [part.name for part in parts]
    assert all(names.index(need) < names.index(part.name) for part in parts for need in part.needs)
    by_name = {part.name: part for part in parts}
    assert by_name["train.S.plain.few.16.s1"].needs == ("train.S.varied.few.16.s1", "prepare.few.s1")
    assert by_name["train.S.plain.more.16.s1"].needs == ("train.S.varied.few.16.s1",)
    assert f"--data.shards={tmp_path}/out/prepared/few.s1" in by_name["train.S.varied.few.16.s1"].words


def test_a_finished_recognizer_is_only_evaluated(tmp_path: Path) -> None:
    tree = small_study()
    tree["experiments"]["S"]["arms"]["given"] = {"checkpoint": "{faces}/network.onnx"}
    part = plan_of(tree, tmp_path).parts["evaluate.S.given.others"]
    assert not part.needs and "/data/faces/network.onnx" in part.words
    assert part.words[:4] == ("evaluate", "verification", "--shards", "/data/with space")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        ({"a": "draw {out} {b}", "b": "draw {out} {a}"}, "prepare.a needs prepare.b needs prepare.a"),
        ({"a": "generate --checkpoint {run:plain} --out {out}"}, "needs .*; remove the circle"),
        (
            {"a": "draw {out} {a1}"} | {f"a{i}": f"draw {{a{i + 1}}}" for i in range(1, 99)},
            "more than 50 parts",
        ),
        ({"a": "draw {out} {nowhere}"}, r"prepare.a: \{nowhere\} is unknown; known: faces, others, a"),
        ({"a": "generate --checkpoint {run:best}"}, r"prepare.a: \{run:best\} is no arm that is trained"),
    ],
)
def test_circles_and_unknown_names_are_refused(prepare: dict[str, str], message: str, tmp_path: Path) -> None:
    tree = small_study()
    tree["prepare"] = prepare
    tree["experiments"]["S"]["arms"]["plain"]["training.start_from"] = "{a}"
    with pytest.raises(UserError, match=message):
        plan_of(tree, tmp_path)


def test_made_faces_of_each_run_can_be_measured_by_a_judge(tmp_path: Path) -> None:
    tree = small_study()
    tree["prepare"] = {"made": "generate --checkpoint {run} --shards {faces} --out {out}"}
    judged = "quality --checkpoint {run:plain} --shards {made} --sources {faces}"
    tree["experiments"]["S"]["evaluate"]["faces"] = {"run": judged, "arms": ["varied"]}
    parts = plan_of(tree, tmp_path).parts
    part = parts["evaluate.S.varied.16.s1.faces"]
    assert part.needs == ("train.S.plain.16.s1", "prepare.made.S.varied.16.s1")
    assert parts["prepare.made.S.varied.16.s1"].needs == ("train.S.varied.16.s1",)
    assert part.words.count("--checkpoint") == 1 and "evaluate.S.plain.16.s1.faces" not in parts


def our_own() -> Iterator[Any]:
    for path in [*sorted((ROOT / "launch").glob("*.yaml")), study_file.find(Path("demo"))]:
        tree = yaml.safe_load(path.read_text())
        for size in tree.get("sizes", [""]) if "experiments" in tree else ():
            yield pytest.param(path, size, id=f"{path.stem}-{size}")


@pytest.mark.parametrize(("file", "size"), our_own())
def test_our_own_studies_can_be_planned(file: Path, size: str) -> None:
    study = study_file.read(file, size)
    plan = Plan(study, Path("out"), {key: f"/data/{key}" for key in study.data})
    for experiment in study.experiments.values():
        assert experiment.evaluations
    for part in plan.parts.values():
        assert part.words[0] in cli.VERBS
        if part.words[0] == "train":
            named = {word[2:].split("=")[0] for word in part.words if word.startswith("--")}
            assert named <= SETTINGS | {"config", "out"}, part.name


def test_a_plan_is_bounded(tmp_path: Path) -> None:
    """Names that each occur twice in the one before would be looked at 2^40 times; and a set names itself."""
    tree = small_study()
    tree["prepare"] = {f"a{i}": f"draw {{a{i + 1}}} {{a{i + 1}}}" for i in range(40)} | {"a40": "draw {seed}"}
    tree["experiments"]["S"]["arms"]["plain"]["training.start_from"] = "{a0}"
    assert "prepare.a0.s1" in plan_of(tree, tmp_path).parts
    with pytest.raises(UserError, match="more than 20,000 parts"):
        plan_of(small_study(seeds=1000, images=list(range(8, 108))), tmp_path)
    with pytest.raises(UserError, match="set x needs set x"):
        plan_of(small_study(sets={"x": "{set}"}), tmp_path)
