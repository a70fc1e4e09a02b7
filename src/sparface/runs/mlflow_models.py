"""The data sets and models of a run in MLflow. Checkpoints become logged models.

A model is identified by its run and the checkpoint's name and digest, so a model that was created right
before a crash is not created again. It is complete when its status in MLflow is READY.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparface.files import inside
from sparface.runs.lineage import Checkpoint, Dataset, exported_file
from sparface.runs.mlflow_run import BATCH, REFUSALS, MlflowRun, clean, milliseconds
from sparface.runs.servable import write_servable
from sparface.runs.server import require_local

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

DIGEST, DELETED_TAG = "digest", "sparface.deleted"
EXTERNAL_TAG, DESCRIPTION_TAG = "mlflow.model.isExternal", "mlflow.note.content"
VERSIONS_TAG = "mlflow.modelVersions"
"""MLflow's tags for a model whose files are elsewhere, its description, and its registered versions."""
DIGEST_LENGTH = 16
"""Characters of a data set's digest: MLflow accepts 36, and its pages show them all."""


class MlflowModels:
    """Sends the lineage of a run to MLflow. Methods raise MLflow's errors."""

    def __init__(self, run: MlflowRun) -> None:
        self._run, self._client = run, run.client
        self._ids: dict[Checkpoint, str] = {}
        self._experiment: str = run.client.get_run(run.run_id).info.experiment_id

    def send(self, records: Iterable[dict[str, Any]]) -> None:
        """Send records of the lineage, in order. A record that MLflow rejects is logged as an event."""
        from mlflow.exceptions import MlflowException

        for record in records:
            try:
                getattr(self, f"_{record['kind']}")(record)
            except MlflowException as error:
                if error.error_code not in REFUSALS:
                    raise
                self._run.refused(f"a lineage record of kind {record['kind']}", error)

    def _dataset(self, record: dict[str, Any]) -> None:
        """Log a data set as an input; MLflow keeps one per name and digest."""
        from mlflow.entities import Dataset as Entity
        from mlflow.entities import DatasetInput, InputTag

        dataset = Dataset(**record["dataset"])
        profile = {"faces": dataset.faces, "identities": dataset.identities, "digest": dataset.digest}
        entity = Entity(
            dataset.name,
            dataset.digest[:DIGEST_LENGTH],
            source_type="local",
            source=json.dumps({"uri": dataset.source}),
            profile=json.dumps(profile),
        )
        use = [InputTag("mlflow.data.context", record["use"])]
        self._client.log_inputs(self._run.run_id, [DatasetInput(entity, use)])

    def _published(self, record: dict[str, Any]) -> None:
        self.model_id(Checkpoint(**record["checkpoint"]))

    def _deleted(self, record: dict[str, Any]) -> None:
        model = self.model_id(Checkpoint(**record["checkpoint"]))
        described = "This checkpoint was deleted from its folder."  # MLflow's pages don't show tags
        self._client.set_logged_model_tags(model, {DELETED_TAG: "true", DESCRIPTION_TAG: described})

    def _measured(self, record: dict[str, Any]) -> None:
        """Log metrics of a model. The run has them with the same timestamp, so MLflow keeps one of each."""
        from mlflow.entities import Metric

        checkpoint, dataset = Checkpoint(**record["checkpoint"]), Dataset(**record["dataset"])
        model, digest = self.model_id(checkpoint), dataset.digest[:DIGEST_LENGTH]
        metrics = [
            Metric(clean(n), v, milliseconds(record), checkpoint.images, model, dataset.name, digest)
            for n, v in record["metrics"].items()
        ]
        for start in range(0, len(metrics), BATCH):
            self._run.log_metrics(metrics[start : start + BATCH])

    def _exported(self, record: dict[str, Any]) -> None:
        """Add the exported ONNX model to the checkpoint's logged model, then delete the local file."""
        checkpoint = Checkpoint(**record["checkpoint"])
        file = inside(self._run.folder, exported_file(checkpoint))
        if not file.is_file():
            return
        model = self._client.get_logged_model(self.model_id(checkpoint))
        require_local(self._client, model.artifact_location, self._run.folder)
        with tempfile.TemporaryDirectory() as folder:
            write_servable(file, Path(folder) / "model", model)
            self._client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
        if EXTERNAL_TAG in model.tags:
            self._client.delete_logged_model_tag(model.model_id, EXTERNAL_TAG)
        file.unlink()
        with suppress(OSError):  # the folder holds another export
            file.parent.rmdir()

    def register(self, checkpoint: Checkpoint, name: str) -> str:
        """Register a checkpoint's model as a version of `name`, unless it is registered; return its URI."""
        from mlflow.exceptions import MlflowException

        model = self._client.get_logged_model(self.model_id(checkpoint))
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions = self._client.search_model_versions(f"name = '{name}'")
        # search results have no model_id
        version = next((one for one in versions if one.source == model.artifact_location), None)
        if version is None:
            version = self._client.create_model_version(
                name, model.artifact_location, run_id=self._run.run_id, model_id=model.model_id
            )
        self._note_version(model, name, int(version.version))
        return f"models:/{name}/{version.version}"

    def _note_version(self, model: LoggedModel, name: str, version: int) -> None:
        """List a version on the model's page."""
        known = json.loads(model.tags.get(VERSIONS_TAG, "[]"))
        if (new := {"name": name, "version": version}) not in known:
            self._client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: json.dumps([*known, new])})

    def model_id(self, checkpoint: Checkpoint) -> str:
        """The id of a checkpoint's logged model, which is created if missing."""
        if checkpoint not in self._ids:
            model = self.find(checkpoint) or self._create(checkpoint)
            if model.status != "READY":  # set last
                self._link(model.model_id, checkpoint.images)
                self._client.finalize_logged_model(model.model_id, "READY")
            self._ids[checkpoint] = model.model_id
        return self._ids[checkpoint]

    def find(self, checkpoint: Checkpoint) -> LoggedModel | None:
        where = f"source_run_id = '{self._run.run_id}' AND name = '{checkpoint.name}'"
        found = self._client.search_logged_models([self._experiment], where)
        return next((model for model in found if model.params.get(DIGEST) == checkpoint.digest), None)

    def _create(self, checkpoint: Checkpoint) -> LoggedModel:
        path = self._run.folder.resolve() / "checkpoints" / checkpoint.name
        facts = {"images_seen": str(checkpoint.images), "path": str(path), DIGEST: checkpoint.digest}
        return self._client.create_logged_model(
            self._experiment,
            name=checkpoint.name,
            source_run_id=self._run.run_id,
            tags={EXTERNAL_TAG: "true"},
            params=facts,
            model_type="checkpoint",
        )

    def _link(self, model: str, images: int) -> None:
        """Add a model to the run's outputs, once."""
        from mlflow.entities import LoggedModelOutput

        outputs = self._client.get_run(self._run.run_id).outputs
        if not outputs or model not in [output.model_id for output in outputs.model_outputs]:
            self._client.log_outputs(self._run.run_id, [LoggedModelOutput(model, images)])
