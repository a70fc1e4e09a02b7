"""The configuration of an experiment: dataclasses that the YAML files in `configs/` fill.

Units: counts of faces are "images" (the clock of a run), sizes are pixels, perturbations are in
[0, 1] face units, durations are seconds. A value that is not allowed raises `UserError` from
`validate`, naming its dotted key.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from sparface.errors import UserError


@dataclass
class DataConfig:
    """The faces to train on and how they are batched."""

    shards: str = ""
    """Folder of the training shard set."""
    identities_per_batch: int = 8
    """P: groups per batch. The batch has P × K faces over all processes together."""
    images_per_identity: int = 4
    """K: faces of one identity in a group. An identity with fewer repeats its faces."""
    window: int = 4
    """Shards whose groups are shuffled together; more mixes better and maps more tars."""
    lanes: int = 1
    """Parts of the shard set read side by side; must divide identities_per_batch."""
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
    """Bound on the perturbation: δ is clamped to ±epsilon, in [0, 1] face units."""


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
    attack: Literal["untargeted", "targeted", "image", "zero_sum"] = "untargeted"
    """What the generator wants: away from the source's embedding; onto another identity's
    embedding; onto another identity's image; or simply the opposite of the recognizer's loss."""
    attack_weight: float = 1.0
    """Weight of the attack term."""
    perturbation_weight: float = 1e-3
    """Weight of the Frobenius norm of δ·m."""
    mask_weight: float = 1e-2
    """Weight of the mean mask area."""


@dataclass
class OptimizerConfig:
    """One optimizer per network, all with these settings."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 2e-4
    generator_learning_rate: float | None = None
    """The generator's own rate; null uses learning_rate."""
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


@dataclass
class TrainingConfig:
    """How one step runs and what is kept."""

    seed: int = 0
    """Everything random is drawn from this and the position in the stream."""
    strategy: Literal["auto", "single", "ddp"] = "auto"
    """`auto`: ddp under torchrun or SLURM with more than one process, else single."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """fp32, autocast to bf16, or autocast to fp16 with a gradient scaler."""
    threads: int = 0
    """CPU threads of torch per process; 0 shares the cores among the processes of the machine."""
    accumulate: int = 1
    """Stream batches per update."""
    sparring_update: Literal["alternating", "shared"] = "shared"
    """`alternating` is the paper's two forwards; `shared` reuses one recognizer forward."""
    adversarial_batchnorm: Literal["shared", "split"] = "split"
    """`split` gives sparring faces BatchNorm statistics of their own (AdvProp)."""
    batchnorm: Literal["synced", "local"] = "synced"
    """Under more than one process: statistics over the whole batch, or each process's own part."""
    average_half_life: int = 0
    """Half-life of the weight average (EMA) in images; 0 keeps none. Evaluation uses it if kept."""
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
    good checkpoint with a lower rate, `stop` ends the run with a checkpoint.
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
    """A dead or saturated mask, or a perturbation that has vanished."""
    mask_low: float = 0.005
    mask_high: float = 0.995
    perturbation_low: float = 1e-4
    """Mean |δ·m| below this counts as vanished, in [0, 1] face units."""
    imbalance: Literal["log", "rollback", "stop"] = "log"
    """One side wins: sparring faces move embeddings no more than `imbalance_low` (cosine
    distance), or more than `imbalance_high`."""
    imbalance_low: float = 0.002
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
