"""A recipe as a user would write it: a small recognizer, and a critic that learns in every second step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparface import Config, UserError
from sparface.recipes import (
    FaceBatch,
    Finished,
    Metrics,
    Phase,
    Policy,
    Recipe,
    Role,
    Rule,
    faces,
    number,
)


@dataclass
class ToyConfig:
    """The toy."""

    width: int = number(4, above=0, most=64)
    """Channels."""
    spread: Policy = "log"
    spread_low: float = number(0.0)
    """Embeddings spread less than this are reported."""


class Eye(nn.Module):
    """Faces [B,3,H,W] in [0,1] → unit embeddings [B,8]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 4, stride=4)
        self.norm = nn.BatchNorm2d(width)
        self.out = nn.Linear(16 * width, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(F.relu(self.norm(self.conv(x))), 4)
        return F.normalize(self.out(x.flatten(1)).float(), dim=1)


class Toy(Recipe):
    """`eye` embeds, `board` names, and `critic` guesses whether a face is mirrored."""

    blocks: ClassVar[Mapping[str, type]] = {"toy": ToyConfig}
    identities = 2
    finished: ClassVar[Mapping[Role, Finished]] = {
        "recognizer": Finished("eye", lambda config: Eye(config.block(ToyConfig).width))
    }
    captions: ClassVar[Mapping[str, Mapping[str, str]]] = {"Toys": {"spread": "how far the toys are spread"}}
    pictures: ClassVar[Mapping[str, str]] = {"negative": "a negative of the face"}
    headline = ("loss", "spread")

    def __init__(self, config: Config, identities: int) -> None:
        super().__init__(config, identities)
        self.networks = {
            "eye": Eye(config.block(ToyConfig).width),
            "board": nn.Linear(8, identities),
            "critic": nn.Linear(8, 1),
        }
        self.frozen = {"anchor": nn.Linear(8, 8)}

    @classmethod
    def check(cls, config: Config) -> None:
        if config.size % 4:
            raise UserError(f"size: {config.size} is no multiple of 4")

    @classmethod
    def identity(cls, config: Config) -> dict[str, Any]:
        return {"toy": config.block(ToyConfig).width}

    def learning_rate(self, network: str) -> float:
        return self.config.optimizer.learning_rate * (10 if network == "critic" else 1)

    def rules(self) -> list[Rule]:
        toy = self.config.block(ToyConfig)
        message = "toys are close together: {value:.2f} is under {bound:g}"
        return [Rule("toys_together", "spread", toy.spread, message, below=toy.spread_low)]

    def phases(self) -> list[Phase]:
        return [
            Phase("naming", ("eye", "board"), self._naming),
            Phase("mirror", ("critic",), self._mirror, every=2),
        ]

    def preview(self, batch: FaceBatch) -> dict[str, Tensor]:
        return {"negative": 1 - batch.images / 255}

    def _naming(self, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        embeddings = self.networks["eye"](faces(self.config, batch))
        logits = self.networks["board"](embeddings)
        loss = F.cross_entropy(logits.float(), batch.labels)
        (everyone,) = self.gather(embeddings.detach())
        return loss, {"loss": loss.detach(), "spread": everyone.std(0).mean()}

    def _mirror(self, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        x = faces(self.config, batch)
        with torch.no_grad():
            embeddings = self.networks["eye"](torch.cat([x, x.flip(3)]))
        truth = torch.arange(2, device=x.device).repeat_interleave(len(x))[:, None].float()
        loss = F.binary_cross_entropy_with_logits(self.networks["critic"](embeddings).float(), truth)
        return loss, {"critic_loss": loss.detach()}
