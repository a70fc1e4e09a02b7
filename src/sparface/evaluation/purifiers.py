"""Open what cleans faces before they are recognized, and put it before a recognizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sparface.config import Config, check_numbers
from sparface.errors import UserError
from sparface.faces.templates import Template
from sparface.models.purifier import Purifier
from sparface.models.rivals import RIVALS
from sparface.models.weights import described, load_into, read_weights_file, weights_digest, weights_header
from sparface.randomness import fingerprint
from sparface.recipes.purifier import FINISHED_PURIFIER, PurifierConfig
from sparface.runs.trained import open_run
from sparface.text import printable


class Randomly(nn.Module):
    """Purifies faces with random masks, which are functions of the seed, the face and the number of the
    draw; without one, it gives the mean over all masks."""

    def __init__(self, purifier: Purifier, seed: int) -> None:
        super().__init__()
        self.purifier, self.seed = purifier, seed

    def forward(self, x: Tensor, draw: int | None = 0) -> Tensor:
        noise = None if draw is None else self.purifier.noise(self.seed, fingerprint(x), draw)
        return self.purifier(x, noise)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Cleaner:
    """A purifier or one of its rivals."""

    name: str
    """The name of the run's folder, or what was asked for."""
    network: nn.Module
    """Maps faces [B,3,H,W] in [0,1] to cleaned ones; a random one also takes the number of a draw."""
    random: bool
    digest: str
    """SHA-256 of a purifier's weights; the name of a rival."""
    size: int | None = None
    """Side of the faces that it takes; None if any."""
    template: Template = "arcface"
    """What the faces that it has learned from were aligned to, if that is known."""


class Purified(nn.Module):
    """A network that is shown cleaned faces."""

    def __init__(self, network: nn.Module, cleaner: Cleaner) -> None:
        super().__init__()
        self.network, self.cleaner, self.random = network, cleaner.network, cleaner.random
        self.training = network.training

    def forward(self, x: Tensor, draw: int | None = 0) -> Tensor:
        cleaned = self.cleaner(x, draw) if self.random else self.cleaner(x)
        return self.network(cleaned)  # type: ignore[no-any-return]


def open_cleaner(source: str, device: torch.device, seed: int = 0) -> Cleaner:
    """Open the run of a purifier, what `sparface export` wrote of one (the folder, or its
    `purifier.safetensors`), or `jpeg:QUALITY`, `blur:SIGMA` (in pixels) or `tv:WEIGHT`.

    `seed` decides a purifier's random masks. Raises `UserError` if it cannot be opened.
    """
    name, _, text = source.partition(":")
    if name in RIVALS and not Path(source).is_dir():
        return _rival(source, name, text)
    path = Path(source)
    file = path / "purifier.safetensors" if path.is_dir() else path
    network: nn.Module
    if file.is_file():
        network, size = _exported(file)
        name, template = file.stem, None
    else:
        trained = open_run(path)
        network, size = trained.network("purifier"), trained.config.size
        name, template = trained.run.name, trained.facts.get("template")
    if not isinstance(network, Purifier):
        raise UserError(f"{path}: its purifier has no random masks; use another run")
    digest = weights_digest(network.state_dict())
    randomly = Randomly(network.to(device).requires_grad_(False), seed).eval()
    return Cleaner(name, randomly, True, digest, size, "box" if template == "box" else "arcface")


def _exported(file: Path) -> tuple[Purifier, int]:
    """Load a purifier and the size of its faces from a file that `sparface export` wrote."""
    if (found := described(weights_header(file), "purifier", (int, bool))) is None:
        raise UserError(f"{file}: is not a purifier that `sparface export` wrote; give its run")
    (components, colour), size = found
    settings = PurifierConfig(components=components, colour=colour)
    config = Config(size=size, blocks={"purifier": settings})
    check_numbers(settings, f"{file}: ")  # a file may claim anything
    check_numbers(config, f"{file}: ")
    network = FINISHED_PURIFIER.build(config)
    assert isinstance(network, Purifier)
    load_into(network, read_weights_file(str(file)), str(file))
    return network, config.size


def _rival(source: str, name: str, text: str) -> Cleaner:
    kind, least, most = RIVALS[name]
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise UserError(
            f"{printable(source)[:60]} is not allowed; give {name}:NUMBER between {least:g} and {most:g}"
        )
    said = f"{name}:{value:g}"
    return Cleaner(said, kind(value).eval(), False, said)


def draws_of(network: nn.Module, draws: int) -> list[Callable[[Tensor], Tensor]]:
    """A network with several draws of its random cleaner (see `seen_draws`); the network alone if nothing in
    it is random."""
    if isinstance(network, Purified) and network.random:
        return [partial(network, draw=number) for number in seen_draws(draws)]
    return [network]


def seen_draws(draws: int) -> list[int | None]:
    """Numbers of the draws that an attacker looks at, none of which is the draw 0 that judges; of 0 draws,
    the mean over all masks."""
    return list(range(1, draws + 1)) or [None]


def unpurified(network: nn.Module) -> nn.Module:
    """The network without its cleaner."""
    return network.network if isinstance(network, Purified) else network
