"""What `sparface generate` makes. Every field decides the bytes of the set, and nothing else does.

Imports nothing heavy: the command line reads the fields before it knows which verb is asked for.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from sparface.errors import UserError


@dataclass(frozen=True)
class FilterConfig:
    """Which variants may stay. A rejected one is drawn again; all filters are off unless set."""

    cosine: float | None = None
    """Least cosine, by the judge, between a variant and its source; null: not asked."""
    change: float = 0.0
    """Least mean |variant − source|, in grey levels of 255: a near-copy teaches nothing."""
    mask: float = 0.0
    """Least mean of the generator's own mask, before the floor: below it, the mask is dead."""
    attempts: int = 3
    """How often a variant is drawn before it is given up."""


@dataclass(frozen=True)
class GenerateConfig:
    """The variants of a face, and how they are stored."""

    factor: int = 100
    """Variants of each face."""
    noise: float = 2.0
    """σ of the normal shift of the bottleneck, one number a channel; codes have a deviation of about 1.6."""
    strength_low: float | None = None
    """Weakest bound ε on the perturbation, in [0, 1] face units; null: half of strength_high."""
    strength_high: float | None = None
    """Strongest ε; each variant's is drawn between the two. null: the one that the run was trained with."""
    saliency_floor: float = 0.0
    """The mask is raised to at least this, 0 … 1."""
    targeted: float = 0.0
    """Share of the variants that are moved towards another identity's face; each takes as long as fifty."""
    variation: Literal["none", "classic"] = "none"
    """`classic`: mirror, shift, scale, rotation, light and occlusion before the generator."""
    originals: float = 0.0
    """Share of the source faces that go in themselves, as variant 0."""
    encoding: Literal["png", "jpg", "webp"] = "png"
    """png is lossless; jpg and webp are lossy and take some of the perturbation away."""
    quality: int = 95
    """Of jpg and webp, 1 … 100."""
    shard_samples: int = 1000
    """Variants a shard, about."""
    batch_size: int = 32
    """Faces in one forward; a float result depends on it, so that it belongs to the set."""
    seed: int = 0
    """Everything random is drawn from this, the source's key, the variant's number and the attempt."""
    filter: FilterConfig = field(default_factory=FilterConfig)

    def resolved(self, epsilon: float) -> GenerateConfig:
        """With the strengths that null stands for, `epsilon` being the run's; validated."""
        high = epsilon if self.strength_high is None else self.strength_high
        low = high / 2 if self.strength_low is None else self.strength_low
        settings = dataclasses.replace(self, strength_low=low, strength_high=high)
        _validate(settings)
        return settings

    @property
    def strengths(self) -> tuple[float, float]:
        """The weakest and the strongest ε of resolved settings."""
        assert self.strength_low is not None and self.strength_high is not None
        return self.strength_low, self.strength_high

    @property
    def filtered(self) -> bool:
        """Whether anything can be rejected."""
        return self.filter.cosine is not None or self.filter.change > 0 or self.filter.mask > 0


_SHARES = ("strength_low", "strength_high", "saliency_floor", "targeted", "originals", "filter.mask")
_COUNTS = ("factor", "shard_samples", "batch_size", "filter.attempts")


def _validate(settings: GenerateConfig) -> None:
    """Raise `UserError` naming the first option that can't work."""
    values: dict[str, Any] = dataclasses.asdict(settings)
    values |= {f"filter.{name}": value for name, value in values.pop("filter").items()}
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name}: {value} is not a finite number")
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
