"""The forms of sparring by name."""

from __future__ import annotations

from typing import Literal

from sparface.models.disguiser import Disguiser
from sparface.models.placer import Placer
from sparface.models.sae import SAE, Encoder, GeneratorConfig
from sparface.sparring.disguise import Disguise
from sparface.sparring.made import Form
from sparface.sparring.occlusion import Occlusion
from sparface.sparring.perturbation import Perturbation

FormName = Literal["perturbation", "occlusion", "disguise"]
FORMS: dict[FormName, type[Form]] = {
    "perturbation": Perturbation,
    "occlusion": Occlusion,
    "disguise": Disguise,
}
_OF: dict[type[Encoder], type[Form]] = {SAE: Perturbation, Placer: Occlusion, Disguiser: Disguise}


def form_of(generator: Encoder, seed: int) -> Form:
    """Return the form whose changes a generator chooses."""
    settings = GeneratorConfig(width=generator.width, noise=generator.noise)
    if isinstance(generator, SAE):
        settings.epsilon = generator.epsilon
    return _OF[type(generator)](seed, settings)
