"""Hostile runs, weights and jobs."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from breaking import (
    TRAIN,
    VERIFY,
    Breaking,
    Rows,
    at,
    dumped,
    fields,
    json_documents,
    kinds,
    truncated,
    writing,
)
from command_inputs import SOUND_CONFIG, merged

from traps import Trap


def checkpoints(address: str) -> Rows:
    newest = "run/checkpoints/step-000000100"

    def state(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Breaking:
        """state.json with other content and a digest that agrees."""

        def breaking(path: Path) -> None:
            from sparface.runs.checkpoint_files import write_state

            document = json.loads(path.read_text())
            document.pop("digest")
            changed = change(document)
            path.unlink()
            write_state(path, changed)

        return breaking

    for file in ("state.json", "__0_0.distcp", "index.json"):
        rows: list[tuple[str, Breaking]] = [*kinds(), *truncated(4), ("is gone", Path.unlink)]
        for name, breaking in rows:
            yield f"with {file} that {name}", at(f"{newest}/{file}", breaking), VERIFY
    for name, breaking in json_documents():
        yield f"with a state that {name}", at(f"{newest}/state.json", breaking), VERIFY
    sound = {"schema": 3, "images_seen": 100, "identity": "", "facts": {}, "files": {}}
    for name in sound:
        yield (
            f"whose state lacks {name}",
            at(f"{newest}/state.json", state(lambda d, n=name: {k: v for k, v in d.items() if k != n})),
            VERIFY,
        )  # type: ignore[misc]
        for kind, wrong in (("null", None), ("a text", "x"), ("a number", -1), ("a list", [[]])):
            if not (name == "identity" or (name == "images_seen" and kind == "x")):
                yield (
                    f"whose state has {kind} as {name}",
                    at(f"{newest}/state.json", state(lambda d, n=name, w=wrong: {**d, n: w})),
                    VERIFY,
                )  # type: ignore[misc]
    yield (
        "that lists a file outside",
        at(
            f"{newest}/state.json",
            state(
                lambda d: {
                    **d,
                    "files": d["files"]
                    | {"../../../../outside/secret.txt": {"bytes": 15, "sha256": "0" * 64}},
                }
            ),
        ),
        VERIFY,
    )
    for name, data in pickles().items():
        yield f"whose plan {name}", lambda work, data=data: reseal(work / newest, "index.json", data), VERIFY  # type: ignore[misc]
    yield "whose bytes are others", lambda work: reseal(work / newest, "__0_0.distcp", None, cut=True), VERIFY
    yield "whose folder is a link to the outside", linked_checkpoint, VERIFY
    yield (
        "that is a file",
        lambda work: (shutil.rmtree(work / newest), (work / newest).write_text("x")),
        VERIFY,
    )


def linked_checkpoint(work: Path) -> None:
    newest = work / "run/checkpoints/step-000000100"
    newest.rename(work / "../outside/step")
    newest.symlink_to("../../../outside/step")


def reseal(checkpoint: Path, name: str, data: bytes | None, cut: bool = False) -> None:
    """Other bytes in a checkpoint's file, with every digest right."""
    from sparface.runs.checkpoint_files import write_state

    path, state = checkpoint / name, checkpoint / "state.json"
    content = path.read_bytes()[: -len(path.read_bytes()) // 2] if data is None else data
    path.write_bytes(content)
    document = json.loads(state.read_text())
    document.pop("digest")
    document["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    state.unlink()
    write_state(state, document)


def pickles() -> dict[str, bytes]:
    return {
        "runs a command": pickle.dumps(Trap(Path("pwned"))),
        "runs a command deep inside": pickle.dumps({"a": [Trap(Path("pwned"))]}),
        "is a plain table": pickle.dumps({}),
        "is a number": pickle.dumps(3),
        "is noise": b"\x80\x04" + bytes(range(256)),
        "is empty": b"",
        "is a memo bomb": b"\x80\x02]" + b"q\x00" + b"(h\x00h\x00l" * 1000 + b".",
        "imports os.system": b"cos\nsystem\n(S'touch pwned'\ntR.",
        "asks for a huge bytes object": b"\x80\x04\x8e" + struct.pack("<Q", 2**62),
    }


def weights(address: str) -> Rows:
    for suffix in ("safetensors", "pt"):
        arguments = [*TRAIN, f"--training.start_from=weights.{suffix}"]
        rows: list[tuple[str, Breaking]] = [*kinds(), *truncated(4)]
        rows += [
            (name, writing(data))
            for name, data in (tensors() if suffix == "safetensors" else archives()).items()
        ]
        for name, breaking in rows:
            yield f".{suffix} that {name}", at(f"weights.{suffix}", breaking), arguments


def tensors() -> dict[str, bytes]:
    def file(header: Any, data: bytes = b"") -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    def one(**fields: Any) -> bytes:
        return file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **fields}}, bytes(4))

    return {
        "has a header of exabytes": struct.pack("<Q", 2**62) + b"{}",
        "has a header that is not JSON": file(b"{"),
        "has a header nested deeply": file(b"[" * 100_000),
        "has no tensors": file({}),
        "has other tensors": one(),
        "has a tensor past its end": one(data_offsets=[0, 4_000_000]),
        "has a tensor of huge shape": one(shape=[2**40, 2**40]),
        "has a negative shape": one(shape=[-1]),
        "has an unknown type": one(dtype="X9"),
    }


def archives() -> dict[str, bytes]:
    def archive(data: bytes, compression: int = zipfile.ZIP_STORED, name: str = "a/data.pkl") -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", compression) as file:
            file.writestr(name, data)
            file.writestr("a/version", "3")
        return out.getvalue()

    return {
        **{f"holds a pickle that {name}": archive(data) for name, data in pickles().items()},
        **{f"is a pickle that {name}": data for name, data in pickles().items() if data},
        "is a zip bomb": archive(bytes(100_000_000), zipfile.ZIP_DEFLATED),
        "is a zip of something else": archive(b"hello", name="hello.txt"),
        "is a zip with a path": archive(b"hello", name="../../outside/x"),
    }


def ledgers(address: str) -> Rows:
    sync = ["sync", "run"]
    sent = {"metrics.jsonl": 0, "lineage.jsonl": 0}
    sound: dict[str, Any] = {
             "key": "0" * 32, "run_id": None, "sent": sent, "artifacts": {}, "params": {}, "uri": address,
             "experiment": "e", "run_name": "r", "status": "FINISHED", "told": ""}  # fmt: skip
    rows: list[tuple[str, Breaking]] = [*kinds(), *json_documents()]
    rows += [(name, dumped(document)) for name, document in fields(sound)]
    rows += [
        ("names a server", dumped(sound)),
        ("names a server with a login", dumped({**sound, "uri": address.replace("://", "://me:secret@")})),
        ("names a database elsewhere", dumped({**sound, "uri": "sqlite:////tmp/elsewhere.db"})),
        ("sends a file outside", dumped({**sound, "artifacts": {"../../outside/secret.txt": 1}})),
    ]
    for name, breaking in rows:
        yield f"ledger {name}", at("run/tracking.json", breaking), sync


def jobs(address: str) -> Rows:
    sound = {
        "submitted": 1.0, "name": "n", "cluster": "local",
        "tasks": [{"id": "1", "command": ["train"], "out": "run"}],
    }  # fmt: skip
    rows: list[tuple[str, Breaking]] = [*kinds(), *json_documents()]
    rows += [(name, dumped(document)) for name, document in fields(sound)]
    for name, task in fields(sound["tasks"][0]):  # type: ignore[index]
        rows.append((f"has a task that {name}", dumped({**sound, "tasks": [task]})))
    for name, breaking in rows:
        yield f"record {name}", at("jobs/a/job.json", breaking), ["jobs", "jobs"]


def run_configs(address: str) -> Rows:
    for name, breaking in (
        *kinds(),
        *truncated(3),
        *((n, writing(t.encode())) for n, t in RUN_CONFIGS.items()),
    ):
        yield name, at("run/config.yaml", breaking), VERIFY


RUN_CONFIGS = {
    "includes another file": "config: /etc/passwd\n",
    "is a list": "- 1\n",
    "has a section that is a path": "data: /etc/passwd\n",
    "has a huge network": SOUND_CONFIG + "generator: {width: 100000}\n",
    "has a huge embedding": SOUND_CONFIG.replace("embedding: 32", "embedding: 100000000"),
    "has another network": SOUND_CONFIG.replace("embedding: 32", "embedding: 64"),
    "runs a command": '!!python/object/apply:os.system ["touch pwned"]\n',
    "has weights to fetch": merged(SOUND_CONFIG, "training: {start_from: vggface2}"),
}


def judges(address: str) -> Rows:
    arguments = [
        "generate",
        "--checkpoint",
        "run",
        "--shards",
        "faces",
        "--out",
        "out",
        "--factor",
        "1",
        "--judge",
        "judge.onnx",
    ]
    rows: list[tuple[str, Breaking]] = [
        *kinds(),
        ("is noise with a name", writing(b"\x08\x07\x12\x04test" + bytes(100))),
    ]
    rows += [("has a huge field", writing(b"\x3a\xff\xff\xff\xff\x0f"))]
    for name, breaking in rows:
        yield f"judge {name}", at("judge.onnx", breaking), arguments
