"""Images per second from a shard set to uint8 batches, compared with other libraries.

    pip install sparface[bench]
    python benchmarks/stream.py [--quick]

The same drawn faces, JPEGs of 112 pixels, are stored in each library's format and read in shuffled batches of
128 by one worker process and by two. Each rival is used as in its documentation: webdataset with its PIL
decoder, a shuffle buffer and batches made in the worker; mosaicml-streaming with a `jpeg` column and a
transform; litdata with `Image(path=...)` and `StreamingDataLoader`; torchvision's ImageFolder with
`PILToTensor`. Without --quick, all also run with sparface's decoder (simplejpeg), plugged in where the
library allows it, and with the pixels stored as they are (`--encoding npy`), so that nothing is decoded.

Rates are those of running workers: the first batches of each round are not counted. `ratio` is sparface over
the fastest rival of the same round, for one worker or two, whichever is worse.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
import webdataset
from measured import conclude, over, table
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import PILToTensor

from sparface.config import Encoding
from sparface.faces.drawn import drawn_faces
from sparface.shards import Face, FaceStream, Loader, ShardSet, ShardSetWriter

try:
    import litdata
    from litdata.streaming.serializers import ImageSerializer
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is not installed: pip install sparface[bench]")

BAR = 1.75
RIVALS = ("webdataset", "mosaicml-streaming", "litdata", "torchvision", "pillow")
SIZE, BATCH, GROUP = 112, 128, 4
ENCODINGS: tuple[Encoding, ...] = ("jpg", "npy")
PIXELS = f"ndarray:uint8:{SIZE},{SIZE},3"
MOSAIC: dict[Encoding, dict[str, Callable[[Path], Any]]] = {
    "jpg": {"jpeg": Image.open, "bytes": Path.read_bytes},
    "npy": {PIXELS: np.load},
}
"""Kinds of columns of mosaicml-streaming, and how their values are read."""
FACES, COPIES = 32, 32
"""Faces per identity, and identities that share the same pixels, since drawing is slow."""
SHARD = 1024
Batches = Callable[[int], Iterable[Any]]
"""Number of workers → an epoch of batches."""


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--quick", action="store_true", help="end within a minute")
    quick = options.parse_args().quick
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # mosaicml-streaming's
    with tempfile.TemporaryDirectory() as folder:
        stored = Stored(Path(folder), identities=160 if quick else 256)
        kinds = {"own": stored.as_documented()}
        if not quick:
            kinds |= {"simplejpeg": stored.one_decoder(), "no": stored.without_decoder()}
        measured = {
            (decoder, workers): rounds(candidates, workers, *((2, 4, 12) if quick else (5, 8, 32)))
            for decoder, candidates in kinds.items()
            for workers in (1, 2)
        }
    return report(measured)


def rounds(
    candidates: dict[str, Batches], workers: int, count: int, first: int, batches: int
) -> dict[str, list[float]]:
    """Images per second of each candidate in each round; the order alternates."""
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(count):
        for name in reversed(candidates) if number % 2 else candidates:
            rates[name].append(rate(candidates[name](workers), first * workers, batches))
    return rates


def rate(epoch: Iterable[Any], first: int, batches: int) -> float:
    """Images per second after the first batches, during which webdataset fills its shuffle buffer."""
    running = iter(epoch)
    for batch in islice(running, first):
        check(batch)
    began = time.perf_counter()
    images = sum(check(batch) for batch in islice(running, batches))
    seconds = time.perf_counter() - began
    assert images == batches * BATCH, "the epoch is too short"
    return images / seconds


def check(batch: Any) -> int:
    """Check that a batch's images are one uint8 tensor; return their number."""
    images = batch.images if hasattr(batch, "images") else batch[0]
    assert isinstance(images, torch.Tensor) and images.dtype == torch.uint8
    assert sorted(images.shape[1:]) == [3, SIZE, SIZE]
    return len(images)


def report(measured: dict[tuple[str, int], dict[str, list[float]]]) -> int:
    ratios: dict[tuple[str, int], list[float]] = {}
    for (decoder, workers), rates in measured.items():
        print(f"\n{workers} worker{'s' * (workers > 1)}, {decoder} decoder")
        table(rates, "images/s")
        ours, *rivals = rates.values()
        ratios[decoder, workers] = over(ours, [max(rates) for rates in zip(*rivals, strict=True)])
    medians = {f"{d}_{w}": round(statistics.median(found), 3) for (d, w), found in ratios.items()}
    worse = min(ratios["own", 1], ratios["own", 2], key=statistics.median)
    versions = {name: version(name) for name in RIVALS}
    return conclude("stream", worse, BAR, by_decoder_and_workers=medians, batch=BATCH, versions=versions)


class Stored:
    """The same faces, stored and read by each library: as JPEGs, and as pixels."""

    def __init__(self, folder: Path, identities: int) -> None:
        self.folder = folder
        drawn = [face.image for face in drawn_faces(identities // COPIES, FACES, size=SIZE, seed=0)]
        for encoding in ENCODINGS:
            self._write_shards(encoding, drawn, identities)
            self._write_others(encoding, self._write_photos(encoding))

    def as_documented(self) -> dict[str, Batches]:
        return {
            "sparface": self.ours,
            "webdataset": lambda workers: self.webdataset("torchrgb8", workers),
            "mosaicml-streaming": lambda workers: self.mosaic("jpeg", from_pil, workers),
            "litdata": self.litdata,
            "ImageFolder": lambda workers: self.image_folder(workers, transform=PILToTensor()),
        }

    def one_decoder(self) -> dict[str, Batches]:
        handler = webdataset.handle_extension("jpg", from_jpeg)
        return {
            "sparface": self.ours,
            "webdataset": lambda workers: self.webdataset(handler, workers),
            "mosaicml-streaming": lambda workers: self.mosaic("bytes", from_jpeg, workers),
            "litdata": lambda workers: self.litdata(workers, serializers={"image": FastImage()}),
            "ImageFolder": lambda workers: self.image_folder(workers, loader=from_file),
        }

    def without_decoder(self) -> dict[str, Batches]:
        return {
            "sparface": lambda workers: self.ours(workers, "npy"),
            "webdataset": lambda workers: self.webdataset("rgb8", workers, "npy"),
            "mosaicml-streaming": lambda workers: self.mosaic(PIXELS, torch.from_numpy, workers),
            "litdata": lambda workers: self.litdata(workers, "npy"),
            "ImageFolder": lambda workers: self.image_folder(
                workers, "npy", loader=pixels_of, is_valid_file=is_pixels
            ),
        }

    def ours(self, workers: int, encoding: Encoding = "jpg") -> Iterable[Any]:
        stream = FaceStream(
            ShardSet.open(self.folder / f"faces-{encoding}"),
            identities_per_batch=BATCH // GROUP,
            images_per_identity=GROUP,
            seed=0,
        )
        return Loader(stream, workers=workers)

    def webdataset(self, decoder: Any, workers: int, encoding: Encoding = "jpg") -> Iterable[Any]:
        shards = sorted(map(str, (self.folder / f"faces-{encoding}").glob("*.tar")))
        faces = webdataset.WebDataset(shards, shardshuffle=100).shuffle(1000).decode(decoder)
        faces = (
            faces.to_tuple(encoding, "json")
            .map_tuple(torch.as_tensor, label_of)
            .batched(BATCH, partial=False)
        )
        return webdataset.WebLoader(faces, batch_size=None, num_workers=workers)

    def mosaic(self, stored: str, transform: Callable[[Any], Any], workers: int) -> Iterable[Any]:
        clean_stale_shared_memory()
        faces = MosaicFaces(
            transform, local=str(self.folder / f"mosaic-{stored}"), shuffle=True, batch_size=BATCH
        )
        return DataLoader(faces, batch_size=BATCH, num_workers=workers, drop_last=True)

    def litdata(self, workers: int, encoding: Encoding = "jpg", **settings: Any) -> Iterable[Any]:
        folder = str(self.folder / f"litdata-{encoding}")
        faces = litdata.StreamingDataset(folder, shuffle=True, drop_last=True, **settings)
        batches = litdata.StreamingDataLoader(faces, batch_size=BATCH, num_workers=workers)
        return ((batch["image"], batch["label"]) for batch in batches)

    def image_folder(self, workers: int, encoding: Encoding = "jpg", **settings: Any) -> Iterable[Any]:
        faces = ImageFolder(str(self.folder / f"photos-{encoding}"), **settings)
        return DataLoader(faces, batch_size=BATCH, shuffle=True, num_workers=workers, drop_last=True)

    def _write_shards(self, encoding: Encoding, drawn: list[NDArray[np.uint8]], identities: int) -> None:
        folder = self.folder / f"faces-{encoding}"
        with ShardSetWriter(
            folder, name="faces", size=(SIZE, SIZE), encoding=encoding, shard_samples=SHARD
        ) as writer:
            for number in range(identities * FACES):
                label, face = divmod(number, FACES)
                image = drawn[label // COPIES * FACES + face]
                key = f"{label:04d}-{face:02d}"
                writer.add(Face(key, image, f"{label:04d}", key))

    def _write_photos(self, encoding: Encoding) -> list[tuple[Path, int]]:
        """Write the files of the shard set to one folder per identity; return path and label of each."""
        faces, files = ShardSet.open(self.folder / f"faces-{encoding}"), []
        for number in range(len(faces.manifest.shards)):
            with faces.shard(number) as shard:
                for sample in range(len(shard)):
                    identity = shard.key(sample)[:4]
                    path = self.folder / f"photos-{encoding}" / identity / f"{shard.key(sample)}.{encoding}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(shard.image(sample))
                    files.append((path, int(identity)))
        return files

    def _write_others(self, encoding: Encoding, files: list[tuple[Path, int]]) -> None:
        litdata.optimize(
            litdata_sample,
            files,
            str(self.folder / f"litdata-{encoding}"),
            chunk_bytes="64MB",
            num_workers=1,
            verbose=False,
        )
        # litdata sets the start method to "spawn"; restore the default of Linux
        torch.multiprocessing.set_start_method("fork", force=True)
        for kind, read in MOSAIC[encoding].items():
            columns = {"image": kind, "label": "int"}
            with MDSWriter(out=str(self.folder / f"mosaic-{kind}"), columns=columns) as writer:
                for path, label in files:
                    writer.write({"image": read(path), "label": label})


class MosaicFaces(StreamingDataset):
    """The data set of mosaicml-streaming's guide on images."""

    def __init__(self, transform: Callable[[Any], Any], **settings: Any) -> None:
        super().__init__(**settings)
        self.transform = transform

    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return self.transform(sample["image"]), sample["label"]


class FastImage(ImageSerializer):
    """litdata's image with sparface's decoder."""

    def deserialize(self, data: bytes) -> torch.Tensor:
        return from_jpeg(data)


def litdata_sample(file: tuple[Path, int]) -> dict[str, Any]:
    path, label = file
    return {"image": np.load(path) if is_pixels(path) else litdata.Image(path=str(path)), "label": label}


def label_of(sidecar: Any) -> int:
    return int((sidecar if isinstance(sidecar, dict) else {"label": -1})["label"])


def from_pil(image: Image.Image) -> torch.Tensor:
    return PILToTensor()(image.convert("RGB"))


def from_jpeg(data: bytes) -> torch.Tensor:
    """Decode to [H, W, 3]; transposing it would only cost the rival time."""
    return torch.from_numpy(simplejpeg.decode_jpeg(data))


def from_file(path: str) -> torch.Tensor:
    return from_jpeg(Path(path).read_bytes())


def pixels_of(path: str) -> torch.Tensor:
    return torch.from_numpy(np.load(path))


def is_pixels(path: str | Path) -> bool:
    return str(path).endswith(".npy")


if __name__ == "__main__":
    sys.exit(main())
