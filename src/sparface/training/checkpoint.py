"""Checkpoints: all that decides the future of a run, written in the background, whole or not at all.

A checkpoint is a folder `step-000012800` (images seen) with

- `__RANK_0.distcp`, `.metadata`: the tensors' bytes, and where they are, planned by
  `torch.distributed.checkpoint`;
- `state.json`: images seen, the identity of the model, the caller's facts, and size and SHA-256 of
  every other file. It is written last, and carries a digest of itself.

It is written as `.writing-step-000012800` and renamed when complete, so whatever has the final name
was whole once; the digests find what happened to it since.

Checkpoints are the user's own files. They are read with care all the same (digests first, only
plain data is ever unpickled), but weights meant for others travel as safetensors (`sparface export`).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickle
import re
import shutil
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
)
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future
from torch.utils._pytree import tree_flatten, tree_unflatten

from sparface.errors import UserError
from sparface.shards.journal import sync_folder
from sparface.training.sharded import local

SCHEMA = 2
STATE_FILE = "state.json"
WRITING = ".writing-"
REPLACED = ".replaced-"
DELETING = ".deleting-"
T = TypeVar("T")
logger = logging.getLogger(__name__)
# dcp says at each call that it works without torch.distributed; with one process that is the intent.
warnings.filterwarnings("ignore", message="torch.distributed is (disabled|unavailable)")


class CheckpointStore:
    """The checkpoints of one run. Construction, `save`, `finish`, `newest` and `load` are collective.

    `folder` holds the `step-*` folders; `keep` (at least 1) newest are kept; `timeout` is how long,
    in seconds, a process waits for the others. `skipped` names the checkpoints that the last
    `newest` passed over, each with the reason.
    """

    def __init__(self, folder: Path, *, keep: int = 2, timeout: float = 600.0) -> None:
        self.folder = Path(folder)
        self.keep = max(1, keep)
        self.skipped: list[str] = []
        # A process group of its own: its collectives run in a thread, beside those of the training.
        self._group = _gloo_group(timeout)
        self._rank = dist.get_rank() if self._group is not None else 0
        on_cuda = torch.cuda.is_available()
        self._stager = DefaultStager(StagingOptions(on_cuda, False, False, False))
        # copies are made beside the training's own work on the device
        self._stream = torch.cuda.Stream() if on_cuda else None  # type: ignore[no-untyped-call]
        self._memory: list[Tensor] = []  # the copy
        self._copied = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._sound: set[Path] = set()

    def save(
        self, images_seen: int, tensors: dict[str, Any], facts: dict[str, Any], *, identity: str
    ) -> None:
        """Copy the state and write it, both in the background; call `copied` before changing `tensors`.

        `tensors` is a nested dict of tensors, DTensors and plain Python values, with the same keys on
        all ranks; `facts` is JSON; `identity` says which model this is (see `load`). Waits for the
        save before this one; if that failed, raises its error and starts nothing.
        """
        self.finish()
        state = {
            "schema": SCHEMA,
            "images_seen": images_seen,
            "identity": identity,
            "facts": json.loads(json.dumps(facts)),
        }
        if self._rank:  # what all hold is rank 0's to write: planning it takes a fraction of a second a rank
            tensors = _spread(tensors) or {}
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        self._copied.clear()
        self._thread = threading.Thread(target=self._write, args=(tensors, state), name="checkpoint")
        self._thread.start()

    def copied(self) -> None:
        """Wait until the tensors of the last `save` are copied, so that they may change."""
        if self._thread is not None:
            self._copied.wait()

    def tidy(self, images_seen: int) -> None:
        """Do what a save that was killed, once its checkpoint at `images_seen` had its name, left to do."""
        if self._rank == 0:
            _tidy(self.folder)
            _retain(self.folder, self.keep, images_seen)

    def finish(self) -> None:
        """Wait for the save in flight. Raises the error of one that failed, on all ranks: a `UserError`, or
        a `RuntimeError` when another process was lost on the way."""
        self._wait()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def poll(self) -> Exception | None:
        """The error of a failed save, if one is known by now. Not collective; `finish` still raises it."""
        return self._error

    def newest(self) -> Path | None:
        """The newest checkpoint whose digests hold; damaged ones are named in `skipped` and logged."""
        self._wait()
        found, self.skipped = self._together(self._search)[0]
        if found is not None:
            self._sound.add(found)
        return found

    def load(self, path: Path, tensors: dict[str, Any], *, identity: str) -> dict[str, Any]:
        """Load into `tensors` in place, on any world size, and return the facts.

        Python values are replaced in the nested dicts. Raises `UserError` when the checkpoint is
        damaged, when its tensors are not exactly those of `tensors` (names, shapes, types), or when
        it was saved with another `identity`; nothing is loaded then.
        """
        self._wait()
        if path not in self._sound:
            self._together(lambda: _require_sound(path) if self._rank == 0 else None)
        state = read_state(path)
        reader, planner = _Reader(path), _Planner()
        planner.set_up_planner(tensors, reader.read_metadata(), is_coordinator=False)
        _require_same_model(path, planner.differences(), state["identity"], identity)
        try:
            state_dict_loader.load(
                tensors,
                storage_reader=reader,
                planner=planner,
                process_group=self._group,
                no_dist=self._group is None,
            )
        except CheckpointException as error:
            raise UserError(f"{path}: cannot be loaded ({_reason(error, path)})") from None
        facts: dict[str, Any] = state["facts"]
        return facts

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _search(self) -> tuple[Path | None, list[str]]:
        """The newest good checkpoint and what was passed over, as rank 0 sees the folder."""
        skipped: list[str] = []
        if self._rank != 0:
            return None, skipped
        for path in _candidates(self.folder):
            problem = checkpoint_problem(path)
            if problem is None:
                return path, skipped
            logger.warning("checkpoint skipped: %s", problem)
            skipped.append(problem)
        return None, skipped

    def _write(self, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        """The background thread of every rank: copy, write, digest, publish; keep the error of a failure."""
        images_seen: int = state["images_seen"]
        writing = self.folder / f"{WRITING}{_name(images_seen)}"
        try:
            staged: dict[str, Any] = {}
            self._together(lambda: staged.update(self._stage(tensors)))
            self._together(lambda: _prepare(writing) if self._rank == 0 else None)
            state_dict_saver.save(
                staged,
                storage_writer=_Writer(writing),
                planner=DefaultSavePlanner(),
                process_group=self._group,
                no_dist=self._group is None,
            )
            files: dict[str, Any] = {}
            for part in self._together(lambda: _digests(writing, self._rank)):
                files.update(part)
            self._together(lambda: self._publish(writing, {**state, "files": files}))
        except BaseException as error:
            reason = _reason(error, self.folder)
            if self._rank == 0:
                shutil.rmtree(writing, ignore_errors=True)
            message = self._failure(images_seen, reason)
            # that a process was lost is no mistake of the user's: starting again is all it takes
            self._error = RuntimeError(message) if _lost_process(error) else UserError(message)

    def _stage(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """A copy of the tensors, in the memory of the copy before if they have its form."""
        values, tree = tree_flatten(tensors)
        live = [value for value in values if isinstance(value, Tensor)]
        try:
            with torch.cuda.stream(self._stream):  # type: ignore[arg-type]  # None: does nothing
                if live and list(map(_form, live)) == list(map(_form, self._memory)):
                    copies, originals = ([local(t) for t in some] for some in (self._memory, live))
                    # one call, which does not hold up the Python of the training
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
        """Rank 0: add `state.json`, give the folder its final name, delete what is too old."""
        if self._rank != 0:
            return
        _write_state(writing / STATE_FILE, state)
        sync_folder(writing)
        final = self.folder / _name(state["images_seen"])
        aside = self.folder / f"{REPLACED}{final.name}"
        if final.exists():
            final.rename(aside)
        writing.rename(final)
        sync_folder(self.folder)
        shutil.rmtree(aside, ignore_errors=True)
        _retain(self.folder, self.keep, state["images_seen"])

    def _failure(self, images_seen: int, reason: str) -> str:
        standing = [path.name for path in _candidates(self.folder)]
        stands = f"{standing[0]} stands" if standing else "there is no earlier one"
        return (
            f"{self.folder}: the checkpoint at {images_seen} images was not written ({reason}); "
            f"{stands}; mend this and start again to resume"
        )

    def _together(self, work: Callable[[], T]) -> list[T]:
        """Run `work` on every rank and return all results; raises on every rank if one failed."""
        mine: tuple[Any, str | None]
        try:
            mine = (work(), None)
        except Exception as error:
            mine = (None, _reason(error, self.folder))
        everyone: list[Any] = [mine]
        if self._group is not None:
            everyone = [None] * dist.get_world_size(self._group)
            dist.all_gather_object(everyone, mine, group=self._group)
        errors = [error for _, error in everyone if error is not None]
        if errors:
            raise UserError(errors[0])
        return [result for result, _ in everyone]


def read_weights(path: Path, network: str) -> dict[str, Tensor]:
    """The tensors below a prefix, such as `networks.recognizer` or `averages.generator`, on the CPU.

    For one process, with no network or optimizer built. Names come without the prefix. Raises
    `UserError` for a damaged checkpoint and for a prefix it does not have.
    """
    _require_sound(path)
    reader, prefix = _Reader(path), f"{network}."
    entries = reader.read_metadata().state_dict_metadata
    tensors = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in entries.items()
        if key.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
    if not tensors:
        present = sorted({".".join(key.split(".")[:2]) for key in entries})
        raise UserError(f"{path}: has no {network}; it holds {', '.join(present)}")
    state_dict_loader.load(tensors, storage_reader=reader, planner=_Planner(), no_dist=True)
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}


def read_state(path: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint: schema, images_seen, identity, facts, files.

    Raises `UserError` when it is missing, damaged, or of a newer sparface.
    """
    try:
        state: dict[str, Any] = json.loads((path / STATE_FILE).read_text())
        sound = state.pop("digest") == _state_digest(state)
    except OSError as error:
        raise UserError(f"{path}: {STATE_FILE} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, AttributeError):
        sound = False
    if not sound:
        raise UserError(f"{path}: {STATE_FILE} is truncated or was altered")
    if state["schema"] != SCHEMA:
        raise UserError(f"{path}: has schema {state['schema']}, not {SCHEMA}; use the sparface that wrote it")
    return state


def checkpoint_problem(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, in one line that names the file; None when sound."""
    try:
        files: dict[str, dict[str, Any]] = read_state(path)["files"]
    except UserError as error:
        return str(error)
    for name, entry in files.items():
        file = path / name
        if not file.is_file():
            return f"{path}: {name} is missing"
        if file.stat().st_size != entry["bytes"]:
            return f"{path}: {name} has {file.stat().st_size} bytes instead of {entry['bytes']}"
        if _sha256(file) != entry["sha256"]:
            return f"{path}: {name} was altered (its digest differs)"
    return None


class _Writer(FileSystemWriter):
    """Writes the bytes of tensors: thousands of calls of `torch.save` would hold up the training's Python."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        done: Future[list[WriteResult]] = Future()
        done.set_result(
            self._write(f"{plan.storage_data.prefix}0.distcp", plan, planner) if plan.items else []
        )
        return done

    def _write(self, name: str, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        results = []
        with open(Path(self.path) / name, "wb") as file:
            for item in plan.items:
                data, offset = planner.resolve_data(item), file.tell()
                file.write(_bytes(data) if isinstance(data, Tensor) else data.getbuffer())
                length = file.tell() - offset
                results.append(WriteResult(item.index, length, _StorageInfo(name, offset, length)))
            file.flush()
            os.fsync(file.fileno())
        return results


class _Planner(DefaultLoadPlanner):
    """Loads Python values as plain data only, and tells how the checkpoint differs from the target."""

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        loaded = torch.load(value, weights_only=True)
        *parents, last = self.mappings[read_item.dest_index.fqn]
        owner: Any = self.original_state_dict
        for key in parents:
            owner = owner[key]
        owner[last] = loaded

    def differences(self) -> list[str]:
        """One line per key that is only on one side, or has another shape or type."""
        assert self.metadata is not None
        there = {key: _form(entry) for key, entry in self.metadata.state_dict_metadata.items()}
        here = {key: _form(value) for key, value in self.state_dict.items()}
        lines = [
            f"{key} is {there[key]} there and {here[key]} here"
            for key in here
            if key in there and there[key] != here[key]
        ]
        lines += [f"{key} is only here" for key in here if key not in there]
        return lines + [f"{key} is only in the checkpoint" for key in there if key not in here]


class _Reader(FileSystemReader):
    """Reads `.metadata` (a pickle) with an unpickler that knows dcp's own plain classes only."""

    def set_up_storage_reader(self, metadata: Metadata, *args: Any, **kwargs: Any) -> None:
        super().set_up_storage_reader(metadata, *args, **kwargs)
        self.entries = metadata.state_dict_metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        with ExitStack() as stack:
            names = {self.storage_data[item.storage_index].relative_path for item in plan.items}
            files = {name: stack.enter_context(open(Path(self.path) / name, "rb")) for name in names}
            for item in plan.items:
                place = self.storage_data[item.storage_index]
                files[place.relative_path].seek(place.offset)
                data = files[place.relative_path].read(place.length)
                if item.type == LoadItemType.BYTE_IO:
                    planner.load_bytes(item, io.BytesIO(data))
                    continue
                part = self._tensor(item.storage_index, data)
                for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                    part = part.narrow(dim, start, length)
                target = planner.resolve_tensor(item).detach()
                target.copy_(part)
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _tensor(self, index: MetadataIndex, data: bytes) -> Tensor:
        """A tensor or the part of one, from its bytes."""
        entry = self.entries[index.fqn]
        assert isinstance(entry, TensorStorageMetadata)
        size = next(chunk.sizes for chunk in entry.chunks if chunk.offsets == index.offset)
        if not data:
            return torch.empty(size, dtype=entry.properties.dtype)
        return torch.frombuffer(bytearray(data), dtype=entry.properties.dtype).view(size)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        try:
            with open(Path(self.path) / ".metadata", "rb") as file:
                metadata: Metadata = _Unpickler(file).load()
        except (OSError, pickle.UnpicklingError) as error:
            raise UserError(f"{self.path}: .metadata cannot be read ({error})") from None
        for name in {place.relative_path for place in metadata.storage_data.values()}:
            if Path(name).name != name:
                raise UserError(f"{self.path}: .metadata names a file outside of it ({name}): refused")
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    NAMES: ClassVar[dict[str, set[str]]] = {
        "torch.distributed.checkpoint.metadata": {
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        },
        "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
        "torch.serialization": {"_get_layout"},
        "torch": {"Size"} | {name for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
        "pathlib": {"PosixPath", "WindowsPath"},
        "pathlib._local": {"PosixPath", "WindowsPath"},
        "collections": {"OrderedDict"},
    }

    def find_class(self, module: str, name: str) -> Any:
        if name not in self.NAMES.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _spread(value: Any) -> Any:
    """What of nested dicts is spread over ranks; None if nothing is."""
    if isinstance(value, dict):
        parts = {key: part for key, item in value.items() if (part := _spread(item)) is not None}
        return parts or None
    return value if isinstance(value, DTensor) else None


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def _form(value: Any) -> str:
    """Shape and type of a tensor or of its entry in the metadata; "a value" for anything else."""
    if isinstance(value, TensorStorageMetadata):
        return f"{list(value.size)} {_short(value.properties.dtype)}"
    return f"{list(value.size())} {_short(value.dtype)}" if isinstance(value, Tensor) else "a value"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _require_sound(path: Path) -> None:
    problem = checkpoint_problem(path)
    if problem is not None:
        raise UserError(f"{problem}; use another checkpoint")


def _require_same_model(path: Path, tensors: list[str], there: str, here: str) -> None:
    lines = tensors if there == here else _changed_settings(there, here)
    if not lines:
        return
    more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
    what = "; ".join(lines[:3]) + more
    raise UserError(f"{path}: is of another model ({what}); use its configuration or another run folder")


def _changed_settings(there: str, here: str) -> list[str]:
    """What differs between two identities, key by key where they are JSON objects."""
    try:
        old, new = json.loads(there), json.loads(here)
        keys = sorted({*old, *new})
        return [f"{k} is {old.get(k)} there and {new.get(k)} here" for k in keys if old.get(k) != new.get(k)]
    except (ValueError, TypeError, AttributeError):
        return [f"its identity is {there} there and {here} here"]


def _gloo_group(timeout: float) -> dist.ProcessGroup | None:
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
    assert isinstance(group, dist.ProcessGroup)  # every rank is in it
    return group


def _name(images_seen: int) -> str:
    return f"step-{images_seen:09d}"


def _candidates(folder: Path) -> list[Path]:
    """Complete checkpoints, newest first; one that was being replaced comes after its replacement."""
    pattern = re.compile(rf"({re.escape(REPLACED)})?step-(\d+)")
    found = [(match, path) for path in folder.glob("*step-*") if (match := pattern.fullmatch(path.name))]
    found.sort(key=lambda pair: (int(pair[0][2]), pair[0][1] is None), reverse=True)
    return [path for _, path in found]


def _prepare(writing: Path) -> None:
    """An empty folder to write to."""
    writing.parent.mkdir(parents=True, exist_ok=True)
    _tidy(writing.parent)
    writing.mkdir()


def _tidy(folder: Path) -> None:
    """Remove what interrupted saves left behind; finish an interrupted replacement."""
    for stale in [*folder.glob(f"{WRITING}*"), *folder.glob(f"{DELETING}*")]:
        shutil.rmtree(stale)
    for aside in folder.glob(f"{REPLACED}*"):
        final = folder / aside.name.removeprefix(REPLACED)
        if final.exists() and checkpoint_problem(final) is None:
            shutil.rmtree(aside)
        else:  # what was put aside may be all that is left
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)


def _retain(folder: Path, keep: int, images_seen: int) -> None:
    """Delete all but the `keep` newest up to `images_seen`. What lies beyond was skipped as damaged:
    it must not count as kept, and it is the user's to look at."""
    standing = [path for path in _candidates(folder) if int(path.name.rpartition("-")[2]) <= images_seen]
    for old in standing[keep:]:
        doomed = folder / f"{DELETING}{old.name}"  # a kill must not leave half a checkpoint under its name
        with suppress(OSError):
            old.rename(doomed)
            shutil.rmtree(doomed)


def _digests(writing: Path, rank: int) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of the files that this rank wrote; rank 0 also wrote the metadata."""
    names = [path.name for path in writing.glob(f"__{rank}_*")] + ([".metadata"] if rank == 0 else [])
    return {
        name: {"bytes": (writing / name).stat().st_size, "sha256": _sha256(writing / name)}
        for name in sorted(names)
    }


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _state_digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _write_state(file: Path, state: dict[str, Any]) -> None:
    with open(file, "w") as stream:
        json.dump({**state, "digest": _state_digest(state)}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())


def _lost_process(error: BaseException) -> bool:
    """Whether another process ended or hangs, by the word of torch.distributed."""
    errors = [error]
    if isinstance(error, CheckpointException):
        errors = [failure[0] for failure in error.failures.values()]
    return any(isinstance(e, dist.DistError) or "gloo" in str(e) for e in errors)


def _reason(error: BaseException, folder: Path) -> str:
    """The cause of a failed save in a few words. Torch hides a full disk behind errors of its own."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UserError):
        return str(error)
    if folder.is_dir() and shutil.disk_usage(folder).free < 1 << 20:
        return "no space left on device"
    logger.error("checkpoint failed:\n%s", "".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
