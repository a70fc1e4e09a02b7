"""More of the table: study files, and studies that somebody else has run.

Whoever only looks at a study leaves out what is damaged, so many of these are harmless (code 0).
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from breaking import Breaking, at, dumped, fields, json_documents, kinds, writing
from command_inputs import NO_NUMBERS, SOUND_CONFIG
from harness import Case
from inputs import made

from made_studies import ATTEMPT, finish

DATA = ["--data", "faces=faces", "--data", "others=faces"]
START = ["study", "few.yaml", "--out", "out", *DATA]
GO_ON = ["study", "few.yaml", "--out", "studied"]
LOOK = ["study", "studied"]
RUN, RECORD = "studied/runs/S.plain.16.s0", "studied/parts/train.S.plain.16.s0.json"
MEASURED, FIGURES = "evaluate.S.plain.16.s0.others", "studied/figures/S.plain.16.s0.others.json"
PAGES = tuple(f"studied/{name}" for name in ("report.html", "runs.html", "evidence.md", "evidence.json"))
TREE: dict[str, Any] = {
    "title": "Few",
    "data": {"faces": "faces", "others": "other faces"},
    "prepare": {"few": "shards subset {faces} {out} --people 4 --photos 2"},
    "experiments": {
        "S": {
            "config": "smoke",
            "train": {"size": 32, "data": {"shards": "{faces}", "workers": 0}, "validation.shards": ""},
            "seeds": 1,
            "images": 16,
            "arms": {"plain": {"data.variation": "none"}, "varied": {"data.variation": "classic"}},
            "evaluate": {"others": "verification --shards {others}"},
            "claims": [{"says": "it helps", "arm": "varied", "beats": "plain", "in": "others.accuracy"}],
            "gains": {"arm": "varied", "in": "others.accuracy", "over": {"recognizer": "plain"}},
        }
    },
}
MEASUREMENT: dict[str, Any] = {
    "figures": {"accuracy": 0.5, "auc": 0.6},
    "bootstrap": {"identities_digest": "x", "count": 2, "seed": 0, "replicates": {"accuracy": [0.4, 0.6]}},
}


def write_study(work: Path) -> None:
    """A study file, and its study as it is when all parts have finished."""
    (work / "few.yaml").write_text(yaml.safe_dump(TREE, sort_keys=False))
    finish_parts(work / "few.yaml", work / "studied", f"faces={work}/faces", f"others={work}/faces")


def finish_parts(file: Path, out: Path, *data: str) -> None:
    from sparface.study.folder import StudyFolder

    study = StudyFolder.start(file, out, data)
    with study.held(file):
        finish(study, lambda part: MEASUREMENT, config=SOUND_CONFIG)


def cases(address: str) -> Iterator[Case]:
    for name, breaking in files(address):
        yield Case(f"study file {name}", made(breaking, START))
    for name, breaking in taken_over():
        yield Case(f"study to go on with {name}", made(breaking, GO_ON))
    for name, breaking, code in looked_at(address):
        yield Case(f"study {name}", made(breaking, LOOK), code, PAGES if code == 0 else ())


def files(address: str) -> Iterator[tuple[str, Breaking]]:
    for name, breaking in kinds():
        yield name, at("few.yaml", breaking)
    for name, data in CONTENTS.items():
        yield name, at("few.yaml", writing(data))
    for kind, text in (
        *NO_NUMBERS,
        ("a huge number", "1" + "0" * 400),
        ("a huge hexadecimal", "0x" + "f" * 5000),
    ):
        for where, key in (("a setting", "WHERE_1"), ("a claim", "WHERE_2"), ("a title", "WHERE_3")):
            if (where, kind) not in ALLOWED:
                yield f"has {kind} as {where}", at("few.yaml", writing(filled(key, text)))
    for name, change in changes(address).items():
        tree = copy.deepcopy(TREE)
        change(tree, tree["experiments"]["S"])
        yield name, at("few.yaml", writing(yaml.safe_dump(tree, sort_keys=False).encode()))


ALLOWED = {("a setting", "a text"), ("a title", "a text"), ("a title", "null")}
"""Texts are refused as the setting, too, but by what it sets; a title need not be given."""
SOUND = yaml.safe_dump(TREE, sort_keys=False)
CONTENTS = {
    "has an alias": b"experiments: &a {S: *a}",
    "has a bomb of aliases": b"a: &a [1,1]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: &d [*c,*c]\ntitle: [*d,*d]",
    "makes an object": b"title: !!python/object:object {}",
    "runs a command": b'title: !!python/object/apply:os.system ["touch pwned"]',
    "is nested deeply": b"experiments: " + b"[" * 5000,
    "is nested deeply in lines": b"experiments:\n" + b"".join(b" " * i + b"a:\n" for i in range(400)),
    "is a list": b"- 1",
    "has two documents": b"title: a\n---\ntitle: b",
    "has megabytes": SOUND.encode() + b"# " + b"x" * 2_000_000,
    "is not UTF-8": b"title: \xff",
    "names an arm twice": SOUND.replace("      varied:", "      plain:").encode(),
    "names a key twice": SOUND.encode() + b"title: Others\n",
    "has a key that is a number": SOUND.replace("size: 32", "1: 32").encode(),
    "has a table under a number": SOUND.replace("size: 32", "1: {a: 2}").encode(),
    "has a key that is no number": SOUND.replace("size: 32", ".nan: 32").encode(),
    "has half a character": SOUND.replace("title: Few", 'title: "\\ud800"').encode(),
    "has a control character": SOUND.replace("title: Few", 'title: "\\e[2J"').encode(),
    "has an endless text": SOUND.replace("title: Few", f"title: {'x' * 100_000}").encode(),
}
Change = Callable[[dict[str, Any], dict[str, Any]], Any]


def filled(key: str, text: str) -> bytes:
    """The sound file with a value of another kind."""
    tree = copy.deepcopy(TREE)
    experiment = tree["experiments"]["S"]
    experiment["train"]["optimizer.learning_rate"], experiment["claims"][0]["by"] = "WHERE_1", "WHERE_2"
    tree["title"] = "WHERE_3"
    sound = {"WHERE_1": "0.1", "WHERE_2": "0.1", "WHERE_3": "Few"}
    written = yaml.safe_dump(tree, sort_keys=False)
    for name, value in (sound | {key: text}).items():
        written = written.replace(name, value)
    return written.encode()


def changes(address: str) -> dict[str, Change]:
    def setting(key: str, value: Any) -> Change:
        return lambda tree, s: s["train"].update({key: value})

    def prepared(command: str, **more: str) -> Change:
        def change(tree: dict[str, Any], s: dict[str, Any]) -> None:
            tree["prepare"] = {"few": command, **more}
            s["train"]["training.start_from"] = "{few}"

        return change

    doubling = {f"a{i}": f"draw {{out}} --seed {{a{i + 1}}}{{a{i + 1}}}" for i in range(45)}
    return {
        "has no arms": lambda tree, s: s.update(arms={}),
        "has experiments that are a text": lambda tree, s: tree.update(experiments="x"),
        "has too many parts": lambda tree, s: s.update(seeds=1000, images=list(range(8, 108))),
        "has too many combinations": lambda tree, s: s.update(
            seeds=1000, sets={f"x{i}": "x" for i in range(1000)}, arms={"a": {"checkpoint": "x"}}
        ),
        "has a million seeds": lambda tree, s: s.update(seeds=10**6),
        "has an experiment that is a path": lambda tree, s: tree.update(experiments={"../../outside/x": s}),
        "has an arm that is a path": lambda tree, s: s["arms"].update({"../../../outside/x": {}}),
        "has a set that is a path": lambda tree, s: s.update(sets={"../x": "{faces}"}),
        "has a data name that is a path": lambda tree, s: tree["data"].update({"../x": "x"}),
        "has settings of another command": setting("out", "/tmp/elsewhere"),
        "has a setting that asks for help": setting("help", ""),
        "has a section that is a text": setting("tracking", f'{{"uri": "{address}"}}'),
        "has a section that is a file": setting("optimizer", "/etc/passwd"),
        "names a server": setting("tracking.uri", address),
        "names a server in a section": setting("tracking", {"uri": address}),
        "names code": setting("recipe", "os:system"),
        "names a command": setting("data.shards", "pipe:touch pwned"),
        "names a command in JSON": setting("data.mix", '{"\\u0070ipe:touch pwned": 1}'),
        "names a command in a mix": setting("data.mix", {"pipe:touch pwned": 1}),
        "names a config that is none": lambda tree, s: s.update(config="/etc/passwd"),
        "names a config outside": lambda tree, s: s.update(config="../outside/secret.txt"),
        "starts from nothing": setting("training.start_from", "{nowhere}"),
        "starts from itself": setting("training.start_from", "{run:plain}"),
        "prepares in a circle": prepared("draw {out} {more}", more="draw {out} {few}"),
        "prepares a long chain": prepared("draw {out} {a0}", **doubling),
        "prepares by another verb": prepared("export run {out}"),
        "prepares by a shell": prepared("draw {out} --people 4 --photos 2; touch pwned"),
        "prepares elsewhere": prepared("draw ../outside/x --people 4 --photos 2"),
        "prepares in its own folder": prepared("draw {out}/../../x --people 4 --photos 2"),
        "prepares two things": prepared("shards sheet {faces} {out} --out ../outside/x.png"),
        "prepares help": prepared("draw --help"),
        "prepares from a command": prepared("align pipe:id {out}"),
        "has an open quote": prepared('draw "{out}'),
        "evaluates help": lambda tree, s: s.update(evaluate={"others": "verification --help"}),
        "evaluates nothing": lambda tree, s: s.update(evaluate={"others": ""}),
        "evaluates by another verb": lambda tree, s: s.update(evaluate={"others": "../export run x"}),
        "evaluates with code": lambda tree, s: s.update(
            evaluate={"others": "verification --shards {others} --recipe os:system"}
        ),
        "evaluates endless words": lambda tree, s: s.update(
            evaluate={f"e{i}": "verification --shards {run}" + "{run}" * 1900 for i in range(70)}, seeds=500,
            claims=[], gains={"arm": "plain", "in": "e0.auc", "over": {"x": "plain"}},
        ),
    }  # fmt: skip


def linked(name: str) -> Breaking:
    """A folder of the study, or a file in one, is a link to something outside."""

    def change(work: Path) -> None:
        outside = work / "../outside/moved"
        (work / "studied" / name).rename(outside) if (work / "studied" / name).exists() else outside.mkdir()
        (work / "studied" / name).symlink_to(outside.resolve())

    return change


def settings(**fields: Any) -> Breaking:
    def change(work: Path) -> None:
        file = work / "studied/settings.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return change


def taken_over() -> Iterator[tuple[str, Breaking]]:
    """Somebody else's study that the user would go on with."""
    for name in ("runs", "parts", "logs", "figures", "prepared", RUN.removeprefix("studied/")):
        yield f"{name} outside", linked(name)
    yield "a record outside", linked(RECORD.removeprefix("studied/"))
    yield "a lock outside", linked(".lock")
    piped = {"faces": "pipe:touch pwned", "others": "x"}
    yield "data from a command", settings(data=piped)
    yield "other settings", at(RECORD, dumped({"words": ["rm", "\x1b[2J" * 9999], "attempts": [ATTEMPT]}))
    for name, breaking in kinds():
        if "folder" not in name:
            yield f"settings that {name}", at("studied/settings.json", breaking)


def looked_at(address: str) -> Iterator[tuple[str, Breaking, int]]:
    for name, breaking in [*kinds(), *json_documents(), ("is gone", Path.unlink)]:
        yield f"whose settings.json {name}", at("studied/settings.json", breaking), 2
        yield f"whose record {name}", at(RECORD, breaking), 0
        yield f"whose figures {name}", at(FIGURES, breaking), 0
    for name, breaking in kinds():
        yield f"whose study.yaml {name}", at("studied/study.yaml", breaking), 2
        yield f"whose config {name}", at(f"{RUN}/config.yaml", breaking), 0
    sound = {"file": "few.yaml", "size": "", "images": 0, "data": {"faces": "x", "others": "y"}}
    for name, document in fields(sound):
        yield f"whose settings {name}", at("studied/settings.json", dumped(document)), 2
    yield from records()
    for name, document in [*fields(MEASUREMENT), *figures()]:
        yield f"whose figures {name}", at(FIGURES, dumped(document)), 0
    yield "with a run outside", linked(RUN.removeprefix("studied/")), 0
    yield "with figures outside", linked("figures"), 0
    yield "with pages outside", linked("report.html"), 0
    yield "of data at an address", settings(data={"faces": address, "others": f"{address}/others"}), 0
    yield "of data from a command", settings(data={"faces": "pipe:touch pwned", "others": "x"}), 2
    yield "of a file with markup", settings(file="x\n```\n<script>alert(1)</script>\x1b[2J"), 0
    yield "whose runs were tracked", tracked(address), 0
    yield "whose parts need each other twice", doubled, 0


def records() -> Iterator[tuple[str, Breaking, int]]:
    words = ["x"]
    for name, document in fields({"words": words, "attempts": [ATTEMPT]}):
        yield f"whose record {name}", at(RECORD, dumped(document)), 0
    for name, attempt in fields(ATTEMPT):
        yield f"whose attempt {name}", attempted(attempt), 0
    for field in ("started", "seconds", "cpu_seconds"):
        for value in (float("nan"), float("inf"), -1.0, 1e300):
            yield f"whose attempt has {value} as {field}", attempted(ATTEMPT | {field: value}), 0


def attempted(attempt: dict[str, Any]) -> Breaking:
    """The record of the right command, with another attempt."""

    def change(work: Path) -> None:
        record = json.loads((work / RECORD).read_text())
        dumped(record | {"attempts": [attempt]})(work / RECORD)

    return change


def figures() -> Iterator[tuple[str, dict[str, Any]]]:
    wrong: list[Any] = [float("nan"), float("inf"), 1e308, 10**400, -1e308, "x", None, True, []]
    for value in wrong:
        yield f"are {str(value)[:9]}", {"figures": {"accuracy": value, "auc": 0.5}}
        boot = {**MEASUREMENT["bootstrap"], "replicates": {"accuracy": [value] * 2}}
        yield f"have {str(value)[:9]} as replicates", {**MEASUREMENT, "bootstrap": boot}
    for name in ("\ud800", "\x1b[2J", "<script>", "x" * 100_000, "$\\frac{", "", "../../x", "{{ 7 * 7 }}"):
        yield f"have {name[:9]!a} as a name", {"figures": {name: 0.5}}
    yield "have thousands of names", {"figures": {f"m{i}": i for i in range(50_000)}}
    attacks = {
        f"{a}{b}/0.0{i}/accuracy": 0.5 for a in "abcdefghij" for b in "klmnopqrst" for i in range(1, 6)
    }
    yield "are of a hundred attacks", {"figures": {"accuracy": 0.9} | attacks}
    boot = {**MEASUREMENT["bootstrap"], "count": 10**9}
    yield "have a billion replicates", {**MEASUREMENT, "bootstrap": boot}


def tracked(address: str) -> Breaking:
    """A ledger that names a server and somebody's run."""
    ledger = {
        "key": "0" * 32, "run_id": "1" * 32, "sent": {"metrics.jsonl": 0, "lineage.jsonl": 0},
        "artifacts": {}, "params": {}, "uri": address, "experiment": "e", "run_name": "r",
        "status": "FINISHED", "told": "",
    }  # fmt: skip
    return at(f"{RUN}/tracking.json", dumped(ledger))


def doubled(work: Path) -> None:
    """A study whose parts are found twice from the one before: 2^40 ways to the last."""
    tree = copy.deepcopy(TREE)
    verb = "generate --checkpoint {{b{0}}} --shards {{c{0}}} --out {{out}}"
    tree["prepare"] = {f"{side}{i}": verb.format(i + 1) for i in range(40) for side in "bc"}
    tree["prepare"] |= {f"{side}40": "draw {out} --people 4 --photos 2" for side in "bc"}
    tree["experiments"]["S"]["train"]["training.start_from"] = "{b0}"
    shutil.rmtree(work / "studied")
    (work / "few.yaml").write_text(yaml.safe_dump(tree))
    finish_parts(work / "few.yaml", work / "studied", "faces=x", "others=y")
