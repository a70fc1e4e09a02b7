"""A small classifier of digits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from digits import Digits


@pytest.fixture(scope="session")
def digits() -> Digits:
    drawn = load_digits()
    images = torch.tensor(drawn.images / 16, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1)
    images, labels = F.interpolate(images, size=(16, 16), mode="bilinear"), torch.tensor(drawn.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10)
        )
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(8):
        for at in range(0, 1200, 50):
            loss = F.cross_entropy(network(images[at : at + 50]), labels[at : at + 50])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Digits(network.eval().requires_grad_(False), images[1200:1456], labels[1200:1456])
