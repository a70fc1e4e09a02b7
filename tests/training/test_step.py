"""A step never waits for its device: the tests of step_interpreted.py, under Triton's interpreter.

The interpreter is chosen when Triton is imported, and the other tests must not have it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_a_step_never_waits() -> None:
    file = Path(__file__).with_name("step_interpreted.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
