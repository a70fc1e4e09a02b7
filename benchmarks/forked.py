"""Processes to be killed: forked with everything imported, so no kill is wasted on imports."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import sparface.generate.run
import sparface.training.loop  # noqa: F401  (both imported once, before the forks)

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny_config import TINY as TINY

FORK = multiprocessing.get_context("fork")
CLOCKS = ("time", "images_per_second", "system/")
"""Prefixes of logged names that depend on the clock."""


def print_into(log: Path) -> None:
    """Redirect the output of this process to a file."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)


def logged_values(run: Path) -> list[dict[str, Any]]:
    """The values that a run has logged, without those that depend on the clock."""
    file = run / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [{k: v for k, v in record.items() if not k.startswith(CLOCKS)} for record in records]
