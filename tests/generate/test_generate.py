"""What is in a made set, and that it is one like any other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from made_sets import FACTOR, SMALL, make, write_run
from sparface.config import Config
from sparface.errors import UserError
from sparface.evaluation.recognizers import open_recognizer
from sparface.export import export
from sparface.generate import run
from sparface.generate.layout import Layout
from sparface.generate.make import variant_key
from sparface.generate.settings import GenerateConfig
from sparface.generate.variants import Variant
from sparface.kernels.synthesize import synthesize
from sparface.runs.trained import open_run
from sparface.shards import FaceStream, ShardSet, subset, verify
from sparface.shards.format import is_key

PARTS = [
    (1, 1, 1),
    (72, 5, 30),
    (2599, 100, 1000),
    (3, 1000, 10),
    (5000, 100, 10),
    (2, 7, 1),
    (3000, 3, 99999),
]


@pytest.mark.parametrize(("sources", "factor", "shard_samples"), PARTS)
def test_units_hold_every_variant_once(sources: int, factor: int, shard_samples: int) -> None:
    layout = Layout(sources, factor, shard_samples)
    seen = np.zeros((sources, factor + 1), int)
    for unit in range(layout.units):
        block = layout.block(layout.block_of(unit))
        seen[block.start : block.stop, list(layout.variants(unit))] += 1
        assert layout.samples(unit) == len(block) * len(layout.variants(unit)) > 0
        assert layout.samples(unit) <= max(shard_samples, 1)
    assert (seen[:, 1:] == 1).all() and not seen[:, 0].any()
    for count in (1, 2, 3, 7):
        parts = [unit for index in range(count) for unit in layout.part(index, count)]
        assert parts == list(range(layout.units))


def test_a_made_set_is_sound_and_complete(made: ShardSet, faces: Path) -> None:
    sources = ShardSet.open(faces)
    assert verify(made.folder) == []
    assert made.identities == sources.identities
    assert made.manifest.identities == dict.fromkeys(sources.identities, 6 * FACTOR)
    assert made.manifest.licence == sources.manifest.licence
    shards = [shard.samples for shard in made.manifest.shards]
    assert shards == [24] * 15
    assert all(len(shard.runs) == 4 for shard in made.manifest.shards)  # identities mix in a shard


def test_each_sample_says_where_it_comes_from(made: ShardSet, faces: Path) -> None:
    sources = {face.key: face for face in ShardSet.open(faces).faces()}
    numbers: dict[str, set[int]] = {}
    for face in made.faces():
        meta = face.meta
        source = sources[meta["parent"]]
        assert (face.identity, face.source) == (source.identity, source.source)
        assert meta["synthetic"] is True and meta["seed"] == 0 and meta["attempt"] == 0
        assert meta["maker"] == made.manifest.provenance["maker"] and meta["target"] is None
        assert 0.05 <= meta["strength"] <= 0.1
        assert np.abs(face.image.astype(int) - source.image).max() <= round(meta["strength"] * 255) + 1
        numbers.setdefault(source.key, set()).add(meta["variant"])
    assert numbers == {key: set(range(1, FACTOR + 1)) for key in sources}
    assert made.manifest.provenance["sources"] == ShardSet.open(faces).digest
    assert made.manifest.provenance["settings"]["noise"] == SMALL["noise"]


def test_a_made_set_keeps_the_labels(sparring_run: Path, labelled: Path, tmp_path: Path) -> None:
    found = make(sparring_run, labelled, tmp_path / "set", originals=0.5)
    assert found is not None and verify(found.folder) == []
    parents = {face.key: face.meta["expression"] for face in ShardSet.open(labelled).faces()}
    counts = Counter(face.meta["expression"] for face in found.faces())
    assert all(face.meta["expression"] == parents[face.meta["parent"]] for face in found.faces())
    assert found.manifest.labels == {"expression": dict(sorted(counts.items()))}
    assert found.classes("expression") == ShardSet.open(labelled).classes("expression")


def test_variants_of_a_face_differ(made: ShardSet) -> None:
    images: dict[str, list[Any]] = {}
    for face in made.faces():
        images.setdefault(face.meta["parent"], []).append(face.image)
    assert all(len({image.tobytes() for image in found}) == FACTOR for found in images.values())


def test_a_lossless_sample_is_the_generators_face_to_the_bit(
    made: ShardSet, sparring_run: Path, faces: Path
) -> None:
    """Made again from the definition: clip(x + ε·δ·m), one face by itself, to within rounding."""
    job = run.open_job(sparring_run, faces, made.folder, GenerateConfig(**SMALL))
    generator = open_run(sparring_run).network("generator")
    face = next(iter(made.faces()))
    source = next(iter(ShardSet.open(faces).faces()))
    block = job.maker.block([0], [source], None)
    again = job.maker.make(block, [Variant(0, 1)]).images[0].numpy()
    assert np.abs(again.astype(int) - face.image).max() <= 1
    x = torch.from_numpy(source.image).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        perturbation, mask = generator(x)  # without the noise: near, yet another face
    plain = synthesize(x, perturbation, mask, face.meta["strength"])
    assert 0 < np.abs((plain[0].permute(1, 2, 0).numpy() * 255).round() - face.image).mean() < 10


def test_plain_webdataset_and_a_trainer_read_it(made: ShardSet) -> None:
    tars = [str(path) for path in sorted(made.folder.glob("*.tar"))]
    plain = webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8").to_tuple("__key__", "png", "json")
    for (key, image, info), face in zip(plain, made.faces(), strict=True):
        assert key == face.key and info["parent"] == face.meta["parent"]
        assert (image == face.image).all()
    stream = FaceStream(
        made, identities_per_batch=4, images_per_identity=2, window=2, seed=0, rank=0, world_size=1
    )
    batch = next(iter(stream))
    assert batch.images.shape == (8, 3, 32, 32)


def test_originals_go_in_as_variant_zero(sparring_run: Path, faces: Path, tmp_path: Path) -> None:
    found = make(sparring_run, faces, tmp_path / "all", factor=2, originals=1.0)
    assert found is not None and verify(found.folder) == []
    sources = {face.key: face for face in ShardSet.open(faces).faces()}
    originals = [face for face in found.faces() if face.meta["variant"] == 0]
    assert len(originals) == len(sources) and len(found) == 3 * len(sources)
    for face in originals:
        assert face.meta["synthetic"] is False
        assert (face.image == sources[face.meta["parent"]].image).all()
    some = make(sparring_run, faces, tmp_path / "some", factor=2, originals=0.5)
    assert some is not None and 20 < len(some) - 2 * len(sources) < 52


def test_variation_and_the_saliency_floor_change_the_faces(
    made: ShardSet, sparring_run: Path, faces: Path, tmp_path: Path
) -> None:
    changes: dict[str, dict[str, Any]] = {
        "plain": {},
        "varied": {"variation": "classic"},
        "raised": {"saliency_floor": 1.0},
    }
    plain, varied, raised = (
        make(sparring_run, faces, tmp_path / name, factor=1, strength_low=0.1, **more)
        for name, more in changes.items()
    )
    assert plain and varied and raised
    sources = [face.image.astype(int) for face in ShardSet.open(faces).faces()]

    def change(found: ShardSet) -> float:
        return float(
            np.mean([np.abs(f.image - s).mean() for f, s in zip(found.faces(), sources, strict=True)])
        )

    assert change(plain) < change(raised) <= 0.1 * 255
    assert change(varied) > 2 * change(plain)


def test_targeted_variants_come_nearer_to_their_target(
    sparring_run: Path, faces: Path, tmp_path: Path
) -> None:
    found = make(sparring_run, faces, tmp_path / "set", factor=1, targeted=0.5)
    assert found is not None
    plain = make(sparring_run, faces, tmp_path / "plain", factor=1)
    assert plain is not None
    sources = {face.key: face for face in ShardSet.open(faces).faces()}
    judge = open_recognizer(sparring_run).network

    def embed(image: Any) -> torch.Tensor:
        with torch.no_grad():
            return judge(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)[0]

    nearer, targeted = 0, 0
    for face, without in zip(found.faces(), plain.faces(), strict=True):
        if (key := face.meta["target"]) is None:
            assert (face.image == without.image).all()
            continue
        assert sources[key].identity != face.identity
        target = embed(sources[key].image)
        targeted += 1
        nearer += bool(embed(face.image) @ target > embed(without.image) @ target)
    assert 20 < targeted < 52 and nearer > 0.8 * targeted


def test_plain_pixels_hold_the_same_faces(
    made: ShardSet, sparring_run: Path, faces: Path, tmp_path: Path
) -> None:
    found = make(sparring_run, faces, tmp_path / "set", encoding="npy")
    assert found is not None and not found.manifest.lossy and verify(found.folder) == []
    for plain, png in zip(found.faces(), made.faces(), strict=True):
        assert plain.key == png.key and (plain.image == png.image).all()


@pytest.mark.parametrize("encoding", ["jpg", "webp"])
def test_lossy_encodings_are_stated_and_measured(
    sparring_run: Path, faces: Path, tmp_path: Path, encoding: str
) -> None:
    found = make(sparring_run, faces, tmp_path / "set", factor=2, encoding=encoding, quality=80)
    assert found is not None and found.manifest.lossy and verify(found.folder) == []
    report = json.loads((found.folder / "report.json").read_bytes())
    assert report["digest"] == found.digest
    assert set(report["encodings"]) >= {f"{encoding} 80", "jpg 95", "jpg 75"}
    assert report["encodings"]["jpg 95"] > report["encodings"]["jpg 75"] - 0.1
    for name in ("sheet.png", "report.png"):
        with Image.open(found.folder / name) as picture:
            assert picture.width >= 300


def test_filters_reject_redraw_and_tell(sparring_run: Path, faces: Path, tmp_path: Path, capsys: Any) -> None:
    """With a threshold in the middle, some are drawn again and some given up, the same every time."""
    loose = make(sparring_run, faces, tmp_path / "loose", factor=2)
    assert loose is not None
    sources = {face.key: face.image.astype(int) for face in ShardSet.open(faces).faces()}
    changes = [np.abs(face.image - sources[face.meta["parent"]]).mean() for face in loose.faces()]
    rules = {"change": float(np.median(changes)), "cosine": -0.5, "attempts": 2}
    first, second = (
        make(sparring_run, faces, tmp_path / name / "set", factor=2, filter=rules) for name in ("a", "b")
    )
    assert first is not None and second is not None and first.digest == second.digest
    counts = first.manifest.provenance["counts"]
    assert counts["made"] + counts["given_up"] == 2 * len(sources)
    assert counts["near_copy"] > counts["given_up"] > 0 and "strayed" not in counts
    attempts = {face.meta["attempt"] for face in first.faces()}
    assert attempts == {0, 1}
    for face in first.faces():
        change = np.abs(face.image - sources[face.meta["parent"]]).mean()
        assert change >= rules["change"] - 1e-3
    assert verify(first.folder) == []
    out = capsys.readouterr().out
    assert "near copy" in out and "variants given up" in out


def test_a_filter_that_rejects_all_is_named(sparring_run: Path, faces: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"all 24 variants of shard set-000000\.tar were rejected, mostly as dead"
    ):
        make(sparring_run, faces, tmp_path / "set", filter={"mask": 1.0, "attempts": 2})


def test_an_onnx_file_judges_as_the_run_does(sparring_run: Path, faces: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    export(sparring_run, tmp_path / "weights")
    onnx, run = open_recognizer(tmp_path / "weights" / "recognizer.onnx"), open_recognizer(sparring_run)
    by_onnx, by_run = onnx.network, run.network
    assert onnx.digest != run.digest and onnx.size == run.size == 32
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(by_onnx(x), by_run(x), atol=1e-4, rtol=1e-4)
    assert by_onnx(torch.rand(2, 3, 64, 64)).shape == (2, 32)  # resized
    (tmp_path / "broken.onnx").write_bytes(b"no")
    with pytest.raises(UserError, match="cannot be read"):
        open_recognizer(tmp_path / "broken.onnx")


def pictures(path: Path) -> None:
    """An ONNX file that makes pictures of faces, not embeddings."""
    helper = pytest.importorskip("onnx.helper")
    pytest.importorskip("onnxruntime")
    ends = [helper.make_tensor_value_info(name, 1, ["n", 3, "h", "w"]) for name in ("faces", "pictures")]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["faces"], ["pictures"])], "g", ends[:1], ends[1:]
    )
    opset = [helper.make_opsetid("", 18)]
    path.write_bytes(helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString())


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ("nowhere.onnx", "nowhere.onnx: no such file"),
        ("nowhere", "nowhere: no such file"),
        ("pictures.onnx", r"pictures.onnx: returns \(2, 3, 112, 112\) for 2 faces, not one embedding each"),
    ],
)
def test_a_judge_that_only_the_report_needs_is_refused_before_a_shard_is_made(
    sparring_run: Path, faces: Path, tmp_path: Path, judge: str, message: str
) -> None:
    pictures(tmp_path / "pictures.onnx")
    with pytest.raises(UserError, match=message):
        run.open_job(sparring_run, faces, tmp_path / "set", GenerateConfig(**SMALL), judge=tmp_path / judge)
    assert not (tmp_path / "set").exists()


def test_a_run_without_generator_is_refused(tiny: Callable[..., Config], faces: Path, tmp_path: Path) -> None:
    alone = write_run(tmp_path / "alone", tiny("--recipe=recognizer"))
    with pytest.raises(UserError, match="has no generator; it has recognizer"):
        make(alone, faces, tmp_path / "set")


def test_long_keys_get_a_digest() -> None:
    assert variant_key("anna-01", 7) == "anna-01-v007"
    long = [variant_key("x" * 88 + end, 1234) for end in "ab"]
    assert all(map(is_key, long)) and len(set(long)) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factor": 0}, "--factor: 0 is not allowed; must be at least 1"),
        ({"strength_low": 0.3}, "--strength_low: 0.3 is not allowed; must be at most strength_high"),
        ({"targeted": 2.0}, "--targeted: 2.0 is not allowed; must be between 0 and 1"),
        ({"quality": 0}, "--quality: 0 is not allowed; must be 1 to 100"),
        ({"filter": {"attempts": 0}}, "--filter.attempts: 0 is not allowed"),
        ({"noise": float("nan")}, "--noise: nan is not allowed; must be finite"),
        ({"part": "2/2"}, "--part: 2/2 is not allowed; give I/N with I from 0 to N - 1"),
    ],
)
def test_bad_settings_are_named(
    sparring_run: Path, faces: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        make(sparring_run, faces, tmp_path / "set", **settings)
    assert str(error.value).startswith(message)
    assert not (tmp_path / "set").exists()


def test_a_made_set_is_split_like_any_other(made: ShardSet, tmp_path: Path) -> None:
    """Though each of its people has faces in several shards."""
    parts = [
        subset.split(made.folder, tmp_path / str(rest), by="photos", rest=rest) for rest in (False, True)
    ]
    assert all(verify(part.folder) == [] for part in parts) and len(parts[0]) == round(0.8 * len(made))
    found = {face.key: face.image.tobytes() for part in parts for face in part.faces()}
    assert found == {face.key: face.image.tobytes() for face in made.faces()}
