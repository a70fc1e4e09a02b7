"""Labels in a CSV of photos become labels of the faces."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparface import cli
from sparface.errors import UserError
from sparface.faces import list_photos
from sparface.faces.photos import fingerprint
from sparface.shards import ShardSet

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ckplus(tmp_path: Path) -> Path:
    """Photos in the layout of CK+: a folder per expression, file names that begin with the subject."""
    rng = np.random.default_rng(0)
    for number, (mood, name) in enumerate(
        [("anger", "S010_004_00000017"), ("happy", "S010_002_00000003"), ("happy", "S011_001_00000001")]
    ):
        path = tmp_path / "CKPLUS" / mood / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (48, 48), np.uint8) // (number + 1)).save(path)
    return tmp_path / "CKPLUS"


def table(ckplus: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    out = ckplus / "faces.csv"
    monkeypatch.setattr(sys, "argv", ["ckplus.py", str(ckplus), str(out)])
    runpy.run_path(str(ROOT / "launch" / "ckplus.py"), run_name="__main__")
    return out


def test_ckplus_is_aligned_with_subject_and_expression(ckplus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = ckplus.parent / "set"
    words = ["align", str(table(ckplus, monkeypatch)), str(out), "--already-cropped", "--size=75"]
    assert cli.main([*words, "--workers=1"]) == 0
    found = ShardSet.open(out)
    assert found.manifest.labels == {"expression": {"anger": 1, "happy": 2}}
    assert {face.key: (face.identity, face.meta["expression"]) for face in found.faces()} == {
        "anger_S010_004_00000017": ("S010", "anger"),
        "happy_S010_002_00000003": ("S010", "happy"),
        "happy_S011_001_00000001": ("S011", "happy"),
    }


def test_another_label_is_another_alignment(ckplus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = table(ckplus, monkeypatch)
    before = fingerprint(list_photos(out))
    out.write_text(out.read_text().replace(",anger", ",fury"))
    assert fingerprint(list_photos(out)) != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,identity,box\na.png,p,x\n",
            "faces.csv: the name of the column box has another meaning",
        ),
        ("path,identity,a b\na.png,p,x\n", "faces.csv: the name of the column a b is not 1 to 64 letters"),
        (
            "path,identity,mood\na.png,p,\x07\n",
            "faces.csv, line 2: mood is not 1 to 200 printable",
        ),
        (f"path,identity,mood\na.png,p,{'x' * 201}\n", "line 2: mood is not 1 to 200 printable characters"),
        (
            f"path,identity,{','.join(f'c{n}' for n in range(17))}\na.png,p{',x' * 17}\n",
            "faces.csv: has 17 columns of labels; remove all but 16",
        ),
    ],
)
def test_labels_that_cannot_be_used_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "faces.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        list_photos(tmp_path / "faces.csv")


def test_empty_cells_are_no_labels_and_unnamed_columns_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "faces.csv").write_text(",path,identity,mood,age\n0,a.png,p,sad,\n1,b.png,p,,7\n")
    assert [photo.labels for photo in list_photos(tmp_path / "faces.csv")] == [
        (("mood", "sad"),),
        (("age", "7"),),
    ]
