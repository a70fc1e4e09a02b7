"""Hostile purifiers, GANs that make faces from noise, and exported recognizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from breaking import Breaking, Rows, at, kinds, truncated, writing
from command_inputs import merged
from run_inputs import tensors
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from purifier_runs import write_purifier

FILE, RECOGNIZER = "purifier.safetensors", "recognizer.safetensors"
BACKBONE = "timm:test_resnet"
CLEAN = ["purify", "--checkpoint", "purifier", "faces", "out"]
JUDGE = ["evaluate", "verification", "--checkpoint", "run", "--shards", "faces", "--purify"]
EMBED = ["evaluate", "verification", "--checkpoint", RECOGNIZER, "--shards", "faces"]
MAKE = ["generate", "--checkpoint", "gan", "--shards", "faces", "--out", "out", "--factor", "1"]


def write_sound(work: Path) -> None:
    """The run of a purifier, its export, and the run of a GAN from noise."""
    from sparface import settings
    from sparface.evaluation.purifiers import open_cleaner
    from sparface.recipes import build_recipe
    from sparface.runs.checkpoint import CheckpointStore
    from sparface.shards import ShardSet

    write_purifier(work / "purifier", work / "faces")
    network = open_cleaner(str(work / "purifier"), torch.device("cpu")).network.purifier
    assert isinstance(network, torch.nn.Module)
    about = {"model": json.dumps({"purifier": [20, True]}), "size": "32"}
    save_file(network.state_dict(), work / FILE, about)
    weights = load_file(work / "weights.safetensors")
    save_file(weights, work / RECOGNIZER, {"model": json.dumps({"recognizer": [BACKBONE, 32]}), "size": "32"})
    more = ["--recipe=noise_gan", "--noise_gan.width=4", "--noise_gan.latent=8", "--noise_gan.embedding=4"]
    config = settings.load(work / "given.yaml", more)
    recipe = build_recipe(config, 12)
    (work / "gan").mkdir()
    settings.save(config, work / "gan/config.yaml")
    store = CheckpointStore(work / "gan/checkpoints")
    states = {name: network.state_dict() for name, network in recipe.networks.items()}
    facts = {"template": "box", "classes": ShardSet.open(work / "faces").classes("identity")}
    identity = json.dumps({**recipe.identity(config), "identities": 12})
    store.save(100, {"networks": states}, facts, identity=identity)
    store.finish()


def purifiers(address: str) -> Rows:
    lines = {
        "has more eigenfaces": "purifier: {recognizer: gone, components: 21}",
        "has more eigenfaces than pixels": "purifier: {recognizer: gone, components: 20000}",
        "is grey": "purifier: {recognizer: gone, components: 20, colour: false}",
        "has no eigenfaces": "purifier: {recognizer: gone, components: 0}",
        "has other faces": "size: 64",
        "has huge faces": "size: 512",
        "is of another recipe": "recipe: recognizer",
        "is of a recipe to import": "recipe: os:system",
    }
    rows: list[tuple[str, Breaking]] = [*kinds(), *truncated(3)]
    rows += [(name, lambda path, line=line: _merge(path, line)) for name, line in lines.items()]  # type: ignore[misc]
    for name, breaking in rows:
        yield f"whose config {name}", at("purifier/config.yaml", breaking), CLEAN
    for name, breaking in [*kinds(), *truncated(4)]:
        file = "purifier/checkpoints/step-000000064/__0_0.distcp"
        yield f"whose checkpoint {name}", at(file, breaking), [*JUDGE, "purifier"]
    rows = [*kinds(), *truncated(4), *((name, writing(data)) for name, data in tensors().items())]
    rows += [(name, _described(change)) for name, change in DESCRIPTIONS.items()]
    rows.append(("has eigenfaces that are not finite", _filled("eigenfaces.basis", float("nan"))))
    rows.append(("has faces that are not finite", _filled("eigenfaces.mean", float("inf"))))
    for name, breaking in rows:
        yield f"file {name}", at(FILE, breaking), [*JUDGE, FILE]


DESCRIPTIONS: dict[str, dict[str, str]] = {
    "is not described": {"model": ""},
    "has a description that is no table": {"model": "[]"},
    "has a description nested deeply": {"model": "[" * 100_000},
    "claims to be no purifier": {"model": '{"recognizer": ["small", 32]}'},
    "claims a billion eigenfaces": {"model": '{"purifier": [1000000000, true]}'},
    "claims fewer than none": {"model": '{"purifier": [-1, true]}'},
    "claims infinitely many": {"model": '{"purifier": [1e999, true]}'},
    "claims a size of a million digits": {"size": "9" * 1_000_000},
    "claims more than it has": {"model": '{"purifier": [21, true]}'},
    "claims to be grey": {"model": '{"purifier": [20, false]}'},
    "claims a table of eigenfaces": {"model": '{"purifier": [{}, true]}'},
    "claims huge faces": {"size": "100000"},
    "claims other faces": {"size": "64"},
    "claims faces of minus one": {"size": "-1"},
    "claims faces of no size": {"size": "nan"},
}


def recognizers(address: str) -> Rows:
    claims: dict[str, dict[str, str]] = {
        f"claims {what}": {"model": json.dumps({"recognizer": [backbone, embedding]})}
        for what, backbone, embedding in (
            ("another embedding", BACKBONE, 33),
            ("a huge embedding", BACKBONE, 10**9),
            ("an infinite embedding", BACKBONE, float("inf")),
            ("no embedding", BACKBONE, 0),
            ("a negative embedding", BACKBONE, -1),
            ("a text for an embedding", BACKBONE, "x"),
            ("a backbone of nobody's", "timm:nonsense", 32),
            ("a backbone outside", "../../outside/secret", 32),
            ("a backbone to import", "os.system", 32),
            ("layers that it does not have", "onnx", 32),
            ("a number for a backbone", 3, 32),
        )
    }
    claims |= {"is of another role": {"model": '{"purifier": [20, true]}'}}
    claims |= {"is not described": {"model": ""}, "is nested deeply": {"model": "[" * 100_000}}
    claims |= {"claims faces of minus one": {"size": "-1"}, "claims faces of no size": {"size": "nan"}}
    for name, change in claims.items():
        yield f"file {name}", at(RECOGNIZER, _described(change)), EMBED


def gans(address: str) -> Rows:
    sound = {"width": 4, "latent": 8, "embedding": 4}
    for name, change in {
        "has a huge network": {"width": 1_000_000},
        "has the largest network": {"width": 128, "latent": 1024, "embedding": 1024},
        "has other layers": {"width": 8},
        "has more noise": {"latent": 9},
        "has noise without end": {"latent": 10**9},
        "has nobody to make": {"conditional": "false"},
    }.items():
        text = ", ".join(f"{key}: {value}" for key, value in (sound | change).items())
        yield (
            f"whose config {name}",
            lambda work, text=text: _merge(work / "gan/config.yaml", f"noise_gan: {{{text}}}"),  # type: ignore[misc]
            MAKE,
        )
    for name, breaking in kinds():
        yield f"whose config {name}", at("gan/config.yaml", breaking), MAKE
        file = "gan/checkpoints/step-000000100/__0_0.distcp"
        yield f"whose checkpoint {name}", at(file, breaking), MAKE
    yield "that attacks a face", lambda work: None, [*ATTACK, "gan"]
    yield "that is a purifier", lambda work: None, [*JUDGE, "gan"]


ATTACK = ["evaluate", "robustness", "--checkpoint", "run", "--shards", "faces", "--attacks", "trained"]
ATTACK += ["--generator"]


def _merge(path: Path, line: str) -> None:
    """Put a section in place of the config's own, which may be several lines."""
    import yaml

    tree = yaml.safe_load(path.read_text()) | yaml.safe_load(merged("", line))
    path.write_text(yaml.safe_dump(tree))


def _described(change: dict[str, str]) -> Breaking:
    return lambda path: _rewritten(path, lambda tensors: tensors, change)


def _filled(name: str, value: float) -> Breaking:
    return lambda path: _rewritten(path, lambda all: all | {name: torch.full_like(all[name], value)}, {})


def _rewritten(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], about: dict[str, str]) -> None:
    with safe_open(path, "pt") as file:
        before = dict(file.metadata())
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(change(held), path, before | about)
