"""Settings of evaluations. Imports nothing heavy: the command line reads the fields."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeVar, get_args

from sparface.attacks.settings import USES, AttackConfig, AttackName
from sparface.errors import UserError
from sparface.text import printable

T = TypeVar("T", int, float)
Template = Literal["nearest", "mean"]
Cover = Literal["sunglasses", "scarf", "random"]
MAX_IMAGES, MAX_DRAWS = 1_000, 100


@dataclass(frozen=True)
class IdentifySettings:
    """How galleries are formed and probes compared with them."""

    template: Template = "nearest"
    """Score of a person: of the `nearest` gallery image, or of the `mean` of the images' embeddings."""
    images: int = 0
    """Most gallery images per person; 0: all that the CSV names, or 1."""
    draws: int = 10
    """Number of galleries to draw, if they must be drawn; figures are means over them."""
    unenrolled: float = 0.0
    """Share of the people to leave out of the gallery: strangers that should be rejected."""
    target: float = 0.95
    """Rank-1 accuracy for which to determine the least number of gallery images."""
    covers: str = ""
    """Kinds of covers with which gallery faces are enrolled a second time, separated by commas: `sunglasses`
    and `scarf` are drawn where people wear them (faces must be aligned to ArcFace's template); `random` is a
    rectangle at a random place, the control of the others. A probe is compared with a face as it is, and with
    the mean of 8 draws of each kind."""
    seed: int = 0
    """Seed of the drawn galleries and covers."""

    def validate(self) -> None:
        """Raise `UserError` for the first setting that is not allowed."""
        if self.template not in ("nearest", "mean"):
            raise UserError(f"--template: {self.template} is not allowed; use nearest or mean")
        if kinds(self.covers) and self.template == "mean":
            raise UserError("--covers: are compared one by one; remove --template mean")
        for name, value, low, high in (
            ("images", self.images, 0, MAX_IMAGES),
            ("draws", self.draws, 1, MAX_DRAWS),
            ("unenrolled", self.unenrolled, 0, 1),
            ("target", self.target, 0, 1),
            ("seed", self.seed, 0, 1 << 63),
        ):
            if not low <= value <= high:
                raise UserError(f"--{name}: {value} is not allowed; must be {low:,} to {high:,}")


def kinds(covers: str) -> tuple[Cover, ...]:
    """Split kinds of covers, separated by commas. Raises `UserError` for an unknown or repeated one."""
    found: tuple[Cover, ...] = ()
    for name in filter(None, (part.strip() for part in covers.split(","))):
        known = [cover for cover in get_args(Cover) if cover == name and cover not in found]
        if not known:
            raise UserError(
                f"--covers: {printable(name)} is unknown or repeated; known: {', '.join(get_args(Cover))}"
            )
        found += (known[0],)
    return found


@dataclass(frozen=True)
class RobustnessSettings:
    """Which attacks to try, and how strong."""

    attacks: str = "fgsm,pgd,apgd,pixel"
    """Attacks, separated by commas: `fgsm`, `pgd`, `apgd`, `pixel`, `square`, `trained`."""
    epsilons: str = "0.01,0.02,0.03,0.05,0.1"
    """Bounds of the attacks that have one, separated by commas, for faces in [0, 1]."""
    counts: str = "1,3,5,10,20"
    """Numbers of pixels that `pixel` may change, separated by commas."""
    steps: int | None = None
    """Steps of `pgd` and `apgd`, generations of `pixel`; null: as in `sparface attack`."""
    queries: int = 1000
    """Faces that `square` may try for each face."""
    adaptive: bool = True
    """Whether the attacks know what `--purify` puts before the recognizer, and go through it; if not, they
    are aimed at the recognizer alone."""
    draws: int = 8
    """Random masks of a purifier whose mean score each step of an adaptive attack looks at. 0: the face that
    is the mean over all masks, at the cost of one."""
    gallery: int = 0
    """Photos of each person of `--shards` to enrol; the others are attacked to be named as somebody else.
    0: attack pairs."""
    most: int = 0
    """Most pairs or faces to attack, spread over the list; 0: all."""
    seed: int = 0
    """Seed of all random draws."""

    def names(self) -> tuple[AttackName, ...]:
        """The attacks. Raises `UserError` for an unknown or repeated one."""
        found: tuple[AttackName, ...] = ()
        for text in filter(None, (part.strip() for part in self.attacks.split(","))):
            known = [name for name in get_args(AttackName) if name == text and name not in found]
            if not known:
                every = ", ".join(get_args(AttackName))
                raise UserError(f"--attacks: {printable(text)} is unknown or repeated; known: {every}")
            found += (known[0],)
        if not found:
            raise UserError("--attacks: is empty; name at least one attack")
        return found

    def configs(self) -> list[tuple[AttackConfig, float]]:
        """Every attack with every strength, resolved. Raises `UserError` for what is not allowed."""
        if self.most < 0:
            raise UserError(f"--most: {self.most} is not allowed; must not be negative")
        if not 0 <= self.gallery <= MAX_IMAGES:
            raise UserError(f"--gallery: {self.gallery} is not allowed; must be 0 to {MAX_IMAGES:,}")
        if not 0 <= self.draws <= MAX_DRAWS:
            raise UserError(f"--draws: {self.draws} is not allowed; must be 0 to {MAX_DRAWS}")
        found: list[tuple[AttackConfig, float]] = []
        for name in self.names():
            used = USES[name]
            config = AttackConfig(name, seed=self.seed)
            if "steps" in used:
                config = replace(config, steps=self.steps)
            if "queries" in used:
                config = replace(config, queries=self.queries)
            if "pixels" in used:
                each = [replace(config, pixels=n) for n in _numbers(self.counts, "--counts", int)]
                found += [(one.resolved(), float(one.pixels)) for one in each]
            else:
                each = [replace(config, epsilon=e) for e in _numbers(self.epsilons, "--epsilons", float)]
                found += [(one.resolved(), one.epsilon) for one in each]
        return found


def _numbers(text: str, option: str, kind: type[T]) -> list[T]:
    """Numbers separated by commas, ascending, each once. Raises `UserError` for anything else."""
    try:
        return sorted({kind(part) for part in text.split(",")})  # type: ignore[call-arg]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(
            f"{option}: {printable(text)[:60]} is not allowed; give {what}, separated by commas"
        ) from None
