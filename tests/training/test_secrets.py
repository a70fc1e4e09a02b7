"""Logins and commands that a user types are in no file of a run, and none that a file names are run."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from listening import listening
from sparface import cli
from sparface.cluster.folder import JobFolder
from tiny_config import TINY

pytestmark = pytest.mark.timeout(600)
PASSWORD, TOKEN, COMMAND, SERVER = "hunter%402", "t0ken", "p1pe", "s3cret@/x"
TRACES = ["hunter", "t0ken", "p1pe", "s3cret", "@/x"]
OPTIONS = [f"--{key}={value}" for key, value in (TINY | {"schedule.images": 40}).items()]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def served(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The faces at an address with a login and a token."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(faces)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://me:{PASSWORD}@127.0.0.1:{server.server_port}/{{}}?token={TOKEN}"
    server.shutdown()
    server.server_close()


def traces(folder: Path) -> list[tuple[str, str]]:
    """Which secrets are in which files."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [(path.name, word) for path in files for word in TRACES if word.encode() in path.read_bytes()]


def test_no_file_of_a_run_holds_a_login_or_a_command(
    served: str,
    faces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "runs" / "run"
    command = f"pipe:cat {faces}/{{}} # {COMMAND}"
    typed = [f"--data.shards={served}", f'--data.mix={{"{command}": 1}}', f"--validation.shards={command}"]
    tracked = ["--tracking.enabled=true", f"--tracking.uri=http://me:{SERVER}@127.0.0.1:9"]
    assert cli.main(["train", "--config", "smoke", *OPTIONS, *typed, *tracked, f"--out={run}"]) == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert cli.main(["sync", str(run)]) == 0
    assert (tmp_path / "mlflow.db").is_file() and (run / "checkpoints").is_dir()
    assert traces(tmp_path) == []
    said = "".join(capfd.readouterr())
    assert [word for word in TRACES if word in said] == []

    again = ["train", "--config", str(run / "config.yaml"), "--tracking.enabled=false", f"--out={run}"]
    assert cli.main(again) == 2
    assert "data.shards: a configuration file cannot name an address" in capfd.readouterr().err
    assert cli.main([*again, *typed, "--schedule.images=80"]) == 0
    assert "resuming at 40 of 80 images" in capfd.readouterr().out
    assert traces(tmp_path) == []


def test_an_address_that_refuses_is_named_without_its_login(
    served: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nowhere = served.replace("/{}", "/nowhere/{}")
    assert (
        cli.main(
            ["train", "--config", "smoke", *OPTIONS, f"--data.shards={nowhere}", f"--out={tmp_path}/run"]
        )
        == 2
    )
    said = capfd.readouterr().err
    assert "/nowhere/manifest.json?…: cannot be read" in said
    assert [word for word in TRACES if word in said] == []


@pytest.mark.parametrize("key", ["data.shards", "data.mix", "validation.shards"])
def test_a_command_that_a_file_names_is_not_run(
    key: str, faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    owned = tmp_path / "owned"
    section, _, name = key.partition(".")
    shards = f"pipe:touch {owned}; cat {faces}/{{}}"
    value = f"{{'{shards}': 1}}" if name == "mix" else f"'{shards}'"
    (tmp_path / "given.yaml").write_text(f"{section}: {{{name}: {value}}}\n")
    rest = [option for option in OPTIONS if not option.startswith(f"--{key}=")]
    words = [*rest, *([] if key == "data.shards" else [f"--data.shards={faces}"]), f"--out={tmp_path}/run"]
    given = str(tmp_path / "given.yaml")
    assert cli.main(["train", "--config", given, *words]) == 2
    assert f"{key}: a configuration file cannot name a command" in capfd.readouterr().err
    assert cli.main(["submit", "--cluster", "debug", "train", "--config", given, *words]) == 2
    assert not owned.exists()


@pytest.mark.parametrize("key", ["data.shards", "data.mix", "validation.shards"])
def test_an_address_that_a_file_names_is_not_called(
    key: str, faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    section, _, name = key.partition(".")
    with listening() as (address, received):
        value = f"{{{address}/x: 1}}" if name == "mix" else f"{address}/x"
        (tmp_path / "given.yaml").write_text(f"{section}: {{{name}: {value}}}\n")
        rest = [option for option in OPTIONS if not option.startswith(f"--{key}=")]
        words = [
            *rest,
            *([] if key == "data.shards" else [f"--data.shards={faces}"]),
            f"--out={tmp_path}/run",
        ]
        assert cli.main(["train", "--config", str(tmp_path / "given.yaml"), *words]) == 2
    assert f"{key}: a configuration file cannot name an address" in capfd.readouterr().err
    assert received == []


def test_the_record_of_a_job_holds_no_login(
    served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "--config", "smoke", *OPTIONS, f"--data.shards={served}", "--out=run"]
    assert cli.main(["submit", "--cluster", "debug", *words]) == 0
    (folder,) = JobFolder.all(tmp_path / "jobs")
    assert folder.job["tasks"][0]["command"][0] == "train"
    assert [t for t in traces(tmp_path) if not t[0].endswith(".pkl")] == []
