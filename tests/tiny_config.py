"""The smallest settings that train for real, over those of `configs/smoke.yaml`."""

from __future__ import annotations

# a small real network that trains in seconds on a CPU
TINY = {
    "size": 32,
    "recognizer.backbone": "timm:test_resnet",
    "recognizer.embedding": 32,
    "generator.width": 4,
    "generator.blocks": 1,
    "data.identities_per_batch": 4,
    "data.images_per_identity": 2,
    # slow enough that rounding does not grow into another training
    "optimizer.learning_rate": 2e-5,
    "sparring.generator_learning_rate": 2e-5,
    "schedule.images": 240,
    "schedule.decay": "constant",
    "training.log_every": 16,
    "training.checkpoint_every": 40,
    "training.preview_every": 240,
    "training.threads": 1,
    "training.batchnorm_group": 4,  # half of a batch, so that two processes can train
    "validation.shards": "",
    "tracking.enabled": "false",
}
