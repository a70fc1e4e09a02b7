"""Processes that start with everything imported: a new interpreter would import torch for seconds.

They are forked from a server that has no threads and has seen nothing of the tests. Their environment is the
server's: nothing that tests have set since.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["pytest", "timm", "torch._dynamo", "torch.distributed.fsdp", "sparface.training.loop"]
)


def in_processes(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """Run `work(rank, *arguments)` in so many processes; raises what one of them raises."""
    mp.start_processes(_ranked, (work, arguments), nprocs=count, start_method="forkserver")


def _ranked(rank: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    mp.set_start_method("fork", force=True)  # for decoding workers, as in an interpreter of its own
    work(rank, *arguments)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


class Job:
    """`work(*arguments)` in one process or more, in a process group of their own; what they print goes to
    `log`. Several get torchrun's RANK, WORLD_SIZE, … in their environment."""

    def __init__(
        self, work: Callable[..., int], arguments: tuple[Any, ...], log: Path, count: int = 1
    ) -> None:
        port, self.log = free_port(), log
        self.ranks = [
            SERVER.Process(target=_run, args=(work, arguments, log, _environment(rank, count, port)))
            for rank in range(count)
        ]
        for process in self.ranks:
            process.start()
        atexit.register(self.kill)

    def running(self) -> bool:
        return all(process.is_alive() for process in self.ranks)

    def wait_for(self, condition: Callable[[], object], seconds: float) -> None:
        """Until the condition holds, or a process has ended, or the time is up."""
        deadline = time.monotonic() + seconds
        while not condition() and self.running() and time.monotonic() < deadline:
            time.sleep(0.005)

    def signal_all(self, number: int) -> None:
        """As schedulers do: also to the decoding workers."""
        for process in self.ranks:
            os.killpg(process.pid or 0, number)

    def finish(self, code: int = 0) -> str:
        """Wait for the end, which must have that exit code; what the processes printed."""
        for process in self.ranks:
            process.join(180)
        said = self.log.read_text()
        assert [process.exitcode for process in self.ranks] == [code] * len(self.ranks), said
        return said

    def kill(self) -> None:
        """All of them, and their decoding workers."""
        for process in self.ranks:
            if process.is_alive():
                with suppress(ProcessLookupError):
                    os.killpg(process.pid or 0, signal.SIGKILL)
                process.kill()
                process.join()


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    if count == 1:
        return {}
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    return {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}


def _run(
    work: Callable[..., int], arguments: tuple[Any, ...], log: Path, environment: dict[str, str]
) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= environment
    mp.set_start_method("fork", force=True)
    sys.exit(work(*arguments))
