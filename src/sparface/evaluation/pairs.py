"""Verification pairs: pairs files of LFW, CALFW and CPLFW, and pairs drawn from a shard set.

A pair refers to its two faces by *reference*. In LFW's files this is the photo's source without suffix,
`NAME/NAME_0001`, in CALFW's and CPLFW's its file name without suffix, `NAME_0001`. In a drawn pair it is the
face's index in the shard set, `#123`, so drawing needs only the manifest and opens no shard.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sparface.errors import UserError
from sparface.files import read_bounded

if TYPE_CHECKING:
    from sparface.shards.set import ShardSet

FOLDS = 10
MAX_BYTES = 1 << 28
_LISTED = re.compile(r"(?P<name>[^/\\\s]+_[0-9]{1,9})\.[A-Za-z]{3,4}[ \t]+(?P<label>[0-9]{1,3})\s*")

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pair:
    """Two faces, whether they have the same identity, and the fold of the pair."""

    first: str
    second: str
    same: bool
    fold: int


def references(pairs: Iterable[Pair]) -> list[str]:
    """Return the references of all faces in the pairs, without duplicates, in order of appearance."""
    return list(dict.fromkeys(reference for pair in pairs for reference in (pair.first, pair.second)))


def read_pairs(path: Path) -> list[Pair]:
    """Read a pairs file in the layout of LFW's View 1 or View 2, or of CALFW and CPLFW.

    View 1 (`pairsDevTest.txt`) starts with a line `N`, followed by N lines `name a b` (same) and N lines
    `name1 a name2 b` (different). As it has no folds, each kind is split into ten blocks in file order
    (fewer if N is smaller), so every fold has as many same as different pairs. View 2 (`pairs.txt`) starts
    with `folds n`; each fold has n same, then n different lines. Fields are separated by tabs.

    The file of CALFW or CPLFW has two lines `NAME_0001.jpg label` for each pair, where the label of both is 0
    for a different pair and another number for a same pair. Folds are made as for View 1.

    Raises `UserError` naming file and line for any other layout or a wrong number of lines.
    """
    lines = _lines(path)
    if _LISTED.fullmatch(lines[0]):
        return _listed_pairs(path, lines)
    folds, count = _header(path, lines[0])
    expected = 1 + 2 * (folds or 1) * count
    if len(lines) != expected:
        raise UserError(
            f"{path}:{min(len(lines), expected + 1)}: the first line announces {expected - 1} pairs, "
            f"but the file has {len(lines) - 1}; check that it is complete"
        )
    return [_pair(path, number, lines[number - 1], folds, count) for number in range(2, expected + 1)]


def _lines(path: Path) -> list[str]:
    try:
        lines = read_bounded(path, MAX_BYTES).decode().splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such pairs file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable pairs file ({error})") from None
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise UserError(f"{path}: the pairs file is empty")
    return lines


def _header(path: Path, line: str) -> tuple[int | None, int]:
    """Parse the first line into (folds or None, pairs of one kind per fold)."""
    numbers = [_positive(field) for field in line.split("\t")]
    if len(numbers) == 1 and numbers[0]:
        return None, numbers[0]
    if len(numbers) == 2 and numbers[0] and numbers[1]:
        return numbers[0], numbers[1]
    raise UserError(f"{path}:1: expected 'N' (View 1) or 'folds<tab>n' (View 2), found {line[:60]!r}")


def _pair(path: Path, number: int, line: str, folds: int | None, count: int) -> Pair:
    """Parse the pair on the given line (1-based)."""
    fold, place = divmod(number - 2, 2 * count)
    if folds is None:
        fold = (place % count) * min(FOLDS, count) // count
    fields = line.split("\t")
    same = place < count
    if len(fields) != (3 if same else 4):
        layout = "name<tab>a<tab>b" if same else "name1<tab>a<tab>name2<tab>b"
        raise UserError(f"{path}:{number}: expected {layout!r}, found {line[:80]!r}")
    other = fields[0] if same else fields[2]
    first = _reference(path, number, fields[0], fields[1])
    second = _reference(path, number, other, fields[-1])
    if first == second:
        raise UserError(f"{path}:{number}: a photo is paired with itself ({first})")
    if not same and fields[0] == other:
        raise UserError(f"{path}:{number}: a 'different' pair has the same identity twice ({other})")
    return Pair(first, second, same, fold)


def _listed_pairs(path: Path, lines: Sequence[str]) -> list[Pair]:
    """Parse two lines per pair, each with a file name and a label."""
    if len(lines) % 2:
        raise UserError(f"{path}:{len(lines)}: the last pair has only one line; check that it is complete")
    found = [_listed(path, number, line) for number, line in enumerate(lines, 1)]
    kinds: list[list[tuple[str, str]]] = [[], []]
    for number, ((first, label), (second, other)) in enumerate(zip(found[::2], found[1::2], strict=True)):
        if label != other:
            raise UserError(f"{path}:{2 * number + 2}: the labels of a pair differ ({label} and {other})")
        if first == second:
            raise UserError(f"{path}:{2 * number + 2}: a photo is paired with itself ({first})")
        kinds[label == 0].append((first, second))
    return [
        Pair(first, second, same, place * min(FOLDS, len(kind)) // len(kind))
        for kind, same in zip(kinds, (True, False), strict=True)
        for place, (first, second) in enumerate(kind)
    ]


def _listed(path: Path, number: int, line: str) -> tuple[str, int]:
    """Parse `NAME_0001.jpg label` into a reference and the label."""
    match = _LISTED.fullmatch(line)
    if match is None:
        raise UserError(f"{path}:{number}: expected 'NAME_0001.jpg label', found {line[:80]!r}")
    return match["name"], int(match["label"])


def identity_of(reference: str) -> str:
    """The person whom a photo's reference names: NAME in `NAME/NAME_0001` and `NAME_0001`; "" in `#123`."""
    if reference.startswith("#"):
        return ""
    folder, slash, name = reference.rpartition("/")
    return folder if slash else name.rpartition("_")[0] or name


def _reference(path: Path, number: int, name: str, image: str) -> str:
    index = _positive(image)
    if not name or name in (".", "..") or "/" in name or "\\" in name or index is None:
        raise UserError(
            f"{path}:{number}: expected a name and a photo number from 1, found {name!r}, {image!r}"
        )
    return f"{name}/{name}_{index:04d}"


def _positive(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0 else None


def draw_pairs(shard_set: ShardSet, count: int, seed: int) -> list[Pair]:
    """Draw `count` pairs from a shard set, half same and half different, in ten folds of equal size.

    A pure function of the manifest, count and seed. No pair is drawn twice. With at least twenty identities
    the folds have disjoint identities; with fewer, pairs are dealt to folds and identities recur. Same pairs
    are spread over the identities as evenly as their faces allow. A set that is too small gives fewer pairs,
    still half of each kind.

    Raises `UserError` if the set has only one identity, or no identity with two faces.
    """
    identities = list(_members(shard_set).values())
    if len(identities) < 2 or max(len(faces) for faces in identities) < 2:
        raise UserError(
            f"{shard_set.folder}: no pairs to draw; use a set of two or more identities, one with two faces"
        )
    if count < 2:
        raise UserError(f"{shard_set.folder}: cannot draw {count} pairs; draw at least 2")
    rng = np.random.default_rng(seed)
    folds = _disjoint_folds(identities, rng)
    if folds is None:
        return _deal(_draw(identities, count // 2, rng))
    share = max(1, count // 2 // FOLDS)
    drawn = [_draw(members, share, rng) for members in folds]
    return [pair for fold, found in enumerate(drawn) for pair in _to_pairs(found, [fold] * len(found))]


def _members(shard_set: ShardSet) -> dict[int, Ints]:
    """Return label → indices of its faces in the order of `shard_set.faces()`."""
    places: dict[int, list[Ints]] = {}
    start = 0
    for shard in shard_set.manifest.shards:
        for label, count in shard.runs:
            places.setdefault(label, []).append(np.arange(start, start + count, dtype=np.int64))
            start += count
    return {label: np.concatenate(parts) for label, parts in places.items()}


Drawn = list[tuple[int, int, bool]]
"""(index, index, same) per pair, alternating between same and different."""


def _disjoint_folds(identities: list[Ints], rng: np.random.Generator) -> list[list[Ints]] | None:
    """Deal the identities into ten folds; returns None if a fold could not make both kinds of pairs.

    Identities with two or more faces are dealt first, so every fold gets some.
    """
    order = sorted(rng.permutation(len(identities)).tolist(), key=lambda i: len(identities[i]) < 2)
    folds = [[identities[i] for i in order[fold::FOLDS]] for fold in range(FOLDS)]
    sound = all(len(members) >= 2 and max(map(len, members)) >= 2 for members in folds)
    return folds if sound else None


def _draw(identities: list[Ints], share: int, rng: np.random.Generator) -> Drawn:
    """Draw `share` pairs of each kind from these identities, fewer of both if one kind runs out."""
    same = _draw_same(identities, share, rng)
    different = _draw_different(identities, len(same), rng)
    both = zip(same[: len(different)], different, strict=True)
    return [pair for s, d in both for pair in ((*s, True), (*d, False))]


def _draw_same(identities: list[Ints], want: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    limits = np.array([len(faces) * (len(faces) - 1) // 2 for faces in identities])
    pairs = []
    for index, quota in enumerate(_quotas(limits, want, rng)):
        if quota:
            ranks = rng.choice(int(limits[index]), size=int(quota), replace=False)
            pairs += [_unrank(int(rank), identities[index]) for rank in ranks]
    return [pairs[i] for i in rng.permutation(len(pairs))]


def _quotas(limits: Ints, want: int, rng: np.random.Generator) -> Ints:
    """Number of pairs to draw from each identity: one each per round, up to `want` in total or the limits."""
    quotas = np.zeros_like(limits)
    while (missing := want - int(quotas.sum())) > 0 and (quotas < limits).any():
        quotas[rng.permutation(np.flatnonzero(quotas < limits))[:missing]] += 1
    return quotas


def _unrank(rank: int, faces: Ints) -> tuple[int, int]:
    """Return the rank-th pair (i < j) of the faces, in the order (0,1), (0,2), (1,2), (0,3), …"""
    j = int((1 + np.sqrt(1 + 8 * rank)) / 2)
    while j * (j - 1) // 2 > rank:
        j -= 1
    while j * (j + 1) // 2 <= rank:
        j += 1
    return int(faces[rank - j * (j - 1) // 2]), int(faces[j])


def _draw_different(identities: list[Ints], want: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Draw `want` distinct pairs: two identities uniformly, then a face of each."""
    sizes = [len(faces) for faces in identities]
    population = (sum(sizes) ** 2 - sum(size * size for size in sizes)) // 2
    if population <= 2 * want:
        everything = list(_all_different(identities))
        return [everything[i] for i in rng.permutation(len(everything))[:want]]
    found: dict[tuple[int, int], None] = {}
    while len(found) < want:
        one, other = sorted(rng.choice(len(identities), size=2, replace=False).tolist())
        found[int(rng.choice(identities[one])), int(rng.choice(identities[other]))] = None
    return list(found)


def _all_different(identities: list[Ints]) -> Iterator[tuple[int, int]]:
    for index, faces in enumerate(identities):
        for other in identities[index + 1 :]:
            yield from ((int(a), int(b)) for a in faces for b in other)


def _deal(drawn: Drawn) -> list[Pair]:
    """Deal pairs into ten folds (fewer if there are too few pairs), a same and a different one at a time."""
    folds = min(FOLDS, len(drawn) // 2)
    return _to_pairs(drawn, [index // 2 * folds // (len(drawn) // 2) for index in range(len(drawn))])


def _to_pairs(drawn: Drawn, folds: Sequence[int]) -> list[Pair]:
    return [Pair(f"#{a}", f"#{b}", same, fold) for (a, b, same), fold in zip(drawn, folds, strict=True)]
