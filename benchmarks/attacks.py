"""Attacks on 64 faces at a time, over torchattacks on the same faces, network and budget.

    python benchmarks/attacks.py [--quick]

torchattacks searches for pixels one face after the other; its gradient attacks take whole batches, as ours
do. The network is a classifier with the layers of the recognizer `small`, trained on drawn people until it
knows them. The last line is one JSON object, for the search for pixels. Needs torchattacks
(`pip install --no-deps torchattacks==3.5.1`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
import torchattacks
from measured import conclude, in_turns, over, table
from torch import Tensor, nn

from sparface.attacks.goal import Goal, of_classifier
from sparface.attacks.settings import AttackConfig
from sparface.attacks.suite import build_attack
from sparface.faces.drawn import drawn_faces
from sparface.models.small import SmallResNet

BAR = 10.0
PEOPLE, PHOTOS, SIZE = 16, 4, 64
FACES = PEOPLE * PHOTOS


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--quick", action="store_true", help="end within a minute")
    rounds = 1 if options.parse_args().quick else 5
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    faces, labels = drawn(device)
    network = trained(faces, labels)
    ratios: dict[str, list[float]] = {}
    for name, (ours, theirs) in rivals(network, faces, labels).items():
        found = in_turns({"sparface": ours, "torchattacks": theirs}, rounds)
        table(found, f"seconds, {name}, {FACES} faces")
        ratios[name] = over(found["torchattacks"], found["sparface"])
    table(ratios, "times as fast as torchattacks")
    return conclude("attacks", ratios["pixel"], BAR, faces=FACES, size=SIZE, device=device.type)


def drawn(device: torch.device) -> tuple[Tensor, Tensor]:
    """Faces [N,3,H,W] in [0,1] of drawn people, and who they are."""
    found = list(drawn_faces(PEOPLE, PHOTOS, size=SIZE, seed=0))
    faces = torch.from_numpy(np.stack([face.image for face in found])).permute(0, 3, 1, 2).float() / 255
    return faces.to(device).contiguous(), torch.arange(FACES, device=device) // PHOTOS


def trained(faces: Tensor, labels: Tensor) -> nn.Module:
    """A classifier that knows the faces."""
    torch.manual_seed(0)
    network = nn.Sequential(SmallResNet(64), nn.Linear(64, PEOPLE)).to(faces.device)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(network(faces), labels).backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


def rivals(
    network: nn.Module, faces: Tensor, labels: Tensor
) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Name → our attack and that of torchattacks."""
    goal, positions = Goal(of_classifier(network), labels), torch.arange(FACES, device=faces.device)
    theirs = {
        "pixel": torchattacks.OnePixel(network, pixels=1, steps=10, popsize=10),
        "pgd": torchattacks.PGD(network, eps=0.03, alpha=0.01, steps=10),
        "apgd": torchattacks.APGD(network, eps=0.03, steps=10),
    }
    ours = {
        "pixel": AttackConfig("pixel", steps=10, population=10),
        "pgd": AttackConfig("pgd", steps=10, step_size=0.01),
        "apgd": AttackConfig("apgd", steps=10, loss="cross_entropy"),
    }
    return {
        name: (
            lambda config=config: build_attack(config.resolved())(goal, faces, positions),
            lambda attack=theirs[name]: attack(faces, labels),
        )
        for name, config in ours.items()
    }


if __name__ == "__main__":
    sys.exit(main())
