"""The settings that every recipe shares: dataclasses that YAML files and command lines fill.

Units: counts of faces are "images" (the clock of a run), sizes are pixels, perturbations are in
[0, 1] face units, durations are seconds. What only one recipe has stands in blocks of its own, beside
the recipe (`Recipe.blocks`). A number's bounds stand at its field (`number`); `check_numbers` applies them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from sparface.errors import UserError
from sparface.text import without_logins

Block = TypeVar("Block")
Number = TypeVar("Number", int, float)
MOST = 10**15
"""Largest value of a number without a bound of its own."""


def number(default: Number, *, above: float = -math.inf, least: float = 0, most: float = MOST) -> Number:
    """A dataclass field for a number that is greater than `above` and from `least` to `most`.

    The bounds are what keeps a configuration from asking for more memory than anybody means.
    """
    made: Number = field(default=default, metadata={"above": above, "least": least, "most": most})
    return made


@dataclass
class DataConfig:
    """The faces to train on and how they are batched."""

    shards: str = ""
    """Folder or URL of the training shard set."""
    mix: dict[str, int] = field(default_factory=dict)
    """Further shard sets (such as `sparface generate` writes), each with the number of the
    identities_per_batch groups that it fills in every batch; `shards` fills the others."""
    identities_per_batch: int = number(8, above=0, most=10**6)
    """P: groups per batch. The batch has P × K faces over all processes together."""
    images_per_identity: int = number(4, above=0, most=10**5)
    """K: faces of one identity in a group. An identity with fewer repeats its faces."""
    window: int = number(4, above=0, most=10**6)
    """Shards whose groups are shuffled together; more mixes better and maps more tars."""
    lanes: int = number(0, most=10**6)
    """Parts of the shard set read side by side, so that each process opens its part only; must divide
    identities_per_batch. 0: as many as have a window's worth of shards each."""
    workers: int = number(1, most=1024)
    """Decoding processes per rank; 0 decodes in the training process."""
    augment: Literal["none", "classic"] = "classic"
    """`classic`: mirror, shift, scale, rotation, light and occlusion, on the device."""
    on_bad_sample: Literal["fail", "skip"] = "fail"
    """What to do with a face that does not decode: stop, or use another of its group."""
    max_bad_share: float = number(0.01, most=1)
    """With `skip`: stop when more than this share of the faces seen was broken."""


@dataclass
class OptimizerConfig:
    """One optimizer per network, all with these settings."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = number(2e-4, above=0)
    """Of every network for which the recipe has no other (`sparring.generator_learning_rate`)."""
    beta1: float = number(0.9, most=1)
    """Adam's first moment decay; SGD's momentum."""
    beta2: float = number(0.999, most=1)
    weight_decay: float = number(0.0)
    clip_norm: float = number(0.0)
    """Gradients of one network are scaled down to this L2 norm; 0 does not clip."""


@dataclass
class ScheduleConfig:
    """How long to train and how the learning rate moves, in images seen."""

    images: int = number(0)
    """Images to train on; 0 uses `epochs`."""
    epochs: float = number(0.0)
    """Another way to say `images`: passes over the shard set."""
    warmup_images: int = number(0)
    """The rate rises linearly from 0 over this many images."""
    decay: Literal["constant", "cosine", "linear"] = "constant"
    """How the rate falls from the warm-up's end to the end of training (to 1 % of it)."""


Kernels = Literal["auto", "torch", "triton"]


@dataclass
class TrainingConfig:
    """How one step runs and what is kept."""

    seed: int = number(0, most=2**63 - 1)
    """Everything random is drawn from this and the position in the stream."""
    strategy: Literal["auto", "single", "ddp", "fsdp", "deepspeed"] = "auto"
    """`auto`: ddp with more than one process, else single. `fsdp` and `deepspeed` spread what does not
    fit on one device; a checkpoint of one strategy goes on under any other."""
    deepspeed: str = "zero2"
    """With `deepspeed`: its JSON, a file or one that comes with the package (zero0, …, zero3)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """fp32, autocast to bf16, or autocast to fp16 with a gradient scaler. On GPUs from Ampere on, the
    convolutions of fp32 are TF32 (inputs rounded to 10 bits, sums in fp32), as torch does by default;
    matrix products are not."""
    kernels: Kernels = "auto"
    """Fused operations: `auto` is Triton's kernels on CUDA and torch on the CPU."""
    compile: bool = False
    """`torch.compile` of the networks, under `single` and `ddp`: the first step takes minutes, the others
    have fewer operators."""
    threads: int = number(0, most=4096)
    """CPU threads of torch per process; 0 shares the job's cores on the machine among its processes."""
    accumulate: int = number(1, above=0, most=10**6)
    """Stream batches per update."""
    batchnorm: Literal["synced", "local"] = "synced"
    """Under more than one process: statistics over the whole batch, or each process's own part."""
    average_half_life: int = number(0)
    """Half-life of the weight average (EMA) in images, at most a twentieth of those seen; 0 keeps none.
    Evaluation uses it if kept."""
    log_every: int = number(1_000, above=0)
    """Images between log lines."""
    preview_every: int = number(10_000, above=0)
    """Images between preview pictures."""
    checkpoint_every: int = number(10_000, above=0)
    """Images between checkpoints."""
    keep_checkpoints: int = number(2, above=0, most=10**6)
    """Newest checkpoints kept; the others are deleted."""
    timeout: float = number(600.0, above=0)
    """Seconds a process waits for the others before it gives up."""


@dataclass
class ValidationConfig:
    """Accuracy on other identities while training."""

    shards: str = ""
    """Folder of a shard set with identities that are not trained on; empty: no validation."""
    pairs: int = number(1_000, above=0, most=10**8)
    """Pairs drawn from it (half same, half different), always the same."""
    every: int = number(10_000, above=0)
    """Images between validations."""


Policy = Literal["log", "skip", "rollback", "stop"]
StatePolicy = Literal["log", "rollback", "stop"]
"""Of what is no single update's fault, so that there is none to skip."""


@dataclass
class WatchConfig:
    """What is watched in every training, and what happens then. Recipes watch further things.

    Policies: `log` counts and reports, `skip` drops the update, `rollback` goes back to the last
    good checkpoint with a lower rate, `stop` ends the run; the last checkpoint stands.
    """

    non_finite: Policy = "skip"
    """A loss or gradient that is not finite."""
    loss_spike: StatePolicy = "log"
    loss_spike_factor: float = number(10.0, above=0)
    """A spike is a loss above this many times its running mean."""
    collapse: StatePolicy = "log"
    collapse_cosine: float = number(0.95)
    """Embeddings have collapsed when their mean pairwise cosine exceeds this."""
    rollback_rate: float = number(0.5, most=1)
    """Factor on the learning rate after each rollback."""
    max_rollbacks: int = number(3)
    """Stop after this many rollbacks."""


@dataclass
class TrackingConfig:
    """MLflow. The server is MLFLOW_TRACKING_URI, or `uri`, or sqlite:///mlflow.db beside the run."""

    enabled: bool = True
    uri: str = ""
    experiment: str = "sparface"
    run_name: str = ""
    """Empty: the name of the run's folder."""


@dataclass
class Config:
    """One experiment."""

    recipe: str = "recognizer"
    """What is trained: `recognizer`, `sparring`, the name of an installed recipe, or `module:Class`."""
    size: int = number(128, above=0, most=4096)
    """Face height and width; the shard set must have the same."""
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    blocks: dict[str, Any] = field(default_factory=dict)
    """The recipe's own settings: name of the block in YAML → dataclass."""

    def block(self, kind: type[Block]) -> Block:
        """The recipe's settings of a kind; its defaults where none were given."""
        return next((block for block in self.blocks.values() if isinstance(block, kind)), None) or kind()


SHARED = tuple(f.name for f in dataclasses.fields(Config) if f.name != "blocks")


def sections(config: Config) -> Iterator[tuple[str, Any]]:
    """(name, value) of everything at the top level of a configuration: shared settings, then blocks."""
    yield from ((name, getattr(config, name)) for name in SHARED)
    yield from config.blocks.items()


def tree(config: Config) -> dict[str, Any]:
    """A configuration as YAML has it, without logins and commands (`pipe:`)."""
    found = {
        name: dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
        for name, value in sections(config)
    }
    return dict(without_logins(found))


def flatten(config: Config) -> dict[str, Any]:
    """Dotted key → value, without logins, for tracking and for differences between runs."""
    flat: dict[str, Any] = {}
    for name, value in tree(config).items():
        flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def configs_folder() -> Path:
    """Where the configs that come with the package are: in the wheel, or in the source checkout."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "configs"


def validate(config: Config) -> None:
    """Raise `UserError` for the first shared setting that can't work, before anything starts."""
    for name, value in sections(config):
        if dataclasses.is_dataclass(value):
            check_numbers(value, f"{name}.")
    check_numbers(config)
    if not config.data.shards:
        raise UserError("data.shards: empty; give the folder of a shard set (see `sparface align`)")
    if config.schedule.images <= 0 and config.schedule.epochs <= 0:
        raise UserError("schedule.images: 0, and schedule.epochs too; give one of them")
    _check_batches(config.data)
    if config.training.compile and config.training.strategy in ("fsdp", "deepspeed"):
        raise UserError(
            f"training.compile: not possible with {config.training.strategy}; use ddp, or set it to false"
        )


def _check_batches(data: DataConfig) -> None:
    if data.lanes and data.identities_per_batch % data.lanes:
        raise UserError(
            f"data.lanes: {data.lanes} does not divide data.identities_per_batch "
            f"({data.identities_per_batch})"
        )
    mixed, groups = list(data.mix.values()), data.identities_per_batch
    if min(mixed, default=1) < 1 or sum(mixed) >= groups:
        raise UserError(
            f"data.mix: {data.mix} is not allowed; give each set at least 1 of the {groups} groups "
            "(data.identities_per_batch), and leave some to data.shards"
        )


def check_numbers(settings: Any, prefix: str = "") -> None:
    """Raise `UserError` for the first field of a dataclass that is null or a number out of its bounds."""
    for f in dataclasses.fields(settings):
        value, key = getattr(settings, f.name), prefix + f.name
        if value is None and f.default is not None:
            raise UserError(f"{key}: null is not allowed; give a value, or leave the line out")
        if isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(key, value, f.metadata)


def _check_number(key: str, value: float, bounds: Mapping[str, Any]) -> None:
    above, least, most = bounds.get("above", -math.inf), bounds.get("least", 0), bounds.get("most", MOST)
    wanted = None
    if not math.isfinite(value):
        wanted = "give a finite number"
    elif value <= above:
        wanted = f"must be greater than {above:g}"
    elif most == 1 and not least <= value <= most:
        wanted = f"must be between {least:g} and {most:g}"
    elif value < least:
        wanted = "must not be negative" if least == 0 else f"must be at least {least:g}"
    elif value > most:
        wanted = f"must be at most {most:,}"
    if wanted:
        raise UserError(f"{key}: {value:{'g' if value > most else ''}} is not allowed; {wanted}")
