"""Train the recognizer against changed faces, which keep the label of their source.

The changes are chosen by a generator, by chance, or as the worst of several. A generator trains in the same
step. `alternating` is the paper's step: two phases, each with a recognizer forward. `shared` is a single
phase that uses one forward for both networks. From the same state both compute the same gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparface import objectives
from sparface.config import Config
from sparface.errors import UserError
from sparface.kernels.whiten import input_dtype, whiten
from sparface.models.batchnorm import frozen_statistics, parts, split_batchnorm
from sparface.models.recognizer import Recognizer, whitened
from sparface.models.sae import GeneratorConfig
from sparface.recipes import distillation
from sparface.recipes.base import (
    FaceBatch,
    Finished,
    Metrics,
    Phase,
    Recipe,
    Role,
    Rule,
    evaluating,
    faces,
    viewable,
)
from sparface.recipes.generator_watch import GeneratorWatchConfig, generator_rules
from sparface.recipes.governor import Governor
from sparface.recipes.recognizer import (
    CAPTIONS,
    FINISHED_RECOGNIZER,
    ObjectiveConfig,
    RecognizerRecipe,
    collapse_rule,
    dropout,
    has_head,
    recognizer_networks,
)
from sparface.recipes.slots import Faces, Slots, divide, replaced
from sparface.recipes.sparring_config import (
    GENERATOR_CAPTIONS,
    SPARRING_CAPTIONS,
    SparringConfig,
    governed,
)
from sparface.recipes.sparring_losses import (
    added_loss,
    each_loss,
    mixed_loss,
    ranked,
    right,
    separate,
    success,
    taught_loss,
)
from sparface.sparring.forms import FORMS
from sparface.sparring.made import Made, Source, select
from sparface.sparring.terms import TERMS, Embedded


@dataclass(frozen=True)
class Cast(Slots):
    """What the recognizer sees in a step: real faces, and sparring faces made of the sources."""

    made: Made
    whitened: Tensor
    """[r+s,3,H,W], real and then sparring faces, as the recognizer's backbone takes them."""
    lesson: distillation.Lesson | None = None
    """With distillation: the teacher's embeddings."""


def _build_generator(config: Config) -> nn.Module:
    return FORMS[config.block(SparringConfig).form].build(config.block(GeneratorConfig))


class SparringRecipe(Recipe):
    """Trains the networks `recognizer`, `head` (if cross-entropy or ArcFace is on) and, if changes are
    learned, `generator`."""

    blocks: ClassVar[Mapping[str, type]] = {
        **RecognizerRecipe.blocks,
        "generator": GeneratorConfig,
        "sparring": SparringConfig,
        "generator_watch": GeneratorWatchConfig,
    }
    identities = 2
    finished: ClassVar[Mapping[Role, Finished]] = {
        "recognizer": FINISHED_RECOGNIZER,
        "generator": Finished("generator", _build_generator),
    }
    captions: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "Recognizer": CAPTIONS | SPARRING_CAPTIONS,
        "Generator": GENERATOR_CAPTIONS,
    }
    pictures: ClassVar[Mapping[str, str]] = {
        "face": "face",
        **{name: caption for form in FORMS.values() for name, caption in form.pictures.items()},
        "sparring": "sparring face",
        "whitened": "whitened face",
    }
    headline = ("loss", "accuracy", "sparring_accuracy", "shift", "fooled")

    def __init__(self, config: Config, identities: int) -> None:
        super().__init__(config, identities)
        self.objective, self.sparring = config.block(ObjectiveConfig), config.block(SparringConfig)
        self.networks = recognizer_networks(config, identities)
        if self.objective.distillation > 0:
            distillation.add_teacher(self)
        if self.sparring.batchnorm == "split":
            split_batchnorm(self.networks["recognizer"])
        self.recognition = tuple(self.networks)
        self.form = FORMS[self.sparring.form](config.training.seed, config.block(GeneratorConfig))
        if self.sparring.choice == "learned":
            self.networks["generator"] = _build_generator(config)
        self.term = TERMS[self.sparring.attack](config, identities)
        self.added, group = self.sparring.slots == "add", config.data.images_per_identity
        self.paired = not self.added and group - replaced(self.sparring.share, group) > 1
        if governed(self.sparring):
            self.frozen["governor"] = Governor(self.sparring.band_low, self.sparring.band_high)

    def begin(self, start: Mapping[str, Mapping[str, Tensor]], source: str) -> None:
        super().begin(start, source)
        distillation.begin_teacher(self)

    @classmethod
    def check(cls, config: Config) -> None:
        RecognizerRecipe.check(config)
        sparring = config.block(SparringConfig)
        TERMS[sparring.attack].check(config, head=has_head(config))
        if sparring.slots == "replace":
            replaced(sparring.share, config.data.images_per_identity)
        if sparring.band_low > sparring.band_high:
            raise UserError(
                f"sparring.band_low: {sparring.band_low:g} is above sparring.band_high "
                f"({sparring.band_high:g}); swap them"
            )

    @classmethod
    def identity(cls, config: Config) -> dict[str, Any]:
        sparring = config.block(SparringConfig)
        found = RecognizerRecipe.identity(config)
        if sparring.choice == "learned":
            found["generator"] = FORMS[sparring.form].identity(config.block(GeneratorConfig))
        if governed(sparring):
            found["governor"] = True
        return found

    @classmethod
    def roles(cls, config: Config) -> Mapping[Role, Finished]:
        learned = config.block(SparringConfig).choice == "learned"
        return cls.finished if learned else {"recognizer": FINISHED_RECOGNIZER}

    def learning_rate(self, network: str) -> float:
        own = network == "generator"
        return self.sparring.generator_learning_rate if own else super().learning_rate(network)

    def rules(self) -> list[Rule]:
        watch = self.config.block(GeneratorWatchConfig)
        return [collapse_rule(self.config), *generator_rules(watch, self.added, self.paired)]

    def phases(self) -> list[Phase]:
        if self.sparring.choice != "learned":
            return [Phase("recognizer", self.recognition, self._recognizer_phase)]
        both = ("generator", *self.recognition)
        if self.form.by_outcome:
            return [Phase("sparring", both, self._by_outcome)]
        if self.sparring.update == "shared":
            handed = "" if self.term.opposes else "sparring.update: alternating, which has the same gradients"
            return [Phase("sparring", both, self._shared, inner_gradients=handed)]
        return [
            Phase("generator", ("generator",), self._generator_phase),
            Phase("recognizer", self.recognition, self._recognizer_phase),
        ]

    def preview(self, batch: FaceBatch) -> dict[str, Tensor]:
        x = faces(self.config, batch)
        generator = self.networks.get("generator", nn.Identity())
        with evaluating(generator):
            source = self._source(x, batch.positions)
            learned = "generator" in self.networks
            made = self._learned(source, generator) if learned else self.form.random(source)
            shown = {"sparring": made.face, "whitened": viewable(whiten(x))}
            return {"face": x, **made.pictures(), **shown}

    def _by_outcome(self, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        """One recognizer forward; the generator learns from how much damage each face did."""
        cast = self._cast(batch, self.networks["generator"])
        embedded = self._embed(cast, cast.whitened)
        loss, metrics = self._recognition(cast, embedded)
        attack = self.term.each(
            embedded, lambda: each_loss(self.objective, embedded, cast.source, cast.lesson)
        ).detach()
        lesson = cast.made.lesson(ranked(-attack, self.gather))
        assert lesson is not None
        own = {"generator_loss": lesson.detach(), "attack": attack.mean(), "foresight": 1 - lesson.detach()}
        return loss + lesson, metrics | cast.made.metrics() | own

    def _shared(self, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        """One recognizer forward; the attack's gradient at the whitened faces is passed to the generator."""
        cast = self._cast(batch, self.networks["generator"])
        opposes, weight, whitened = self.term.opposes, self.sparring.attack_weight, cast.whitened
        seen = (
            objectives.reverse_gradient(whitened, weight) if opposes else whitened.detach().requires_grad_()
        )
        embedded = self._embed(cast, seen)
        loss, metrics = self._recognition(cast, embedded)
        extra = self._penalty(cast.made)
        attack = self.term(embedded, lambda: loss)
        total = loss + extra
        if not opposes:
            total = total + (whitened * self._gradient(weight * attack, seen)).sum()
        own = {"generator_loss": (weight * attack + extra).detach(), "attack": attack.detach()}
        return total, metrics | cast.made.metrics() | own

    def _generator_phase(self, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        """Update the generator. The recognizer's BatchNorm statistics change only in the recognizer phase."""
        cast = self._cast(batch, self.networks["generator"])
        with frozen_statistics(self.networks["recognizer"]):
            embedded = self._embed(cast, cast.whitened)
        attack = self.term(embedded, lambda: self._loss(cast, embedded)[0])
        loss = self.sparring.attack_weight * attack + self._penalty(cast.made)
        own = {"generator_loss": loss.detach(), "attack": attack.detach()}
        return loss, cast.made.metrics() | own

    def _recognizer_phase(self, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        generator = self.networks.get("generator")
        with torch.no_grad(), frozen_statistics(generator or nn.Identity()):
            cast = self._cast(batch, generator)
        loss, metrics = self._recognition(cast, self._embed(cast, cast.whitened))
        return loss, metrics if generator else metrics | cast.made.metrics()

    def _cast(self, batch: FaceBatch, generator: nn.Module | None) -> Cast:
        """Divide a batch into real faces and sources, and make the sparring faces."""
        lesson = distillation.lesson(self, batch) if self.objective.distillation > 0 else None
        varied = Faces(faces(self.config, batch), batch.labels, batch.positions)
        given = Slots(varied, varied)
        if not self.added:
            group = self.config.data.images_per_identity
            count = replaced(self.sparring.share, group)
            given = divide(varied, group, count, self.config.training.seed)
        made, real = self._made(given, generator, lesson), given.real.images
        recognizer = self.networks["recognizer"]
        if isinstance(recognizer, Recognizer) and recognizer.prepare is not whitened:
            seen = recognizer.prepare(torch.cat([real, made.face]))
        else:
            seen = made.whitened(real, input_dtype(real))
        return Cast(**vars(given), made=made, whitened=seen, lesson=lesson)

    def _made(self, given: Slots, generator: nn.Module | None, lesson: distillation.Lesson | None) -> Made:
        asked = self._source(given.source.images, given.source.positions)
        if generator is not None:
            return self._learned(asked, generator)
        if self.sparring.choice == "random":
            return self.form.random(asked)
        return self._worst(given, asked, lesson)

    def _learned(self, source: Source, generator: nn.Module) -> Made:
        warmup = self.sparring.warmup_images
        return self.form.learned(generator, source, source.positions < warmup if warmup else None)

    def _worst(self, given: Slots, asked: Source, lesson: distillation.Lesson | None) -> Made:
        """Make several random changes of each face, and take the worst for the recognizer in evaluation."""
        drawn = [self.form.random(asked, number) for number in range(self.sparring.candidates)]
        recognizer, head = self.networks["recognizer"], self.networks.get("head")
        self.meet()
        with evaluating(recognizer):
            of_real = recognizer(given.real.images)

            def damage(made: Made) -> Tensor:
                embeddings = torch.cat([of_real, recognizer(made.face)])
                cosines = None if head is None else head(embeddings)
                embedded = separate(given, embeddings, cosines, self.gather)
                return -self.term.each(
                    embedded, lambda: each_loss(self.objective, embedded, given.source, lesson)
                )

            return select(drawn, torch.stack([damage(made) for made in drawn]).argmax(0))

    def _source(self, x: Tensor, positions: Tensor) -> Source:
        governor = self.frozen.get("governor")
        # a copy, as the governor changes its own before backward
        return Source(x, positions, governor.strength.clone() if isinstance(governor, Governor) else None)

    def _embed(self, cast: Cast, whitened: Tensor) -> Embedded:
        recognizer, head = self.networks["recognizer"], self.networks.get("head")
        # a face and its sparring face drop the same features
        with parts(recognizer, len(cast.real.labels)), dropout(self.config, recognizer, cast.positions):
            embeddings = recognizer(whitened, whitened=True)
        cosines = None if head is None else head(embeddings)
        return separate(cast, embeddings, cosines, self.gather)

    def _loss(self, cast: Cast, embedded: Embedded) -> tuple[Tensor, Metrics]:
        if self.added:
            loss, metrics = added_loss(self.objective, self.sparring.weight, embedded)
        else:
            loss, metrics = mixed_loss(self.objective, embedded)
        if cast.lesson is None:
            return loss, metrics
        distance, more = taught_loss(self.objective, cast.lesson, embedded, cast.positions)
        return loss + distance, metrics | more

    def _recognition(self, cast: Cast, embedded: Embedded) -> tuple[Tensor, Metrics]:
        """Return the recognizer's loss; the governor takes note of the outcome."""
        loss, metrics = self._loss(cast, embedded)
        collapse = objectives.mean_pairwise_cosine(embedded.all_real.embeddings.detach())
        metrics |= {"loss": loss.detach(), "embedding_cosine": collapse}
        governor = self.frozen.get("governor")
        if isinstance(governor, Governor):
            metrics["strength"] = governor.strength.clone()
            count, images = len(embedded.all_sparring.labels), len(embedded.all_real.labels)
            accuracy = self.gather(right(embedded).sum()[None])[0].sum() / count
            governor.observe(accuracy, images if self.added else images + count)
        return loss, metrics | success(embedded, added=self.added, paired=self.paired)

    def _penalty(self, made: Made) -> Tensor:
        own = self.sparring
        return made.penalty(own.perturbation_weight, own.mask_weight, own.mask_area)

    def _gradient(self, loss: Tensor, at: Tensor) -> Tensor:
        """Return d loss / d `at`, keeping the graph.

        It is computed at the gradient scaler's scale; if that overflows under fp16, the step is dropped and
        the scale is lowered.
        """
        scale = self.scale(loss.new_ones(()))
        (gradient,) = torch.autograd.grad(loss * scale, at, retain_graph=True)
        return gradient / scale
