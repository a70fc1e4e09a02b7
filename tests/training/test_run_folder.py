"""A run's folder belongs to one living process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sparface.errors import UserError
from sparface.runs.folder import claim

HOLDER = """
import os, sys, time
from pathlib import Path
from sparface.runs.folder import claim
with claim(Path(sys.argv[1]), 0):
    if os.fork():  # as a trainer has its decoding workers
        print("held", flush=True)
    time.sleep(60)
"""


def test_the_claim_ends_with_its_process_though_a_worker_outlives_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another job is training there"), claim(run, 0):
        pass
    holder.kill()
    holder.wait()
    with claim(run, 0):
        pass
