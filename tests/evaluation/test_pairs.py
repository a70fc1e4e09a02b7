"""Pairs files in both LFW layouts, and pairs drawn from shard sets."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparface.errors import UserError
from sparface.evaluation.pairs import Pair, draw_pairs, identity_of, read_pairs, references

VIEW_1 = "2\nAnn\t1\t2\nBob\t3\t4\nAnn\t1\tBob\t2\nCid\t10\tBob\t1\n"
VIEW_2 = "2\t1\nAnn\t1\t2\nAnn\t1\tBob\t2\nBob\t1\t2\nCid\t1\tBob\t2\n"
LISTED = """\
Ann_Lee_0001.jpg 1
Ann_Lee_0002.jpg 1
Bob_0001.jpg 2
Bob_0002.jpg 2
Ann_Lee_0001.jpg 0
Bob_0002.jpg 0
Cid_0001.jpg 0
Bob_0002.jpg 0
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "pairs.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_view_1(tmp_path: Path) -> None:
    assert read_pairs(write(tmp_path, VIEW_1)) == [
        Pair("Ann/Ann_0001", "Ann/Ann_0002", True, 0),
        Pair("Bob/Bob_0003", "Bob/Bob_0004", True, 1),
        Pair("Ann/Ann_0001", "Bob/Bob_0002", False, 0),
        Pair("Cid/Cid_0010", "Bob/Bob_0001", False, 1),
    ]


def test_view_2(tmp_path: Path) -> None:
    pairs = read_pairs(write(tmp_path, VIEW_2))
    assert [(pair.same, pair.fold) for pair in pairs] == [(True, 0), (False, 0), (True, 1), (False, 1)]
    assert pairs[3] == Pair("Cid/Cid_0001", "Bob/Bob_0002", False, 1)


def test_references_come_once(tmp_path: Path) -> None:
    found = references(read_pairs(write(tmp_path, VIEW_2)))
    assert len(found) == len(set(found)) == 5


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("", "", "empty"),
        ("a b\n", ":1:", "expected 'N'"),
        ("0\n", ":1:", "expected 'N'"),
        (VIEW_1[: VIEW_1.index("Cid")], ":4:", "check that it is complete"),
        (VIEW_1 + "Ann\t1\tBob\t7\n", ":6:", "announces 4 pairs"),
        (VIEW_1.replace("Bob\t3\t4", "Bob 3 4"), ":3:", "expected 'name<tab>a<tab>b'"),
        (VIEW_1.replace("Ann\t1\tBob\t2", "Ann\t1\t2"), ":4:", "expected 'name1<tab>a<tab>name2<tab>b'"),
        (VIEW_1.replace("3\t4", "3\tx"), ":3:", "photo number"),
        (VIEW_1.replace("3\t4", "0\t4"), ":3:", "photo number"),
        (VIEW_1.replace("3\t4", "3\t3"), ":3:", "paired with itself"),
        (VIEW_1.replace("Cid", "Bob"), ":5:", "same identity"),
        (VIEW_1.replace("Cid", "../Cid"), ":5:", "expected a name"),
        (LISTED + "Cid_0002.jpg 0\n", ":9:", "only one line"),
        (LISTED.replace("Bob_0001.jpg 2", "Bob_0001.jpg 0"), ":4:", "labels of a pair differ (0 and 2)"),
        (LISTED.replace("Lee_0002", "Lee_0001"), ":2:", "paired with itself"),
        (LISTED.replace("Cid_0001.jpg 0", "../Cid_0001.jpg 0"), ":7:", "expected 'NAME_0001.jpg label'"),
        (LISTED.replace("Cid_0001.jpg 0", "Cid_0001.jpg"), ":7:", "expected 'NAME_0001.jpg label'"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, text: str, place: str, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as error:
        read_pairs(path)
    assert str(error.value).startswith(f"{path}{place}") and words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_lists_of_calfw_and_cplfw(tmp_path: Path) -> None:
    """Two lines per pair; CALFW numbers the same pairs by fold, CPLFW labels them 1."""
    expected = [
        Pair("Ann_Lee_0001", "Ann_Lee_0002", True, 0),
        Pair("Bob_0001", "Bob_0002", True, 1),
        Pair("Ann_Lee_0001", "Bob_0002", False, 0),
        Pair("Cid_0001", "Bob_0002", False, 1),
    ]
    for text in (LISTED, LISTED.replace("jpg 2", "jpg 1"), LISTED.replace("\n", "\r\n")):
        assert read_pairs(write(tmp_path, text)) == expected
    names = ["Ann_Lee_0001", "Ann_Lee/Ann_Lee_0001", "#12"]
    assert [identity_of(name) for name in names] == ["Ann_Lee", "Ann_Lee", ""]


def test_lists_of_six_thousand_pairs_have_ten_folds(tmp_path: Path) -> None:
    lines = [f"P{n // 2}_{1 + n % 2:04d}.jpg {n < 6000:d}" for n in range(12000)]
    pairs = read_pairs(write(tmp_path, "\n".join(lines)))
    count = Counter((pair.fold, pair.same) for pair in pairs)
    assert len(count) == 20 and set(count.values()) == {300}


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such pairs file"):
        read_pairs(tmp_path / "none.txt")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match="not a readable pairs file"):
        read_pairs(tmp_path / "photo.jpg")


def test_lfw_development_pairs() -> None:
    data = Path(os.environ.get("SPARFACE_DATA", Path(__file__).parents[3] / "shared" / "data"))
    path = data / "lfw" / "pairsDevTest.txt"
    if not path.is_file():
        pytest.skip(f"{path} is missing (set SPARFACE_DATA)")
    pairs = read_pairs(path)
    assert Counter((pair.fold, pair.same) for pair in pairs) == {
        (fold, same): 50 for fold in range(10) for same in (True, False)
    }
    photos = data / "lfw" / "images"
    assert all((photos / f"{reference}.jpg").is_file() for reference in references(pairs))


def shard_set(sizes: list[int], runs_per_shard: int = 3) -> Any:
    """What `draw_pairs` reads of a shard set: labels and counts, in runs over several shards."""
    runs = list(enumerate(sizes))
    shards = [SimpleNamespace(runs=runs[i : i + runs_per_shard]) for i in range(0, len(runs), runs_per_shard)]
    return SimpleNamespace(folder=Path("set"), manifest=SimpleNamespace(shards=shards))


def owners(sizes: list[int]) -> list[int]:
    return [label for label, size in enumerate(sizes) for _ in range(size)]


@given(st.lists(st.integers(1, 6), min_size=2, max_size=40), st.integers(2, 120), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_drawn_pairs_are_true_balanced_and_distinct(sizes: list[int], count: int, seed: int) -> None:
    if max(sizes) < 2:
        sizes[0] = 2
    pairs = draw_pairs(shard_set(sizes), count, seed)
    owner = owners(sizes)
    for pair in pairs:
        first, second = (owner[int(reference[1:])] for reference in (pair.first, pair.second))
        assert (first == second) is pair.same
        assert pair.first != pair.second
    assert len({frozenset((pair.first, pair.second)) for pair in pairs}) == len(pairs)
    for fold in {pair.fold for pair in pairs}:
        kinds = Counter(pair.same for pair in pairs if pair.fold == fold)
        assert kinds[True] == kinds[False] > 0
    assert pairs and len(pairs) <= max(count, 20)
    assert pairs == draw_pairs(shard_set(sizes), count, seed)


def test_enough_identities_make_disjoint_folds() -> None:
    sizes = [5] * 43
    pairs = draw_pairs(shard_set(sizes), 400, seed=1)
    owner = owners(sizes)
    folds: dict[int, set[int]] = {}
    for pair in pairs:
        for reference in (pair.first, pair.second):
            folds.setdefault(owner[int(reference[1:])], set()).add(pair.fold)
    assert len(pairs) == 400
    assert all(len(where) == 1 for where in folds.values()) and len(folds) == 43
    assert pairs != draw_pairs(shard_set(sizes), 400, seed=2)


def test_same_pairs_are_spread_over_the_identities() -> None:
    sizes = [200] + [4] * 9
    pairs = draw_pairs(shard_set(sizes), 100, seed=0)
    owner = owners(sizes)
    per_identity = Counter(owner[int(pair.first[1:])] for pair in pairs if pair.same)
    assert set(per_identity.values()) == {5}


@pytest.mark.parametrize("sizes", [[9], [1, 1, 1]])
def test_a_set_without_pairs_is_refused(sizes: list[int]) -> None:
    with pytest.raises(UserError, match="no pairs to draw"):
        draw_pairs(shard_set(sizes), 10, seed=0)
