"""The verbs of `sparface shards`. See `commands.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from sparface.errors import UserError
from sparface.text import printable


def set_options(parser: ArgumentParser) -> None:
    parser.add_argument("set", type=Path, help="folder of a shard set")


def sheet_options(parser: ArgumentParser) -> None:
    parser.add_argument("sets", type=Path, nargs="+", help="folders of shard sets")
    parser.add_argument("--out", type=Path, required=True, help="image to write (.png)")


def show(a: Namespace) -> int:
    """Print a summary of a shard set."""
    from sparface.shards import describe

    print(describe(a.set))
    return 0


def verify(a: Namespace) -> int:
    """Check digests, counts, names and every image of a shard set."""
    from sparface.shards import verify

    problems = verify(a.set)
    for problem in problems:
        print(printable(problem), file=sys.stderr)
    if problems:
        raise UserError(f"{a.set}: {len(problems)} problems; write the set again or restore the named shards")
    print(f"{a.set}: no problems found")
    return 0


def subset_options(parser: ArgumentParser) -> None:
    parser.add_argument("set", type=Path, help="folder of a shard set")
    parser.add_argument("out", type=Path, help="folder of the shard set to write")
    parser.add_argument("--people", type=int, required=True, metavar="N", help="number of people")
    parser.add_argument("--photos", type=int, required=True, metavar="K", help="most photos of each person")
    parser.add_argument("--seed", type=int, default=0, help="another seed takes other people and photos")


def subset(a: Namespace) -> int:
    """Write some people of a shard set, with some photos of each, as a new set."""
    from sparface.shards import write_subset

    taken = write_subset(a.set, a.out, a.people, a.photos, a.seed)
    print(f"{a.out}: {len(taken)} faces of {len(taken.identities)} people")
    return 0


def split_options(parser: ArgumentParser) -> None:
    parser.add_argument("set", type=Path, help="folder of a shard set")
    parser.add_argument("out", type=Path, help="folder of the shard set to write")
    parser.add_argument("--share", type=float, default=0.8, help="share of the people, or of the photos")
    parser.add_argument("--rest", action="store_true", help="write all others, instead of the share")
    parser.add_argument(
        "--by", choices=["people", "photos"], default="people", help="people: nobody is in both parts"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed splits in another way")


def split(a: Namespace) -> int:
    """Write a random share of a shard set, by people or by photos, or the rest, for example to train and to
    test."""
    from sparface.shards import split

    part = split(a.set, a.out, share=a.share, by=a.by, seed=a.seed, rest=a.rest)
    print(f"{part.folder}: {len(part)} faces of {len(part.identities)} people")
    return 0


def sheet(a: Namespace) -> int:
    """Write an image of faces from several sets side by side, to compare their alignment."""
    from sparface.faces import contact_sheet

    contact_sheet(a.sets, a.out)
    print(a.out)
    return 0
