"""The whole workflow on drawn faces: shards → both recipes → verification on held-out identities → report."""

from __future__ import annotations

from pathlib import Path

from sparface import settings
from sparface.evaluation.verification import evaluate_verification, summary
from sparface.faces import draw_set
from sparface.report.compare import compare
from sparface.training.loop import train

RECIPES = ("recognizer", "sparring")
TRAINED, OTHERS = 80, 40
"""Drawn people to train on, and held-out ones for verification."""
PHOTOS = 20
"""Photos per person."""


def run(out: Path, *, images: int = 0) -> Path:
    """Run the whole workflow in `out` and return the path of the report; a second call resumes.

    `images` is the number of images to train each recipe on (0: as in the `smoke` config).
    """
    base = settings.load("smoke")
    faces, others = out / "shards" / "faces", out / "shards" / "others"
    for folder, people, seed in ((faces, TRAINED, 0), (others, OTHERS, 1)):
        if not (folder / "manifest.json").exists():
            print(f"drawing {people} people into {folder}", flush=True)
            draw_set(folder, people, PHOTOS, size=base.size, seed=seed, workers=0)
    for recipe in RECIPES:
        overrides = ["--recipe", recipe, "--data.shards", str(faces), "--validation.shards", str(others)]
        if images:
            overrides += ["--schedule.images", str(images)]
        print(f"\ntraining {recipe} into {out / recipe}", flush=True)
        train(settings.load("smoke", overrides), out / recipe)
        print(summary(evaluate_verification(out / recipe, shards=others)), flush=True)
    report = out / "report.html"
    compare([out / recipe for recipe in RECIPES], report)
    print(f"\nreport: {report.resolve()}")
    print(f"runs in MLflow: mlflow ui --backend-store-uri sqlite:///{(out / 'mlflow.db').resolve()}")
    print("                then http://127.0.0.1:5000/#/experiments/1/runs")
    return report
