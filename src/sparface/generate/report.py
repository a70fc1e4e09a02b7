"""Report on a made set: figures, histograms and a contact sheet of a sample that is drawn again in memory."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sparface.config import LOSSY, Encoding
from sparface.files import write_whole
from sparface.generate.folder import MadeFolder
from sparface.generate.variants import Block, Judge, Made, Maker, Variant
from sparface.report import charts
from sparface.shards.codec import decode_into, encode
from sparface.shards.set import ShardSet

SOURCES = 16
VARIANTS = 8
"""Size of the sample: faces spread over the source set, and variants of each."""
TRIED: tuple[tuple[Encoding, int], ...] = (("jpg", 95), ("jpg", 75), ("webp", 90))
"""Encodings that are always tried, in addition to the chosen one."""
_BINS = np.linspace(-1, 1, 101)
_COSINES = ("cosine_to_source", "cosine_between_variants")
_TILE, _GAP = 96, 4
LEAST_SHIFT = 1e-6
"""Sum of squared shifts of embeddings below which there is nothing but rounding."""


def write_report(
    folder: MadeFolder, maker: Maker, finished: ShardSet, judge: Judge | None, judge_digest: str | None
) -> None:
    """Write report.json, report.png and sheet.png next to the manifest, unless they are up to date. Without a
    judge, there are no cosines and no histograms of them."""
    path = folder.folder / "report.json"
    if path.is_file() and json.loads(path.read_bytes()).get("digest") == finished.digest:
        return
    block, drawn, made = _sample(maker, judge)
    change = torch.cat([maker.change(block, d, m) for d, m in zip(drawn, made, strict=True)])
    figures: dict[str, Any] = {
        "digest": finished.digest,
        "judge": judge_digest,
        "counts": finished.manifest.provenance["counts"],
        "sample": f"{len(drawn)} faces, {len(drawn[0])} variants each, drawn again in memory",
        "change": _distribution(change, bins=None),
        **({} if judge is None else _judged(maker, judge, block, drawn, made)),
        "means": _means([maker.figures(block, d, m) for d, m in zip(drawn, made, strict=True)]),
    }
    with folder.explain_disk():
        if judge is not None:
            write_whole(folder.folder / "report.png", _histograms(figures))
        write_whole(folder.folder / "sheet.png", _sheet(block, made))
        write_whole(path, json.dumps(figures, indent=1).encode())


def summary(path: Path) -> str:
    """Summarise a report.json in a few lines of text."""
    figures = json.loads(path.read_bytes())
    named = {name: figures[name] for name in (*_COSINES, "change") if figures.get(name)}
    lines = [
        f"{name.replace('_', ' ')}: {found['mean']:.3f} (5 % below {found['p05']:.3f})"
        for name, found in named.items()
    ]
    lines += [f"{name.replace('_', ' ')}: {value:.1%}" for name, value in figures["means"].items()]
    for name, survives in figures.get("encodings", {}).items():
        lines.append(f"{name}: {survives:.1%} of the embedding shift survives the encoding")
    return "\n".join(lines)


def _judged(
    maker: Maker, judge: Judge, block: Block, drawn: list[list[Variant]], made: list[Made]
) -> dict[str, Any]:
    """What a judge sees in the sample."""
    cosine = torch.cat([maker.cosine_to_source(judge, block, d, m) for d, m in zip(drawn, made, strict=True)])
    embeddings = torch.cat([_embed(maker, judge, batch.images) for batch in made])
    between = _between(embeddings.view(len(drawn), -1, embeddings.shape[1]))
    return {
        "cosine_to_source": _distribution(cosine),
        "cosine_between_variants": _distribution(between),
        "encodings": _encodings(maker, judge, block, drawn, made),
    }


def _sample(maker: Maker, judge: Judge | None) -> tuple[Block, list[list[Variant]], list[Made]]:
    """Draw a batch of variants of each of some faces spread over the source set."""
    settings, count = maker.settings, len(maker.sources)
    places = np.unique(np.linspace(0, count - 1, SOURCES).astype(int)).tolist()
    numbers = np.unique(np.linspace(1, settings.factor, VARIANTS).astype(int)).tolist()
    faces = [face for _, face in maker.sources.faces_at(places)]
    block = maker.block(places, faces, judge)
    drawn = [[Variant(row, number) for number in numbers] for row in range(len(faces))]
    return block, drawn, [maker.make(block, batch) for batch in drawn]


def _means(batches: list[dict[str, Tensor]]) -> dict[str, float]:
    """The mean of each figure over all batches."""
    return {
        name: round(float(torch.cat([b[name] for b in batches]).float().mean()), 4) for name in batches[0]
    }


def _embed(maker: Maker, judge: Judge, images: Tensor) -> Tensor:
    with torch.no_grad():
        return judge(maker.floats(images))


def _between(embeddings: Tensor) -> Tensor:
    """Return the cosines between all pairs of variants of the same source, from embeddings [S,V,E]."""
    pairs = torch.triu_indices(embeddings.shape[1], embeddings.shape[1], 1)
    return (embeddings @ embeddings.mT)[:, pairs[0], pairs[1]].flatten()


def _distribution(values: Tensor, bins: NDArray[np.float64] | None = _BINS) -> dict[str, Any] | None:
    """Return mean, quantiles and histogram, or None without values (a single variant has no pairs)."""
    found = values.double().cpu().numpy()
    if not len(found):
        return None
    low, middle, high = np.quantile(found, [0.05, 0.5, 0.95]).round(4).tolist()
    result: dict[str, Any] = {"mean": round(float(found.mean()), 4), "p05": low, "p50": middle, "p95": high}
    if bins is not None:
        result["histogram"] = np.histogram(found, bins)[0].tolist()
    return result


def _encodings(
    maker: Maker, judge: Judge, block: Block, drawn: list[list[Variant]], made: list[Made]
) -> dict[str, float]:
    """Return the share of the embedding shift that survives each lossy encoding.

    The share is the projection of the decoded faces' shifts onto the original faces' shifts, relative to the
    latter's length: 1 means all of it. Shifts that an encoding adds in other directions do not count.
    """
    tried = dict.fromkeys([(maker.settings.encoding, maker.settings.quality), *TRIED])
    found = {
        f"{encoding} {quality}": _survives(maker, judge, block, drawn, made, encoding, quality)
        for encoding, quality in tried
        if encoding in LOSSY
    }
    return {name: round(share, 4) for name, share in found.items() if share is not None}


def _survives(
    maker: Maker,
    judge: Judge,
    block: Block,
    drawn: list[list[Variant]],
    made: list[Made],
    encoding: Encoding,
    quality: int,
) -> float | None:
    """The share of the embedding shift that survives an encoding; None if nothing has shifted."""
    assert block.embeddings is not None
    kept, shift = 0.0, 0.0
    for variants, batch in zip(drawn, made, strict=True):
        source = block.embeddings[variants[0].row]
        before = _embed(maker, judge, batch.images) - source
        after = _embed(maker, judge, _through(batch.images, encoding, quality)) - source
        kept, shift = kept + float((before * after).sum()), shift + float((before * before).sum())
    return kept / shift if shift > LEAST_SHIFT else None


def _through(images: Tensor, encoding: Encoding, quality: int) -> Tensor:
    """Encode and decode images uint8 [B,H,W,3]."""
    found = images.cpu().numpy().copy()
    for image in found:
        decode_into(encode(image, encoding, quality), encoding, image)
    return torch.from_numpy(found)


def _histograms(figures: dict[str, Any]) -> bytes:
    """Draw a PNG with histograms of the cosines to the source and between variants."""
    with matplotlib.rc_context(charts.STYLE):
        figure = Figure(figsize=(5.6, 2.8), layout="constrained")
        axes = figure.add_subplot()
        low = 1.0
        for index, name in enumerate(name for name in _COSINES if figures[name]):
            counts = np.array(figures[name]["histogram"])
            shares = counts / counts.sum()
            axes.stairs(
                shares, _BINS, label=name.replace("_", " "), fill=True, alpha=0.6, color=charts.colour(index)
            )
            low = min([low, *_BINS[:-1][counts > 0]])
        axes.set(xlim=(low - 0.02, 1), xlabel="cosine, by the judge", ylabel="share of variants or pairs")
        axes.legend(frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=charts.DPI)
    return file.getvalue()


def _sheet(block: Block, made: list[Made]) -> bytes:
    """Draw a PNG with one row per source: the source, then its variants."""
    rows = [[face.image, *batch.images.cpu().numpy()] for face, batch in zip(block.faces, made, strict=True)]
    step = _TILE + _GAP
    sheet = Image.new("RGB", (step * max(map(len, rows)), 20 + step * len(rows)), "white")
    ImageDraw.Draw(sheet).text((2, 2), "source | its variants", fill="gray", font=ImageFont.load_default(12))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            tile = Image.fromarray(image).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (x * step + (_GAP if x else 0), 20 + y * step))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()
