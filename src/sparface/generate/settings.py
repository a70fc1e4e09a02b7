"""Settings of `sparface generate`. Every field affects the bytes of the set, and nothing else does.

This module imports nothing heavy, as the command line reads the fields before it knows the verb.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from sparface.config import Encoding, VariationKind
from sparface.errors import UserError


@dataclass(frozen=True)
class FilterConfig:
    """Which variants to accept. Rejected ones are drawn again; all filters are off by default."""

    cosine: float | None = None
    """Minimum cosine between a variant and its source, according to the judge; null: no filter."""
    change: float = 0.0
    """Minimum mean |variant − source|, in grey levels (0 … 255); rejects near-copies."""
    mask: float = 0.0
    """Minimum mean of the generator's mask, before the floor; rejects dead masks."""
    attempts: int = 3
    """Number of times a variant is drawn before it is given up."""


@dataclass(frozen=True)
class GenerateConfig:
    """How to make the variants of a face, and how to store them."""

    factor: int = 100
    """Number of variants of each face."""
    form: Literal["trained", "perturbation", "occlusion", "disguise"] = "trained"
    """What is changed. `trained`: as in the run (`sparring.form`, `sparring.choice`), with its generator; the
    others: drawn at random, so the run needs no generator."""
    noise: float = 2.0
    """For a trained perturbation: σ of the normal noise added to the bottleneck, one value per channel; codes
    have a σ of about 1.6."""
    strength_low: float | None = None
    """Smallest bound ε on a perturbation, in [0, 1] face units, or smallest factor on the area of an occluder
    or the size of a disguise's changes; null: half of strength_high."""
    strength_high: float | None = None
    """The largest; each variant's is drawn between the two. null: the ε that the run was trained with, or
    1."""
    saliency_floor: float = 0.0
    """For a trained perturbation: minimum value of the mask, 0 … 1; lower values are raised to it."""
    targeted: float = 0.0
    """For a trained perturbation: share of variants moved towards a face of another identity; each takes as
    long as fifty others."""
    variation: VariationKind = "none"
    """Random changes before the generator, as of `data.variation` in training."""
    originals: float = 0.0
    """Share of the source faces to include unchanged, as variant 0."""
    encoding: Encoding = "png"
    """png and npy are lossless; jpg and webp remove part of the perturbation."""
    quality: int = 95
    """Quality of jpg and webp, 1 … 100."""
    shard_samples: int = 1000
    """Approximate number of variants per shard."""
    batch_size: int = 32
    """Faces per forward. Float results depend on it, so it is part of the set's settings."""
    seed: int = 0
    """Seed of all randomness, together with the source's key, the variant's number and the attempt."""
    filter: FilterConfig = field(default_factory=FilterConfig)

    def resolved(self, epsilon: float) -> GenerateConfig:
        """Replace null strengths, where `epsilon` is the run's (or 1), and validate. Raises `UserError`."""
        high = epsilon if self.strength_high is None else self.strength_high
        low = high / 2 if self.strength_low is None else self.strength_low
        settings = dataclasses.replace(self, strength_low=low, strength_high=high)
        _validate(settings)
        return settings

    @property
    def strengths(self) -> tuple[float, float]:
        """Smallest and largest ε of resolved settings."""
        assert self.strength_low is not None and self.strength_high is not None
        return self.strength_low, self.strength_high

    @property
    def filtered(self) -> bool:
        """Whether any filter is on."""
        return self.filter.cosine is not None or self.filter.change > 0 or self.filter.mask > 0


@dataclass(frozen=True)
class StorageConfig:
    """How attacked faces are stored."""

    targeted: bool = False
    """Make each face match another person, who is drawn, instead of no longer matching its own."""
    encoding: Encoding = "png"
    """png and npy are lossless; jpg and webp remove part of the attack."""
    shard_samples: int = 1000
    """Approximate number of faces per shard."""
    batch_size: int = 32
    """Faces attacked at a time. Float results depend on it, so it is part of the set's settings."""


@dataclass(frozen=True)
class PurifyConfig:
    """How purified faces are made and stored."""

    encoding: Encoding = "png"
    """png and npy are lossless."""
    shard_samples: int = 1000
    """Approximate number of faces per shard."""
    batch_size: int = 32
    """Faces purified at a time. Float results depend on it, so it is part of the set's settings."""
    seed: int = 0
    """Seed of the random masks, together with the face."""

    def validate(self) -> None:
        """Raise `UserError` naming the first invalid option."""
        for name in ("shard_samples", "batch_size"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.seed >= 0, "seed", self.seed, "not negative")


_SHARES = ("strength_low", "strength_high", "saliency_floor", "targeted", "originals", "filter.mask")
_COUNTS = ("factor", "shard_samples", "batch_size", "filter.attempts")


def _validate(settings: GenerateConfig) -> None:
    """Raise `UserError` naming the first invalid option."""
    values: dict[str, Any] = dataclasses.asdict(settings)
    values |= {f"filter.{name}": value for name, value in values.pop("filter").items()}
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name}: {value} is not allowed; must be finite")
    for name in _SHARES:
        _require(0 <= values[name] <= 1, name, values[name], "between 0 and 1")
    for name in _COUNTS:
        _require(values[name] >= 1, name, values[name], "at least 1")
    for name in ("noise", "seed", "filter.change"):
        _require(values[name] >= 0, name, values[name], "not negative")
    low, high = settings.strengths
    _require(low <= high, "strength_low", low, f"at most strength_high ({high})")
    _require(1 <= settings.quality <= 100, "quality", settings.quality, "1 to 100")
    cosine = settings.filter.cosine
    _require(cosine is None or -1 <= cosine <= 1, "filter.cosine", cosine, "between -1 and 1")


def _require(condition: bool, name: str, value: Any, rule: str) -> None:
    if not condition:
        raise UserError(f"--{name}: {value} is not allowed; must be {rule}")
