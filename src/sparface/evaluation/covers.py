"""Embeddings of gallery faces as if they were covered, to be compared with covered probes.

A recognizer embeds a face with sunglasses nearer to other faces with sunglasses than to the same face
without. So each gallery face is embedded several times with drawn covers, too, and a probe is compared with
the face as it is and with the mean of each kind of cover.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sparface.errors import UserError
from sparface.evaluation.embed import Image, batches, to_floats
from sparface.evaluation.identification import Floats, unit
from sparface.evaluation.settings import Cover
from sparface.recipes.base import evaluating
from sparface.variation import draw_occluders, occlude
from sparface.variation.wear import wear

DRAWS = 8
"""Covers of a kind whose embeddings are averaged."""


@torch.no_grad()
def embed_covered(
    recognizer: nn.Module, faces: Iterable[Image], covers: Sequence[Cover], *, seed: int = 0
) -> Floats:
    """Embed faces uint8 [H,W,3] as they are, and with drawn covers: [N, 1 + covers, E], means over the draws.

    `sunglasses` and `scarf` are drawn where people wear them, so the faces must be aligned to ArcFace's
    template. `random` is a rectangle at a random place.
    """
    device = next((p.device for p in recognizer.parameters()), torch.device("cpu"))
    found: list[Tensor] = []
    count = 0
    with evaluating(recognizer), torch.autocast(device.type, enabled=False):
        for batch in batches(faces, 64):
            x = to_floats(batch, device)
            positions = torch.arange(count, count + len(x), device=device)
            rows = [_mean(recognizer, x, cover, seed, positions) for cover in covers]
            found.append(torch.stack([recognizer(x).float(), *rows], 1).cpu())
            count += len(x)
    return torch.cat(found).double().numpy() if found else np.empty((0, 1 + len(covers), 0))


def _mean(recognizer: nn.Module, faces: Tensor, cover: Cover, seed: int, positions: Tensor) -> Tensor:
    """The mean embedding [b,E] of several draws."""
    drawn = (_covered(faces, cover, seed, positions * DRAWS + number) for number in range(DRAWS))
    return torch.stack([recognizer(covered).float() for covered in drawn]).mean(0)


def _covered(faces: Tensor, cover: Cover, seed: int, positions: Tensor) -> Tensor:
    if cover == "sunglasses" or cover == "scarf":
        return wear(faces, cover, seed, positions)
    return occlude(faces, draw_occluders(faces, seed, positions))


def templates(embedded: Floats) -> Floats:
    """Turn embeddings [N, 1 + covers, E], as by `embed_covered`, into what probes are compared with, of
    length 1.

    A cover moves all embeddings in the same direction, by which strangers with the same cover are alike. So
    the mean shift over the faces is taken out. (With a single face, what remains is the face as it is.)
    """
    means = embedded.mean(0)
    return unit(embedded - (means - means[0]))


def require_arcface(covers: Sequence[Cover], template: str | None) -> None:
    """Raise `UserError` for covers that need ArcFace's template if a recognizer has another one."""
    worn = [cover for cover in covers if cover in ("sunglasses", "scarf")]
    if worn and template not in (None, "arcface"):
        raise UserError(
            f"--covers: {worn[0]} is drawn on faces aligned to the template arcface; the recognizer's are "
            f"aligned to {template}; align and train with arcface, or use random"
        )
