"""Signal two training processes at random moments: both must end in time, and the run must resume unharmed.

Each attempt gets one of: SIGTERM or SIGUSR2 to one process or both, SIGKILL to one, SIGSTOP to one (which
simulates a hanging machine). Both processes must then end within `training.timeout` (and a margin for Python
to exit); the next attempt resumes in the same run folder. When a run reaches its end, its logged losses must
equal those of an undisturbed run. The last line is one JSON object.

    python benchmarks/no_deadlock.py --runs 50
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from forked import FORK, TINY, logged_values, print_into

from sparface import cli
from sparface.faces import draw_set

TIMEOUT = 15.0
"""training.timeout of the runs, seconds."""
MARGIN = 10.0
"""Seconds that two Python processes may take to exit on a busy machine."""
STRIKES = ["term one", "term both", "usr2 one", "usr2 both", "kill one", "stop one"]
SIGNALS = {
    "term": signal.SIGTERM,
    "usr2": signal.SIGUSR2,
    "kill": signal.SIGKILL,
    "stop": signal.SIGSTOP,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50, help="number of attempts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strategy", choices=["ddp", "fsdp"], default="ddp")
    parser.add_argument("--quick", action="store_true", help="three attempts")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = fuzz(Path(folder), 3 if a.quick else a.runs, random.Random(a.seed), a.strategy)
    print(json.dumps(result))
    return 0 if result["pass"] else 1


def fuzz(folder: Path, runs: int, dice: random.Random, strategy: str) -> dict[str, Any]:
    """Disturb `runs` attempts, in as many run folders as they fill."""
    command = prepare(folder, strategy)
    began = time.monotonic()
    undisturbed = start(command, folder / "undisturbed")
    finish(undisturbed, None)
    duration = time.monotonic() - began
    if any(p.exitcode for p in undisturbed):
        sys.exit("the undisturbed run failed:\n" + log_of(folder / "undisturbed").read_text())
    expected = logged_values(folder / "undisturbed")
    slowest, finished, wrong, number = 0.0, 0, 0, 0
    for attempt in range(runs):
        run = folder / f"run-{number}"
        processes = start(command, run)
        strike, at = dice.choice(STRIKES), dice.uniform(0, duration / 2)
        seconds = hit(processes, strike, at, dice)
        slowest = max(slowest, seconds)
        codes = [p.exitcode for p in processes]
        print(
            f"{attempt + 1:>3}  {strike:<10} at {at:5.1f} s: ended after {seconds:4.1f} s, {codes}",
            flush=True,
        )
        if codes == [0, 0]:
            finished, number = finished + 1, number + 1
            wrong += logged_values(run) != expected
    if logged_values(folder / f"run-{number}") != expected:  # run the last one to completion, too
        finish(start(command, folder / f"run-{number}"), None)
        finished += 1
        wrong += logged_values(folder / f"run-{number}") != expected
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
    """Draw faces; return the arguments of a training on them."""
    draw_set(folder / "faces", 12, 6, size=32, seed=0)
    settings = TINY | {
        "data.shards": str(folder / "faces"),
        "recipe": "sparring",
        "training.timeout": str(TIMEOUT),
        "training.strategy": strategy,
        "schedule.images": "320",
    }
    return ["train", "--config", "smoke", *(f"--{key}={value}" for key, value in settings.items())]


def start(command: list[str], run: Path) -> list[BaseProcess]:
    """Start two processes that train `run` together."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = str(listening.getsockname()[1])
    processes: list[BaseProcess] = [
        FORK.Process(target=train, args=([*command, f"--out={run}"], rank, port)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    return processes


def train(command: list[str], rank: int, port: str) -> None:
    """Run one process, like `sparface train` under a scheduler."""
    run = Path(command[-1].removeprefix("--out="))
    print_into(log_of(run))
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    sys.exit(cli.main(command))


def log_of(run: Path) -> Path:
    """The file with the output of a run's processes."""
    return run.with_name(run.name + ".log")


def hit(processes: list[BaseProcess], strike: str, at: float, dice: random.Random) -> float:
    """Send a signal after `at` seconds; return the seconds until all processes that can end have ended."""
    name, whom = strike.split()
    deadline = time.monotonic() + at
    while time.monotonic() < deadline and any(p.is_alive() for p in processes):
        time.sleep(0.05)
    struck = processes if whom == "both" else [dice.choice(processes)]
    for process in struck:
        if process.is_alive():
            os.kill(process.pid or 0, SIGNALS[name])
    began = time.monotonic()
    frozen = struck[0] if name == "stop" else None
    finish(processes, frozen)
    seconds = time.monotonic() - began
    if frozen is not None:  # the scheduler would kill it with the job
        frozen.kill()
        frozen.join()
    return seconds


def finish(processes: list[BaseProcess], frozen: BaseProcess | None) -> None:
    """Wait for the processes that are not frozen, but not forever if they hang."""
    deadline = time.monotonic() + 600
    for process in processes:
        if process is not frozen:
            process.join(max(0.1, deadline - time.monotonic()))


if __name__ == "__main__":
    sys.exit(main())
