"""The document that every evaluation writes: figures, their intervals, and where they come from."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import sparface
from sparface.evaluation.bootstrap import REPLICATES, SEED, Estimate, Statistic, bootstrap, without_interval
from sparface.evaluation.embed import Mirrored
from sparface.evaluation.purifiers import Cleaner, unpurified
from sparface.evaluation.recognizers import Opened
from sparface.files import inside, require_writable, sha256, write_whole
from sparface.runs import tracking
from sparface.runs.lineage import Checkpoint, Dataset
from sparface.shards.set import ShardSet

_DIGITS = 6
"""Decimals of replicates in JSON."""


def require_outputs(opened: Opened, json_out: Path | None) -> None:
    """Raise `UserError` now if the results could not be written later."""
    if json_out is not None:
        require_writable(json_out)
    if opened.trained:
        require_writable(inside(opened.trained.run, "evaluations/new.json"))


def estimates(
    statistics: Mapping[str, Statistic], identities: int, *, without_intervals: Container[str] = ()
) -> dict[str, Estimate]:
    """Bootstrap several statistics of the same people, with the same draws; leaves out undefined ones."""
    found = {
        name: (without_interval if name in without_intervals else bootstrap)(statistic, identities)
        for name, statistic in statistics.items()
    }
    return {name: one for name, one in found.items() if math.isfinite(one.value)}


def figures(found: Mapping[str, Estimate], people: Sequence[str]) -> dict[str, Any]:
    """The parts of the document that hold estimates: `figures`, `intervals` and `bootstrap`."""
    replicates = {name: [_number(value) for value in one.replicates] for name, one in found.items()}
    return {
        "figures": {name: one.value for name, one in found.items()},
        "intervals": {name: [_number(one.low), _number(one.high)] for name, one in found.items()},
        "bootstrap": {
            "identities": len(people),
            "identities_digest": hashlib.sha256("\n".join(people).encode()).hexdigest(),
            "count": REPLICATES,
            "seed": SEED,
            "replicates": replicates,
        },
    }


def _number(value: float) -> float | None:
    """A number as it is stored; None if it is not defined."""
    return round(float(value), _DIGITS) if math.isfinite(value) else None


def provenance(opened: Opened, shard_set: ShardSet) -> dict[str, Any]:
    """What was measured, on which faces, with which versions."""
    trained = opened.trained
    template = opened.template or "arcface (assumed: the checkpoint does not say)"
    return {
        "run": opened.name,
        "checkpoint": trained.checkpoint.name if trained else opened.name,
        "checkpoint_digest": sha256(trained.checkpoint / "state.json") if trained else opened.digest,
        "recognizer_digest": opened.digest,
        "images_seen": trained.images_seen if trained else 0,
        "averaged": trained.averaged if trained else False,
        "mirror": isinstance(unpurified(opened.network), Mirrored),
        "parameters": sum(parameter.numel() for parameter in unpurified(opened.network).parameters()),
        "purifier": opened.cleaner.digest if opened.cleaner else None,
        "shards": str(shard_set.folder),
        "shards_digest": shard_set.digest,
        "template": template,
        "sparface": sparface.__version__,
        "torch": torch.__version__,
    }


def document_name(*parts: str, cleaner: Cleaner | None = None) -> str:
    """A name for the document that can be a file name; it also names what cleans the faces."""
    name = "-on-".join(part for part in parts if part)
    if cleaner:
        name += f"-through-{cleaner.name}"
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def store(document: dict[str, Any], opened: Opened, shard_set: ShardSet, json_out: Path | None) -> None:
    """Write the document to `json_out`. For a run, also write it to `RUN/evaluations/NAME-IMAGES.json`, and
    add the figures to the run's metrics and MLflow."""
    data = json.dumps(document, indent=1, allow_nan=False).encode()
    if json_out is not None:
        write_whole(json_out, data)
    if (trained := opened.trained) is None:
        return
    name = f"evaluations/{document['name']}-{trained.images_seen:09d}.json"
    write_whole(inside(trained.run, name), data)
    metrics = {_metric(document, figure): value for figure, value in document["figures"].items()}
    of, on = Checkpoint.at(trained.checkpoint), Dataset.of(shard_set)
    tracking.add(trained.run, trained.images_seen, metrics, of=of, on=on)


def _metric(document: dict[str, Any], figure: str) -> str:
    """The name of a figure among a run's metrics, in the characters that MLflow allows."""
    return re.sub(r"[^\w. /-]", "_", f"evaluation/{document['name']}/{figure}")


def interval(found: Mapping[str, Any], name: str) -> str:
    """The interval of a figure in percent."""
    low, high = found["intervals"].get(name, (None, None))
    return "[not defined]" if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}]"


def percent(found: Mapping[str, Any], name: str) -> str:
    """A figure of a document in percent, with its interval."""
    if name not in found["figures"]:
        return "–"
    return f"{found['figures'][name]:.1%} {interval(found, name)}"
