"""Hostile configurations and command lines."""

from __future__ import annotations

from pathlib import Path

from breaking import (
    TRAIN,
    Breaking,
    Rows,
    at,
    kinds,
    writing,
)


def configurations(address: str) -> Rows:
    lines = {
        "includes another file": "config: /etc/passwd",
        **{f"has {kind} for a section": f"optimizer: {text}" for kind, text in YAML_VALUES.items()},
        **{f"has {kind} for a rate": f"optimizer:\n  learning_rate: {text}" for kind, text in NO_NUMBERS},
        **{f"has {kind} for a count": f"training:\n  seed: {text}" for kind, text in NO_NUMBERS},
        **{
            f"has {kind} for a choice": f"training:\n  precision: {text}"
            for kind, text in YAML_VALUES.items()
        },
        **{f"has {kind} for a table": f"data:\n  mix: {text}" for kind, text in YAML_VALUES.items()},
        **{f"has {kind} for the shards": f"data:\n  shards: {text}" for kind, text in YAML_VALUES.items()},
        "has an unknown key": "optimizer:\n  speed: 3",
        "has an unknown section": "nonsense:\n  a: 1",
        "has a key twice": "size: 32\nsize: 64",
        "has an alias": "a: &a [1]\nb: *a",
        "has a bomb of aliases": "a: &a [1,1]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: &d [*c,*c]\ne: [*d,*d]",
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
        "mixes shards from an address": f"data:\n  mix: {{{address}/x: 1}}",
        "validates on an address": f"validation:\n  shards: {address}/x",
        "reads shards from an address": f"data:\n  shards: {address.replace('http', 'ftp')}/x",
        "has a shard set that is not there": "data:\n  shards: nowhere",
        "has a shard set with a NUL": 'data:\n  shards: "a\\0b"',
        "has weights that are not there": "training:\n  start_from: nowhere.pt",
        "has weights that are a config": "training:\n  start_from: given.yaml",
        "has a DeepSpeed file that is not there": DEEPSPEED,
    }
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
DEEPSPEED = "training:\n  strategy: deepspeed\n  deepspeed: nowhere.json"
YAML_VALUES = {
    "null": "null",
    "a text": "hello",
    "a number": "3",
    "a list": "[1, {a: b}]",
    "a table": "{a: {b: c}}",
    "not a number": ".nan",
    "a date": "2020-01-01",
    "binary": "!!binary aGVsbG8=",
    "a set": "!!set {a, b}",
}
NO_NUMBERS = [(kind, text) for kind, text in YAML_VALUES.items() if kind != "a number"]


def merged(text: str, line: str) -> str:
    """The sound configuration with a section or line put in place of its own."""
    key = line.partition(":")[0]
    return "\n".join([*(own for own in text.splitlines() if not own.startswith(f"{key}:")), line, ""])


def command_lines(address: str) -> Rows:
    lines = (Path(__file__).parent / "command_lines.txt").read_text().splitlines()
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
