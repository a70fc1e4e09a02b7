"""Studies whose parts are said to have run: their records, runs and figures are written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from sparface.study.folder import StudyFolder
from sparface.study.plan import Part

ATTEMPT = {"started": 1.7e9, "seconds": 1.0, "cpu_seconds": 1.0, "code": 0, "processes": 1}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def finish(
    study: StudyFolder,
    measured: Callable[[Part], dict[str, Any]],
    *,
    config: str = "recipe: recognizer\n",
    missing: Container[str] = (),
) -> None:
    """Write the record and the result of every part but those in `missing`; `measured` is what an evaluation
    writes."""
    for number, part in enumerate(study.plan.parts.values()):
        if part.name in missing:
            continue
        attempt = ATTEMPT | {"started": ATTEMPT["started"] + 2 * number}
        record = {"words": study.portable(part), "attempts": [attempt]}
        write(study.path / f"parts/{part.name}.json", json.dumps(record))
        if part.evaluation:
            write(part.out, json.dumps(measured(part)))
        else:
            validation = {"images": 16, "time": 1.0, "validation/accuracy": 0.5}
            write(part.out / "config.yaml", config)
            write(part.out / "metrics.jsonl", json.dumps(validation) + "\n")
