"""`.ci/run` does not go on to the tests where those that need SLURM would silently skip."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "run"
REACHED = 7
"""Exit code of the pretended `make`."""


def run_ci(folder: Path, **commands: str) -> int:
    """The exit code of .ci/run in a checkout where some commands do what is said here."""
    (folder / ".ci").mkdir()
    (folder / "slurm").mkdir()
    shutil.copy(SCRIPT, folder / ".ci" / "run")
    pretended = {"make": f"exit {REACHED}", "chromium": "", "apt-get": ""} | commands
    for name, script in pretended.items():
        path = folder / ("slurm" if name == "testbed" else "") / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run([folder / ".ci/run"], env=environment, capture_output=True, timeout=60).returncode


@pytest.mark.parametrize(
    ("user", "testbed", "code"),
    [("0", "exit 1", 1), ("0", "exit 0", REACHED), ("1000", "exit 1", REACHED)],
    ids=["root without a testbed", "root with one", "no root"],
)
def test_a_testbed_that_does_not_come_up_fails(tmp_path: Path, user: str, testbed: str, code: int) -> None:
    assert run_ci(tmp_path, id=f"echo {user}", testbed=testbed) == code
