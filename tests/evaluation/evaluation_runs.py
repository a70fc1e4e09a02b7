"""Run folders for tests: with untrained networks, or with invented figures and drawn faces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from sparface import settings
from sparface.config import Config
from sparface.evaluation.scores import distances, verify_pairs
from sparface.evaluation.verification import _document
from sparface.faces.drawn import draw, person, scene
from sparface.models.recognizer import RecognizerConfig
from sparface.models.sae import SAE, GeneratorConfig
from sparface.recipes import build_recipe, registry
from sparface.recipes.sparring import SparringRecipe
from sparface.runs import captions
from sparface.runs.checkpoint import CheckpointStore

Pictures = npt.NDArray[np.uint8]
SIZE = 64


def small_config(shards: Path, average: int = 0) -> Config:
    """Sparring with a small timm backbone and split BatchNorm."""
    config = Config(recipe="sparring", size=SIZE)
    config.blocks = {name: kind() for name, kind in SparringRecipe.blocks.items()}
    config.blocks |= {
        "recognizer": RecognizerConfig("timm:mobilenetv3_small_050", 64),
        "generator": GeneratorConfig(width=4, blocks=1),
    }
    config.data.shards, config.schedule.images = str(shards), 1000
    config.training.average_half_life = average
    return config


def write_checkpoint(
    run: Path, config: Config, images_seen: int, *, diverged: bool = False, form: str = SAE.FORM
) -> dict[str, torch.nn.Module]:
    """A run with one checkpoint of untrained networks, whose averages are other networks."""
    run.mkdir(parents=True, exist_ok=True)
    settings.save(config, run / "config.yaml")
    networks, averages = (build_recipe(config, 12).networks for _ in range(2))
    if diverged:
        torch.nn.init.constant_(next(networks["recognizer"].parameters()), torch.nan)
    tensors = {"networks": {name: network.state_dict() for name, network in networks.items()}}
    if config.training.average_half_life:
        tensors["averages"] = {name: network.state_dict() for name, network in averages.items()}
    identity = SparringRecipe.identity(config)
    identity["generator"][0] = form
    store = CheckpointStore(run / "checkpoints")
    store.save(images_seen, tensors, {}, identity=json.dumps(identity))
    store.finish()
    return averages if config.training.average_half_life else networks


def write_run(
    folder: Path,
    recipe: Literal["recognizer", "sparring"] = "recognizer",
    *,
    points: int = 120,
    seed: int = 0,
    size: int = 64,
    mix: dict[str, int] | None = None,
) -> Path:
    """A run of `points` log intervals with pictures, events and one evaluation."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    config = Config(recipe=recipe, size=size)
    config.data.shards, config.schedule.images = "shards/faces", 1000 * points
    config.training.seed, config.data.mix = seed, mix or {}
    config.optimizer.learning_rate = 2e-4 if recipe == "sparring" else 1e-3
    settings.save(config, folder / "config.yaml")
    captions.save(registry.find(recipe), registry.find(recipe).finished, folder)
    _lines(folder / "metrics.jsonl", [_interval(rng, i, points, recipe) for i in range(1, points + 1)])
    _lines(folder / "events.jsonl", _events(recipe, points))
    write_previews(folder / "previews", 1000 * points, recipe, size)
    write_evaluation(folder, 1000 * points, skill=1.0 + 0.4 * (recipe == "sparring"), seed=seed)
    return folder


def _interval(rng: np.random.Generator, i: int, points: int, recipe: str) -> dict[str, Any]:
    done = i / points
    noise = lambda scale: float(rng.normal(0, scale))  # noqa: E731
    values: dict[str, Any] = {
        "images": 1000 * i,
        "time": 17.0 * i,
        "loss": 4.5 * np.exp(-2 * done) + 0.4 + noise(0.12),
        "triplet": 0.2 * np.exp(-1.5 * done) + noise(0.008),
        "cross_entropy": 4.2 * np.exp(-2 * done) + 0.3 + noise(0.1),
        "accuracy": 1 - np.exp(-3 * done) + noise(0.02),
        "embedding_cosine": 0.5 * np.exp(-4 * done) + noise(0.01),
        "recognizer/gradient_norm": 2 + noise(0.3),
        "images_per_second": (38 if recipe == "sparring" else 59) + noise(1.5),
        "learning_rate": 2e-4,
    }
    if recipe == "sparring":
        values |= {
            "attack": 0.9 - 0.5 * done + noise(0.03),
            "perturbation_norm": 6 + 5 * done + noise(0.3),
            "mask_mean": 0.5 - 0.3 * done + noise(0.01),
            "generator_loss": 1.2 - 0.4 * done + noise(0.03),
            "sparring_triplet": 0.25 * np.exp(-1.2 * done) + noise(0.01),
            "shift": 0.1 + 0.3 * done + noise(0.02),
        }
    if i % 10 == 0:
        values["validation/accuracy"] = (
            0.5 + 0.4 * (1 - np.exp(-3 * done)) + noise(0.01) + 0.02 * (recipe == "sparring")
        )
    return values


def _events(recipe: str, points: int) -> list[dict[str, Any]]:
    if recipe == "recognizer":
        return []
    return [
        {
            "images": 31_000,
            "kind": "loss_spike",
            "message": "loss 41.2 is 12 times its running mean",
            "policy": "log",
        },
        {"images": 60_000, "kind": "resume", "message": "from step-000060000", "world_size": 1},
        {"images": 1000 * points, "kind": "bad_sample", "message": "celeba-000003.tar: <b>0012</b> & co"},
    ]


def _lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_previews(folder: Path, images: int, recipe: str, size: int) -> None:
    """Grids of sixteen pictures, eight a row, two pixels apart, as training writes them."""
    folder.mkdir()
    faces = np.stack([draw(person(0, i), scene(0, i, 1), size) for i in range(16)])
    whitened = (faces - faces.mean((1, 2, 3), keepdims=True)) / faces.std((1, 2, 3), keepdims=True)
    pictures = {"face": faces, "whitened": (np.clip(whitened / 6 + 0.5, 0, 1) * 255).astype(np.uint8)}
    if recipe == "sparring":
        rng = np.random.default_rng(0)
        y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]  # type: ignore[misc]
        mask = np.exp(-3 * (x**2 + (y - 0.1) ** 2))[None, ..., None] * np.ones((16, 1, 1, 3))
        change = rng.normal(0, 0.06, faces.shape) * 255
        pictures["perturbation"] = np.clip(128 + 4 * change, 0, 255).astype(np.uint8)
        pictures["mask"] = (mask * 255).astype(np.uint8)
        pictures["sparring"] = np.clip(faces + change * mask, 0, 255).astype(np.uint8)
    for name, row in pictures.items():
        Image.fromarray(_grid(row)).save(folder / f"{images:09d}-{name}.png")


def _grid(pictures: Pictures) -> Pictures:
    rows = [np.concatenate([np.pad(p, ((2, 0), (2, 0), (0, 0)), constant_values=255) for p in row], 1)
            for row in pictures.reshape(-1, 8, *pictures.shape[1:])]  # fmt: skip
    return np.pad(np.concatenate(rows), ((0, 2), (0, 2), (0, 0)), constant_values=255)


def write_evaluation(
    folder: Path, images: int, *, name: str = "pairsDevTest", skill: float = 1.0, seed: int = 0
) -> Path:
    """An evaluation of 1,000 pairs of random embeddings, the better the higher `skill`."""
    rng = np.random.default_rng(seed)
    same = np.arange(1000) % 2 == 0
    first, second = rng.normal(size=(2, 1000, 32))
    second = np.where(same[:, None], skill * first * rng.uniform(0, 1, (1000, 1)) + second, second)
    folds = np.arange(1000) // 100
    scores: Any = {m: verify_pairs(distances(first, second, m), same, folds) for m in ("euclidean", "cosine")}
    scores["euclidean"] = scores["cosine"]
    document = _document(name, scores)
    document["provenance"] = {
        "run": folder.name, "checkpoint": f"step-{images:09d}", "checkpoint_digest": "0123456789abcdef" * 4,
        "images_seen": images, "averaged": True, "parameters": 23_482_624, "pairs": f"{name}.txt",
        "template": "arcface", "faces": 1_745, "centred": 3, "shards": "lfw",
    }  # fmt: skip
    path = folder / "evaluations" / f"{name}-{images:09d}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document))
    return path
