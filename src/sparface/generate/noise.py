"""Makes faces from noise, of the people of a set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparface.errors import UserError
from sparface.evaluation.classification import learned
from sparface.generate.settings import GenerateConfig
from sparface.generate.variants import Drawing, Maker
from sparface.models.noise_gan import NoiseGenerator, draw_noise
from sparface.models.weights import weights_digest
from sparface.runs.trained import Trained
from sparface.shards.set import ShardSet

NOISE_STREAM = 36
"""Stream of `sparface.randomness`."""
_OF_CHANGES = ("strength_low", "strength_high", "saliency_floor", "targeted")


class NoiseMaker(Maker):
    """Makes faces of the person of each source, whose picture plays no part.

    A person with more photos in the set thus gets more made faces. The source is what filters and reports
    compare with.
    """

    def __init__(
        self,
        settings: GenerateConfig,
        sources: ShardSet,
        generator: NoiseGenerator,
        known: Sequence[str],
        device: torch.device,
    ) -> None:
        """`known` has the names of the people whom the generator has learned, by label."""
        super().__init__(settings, sources, device)
        self.generator = generator.requires_grad_(False)
        numbers = {name: number for number, name in enumerate(known)}
        if strangers := [name for name in sources.identities if name not in numbers]:
            raise UserError(
                f"{sources.folder}: {strangers[0]} was not in the generator's training set; give that set, "
                "or a part of it"
            )
        self.numbers = torch.tensor([numbers[name] for name in sources.identities], device=device)
        self.provenance = {"maker": f"noise {weights_digest(generator.state_dict())}", "recognizer": None}

    def change_faces(self, drawing: Drawing) -> tuple[Tensor, Tensor, list[str | None]]:
        own = [self.label(drawing.block.places[variant.row]) for variant in drawing.variants]
        noise = draw_noise(self.generator.latent, self.settings.seed, drawing.positions, NOISE_STREAM)
        made = self.generator(noise, self.numbers[own])
        return made, torch.ones_like(drawing.strength), [None] * len(drawing.variants)


def open_noise_maker(
    trained: Trained,
    generator: NoiseGenerator,
    sources: ShardSet,
    settings: GenerateConfig,
    device: torch.device,
) -> NoiseMaker:
    """Raises `UserError` if the generator knows no people, or not those of the set, or for an option that has
    no meaning."""
    if generator.identities is None:
        raise UserError(
            f"{trained.run}: its generator knows no people, so its faces have no labels; train one with "
            "noise_gan.conditional: true"
        )
    for option in _OF_CHANGES:
        if getattr(settings, option) not in (None, 0):
            raise UserError(f"--{option}: is for changed faces, not for faces from noise; leave it out")
    if settings.variation != "none":
        raise UserError("--variation: is for changed faces, not for faces from noise; leave it out")
    return NoiseMaker(settings.resolved(1.0), sources, generator, learned(trained), device)
