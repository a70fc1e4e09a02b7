"""Strike two training processes at random moments: both must end in time, and the run go on unharmed.

Each attempt is hit by one of: SIGTERM or SIGUSR2 to one process or both, SIGKILL to one, SIGSTOP to one
(a machine that hangs). Both processes must then end within `training.timeout` (and a margin for Python to
leave); the next attempt goes on in the same run folder. When a run reaches its end, its logged losses must
be those of a run that nobody disturbed. The last line is one JSON object.

    python benchmarks/no_deadlock.py --runs 50
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from tiny_config import TINY  # noqa: E402

TIMEOUT = 15.0
"""training.timeout of the runs, seconds."""
MARGIN = 10.0
"""Seconds that two Python processes may take to leave on a busy machine."""
STRIKES = ["term one", "term both", "usr2 one", "usr2 both", "kill one", "stop one"]
SIGNALS = {
    "term": signal.SIGTERM,
    "usr2": signal.SIGUSR2,
    "kill": signal.SIGKILL,
    "stop": signal.SIGSTOP,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50, help="attempts to strike")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strategy", choices=["ddp", "fsdp"], default="ddp")
    parser.add_argument("--quick", action="store_true", help="three attempts")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = fuzz(Path(folder), 3 if a.quick else a.runs, random.Random(a.seed), a.strategy)
    print(json.dumps(result))
    return 0 if result["pass"] else 1


def fuzz(folder: Path, runs: int, dice: random.Random, strategy: str) -> dict[str, Any]:
    """Strike `runs` attempts, in as many run folders as they fill."""
    command = prepare(folder, strategy)
    began = time.monotonic()
    finish(start(command, folder / "undisturbed"), None)
    duration = time.monotonic() - began
    expected = losses(folder / "undisturbed")
    slowest, finished, wrong, number = 0.0, 0, 0, 0
    for attempt in range(runs):
        run = folder / f"run-{number}"
        processes = start(command, run)
        strike, at = dice.choice(STRIKES), dice.uniform(0, duration)
        seconds = hit(processes, strike, at, dice)
        slowest = max(slowest, seconds)
        codes = [p.returncode for p in processes]
        print(
            f"{attempt + 1:>3}  {strike:<10} at {at:5.1f} s: ended after {seconds:4.1f} s, {codes}",
            flush=True,
        )
        if codes == [0, 0]:
            finished, number = finished + 1, number + 1
            wrong += losses(run) != expected
    if losses(folder / f"run-{number}") != expected:  # bring the last one to its end, too
        finish(start(command, folder / f"run-{number}"), None)
        finished += 1
        wrong += losses(folder / f"run-{number}") != expected
    return {
        "name": "no_deadlock",
        "strategy": strategy,
        "attempts": runs,
        "slowest_end_seconds": round(slowest, 1),
        "timeout_seconds": TIMEOUT,
        "runs_finished": finished,
        "runs_with_other_losses": wrong,
        "ratio": round(slowest / (TIMEOUT + MARGIN), 3),
        "bar": 1.0,
        "pass": slowest <= TIMEOUT + MARGIN and not wrong,
    }


def prepare(folder: Path, strategy: str) -> list[str]:
    """Draw faces; the command that trains on them."""
    from sparface.faces import write_demo_set

    write_demo_set(folder / "faces", 12, 6, size=48, seed=0)
    settings = TINY | {
        "data.shards": str(folder / "faces"),
        "recipe": "sparring",
        "training.timeout": str(TIMEOUT),
        "training.strategy": strategy,
        "schedule.images": "320",
    }
    options = [f"--{key}={value}" for key, value in settings.items()]
    return [
        sys.executable,
        "-m",
        "sparface",
        "train",
        "--config",
        str(ROOT / "configs" / "smoke.yaml"),
        *options,
    ]


def start(command: list[str], run: Path) -> list[subprocess.Popen[bytes]]:
    """Two processes that train `run` together."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = str(listening.getsockname()[1])
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    log = open(run.with_suffix(".log"), "ab")  # noqa: SIM115  (the processes keep it)
    return [
        subprocess.Popen(
            [*command, "--out", str(run)],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
        for rank in range(2)
    ]


def hit(processes: list[subprocess.Popen[bytes]], strike: str, at: float, dice: random.Random) -> float:
    """Strike after `at` seconds; seconds until all processes that can end have ended."""
    name, whom = strike.split()
    deadline = time.monotonic() + at
    while time.monotonic() < deadline and any(p.poll() is None for p in processes):
        time.sleep(0.05)
    hit = processes if whom == "both" else [dice.choice(processes)]
    for process in hit:
        process.send_signal(SIGNALS[name])
    began = time.monotonic()
    frozen = hit[0] if name == "stop" else None
    finish(processes, frozen)
    seconds = time.monotonic() - began
    if frozen is not None:  # the scheduler would kill it with its job
        frozen.kill()
        frozen.wait()
    return seconds


def finish(processes: list[subprocess.Popen[bytes]], frozen: subprocess.Popen[bytes] | None) -> None:
    """Wait for the processes that are not frozen, at most as long as shows that they hang."""
    deadline = time.monotonic() + 600
    for process in processes:
        if process is not frozen:
            process.wait(max(0.1, deadline - time.monotonic()))


def losses(run: Path) -> list[dict[str, Any]]:
    """The logged values that do not depend on the clock."""
    file = run / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    clocks = ("time", "images_per_second", "system/")
    return [{k: v for k, v in record.items() if not k.startswith(clocks)} for record in records]


if __name__ == "__main__":
    sys.exit(main())
