"""Quality of the faces that a generator makes from noise, during its training."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sparface.errors import UserError
from sparface.evaluation.embed import Sample, embed, embed_faces
from sparface.evaluation.identification import unit
from sparface.evaluation.manifold import NEIGHBOURS, precision_and_recall
from sparface.evaluation.quality import frechet
from sparface.evaluation.recognizers import open_recognizer, usable_device
from sparface.models.noise_gan import draw_noise
from sparface.recipes import Role
from sparface.recipes.base import evaluating
from sparface.shards.set import ShardSet

FACES = 1_000
"""Faces of the training set that are compared, spread evenly over it, and as many made ones."""
NOISE_STREAM = 37
"""Stream of `sparface.randomness`."""
_AT_ONCE = 64


class MadeFacesValidator:
    """Compares made faces of the people of a set with their photos, by a judge's embeddings.

    The noise is the same at every call, so figures of one run can be compared. They depend on the number of
    faces: `evaluate quality` measures more.
    """

    role: Role = "generator"

    def __init__(self, judge: str, shard_set: ShardSet, classes: Mapping[str, int], latent: int) -> None:
        """`classes` maps the set's people to the generator's labels; `latent` is the length of its noise.

        Raises `UserError` if the judge cannot be opened, or the set is too small.
        """
        if len(shard_set) <= NEIGHBOURS:
            raise UserError(f"{shard_set.folder}: has too few faces for validation.judge; leave it empty")
        self.shard_set, self.classes, self.latent = shard_set, classes, latent
        self.judge = open_recognizer(Path(judge), usable_device()).network

    @cached_property
    def photos(self) -> Sample:
        """The photos that are compared, embedded at the first call."""
        spread = np.linspace(0, len(self.shard_set) - 1, min(FACES, len(self.shard_set)))
        return embed_faces(self.judge, self.shard_set, np.unique(spread.round().astype(np.int64)).tolist())

    def __call__(self, generator: nn.Module) -> dict[str, float]:
        """Return `frechet`, `precision` and `recall` (see `evaluate_quality`); all NaN if pixels are not
        finite."""
        photos, faces = unit(self.photos.embeddings), self._made(generator)
        if not faces.isfinite().all():
            return dict.fromkeys(("frechet", "precision", "recall"), float("nan"))
        pixels = (faces * 255).round().byte().permute(0, 2, 3, 1).numpy()
        embedded = embed(self.judge, enumerate(pixels))
        made = unit(np.stack(list(embedded.values())).astype(np.float64))
        precise, recalled = precision_and_recall(photos, made)
        return {
            "frechet": frechet(made, photos, np.ones(len(made))),
            "precision": float(precise.mean()),
            "recall": float(recalled.mean()),
        }

    def _made(self, generator: nn.Module) -> Tensor:
        """One face [N,3,H,W] on the CPU for each photo, of the same person."""
        device = next(parameter.device for parameter in generator.parameters())
        labels = torch.tensor([self.classes[self.photos.people[number]] for number in self.photos.identity])
        made = []
        with evaluating(generator):
            for first in range(0, len(labels), _AT_ONCE):
                own = labels[first : first + _AT_ONCE].to(device)
                places = torch.arange(first, first + len(own), device=device)
                noise = draw_noise(self.latent, 0, places, NOISE_STREAM)
                made.append(generator(noise, own).float().cpu())
        return torch.cat(made)
