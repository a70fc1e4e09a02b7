"""The attacks on trained networks by name."""

from __future__ import annotations

from sparface.attacks.apgd import APGD
from sparface.attacks.attack import Attack
from sparface.attacks.gradient import FGSM, PGD
from sparface.attacks.pixel import Pixel
from sparface.attacks.settings import AttackConfig, AttackName
from sparface.attacks.square import Square
from sparface.attacks.trained import TrainedAttack
from sparface.errors import UserError
from sparface.models.sae import Encoder

ATTACKS: dict[AttackName, type[Attack]] = {
    "fgsm": FGSM,
    "pgd": PGD,
    "apgd": APGD,
    "pixel": Pixel,
    "square": Square,
}
"""The attacks that need nothing but a goal."""


def build_attack(settings: AttackConfig, generator: Encoder | None = None) -> Attack:
    """Build an attack; `settings` must be resolved, and `generator` given for `trained`."""
    if settings.attack != "trained":
        return ATTACKS[settings.attack](settings)
    if generator is None:
        raise UserError("--attack: trained needs the run of a generator; give --generator")
    return TrainedAttack(settings, generator)
