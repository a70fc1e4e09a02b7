"""The training loop: stream → phases of the recipe → checkpoint, counted in images seen.

The loop knows no particular recipe or scheduler. `Trainer.tensors` and `Trainer.facts` hold all the state
that determines how a run continues.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from sparface import settings
from sparface.config import Config, flatten
from sparface.errors import UserError
from sparface.runs import captions
from sparface.runs.checkpoint import CheckpointStore
from sparface.runs.folder import claim
from sparface.runs.onnx_copy import keep
from sparface.runs.tracking import Tracker
from sparface.shards import Batch, FaceStream, Loader, MixedStream
from sparface.training.averages import WeightAverage
from sparface.training.begin import begin
from sparface.training.data import TrainingData, checkpoint_identity, open_validators
from sparface.training.given import keep_recognizer
from sparface.training.meter import Meter, progress_line, validation_line
from sparface.training.schedule import crossed, rate_factor, total_images
from sparface.training.stop import StopRequest, stop_requests
from sparface.training.strategies import joining, open_strategy
from sparface.training.strategies.base import Strategy
from sparface.training.watch import Anomaly, Watch, validate_networks

PREVIEWED = 32
"""Maximum number of faces in a preview, which a single process makes."""


def train(config: Config, out: Path) -> bool:
    """Train to the end of the schedule; resumes if `out` has a checkpoint.

    Returns False if a signal stopped the run early; call again to resume. Raises `UserError` for a config,
    shard set or run folder that cannot be used, and when the watch stops the run.
    """
    with stop_requests() as stop, ExitStack() as stack:
        with joining(config.training):
            strategy = stack.enter_context(open_strategy(config))
            trainer = Trainer(config, out, strategy, stop)
        # a restarted job's previous attempt may still be exiting; the other ranks wait as long for this one
        patience = config.training.timeout + 60 if int(os.environ.get("SPARFACE_RESTARTS") or 0) else 0
        with claim(out, strategy.rank, patience):
            return trainer.run()


class Trainer:
    """One run on one rank."""

    def __init__(self, config: Config, out: Path, strategy: Strategy, stop: StopRequest) -> None:
        self.config, self.out, self.strategy, self.stop = config, out, strategy, stop
        self.data = TrainingData(config)
        training, half_life = config.training, config.training.average_half_life
        self.store = CheckpointStore(
            out / "checkpoints",
            keep=training.keep_checkpoints,
            timeout=training.timeout,
            on_publish=lambda: self.tracker.look_at_checkpoints(),
        )
        torch.manual_seed(training.seed)
        resumed = out if self.store.newest() else None
        self.recipe, self.recognizer, self.started = begin(config, self.data, strategy, resumed)
        self.parameters = validate_networks(self.recipe.networks)
        strategy.prepare(self.recipe)
        self.average = WeightAverage(self.recipe.networks, half_life) if half_life else None
        self.average_statistics = self.average.statistics if self.average else []
        self.watch, self.meter = Watch(config.watch, self.recipe.rules()), Meter()
        self.images_seen, self.rollbacks, self.validated_at = 0, 0, -1
        self.returned_to: Path | None = None  # by the last rollback
        self.passed_over, self.changes = list[str](), list[str]()
        self.identity = checkpoint_identity(self.recipe.config, self.recipe, self.data)
        self.total = total_images(config.schedule, self.stream(0).epoch_images)
        self.validators = open_validators(config, self.recipe, self.data)

    # -- what a run consists of ---------------------------------------------------------------

    def run(self) -> bool:
        """Train from the newest valid checkpoint or from scratch; returns whether the schedule has ended."""
        resumed = self.restore()  # unusable inputs are rejected before anything is written
        if resumed is None:
            self.require_sound_shards()
        elif self.images_seen >= self.total:
            self.store.tidy(self.images_seen)
            self.say(f"{self.out}: already trained on {self.images_seen:,} images; nothing to do")
            return True
        self.strategy.warm_up(self.any_batch)
        with self.tracked():
            if resumed:
                self.say(f"resuming at {self.images_seen:,} of {self.total:,} images from {resumed}")
                more = {"world_size": self.strategy.world_size}
                self.tracker.event(self.images_seen, "resume", f"from {resumed.name}", **more)
            elif self.started:
                self.tracker.event(0, "start", f"from {self.started['source']}", **self.started)
            for problem in self.passed_over:
                self.tracker.event(self.images_seen, "damaged_checkpoint", problem)
            for change in self.changes:
                self.say(f"from here on, optimizer: {change}")
                self.tracker.event(self.images_seen, "optimizer", change)
            self.loop()
            return self.finish()

    def require_sound_shards(self) -> None:
        """Check the bytes of all shards. Raises `UserError` on every rank (collective)."""
        found = self.strategy.everyone(self.data.damaged(self.strategy.rank, self.strategy.world_size))
        if problems := [problem for of_rank in found for problem in of_rank]:
            raise UserError(
                f"{problems[0]} ({len(problems)} damaged shards; `sparface shards verify` lists all)"
            )

    def loop(self) -> None:
        """Train until the schedule ends or a stop is requested."""
        while True:
            with closing(self.batches()) as batches:  # always ends the decoding processes
                action = self.steps(batches)
            # the final state must be finite
            if action == "go" and (self.images_seen < self.total or self.sound(self.tensors())):
                return
            self.roll_back()

    def steps(self, batches: Iterator[Batch]) -> str:
        """Run steps; returns "go" at the end or when asked to stop, "rollback" if training went wrong."""
        every = self.config.training
        while self.images_seen < self.total and not self.strategy.vote(self.stop.requested):
            step = self.update([next(batches) for _ in range(every.accumulate)])
            before, self.images_seen = self.images_seen, self.images_seen + step
            if crossed(before, self.images_seen, every.log_every) and (action := self.report()) != "go":
                return action
            if crossed(before, self.images_seen, every.preview_every):
                self.preview()
            if crossed(before, self.images_seen, self.config.validation.every):
                self.validate()
            if crossed(before, self.images_seen, every.checkpoint_every) and not self.checkpoint():
                return "rollback"
        return "go"

    def update(self, batches: list[Batch]) -> int:
        """Update every phase on `batches`, accumulating gradients; returns the number of images used."""
        self.rate = rate_factor(self.config.schedule, self.images_seen, self.total)
        self.rate *= self.config.watch.rollback_rate**self.rollbacks
        on_device = [batch.to(self.strategy.device) for batch in batches]
        images = sum(len(batch.labels) for batch in batches) * self.strategy.world_size
        number = self.images_seen // images
        metrics = self.strategy.update(on_device, self.rate, number, before_change=self.store.copied)
        self.meter.add(metrics, images, [name for batch in batches for name in batch.bad])
        if self.average:
            self.average.update(images, self.images_seen + images)
        return images

    # -- moments -------------------------------------------------------------------------------

    def report(self) -> str:
        """Log the interval's means; returns the watch's "go" or "rollback". Raises `UserError` to stop."""
        interval = self.meter.interval(self.strategy)
        values = interval.values | {"learning_rate": self.config.optimizer.learning_rate * self.rate}
        for name in interval.bad:
            self.tracker.event(self.images_seen, "bad_sample", name)
        self.tracker.log(self.images_seen, values)
        self.say(progress_line(self.images_seen, self.total, values, self.recipe.headline))
        anomalies = self.watch.inspect(self.images_seen, values, interval.updates)
        if not self.strategy.finite([dict(n.named_buffers()) for n in self.recipe.networks.values()]):
            anomalies.append(Anomaly("statistics", "rollback", "BatchNorm statistics are not finite", 0.0))
        for anomaly in anomalies:
            self.tracker.event(self.images_seen, anomaly.kind, anomaly.message, policy=anomaly.policy)
        for anomaly in anomalies:
            if anomaly.policy == "stop":  # a restart would end here again; keep the last checkpoint
                at = f"{self.images_seen:,} images"
                raise UserError(f"{self.out}: the watch stopped training at {at}: {anomaly.message}")
        return "rollback" if any(anomaly.policy == "rollback" for anomaly in anomalies) else "go"

    def preview(self) -> None:
        """Write the recipe's preview of the first faces of the current batch."""
        if self.idle():
            return
        from torchvision.utils import make_grid  # takes a second

        batch = next(iter(self.data.stream(self.images_seen, 0, self.strategy.world_size))).first(PREVIEWED)
        with torch.compiler.set_stance("force_eager"):
            pictures = self.recipe.preview(batch.to(self.strategy.device))
        for name, images in pictures.items():
            grid = make_grid(images.float().cpu(), nrow=8, padding=2, pad_value=1.0)
            self.tracker.picture(self.images_seen, name, (grid * 255).byte().permute(1, 2, 0).numpy())

    def validate(self) -> None:
        """Log the figures of the validation, using averaged weights if kept."""
        before, self.validated_at = self.validated_at, self.images_seen
        if not self.validators or before == self.images_seen or self.idle():
            return
        self.store.copied()  # averaged weights replace the live ones in place
        figures = dict[str, float]()
        for validator in self.validators:
            network = self.recipe.finished[validator.role].network
            averaged = self.average.applied(network) if self.average else nullcontext()
            with averaged, torch.compiler.set_stance("force_eager"):  # its shapes differ from a step's
                figures |= validator(self.recipe.networks[network])
        self.tracker.validated(self.images_seen, figures, self.validators[0].shard_set)
        self.say(validation_line(self.images_seen, figures))

    def idle(self) -> bool:
        """Whether this rank can skip work that rank 0 can do alone, once statistics have met (collective)."""
        self.strategy.meet(self.average_statistics)
        return self.strategy.rank > 0 and not self.strategy.sharded

    def checkpoint(self) -> bool:
        """Save a checkpoint unless the state is not finite; returns whether it is saved (collective)."""
        tensors = self.tensors()
        if sound := self.sound(tensors):
            self.store.save(self.images_seen, tensors, self.facts(), identity=self.identity)
        return sound

    def sound(self, tensors: dict[str, Any]) -> bool:
        """Whether all values of a state are finite; records an event if not (collective)."""
        if sound := self.strategy.finite(tensors):
            return sound
        message = "weights, averages or optimizer states have non-finite values; checkpoint not saved"
        self.tracker.event(self.images_seen, "not_saved", message)
        return False

    def finish(self) -> bool:
        """Save the final state and report how the run ended; returns whether the schedule is finished."""
        if finished := self.images_seen >= self.total:
            self.validate()
            self.preview()
        self.checkpoint()
        self.store.finish()
        if not finished:
            reason = self.stop.reason or "another process"
            self.say(f"stopped at {self.images_seen:,} images ({reason}); run the same command to resume")
        return finished

    @contextmanager
    def tracked(self) -> Iterator[None]:
        """Context manager: open the run's tracker; close it with the run's final status, even on failure."""
        active = self.strategy.rank == 0
        if active:
            keep(self.recipe.config, self.out)
            keep_recognizer(self.recognizer, self.out)
            schedule = replace(self.config.schedule, images=self.total)  # spares `jobs` opening the shards
            settings.save(replace(self.config, schedule=schedule), self.out / "config.yaml")
            captions.save(type(self.recipe), self.recipe.roles(self.config), self.out)
        params = flatten(self.config) | {f"parameters/{n}": c for n, c in self.parameters.items()}
        self.tracker = Tracker(self.out, self.config.tracking, params=params, active=active)
        for shards in self.data.sets:
            self.tracker.used(shards, "training")
        for validator in self.validators:
            self.tracker.used(validator.shard_set, "validation")
        status: Literal["FINISHED", "KILLED", "FAILED"] = "FAILED"
        try:
            yield
            status = "FINISHED" if self.images_seen >= self.total else "KILLED"
        finally:
            with suppress(UserError, RuntimeError):  # finish a pending save before ranks exit
                self.store.finish()
            self.tracker.close(status)

    def say(self, text: str) -> None:
        if self.strategy.rank == 0:
            print(text, flush=True)

    # -- state ---------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Any]:
        """Return all tensor state by name, independent of strategy and world size (collective)."""
        self.strategy.meet(self.average_statistics)
        state = self.strategy.tensors()
        if self.average:
            state["averages"] = self.average.tensors
        return state

    def facts(self) -> dict[str, Any]:
        """Return all other state, as JSON (collective)."""
        return {
            "images_seen": self.images_seen,
            "rollbacks": self.rollbacks,
            "started": self.started,
            **self.data.facts,
            "scaler": self.strategy.scaler.state_dict(),
            "watch": self.watch.state_dict(),
            "meter": self.meter.state_dict(self.strategy),
        }

    def restore(self) -> Path | None:
        """Load the newest valid checkpoint and return its path, or None if there is none.

        Sets `passed_over` to the invalid ones, and `changes` to the optimizer settings that differ from it.
        """
        path = self.store.newest()
        self.passed_over = list(self.store.skipped)
        while path is not None:
            state = self.tensors()
            facts = self.store.load(path, state, identity=self.identity)
            if self.strategy.finite(state):
                break
            self.passed_over.append(f"{path}: has non-finite values")
            path = self.store.newest(before=path)
            self.passed_over += self.store.skipped
            if path is None:  # the networks now hold the non-finite values
                raise UserError(
                    f"{self.passed_over[0]}, and no other checkpoint is valid; remove {self.store.folder}"
                )
        if path is None:
            return None
        self.changes = self.strategy.load(state)
        self.images_seen, self.rollbacks = facts["images_seen"], facts["rollbacks"]
        self.started = facts.get("started", {})
        self.strategy.scaler.load_state_dict(facts["scaler"])
        self.watch.load_state_dict(facts["watch"])
        self.meter.load_state_dict(facts["meter"], self.strategy)
        return path

    def roll_back(self) -> None:
        """Return to the last valid checkpoint with a lower learning rate.

        If the previous rollback led to the same checkpoint, discard it and return to the one before.
        """
        at, rollbacks = self.images_seen, self.rollbacks + 1
        self.store.finish()
        newest = self.store.newest()
        if rollbacks > self.config.watch.max_rollbacks or newest is None:
            raise UserError(
                f"{self.out}: training diverged at {at:,} images after {self.rollbacks} "
                f"rollbacks; see events.jsonl and lower optimizer.learning_rate"
            )
        if newest == self.returned_to and self.store.newest(before=newest):
            self.store.discard(newest)
            self.tracker.look_at_checkpoints()
        self.returned_to = self.restore()
        self.rollbacks, self.validated_at = rollbacks, -1
        self.tracker.event(at, "rollback", f"to {self.images_seen} images", rollbacks=rollbacks)

    def stream(self, at: int) -> FaceStream | MixedStream:
        return self.data.stream(at, self.strategy.rank, self.strategy.world_size)

    def any_batch(self) -> Batch:
        """Return the first batch of this rank's stream."""
        return next(iter(self.stream(0))).to(self.strategy.device)

    def batches(self) -> Generator[Batch, None, None]:
        pin = self.strategy.device.type == "cuda"
        yield from Loader(self.stream(self.images_seen), workers=self.config.data.workers, pin_memory=pin)
