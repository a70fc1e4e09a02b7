"""What an evaluation under attack is about: pairs of faces, classes, or names from a gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sparface.attacks.goal import Goal, Network, expected, of_classifier, of_gallery, of_templates
from sparface.errors import UserError
from sparface.evaluation.bootstrap import Statistic
from sparface.evaluation.classification import class_of, require_known
from sparface.evaluation.embed import Embedding, PairFaces, embed_faces, to_floats
from sparface.evaluation.identification import draw, unit
from sparface.evaluation.pairs import Pair
from sparface.evaluation.purifiers import draws_of
from sparface.evaluation.recognizers import Opened
from sparface.evaluation.robustness import Subject
from sparface.evaluation.scores import Bools, Floats, Ints
from sparface.evaluation.settings import RobustnessSettings
from sparface.evaluation.verification import embed_pairs, people_of, scored
from sparface.evaluation.weighted import accuracy, mean
from sparface.shards.format import Face
from sparface.shards.set import ShardSet

T = TypeVar("T")


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` items (0: all), spread over the sequence."""
    count = min(most or len(items), len(items))
    return [items[i * len(items) // count] for i in range(count)]


def spread_pairs(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """At most `most` pairs (0: all), spread over those of one person and over those of two."""
    order = sorted(range(len(pairs)), key=lambda place: not pairs[place].same)
    return [pairs[place] for place in sorted(spread(order, most))]


@dataclass(frozen=True)
class Side:
    """A recognizer with its embeddings and thresholds."""

    opened: Opened
    embeddings: dict[str, Embedding]
    thresholds: Floats
    """[N]: the cosine above which the faces of each pair match."""

    @classmethod
    def of(cls, opened: Opened, pairs: Sequence[Pair], faces: PairFaces) -> Side:
        opened.network.requires_grad_(False)
        embeddings = embed_pairs(opened, faces)
        found = scored(pairs, embeddings, opened)
        folds = np.array([pair.fold for pair in pairs])
        distances = found.fold_thresholds[np.searchsorted(np.unique(folds), folds)]
        return cls(opened, embeddings, 1 - distances**2 / 2)

    def goal(
        self, pairs: Sequence[Pair], places: range, device: torch.device, networks: Sequence[Network]
    ) -> Goal:
        """To have some of the pairs judged wrongly by the mean of networks; their second faces are the
        templates."""
        some = pairs[places.start : places.stop]
        templates = torch.from_numpy(np.stack([self.embeddings[pair.second] for pair in some]))[:, None]
        thresholds = torch.from_numpy(self.thresholds[places.start : places.stop]).float()
        labels = torch.tensor([0 if pair.same else 1 for pair in some])
        given = templates.to(device), thresholds.to(device)
        return Goal(expected([of_templates(network, *given) for network in networks]), labels.to(device))


class Attackable(Subject):
    """A subject with what provenance says of it."""

    attacked: str
    """Digest of the network that attacks aim at."""
    about: dict[str, Any]


class AttackedPairs(Attackable):
    """Pairs of faces, of which the first is attacked."""

    def __init__(
        self, pairs: Sequence[Pair], faces: PairFaces, aimed: Opened, judged: Opened, draws: int
    ) -> None:
        """`draws`: of a random purifier before the network that the attacks aim at."""
        self.pairs, self.faces = pairs, faces
        self.judged = Side.of(judged, pairs, faces)
        self.aimed = self.judged if aimed is judged else Side.of(aimed, pairs, faces)
        self.networks = draws_of(aimed.network, draws)
        self.opened, self.shard_set, self.attacked = judged, faces.shard_set, aimed.digest
        self.people, self._first, self._second = people_of(pairs, faces)
        self.count, self.owner = len(pairs), self._first
        self._folds = np.array([pair.fold for pair in pairs])
        self._same = np.array([pair.same for pair in pairs])

    def batch(self, places: range, device: torch.device) -> tuple[Tensor, Goal, Goal]:
        at = [self.faces.places[pair.first] for pair in self.pairs[places.start : places.stop]]
        images = {place: face.image for place, face in self.faces.shard_set.faces_at(at)}
        x = to_floats([images[place] for place in at], device)
        aim = self.aimed.goal(self.pairs, places, device, self.networks)
        return x, aim, self.judged.goal(self.pairs, places, device, [self.opened.network])

    def statistics(self, right: Bools, before: Bools) -> dict[str, Statistic]:
        found = {"accuracy": accuracy(right, self._folds, self._first, self._second)}
        for kind, of in (("dodging", self._same & before), ("impersonation", ~self._same & before)):
            if of.any():
                together = np.zeros(int(of.sum()), np.int64)
                found[kind] = accuracy(~right[of], together, self._first[of], self._second[of])
        return found


class AttackedFaces(Attackable):
    """Some faces of a set, each of which is named or classified."""

    places: Sequence[int]

    def faces(self, places: range, device: torch.device) -> tuple[list[Face], Tensor]:
        """Some of the faces, and as floats [b,3,H,W]."""
        found = [face for _, face in self.shard_set.faces_at(self.places[places.start : places.stop])]
        return found, to_floats([face.image for face in found], device)

    def statistics(self, right: Bools, before: Bools) -> dict[str, Statistic]:
        found = {"accuracy": mean(right, self.owner, len(self.people))}
        if before.any():
            found["success"] = mean(~right[before], self.owner[before], len(self.people))
        return found


class AttackedClasses(AttackedFaces):
    """Faces of a set with the classes that a classifier has learned."""

    def __init__(
        self,
        shard_set: ShardSet,
        classes: Sequence[str],
        most: int,
        aimed: Opened,
        judged: Opened,
        draws: int,
    ) -> None:
        """At most `most` faces (0: all), spread over the set. Raises `UserError` if the set lacks labels or
        has other classes."""
        assert judged.trained is not None
        self.column, self.classes = judged.trained.recipe.label, list(classes)
        require_known(shard_set, self.column, classes)
        self.opened, self.shard_set, self.attacked = judged, shard_set, aimed.digest
        self.networks = draws_of(aimed.network, draws)
        self.places = spread(range(len(shard_set)), most)
        self.people, self.count = shard_set.identities, len(self.places)
        self.about = {"faces": self.count}
        self.owner = shard_set.owners[self.places]

    def batch(self, places: range, device: torch.device) -> tuple[Tensor, Goal, Goal]:
        found, x = self.faces(places, device)
        names = [class_of(face, self.column, self.classes, self.shard_set) for face in found]
        labels = torch.tensor([self.classes.index(name) for name in names], device=device)
        aim = expected([of_classifier(network) for network in self.networks])
        return x, Goal(aim, labels), Goal(of_classifier(self.opened.network), labels)


class AttackedProbes(AttackedFaces):
    """Faces of a set that are compared with a gallery of the others. An answer is right if nobody's score is
    as high as that of the face's own person (rank 1)."""

    def __init__(
        self, shard_set: ShardSet, settings: RobustnessSettings, aimed: Opened, judged: Opened
    ) -> None:
        """Enrols `settings.gallery` faces of each person. Raises `UserError` if there is nobody else to be
        taken for, or no face is left."""
        self.opened, self.shard_set, self.attacked = judged, shard_set, aimed.digest
        self.people, owners = shard_set.identities, shard_set.owners
        pool = np.arange(len(owners), dtype=np.int64)
        drawn = draw(owners, pool, settings.gallery, settings.seed, hold_out=True)[-1]
        if len(self.people) < 2 or not len(drawn.probes):
            raise UserError(
                f"{shard_set.folder}: has no probes; --gallery needs two people with two faces each"
            )
        self.places = spread(drawn.probes.tolist(), settings.most)
        self.count, self.owner = len(self.places), owners[self.places]
        self.about = {"faces": self.count, "enrolled": len(drawn.enrolled)}
        self.networks = draws_of(aimed.network, settings.draws)
        self._person = torch.from_numpy(owners[drawn.enrolled])
        self.judged = self._templates(judged, drawn.enrolled)
        self.aimed = self.judged if aimed is judged else self._templates(aimed, drawn.enrolled)

    def _templates(self, opened: Opened, enrolled: Ints) -> Tensor:
        opened.network.requires_grad_(False)
        return torch.from_numpy(
            unit(embed_faces(opened.network, self.shard_set, enrolled).embeddings)
        ).float()

    def batch(self, places: range, device: torch.device) -> tuple[Tensor, Goal, Goal]:
        _, x = self.faces(places, device)
        labels = torch.from_numpy(self.owner[places.start : places.stop]).to(device)
        person = self._person.to(device)
        aim, judge = (
            expected([of_gallery(network, templates.to(device), person) for network in networks])
            for networks, templates in ((self.networks, self.aimed), ([self.opened.network], self.judged))
        )
        return x, Goal(aim, labels), Goal(judge, labels)
