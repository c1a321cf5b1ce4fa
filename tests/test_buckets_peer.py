"""Runs in S3, as moto's server speaks it: a machine dies, and another one goes on. And
checkpoints in a server that speaks as Google's."""

import shutil
import signal
import subprocess

import faults
import fsspec
import jax
import numpy as np
import pytest
import tiny

from dppmask_jax import pretrain
from dppmask_jax.errors import InputError
from dppmask_jax.methods.base import TrainState
from dppmask_jax.runs import bucket, bucket_copy, bucket_lock, checkpoint

pytestmark = [pytest.mark.peer, pytest.mark.slow]
URL = "s3://bucket/runs/mine"
FIELDS = {"epochs": 8.0, "evaluate__every_epochs": 0.0}
STEPS = 96


@pytest.fixture(scope="module")
def server():
    """The variables of a server with one bucket; they are this process's, too."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    served = moto.ThreadedMotoServer(port=0)
    served.start()
    _, port = served.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        bucket.opened(URL).fs.mkdir("bucket")
        yield variables
    served.stop()


def refused(workdir, env):
    return subprocess.run(
        tiny.command(workdir, **FIELDS), cwd=tiny.ROOT, env=env, capture_output=True, text=True
    )


def test_a_run_is_killed_and_goes_on_elsewhere(server, tmp_path, monkeypatch):
    env = tiny.environment(1) | server
    status, said = faults.run(tiny.command(tmp_path / "alone", **FIELDS), env, tmp_path / "a.txt")
    assert status == 0, said
    command = tiny.command(URL, **FIELDS)
    one = env | {"XDG_CACHE_HOME": str(tmp_path / "one")}
    life = faults.Life(command, one, tmp_path / "first.txt")
    life.wait_until(lambda: bucket_copy.steps(URL)[-1:] >= [12], "checkpoint 12", poll=0.2)
    life.send(signal.SIGKILL)
    life.end()
    shutil.rmtree(tmp_path / "one")

    lively = [command[0], "tests/impatient.py", *command[2:]]  # a sign of life before it has ended
    life = faults.Life(lively, one | {"PYTHONPATH": str(tiny.ROOT)}, tmp_path / "second.txt")
    life.wait_until(lambda: "resuming at step" in life.said(), "a resume")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    monkeypatch.setattr(bucket_lock, "_POLL_SECONDS", 0.1)
    with pytest.raises(InputError, match=f"{URL} is in use by process"):
        pretrain.train(tiny.config("mae", **FIELDS), URL)
    status, _ = life.end()
    assert status == 0 and life.started_at() >= 12, life.said()
    states = [checkpoint.read_newest(run, TrainState._fields) for run in (tmp_path / "alone", URL)]
    assert states[0][2] == states[1][2] == STEPS
    jax.tree.map(np.testing.assert_array_equal, states[0][1], states[1][1])
    store = bucket.opened(URL)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "metrics.jsonl").write_bytes(store.read("metrics.jsonl"))
    assert faults.curve(tmp_path / "theirs") == faults.curve(tmp_path / "alone")
    assert bucket_copy.steps(URL) == [STEPS - 4, STEPS]


@pytest.mark.long  # a dead process's lock is watched for a minute
def test_two_processes_are_killed_and_go_on_elsewhere(server, tmp_path):
    env, url = tiny.environment(1) | server, "s3://bucket/runs/two"
    for life in faults.two_processes(tmp_path / "alone", env, tmp_path / "undisturbed", **FIELDS):
        assert life.end()[0] == 0, life.said()
    one, two = (env | {"XDG_CACHE_HOME": str(tmp_path / name)} for name in ("one", "two"))
    lives = faults.two_processes(url, one, tmp_path / "first", **FIELDS)
    lives[0].wait_until(lambda: bucket_copy.steps(url)[-1:] >= [12], "checkpoint 12", poll=0.2)
    for life in lives:
        life.send(signal.SIGKILL)
        life.end()
    assert len(list((tmp_path / "one").rglob(".bucket.json"))) == 2, "each has its own copy"
    shutil.rmtree(tmp_path / "one")

    lives = faults.two_processes(url, two, tmp_path / "second", **FIELDS)
    for life in lives:
        assert life.end()[0] == 0, life.said()
    assert 12 <= lives[0].started_at() < STEPS
    states = [checkpoint.read_newest(run, TrainState._fields) for run in (tmp_path / "alone", url)]
    assert states[0][2] == states[1][2] == STEPS
    jax.tree.map(np.testing.assert_array_equal, states[0][1], states[1][1])


def test_what_is_missing_is_one_line(server, tmp_path):
    env = tiny.environment(1) | server | {"XDG_CACHE_HOME": str(tmp_path)}
    without = {name: env[name] for name in env if not name.startswith("AWS_") or "URL" in name}
    cases = (
        ("s3://another/run", env, "there is no bucket s3://another"),
        (
            URL,
            without | {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)},
            "credentials",
        ),
    )
    for url, of, words in cases:
        done = refused(url, of)
        assert done.returncode == 2 and words in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1 and not done.stdout, done


def test_googles_file_system_takes_and_gives_checkpoints(tmp_path, monkeypatch):
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    # Else gcsfs first asks Google's other interface, which the emulator lacks, for a minute.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    pytest.importorskip("gcsfs")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    port = tiny.free_port()
    served = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    served.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    url = "gs://bucket/runs/mine"
    try:
        with bucket_copy.opened(url) as folder:
            checkpoints = checkpoint.Checkpoints(folder / checkpoint.FOLDER)
            for step in (1, 2, 3):
                state = {"params": {"w": np.full(5, step, np.float32)}}
                checkpoints.save(step, state, {"config": {}})
            checkpoints.close()
        assert bucket_copy.steps(url) == [2, 3]
        np.testing.assert_array_equal(checkpoint.read_newest(url)[1]["params"]["w"], 3)
        with bucket_copy.opened(url) as folder:
            assert checkpoint.newest(folder) == (3, {"config": {}}, [])
        with pytest.raises(InputError, match="there is no bucket gs://nowhere"):
            bucket_copy.opened("gs://nowhere/run").__enter__()
    finally:
        served.stop()
