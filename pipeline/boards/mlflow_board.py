"""MLflow: a database in the run's folder, unless MLFLOW_TRACKING_URI names a server."""

import os
import time
from collections.abc import Mapping
from typing import Any

from .board import PROJECT, BoardRun, later_steps, scalars

_TAG = "offpref.run_id"
_MOST_PARAMS, _LONGEST_PARAM = 100, 6000


class MlflowBoard:
    """A run of MLflow's."""

    def __init__(self, run: BoardRun) -> None:
        """Start the run, or continue the one that has this id as its tag."""
        from mlflow.tracking import MlflowClient

        given = os.environ.get("MLFLOW_TRACKING_URI")
        run.folder.mkdir(parents=True, exist_ok=True)
        address = given or f"sqlite:///{run.folder.resolve() / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=address)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        if found is None:
            files = None if given else str(run.folder.resolve() / "artifacts")
            experiment = self._client.create_experiment(name, artifact_location=files)
        else:
            experiment = found.experiment_id
        former = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{run.run_id}'")
        if former:
            self._id = former[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        made = self._client.create_run(experiment, run_name=run.name, tags={_TAG: run.run_id})
        self._id = made.info.run_id
        self._add_config(run.config)

    def add_step(self, row: Mapping[str, Any], *, wall_time: float | None = None) -> None:
        """Add what was measured in a step."""
        from mlflow.entities import Metric

        moment = int(1000 * (time.time() if wall_time is None else wall_time))
        step = int(row["step"])
        metrics = [Metric(name, value, moment, step) for name, value in scalars(row).items()]
        self._client.log_batch(self._id, metrics=metrics)

    def last_steps(self) -> dict[str, int] | None:
        """Return the last step of each split."""
        names = [name for name in self._client.get_run(self._id).data.metrics if "/" in name]
        return later_steps(
            (name, metric.step)
            for name in names
            if name.endswith("/loss")
            for metric in self._client.get_metric_history(self._id, name)
        )

    def flush(self) -> None:
        """Do nothing: each step is written when it is added."""

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self._id)

    def _add_config(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [
            Param(name, str(value)[:_LONGEST_PARAM])
            for name, value in config.items()
            if value is not None
        ]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._id, params=params[start : start + _MOST_PARAMS])
