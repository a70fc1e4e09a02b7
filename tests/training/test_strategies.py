"""FSDP and DeepSpeed give DDP's losses, save, and hand a run on to any strategy and number of processes.

All runs are trained by one pair of processes; a run of 10 updates is stopped and handed on in between.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from strategy_chain import Job, Segment, train_all

from sparface.config import Config
from sparface.errors import UserError
from sparface.training.loop import train

pytestmark = pytest.mark.timeout(1200)  # one fixture trains every run
Tiny = Callable[..., Config]
END = 80
COMMON = [f"--schedule.images={END}", "--training.log_every=8", "--training.checkpoint_every=1000"]
COMMON += ["--training.timeout=240", "--optimizer.clip_norm=5"]
# slow enough that rounding does not grow into another training within 10 updates
COMMON += ["--optimizer.learning_rate=1e-6", "--sparring.generator_learning_rate=1e-6"]
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
# the untargeted attack has no gradient at the source: what Adam makes of it in the first updates is rounding
SPARRING = ("--recipe=sparring", "--sparring.attack=targeted")
ALTERNATING = (*SPARRING, "--sparring.update=alternating")
SETTINGS = {
    "alternating": ALTERNATING,
    "shared": (*SPARRING, "--sparring.update=shared"),
    "zero-sum": ("--recipe=sparring", "--sparring.update=shared", "--sparring.attack=zero_sum"),
    "recognizer": (
        *("--training.accumulate=2", "--training.average_half_life=64", "--optimizer.name=adamw"),
        f"--schedule.images={2 * END}",  # its updates take twice as many
    ),
    "bf16": (*ALTERNATING, "--training.precision=bf16"),
    "ghost": (*ALTERNATING, "--training.batchnorm=ghost", "--training.average_half_life=64"),
}
CASES = {
    # two processes, one, two again: the world size changes both ways
    **{
        f"alternating/{s}": [Segment(s, 2, 32), Segment(s, 1, 56), Segment(s, 2, END)]
        for s in ("fsdp", "zero1", "zero2", "zero3")
    },
    "alternating/zero0": [Segment("zero0", 2, 40), Segment("zero0", 1, END)],
    "shared/zero2": [Segment("zero2", 2, END)],
    "zero-sum/zero3": [Segment("zero3", 2, END)],
    "recognizer/fsdp": [Segment("fsdp", 1, 96), Segment("fsdp", 2, 2 * END)],
    "recognizer/handed-on": [
        Segment("ddp", 1, 32),
        Segment("zero2", 2, 64),
        Segment("fsdp", 1, 96),
        Segment("zero0", 2, 128),
        Segment("ddp", 1, 2 * END),
    ],
    "ghost/handed-on": [Segment("ddp", 1, 24), Segment("fsdp", 2, 48), Segment("zero2", 2, END)],
    **{f"bf16/{s}": [Segment(s, 2, END)] for s in ("fsdp", "zero2")},
}
TOLERANCE = {"bf16": 0.02}


@pytest.fixture(scope="module")
def runs(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of every case, and `NAME/ddp` for each setting's run under DDP."""
    folder = tmp_path_factory.mktemp("strategies")
    configs = {name: tiny(*COMMON, *settings) for name, settings in SETTINGS.items()}
    references = {
        f"{name}/ddp": [Segment("ddp", 2, config.schedule.images)] for name, config in configs.items()
    }
    cases = references | CASES
    jobs = [Job(configs[case.split("/")[0]], folder / case, segments) for case, segments in cases.items()]
    train_all(jobs)
    return folder


def read(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def measured(record: dict[str, float]) -> set[str]:
    """What a record holds besides readings of the machine, which come every ten seconds."""
    return {name for name in record if not name.startswith("system/")}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_ddps(runs: Path, case: str) -> None:
    """Of every interval, at the same images, none missing or double.

    Gradients by their norm: Adam takes the same step whatever factor they all have.
    """
    setting = case.split("/")[0]
    reference, found = read(runs / setting / "ddp"), read(runs / case)
    assert [r["images"] for r in found] == [r["images"] for r in reference]
    assert found[-1]["images"] == CASES[case][-1].until
    tolerance = TOLERANCE.get(setting, 1e-4)
    for a, b in zip(reference, found, strict=True):
        assert measured(a) == measured(b)
        for name in {"loss", "generator_loss", "mask_mean", "learning_rate"} & a.keys():
            assert b[name] == pytest.approx(a[name], rel=tolerance, abs=1e-6), (name, a["images"])
        norms = [name for name in a if name.endswith("/gradient_norm")]
        assert norms
        for name in norms:
            assert b[name] == pytest.approx(a[name], rel=10 * tolerance), (name, a["images"])


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the only process of a distributed run."""
    for name, value in ALONE.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "override, message",
    [
        ("--training.precision=fp16", "fp16 is not supported with deepspeed"),
        ("--training.deepspeed=zero9", "give a file or one of zero0, zero1, zero2, zero3"),
        ("--training.average_half_life=64", r"training\.average_half_life"),
        ("--sparring.update=shared", "sparring.update: alternating"),
    ],
)
def test_what_deepspeed_cannot_do_is_said(tiny: Tiny, tmp_path: Path, override: str, message: str) -> None:
    settings = (*ALTERNATING, "--training.strategy=deepspeed", "--training.deepspeed=zero3")
    with pytest.raises(UserError, match=message):
        train(tiny(*settings, override), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.usefixtures("alone")
def test_what_fsdp_cannot_do_is_said(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"optimizer\.name: sgd"):
        train(tiny("--training.strategy=fsdp", "--optimizer.name=sgd"), tmp_path / "run")


@pytest.mark.usefixtures("alone")
def test_deepspeeds_json_must_not_decide_what_the_config_does(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"zero_optimization": {"stage": 1}, "gradient_clipping": 1.0}')
    with pytest.raises(UserError, match=r"gradient_clipping is set by optimizer\.clip_norm"):
        train(tiny("--training.strategy=deepspeed", f"--training.deepspeed={file}"), tmp_path / "run")
