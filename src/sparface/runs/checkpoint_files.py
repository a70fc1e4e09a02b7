"""The files of a checkpoint. It is a folder with

- `__RANK_0.distcp`: the bytes of the tensors that the rank wrote, one after the other;
- `index.json`: type, size and location of each tensor, and plain values such as optimizer settings;
- `state.json`: images seen, the identity of the model, the caller's facts, and the size and SHA-256 of
  every other file. It is written last and includes a digest of itself.

`torch.distributed.checkpoint` plans which rank writes and reads what; its pickled metadata is not written.
Digests detect damage, but anyone who alters a checkpoint can recompute them. So the contents are checked as
well: only files listed in `state.json` are opened, every element of a tensor has its own bytes in one of
them, and nothing takes more memory than those files.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from sparface.errors import UserError
from sparface.files import inside, read_bounded, sha256
from sparface.forms import COUNT, fits

SCHEMA = 3
STATE_FILE, INDEX_FILE = "state.json", "index.json"
STATE = {
    "images_seen": COUNT,
    "identity": str,
    "facts": dict,
    "files": {str: {"bytes": COUNT, "sha256": str}},
}
MAX_STATE, MAX_INDEX = 1 << 24, 1 << 26
"""Maximum bytes of the two files; parsed JSON takes some twenty times as much memory."""
MAX_ELEMENTS = 1 << 48
"""Maximum elements of a tensor, where a dimension of 0 counts as 1."""
DTYPES = {str(v).removeprefix("torch."): v for v in vars(torch).values() if isinstance(v, torch.dtype)}


# -- the state ---------------------------------------------------------------------------------------


def read_state(path: Path) -> dict[str, Any]:
    """Read `state.json` of a checkpoint: schema, images_seen, identity, facts, files.

    Raises `UserError` if it is missing, damaged, or written by another version of sparface.
    """
    try:
        state: dict[str, Any] = json.loads(read_bounded(path / STATE_FILE, MAX_STATE))
        sound = state.pop("digest") == _state_digest(state)
        schema = state["schema"]
    except OSError as error:
        raise UserError(f"{path}: {STATE_FILE} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise UserError(f"{path}: {STATE_FILE} is truncated or was altered")
    if schema != SCHEMA:
        raise UserError(f"{path}: has schema {schema}, not {SCHEMA}; use the sparface version that wrote it")
    if not fits(state, STATE) or INDEX_FILE not in state["files"]:
        raise UserError(f"{path}: {STATE_FILE} was altered: fields are missing or invalid")
    return state


def write_state(file: Path, state: dict[str, Any]) -> None:
    """Write a state with its digest and sync it to disk."""
    _write_json(file, {**state, "digest": _state_digest(state)})


def checkpoint_problem(path: Path) -> str | None:
    """Describe what is wrong with a checkpoint in one line that names the file; None if it is intact."""
    try:
        inside(path.parent, path.name)
        files: dict[str, dict[str, Any]] = read_state(path)["files"]
        for name, entry in files.items():
            try:
                if not (file := inside(path, name)).is_file():
                    return f"{path}: {name} is missing"
                if (size := file.stat().st_size) != entry["bytes"]:
                    return f"{path}: {name} has {size} bytes instead of {entry['bytes']}"
                if sha256(file) != entry["sha256"]:
                    return f"{path}: {name} was altered (its digest differs)"
            except OSError as error:
                return f"{path}: {name} cannot be read ({error.strerror})"
        Reader(path).read_metadata()
    except UserError as error:
        return str(error)
    return None


def digests(folder: Path, rank: int) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of the files written by this rank; rank 0 also wrote the index."""
    names = [path.name for path in folder.glob(f"__{rank}_*")] + ([INDEX_FILE] if rank == 0 else [])
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in sorted(names)
    }


def _state_digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _write_json(file: Path, value: Any) -> None:
    with open(file, "w") as stream:
        json.dump(value, stream, separators=(",", ":"))
        stream.flush()
        os.fsync(stream.fileno())


# -- tensors and values ------------------------------------------------------------------------------


class SavingPlanner(DefaultSavePlanner):
    """Passes Python values on as they are, not pickled."""

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:
        return object


class Writer(FileSystemWriter):
    """Writes raw tensor bytes: thousands of `torch.save` calls would delay the training's Python code."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.values: dict[str, Any] = {}

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
                if item.type == WriteItemType.BYTE_IO:
                    self.values[item.index.fqn] = data
                else:
                    assert isinstance(data, Tensor)
                    file.write(_bytes(data))
                length = file.tell() - offset
                results.append(WriteResult(item.index, length, _StorageInfo(name, offset, length)))
            file.flush()
            os.fsync(file.fileno())
        return results

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index, on rank 0, which holds all values."""
        places = {result.index: result.storage_data for part in results for result in part}
        tensors = {}
        for name, entry in metadata.state_dict_metadata.items():
            if not isinstance(entry, TensorStorageMetadata):
                continue
            parts = []
            for chunk in sorted(entry.chunks, key=lambda chunk: tuple(chunk.offsets)):
                assert chunk.sizes[1:] == entry.size[1:], f"{name} is not sharded along its first dimension"
                place = places[MetadataIndex(name, chunk.offsets)]
                if rows := chunk.sizes[0] if chunk.sizes else 1:
                    parts.append([place.relative_path, place.offset, rows])
            dtype = str(entry.properties.dtype).removeprefix("torch.")
            tensors[name] = {"dtype": dtype, "size": list(entry.size), "parts": parts}
        _write_json(Path(self.path) / INDEX_FILE, {"tensors": tensors, "values": self.values})


class LoadingPlanner(DefaultLoadPlanner):
    """Reports how the checkpoint differs from the target."""

    def load_value(self, name: str, value: Any) -> None:
        """Set a Python value in the nested dicts."""
        *parents, last = self.mappings[name]
        owner: Any = self.original_state_dict
        for key in parents:
            owner = owner[key]
        owner[last] = value

    def differences(self) -> list[str]:
        """One line per key that is on one side only, or differs in shape or type."""
        assert self.metadata is not None
        there = {key: form(entry) for key, entry in self.metadata.state_dict_metadata.items()}
        here = {key: form(value) for key, value in self.state_dict.items()}
        lines = [
            f"{key} is {there[key]} in the checkpoint and {here[key]} here"
            for key in here
            if key in there and there[key] != here[key]
        ]
        lines += [f"{key} is not in the checkpoint" for key in here if key not in there]
        return lines + [f"{key} is only in the checkpoint" for key in there if key not in here]


class Reader(FileSystemReader):
    """Reads and checks what `Writer` wrote."""

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        assert isinstance(planner, LoadingPlanner)
        with ExitStack() as stack:
            tensors = [item for item in plan.items if item.type != LoadItemType.BYTE_IO]
            names = {self.storage_data[item.storage_index].relative_path for item in tensors}
            files = {n: stack.enter_context(open(inside(Path(self.path), n), "rb")) for n in names}
            for item in plan.items:
                if item.type == LoadItemType.BYTE_IO:
                    planner.load_value(item.dest_index.fqn, self.values[item.storage_index.fqn])
                    continue
                place = self.storage_data[item.storage_index]
                files[place.relative_path].seek(place.offset)
                part = self._tensor(item.storage_index, files[place.relative_path].read(place.length))
                for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                    part = part.narrow(dim, start, length)
                target = planner.resolve_tensor(item).detach()
                target.copy_(part)
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _tensor(self, index: MetadataIndex, data: bytes) -> Tensor:
        """Build a tensor, or a part of one, from its bytes."""
        entry = self.entries[index.fqn]
        assert isinstance(entry, TensorStorageMetadata)
        size = next(chunk.sizes for chunk in entry.chunks if chunk.offsets == index.offset)
        if not data:
            return torch.empty(size, dtype=entry.properties.dtype)
        return torch.frombuffer(bytearray(data), dtype=entry.properties.dtype).view(size)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index as torch's `Metadata`. Raises `UserError` if it is damaged or inconsistent."""
        path = Path(self.path)
        sizes = {name: entry["bytes"] for name, entry in read_state(path)["files"].items()}
        try:
            index = json.loads(read_bounded(inside(path, INDEX_FILE), MAX_INDEX))
            self.values: dict[str, Any] = dict(index["values"])
            self.entries, places = {}, {}
            for name, entry in index["tensors"].items():
                self.entries[name], found = _placed(name, entry, sizes)
                places.update(found)
            _require_apart([place for place in places.values() if place.length])
        except OSError as error:
            raise UserError(f"{path}: {INDEX_FILE} cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path}: {INDEX_FILE} was altered ({reason})") from None
        values = {name: BytesStorageMetadata() for name in self.values}
        return Metadata({**values, **self.entries}, storage_data=places)


def form(value: Any) -> str:
    """Shape and type of a tensor or of its index entry; "a value" for anything else."""
    if isinstance(value, TensorStorageMetadata):
        return f"{list(value.size)} {str(value.properties.dtype).removeprefix('torch.')}"
    if isinstance(value, Tensor):
        return f"{list(value.size())} {str(value.dtype).removeprefix('torch.')}"
    return "a value"


def _placed(
    name: str, entry: dict[str, Any], sizes: dict[str, int]
) -> tuple[TensorStorageMetadata, dict[MetadataIndex, _StorageInfo]]:
    """A tensor of the index and the locations of its parts, which must be complete and inside the files."""
    dtype, size = DTYPES[entry["dtype"]], entry["size"]
    if not fits(size, [COUNT]) or math.prod(max(1, length) for length in size) > MAX_ELEMENTS:
        raise ValueError(f"{name} has an impossible size")
    row = math.prod(size[1:]) * dtype.itemsize
    chunks, places, start = [], {}, 0
    for file, offset, rows in entry["parts"]:
        if not fits([offset, rows], [COUNT]) or not rows:
            raise ValueError(f"{name} has an impossible part")
        if file not in sizes or offset + rows * row > sizes[file]:
            raise ValueError(f"{name} lies outside of the checkpoint's files")
        at = torch.Size([start, *[0] * (len(size) - 1)] if size else [])
        chunks.append(ChunkStorageMetadata(at, torch.Size([rows, *size[1:]] if size else [])))
        places[MetadataIndex(name, at)] = _StorageInfo(file, offset, rows * row)
        start += rows
    if start != (size[0] if size else 1):
        raise ValueError(f"{name} is incomplete")
    return TensorStorageMetadata(TensorProperties(dtype), torch.Size(size), chunks), places


def _require_apart(places: list[_StorageInfo]) -> None:
    """Raise `ValueError` if two tensors share bytes: a small file could then demand any amount of memory."""
    places.sort(key=lambda place: (place.relative_path, place.offset))
    for before, after in itertools.pairwise(places):
        same = before.relative_path == after.relative_path
        if same and before.offset + before.length > after.offset:
            raise ValueError(f"tensors share bytes of {after.relative_path}")


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data
