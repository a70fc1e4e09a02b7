"""Classify faces, such as their expressions; with adversarial examples, made before or in every step."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sparface.attacks.goal import Goal, of_classifier
from sparface.attacks.gradient import FGSM
from sparface.attacks.settings import AttackConfig
from sparface.config import Config, number
from sparface.errors import UserError
from sparface.models.classifier import (
    Classifier,
    ClassifierConfig,
    backbones,
    build_classifier,
    imagenet_weights,
)
from sparface.recipes.base import (
    FaceBatch,
    Finished,
    Metrics,
    Phase,
    Recipe,
    Role,
    evaluating,
    faces,
)

CAPTIONS = {
    "loss": "cross-entropy",
    "accuracy": "accuracy on training batches",
    "adversarial_accuracy": "accuracy on adversarial examples of training batches",
}


@dataclass
class AdversarialConfig:
    """Adversarial examples in training."""

    training: Literal["none", "stored", "on_the_fly", "free"] = "none"
    """`stored`: those of the sets in `data.mix`, made before. `on_the_fly`: each face is joined by its own
    example, made in every step (FGSM; Goodfellow et al. 2015). `free`: each batch is used `replays` times;
    its examples follow the gradients of the updates themselves (Shafahi et al. 2019)."""
    epsilon: float = number(0.01, most=1)
    """With `on_the_fly` and `free`: maximum change of a pixel, in face units [0, 1]."""
    replays: int = number(4, least=1, most=100)
    """With `free`: updates on each batch. For the cost of a plain training, divide its length by them."""


def _build(config: Config) -> Classifier:
    return build_classifier(config.block(ClassifierConfig), config.size)


class ExpressionRecipe(Recipe):
    """One phase that updates the classifier, or one for each replay of a batch."""

    blocks: ClassVar[Mapping[str, type]] = {"classifier": ClassifierConfig, "adversarial": AdversarialConfig}
    label = "expression"
    identities = 2
    finished: ClassVar[Mapping[Role, Finished]] = {"classifier": Finished("classifier", _build)}
    captions: ClassVar[Mapping[str, Mapping[str, str]]] = {"Classifier": CAPTIONS}
    pictures: ClassVar[Mapping[str, str]] = {"face": "face", "adversarial": "adversarial example"}
    headline = ("loss", "accuracy")

    def __init__(self, config: Config, classes: int) -> None:
        super().__init__(config, classes)
        self.adversarial = config.block(AdversarialConfig)
        self.networks = {"classifier": build_classifier(config.block(ClassifierConfig), config.size, classes)}
        self.replayed: deque[Tensor] = deque()
        """With `free`: the examples of this update's batches, which the next replay goes on from."""

    @classmethod
    def check(cls, config: Config) -> None:
        kind = config.block(AdversarialConfig).training
        if kind == "stored" and not config.data.mix:
            raise UserError("data.mix: is empty; give the set of adversarial examples for training: stored")
        if kind == "free" and config.training.strategy == "deepspeed":
            raise UserError("adversarial.training: free is not supported with deepspeed; use ddp or fsdp")
        if config.training.start_from.endswith(".onnx"):
            raise UserError("training.start_from: an ONNX file is for a recognizer; give a run, or weights")

    @classmethod
    def identity(cls, config: Config) -> dict[str, Any]:
        return {"classifier": backbones(config.block(ClassifierConfig))}

    def read_weights(self, source: str) -> Mapping[str, Mapping[str, Tensor]]:
        return {"classifier": imagenet_weights(self.config.block(ClassifierConfig), source)}

    def begin(self, start: Mapping[str, Mapping[str, Tensor]], source: str) -> None:
        """Weights for ImageNet have no head for these classes; it stays random then."""
        own = self.networks["classifier"].state_dict()
        head = {key: value for key, value in own.items() if key.startswith("head.")}
        super().begin({name: head | dict(state) for name, state in start.items()}, source)

    def phases(self) -> list[Phase]:
        if self.adversarial.training == "free":
            replays = range(self.adversarial.replays)
            return [Phase(f"replay {n}", ("classifier",), partial(self._replay, n)) for n in replays]
        inner = ""
        if self.adversarial.training == "on_the_fly":
            inner = "set adversarial.training to free or stored"
        return [Phase("classifier", ("classifier",), self._loss, inner_gradients=inner)]

    def preview(self, batch: FaceBatch) -> dict[str, Tensor]:
        x = faces(self.config, batch)
        if self.adversarial.training != "on_the_fly":
            return {"face": x}
        return {"face": x, "adversarial": self._examples(x, batch)}

    def _loss(self, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        x, labels = faces(self.config, batch), batch.labels
        made = self.adversarial.training == "on_the_fly"
        if made:
            self.meet()
            # each face beside its example, so that BatchNorm's groups have both with any number of processes
            x, labels = (
                torch.stack([x, self._examples(x, batch)], 1).flatten(0, 1),
                labels.repeat_interleave(2),
            )
        logits = self.networks["classifier"](x)
        loss = F.cross_entropy(logits, labels)
        right = (logits.detach().argmax(1) == labels).float().view(-1, 2 if made else 1).mean(0)
        metrics = {"loss": loss.detach(), "accuracy": right[0]}
        return loss, metrics | ({"adversarial_accuracy": right[1]} if made else {})

    def _replay(self, number: int, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        """One update of `free`: the faces in the first replay, then examples that each update improves."""
        x, replays, bound = faces(self.config, batch), self.adversarial.replays, self.adversarial.epsilon
        change = torch.zeros_like(x)
        if number:
            before = self.replayed.popleft()  # batches come in the same order in every phase
            assert before.grad is not None
            change = (before.detach() - x + bound * before.grad.sign()).clamp(-bound, bound)
        moved = (x + change).clamp(0, 1).requires_grad_()
        if number < replays - 1:
            self.replayed.append(moved)
        logits = self.networks["classifier"](moved)
        loss = F.cross_entropy(logits, batch.labels)
        # metrics of the same name are added up over the phases
        metrics = {"loss": loss.detach() / replays}
        if number in (0, replays - 1):
            right = (logits.detach().argmax(1) == batch.labels).float().mean()
            metrics["adversarial_accuracy" if number else "accuracy"] = right
        return loss, metrics

    def _examples(self, x: Tensor, batch: FaceBatch) -> Tensor:
        """FGSM's examples of a batch's faces [b,3,H,W], by the network in evaluation mode."""
        network = self.networks["classifier"]
        attack = FGSM(AttackConfig("fgsm", epsilon=self.adversarial.epsilon).resolved())
        with evaluating(network):
            return attack(Goal(of_classifier(network), batch.labels), x, batch.positions).faces
