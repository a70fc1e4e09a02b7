"""What runs on a GPU without one: tests that need Triton's interpreter, each file in a process of its own.

The interpreter is chosen when Triton is imported, and the rest of the tests must not have it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.parametrize(
    "file", sorted(Path(__file__).parent.glob("*/*_interpreted.py")), ids=lambda f: f.stem
)
def test_under_the_interpreter(file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
