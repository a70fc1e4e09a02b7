"""Whole runs of the recipe `noise_gan`: exact resume, two processes, made sets of it, exports, collapse."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import scipy.linalg
import torch
from safetensors.torch import load_file
from strategy_chain import Job, Segment, train_all
from torch import Tensor

from made_sets import digests, write_run
from sparface import cli, settings
from sparface.config import Config
from sparface.errors import UserError
from sparface.evaluation.classification import evaluate_classification
from sparface.evaluation.made_faces import MadeFacesValidator
from sparface.evaluation.recognizers import open_recognizer
from sparface.export import export
from sparface.faces import draw_set
from sparface.generate import run as generation
from sparface.generate.settings import FilterConfig, GenerateConfig
from sparface.models import noise_gan as noise_gan_networks
from sparface.models.noise_gan import NoiseGanConfig, NoiseGenerator
from sparface.randomness import normal
from sparface.report.compare import Report
from sparface.report.read import read_runs
from sparface.runs.trained import open_generator, open_run
from sparface.shards import ShardSet, describe, split
from sparface.training.loop import train

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("one_thread")]
SHORT = (
    *("--recipe=noise_gan", "--noise_gan.width=4", "--noise_gan.latent=8", "--noise_gan.embedding=4"),
    *("--data.workers=0", "--data.variation=mirror", "--noise_gan.r1_every=2", "--schedule.images=64"),
    *("--training.checkpoint_every=32", "--training.preview_every=64"),
    *("--noise_gan.discriminator_learning_rate=2e-4", "--optimizer.learning_rate=2e-4"),
    *("--training.average_half_life=64", "--validation.judge=drawn", "--validation.every=32"),
)
WAYS = {
    "whole": [Segment("single", 1, 64)],
    "resumed": [Segment("single", 1, 32), Segment("single", 1, 64)],
    "two": [Segment("ddp", 2, 64)],
    "grown": [Segment("single", 1, 32), Segment("ddp", 2, 64)],
    "sharded": [Segment("fsdp", 2, 64)],
}


@pytest.fixture(scope="module")
def configs(tiny: Callable[..., Config]) -> Callable[..., Config]:
    return lambda *options: tiny(*SHORT, *options)


@pytest.fixture(scope="module")
def runs(configs: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train_all([Job(configs(), folder / way, segments) for way, segments in WAYS.items()])
    return folder


def metrics(run: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        found |= json.loads(line)
    return found


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_an_interrupted_run_ends_the_same(runs: Path, network: str) -> None:
    whole, resumed = (open_run(runs / way).named(network) for way in ("whole", "resumed"))
    assert whole and all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize("way", WAYS)
def test_made_faces_are_compared_with_photos_during_training(
    runs: Path, configs: Callable[..., Config], way: str
) -> None:
    records = [json.loads(line) for line in (runs / way / "metrics.jsonl").read_text().splitlines()]
    series = {r["images"]: r["validation/frechet"] for r in records if "validation/frechet" in r}
    assert list(series) == [32, 64]
    photos = ShardSet.open(Path(configs().data.shards))
    trained, judge = open_run(runs / "whole"), open_recognizer(Path("drawn")).network
    labels = torch.tensor([sorted(photos.identities).index(face.identity) for face in photos.faces()])
    noise = normal(0, torch.arange(len(labels)), (8,), 37)
    with torch.no_grad():
        made = judge((trained.network("generator")(noise, labels) * 255).round() / 255).double().numpy()
        pixels = np.stack([face.image for face in photos.faces()])
        real = judge(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).double().numpy()
    of_made, of_real = np.cov(made.T), np.cov(real.T)
    root = scipy.linalg.sqrtm(of_made @ of_real + 1e-12 * np.eye(len(of_made))).real
    shift = np.square(made.mean(0) - real.mean(0)).sum()
    expected = shift + np.trace(of_made + of_real - 2 * root)
    assert series[64] == pytest.approx(expected, rel=1e-3)


def test_photos_are_as_good_as_photos(configs: Callable[..., Config]) -> None:
    photos = ShardSet.open(Path(configs().data.shards))
    pixels = torch.from_numpy(np.stack([face.image for face in photos.faces()])).permute(0, 3, 1, 2) / 255

    class Copies(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.shown = torch.nn.Parameter(torch.ones(())), 0

        def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
            self.shown += len(labels)
            return self.scale * pixels[self.shown - len(labels) : self.shown]

    classes = {name: number for number, name in enumerate(photos.identities)}
    validator = MadeFacesValidator("drawn", photos, classes, 8)
    assert validator(Copies()) == pytest.approx({"frechet": 0, "precision": 1, "recall": 1}, abs=1e-6)
    broken = Copies()
    broken.scale.data.fill_(float("nan"))
    assert all(np.isnan(value) for value in validator(broken).values())


@pytest.mark.parametrize("way", ["two", "grown", "sharded"])
def test_two_processes_end_where_one_does(runs: Path, way: str) -> None:
    for network in ("generator", "discriminator"):
        one, two = (open_run(runs / name).named(network) for name in ("whole", way))
        for name, value in one.items():
            # Adam's first steps have the length of the rate, 2e-4, whatever the gradient
            assert torch.allclose(value.double(), two[name].double(), atol=2e-5), name
    first, second = metrics(runs / "whole"), metrics(runs / way)
    for name in ("loss", "generator_loss", "r1", "diversity", "variety", "right_level", "accuracy"):
        assert first[name] == pytest.approx(second[name], rel=1e-2), name


def generate(run: Path, faces: Path, out: Path, part: str = "0/1", **given: Any) -> bool:
    """Make a part of a set with three faces per source."""
    filters, judge = FilterConfig(**given.pop("filter", {})), given.pop("judge", None)
    options: dict[str, Any] = {"factor": 3, "shard_samples": 30, "batch_size": 16} | given
    job = generation.open_job(
        run, faces, out, GenerateConfig(**options, filter=filters), judge=judge, part=part
    )
    return generation.generate(job, workers=1)


def test_labelled_faces_are_written_by_any_number_of_processes(
    runs: Path, faces: Path, tmp_path: Path
) -> None:
    assert generate(runs / "whole", faces, tmp_path / "one" / "made")
    for part in ("0/2", "1/2"):
        assert generate(runs / "whole", faces, tmp_path / "two" / "made", part)
    assert digests(tmp_path / "one" / "made") == digests(tmp_path / "two" / "made")

    made, sources = ShardSet.open(tmp_path / "one" / "made"), ShardSet.open(faces)
    assert made.identities == sources.identities and len(made) == 3 * len(sources)
    parents = {face.key: face for face in sources.faces()}
    images = set()
    for face in made.faces():
        assert face.meta["synthetic"] and face.meta["maker"].startswith("noise ")
        assert face.identity == parents[face.meta["parent"]].identity
        images.add(face.image.tobytes())
    # faces of a person differ, though those of a generator that has hardly learned by less than a grey level
    assert len(images) > 2 * len(sources.identities)
    assert (tmp_path / "one" / "made" / "sheet.png").is_file()
    assert re.search(r"^origin +100% made by noise [0-9a-f]{64}$", describe(made.folder), re.MULTILINE)


def test_a_made_face_is_the_generators_for_its_noise_and_person(
    runs: Path, faces: Path, tmp_path: Path
) -> None:
    run = open_run(runs / "whole")
    generator, names = run.network("generator"), run.facts["classes"]
    assert isinstance(generator, NoiseGenerator) and names == ShardSet.open(faces).identities
    assert generate(runs / "whole", faces, tmp_path / "made")
    for place, face in ShardSet.open(tmp_path / "made").faces_at([0, 100]):
        named = f"{face.meta['parent']} {face.meta['variant']} 0"
        position = np.frombuffer(hashlib.sha256(named.encode()).digest()[:8], "<i8").copy()
        noise = normal(0, torch.from_numpy(position), (8,), 36)
        with torch.no_grad():
            expected = generator(noise, torch.tensor([names.index(face.identity)]))[0] * 255
        assert np.abs(expected.permute(1, 2, 0).numpy() - face.image).max() < 0.6, place


def test_what_makes_no_sense_is_refused_in_one_line(
    configs: Callable[..., Config],
    runs: Path,
    faces: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    strangers = draw_set(tmp_path / "strangers", 2, 2, size=32, seed=5).folder
    nobody = write_run(tmp_path / "nobody", configs("--noise_gan.conditional=false"))
    run, own = runs / "whole", [f"--shards={faces}"]
    capsys.readouterr()
    for source, words, message in (
        (run, [f"--shards={strangers}"], "was not in the generator's training set; give that set"),
        (nobody, own, "its generator knows no people"),
        (run, [*own, "--targeted=0.5"], "--targeted: is for changed faces"),
        (run, [*own, "--strength_low=0.1"], "--strength_low: is for changed faces"),
        (run, [*own, "--variation=mirror"], "--variation: is for changed faces"),
        (run, [*own, "--filter.cosine=0.5"], "has no recognizer; give one with --judge"),
    ):
        assert cli.main(["generate", f"--checkpoint={source}", *words, f"--out={tmp_path / 'out'}"]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="does not make sparring faces of given faces"):
        open_generator(open_run(run), torch.device("cpu"))
    for option, message in {
        "--training.strategy=deepspeed": "noise_gan.r1: is not supported with deepspeed",
        "--training.compile=true": "noise_gan.r1: is not supported with training.compile",
        "--training.start_from=drawn": "is for a recognizer, which this recipe does not train",
        "--validation.judge=nowhere.onnx": "nowhere.onnx: no such file",
        "--recipe=recognizer": "validation.judge: the recipe recognizer makes no faces from noise",
    }.items():
        with pytest.raises(UserError, match=message):
            train(configs(option), tmp_path / "refused")


def test_the_discriminator_names_people(
    runs: Path, faces: Path, configs: Callable[..., Config], tmp_path: Path
) -> None:
    """On photos of the same people that it has not seen, in training and after it."""
    seen, held_out = (
        split(faces, tmp_path / name, share=0.7, by="photos", rest=name == "rest")
        for name in ("seen", "rest")
    )
    options = (f"--data.shards={seen.folder}", f"--validation.shards={held_out.folder}")
    assert train(configs(*options, "--validation.every=64"), tmp_path / "run")
    document, last = evaluate_classification(tmp_path / "run", held_out.folder), metrics(tmp_path / "run")
    names = ("accuracy", "recall_macro", "f1_macro")
    expected = {f"validation/{name}": document["figures"][name] for name in names}
    assert {name: last[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert document["classes"] == seen.identities
    # nobody is mistaken for a person who is not drawn, so only means over people can be bootstrapped
    intervals = document["intervals"]
    assert intervals["precision_macro"] == [None, None] == intervals["f1_weighted"]
    low, high = intervals["accuracy"]
    assert low <= document["figures"]["accuracy"] <= high
    report = Report(read_runs([tmp_path / "run"]))
    headline = report.headline(report.runs[0])
    assert (
        headline["value"] == document["figures"]["accuracy"] and "classification-on-rest" in headline["what"]
    )


def test_what_is_exported_does_the_same(runs: Path, tmp_path: Path) -> None:
    run = open_run(runs / "whole")
    export(run.run, tmp_path / "out")
    config = settings.load(tmp_path / "out" / "config.yaml")
    generator = NoiseGenerator(config.block(NoiseGanConfig), config.size, 1)
    generator.load_state_dict(load_file(tmp_path / "out" / "generator.safetensors"))
    noise, labels = torch.randn(3, 8), torch.tensor([0, 5, 11])
    with torch.no_grad():
        made = run.network("generator")(noise, labels)
        assert torch.equal(generator.eval()(noise, labels), made)
        expected = run.network("classifier")(made).numpy()
    session = onnxruntime.InferenceSession(tmp_path / "out" / "discriminator.onnx")
    (logits,) = session.run(["logits"], {"faces": made.numpy()})
    assert logits.shape == (3, 12) and np.abs(logits - expected).max() < 1e-4


def events(run: Path) -> list[str]:
    return [json.loads(line)["kind"] for line in (run / "events.jsonl").read_text().splitlines()]


LASTING = ("--noise_gan_watch.half_life=8", "--training.log_every=8")


def test_a_discriminator_that_nothing_fools_is_seen(configs: Callable[..., Config], tmp_path: Path) -> None:
    """A generator that hardly learns, and a discriminator that nothing restrains."""
    options = (
        *("--noise_gan.discriminator_learning_rate=5e-3", "--optimizer.learning_rate=1e-9"),
        *("--noise_gan.augmentation=false", "--noise_gan.spectral_norm=false", "--noise_gan.r1=0"),
        *("--noise_gan.identity_weight=0", "--schedule.images=320", *LASTING),
    )
    assert train(configs(*options), tmp_path / "run")
    assert "dead_discriminator" in events(tmp_path / "run")
    assert "dead_discriminator" not in events_of_a_sound_run(tmp_path, configs)


def events_of_a_sound_run(tmp_path: Path, configs: Callable[..., Config]) -> list[str]:
    """Whose generator starts with diverse faces."""
    train(configs("--schedule.images=320", *LASTING), tmp_path / "sound")
    return events(tmp_path / "sound")


@pytest.mark.parametrize(("conditional", "kind"), [("true", "collapse_per_person"), ("false", "collapse")])
def test_faces_that_are_all_alike_are_seen(
    conditional: str,
    kind: str,
    configs: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A generator that gets the same noise for all faces makes one face, or one of each person."""
    monkeypatch.setattr(
        noise_gan_networks, "normal", lambda _, positions, shape, *a: torch.zeros(len(positions), *shape)
    )
    options = [f"--noise_gan.conditional={conditional}", "--noise_gan_watch.collapse=stop", *LASTING]
    if kind == "collapse_per_person":  # else the first steps' faces are alike, too
        options.append("--noise_gan_watch.diversity_low=0")
    with pytest.raises(UserError, match=r"the watch stopped training at .* collapsed generator"):
        train(configs(*options), tmp_path / "run")
    assert kind in events(tmp_path / "run")
