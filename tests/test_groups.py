"""Groups for BatchNorm: their number on each process, and which numbers of processes are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparface.config import Config, DataConfig, TrainingConfig
from sparface.errors import UserError
from sparface.groups import batchnorm_groups, interleaved, require_whole_groups


@pytest.mark.parametrize(
    "batch, wanted, processes, groups",
    [
        ((8, 4), 16, 1, 2),
        ((8, 4), 16, 2, 1),
        ((16, 3), 16, 1, 4),
        ((16, 3), 16, 4, 1),
        ((4, 20), 16, 2, 2),
        ((7, 4), 16, 1, 1),  # a batch of 28 rather than groups of 4
        ((10, 4), 16, 2, 1),  # of 20 rather than of 8
    ],
)
def test_a_batch_is_divided_into_groups_of_whole_identities(
    batch: tuple[int, int], wanted: int, processes: int, groups: int
) -> None:
    assert batchnorm_groups(grouped(*batch, wanted), processes) == groups


@pytest.mark.parametrize(
    "batch, wanted, together",
    [
        ((16, 3), 12, 16),
        ((48, 2), 12, 12),
        ((64, 4), 16, 16),
        ((8, 4), 16, 8),  # two faces of each person in a group
        ((64, 1), 16, 16),
    ],
)
def test_as_many_identities_are_interleaved_as_a_group_has_faces(
    batch: tuple[int, int], wanted: int, together: int
) -> None:
    config = grouped(*batch, wanted)
    assert interleaved(config) == together
    assert interleaved(replace(config, training=TrainingConfig(batchnorm="synced"))) == 1


def test_processes_without_whole_groups_are_refused_with_the_numbers_that_fit() -> None:
    fitting = "use 1 or 2, groups of 4 or 8 faces, or another data.identities_per_batch, or "
    fitting += "training.batchnorm: synced"
    with pytest.raises(UserError, match=f"group: 4 processes get no whole groups of 16 faces; {fitting}"):
        batchnorm_groups(grouped(8, 4, 16), 4)
    mixed = grouped(16, 1, 16)
    mixed.data.mix = {"made": 4}  # 12 and 4 faces: groups of 4
    assert batchnorm_groups(mixed, 1) == 4
    with pytest.raises(UserError, match=r"2 processes get .* of 4 faces; use 1, groups of 2 faces, or"):
        batchnorm_groups(mixed, 2)


def grouped(identities: int, images: int, wanted: int) -> Config:
    data = DataConfig(identities_per_batch=identities, images_per_identity=images)
    return Config(data=data, training=TrainingConfig(batchnorm="ghost", batchnorm_group=wanted))


def test_of_several_numbers_of_processes_those_that_do_not_fit_are_named() -> None:
    """A job on 1 to 4 nodes of 2 processes; groups of 8 identities."""
    config = grouped(48, 2, 16)
    with pytest.raises(UserError, match=r"4 or 8 processes .* use 1 or 2 or 3 or 6, groups of 2 or 4 faces"):
        require_whole_groups(config, range(2, 9, 2))
    require_whole_groups(config, [2, 6])
    with pytest.raises(UserError, match=r"2 or 3 or 4 or 5 processes .* faces; use 1, or another"):
        require_whole_groups(grouped(8, 2, 16), range(1, 10**9))
