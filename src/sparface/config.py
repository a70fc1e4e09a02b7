"""The configuration of an experiment: dataclasses that the YAML files in `configs/` fill.

Units: counts of faces are "images" (the clock of a run), sizes are pixels, perturbations are in
[0, 1] face units, durations are seconds. A value that is not allowed raises `UserError` from
`validate`, naming its dotted key.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from sparface import config_file
from sparface.errors import UserError
from sparface.files import write_whole
from sparface.text import without_logins

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


@dataclass
class DataConfig:
    """The faces to train on and how they are batched."""

    shards: str = ""
    """Folder or URL of the training shard set."""
    mix: dict[str, int] = field(default_factory=dict)
    """Further shard sets (such as `sparface generate` writes), each with the number of the
    identities_per_batch groups that it fills in every batch; `shards` fills the others."""
    identities_per_batch: int = 8
    """P: groups per batch. The batch has P × K faces over all processes together."""
    images_per_identity: int = 4
    """K: faces of one identity in a group. An identity with fewer repeats its faces."""
    window: int = 4
    """Shards whose groups are shuffled together; more mixes better and maps more tars."""
    lanes: int = 0
    """Parts of the shard set read side by side, so that each process opens its part only; must divide
    identities_per_batch. 0: as many as have a window's worth of shards each."""
    workers: int = 1
    """Decoding processes per rank; 0 decodes in the training process."""
    augment: Literal["none", "classic"] = "classic"
    """`classic`: mirror, shift, scale, rotation, light and occlusion, on the device."""
    on_bad_sample: Literal["fail", "skip"] = "fail"
    """What to do with a face that does not decode: stop, or use another of its group."""
    max_bad_share: float = 0.01
    """With `skip`: stop when more than this share of the faces seen was broken."""


@dataclass
class GeneratorConfig:
    """The saliency auto-encoder (SAE)."""

    width: int = 16
    """Channels of the first convolution; the trunk has 4 × width."""
    blocks: int = 6
    """Residual blocks in the trunk."""
    noise: float = 0.0
    """σ of the Gaussian noise added at the bottleneck; 0 makes one face give one sparring face."""
    epsilon: float = 0.1
    """Bound on the perturbation, in [0, 1] face units: the largest change of a pixel."""


@dataclass
class RecognizerConfig:
    """The network that embeds faces."""

    backbone: str = "inception_resnet_v1"
    """`inception_resnet_v1` (FaceNet) or `timm:NAME` for a backbone of timm."""
    embedding: int = 512
    """Size of the embedding."""
    pretrained: str = ""
    """Empty (from scratch), `vggface2`, `casia-webface`, or a weights file (.safetensors or .pt)."""


@dataclass
class ObjectiveConfig:
    """Losses and their weights. A weight of 0 leaves the loss out."""

    triplet: float = 1.0
    """Weight of the triplet loss on L2-normalised embeddings."""
    margin: float = 0.2
    """Triplet margin, on squared Euclidean distances."""
    mining: Literal["batch_hard", "semi_hard"] = "semi_hard"
    """Which negatives the triplet loss uses, over the batches of all ranks."""
    cross_entropy: float = 1.0
    """Weight of the softmax cross-entropy over identities."""
    arcface: float = 0.0
    """Weight of the ArcFace loss over identities."""
    arcface_margin: float = 0.5
    """ArcFace's additive angle, radians."""
    arcface_scale: float = 32.0
    """ArcFace's logit scale."""
    sparring: float = 1.0
    """Weight of the recognizer's losses on sparring faces against those on real ones (weight 1)."""
    attack: Literal["untargeted", "targeted", "zero_sum"] = "untargeted"
    """What the generator wants: nearer to another identity in the batch than to the own one; onto one
    certain other identity for each (needs cross_entropy or arcface); or simply the opposite of the
    recognizer's loss."""
    attack_weight: float = 1.0
    """Weight of the attack term."""
    perturbation_weight: float = 1e-3
    """Weight of the Frobenius norm of the change, before it is clipped to [0, 1]."""
    mask_weight: float = 0.1
    """Weight of the mean mask area."""


@dataclass
class OptimizerConfig:
    """One optimizer per network, all with these settings."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 2e-4
    generator_learning_rate: float = 2e-3
    """The generator's own rate: it has to keep up with the recognizer."""
    beta1: float = 0.9
    """Adam's first moment decay; SGD's momentum."""
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    """Gradients of one network are scaled down to this L2 norm; 0 does not clip."""


@dataclass
class ScheduleConfig:
    """How long to train and how the learning rate moves, in images seen."""

    images: int = 0
    """Images to train on; 0 uses `epochs`."""
    epochs: float = 0.0
    """Another way to say `images`: passes over the shard set."""
    warmup_images: int = 0
    """The rate rises linearly from 0 over this many images."""
    decay: Literal["constant", "cosine", "linear"] = "constant"
    """How the rate falls from the warm-up's end to the end of training (to 1 % of it)."""


Kernels = Literal["auto", "torch", "triton"]


@dataclass
class TrainingConfig:
    """How one step runs and what is kept."""

    seed: int = 0
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
    threads: int = 0
    """CPU threads of torch per process; 0 shares the job's cores on the machine among its processes."""
    accumulate: int = 1
    """Stream batches per update."""
    sparring_update: Literal["alternating", "shared"] = "shared"
    """`alternating` is the paper's two forwards; `shared` reuses one recognizer forward."""
    adversarial_batchnorm: Literal["shared", "split"] = "split"
    """`split` gives sparring faces BatchNorm statistics of their own (AdvProp)."""
    batchnorm: Literal["synced", "local"] = "synced"
    """Under more than one process: statistics over the whole batch, or each process's own part."""
    average_half_life: int = 0
    """Half-life of the weight average (EMA) in images, at most a twentieth of those seen; 0 keeps none.
    Evaluation uses it if kept."""
    log_every: int = 1_000
    """Images between log lines."""
    preview_every: int = 10_000
    """Images between preview pictures."""
    checkpoint_every: int = 10_000
    """Images between checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; the others are deleted."""
    timeout: float = 600.0
    """Seconds a process waits for the others before it gives up."""


@dataclass
class ValidationConfig:
    """Accuracy on other identities while training."""

    shards: str = ""
    """Folder of a shard set with identities that are not trained on; empty: no validation."""
    pairs: int = 1_000
    """Pairs drawn from it (half same, half different), always the same."""
    every: int = 10_000
    """Images between validations."""


Policy = Literal["log", "skip", "rollback", "stop"]


@dataclass
class WatchConfig:
    """What is watched while training, and what happens then.

    Policies: `log` counts and reports, `skip` drops the update, `rollback` goes back to the last
    good checkpoint with a lower rate, `stop` ends the run; the last checkpoint stands.
    """

    non_finite: Policy = "skip"
    """A loss or gradient that is not finite."""
    loss_spike: Literal["log", "rollback", "stop"] = "log"
    loss_spike_factor: float = 10.0
    """A spike is a loss above this many times its running mean."""
    collapse: Literal["log", "rollback", "stop"] = "log"
    collapse_cosine: float = 0.95
    """Embeddings have collapsed when their mean pairwise cosine exceeds this."""
    generator: Literal["log", "rollback", "stop"] = "log"
    """A dead or saturated mask, a perturbation that has vanished, or sparring faces that the recognizer
    embeds where their sources are."""
    mask_low: float = 0.005
    mask_high: float = 0.995
    perturbation_low: float = 1e-4
    """Mean change of a pixel below this counts as vanished, in [0, 1] face units."""
    shift_low: float = 0.05
    """The generator is dead when sparring faces move embeddings less than this share of the mean distance
    between faces."""
    imbalance: Literal["log", "rollback", "stop"] = "log"
    """The generator wins: sparring faces move embeddings more than `imbalance_high` (cosine distance)."""
    imbalance_high: float = 1.2
    rollback_rate: float = 0.5
    """Factor on the learning rate after each rollback."""
    max_rollbacks: int = 3
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

    recipe: Literal["recognizer", "sparring"] = "recognizer"
    size: int = 128
    """Face height and width; the shard set must have the same."""
    data: DataConfig = field(default_factory=DataConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    recognizer: RecognizerConfig = field(default_factory=RecognizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def configs_folder() -> Path:
    """Where the configs that come with the package are: in the wheel, or in the source checkout."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "configs"


def find(name: str) -> Path:
    """The file of a config given by path, or by the name of one that comes with the package.

    Raises `UserError` naming the nearest known config, or what in the file cannot be settings.
    """
    if (path := Path(name)).is_file():
        config_file.check(
            path, {f.name for f in dataclasses.fields(Config) if f.name not in ("recipe", "size")}
        )
        return path
    if (packaged := configs_folder() / f"{Path(name).stem}.yaml").is_file() and path.parent == Path("."):
        return packaged
    known = sorted(p.stem for p in configs_folder().glob("*.yaml"))
    hint = _nearest(name, known) + "; known: " + ", ".join(known)
    raise UserError(f"--config {name}: no such file, nor a config of that name{hint}")


def add_to(parser: ArgumentParser) -> None:
    """Give a parser `--config` and one dotted option per field of `Config`."""
    parser.add_argument("--config", action="config", help="a YAML file, or the name of a packaged config")
    add_fields(parser, Config)


def add_fields(parser: ArgumentParser, settings: type) -> None:
    """Give a parser one dotted option per field of a dataclass; the fields' docstrings are its help."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser.add_class_arguments(settings)


def from_namespace(namespace: Namespace) -> Config:
    """The validated configuration of what a parser (see `add_to`) has read."""
    config = filled(Config, namespace)
    validate(config)
    return config


def filled(settings: type[Settings], namespace: Namespace) -> Settings:
    """A dataclass of what a parser (see `add_fields`) has read."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(settings)
    names = {f.name for f in dataclasses.fields(settings)}
    own = {k: v for k, v in vars(namespace).items() if k in names}
    tree = parser.instantiate(Namespace(own))  # type: ignore[no-untyped-call]
    return settings(**{name: tree[name] for name in names})


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file, apply overrides (`["--data.workers", "0"]`) and validate.

    Raises `UserError` naming the key, the bad value and the nearest known key.
    """
    parser = ArgumentParser(exit_on_error=False)
    add_to(parser)
    file = find(str(path))
    try:
        return from_namespace(parser.parse_args(["--config", str(file), *overrides]))
    except ArgumentError as error:
        raise UserError(f"{file}: {explain(str(error))}") from error


def save(config: Config, path: Path) -> None:
    """Write the whole configuration as YAML, atomically, without logins and commands (`pipe:`)."""
    tree = without_logins(dataclasses.asdict(config))
    write_whole(path, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode())


def flatten(config: Config) -> dict[str, Any]:
    """Dotted key → value, without logins, for tracking and for differences between runs."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{f.name}.{k}": v for k, v in dataclasses.asdict(value).items()}  # type: ignore[arg-type]
        else:
            flat[f.name] = value
    return {key: without_logins(value) for key, value in flat.items()}


def require_typed_commands(settings: Namespace, arguments: Sequence[str]) -> None:
    """Raise `UserError` for a shard set read by a command (`pipe:`) that the user has not typed.

    A configuration file may come from somebody else, and so may the config.yaml of a run.
    """
    for key in ("data.shards", "data.mix", "validation.shards"):
        value = settings.get(key) or ()
        for shards in [value] if isinstance(value, str) else value:
            if shards.startswith("pipe:") and not any(shards in word for word in arguments):
                raise UserError(
                    f"{key}: a configuration file cannot name a command to run; give it on the command line: "
                    f"--{key} 'pipe:…'"
                )


def explain(message: str) -> str:
    """A parser's error in one line, with the nearest known key where a key is unknown."""
    line = re.sub(r"\s+", " ", message)
    keys = list(flatten(Config()))
    if found := re.search(r"[Gg]roup '([\w.]+)' does not accept option '([\w.]+)'", line):
        unknown = f"{found[1]}.{found[2]}"
    elif found := re.search(
        r"unrecognized arguments: --([\w.]+)|[Oo]ption '([\w.]+)'(?: is not accepted|$)", line
    ):
        unknown = found[1] or found[2]
    else:
        line = re.sub(
            r'Parser key "([\w.]+)": Expected an? (.*?)\. Got value: (.*)',
            r"\1: \3 is not allowed; expected \2",
            line,
        )
        return re.sub(r"typing\.|<class '(\w+)'>", r"\1", line)
    return f"unknown config key {unknown}{_nearest(unknown, keys)}"


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f" (did you mean {close[0]}?)" if close else ""


POSITIVE = {
    *("size", "generator.width", "recognizer.embedding", "optimizer.learning_rate"),
    *("data.identities_per_batch", "data.images_per_identity", "data.window"),
    *("training.accumulate", "training.keep_checkpoints", "training.timeout", "training.log_every"),
    *("training.preview_every", "training.checkpoint_every", "validation.pairs", "validation.every"),
    "watch.loss_spike_factor",
}
UP_TO_ONE = {"optimizer.beta1", "optimizer.beta2", "generator.epsilon", "data.max_bad_share"}
UP_TO_ONE |= {"watch.rollback_rate"}


MOST = {
    **{"size": 4096, "training.seed": 2**63 - 1, "recognizer.embedding": 65536},
    **{"generator.width": 1024, "generator.blocks": 256},
    **{"data.identities_per_batch": 10**6, "data.images_per_identity": 10**5, "data.workers": 1024},
    **{"data.window": 10**6, "data.lanes": 10**6, "validation.pairs": 10**8},
    **{"training.threads": 4096, "training.accumulate": 10**6, "training.keep_checkpoints": 10**6},
}
"""Largest values, which bound what a configuration can make us allocate; 10¹⁵ for all others."""


def validate(config: Config) -> None:
    """Raise `UserError` for the first value that can't work, before anything starts."""
    defaults = flatten(Config())
    for key, value in flatten(config).items():
        if value is None and defaults[key] is not None:
            raise UserError(f"{key}: null is not allowed; give a value, or leave the line out")
        if isinstance(value, int | float):
            _check_number(key, value)
    if not config.data.shards:
        raise UserError("data.shards: empty; give the folder of a shard set (see `sparface align`)")
    if config.schedule.images <= 0 and config.schedule.epochs <= 0:
        raise UserError("schedule.images: 0, and schedule.epochs too; give one of them")
    if config.data.lanes and config.data.identities_per_batch % config.data.lanes:
        raise UserError(
            f"data.lanes: {config.data.lanes} does not divide data.identities_per_batch "
            f"({config.data.identities_per_batch})"
        )
    mixed, groups = list(config.data.mix.values()), config.data.identities_per_batch
    if min(mixed, default=1) < 1 or sum(mixed) >= groups:
        raise UserError(
            f"data.mix: {config.data.mix} is not allowed; give each set at least 1 of the {groups} groups "
            "(data.identities_per_batch), and leave some to data.shards"
        )
    if config.training.compile and config.training.strategy in ("fsdp", "deepspeed"):
        raise UserError(
            f"training.compile: not possible with {config.training.strategy}; use ddp, or set it to false"
        )
    losses = config.objective
    if losses.triplet == losses.cross_entropy == losses.arcface == 0:
        raise UserError(
            "objective.triplet: 0, and objective.cross_entropy and objective.arcface too; one must be on"
        )


def _check_number(key: str, value: float) -> None:
    if not math.isfinite(value):
        raise UserError(f"{key}: {value} is not allowed; give a finite number")
    if key in POSITIVE and value <= 0:
        raise UserError(f"{key}: {value} is not allowed; must be greater than 0")
    if key in UP_TO_ONE and not 0 <= value <= 1:
        raise UserError(f"{key}: {value} is not allowed; must be between 0 and 1")
    if value > (most := MOST.get(key, 10**15)):
        raise UserError(f"{key}: {value:g} is not allowed; must be at most {most:,}")
    if value < 0:
        raise UserError(f"{key}: {value} is not allowed; must not be negative")
