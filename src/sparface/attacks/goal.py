"""What an attack wants of a network: that a face's scores no longer name its class, or name another one.

A classifier's scores are its logits. A recognizer gets scores by comparing a face with enrolled ones: the
cosine to each person, and the threshold under which nobody is recognized. So dodging is an attack on the
person's own class, and impersonation one that is targeted at another's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sparface.errors import UserError

Network = Callable[[Tensor], Tensor]
Scores = Callable[[Tensor, Tensor], Tensor]
"""Faces [n,3,H,W] in [0,1], and int64 [n], which of the goal's faces each is → scores [n,C]."""
Loss = Literal["cross_entropy", "margin"]


@dataclass(frozen=True)
class Goal:
    """What to achieve with N faces."""

    scores: Scores
    labels: Tensor
    """int64 [N]: the class of each face; the class to reach if `targeted`."""
    targeted: bool = False

    def part(self, kept: Tensor) -> Goal:
        """The goal for some of the faces, `kept` int64 [n], in this order."""
        return Goal(lambda faces, rows: self.scores(faces, kept[rows]), self.labels[kept], self.targeted)

    def margin(self, scores: Tensor, rows: Tensor) -> Tensor:
        """How far [n] each face is from the goal: the score of its class above the best other one. Negative
        if the goal is reached."""
        labels = self.labels[rows][:, None]
        own = scores.gather(1, labels)[:, 0]
        others = scores.scatter(1, labels, -torch.inf).amax(1)
        return others - own if self.targeted else own - others

    def loss(self, scores: Tensor, rows: Tensor, kind: Loss) -> Tensor:
        """The loss [n] that an attack maximises."""
        if kind == "margin":
            return -self.margin(scores, rows)
        value = F.cross_entropy(scores, self.labels[rows], reduction="none")
        return -value if self.targeted else value

    @torch.no_grad()
    def judge(self, faces: Tensor, rows: Tensor, batch_size: int = 64) -> Tensor:
        """The margins [n] of faces, computed in batches."""
        parts = zip(torch.split(faces, batch_size), torch.split(rows, batch_size), strict=True)
        return torch.cat([self.margin(self.scores(some, which).float(), which) for some, which in parts])

    def ascend(self, faces: Tensor, rows: Tensor, kind: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of the loss at faces [n,3,H,W], and loss and margin [n].

        Raises `UserError` if the network gives no gradient.
        """
        x = faces.detach().requires_grad_()
        with torch.enable_grad():
            scores = self.scores(x, rows)
            loss = self.loss(scores, rows, kind)
            if not loss.requires_grad:
                raise UserError(
                    "--attack: needs gradients, which this network does not give; use square or pixel"
                )
            (slope,) = torch.autograd.grad(loss.sum(), x)
        # a face without contrast has no gradient through whitening
        return slope.nan_to_num(0, 0, 0), loss.detach(), self.margin(scores.detach(), rows)


def of_classifier(classifier: Network) -> Scores:
    """The logits of a classifier."""

    def scores(faces: Tensor, rows: Tensor) -> Tensor:
        logits: Tensor = classifier(faces)
        return logits

    return scores


def of_templates(recognizer: Network, templates: Tensor, thresholds: Tensor) -> Scores:
    """Scores [n,2] for verification: the largest cosine to a face's templates, and its threshold.

    `templates` [N,G,E] has length 1 along E; `thresholds` is [N]. Class 0 is "the same person", class 1
    "somebody else".
    """

    def scores(faces: Tensor, rows: Tensor) -> Tensor:
        cosines = torch.einsum("ne,nge->ng", recognizer(faces), templates[rows]).amax(1)
        return torch.stack([cosines, thresholds[rows].to(cosines)], 1)

    return scores


def of_gallery(recognizer: Network, gallery: Tensor, person: Tensor, threshold: float = -1.0) -> Scores:
    """Scores [n, people + 1] for identification: the largest cosine to each person's templates, and the
    threshold for "nobody".

    `gallery` [M,E] has length 1 along E; `person` int64 [M] has every number from 0 to people − 1.
    """
    people = int(person.max()) + 1

    def scores(faces: Tensor, rows: Tensor) -> Tensor:
        cosines = recognizer(faces) @ gallery.T
        best: Tensor = cosines.new_full((len(faces), people + 1), threshold)
        return best.scatter_reduce(1, person.expand(len(faces), -1), cosines, "amax", include_self=False)

    return scores


def expected(draws: Sequence[Scores]) -> Scores:
    """The mean of the scores by several draws of a randomised defence (expectation over transformation,
    Athalye et al. 2018). Its gradient takes the memory of one draw."""
    if len(draws) == 1:
        return draws[0]

    def mean(faces: Tensor, rows: Tensor) -> Tensor:
        if not faces.requires_grad:
            return torch.stack([scores(faces, rows) for scores in draws]).mean(0)
        return torch.stack([checkpoint(scores, faces, rows, use_reentrant=False) for scores in draws]).mean(0)

    return mean
