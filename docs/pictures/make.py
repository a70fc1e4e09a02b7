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

from PIL import Image

HERE = Path(__file__).parent
PARTS = ("face", "mask", "perturbation", "sparring")
COLUMNS, FACE, GAP = 6, 64, 2
"""Faces to show, and the size and the distance of those in a preview, pixels."""


def main(demo: Path) -> None:
    sparring(demo / "sparring" / "previews")
    with tempfile.TemporaryDirectory() as folder:
        sheet, made, page = (Path(folder) / name for name in ("sheet.png", "made", "report.png"))
        sparface("shards", "sheet", demo / "shards" / "faces", "--out", sheet)
        store(Image.open(sheet).crop((0, 0, 606, 540)), "sheet")
        source = ("--checkpoint", demo / "sparring", "--shards", demo / "shards" / "others")
        sparface("generate", *source, "--out", made, "--factor", 8)
        picture = Image.open(made / "sheet.png")
        store(picture.crop((0, 0, picture.width, min(picture.height, 560))), "made")
        screenshot(demo / "report.html", page)
        store(Image.open(page), "report")


def sparring(previews: Path) -> None:
    """The last preview of each kind, one row each."""
    step = FACE + GAP
    size = (GAP + COLUMNS * step, GAP + step)
    rows = Image.new("RGB", (size[0], GAP + len(PARTS) * step), "white")
    for number, part in enumerate(PARTS):
        newest = max(previews.glob(f"*-{part}.png"))
        rows.paste(Image.open(newest).crop((0, 0, *size)), (0, number * step))
    store(rows.resize((rows.width * 3 // 2, rows.height * 3 // 2), Image.Resampling.LANCZOS), "sparring")


def sparface(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "sparface", *map(str, words)], check=True)


def screenshot(page: Path, out: Path) -> None:
    browser = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1100,900"]
    subprocess.run([*browser, f"--screenshot={out}", page.resolve().as_uri()], check=True)


def store(picture: Image.Image, name: str) -> None:
    """Write a picture with 256 colours, which keeps it small."""
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(HERE / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
