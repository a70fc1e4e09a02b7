"""Every kernel compiles for A100 and H100 and spills no register; no GPU needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernel_resources.py"


def test_kernels_compile_without_spills() -> None:
    command = [sys.executable, str(SCRIPT), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert json.loads(lines[-1])["pass"]
    assert sum(line.startswith(("| synth", "| whiten", "| triplet", "| normalise")) for line in lines) == 9
