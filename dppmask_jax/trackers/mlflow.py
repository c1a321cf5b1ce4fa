"""MLflow, on the server that MLFLOW_TRACKING_URI names, else as files in WORKDIR/mlruns."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable
from pathlib import Path

from dppmask_jax.fields import TEXT, Field, flatten
from dppmask_jax.trackers.base import Opening, Tracker, TrackerKind

_MOST_METRICS, _MOST_PARAMS = 1000, 100  # that a server takes at once
_LONGEST = 6000  # characters of a parameter
# Of requests to a server that is gone. MLflow's own are 7 times and 120 s, and a run would wait.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


def _open(opening: Opening) -> Tracker:
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=_store(opening.folder))
    run = opening.ident or _begun(client, opening)
    seen = _seen(client, run) if opening.ident else {}
    _describe(client, run, opening)
    last = max((max(steps) for steps in seen.values() if steps), default=-1)
    if opening.restored_step is not None and last > opening.restored_step:
        opening.say(
            f"MLflow has lines up to step {last:,} of an earlier start; they stay, and what they "
            "say is not written again"
        )

    def catch_up(records):
        now = time.time_ns() // 1_000_000
        found = (
            Metric(name, value, now, step)
            for step, values in records
            for name, value in values.items()
            if step not in seen.get(name, ())
        )
        for metrics in _batches(found, _MOST_METRICS):
            client.log_batch(run, metrics=metrics)

    def show(step, paths):
        del step
        for path in paths:
            client.log_artifact(run, str(path), "figures")

    return Tracker(
        lambda step, values: catch_up([(step, values)]),
        ident=run,
        catch_up=catch_up,
        show=show,
        close=lambda finished: client.set_terminated(run, "FINISHED" if finished else "KILLED"),
    )


def _store(folder: Path) -> str:
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    # MLflow asks that files be wanted: it recommends a server or a database. A run on a machine
    # without either wants them.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return (folder.resolve() / "mlruns").as_uri()


def _begun(client, opening: Opening) -> str:
    """A new run in the experiment, which is made where it is not there."""
    experiment = client.get_experiment_by_name(opening.target)
    number = experiment.experiment_id if experiment else client.create_experiment(opening.target)
    run = client.create_run(
        number, run_name=opening.folder.resolve().name, tags=dict.fromkeys(opening.tags, "true")
    )
    return run.info.run_id


def _seen(client, run: str) -> dict[str, set[int]]:
    """{metric: steps} that the store has. MLflow removes no line and takes a second one of the same
    step."""
    client.update_run(run, status="RUNNING")
    names = client.get_run(run).data.metrics
    return {name: {line.step for line in client.get_metric_history(run, name)} for name in names}


def _describe(client, run: str, opening: Opening) -> None:
    """Shows the config: as parameters, which MLflow keeps as they were first given, and as it is
    now in the artifact config.json."""
    from mlflow.entities import Param

    there = client.get_run(run).data.params
    params = (
        Param(name, str(value)[:_LONGEST])
        for name, value in flatten(opening.config).items()
        if name not in there
    )
    for batch in _batches(params, _MOST_PARAMS):
        client.log_batch(run, params=batch)
    client.log_dict(run, dict(opening.config), "config.json")


def _batches(values: Iterable, most: int):
    values = iter(values)
    while batch := list(itertools.islice(values, most)):
        yield batch


KIND = TrackerKind(
    "MLflow",
    _open,
    target=lambda log: log.get("mlflow", ""),
    fields={
        "log.mlflow": Field(
            "", TEXT, "MLflow's experiment, by name; needs the extra [mlflow]", free="carried out"
        )
    },
    package="mlflow",
    extra="mlflow",
)
