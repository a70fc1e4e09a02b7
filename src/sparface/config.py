"""The settings shared by all recipes, as dataclasses filled from YAML files and command lines.

Units: face counts and intervals are in "images" (faces seen), sizes in pixels, perturbations in face units
[0, 1], durations in seconds. Settings of a single recipe are in blocks defined beside the recipe
(`Recipe.blocks`). Each numeric field declares its bounds with `number`; `check_numbers` enforces them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from sparface.errors import UserError
from sparface.text import without_logins

Block = TypeVar("Block")
Number = TypeVar("Number", int, float)
VariationKind = Literal["none", "mirror", "classic", "strong", "covered"]
Encoding = Literal["png", "jpg", "webp", "npy"]
"""How faces are stored: as image files, or as plain pixels in a NumPy file."""
ENCODINGS: tuple[str, ...] = get_args(Encoding)
LOSSY: tuple[str, ...] = ("jpg", "webp")
"""The encodings that lose information."""
MOST = 10**15
"""Default upper bound of a number."""


def number(default: Number, *, above: float = -math.inf, least: float = 0, most: float = MOST) -> Number:
    """A dataclass field for a number greater than `above` and in [`least`, `most`].

    The bounds keep a configuration from requesting absurd amounts of memory.
    """
    made: Number = field(default=default, metadata={"above": above, "least": least, "most": most})
    return made


@dataclass
class DataConfig:
    """The faces to train on and how they are batched."""

    shards: str = ""
    """Folder or URL of the training shard set."""
    mix: dict[str, int] = field(default_factory=dict)
    """Additional shard sets (such as those written by `sparface generate`), each with the number of groups
    that it contributes to every batch; `shards` contributes the rest of identities_per_batch."""
    identities_per_batch: int = number(8, above=0, most=10**6)
    """P: groups per batch. The batch has P × K faces in total over all processes."""
    images_per_identity: int = number(4, above=0, most=10**5)
    """K: faces per group, all of one identity. An identity with fewer faces repeats them."""
    window: int = number(4, above=0, most=10**6)
    """Number of shards whose groups are shuffled together. More shuffle better but keep more files open."""
    lanes: int = number(0, most=10**6)
    """Parts of the shard set that are read in parallel, so that each process opens only its own; must divide
    identities_per_batch. 0: as many as possible with at least `window` shards each."""
    workers: int = number(1, most=1024)
    """Decoding processes per rank. 0: decode in the training process."""
    variation: VariationKind = "classic"
    """How faces are changed at random, on the device. `mirror`: half of them are mirrored. `classic`: mirror,
    shift, scale, rotation, light and a patch. `strong`: all of it in a wider range, and perspective, smooth
    warps, contrast, tint, grey and loss of resolution. `covered`: a large patch on 70 % of the faces, gamma
    and grey, to fine-tune a good recognizer."""
    variation_strength: float = number(1.0, most=2)
    """With `strong`: factor on all magnitudes. It changes no probabilities; at 0, faces are only mirrored."""
    on_bad_sample: Literal["fail", "skip"] = "fail"
    """What to do with a face that cannot be decoded: stop, or use another face of its group."""
    max_bad_share: float = number(0.01, most=1)
    """With `skip`: stop when more than this fraction of the faces seen were broken."""


@dataclass
class OptimizerConfig:
    """The optimizer settings; each network has a separate optimizer."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = number(2e-4, above=0)
    """Learning rate of every network, unless the recipe sets another (`sparring.generator_learning_rate`)."""
    beta1: float = number(0.9, most=1)
    """Adam's first-moment decay, or SGD's momentum."""
    beta2: float = number(0.999, most=1)
    weight_decay: float = number(0.0)
    """Weight decay of parameters with two or more dimensions; norms, biases and slopes do not decay."""
    clip_norm: float = number(0.0)
    """Clip each network's gradient to this L2 norm. 0: no clipping."""


@dataclass
class ScheduleConfig:
    """The training length and the learning rate schedule, in images seen."""

    images: int = number(0)
    """Images to train on. 0: use `epochs`."""
    epochs: float = number(0.0)
    """Passes over the shard set, as an alternative to `images`."""
    warmup_images: int = number(0)
    """Images over which the learning rate rises linearly from 0."""
    decay: Literal["constant", "cosine", "linear"] = "constant"
    """How the learning rate decays between the end of the warm-up and the end of training (to 1 %)."""


Kernels = Literal["auto", "torch", "triton"]


@dataclass
class TrainingConfig:
    """How training steps run, and how often to log, preview and save."""

    seed: int = number(0, most=2**63 - 1)
    """All random numbers are derived from this and the position in the data stream."""
    start_from: str = ""
    """What a new run starts from: a run folder, a recognizer's weights (.safetensors or .pt, `vggface2`,
    `casia-webface`, or `drawn`, a `small` one in this package that was trained on drawn people), or its ONNX
    file (with `recognizer.backbone: onnx`). For a classifier: a run, or weights for ImageNet (`imagenet`:
    timm's download; a file; a folder with a file NAME.safetensors per backbone). Empty: random weights.
    Ignored when a run resumes."""
    strategy: Literal["auto", "single", "ddp", "fsdp", "deepspeed"] = "auto"
    """`auto`: ddp with more than one process, otherwise single. `fsdp` and `deepspeed` shard what does not
    fit on one device; a checkpoint can be resumed under any strategy."""
    deepspeed: str = "zero2"
    """With `deepspeed`: its JSON config, a file or one of the packaged configs (zero0, …, zero3)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """fp32, autocast to bf16, or autocast to fp16 with a gradient scaler. On Ampere and newer GPUs, fp32
    convolutions use TF32 (inputs rounded to 10 bits, accumulation in fp32), as torch does by default;
    matrix products do not."""
    kernels: Kernels = "auto"
    """Implementation of the fused operations. `auto`: Triton on CUDA, torch on the CPU."""
    compile: bool = False
    """Use `torch.compile` on the networks, under `single` and `ddp`: the first step takes minutes, later
    steps run fewer operators."""
    threads: int = number(0, most=4096)
    """CPU threads of torch per process. 0: divide the job's cores on the machine among its processes."""
    accumulate: int = number(1, above=0, most=10**6)
    """Number of batches to accumulate per update."""
    batchnorm: Literal["synced", "ghost", "local"] = "synced"
    """Faces over which BatchNorm takes its statistics. `synced`: the whole batch, which takes two exchanges
    of the processes for each norm. `ghost`: groups of a batch (Hoffer et al. 2017), of different people if
    there are enough, without an exchange. With both, a step is the same for any number of processes. `local`:
    each process's part of a batch."""
    batchnorm_group: int = number(16, above=0, most=10**6)
    """With `ghost`: faces in a group. The nearest size is taken that divides a batch and consists of whole
    groups of data.images_per_identity. Every process must have whole groups."""
    average_half_life: int = number(0)
    """Half-life of the weight average (EMA) in images, at most a twentieth of the images seen. 0: no
    average. Evaluation uses the average if there is one."""
    log_every: int = number(1_000, above=0)
    """Images between log lines."""
    preview_every: int = number(10_000, above=0)
    """Images between preview images."""
    checkpoint_every: int = number(10_000, above=0)
    """Images between checkpoints."""
    keep_checkpoints: int = number(2, above=0, most=10**6)
    """How many of the newest checkpoints to keep."""
    timeout: float = number(600.0, above=0)
    """Seconds that a process waits for the others before it fails."""


@dataclass
class ValidationConfig:
    """Accuracy during training on faces that are not trained on: verification, or classification."""

    shards: str = ""
    """Folder of a shard set of identities that are not in the training set. Empty: no validation."""
    judge: str = ""
    """Recognizer that compares the faces which a GAN makes with its training faces: a run, an ONNX file or a
    weights file. Empty: no comparison."""
    pairs: int = number(1_000, above=0, most=10**8)
    """Pairs to draw from it to validate a recognizer (half same, half different); always the same ones."""
    every: int = number(10_000, above=0)
    """Images between validations."""
    mirror: bool = False
    """Embed a face as the normalised sum of the embeddings of the face and its mirror image: in validations,
    evaluations and galleries of this run, and in its ONNX file. It takes twice as long."""


Policy = Literal["log", "skip", "rollback", "stop"]
StatePolicy = Literal["log", "rollback", "stop"]
"""Policies for problems that no single update causes, so `skip` does not apply."""


@dataclass
class WatchConfig:
    """Problems detected during training, and the reaction to each. Recipes may add their own.

    Policies: `log` counts and reports, `skip` drops the update, `rollback` returns to the last good
    checkpoint with a lower learning rate, `stop` ends the run and keeps the last checkpoint.
    """

    non_finite: Policy = "skip"
    """A non-finite loss or gradient."""
    loss_spike: StatePolicy = "log"
    loss_spike_factor: float = number(10.0, above=0)
    """A loss is a spike if it exceeds its running mean by this factor."""
    collapse: StatePolicy = "log"
    collapse_cosine: float = number(0.95)
    """Embeddings have collapsed if their mean pairwise cosine similarity exceeds this."""
    rollback_rate: float = number(0.5, most=1)
    """Factor applied to the learning rate at each rollback."""
    max_rollbacks: int = number(3)
    """Stop after this many rollbacks."""


@dataclass
class TrackingConfig:
    """MLflow. The server is MLFLOW_TRACKING_URI, else `uri`, else sqlite:///mlflow.db beside the run."""

    enabled: bool = True
    uri: str = ""
    experiment: str = "sparface"
    run_name: str = ""
    """Name of the run in MLflow. Empty: the name of the run's folder."""


@dataclass
class Config:
    """The configuration of one experiment."""

    recipe: str = "recognizer"
    """What to train: `recognizer`, `sparring`, `expression`, `purifier`, `noise_gan`, the name of an
    installed recipe, or `module:Class`."""
    size: int = number(128, above=0, most=4096)
    """Face height and width in pixels; the shard set must have the same size."""
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    blocks: dict[str, Any] = field(default_factory=dict)
    """Recipe-specific settings: name of the block in YAML → dataclass."""

    def block(self, kind: type[Block]) -> Block:
        """The recipe's block of type `kind`. Raises `LookupError` if the recipe does not declare it."""
        if (found := self.find(kind)) is None:
            raise LookupError(f"no block of type {kind.__name__}; declare it in the recipe's `blocks`")
        return found

    def find(self, kind: type[Block]) -> Block | None:
        """The recipe's block of type `kind`; None if the recipe does not declare it."""
        return next((block for block in self.blocks.values() if isinstance(block, kind)), None)


SHARED = tuple(f.name for f in dataclasses.fields(Config) if f.name != "blocks")


def sections(config: Config) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of all top-level entries of a configuration: shared settings, then blocks."""
    yield from ((name, getattr(config, name)) for name in SHARED)
    yield from config.blocks.items()


def tree(config: Config) -> dict[str, Any]:
    """A configuration as a nested dictionary for YAML, without credentials and commands (`pipe:`)."""
    found = {
        name: dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
        for name, value in sections(config)
    }
    return dict(without_logins(found))


def flatten(config: Config) -> dict[str, Any]:
    """Dotted key → value, without credentials, for tracking and for comparing runs."""
    flat: dict[str, Any] = {}
    for name, value in tree(config).items():
        flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def configs_folder() -> Path:
    """The folder of the packaged configs, in the wheel or in the source checkout."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "configs"


def validate(config: Config) -> None:
    """Raise `UserError` for the first invalid shared setting."""
    for name, value in sections(config):
        if dataclasses.is_dataclass(value):
            check_numbers(value, f"{name}.")
    check_numbers(config)
    if not config.data.shards:
        raise UserError("data.shards: is empty; give the folder of a shard set (see `sparface align`)")
    if config.schedule.images <= 0 and config.schedule.epochs <= 0:
        raise UserError("schedule.images: is 0, and so is schedule.epochs; set one of them")
    _check_batches(config.data)
    if config.training.compile and config.training.strategy in ("fsdp", "deepspeed"):
        raise UserError(
            f"training.compile: is not supported with {config.training.strategy}; use ddp, or set it to false"
        )


def _check_batches(data: DataConfig) -> None:
    if data.lanes and data.identities_per_batch % data.lanes:
        raise UserError(
            f"data.lanes: {data.lanes} is not allowed; must divide data.identities_per_batch "
            f"({data.identities_per_batch})"
        )
    mixed, groups = list(data.mix.values()), data.identities_per_batch
    if min(mixed, default=1) < 1 or sum(mixed) >= groups:
        raise UserError(
            f"data.mix: {data.mix} is not allowed; give each set at least 1 of the {groups} groups "
            "(data.identities_per_batch), and leave some to data.shards"
        )


def check_numbers(settings: Any, prefix: str = "") -> None:
    """Raise `UserError` for the first field of a dataclass that is null or out of bounds."""
    for f in dataclasses.fields(settings):
        value, key = getattr(settings, f.name), prefix + f.name
        if value is None and f.default is not None:
            raise UserError(f"{key}: null is not allowed; give a value, or omit the line")
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
