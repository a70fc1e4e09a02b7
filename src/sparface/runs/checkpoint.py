"""Checkpoints: the complete state of a run, written in the background and published atomically.

A checkpoint is a folder named after the images seen, such as `step-000012800`; `checkpoint_files` describes
its contents.

`checkpoint_folder` renames it to its final name when it is complete, so a folder with a final name was
complete once; the digests detect later damage.

Checkpoints are the user's own files. They are still read defensively (nothing is unpickled), but weights
meant for others should be shared as safetensors (`sparface export`).
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from sparface.errors import UserError
from sparface.runs import checkpoint_folder
from sparface.runs.checkpoint_errors import kind, lost_process, reason
from sparface.runs.checkpoint_files import (
    SCHEMA,
    STATE_FILE,
    LoadingPlanner,
    Reader,
    SavingPlanner,
    Writer,
    checkpoint_problem,
    digests,
    form,
    read_state,
    write_state,
)
from sparface.sharded import local

T = TypeVar("T")
logger = logging.getLogger(__name__)
# dcp warns at each call that torch.distributed is not initialized, which is intended with one process
warnings.filterwarnings("ignore", message="torch.distributed is (disabled|unavailable)")


class CheckpointStore:
    """The checkpoints of one run. Construction, `save`, `finish`, `newest` and `load` are collective.

    `folder` holds the `step-*` folders, of which the `keep` newest (at least 1) are kept. `timeout` is how
    long, in seconds, a process waits for the others. `on_publish` is called on rank 0, in the thread that
    wrote the checkpoint. `skipped` lists the checkpoints that the last `newest` skipped, with reasons.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 2,
        timeout: float = 600.0,
        on_publish: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = Path(folder)
        self.keep = max(1, keep)
        self._on_publish = on_publish
        self.skipped: list[str] = []
        # a separate process group, since its collectives run in a thread, concurrently with training
        self._group = _gloo_group(timeout)
        self._rank = dist.get_rank() if self._group is not None else 0
        on_cuda = torch.cuda.is_available()
        self._stager = DefaultStager(StagingOptions(on_cuda, False, False, False))
        # tensors are copied concurrently with training on the device
        self._stream = torch.cuda.Stream() if on_cuda else None  # type: ignore[no-untyped-call]
        self._memory: list[Tensor] = []  # the staged copy
        self._copied = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._sound: set[Path] = set()

    def save(
        self, images_seen: int, tensors: dict[str, Any], facts: dict[str, Any], *, identity: str
    ) -> None:
        """Copy and write the state, both in the background; call `copied` before changing `tensors`.

        `tensors` is a nested dict of tensors, DTensors and plain Python values, with the same keys on
        all ranks. `facts` is JSON. `identity` identifies the model (see `load`). Waits for the previous
        save; if it failed, raises its error and starts nothing.
        """
        self.finish()
        state = {
            "schema": SCHEMA,
            "images_seen": images_seen,
            "identity": identity,
            "facts": json.loads(json.dumps(facts)),
        }
        if self._rank:  # rank 0 writes replicated values: planning them takes a fraction of a second per rank
            tensors = _spread(tensors) or {}
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        self._copied.clear()
        self._thread = threading.Thread(target=self._write, args=(tensors, state), name="checkpoint")
        self._thread.start()

    def copied(self) -> None:
        """Wait until the tensors of the last `save` have been copied and may be changed."""
        if self._thread is not None:
            self._copied.wait()

    def tidy(self, images_seen: int) -> None:
        """Finish the cleanup of a save that was killed after publishing its checkpoint at `images_seen`."""
        if self._rank == 0:
            checkpoint_folder.tidy(self.folder)
            checkpoint_folder.retain(self.folder, self.keep, images_seen)

    def finish(self) -> None:
        """Wait for the save in flight. If it failed, raises its error on all ranks: a `UserError`, or a
        `RuntimeError` if another process was lost."""
        self._wait()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def newest(self, before: Path | None = None) -> Path | None:
        """Return the newest intact checkpoint, or the newest one older than `before`. Damaged checkpoints are
        listed in `skipped` and logged."""
        self._wait()
        found, self.skipped = self._together(lambda: self._search(before))[0]
        if found is not None:
            self._sound.add(found)
        return found

    def discard(self, path: Path) -> None:
        """Delete a checkpoint, so a resumed run does not find it."""
        self._wait()
        self._together(lambda: checkpoint_folder.delete(path) if self._rank == 0 else None)
        self._sound.discard(path)

    def load(self, path: Path, tensors: dict[str, Any], *, identity: str) -> dict[str, Any]:
        """Load into `tensors` in place, with any world size, and return the facts.

        Python values are replaced in the nested dicts. Raises `UserError` and loads nothing if the
        checkpoint is damaged, if its tensors differ from `tensors` in names, shapes or types, or if
        it was saved with another `identity`.
        """
        self._wait()
        if path not in self._sound:
            self._together(lambda: _require_sound(path) if self._rank == 0 else None)
        facts: dict[str, Any] = {}
        self._together(lambda: facts.update(_facts(path, tensors, identity)))
        try:
            state_dict_loader.load(
                tensors,
                storage_reader=Reader(path),
                planner=LoadingPlanner(),
                process_group=self._group,
                no_dist=self._group is None,
            )
        except CheckpointException as error:
            raise UserError(f"{path}: cannot be loaded ({reason(error, path)})") from None
        return facts

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _search(self, before: Path | None) -> tuple[Path | None, list[str]]:
        """The newest intact checkpoint and the problems of those skipped, as seen by rank 0."""
        skipped: list[str] = []
        if self._rank != 0:
            return None, skipped
        candidates = checkpoint_folder.candidates(self.folder)
        if before is not None:
            candidates = candidates[candidates.index(before) + 1 :]
        for path in candidates:
            problem = checkpoint_problem(path)
            if problem is None:
                return path, skipped
            logger.warning("checkpoint skipped: %s", problem)
            skipped.append(problem)
        return None, skipped

    def _write(self, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        """Background thread of every rank: copy, write, digest and publish; keeps the error on failure."""
        images_seen: int = state["images_seen"]
        writing = checkpoint_folder.writing_path(self.folder, images_seen)
        try:
            staged: dict[str, Any] = {}
            self._together(lambda: staged.update(self._stage(tensors)))
            self._together(lambda: checkpoint_folder.prepare(writing) if self._rank == 0 else None)
            state_dict_saver.save(
                staged,
                storage_writer=Writer(writing),
                planner=SavingPlanner(),
                process_group=self._group,
                no_dist=self._group is None,
            )
            files: dict[str, Any] = {}
            for part in self._together(lambda: digests(writing, self._rank)):
                files.update(part)
            self._together(lambda: self._publish(writing, {**state, "files": files}))
        except BaseException as error:
            why = reason(error, self.folder)
            if self._rank == 0:
                shutil.rmtree(writing, ignore_errors=True)
            message = self._failure(images_seen, why)
            # a lost process is not the user's mistake: restarting is enough
            self._error = RuntimeError(message) if lost_process(error) else kind(error)(message)

    def _stage(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """Copy the tensors, reusing the memory of the previous copy if shapes and types match."""
        values, tree = tree_flatten(tensors)
        live = [value for value in values if isinstance(value, Tensor)]
        try:
            with torch.cuda.stream(self._stream):  # type: ignore[arg-type]  # None: does nothing
                if live and list(map(form, live)) == list(map(form, self._memory)):
                    copies, originals = ([local(t) for t in some] for some in (self._memory, live))
                    # a single call, which does not delay the training's Python code
                    torch._foreach_copy_(copies, originals, non_blocking=True)
                    if self._stream is not None:
                        self._stream.synchronize()
                else:
                    self._memory = self._stager.stage({"": live})[""]  # type: ignore[index]
        finally:
            self._copied.set()
        memory = iter(self._memory)
        staged = [next(memory) if isinstance(value, Tensor) else value for value in values]
        return tree_unflatten(staged, tree)  # type: ignore[no-any-return]

    def _publish(self, writing: Path, state: dict[str, Any]) -> None:
        """On rank 0: add `state.json`, rename the folder to its final name, and delete old checkpoints."""
        if self._rank != 0:
            return
        write_state(writing / STATE_FILE, state)
        checkpoint_folder.publish(writing)
        checkpoint_folder.retain(self.folder, self.keep, state["images_seen"])
        self._on_publish()

    def _failure(self, images_seen: int, why: str) -> str:
        left = [path.name for path in checkpoint_folder.candidates(self.folder)]
        kept = f"{left[0]} is kept" if left else "there is no earlier one"
        return (
            f"{self.folder}: the checkpoint at {images_seen} images was not written ({why}); "
            f"{kept}; fix the cause and start again to resume"
        )

    def _together(self, work: Callable[[], T]) -> list[T]:
        """Run `work` on every rank and return all results; raises on every rank if any rank failed."""
        mine: tuple[Any, UserError | None]
        try:
            mine = (work(), None)
        except Exception as error:
            mine = (None, kind(error)(reason(error, self.folder)))
        everyone: list[Any] = [mine]
        if self._group is not None:
            everyone = [None] * dist.get_world_size(self._group)
            dist.all_gather_object(everyone, mine, group=self._group)
        errors = [error for _, error in everyone if error is not None]
        if errors:
            raise errors[0]
        return [result for result, _ in everyone]


def read_weights(path: Path, network: str) -> dict[str, Tensor]:
    """Read the tensors under a prefix, such as `networks.recognizer` or `averages.generator`, to the CPU.

    Runs in a single process and builds no network or optimizer. The prefix is removed from the names. Raises
    `UserError` if the checkpoint is damaged or has no such prefix.
    """
    _require_sound(path)
    reader, prefix = Reader(path), f"{network}."
    entries = reader.read_metadata().state_dict_metadata
    tensors = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in entries.items()
        if key.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
    if not tensors:
        present = sorted({".".join(key.split(".")[:2]) for key in entries})
        raise UserError(f"{path}: has no {network}; it contains {', '.join(present)}")
    state_dict_loader.load(tensors, storage_reader=reader, planner=LoadingPlanner(), no_dist=True)
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}


def _spread(value: Any) -> Any:
    """The entries of nested dicts that are sharded over ranks; None if there are none."""
    if isinstance(value, dict):
        parts = {key: part for key, item in value.items() if (part := _spread(item)) is not None}
        return parts or None
    return value if isinstance(value, DTensor) else None


def _require_sound(path: Path) -> None:
    problem = checkpoint_problem(path)
    if problem is not None:
        raise UserError(f"{problem}; use another checkpoint")


def _facts(path: Path, tensors: dict[str, Any], identity: str) -> dict[str, Any]:
    """Return the facts of a checkpoint. Raises `UserError` if it does not match `tensors` and `identity`."""
    state, planner = read_state(path), LoadingPlanner()
    planner.set_up_planner(tensors, Reader(path).read_metadata(), is_coordinator=False)
    _require_same_model(path, planner.differences(), state["identity"], identity)
    facts: dict[str, Any] = state["facts"]
    return facts


def _require_same_model(path: Path, tensors: list[str], there: str, here: str) -> None:
    lines = (_changed_settings(there, here) if there != here else []) or tensors
    if not lines:
        return
    more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
    what = "; ".join(lines[:3]) + more
    raise UserError(f"{path}: belongs to another model ({what}); use its config or another run folder")


def _changed_settings(there: str, here: str) -> list[str]:
    """The differences between two identities, key by key if both are JSON objects."""
    try:
        old, new = json.loads(there), json.loads(here)
        keys = sorted({*old, *new})
        changed = [k for k in keys if old.get(k) != new.get(k)]
        return [f"{k} is {old.get(k)} in the checkpoint and {new.get(k)} here" for k in changed]
    except (ValueError, TypeError, AttributeError):
        return [f"identity is {there} in the checkpoint and {here} here"]


def _gloo_group(timeout: float) -> dist.ProcessGroup | None:
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
    assert isinstance(group, dist.ProcessGroup)  # every rank is in it
    return group
