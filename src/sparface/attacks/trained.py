"""The generator of a sparring run as an attack."""

from __future__ import annotations

import torch
from torch import Tensor

from sparface.attacks.attack import Attack, Attacked
from sparface.attacks.goal import Goal
from sparface.attacks.settings import AttackConfig
from sparface.models.sae import SAE, Encoder
from sparface.sparring.forms import form_of
from sparface.sparring.made import Source


class TrainedAttack(Attack):
    """Sparring faces of a trained generator, which never asks the network. ε replaces the bound of a
    perturbation; other forms keep their own."""

    needs_gradient = False

    def __init__(self, settings: AttackConfig, generator: Encoder) -> None:
        super().__init__(settings)
        self.generator = generator
        self.form = form_of(generator, settings.seed)
        if isinstance(generator, SAE):
            self.form.generator.epsilon = settings.epsilon

    @torch.no_grad()
    def __call__(self, goal: Goal, faces: Tensor, positions: Tensor) -> Attacked:
        made = self.form.learned(self.generator, Source(faces, positions))
        return Attacked(made.face, torch.zeros_like(positions))
