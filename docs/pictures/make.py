"""Make the documentation's pictures from a finished demo; all of them show drawn people.

    sparface demo
    python docs/pictures/make.py runs/demo

Needs chromium for the report's picture.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from sparface.faces import drawn_face

HERE = Path(__file__).parent
PARTS = ("face", "mask", "perturbation", "sparring")
SHOWN = [(row, column) for row in range(3) for column in (0, 4)]
"""Places in a preview's grid that show six people."""
FACE, GAP = 64, 2
"""Size and distance of the faces in a preview, pixels."""


def main(demo: Path) -> None:
    drawn()
    alone, varied, sparred = (
        next((demo / "runs").glob(f"demo.{arm}.*.s0")) for arm in ("alone", "varied", "sparring")
    )
    sparring(sparred / "previews")
    with tempfile.TemporaryDirectory() as folder:
        sheet, made, report, page = (
            Path(folder) / name for name in ("sheet.png", "made", "report.html", "page.png")
        )
        sparface("shards", "sheet", demo / "prepared" / "faces", "--out", sheet)
        store(Image.open(sheet).crop((0, 0, 576, 418)), "sheet.jpg")
        source = ("--checkpoint", sparred, "--shards", demo / "prepared" / "others")
        sparface("generate", *source, "--out", made, "--factor", 8)
        store(Image.open(made / "sheet.png").crop((0, 0, 900, 418)), "made.jpg")
        sparface("compare", alone, varied, "--out", report)
        for name, html, height in (("study.png", demo / "report.html", 600), ("report.png", report, 815)):
            screenshot(html, page)
            store(Image.open(page).crop((0, 0, 1100, height)), name)


def drawn() -> None:
    """Seven people, one row each, in ten photos."""
    rows = [[drawn_face(1, person, photo, 96).image for photo in range(10)] for person in range(7)]
    store(Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows])), "drawn.jpg")


def sparring(previews: Path) -> None:
    """The last preview of each kind, one row each."""
    step = FACE + GAP
    rows = Image.new("RGB", (GAP + len(SHOWN) * step, GAP + len(PARTS) * step), "white")
    for number, part in enumerate(PARTS):
        grid = Image.open(max(previews.glob(f"*-{part}.png")))
        for place, (row, column) in enumerate(SHOWN):
            left, top = GAP + column * step, GAP + row * step
            face = grid.crop((left, top, left + FACE, top + FACE))
            rows.paste(face, (GAP + place * step, GAP + number * step))
    store(rows.resize((rows.width * 3 // 2, rows.height * 3 // 2), Image.Resampling.LANCZOS), "sparring.png")


def sparface(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "sparface", *map(str, words)], check=True)


def screenshot(page: Path, out: Path) -> None:
    browser = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1100,815"]
    subprocess.run([*browser, f"--screenshot={out}", page.resolve().as_uri()], check=True)


def store(picture: Image.Image, name: str) -> None:
    """Write a picture, a PNG with 256 colours, to keep it small."""
    picture = picture.convert("RGB")
    if name.endswith(".png"):
        picture = picture.quantize(256, dither=Image.Dither.NONE)
    picture.save(HERE / name, optimize=True, quality=88)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
