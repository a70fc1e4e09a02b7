"""Hostile galleries, tables of conditions, and lists of pairs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from breaking import VERIFY, Breaking, Rows, at, fields, kinds, truncated, writing
from photo_inputs import filled
from safetensors.numpy import load, save

FILE, TABLE = "people.safetensors", "conditions.csv"
NAME = ["identify", "photos/a/1.jpg", "--gallery", FILE, "--checkpoint", "run", "--already-cropped"]
IDENTIFY = ["evaluate", "identify", "--checkpoint", "run", "--shards", "faces", "--conditions", TABLE]


def write_gallery(work: Path) -> None:
    """A sound gallery of one person, made with the run."""
    from sparface.evaluation.recognizers import open_recognizer
    from sparface.gallery.file import Gallery

    opened = open_recognizer(work / "run")
    row, person = np.eye(1, 32, dtype=np.float32), np.zeros(1, np.int64)
    Gallery(["a"], row, person, ["a/1.jpg"], [""], "run", opened.digest, 32, "arcface", 0.5, "given").save(
        work / FILE
    )
    (work / TABLE).write_text("face,condition\n#0,gallery\n#6,gallery\n#1,dark\n#7,light\n")


def galleries(address: str) -> Rows:
    rows: list[tuple[str, Breaking]] = [*kinds(), *truncated(8)]
    rows += [(name, writing(data)) for name, data in contents().items()]
    rows += [(f"whose description {name}", changed) for name, changed in descriptions()]
    for name, breaking in rows:
        yield f"file {name}", at(FILE, breaking), NAME


def contents() -> dict[str, bytes]:
    rows = np.eye(1, 32, dtype=np.float32)
    beyond = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return {
        "is a pickle": b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.",
        "has no description": save({"embeddings": rows}),
        "has a description that is no JSON": save({"embeddings": rows}, {"gallery": "{"}),
        "has a description nested deeply": save({"embeddings": rows}, {"gallery": "[" * 100_000}),
        "has a header of exabytes": (2**62).to_bytes(8, "little") + b"{}",
        "has a tensor past its end": len(beyond).to_bytes(8, "little") + beyond,
    }


def descriptions() -> Iterator[tuple[str, Breaking]]:
    """The sound gallery with one field missing or something else."""

    def changing(change: dict[str, Any] | None, name: str) -> Breaking:
        def breaking(path: Path) -> None:
            data = path.read_bytes()
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            about = json.loads(header["__metadata__"]["gallery"])
            if change is None:
                del about[name]
            else:
                about |= change
            path.write_bytes(save(load(data), {"gallery": json.dumps(about)}))

        return breaking

    sound = {
        "version": 2, "people": ["a"], "person": [0], "sources": ["a/1.jpg"], "covers": [""],
        "threshold": 0.5,
        "recognizer": {"name": "run", "digest": "ab" * 32}, "size": 32, "template": "arcface", "basis": "-",
    }  # fmt: skip
    for name, document in fields(sound):
        gone = next((key for key in sound if key not in document), None)
        yield name, changing(None if gone else document, gone or "")
    yield "names another recognizer", changing({"recognizer": {"name": "x", "digest": "ab" * 32}}, "")
    yield "names a person of escapes", changing({"people": ["\x1b[2J"]}, "")
    yield "has a photo of escapes", changing({"sources": ["\x1b[2J"]}, "")
    yield "has huge faces", changing({"size": 1 << 20}, "")
    yield "has a threshold of infinity", changing({"threshold": float("inf")}, "")


def conditions(address: str) -> Rows:
    contents = {
        "has no columns": b"hello\n",
        "lacks conditions": b"face\n#0\n",
        "has an empty face": b"face,condition\n,gallery\n",
        "has an empty condition": b"face,condition\n#0,\n",
        "has a condition of escapes": b"face,condition\n#0,gallery\n#1,\x1b[2J\n",
        "has a condition of a megabyte": b"face,condition\n#0,gallery\n#1," + b"x" * 1_000_000 + b"\n",
        "has no gallery": b"face,condition\n#0,dark\n",
        "has a gallery only": b"face,condition\n#0,gallery\n",
        "names a face that is not there": b"face,condition\n#0,gallery\n#99999999999999999999,dark\n",
        "names a path": b"face,condition\n#0,gallery\n../../outside/secret,dark\n",
        "names a face twice": b"face,condition\n#0,gallery\n#0,dark\n",
        "is UTF-16": "face,condition\n#0,gallery\n".encode("utf-16"),
        "has a quote that never ends": b'face,condition\n"#0,gallery\n',
        "has probes of strangers only": b"face,condition\n#0,gallery\n#7,dark\n",
    }
    yield from filled(TABLE, contents, IDENTIFY)


def lists(address: str) -> Rows:
    contents = {
        "has half a pair": b"a_1.jpg 1\n",
        "has labels that differ": b"a_1.jpg 1\na_2.jpg 0\n",
        "has a path": b"a_1.jpg 1\n../a_2.jpg 1\n",
        "has a label of a million digits": b"a_1.jpg 1\na_2.jpg " + b"1" * 1_000_000 + b"\n",
        "has a third field": b"a_1.jpg 1\na_2.jpg 1 2\n",
        "names people who are not there": b"a_1.jpg 1\na_2.jpg 1\nb_1.jpg 0\nc_1.jpg 0\n",
        "pairs a photo with itself": b"a_1.jpg 1\na_1.jpg 1\n",
    }
    for name, data in contents.items():
        yield name, at("pairs.txt", writing(data)), [*VERIFY, "--pairs", "pairs.txt"]
