"""Settings and captions of the sparring recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparface.config import number
from sparface.sparring.forms import FormName
from sparface.sparring.terms import Attack

SPARRING_CAPTIONS = {
    "sparring_triplet": "triplet loss, sparring faces",
    "sparring_cross_entropy": "cross-entropy, sparring faces",
    "sparring_arcface": "ArcFace loss, sparring faces",
    "sparring_accuracy": "accuracy, sparring faces",
    "unrecognized": "share of sparring faces that are nearest to somebody else's real face",
    "distance": "cosine distance of sparring faces to real faces of the same person",
    "excess": "how much further they are from these than these from each other",
}
GENERATOR_CAPTIONS = {
    "generator_loss": "total loss of the generator",
    "attack": "attack term",
    "perturbation_norm": "Frobenius norm of the change",
    "perturbation_mean": "mean change of a pixel, in [0, 1] face units",
    "mask_mean": "mask area, or covered area",
    "disguise_size": "mean size of a disguise's parameters (1: all at their bounds)",
    "foresight": "share of the damage's variance that the generator predicts",
    "places": "spread of the places that are covered (1: all equally often)",
    "strength": "strength of the changes, set by the governor",
    "shift": "shift of the embedding (cosine distance)",
    "fooled": "share of faces whose sparring faces are no longer recognized",
}


@dataclass
class SparringConfig:
    """How the recognizer trains against changed faces, and who changes them."""

    form: FormName = "perturbation"
    """What is changed. `perturbation`: every pixel, by at most generator.epsilon. `occlusion`: a part of the
    face is covered by a textured rectangle. `disguise`: the face is moved, warped, lit and coloured, within
    the bounds of data.variation: strong."""
    choice: Literal["learned", "random", "worst"] = "learned"
    """Who chooses the change. `learned`: a generator that trains against the recognizer. `random`: chance,
    within the same bounds; the control of the other two. `worst`: the worst of `candidates` random changes
    for the recognizer."""
    candidates: int = number(4, least=2, most=64)
    """With `worst`: how many changes are tried for each face."""
    slots: Literal["replace", "add"] = "replace"
    """`replace`: sparring faces take the place of real ones, so the recognizer sees as many images as without
    sparring. `add`: each face gets a sparring face in addition, as in the paper."""
    share: float = number(0.5, above=0, most=1)
    """With `replace`: share of the faces that are replaced, in every images_per_identity faces in a row,
    rounded to whole faces; at least one of each kind."""
    weight: float = number(1.0)
    """With `add`: weight of the recognizer's losses on sparring faces, relative to real faces (1)."""
    warmup_images: int = number(0)
    """Images before the generator's choice is used; until then, changes are random."""
    band_low: float = number(0.0, most=1)
    """The strength of changes falls while accuracy on sparring faces is below this. 0 and 1 (band_high):
    full strength at all times. The accuracy is that of the identity head, or else the share of faces that
    are nearest to a real face of the same person in the batch."""
    band_high: float = number(1.0, most=1)
    """The strength rises again while accuracy on sparring faces is above this."""
    attack: Attack = "untargeted"
    """The aim of the generator, and what makes a candidate the worst. `untargeted`: make a face nearer to
    another identity in the batch than to its own. `targeted`: match one fixed other identity (needs
    cross_entropy or arcface). `zero_sum`: maximise the recognizer's loss."""
    attack_weight: float = number(1.0)
    """Weight of the attack term."""
    perturbation_weight: float = number(0.0)
    """With the form `perturbation`: weight of the Frobenius norm of the change, before faces are clipped to
    [0, 1]. generator.epsilon bounds the change in any case. Once the recognizer has learned to ignore the
    changes, a weight makes them vanish."""
    mask_area: float = number(0.3, most=1)
    """With the form `perturbation`: share of the face that the mask may cover on average at no cost."""
    mask_weight: float = number(1.0)
    """With the form `perturbation`: weight of the mean mask area above mask_area."""
    generator_learning_rate: float = number(2e-3)
    """The generator's learning rate; the generator has to keep up with the recognizer."""
    update: Literal["alternating", "shared"] = "shared"
    """`alternating` runs two recognizer forwards, as in the paper; `shared` uses one for both networks, as
    does the form `occlusion` in any case."""
    batchnorm: Literal["shared", "split"] = "split"
    """`split` keeps separate BatchNorm statistics for sparring faces (AdvProp)."""


def governed(sparring: SparringConfig) -> bool:
    """Whether a governor adjusts the strength of the changes."""
    return sparring.band_low > 0 or sparring.band_high < 1
