"""The stream's order as a pure function, over random run-length structures, without tars."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparface.shards.order import Group, LaneOrder, Runs, deal, permutation

PERMUTATION = [3, 7, 9, 5, 1, 8, 6, 4, 0, 2]
ORDER = [
    [(0, 0), (0, 1)],
    [(0, 3), (0, 3)],
    [(1, 3), (1, 1)],
    [(1, 2), (1, 0)],
    [(0, 1), (0, 2)],
    [(2, 1), (2, 0)],
    [(2, 2), (2, 3)],
]
STRUCTURES = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=9)
"""Shards → runs → samples."""


def lane_order(counts: list[list[int]], shards: list[int], images: int, seed: int, window: int) -> LaneOrder:
    runs = Runs.of([np.array([[label, n] for label, n in enumerate(shard)], np.int32) for shard in counts])
    lane = np.array(shards)
    return LaneOrder(runs, lane, images_per_identity=images, seed=seed, window=window, lane=0)


def epoch(order: LaneOrder, number: int) -> list[Group]:
    places = [order.locate(number * order.epoch_groups + place) for place in range(order.epoch_groups)]
    return [order.window(epoch, window).group(place) for epoch, window, place in places]


def faces_of(group: Group, images: int) -> list[tuple[int, int]]:
    return [(group.shard, group.samples[(group.first + k) % len(group.samples)]) for k in range(images)]


def all_faces(counts: list[list[int]]) -> set[tuple[int, int]]:
    return {(shard, sample) for shard, runs in enumerate(counts) for sample in range(sum(runs))}


@settings(max_examples=60, deadline=None)
@given(STRUCTURES, st.integers(1, 5), st.integers(0, 2**40), st.integers(1, 5), st.integers(0, 3))
def test_an_epoch_covers_all_faces_and_repeats_only_to_fill(
    counts: list[list[int]], images: int, seed: int, window: int, number: int
) -> None:
    groups = epoch(lane_order(counts, list(range(len(counts))), images, seed, window), number)
    seen = Counter(face for group in groups for face in faces_of(group, images))
    assert set(seen) == all_faces(counts)
    assert len(groups) == sum(-(-n // images) for runs in counts for n in runs)
    for shard, runs in enumerate(counts):
        bounds = np.cumsum([0, *runs])
        for label, n in enumerate(runs):
            times = [seen[shard, sample] for sample in range(bounds[label], bounds[label + 1])]
            assert max(times) - min(times) <= 1
            assert sum(times) == -(-n // images) * images


@settings(max_examples=40, deadline=None)
@given(STRUCTURES, st.integers(1, 4), st.integers(0, 99))
def test_groups_are_of_one_run_and_carry_its_label(counts: list[list[int]], images: int, seed: int) -> None:
    for group in epoch(lane_order(counts, list(range(len(counts))), images, seed, 3), 0):
        bounds = np.cumsum([0, *counts[group.shard]])
        run = range(bounds[group.label], bounds[group.label + 1])
        assert sorted(group.samples) == list(run)


@settings(max_examples=40, deadline=None)
@given(STRUCTURES, st.integers(1, 4), st.integers(0, 99), st.integers(1, 4))
def test_order_is_pure_and_windows_hold_their_shards_only(
    counts: list[list[int]], images: int, seed: int, window: int
) -> None:
    shards = list(range(len(counts)))
    first, second = (lane_order(counts, shards, images, seed, window) for _ in range(2))
    epoch(first, 3)  # what was asked before must not matter
    assert epoch(first, 1) == epoch(second, 1)
    visited: list[set[int]] = []
    for place in range(first.epoch_groups):
        _, number, index = first.locate(first.epoch_groups + place)
        visited += [set() for _ in range(number + 1 - len(visited))]
        visited[number].add(first.window(1, number).group(index).shard)
    assert sorted(shard for shards in visited for shard in shards) == shards
    assert all(len(shards) == window for shards in visited[:-1])


def test_epochs_seeds_and_lanes_differ_and_mix() -> None:
    counts = [[3] * 20 for _ in range(8)]
    order = lane_order(counts, list(range(8)), 3, 0, 4)
    orders = [epoch(order, 0), epoch(order, 1), epoch(lane_order(counts, list(range(8)), 3, 1, 4), 0)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    shards = [group.shard for group in orders[0][:80]]
    assert sum(a != b for a, b in itertools.pairwise(shards)) > 40  # four shards, well mixed
    inside = {(group.shard, *group.samples) for number in range(6) for group in epoch(order, number)}
    assert len(inside) > 8 * 20 * 3  # runs are permuted anew each epoch


def test_order_is_the_same_for_ever() -> None:
    """A run must resume under another NumPy: these numbers may never change."""
    assert permutation((7, 0, 3, 1), 10).tolist() == PERMUTATION
    groups = epoch(lane_order([[3, 1], [4], [2, 2]], [0, 1, 2], 2, 5, 2), 2)
    assert [faces_of(group, 2) for group in groups] == ORDER


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.data())
def test_lanes_share_all_shards_evenly(samples: list[int], data: st.DataObject) -> None:
    lanes = data.draw(st.integers(1, len(samples)))
    hands = deal(np.array(samples), lanes)
    assert sorted(np.concatenate(hands).tolist()) == list(range(len(samples)))
    totals = [sum(samples[shard] for shard in hand) for hand in hands]
    assert max(totals) - min(totals) <= max(samples)
    assert all(len(hand) for hand in hands)


@pytest.mark.parametrize("images", [1, 2, 4])
def test_one_image_identity_gives_copies(images: int) -> None:
    (group,) = epoch(lane_order([[1]], [0], images, 0, 4), 0)
    assert faces_of(group, images) == [(0, 0)] * images
