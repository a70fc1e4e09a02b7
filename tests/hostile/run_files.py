"""More of the table: what a run or a job has written, EXIF, and disks that are full.

Reports and lists of jobs leave out what is damaged and go on, so many of these are harmless (code 0).
"""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from breaking import ALIGN, TRAIN, VERIFY, Breaking, dumped, fields, json_documents, kinds, truncated, writing
from harness import Case
from inputs import made

FEW = ("null", "a list")
"""A report takes a second to draw, so of each field only these kinds of something else are tried."""
COMPARE = ["compare", "run", "--out", "report.html"]
METRICS = {"images": 100, "time": 1.0, "loss": 2.0, "images_per_second": 10.0}
EVENT = {"images": 100, "kind": "resume", "message": "from step-000000100", "policy": "log"}
TASK = {"id": "1", "command": ["train"], "out": "run"}
JOB = {"submitted": 1.0, "name": "n", "cluster": "local", "tasks": [TASK]}
NOTE = {"event": "start", "task": 0, "attempt": 0, "rank": 0, "host": "x", "pid": 1}
EVALUATION: dict[str, Any] = {
    "name": "faces",
    "figures": {"accuracy": 0.9, "standard_error": 0.1, "auc": 0.9, "eer": 0.1, "tar_at_far_0.001": 0.5},
    "pairs": {"same": 5, "different": 5},
    "provenance": {"images_seen": 100, "faces": 10, "centred": 0, "checkpoint": "step-000000100",
                   "checkpoint_digest": "0" * 64, "pairs": "10", "template": "arcface",
                   "averaged": False, "parameters": 3},
    "roc": {"far": [0, 1], "tar": [0.5, 1]},
}  # fmt: skip
MEASURED: dict[str, Any] = {
    "kind": "identification",
    "name": "<b>faces",
    "figures": {"<b>dark/rank_1": 0.5},
    "intervals": {"<b>dark/rank_1": [0.4, 0.6]},
    "provenance": {"images_seen": 100},
}


def cases() -> Iterator[Case]:
    yield from records("run/metrics.jsonl", METRICS)
    yield from records("run/events.jsonl", EVENT)
    yield from evaluations()
    yield from captions()
    yield from previews()
    yield from attempts()
    yield from exif()
    yield from full_disks()


def records(file: str, sound: dict[str, Any]) -> Iterator[Case]:
    """A file of records that is no file is refused; a damaged line is left out."""
    refused = {"is a folder", "is a FIFO", "is a link to a device", "is a link to another file"}
    for name, breaking in [*kinds(), *json_documents(), *lines(sound)]:
        code = 2 if name in refused or "circle" in name else 0
        yield Case(f"{file} {name}", placed(file, breaking, COMPARE), code, ("report.html",))


def lines(sound: dict[str, Any]) -> Iterator[tuple[str, Breaking]]:
    for name, record in fields(sound, FEW):
        yield name, dumped(record)
    whole = json.dumps(sound).encode() + b"\n"
    yield "has a torn line", writing(whole + whole[:20])
    yield "has a line of megabytes", writing(whole + b'{"a": "' + b"x" * 5_000_000 + b'"}\n')
    yield "has a NUL", writing(whole + b"\0\0\0\n")
    yield "has markup", writing(json.dumps({**sound, "kind": "<script>", "<script>": 1}).encode())


def evaluations() -> Iterator[Case]:
    rows = [*kinds(), *json_documents(), *((n, dumped(d)) for n, d in fields(EVALUATION, FEW))]
    for part in ("figures", "pairs", "provenance", "roc"):
        rows += [(f"{part} {n}", dumped({**EVALUATION, part: d})) for n, d in fields(EVALUATION[part], FEW)]
    rows += [(f"of another kind {n}", dumped(d)) for n, d in fields(MEASURED, FEW)]
    for name, breaking in rows:
        run = placed("run/evaluations/faces-000000100.json", breaking, COMPARE)
        yield Case(f"evaluation {name}", run, 0, ("report.html",))


def captions() -> Iterator[Case]:
    """Without sound ones, a report shows the names of metrics and pictures."""
    sound = {
        "roles": ["recognizer"],
        "metrics": {"Losses": {"loss": "the loss"}},
        "pictures": {"face": "the face"},
    }
    rows = [*kinds(), *json_documents(), *((n, dumped(d)) for n, d in fields(sound))]
    for name, text in TEXTS.items():
        has = {"metrics": {text: {"loss": text}}, "pictures": {"face": text}}
        names = {"roles": [text], "metrics": {"a": {text: "x"}}, "pictures": {text: "x"}}
        rows += [(f"has {name}", dumped(sound | has)), (f"is for {name}", dumped(names))]
    many = {str(number): "x" for number in range(20_000)}
    thousands = {"roles": list(many), "metrics": {"Losses": many}, "pictures": many}
    rows.append(("has thousands of them", dumped(thousands)))
    rows.append(("has megabytes", dumped(sound | {"pictures": {"face": "x" * 2_000_000}})))
    for name, breaking in rows:

        def captioned(work: Path, breaking: Breaking = breaking) -> None:
            dumped(METRICS)(work / "run/metrics.jsonl")
            (work / "run/previews").mkdir()
            shutil.copy(work / "photos/a/1.jpg", work / "run/previews/000000100-face.png")
            breaking(work / "run/captions.json")

        yield Case(f"captions {name}", made(captioned, COMPARE), 0, ("report.html",))


TEXTS = {
    "a path": "../../outside/secret.txt",
    "an absolute path": "/etc/passwd",
    "control characters": "\x1b[2J\0\n",
    "markup": "<script src='http://127.0.0.1:1/x.js'></script>{{ 7 * 7 }}",
    "mathematics": "$\\frac{1$",
    "half a character": "\ud800",
}


def previews() -> Iterator[Case]:
    from pictures import pictures

    rows = [*kinds(), *((name, writing(data)) for name, data in pictures().items())]
    for name, breaking in rows:
        run = placed("run/previews/000000100-face.png", breaking, COMPARE)
        yield Case(f"preview {name}", run, 0, ("report.html",))


def attempts() -> Iterator[Case]:
    rows = [*kinds(), *json_documents(), *truncated(3), *lines(NOTE)]
    for name, breaking in rows:

        def both(work: Path, breaking: Breaking = breaking) -> None:
            dumped(JOB)(work / "jobs/a/job.json")
            writing(json.dumps(NOTE).encode() + b"\n")(work / "jobs/a/attempts.jsonl")
            breaking(work / "jobs/a/attempts.jsonl")

        yield Case(f"attempts.jsonl {name}", made(both, ["jobs", "jobs"]), 0)


def exif() -> Iterator[Case]:
    """EXIF that says which way is up, in a photo that is no other way broken: used, or rejected."""
    from PIL import Image

    out = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(out, "JPEG")
    photo, draw = out.getvalue(), random.Random(0)
    head, entry = b"Exif\0\0MM\0*\0\0\0\x08", struct.Struct(">HHII").pack
    contents = {
        "is empty": b"",
        "is a header alone": head,
        "has 65,535 entries": head + b"\xff\xff",
        "points past its end": head + b"\0\1" + entry(0x112, 3, 1, 2**32 - 1) + b"\xff" * 4,
        "points to itself": head + b"\0\1" + entry(0x8769, 4, 1, 8) + b"\0\0\0\x08",
        "has a huge count": head + b"\0\1" + entry(0x112, 3, 2**32 - 1, 8) + b"\0" * 4,
        "has the orientation 9": head + b"\0\1" + entry(0x112, 3, 1, 9 << 16) + b"\0" * 4,
        "has a text as orientation": head + b"\0\1" + entry(0x112, 2, 4, 0x61626300) + b"\0" * 4,
        "has a fraction as orientation": head + b"\0\1" + entry(0x112, 5, 1, 0) + b"\0" * 4,
        "has an unknown type": head + b"\0\1" + entry(0x112, 99, 1, 1) + b"\0" * 4,
        "is of the other order": head.replace(b"MM\0*\0\0\0\x08", b"II*\0\x08\0\0\0") + b"\1\0" + bytes(12),
        **{f"is noise ({i})": head + draw.randbytes(60) for i in range(8)},
    }
    for name, data in contents.items():
        segment = b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data
        breaking = writing(photo[:2] + segment + photo[2:])
        yield Case(f"EXIF {name}", placed("photos/a/1.jpg", breaking, ALIGN), 0, ("out",))


def full_disks() -> Iterator[Case]:
    """No file may grow beyond some bytes: a machine's failure, which the same command may survive later."""
    commands = {
        "align": (ALIGN, 1000),
        "train": ([*TRAIN, "--training.checkpoint_every=16"], 20_000),
        "compare": (COMPARE, 1000),
        "export": (["export", "run", "out"], 10_000),
        "evaluate": ([*VERIFY, "--json", "out"], 100),
        "generate": (
            ["generate", "--checkpoint", "run", "--shards", "faces", "--out", "out", "--factor", "1"],
            1000,
        ),
        "sheet": (["shards", "sheet", "faces", "--out", "out"], 1000),
    }
    for verb, (arguments, limit) in commands.items():
        run = made(lambda work: None, arguments)
        yield Case(f"full disk in {verb}", run, 1, ("out", "run/evaluations"), file_bytes=limit)


def placed(file: str, breaking: Breaking, arguments: list[str]) -> Any:
    def place(work: Path) -> None:
        (work / file).parent.mkdir(exist_ok=True)
        breaking(work / file)

    return made(place, arguments)
