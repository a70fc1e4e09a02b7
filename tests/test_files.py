"""Where results cannot be written is said before the work for them is done."""

from __future__ import annotations

import re
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from made_sets import write_run
from sparface.cli import main
from sparface.config import Config
from sparface.errors import UserError
from sparface.files import require_writable, write_whole, writing_aside


def test_a_file_that_can_be_written_is_not_made(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "report.html")
    (tmp_path / "old.json").write_text("old")
    require_writable(tmp_path / "old.json")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old.json", "old")]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; name a file"):
        require_writable(tmp_path)
    (tmp_path / "file").touch()
    for nowhere in (tmp_path / "file" / "x.json", Path("/proc/nowhere/x.json")):
        with pytest.raises(OSError) as refused:
            require_writable(nowhere)
        assert refused.value.filename == str(nowhere)


@pytest.mark.parametrize("nowhere", [".", "/proc/nowhere/x.json"])
def test_an_evaluation_that_cannot_be_kept_does_not_begin(
    tiny: Callable[..., Config], faces: Path, tmp_path: Path, nowhere: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", tiny())
    words = ["evaluate", "verification", "--checkpoint", str(run), "--shards", str(faces), "--json", nowhere]
    assert main(words) in (1, 2)
    assert nowhere in capsys.readouterr().err
    assert not (run / "evaluations").exists()


@pytest.mark.parametrize(
    "words", [["compare", "no-run", "--out", "."], ["shards", "sheet", "no-set", "--out", "."]]
)
def test_the_output_is_looked_at_before_the_inputs(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert "is a folder; name a file" in capsys.readouterr().err


def test_a_full_disk_leaves_a_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    write_whole(file, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match=re.escape(str(file))):
            write_whole(file, bytes(100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == [file.name] and file.read_bytes() == b"old"


def test_what_fails_while_it_is_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writing_aside(tmp_path / "new" / "shard.tar") as file:
        file.write(b"half of it")
        raise KeyboardInterrupt
    assert not list((tmp_path / "new").iterdir())


def test_of_two_that_must_not_replace_each_other_the_first_wins(tmp_path: Path) -> None:
    for data in (b"first", b"second"):
        write_whole(tmp_path / "settings.json", data, replace=False)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]
