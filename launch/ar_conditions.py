"""Write the CSV of conditions of the AR Face Database for `sparface evaluate identify --conditions`.

    python launch/ar_conditions.py AR ar.csv [--people 51-100]

AR has one folder per person with photos `face_PPP_MM`. MM is 1 to 13 for the first session and 14 to 26 for
the second one. Each person's first photo is the gallery.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

CONDITIONS = {
    "neutral": (1,),
    "expression": (2, 3, 4),
    "light": (5, 6, 7),
    "sunglasses": (8, 9, 10),
    "scarf": (11, 12, 13),
}
"""Numbers of the photos of a session."""
GALLERY = 1


def condition(number: int) -> str:
    """Return the condition of a photo by its number, 1 to 26."""
    if number == GALLERY:
        return "gallery"
    session, within = divmod(number - 1, 13)
    name = next(name for name, numbers in CONDITIONS.items() if within + 1 in numbers)
    return f"{name}-{session + 1}"


def main(photos: Path, out: Path, people: range) -> None:
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("face", "condition"))
        for photo in sorted(photos.glob("*/*_*_*.*")):
            if int(photo.parent.name) not in people:
                continue
            writer.writerow((f"{photo.parent.name}/{photo.stem}", condition(int(photo.stem.split("_")[-1]))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the CSV of conditions of the AR Face Database.")
    parser.add_argument("photos", type=Path, help="the AR Face Database")
    parser.add_argument("out", type=Path, help="CSV to write")
    parser.add_argument("--people", default="1-100", help="first and last number of the people")
    asked = parser.parse_args()
    first, last = map(int, asked.people.split("-"))
    main(asked.photos, asked.out, range(first, last + 1))
