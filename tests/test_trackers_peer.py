"""W&B offline and MLflow's files, by their own packages: a run that is killed and goes on stands in
both once, as in metrics.jsonl."""

import collections
import json
import signal
import struct

import faults
import pytest
import tiny

from dppmask_jax.runs import metrics

pytestmark = [pytest.mark.peer, pytest.mark.slow]
FIELDS = {
    "epochs": 8.0,
    "log_every": 3,
    "checkpoint__every": 20,
    "evaluate__every_epochs": 4.0,
    "evaluate__figure_images": 2,
    "log__wandb": "masks",
    "log__mlflow": "masks",
    "log__tags": "small,of/tests",
}
STEPS = 96


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """(workdir, what its two processes said): one was killed between two checkpoints."""
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    workdir = tmp_path_factory.mktemp("tracked") / "run"
    env = tiny.environment(1) | {"WANDB_MODE": "offline"}
    env.pop("MLFLOW_TRACKING_URI", None)
    command = tiny.command(workdir, **FIELDS)
    life = faults.Life(command, env, workdir.parent / "killed.txt")
    life.wait_for_step(workdir, 27)
    life.send(signal.SIGKILL)
    life.end()
    status, said = faults.run(command, env, workdir.parent / "resumed.txt")
    assert status == 0, said
    return workdir, life.said(), said


def lines(records):
    """How often each (name, step, value) stands there, without what depends on the clock."""
    return collections.Counter(
        (name, record["step"], value)
        for record in records
        for name, value in record.items()
        if name != "step" and name not in faults.TIMING and value is not None
    )


def test_mlflow_has_each_line_once(killed, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    workdir, *_ = killed
    client = MlflowClient((workdir / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("masks")
    (run,) = client.search_runs([experiment.experiment_id])
    found = [
        {"step": line.step, name: line.value}
        for name in run.data.metrics
        for line in client.get_metric_history(run.info.run_id, name)
    ]
    written = metrics.read_metrics(workdir / "metrics.jsonl")
    assert lines(found) == lines(written) and max(lines(found).values()) == 1
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    assert run.data.tags.items() >= {("small", "true"), ("of/tests", "true")}
    assert run.data.params["mask.strategy"] == "dpp" and run.data.params["epochs"] == "8.0"
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    pictures = {item.path for item in client.list_artifacts(run.info.run_id, "figures")}
    assert artifacts == {"config.json", "figures"}
    assert pictures == {f"figures/{path.name}" for path in (workdir / "figures").glob("*.png")}


def test_wandb_has_each_line_once(killed):
    workdir, *_ = killed
    folders = list((workdir / "wandb").glob("offline-run-*"))
    replaced = list((workdir / "wandb" / "replaced").iterdir())
    assert len(folders) == 1 and len(replaced) == 1
    (ident,) = {path.name.rpartition("-")[2] for path in folders + replaced}
    rows, run = wandb_file(folders[0] / f"run-{ident}.wandb")
    shown = {(name, row["step"]) for row in rows for name in row if name.endswith("/path")}
    pictures = (workdir / "figures").glob("*.png")
    assert shown == {(f"figures/{path.stem}/path", STEPS) for path in pictures} != set()
    numbers = [
        {name: value for name, value in row.items() if not name.startswith("figures/")}
        for row in rows
    ]
    written = metrics.read_metrics(workdir / "metrics.jsonl")
    assert lines(numbers) == lines(written) and max(lines(numbers).values()) == 1
    assert (run.run_id, run.project, run.display_name) == (ident, "masks", "run")
    assert list(run.tags) == ["small", "of/tests"]


def wandb_file(path):
    """(rows, last header) of a file of W&B: records in blocks of 32 KiB, each a checksum, a length
    and whether it is whole (1) or a piece of one (2, 3 and 4, the last)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part, rows, run = path.read_bytes(), 7, b"", [], None
    while at + 7 <= len(data):
        if (left := -at % 32768) and left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record, part = Record.FromString(part), b""
            if record.WhichOneof("record_type") == "history":
                items = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                rows.append(
                    {name: value for name, value in items.items() if not name.startswith("_")}
                    | {"step": record.history.step.num}
                )
            elif record.WhichOneof("record_type") == "run":
                run = record.run
    return rows, run


def test_each_start_says_little(killed):
    _, first, second = killed
    for said in (first, second):
        assert "cannot be" not in said and "Traceback" not in said
    assert second.count("MLflow has lines up to step") == 1
