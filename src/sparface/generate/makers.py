"""Makers of variants: with a trained perturbation, which may be steered, and with any form of sparring."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparface.attacks.goal import Goal, of_templates
from sparface.errors import UserError
from sparface.generate.noise import open_noise_maker
from sparface.generate.settings import GenerateConfig
from sparface.generate.variants import Drawing, Maker, pixels
from sparface.kernels.synthesize import synthesize
from sparface.models.noise_gan import NoiseGenerator
from sparface.models.sae import NOISE_STREAM, SAE, Encoder, GeneratorConfig
from sparface.models.weights import weights_digest
from sparface.randomness import normal, uniform
from sparface.recipes.sparring_config import SparringConfig
from sparface.runs.trained import Trained, encoder_of
from sparface.shards.set import ShardSet
from sparface.sparring.forms import FORMS, form_of
from sparface.sparring.made import Form, Source

TARGET_STREAM = 3
"""Stream of `sparface.randomness`."""
TARGET_DRAWS = 8
"""Faces drawn as candidates for a target; the first one of another identity is used."""
TARGET_STEPS = 3
TARGET_STEP = 1.0
"""Length of a signed gradient step, in units of the bottleneck."""


def open_maker(trained: Trained, sources: ShardSet, settings: GenerateConfig, device: torch.device) -> Maker:
    """Open what makes the variants. Raises `UserError` if the run lacks a generator, or if an option needs
    another one."""
    sparring = trained.config.find(SparringConfig) or SparringConfig()
    own = settings.form == "trained"
    network = trained.network("generator", device) if own and sparring.choice == "learned" else None
    if isinstance(network, NoiseGenerator):
        return open_noise_maker(trained, network, sources, settings, device)
    generator = None if network is None else encoder_of(trained, network).requires_grad_(False)
    if isinstance(generator, SAE):
        settings = settings.resolved(generator.epsilon)
        recognizer = trained.network("recognizer", device) if settings.targeted > 0 else None
        return PerturbationMaker(settings, sources, generator, recognizer, device)
    for option in ("targeted", "saliency_floor"):
        if getattr(settings, option) > 0:
            raise UserError(f"--{option}: needs a run with a trained perturbation; leave it at 0")
    if generator is not None:
        return FormMaker(
            settings.resolved(1.0), sources, form_of(generator, settings.seed), generator, device
        )
    name = sparring.form if settings.form == "trained" else settings.form
    perturbation = trained.config.find(GeneratorConfig) or GeneratorConfig()
    strength = perturbation.epsilon if name == "perturbation" else 1.0
    form = FORMS[name](settings.seed, GeneratorConfig(epsilon=1.0))  # so the strength is ε
    return FormMaker(settings.resolved(strength), sources, form, None, device)


class FormMaker(Maker):
    """Makes variants of any form; without a generator, they are drawn at random."""

    def __init__(
        self,
        settings: GenerateConfig,
        sources: ShardSet,
        form: Form,
        generator: Encoder | None,
        device: torch.device,
    ) -> None:
        super().__init__(settings, sources, device)
        self.form, self.generator = form, generator
        name = next(name for name, kind in FORMS.items() if isinstance(form, kind))
        maker = f"random {name}" if generator is None else weights_digest(generator.state_dict())
        self.provenance = {"maker": maker, "recognizer": None}

    def change_faces(self, drawing: Drawing) -> tuple[Tensor, Tensor, list[str | None]]:
        source = Source(drawing.x, drawing.positions, drawing.strength)
        made = (
            self.form.random(source) if self.generator is None else self.form.learned(self.generator, source)
        )
        area = torch.ones_like(drawing.strength) if made.mask is None else made.mask.mean((1, 2, 3))
        return made.face, area, [None] * len(drawing.variants)


class PerturbationMaker(Maker):
    """Makes variants with a saliency autoencoder; `recognizer` is needed only for targeted variants."""

    def __init__(
        self,
        settings: GenerateConfig,
        sources: ShardSet,
        generator: SAE,
        recognizer: nn.Module | None,
        device: torch.device,
    ) -> None:
        super().__init__(settings, sources, device)
        self.generator, self.recognizer = generator, recognizer
        if recognizer is not None:
            recognizer.requires_grad_(False)
        steering = None if recognizer is None else weights_digest(recognizer.state_dict())
        self.provenance = {"maker": weights_digest(generator.state_dict()), "recognizer": steering}

    def codes(self, x: Tensor) -> Tensor:
        return self.in_batches(self.generator.encode, x)

    def change_faces(self, drawing: Drawing) -> tuple[Tensor, Tensor, list[str | None]]:
        codes, positions = drawing.block.codes, drawing.positions
        code = self.generator.encode(drawing.x) if codes is None else codes[drawing.rows]
        if self.settings.noise > 0:
            noise = normal(self.settings.seed, positions, (code.shape[1], 1, 1), NOISE_STREAM)
            code = code + self.settings.noise * noise
        code, targets = self._aim(drawing, code)
        return *self._face(drawing.x, code, drawing.strength), targets

    def _face(self, x: Tensor, code: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sparring faces [B,3,H,W], and the mean [B] of the masks before they are raised."""
        perturbation, mask = self.generator.decode(code, x.shape[-2], x.shape[-1])
        raised = mask.clamp(min=self.settings.saliency_floor)
        return synthesize(x, perturbation, raised, strength.view(-1, 1, 1, 1)), mask.mean((1, 2, 3))

    def _aim(self, drawing: Drawing, code: Tensor) -> tuple[Tensor, list[str | None]]:
        """Move the codes of the targeted share towards faces of other identities.

        The generator takes no target as input, so it is steered at its bottleneck by a few signed gradient
        steps on the cosine between sparring face and target, according to the run's recognizer.
        """
        targets: list[str | None] = [None] * len(drawing.variants)
        chosen = self._targets(drawing)
        if not chosen or self.recognizer is None:
            return code, targets
        faces = dict(self.sources.faces_at(chosen.values()))
        for place, target in chosen.items():
            targets[place] = faces[target].key
        at = torch.tensor(list(chosen), device=self.device)
        towards = self.floats(pixels([faces[target] for target in chosen.values()]))
        steered = self._steer(drawing.x[at], code[at], drawing.strength[at], towards)
        return code.index_copy(0, at, steered), targets

    def _steer(self, x: Tensor, code: Tensor, strength: Tensor, towards: Tensor) -> Tensor:
        """Move codes so that the recognizer takes the faces made of them for `towards`."""
        assert self.recognizer is not None
        recognizer, rows = self.recognizer, torch.arange(len(x), device=x.device)

        def seen(code: Tensor) -> Tensor:
            return recognizer(self._face(x, code, strength)[0])  # type: ignore[no-any-return]

        scores = of_templates(seen, recognizer(towards)[:, None], x.new_zeros(len(x)))
        goal = Goal(scores, torch.zeros_like(rows), targeted=True)
        for _ in range(TARGET_STEPS):
            code = code + TARGET_STEP * goal.ascend(code, rows, "margin")[0].sign()
        return code

    def _targets(self, drawing: Drawing) -> dict[int, int]:
        """For the targeted share, return index in the batch → index of the target in the source set."""
        if self.settings.targeted == 0:
            return {}
        draws = uniform(self.settings.seed, drawing.positions, 1 + TARGET_DRAWS, TARGET_STREAM).cpu()
        places = (draws[:, 1:].double() * len(self.labels)).long()
        own = self.labels[[drawing.block.places[variant.row] for variant in drawing.variants]]
        other = self.labels[places] != own[:, None]
        first = other.int().argmax(1)
        wanted = (draws[:, 0] < self.settings.targeted) & other.any(1)
        return {i: int(places[i, first[i]]) for i in wanted.nonzero()[:, 0].tolist()}
