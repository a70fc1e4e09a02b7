"""Stream batches of faces from a shard set: elastic, exactly resumable, with a single number as state.

Batch t of the infinite stream contains the same faces in the same order for any number of ranks and workers.
It consists of groups of K faces from one run. A run of n faces forms ceil(n / K) groups; the last one wraps
around to the start of the run, so an identity with a single image forms a group of K copies of it. Groups can
be interleaved, so that the faces of a part of a batch are of more people.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from sparface.errors import UserError
from sparface.shards.codec import BrokenImage, decode_into, room
from sparface.shards.format import parse_sidecar
from sparface.shards.index import ShardFile
from sparface.shards.labels import IDENTITY
from sparface.shards.order import Group, LaneOrder, Runs, Window, deal, fitting_lanes, parts_of
from sparface.shards.set import ShardSet

MIN_BAD = 10
"""Number of broken faces that a worker must find before it checks `max_bad_share`."""


@dataclass
class Batch:
    """A batch of faces."""

    images: Tensor
    """uint8 [b, 3, H, W] RGB, channels-last in memory (as decoded)."""
    labels: Tensor
    """int64 [b]: the identity, or another label, of each face."""
    keys: list[str]
    positions: Tensor
    """int64 [b]: position of each face in the infinite stream; randomness per face is derived from it."""
    bad: list[str] = field(default_factory=list)
    """Broken samples that were replaced, as "SHARD: sample KEY reason"."""

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Batch:
        """The batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; called by DataLoader."""
        return self._map(torch.Tensor.pin_memory)

    def first(self, count: int) -> Batch:
        """The first `count` faces, or all if there are fewer."""
        return replace(self._map(lambda tensor: tensor[:count]), keys=self.keys[:count])

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self, images=change(self.images), labels=change(self.labels), positions=change(self.positions)
        )


class Room(Protocol):
    """Returns memory for decoded faces, uint8 [*shape] with any content; see `codec.room`."""

    def __call__(self, *shape: int) -> NDArray[np.uint8]: ...


class FaceStream(IterableDataset[Batch]):
    """One rank's part of the infinite stream of a shard set, starting at `images_seen`."""

    epoch_images: int
    """Images in one pass over the set: number of groups × K."""

    def __init__(
        self,
        shard_set: ShardSet,
        *,
        identities_per_batch: int,
        images_per_identity: int,
        interleave: int = 1,
        seed: int,
        window: int = 4,
        lanes: int = 1,
        images_seen: int = 0,
        rank: int = 0,
        world_size: int = 1,
        on_bad_sample: Literal["fail", "skip"] = "fail",
        max_bad_share: float = 0.01,
        label: str = IDENTITY,
    ) -> None:
        """A batch has P = `identities_per_batch` groups in total over all ranks, of K = `images_per_identity`
        faces each. Every `interleave` groups in a row are interleaved: their first faces come first, then
        their second faces, and so on. With `lanes=0`, the number of lanes is chosen automatically. `label`
        says what the labels of a batch number: the classes of this label (`ShardSet.classes`).

        Raises `UserError` if a setting is out of range, faces of the set lack the label, P is not divisible
        by the world size, the lanes and `interleave`, `images_seen` is not divisible by P × K, or there are
        fewer shards than lanes.
        """
        super().__init__()
        self.shard_set = shard_set
        self.identities_per_batch, self.images_per_identity = identities_per_batch, images_per_identity
        self.interleave = interleave
        self.seed, self.window, self.lanes, self.images_seen = seed, window, lanes, images_seen
        self.rank, self.world_size = rank, world_size
        self.on_bad_sample, self.max_bad_share = on_bad_sample, max_bad_share
        self.label = label
        classes = [] if label == IDENTITY else shard_set.classes(label)
        self.numbers = {name: number for number, name in enumerate(classes)}
        self._check()
        infos = shard_set.manifest.shards
        self.lanes = lanes = lanes or fitting_lanes(identities_per_batch, len(infos), window)
        runs = Runs.of([info.runs for info in infos])
        hands = deal(np.array([info.samples for info in infos]), lanes)
        self._orders = [
            LaneOrder(
                runs, hand, images_per_identity=images_per_identity, seed=seed, window=window, lane=lane
            )
            for lane, hand in enumerate(hands)
        ]
        self.epoch_images = sum(order.epoch_groups for order in self._orders) * images_per_identity

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's part of each batch; in one of n workers, of every n-th batch."""
        return self.decoded(room)

    def decoded(self, memory: Room) -> Iterator[Batch]:
        """The batches of `__iter__`, each decoded into its own `memory`."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        batch = self.images_seen // (self.identities_per_batch * self.images_per_identity) + worker
        reader = _Reader(self, self._orders)
        try:
            while True:
                yield reader.read(batch, memory)
                batch += workers
        finally:
            reader.close()

    def _check(self) -> None:
        groups, images = self.identities_per_batch, self.images_per_identity
        _require(groups >= 1, f"data.identities_per_batch: {groups} is not allowed; must be at least 1")
        _require(images >= 1, f"data.images_per_identity: {images} is not allowed; must be at least 1")
        _require(self.window >= 1, f"data.window: {self.window} is not allowed; must be at least 1")
        _require(self.seed >= 0, f"training.seed: {self.seed} is not allowed; must not be negative")
        _require(
            0 <= self.rank < self.world_size,
            f"rank: {self.rank} is not allowed; must be 0 to {self.world_size - 1}",
        )
        _require(
            groups % self.world_size == 0,
            f"data.identities_per_batch: {groups} is not allowed; must be a multiple of the "
            f"{self.world_size} processes",
        )
        _require(
            self.interleave >= 1 and groups % self.interleave == 0,
            f"interleave: {self.interleave} is not allowed; must divide data.identities_per_batch ({groups})",
        )
        _require(
            self.lanes == 0 or (self.lanes > 0 and groups % self.lanes == 0),
            f"data.lanes: {self.lanes} is not allowed; must divide data.identities_per_batch ({groups})",
        )
        shards = len(self.shard_set.manifest.shards)
        _require(
            self.lanes <= shards,
            f"data.lanes: {self.lanes} is not allowed; {self.shard_set.folder} has only {shards} shards",
        )
        _require(
            self.images_seen >= 0 and self.images_seen % (groups * images) == 0,
            f"images seen: {self.images_seen} is not a multiple of the batch of {groups} x {images}; "
            "resume with the original batch size",
        )


class _Lane:
    """The current window of one lane, with its open shards."""

    def __init__(self, shard_set: ShardSet, order: LaneOrder) -> None:
        self._shard_set, self._order = shard_set, order
        self._at: tuple[int, int] | None = None
        self._window: Window
        self._open: dict[int, ShardFile] = {}

    def group(self, number: int) -> Group:
        """The lane's `number`-th group. Moving to another window closes the open shards."""
        epoch, window, place = self._order.locate(number)
        if self._at != (epoch, window):
            self.close()
            self._window = self._order.window(epoch, window)
            self._at = (epoch, window)
            if self._shard_set.remote:
                ahead = self._order.shards(epoch, window + 1).tolist()
                threading.Thread(target=self._fetch, args=(ahead,), daemon=True).start()
        return self._window.group(place)

    def _fetch(self, shards: list[int]) -> None:
        """Prefetch the shards of the next window; an error is raised again when they are needed."""
        with contextlib.suppress(UserError):
            for number in shards:
                self._shard_set.fetch(number)

    def shard(self, number: int) -> ShardFile:
        if number not in self._open:
            self._open[number] = self._shard_set.shard(number)
        return self._open[number]

    def close(self) -> None:
        for shard in self._open.values():
            shard.close()
        self._open.clear()


class _Reader:
    """Reads and decodes one rank's batches, and counts broken faces."""

    def __init__(self, stream: FaceStream, orders: list[LaneOrder]) -> None:
        self._stream = stream
        self._lanes = [_Lane(stream.shard_set, order) for order in orders]
        groups, faces = stream.identities_per_batch, stream.images_per_identity
        count = groups * faces // stream.world_size
        self._rows = range(stream.rank * count, (stream.rank + 1) * count)
        self._parts = list(parts_of(self._rows, faces, stream.interleave))
        self._seen = self._bad = 0

    def close(self) -> None:
        for lane in self._lanes:
            lane.close()

    def read(self, batch: int, memory: Room) -> Batch:
        """Read this rank's part of batch number `batch`, and decode it into `memory`."""
        count = len(self._rows)
        images = memory(count, *self._stream.shard_set.manifest.size, 3)
        labels, keys, bad = [0] * count, [""] * count, list[str]()
        for part in self._parts:
            lane, group = self._group(batch, part.group)
            found = self._faces(lane.shard(group.shard), group, part.faces, images[part.rows], bad)
            keys[part.rows] = [key for key, _ in found]
            labels[part.rows] = [label for _, label in found]
        start = batch * count * self._stream.world_size + self._rows.start
        positions = torch.arange(start, start + count)
        return Batch(torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor(labels), keys, positions, bad)

    def _group(self, batch: int, place: int) -> tuple[_Lane, Group]:
        """The lane and group at a place in a batch; each lane fills an equal, contiguous part of it."""
        per_lane = self._stream.identities_per_batch // self._stream.lanes
        lane = self._lanes[place // per_lane]
        return lane, lane.group(batch * per_lane + place % per_lane)

    def _faces(
        self, shard: ShardFile, group: Group, faces: range, out: NDArray[np.uint8], bad: list[str]
    ) -> list[tuple[str, int]]:
        """Decode these faces of a group into `out` [n, H, W, 3]; a shorter run repeats its faces. Returns the
        key and the label of each."""
        different = min(len(out), len(group.samples))
        found = [self._face(shard, group, face, out[row], bad) for row, face in enumerate(faces[:different])]
        for row in range(different, len(out)):  # copied rather than decoded again
            out[row] = out[row - different]
            found.append(found[row - different])
        return found

    def _face(
        self, shard: ShardFile, group: Group, face: int, out: NDArray[np.uint8], bad: list[str]
    ) -> tuple[str, int]:
        """Decode a face of a group into `out`, or the next intact one of its run. Returns key and label."""
        self._seen += 1
        for step in range(len(group.samples)):
            sample = group.samples[(group.first + face + step) % len(group.samples)]
            try:
                decode_into(shard.image(sample), self._stream.shard_set.manifest.encoding, out)
                return shard.key(sample), self._label(shard, group, sample)
            except BrokenImage as error:
                message = f"{shard.path}: sample {shard.key(sample)} {error}"
            if self._stream.on_bad_sample == "fail":
                raise UserError(f"{message}; write the shard set again or set data.on_bad_sample: skip")
            bad.append(message)
            if step == 0:
                self._count_bad(message)
        raise UserError(f"{message}, and all other faces of its run are broken; write the shard set again")

    def _label(self, shard: ShardFile, group: Group, sample: int) -> int:
        if (name := self._stream.label) == IDENTITY:
            return group.label
        try:
            return self._stream.numbers[parse_sidecar(shard.sidecar(sample))[3][name]]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{shard.path}: sample {shard.key(sample)} has no {name} that the manifest lists; "
                "write the shard set again"
            ) from None

    def _count_bad(self, message: str) -> None:
        self._bad += 1
        limit = self._stream.max_bad_share
        if self._bad >= MIN_BAD and self._bad > limit * self._seen:
            raise UserError(
                f"{message}; {self._bad} of {self._seen} faces were broken, more than "
                f"data.max_bad_share ({limit}); write the shard set again"
            )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)
