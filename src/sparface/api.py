"""The Python API of `sparface`: read faces, and get batches, embeddings and sparring faces.

Faces are tensors [N,3,H,W], RGB, uint8 or floats in [0,1].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sparface.config import Config
from sparface.errors import UserError
from sparface.evaluation.recognizers import open_recognizer
from sparface.faces import Aligner, Alignment, BadPhoto, open_photo
from sparface.faces.templates import Template
from sparface.models.sae import Encoder
from sparface.recipes.base import evaluating
from sparface.runs.trained import open_generator, open_run
from sparface.shards import Batch, FaceStream, ShardSet
from sparface.shards.loading import Loader
from sparface.sparring import made
from sparface.sparring.forms import form_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

Source = str | Path


def open_shards(folder: Source) -> ShardSet:
    """Open a shard set in a folder or at a URL. Raises `UserError` if there is no shard set."""
    return ShardSet.open(str(folder))


def stream(
    shards: ShardSet,
    *,
    identities_per_batch: int = 8,
    images_per_identity: int = 4,
    seed: int = 0,
    images_seen: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 1,
    on_bad_sample: Literal["fail", "skip"] = "fail",
) -> Iterator[Batch]:
    """Iterate endlessly over batches of a shard set, with the faces that `sparface train` sees in each.

    A batch has `images` (uint8 [b,3,H,W]), `labels` (int64 [b], see `ShardSet.identities`) and `positions`
    (int64 [b], the faces' positions in the stream). Its `identities_per_batch` groups of
    `images_per_identity` faces are divided over `world_size` processes. The order depends on the seed alone,
    so training can resume at any `images_seen` with any number of processes. Raises `UserError` if the
    groups do not divide evenly.
    """
    faces = FaceStream(
        shards,
        identities_per_batch=identities_per_batch,
        images_per_identity=images_per_identity,
        seed=seed,
        images_seen=images_seen,
        rank=rank,
        world_size=world_size,
        on_bad_sample=on_bad_sample,
    )
    return iter(Loader(faces, workers, pin_memory=torch.cuda.is_available()))


def align_photos(
    photos: Sequence[Source | NDArray[np.uint8]],
    *,
    size: int = 112,
    template: Template = "arcface",
    already_cropped: bool = False,
) -> Tensor:
    """Find the face in each photo and align it to a template; returns uint8 [N,3,size,size].

    A photo is a file or an array uint8 [H,W,3]. If it shows several faces, a large one near the centre is
    chosen. Set `already_cropped` for photos that show little more than the face. Raises `UserError` naming
    a photo that has no face or cannot be read.
    """
    aligner = Aligner(Alignment(size, template, already_cropped))
    faces = []
    for number, photo in enumerate(photos):
        try:
            image = photo if isinstance(photo, np.ndarray) else open_photo(Path(photo))
            faces.append(aligner.align(image)[0])
        except BadPhoto as problem:
            name = f"photo {number}" if isinstance(photo, np.ndarray) else photo
            raise UserError(f"{name}: {problem}") from None
    return torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2).contiguous()


def load_recognizer(source: Source, device: str | torch.device = "cpu") -> nn.Module:
    """Load a recognizer in evaluation mode: faces [N,3,H,W] → embeddings [N,E] of length 1.

    `source` is a run folder, a folder written by `sparface export`, an ONNX file (runs on the CPU), or a
    backbone's weights file (.safetensors, .pt). A file written by `sparface export` names its backbone; any
    other file is loaded as FaceNet (facenet-pytorch's InceptionResnetV1), as are the names `vggface2` and
    `casia-webface`. Raises `UserError` if `source` cannot be loaded.
    """
    return open_recognizer(Path(source), torch.device(device)).network


def load_generator(run: Source, device: str | torch.device = "cpu") -> Encoder:
    """Load the generator of sparring faces from a run. Raises `UserError` if the run has none."""
    return open_generator(open_run(Path(run)), torch.device(device))


@torch.no_grad()
def embed(recognizer: nn.Module, faces: Tensor, *, batch_size: int = 64) -> Tensor:
    """Embed faces [N,3,H,W], uint8 or floats in [0,1]; returns float32 [N,E] of length 1, on the CPU."""
    device = next((p.device for p in recognizer.parameters()), torch.device("cpu"))
    with evaluating(recognizer):
        starts = range(0, len(faces), batch_size)
        batches = (faces[start : start + batch_size].to(device) for start in starts)
        return torch.cat([recognizer(_floats(batch)).float().cpu() for batch in batches])


@torch.no_grad()
def synthesize(generator: Encoder, faces: Tensor, *, seed: int = 0, batch_size: int = 64) -> Tensor:
    """Make a sparring face of each face [N,3,H,W], uint8 or floats in [0,1].

    Returns floats [N,3,H,W] in [0,1], on the CPU. `seed` seeds the noise of a generator that takes noise, and
    what a generator does not choose, such as the texture of an occluder.
    """
    device = next(generator.parameters()).device
    form = form_of(generator, seed)
    found = []
    with evaluating(generator):
        for start in range(0, len(faces), batch_size):
            x = _floats(faces[start : start + batch_size].to(device))
            positions = torch.arange(start, start + len(x), device=device)
            found.append(form.learned(generator, made.Source(x, positions)).face.cpu())
    return torch.cat(found)


def load_config(name: Source, *overrides: str) -> Config:
    """Load a configuration by file or name, with overrides as on the command line (`"--data.workers=0"`)."""
    from sparface import settings

    return settings.load(name, overrides)


def train(config: Config, out: Source) -> bool:
    """Train to the end of the schedule, as `sparface train` does; resumes if `out` has a checkpoint.

    Returns False if a signal stopped training early. Raises `UserError` for a config, shard set or run
    folder that cannot be used.
    """
    from sparface.training.loop import train as run

    return run(config, Path(out))


def _floats(faces: Tensor) -> Tensor:
    return faces.float() / 255 if faces.dtype == torch.uint8 else faces.float()
