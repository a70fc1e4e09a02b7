"""Write the CSV of the Extended Cohn-Kanade data set (CK+), cropped to faces, for `sparface align`.

    python launch/ckplus.py CKPLUS CKPLUS/faces.csv
    sparface align CKPLUS/faces.csv shards/ckplus --already-cropped --size 75

CK+ has one folder per expression with the last frames of its sequences, `SUBJECT_SEQUENCE_FRAME.png`.
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path


def main(photos: Path, out: Path) -> None:
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "identity", "expression"))
        for photo in sorted(photos.glob("*/*_*_*.png")):
            subject = photo.name.split("_")[0]
            writer.writerow((os.path.relpath(photo, out.parent), subject, photo.parent.name))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the CSV of the Extended Cohn-Kanade data set.")
    parser.add_argument("photos", type=Path, help="CK+, with one folder per expression")
    parser.add_argument("out", type=Path, help="CSV to write, in a folder that contains the photos")
    asked = parser.parse_args()
    main(asked.photos, asked.out)
