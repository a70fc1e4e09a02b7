"""The table of hostile inputs: what is broken, how, and the command that meets it."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from breaking import Breaking, dumped, fields, json_documents, kinds, truncated, writing
from harness import Case

SHOW = ["shards", "show", "faces"]
VERIFY = ["evaluate", "verification", "--checkpoint", "run", "--shards", "faces"]
ALIGN = ["align", "photos", "out", "--already-cropped", "--size", "32", "--workers", "1"]
TRAIN = ["train", "--config", "given.yaml", "--out", "out"]
SHARD = "faces/faces-000000.tar"


def cases(address: str) -> Iterator[Case]:
    """All of them; `address` is a listener's that must hear nothing."""
    for room, table in TABLES.items():
        for name, breaking, arguments in table(address):
            yield Case(f"{room} {name}", made(breaking, arguments), writes=WRITES.get(room, ()))


def made(breaking: Breaking, arguments: list[str]) -> Callable[[Path], list[str]]:
    def make(work: Path) -> list[str]:
        breaking(work)
        return arguments

    return make


Rows = Iterator[tuple[str, Breaking, list[str]]]


def at(name: str, breaking: Breaking) -> Breaking:
    return lambda work: breaking(work / name)


# -- shard sets ---------------------------------------------------------------------------------


def manifests(address: str) -> Rows:
    def edited(change: Callable[[dict[str, Any]], Any]) -> Breaking:
        def breaking(path: Path) -> None:
            document = json.loads(path.read_bytes())
            replaced = change(document)
            path.write_text(json.dumps(document if replaced is None else replaced))

        return breaking

    def field(name: str, value: Any) -> Breaking:
        return edited(lambda m: m.__setitem__(name, value))

    def shard(name: str, value: Any) -> Breaking:
        return edited(lambda m: m["shards"][0].__setitem__(name, value))

    rows: list[tuple[str, Breaking]] = [*kinds(), *truncated(8), *json_documents()]
    for name in (
        "schema",
        "name",
        "size",
        "encoding",
        "lossy",
        "identities",
        "provenance",
        "licence",
        "shards",
    ):
        rows.append((f"lacks {name}", edited(lambda m, name=name: m.pop(name) and None)))  # type: ignore[misc]
        for kind, wrong in (("null", None), ("a number", -1), ("a list", [[]]), ("huge", 10**300)):
            rows.append((f"has {kind} as {name}", field(name, wrong)))
    for name in ("file", "samples", "bytes", "sha256", "runs"):
        rows.append(
            (f"has a shard without {name}", edited(lambda m, name=name: m["shards"][0].pop(name) and None))
        )  # type: ignore[misc]
        for kind, wrong in (
            ("null", None),
            ("a number", -1),
            ("a text", "x"),
            ("a list", [[1]]),
            ("huge", 10**300),
        ):
            rows.append((f"has {kind} as a shard's {name}", shard(name, wrong)))
    rows += [
        ("is of the future", field("schema", 99)),
        ("names a set with a path", field("name", "../x")),
        ("has faces of no size", field("size", [0, 0])),
        ("has huge faces", field("size", [10**9, 10**9])),
        ("has three sides", field("size", [32, 32, 32])),
        ("has an encoding to run", field("encoding", "pipe:id")),
        ("has no identities", field("identities", {})),
        ("has no shards", field("shards", [])),
        ("has more people than faces", field("identities", {f"p{i}": 1 for i in range(10_000)})),
        ("has a person of minus one face", field("identities", {"a": -1})),
        ("has an identity with an escape", field("identities", {"\x1b[2J": 72})),
        ("has a shard elsewhere", shard("file", "../../outside/secret.txt")),
        ("has an absolute shard", shard("file", "/etc/passwd")),
        ("has a run of another label", shard("runs", [[99, 72]])),
        ("has negative runs", shard("runs", [[0, -72]])),
        ("has overflowing runs", shard("runs", [[0, 2**62], [1, 2**62]])),
        ("has fractions as runs", shard("runs", [[0.5, 1.5]])),
        ("has runs side by side", shard("runs", [[0, 1], [0, 71]])),
        ("has ragged runs", shard("runs", [[0, 1], [1]])),
        ("has runs of texts", shard("runs", [["0", "72"]])),
        (
            "asks for gigabytes",
            edited(lambda m: m.update(shards=m["shards"] * 2000, identities={"a": 2**31 - 1})),
        ),
        ("has a run of two billion faces", edited(billions)),
    ]
    for name, breaking in rows:
        yield name, at("faces/manifest.json", breaking), SHOW


def billions(manifest: dict[str, Any]) -> None:
    manifest["shards"][0].update(samples=2**31 - 1, runs=[[0, 2**31 - 1]])
    manifest["identities"] = {"a": 2**31 - 1}


def shards(address: str) -> Rows:
    rows: list[tuple[str, Breaking]] = [
        *kinds(),
        *truncated(8),
        ("is gone", Path.unlink),
        ("is compressed", lambda path: path.write_bytes(zlib.compress(path.read_bytes()))),
        ("has another digest", lambda path: path.write_bytes(path.read_bytes() + bytes(512))),
    ]
    for name, breaking in rows:
        yield name, at(SHARD, breaking), VERIFY
    for name, breaking in sealed_shards():
        yield f"{name}, digest right", lambda work, breaking=breaking: seal(work, breaking), VERIFY  # type: ignore[misc]


def seal(work: Path, breaking: Breaking) -> None:
    """Break a shard and make the manifest agree, as somebody would who means harm."""
    path, manifest = work / SHARD, work / "faces/manifest.json"
    breaking(path)
    data = path.read_bytes()
    document = json.loads(manifest.read_bytes())
    document["shards"][0] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.write_text(json.dumps(document))


def sealed_shards() -> Iterator[tuple[str, Breaking]]:
    yield from ((f"{name}", breaking) for name, breaking in truncated(5))
    yield "is noise", writing(b"\x81" * 5120)
    yield "is zeros", writing(bytes(10240))
    for offset, name in HEADER.items():
        yield f"has noise as a header's {name}", patched(offset, b"\xff\xfe\xfd")
    for kind, name in TYPES.items():
        yield f"has a member that is {name}", retyped(kind)
    for name, value in SIZES.items():
        yield f"has a member of {name} bytes", patched(124, value)
    for key in ("../../outside/secret", "/etc/passwd", "a.b", "", "a b", "ü", "k" * 95):
        yield f"has a sample {key[:24]!r}", renamed(key)
    for name, content in SIDECARS.items():
        yield f"has a sidecar that {name}", membered(".json", content)
    for name, content in pictures().items():
        yield f"has a picture that {name}", membered(".png", content)
    yield "has a sample twice", reordered(lambda members: [*members[:2], *members[:2], *members[4:]])
    yield "has the picture behind", reordered(lambda members: [members[1], members[0], *members[2:]])
    yield "has one sidecar fewer", reordered(lambda members: members[:-1])
    yield (
        "has a stranger's sample",
        reordered(lambda members: [*members[2:4], *members[:2], *members[4:]][::-1]),
    )
    yield "has no sample", reordered(lambda members: [])


HEADER = {0: "name", 124: "size", 148: "checksum", 156: "type", 257: "magic", 345: "prefix"}
TYPES = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"5": "a folder", b"6": "a FIFO",
         b"x": "a pax header", b"L": "a long name", b"S": "sparse", b"g": "a global header"}  # fmt: skip
SIZES = {"minus one": b"-0000000001\0", "eight billion": b"77777777777\0", "binary": b"\x80" + b"\xff" * 11,
         "no": b" " * 12, "lettered": b"abcdefghijk\0"}  # fmt: skip
SIDECARS = {
    **{
        "is not JSON": b"{",
        "is a list": b"[]",
        "is empty": b"",
        "is null": b"null",
        "is not UTF-8": b'{"a": "\xff"}',
    },
    "is nested deeply": b"[" * 100_000,
    "lacks the label": b'{"identity": "a", "source": "b"}',
    "has a label that is a text": b'{"identity": "a", "label": "0", "source": "b"}',
    "has another identity": b'{"identity": "nobody", "label": 0, "source": "b"}',
    "has a source that is a list": b'{"identity": "a", "label": 0, "source": []}',
}


def pictures() -> dict[str, bytes]:
    def png(width: int, height: int, data: bytes = b"") -> bytes:
        def chunk(kind: bytes, body: bytes) -> bytes:
            return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")

    return {
        "is empty": b"",
        "is text": b"hello",
        "has no pixels": png(32, 32),
        "is larger than it should be": png(64, 64, zlib.compress(bytes(64 * 193))),
        "is huge": png(60_000, 60_000, zlib.compress(bytes(1000))),
        "has a billion pixels": png(2**31 - 1, 2**31 - 1),
        "is a bomb": png(32, 32, zlib.compress(bytes(50_000_000), 9)),
        "has broken pixels": png(32, 32, b"\x78\x9c" + b"\xff" * 50),
        "is a GIF": b"GIF89a" + bytes(20),
        "is an SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/"/></svg>',
    }


def patched(offset: int, data: bytes) -> Breaking:
    """Other bytes at a place of the first member's header, whose checksum is right again afterwards,
    unless it is what changed."""

    def breaking(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[offset : offset + len(data)] = data
        if offset != 148:
            checksum = sum(content[:148]) + 8 * 32 + sum(content[156:512])
            content[148:156] = b"%06o\0 " % checksum
        path.write_bytes(content)

    return breaking


def retyped(kind: bytes) -> Breaking:
    return patched(156, kind)


def renamed(key: str) -> Breaking:
    return reordered(
        lambda members: [
            (key + name[name.index(".") :] if i < 2 else name, data) for i, (name, data) in enumerate(members)
        ]
    )


def membered(suffix: str, content: bytes) -> Breaking:
    return reordered(
        lambda members: [
            (n, content if i < 2 and n.endswith(suffix) else data) for i, (n, data) in enumerate(members)
        ]
    )


def reordered(change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> Breaking:
    """Write the shard's members again as `change` wants them."""

    def breaking(path: Path) -> None:
        with tarfile.open(path) as old:
            members = [(m.name, old.extractfile(m).read()) for m in old.getmembers()]  # type: ignore[union-attr]
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as new:
            for name, data in change(members):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                new.addfile(info, io.BytesIO(data))
        path.write_bytes(out.getvalue())

    return breaking


# -- photos and lists of them -------------------------------------------------------------------


def photos(address: str) -> Rows:
    rows: list[tuple[str, Breaking]] = [*kinds(), *pictured()]
    for name, breaking in rows:
        yield name, at("photos/a/1.jpg", breaking), ALIGN
    yield (
        "are in a circle of links",
        lambda w: (w / "photos/a/1.jpg").unlink() or (w / "photos/a/x").symlink_to("."),
        ALIGN,
    )
    yield "are a link to a folder outside", outside_folder, ALIGN
    yield "are no folder", lambda w: None, ["align", "nowhere", "out"]
    yield "are an empty folder", lambda w: (w / "empty").mkdir(), ["align", "empty", "out"]
    yield "are a FIFO", lambda w: __import__("os").mkfifo(w / "fifo"), ["align", "fifo", "out"]


def outside_folder(work: Path) -> None:
    (work / "photos/a/1.jpg").rename(work / "../outside/1.jpg")
    (work / "photos/a").rmdir()
    (work / "photos/a").symlink_to("../../outside")


def pictured() -> Iterator[tuple[str, Breaking]]:
    yield from truncated(4)
    for name, data in pictures().items():
        if name not in ("is a bomb", "is larger than it should be"):
            yield name, writing(data)
    yield "is one pixel high and 60,000 wide", writing(jpeg(60_000, 1))
    yield "is one pixel wide and 60,000 high", writing(jpeg(1, 60_000))
    yield "claims 65,000 pixels a side", claimed(65_000)
    yield "claims no pixels", claimed(0)


def jpeg(width: int, height: int) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (width, height)).save(out, "JPEG")
    return out.getvalue()


def claimed(side: int) -> Breaking:
    data = bytearray(jpeg(64, 64))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", side, side)
    return writing(bytes(data))


def tables(address: str) -> Rows:
    contents = {
        "has no columns": b"hello\n",
        "lacks identities": b"path\na/1.jpg\n",
        "has an empty path": b"path,identity\n,x\n",
        "has an empty identity": b"path,identity\na/1.jpg,\n",
        "names the folder itself": b"path,identity\n.,x\n",
        "names a file outside": b"path,identity\n../outside/secret.txt,x\n",
        "names an absolute file": b"path,identity\n/etc/passwd,x\n",
        "names a NUL": b"path,identity\na\0b.jpg,x\n",
        "names a very long file": b"path,identity\n" + b"a" * 300 + b".jpg,x\n",
        "names a very long path": b"path,identity\n" + b"a/" * 5000 + b".jpg,x\n",
        "names a file twice": b"path,identity\na/1.jpg,x\na/1.jpg,y\n",
        "names nothing that is there": b"path,identity\nnowhere.jpg,x\n",
        "has a cell of megabytes": b"path,identity\n" + b"a" * 2_000_000 + b",x\n",
        "has a quote that never ends": b'path,identity\n"a,x\n',
        "is UTF-16": "path,identity\na,x\n".encode("utf-16"),
        "has an identity of escapes": b"path,identity\na/1.jpg,\x1b[2J\n",
        "has an identity too long": b"path,identity\na/1.jpg," + b"x" * 300 + b"\n",
    }
    rows: list[tuple[str, Breaking]] = [*kinds(), *((name, writing(data)) for name, data in contents.items())]
    for name, breaking in rows:
        yield name, at("photos/list.csv", breaking), ["align", "photos/list.csv", "out", *ALIGN[3:]]


def pairs(address: str) -> Rows:
    contents = {
        "announces too many": b"9\na\t1\t2\n",
        "announces nothing": b"0\n",
        "announces a fortune": b"999999999\n",
        "announces letters": b"x\n",
        "has two folds of letters": b"2\tx\n",
        "has spaces for tabs": b"1\na 1 2\na 1 b 1\n",
        "has an empty name": b"1\n\t1\t2\na\t1\tb\t1\n",
        "names a path": b"1\n../a\t1\t2\na\t1\tb\t1\n",
        "names a photo zero": b"1\na\t0\t2\na\t1\tb\t1\n",
        "names a negative photo": b"1\na\t-1\t2\na\t1\tb\t1\n",
        "pairs a photo with itself": b"1\na\t1\t1\na\t1\tb\t1\n",
        "has a different pair of one person": b"1\na\t1\t2\na\t1\ta\t2\n",
        "names people who are not there": b"1\na\t1\t2\na\t1\tb\t1\n",
        "has escapes": b"1\n\x1b[2J\t1\t2\na\t1\tb\t1\n",
        "is UTF-16": "1\na\t1\t2\n".encode("utf-16"),
        "has only line ends": b"\n\n\n",
        "has digits of another script": "١\n".encode(),
    }
    rows: list[tuple[str, Breaking]] = [*kinds(), *((name, writing(data)) for name, data in contents.items())]
    for name, breaking in rows:
        yield name, at("pairs.txt", breaking), [*VERIFY, "--pairs", "pairs.txt"]


# -- configurations and command lines -----------------------------------------------------------


def configurations(address: str) -> Rows:
    lines = {
        "includes another file": "config: /etc/passwd",
        **{f"has {kind} for a section": f"optimizer: {text}" for kind, text in YAML_VALUES.items()},
        **{f"has {kind} for a number": f"optimizer:\n  learning_rate: {text}" for kind, text in YAML_VALUES.items()},
        **{f"has {kind} for a count": f"training:\n  seed: {text}" for kind, text in YAML_VALUES.items() if kind != "a number"},
        **{f"has {kind} for a choice": f"training:\n  precision: {text}" for kind, text in YAML_VALUES.items()},
        **{f"has {kind} for a table": f"data:\n  mix: {text}" for kind, text in YAML_VALUES.items()},
        **{f"has {kind} for the shards": f"data:\n  shards: {text}" for kind, text in YAML_VALUES.items()},
        "has an unknown key": "optimizer:\n  speed: 3",
        "has an unknown section": "nonsense:\n  a: 1",
        "has an alias": "a: &a [1]\nb: *a",
        "has a bomb of aliases": "\n".join(["a: &a [1,1]", *(f"{c}: &{c} [*{p},*{p}]" for p, c in zip("abcdefgh", "bcdefghi", strict=True))]),
        "runs a command": '!!python/object/apply:os.system ["touch pwned"]',
        "makes an object": "a: !!python/object:object {}",
        "is a list": "- 1",
        "has a key that is a list": "? [1]\n: 2",
        "has two documents": "size: 32\n---\nsize: 64",
        "has a tab": "optimizer:\n\tname: adam",
        "is nested deeply": "a: " + "[" * 5000,
        "has epochs without end": "schedule:\n  epochs: 1e308",
        "has infinitely many images": "schedule:\n  images: .inf",
        "has a seed of 65 bits": f"training:\n  seed: {2**64}",
        "has a huge network": "generator:\n  width: 1000000",
        "has a huge embedding": "recognizer:\n  embedding: 1000000000",
        "has huge faces": "size: 1000000",
        "has faces of minus one": "size: -1",
        "has a batch of nobody": "data:\n  identities_per_batch: 0",
        "has lanes that do not divide": "data:\n  lanes: 3",
        "has a backbone of nobody's": "recognizer:\n  backbone: timm:nonsense",
        "has a backbone to import": "recognizer:\n  backbone: os.system",
        "reads shards from a command": 'data:\n  shards: "pipe:touch pwned"',
        "mixes shards from a command": 'data:\n  mix: {"pipe:touch pwned": 1}',
        "validates on a command": 'validation:\n  shards: "pipe:touch pwned"',
        "reads shards from an address": f"data:\n  shards: {address.replace('http', 'ftp')}/x",
        "has a shard set that is not there": "data:\n  shards: nowhere",
        "has a shard set with a NUL": 'data:\n  shards: "a\\0b"',
        "has weights that are not there": "recognizer:\n  pretrained: nowhere.pt",
        "has weights that are a config": "recognizer:\n  pretrained: given.yaml",
        "has a DeepSpeed file that is not there": "training:\n  strategy: deepspeed\n  deepspeed: nowhere.json",
    }  # fmt: skip
    text = SOUND_CONFIG
    rows: list[tuple[str, Breaking]] = [
        *kinds(),
        ("is not UTF-8", writing(b"size: \xff")),
        ("has a NUL", writing(b"size: 3\0")),
        ("has megabytes", writing(b"# " + b"x" * 2_000_000)),
    ]
    for name, breaking in rows:
        yield name, at("given.yaml", breaking), TRAIN
    for name, line in lines.items():
        yield name, at("given.yaml", writing(merged(text, line).encode())), TRAIN


SOUND_CONFIG = """\
size: 32
data: {shards: faces, workers: 0, identities_per_batch: 4, images_per_identity: 2}
recognizer: {backbone: "timm:test_resnet", embedding: 32}
schedule: {images: 16}
training: {threads: 1}
tracking: {enabled: false}
"""
YAML_VALUES = {"null": "null", "a text": "hello", "a number": "3", "a list": "[1, {a: b}]", "a table": "{a: {b: c}}",
               "not a number": ".nan", "a date": "2020-01-01", "binary": "!!binary aGVsbG8=", "a set": "!!set {a, b}"}  # fmt: skip


def merged(text: str, line: str) -> str:
    """The sound configuration with a section or line put in place of its own."""
    key = line.partition(":")[0]
    return "\n".join([*(own for own in text.splitlines() if not own.startswith(f"{key}:")), line, ""])


def command_lines(address: str) -> Rows:
    lines = [
        "align", "align photos", "align photos out --size 0", "align photos out --size 100000", "align photos out --size x",
        "align photos out --template nonsense", "align photos out --encoding bmp", "align photos photos/a/1.jpg",
        "train", "train --out out", "train --config", "train --config nowhere --out out", "train --config smoke",
        "train --config smoke --optimizer 3 --out out", "train --config smoke --data given.yaml --out out",
        "train --config smoke --training.seed null --out out", "train --config smoke --nonsense 3 --out out",
        "train --config smoke --out photos --data.shards faces --size 32", "evaluate", "evaluate verification",
        "evaluate verification --checkpoint run", "evaluate verification --checkpoint nowhere --shards faces",
        "evaluate verification --checkpoint photos --shards faces", "evaluate verification --checkpoint run --shards nowhere",
        "evaluate verification --checkpoint run --shards faces --photos photos",
        "evaluate verification --checkpoint run --photos photos", "compare", "compare run", "compare nowhere --out r.html",
        "compare run run --out r.html", "compare run --out .", "compare run --out photos", "compare run --out nowhere/../../../proc/x",
        "compare run --out pairs.txt/x.html", "export", "export run .", "export run photos", "export run pairs.txt", "export nowhere out",
        "export run pairs.txt/x", "shards", "shards nonsense", "shards show", "shards show nowhere", "shards show pairs.txt", "shards show .",
        "shards verify nowhere", "shards sheet faces --out .", "shards sheet faces --out photos", "shards sheet faces --out pairs.txt/x.png",
        "shards sheet faces --out s.nonsense", "shards sheet nowhere --out s.png", "sync nowhere", "sync photos", "jobs nowhere", "jobs pairs.txt",
        "submit", "submit nonsense", "submit --array 0 demo", "submit --array -1 demo", "submit --array x demo", "submit --cluster local --name ../x demo",
        "submit --cluster local --name /tmp/x demo", "submit --cluster nonsense demo", "submit --cluster local --nodes 0 demo", "submit --time nonsense demo",
        "submit --cluster local --nodes 2-1 demo", "generate", "generate --checkpoint run", "generate --checkpoint nowhere --shards faces --out out",
        "generate --checkpoint run --shards nowhere --out out", "generate --checkpoint run --shards faces --out out --factor 0",
        "generate --checkpoint run --shards faces --out out --part 3/2", "generate --checkpoint run --shards faces --out out --part x",
        "generate --checkpoint run --shards faces --out out --judge nowhere.onnx", "generate --checkpoint run --shards faces --out pairs.txt",
        "generate --checkpoint run --shards faces --out faces", "nonsense", "--nonsense",
    ]  # fmt: skip
    for line in lines:
        yield f"`{line}`", lambda work: None, line.split()
    for name in ("partition", "account"):
        yield (
            f"--{name} with a second line",
            lambda work: None,
            ["submit", f"--{name}", "x\ntouch pwned", "demo"],
        )
        yield (
            f"--{name} with a quote",
            lambda work: None,
            ["submit", f"--{name}", "x'; touch pwned; '", "demo"],
        )
    for option in ("--name", "--after", "--nodes", "--time"):
        yield (
            f"{option} with a second line",
            lambda work: None,
            ["submit", option, "1\n#SBATCH --wrap=touch", "demo"],
        )
    for verb in ("compare run --out", "export run", "shards sheet faces --out", "align photos"):
        yield f"`{verb}` into a name too long", lambda work: None, [*verb.split(), "x" * 300 + ".png"]
        yield f"`{verb}` into a surrogate", lambda work: None, [*verb.split(), "\udcff/\udcfe/" + "y" * 300]


# -- runs and jobs ------------------------------------------------------------------------------


def checkpoints(address: str) -> Rows:
    newest = "run/checkpoints/step-000000100"

    def state(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Breaking:
        """state.json with other content and a digest that agrees."""

        def breaking(path: Path) -> None:
            from sparface.training.checkpoint_files import write_state

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
        lambda work: (__import__("shutil").rmtree(work / newest), (work / newest).write_text("x")) and None,
        VERIFY,
    )


def linked_checkpoint(work: Path) -> None:
    newest = work / "run/checkpoints/step-000000100"
    newest.rename(work / "../outside/step")
    newest.symlink_to("../../../outside/step")


def reseal(checkpoint: Path, name: str, data: bytes | None, cut: bool = False) -> None:
    """Other bytes in a checkpoint's file, with every digest right."""
    from sparface.training.checkpoint_files import write_state

    path, state = checkpoint / name, checkpoint / "state.json"
    content = path.read_bytes()[: -len(path.read_bytes()) // 2] if data is None else data
    path.write_bytes(content)
    document = json.loads(state.read_text())
    document.pop("digest")
    document["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    state.unlink()
    write_state(state, document)


class Touch:
    """Unpickled without care, it leaves a file."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        return (open, (self.name, "w"))


def pickles() -> dict[str, bytes]:
    return {
        "runs a command": pickle.dumps(Touch("pwned")),
        "runs a command deep inside": pickle.dumps({"a": [Touch("pwned")]}),
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
        arguments = [*TRAIN, f"--recognizer.pretrained=weights.{suffix}"]
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
    sound = {"key": "0" * 32, "run_id": None, "offset": 0, "artifacts": {}, "params": {}, "uri": address,
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
    for name, task in fields(sound["tasks"][0], ["id", "command", "out"]):  # type: ignore[index]
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
    "has weights to fetch": SOUND_CONFIG.replace("embedding: 32", "embedding: 64, pretrained: vggface2"),
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


TABLES: dict[str, Callable[[str], Rows]] = {
    "manifest": manifests,
    "shard": shards,
    "photo": photos,
    "CSV": tables,
    "pairs": pairs,
    "config": configurations,
    "command": command_lines,
    "checkpoint": checkpoints,
    "weights": weights,
    "tracking": ledgers,
    "job": jobs,
    "run's config": run_configs,
    "ONNX": judges,
}
WRITES: dict[str, tuple[str, ...]] = {}
"""Rooms whose verb may leave something even so."""
