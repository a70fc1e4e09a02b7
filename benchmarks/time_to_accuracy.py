"""CPU seconds from the shards of a few photos to an accuracy on a list of pairs, against facenet-pytorch.

    python benchmarks/time_to_accuracy.py CONFIG --shards few-64 --lfw lfw-64 \
        --their-shards few-160 --their-lfw lfw-160 --pairs pairsDevTest.txt

Ours is a training with CONFIG. Theirs is facenet-pytorch's network from random weights in a plain torch loop
with the settings of its training example: faces of 160 × 160, batches of 32, Adam at 1e-3 with a tenth of it
from 5/8 of the training on, cross-entropy. Both are measured on the same pairs every `--every` images, which
does not count as time. Each round has another seed, and both run in turns.

If theirs does not reach the accuracy within `--their-images`, the time of its whole training counts, so the
ratio is an upper bound. On a GPU the times are seconds, not CPU seconds. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from facenet_pytorch import InceptionResnetV1, fixed_image_standardization
from measured import conclude, over, table
from torch import Tensor, nn

from sparface.evaluation.embed import PairFaces
from sparface.evaluation.pairs import read_pairs, references
from sparface.evaluation.verification import score
from sparface.recipes import Role
from sparface.settings import load
from sparface.shards import ShardSet
from sparface.training.loop import Trainer
from sparface.training.stop import StopRequest
from sparface.training.strategies import open_strategy

BAR, BATCH, RATE = 0.25, 32, 1e-3


class Reached(Exception):
    """The recognizer has the accuracy."""


class Judge:
    """Measures a recognizer on pairs, and the time that anything else takes. Replaces a validator."""

    role: Role = "recognizer"

    def __init__(self, pairs: Path, shards: Path, target: float, device: str) -> None:
        self.pairs, self.target = read_pairs(pairs), target
        self.shard_set = ShardSet.open(shards)
        self.faces = PairFaces(self.shard_set, references(self.pairs))
        self._clock: Callable[[], float] = time.perf_counter if device == "cuda" else time.process_time
        self.began, self.measuring, self.best = self._clock(), 0.0, 0.0

    @property
    def seconds(self) -> float:
        return self._clock() - self.began - self.measuring

    def start(self) -> None:
        self.began, self.measuring, self.best = self._clock(), 0.0, 0.0

    def __call__(self, recognizer: nn.Module) -> dict[str, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        before = self._clock()
        figures = score(self.pairs, self.faces.embed(recognizer)).figures()
        self.measuring += self._clock() - before
        self.best = max(self.best, figures["accuracy"])
        print(f"  {self.seconds:8.1f} s  accuracy {figures['accuracy']:.4f}", flush=True)
        if figures["accuracy"] >= self.target:
            raise Reached
        return figures


def ours(judge: Judge, asked: argparse.Namespace, seed: int) -> float:
    """Train with the config until the accuracy is reached; returns the seconds. Exits if it never is."""
    overrides = [f"--data.shards={asked.shards}", f"--training.seed={seed}", "--data.workers=0"]
    overrides += [f"--validation.shards={asked.lfw}", f"--validation.every={asked.every}"]
    config = load(asked.config, [*overrides, "--tracking.enabled=false", *asked.set])
    judge.start()
    with tempfile.TemporaryDirectory() as folder, open_strategy(config) as strategy:
        trainer = Trainer(config, Path(folder) / "run", strategy, StopRequest())
        trainer.validators = [judge]
        try:
            trainer.run()
        except Reached:
            return judge.seconds
    sys.exit(f"{asked.config}: reached {judge.best:.4f} only; give another config")


class Embedder(nn.Module):
    """Their recognizer for faces in [0, 1]."""

    def __init__(self, network: InceptionResnetV1) -> None:
        super().__init__()
        self.network = network

    def forward(self, faces: Tensor) -> Tensor:
        self.network.classify = False
        embeddings: Tensor = self.network(fixed_image_standardization(255 * faces))
        self.network.classify = True
        return embeddings


def theirs(judge: Judge, asked: argparse.Namespace, seed: int, device: str) -> float:
    """Train facenet-pytorch's network; returns the seconds until the accuracy, or until the end."""
    torch.manual_seed(seed)
    judge.start()
    faces, labels = loaded(ShardSet.open(asked.their_shards))
    network = InceptionResnetV1(classify=True, num_classes=int(labels.max()) + 1).to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    steps = asked.their_images // BATCH
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps * 5 // 8])
    every = max(1, asked.every // BATCH)
    for step, chosen in zip(range(1, steps + 1), batches(len(labels)), strict=False):
        x = fixed_image_standardization(faces[chosen].permute(0, 3, 1, 2).float()).to(device)
        loss = F.cross_entropy(network(x), labels[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % every == 0 or step == steps:
            try:
                judge(Embedder(network))
            except Reached:
                return judge.seconds
    return judge.seconds


def loaded(shards: ShardSet) -> tuple[Tensor, Tensor]:
    """Decode a small set: faces uint8 [N, H, W, 3] and labels [N]."""
    found = list(shards.faces())
    known = {name: label for label, name in enumerate(shards.identities)}
    faces = torch.from_numpy(np.stack([face.image for face in found]))
    return faces, torch.tensor([known[face.identity] for face in found])


def batches(count: int) -> Iterator[Tensor]:
    """Yield the indices of full batches, shuffled in every epoch, without end."""
    while True:
        order = torch.randperm(count)
        yield from order[: max(1, count // BATCH) * BATCH].split(BATCH)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add: Any = options.add_argument
    add("config", help="config of our training, such as few-from-scratch")
    add("--shards", required=True, help="training faces, of the config's size")
    add("--lfw", required=True, type=Path, help="faces of the pairs, of the config's size")
    add("--their-shards", required=True, help="the same training faces, 160 × 160")
    add("--their-lfw", required=True, type=Path, help="the same faces of the pairs, 160 × 160")
    add("--pairs", required=True, type=Path, help="pairs in LFW's format")
    add("--target", type=float, default=0.8, help="accuracy to reach")
    add("--every", type=int, default=3200, help="images between measurements")
    add("--their-images", type=int, default=60_000, help="images that theirs is trained on at most")
    add("--rounds", type=int, default=3, help="seeds")
    add("--set", action="append", default=[], metavar="--KEY=VALUE", help="further setting of ours")
    asked = options.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    judges = [Judge(asked.pairs, lfw, asked.target, device) for lfw in (asked.lfw, asked.their_lfw)]
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    best = []
    for seed in range(asked.rounds):
        for name in ("ours", "theirs") if seed % 2 else ("theirs", "ours"):
            print(f"{name}, seed {seed}", flush=True)
            took = ours(judges[0], asked, seed) if name == "ours" else theirs(judges[1], asked, seed, device)
            seconds[name].append(took)
        best.append(judges[1].best)
    table(seconds, f"s to {asked.target:.0%} ({'seconds' if device == 'cuda' else 'CPU seconds'})")
    return conclude(
        "time_to_accuracy", over(seconds["ours"], seconds["theirs"]), BAR, at_most=True,
        config=asked.config, target=asked.target, their_best=best, device=device,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
