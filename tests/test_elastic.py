"""The same run on any number of devices, processes and workers, and from one number to another."""

import sys

import numpy as np
import pytest
import tiny

from dppmask_jax.runs import metrics

STEPS = 20


def start(workdir, devices, *flags, method="mae"):
    command = [sys.executable, "tests/elastic.py", method, str(workdir), *flags]
    return tiny.start(command, devices, PYTHONPATH=str(tiny.ROOT))


def end(process, status=0):
    out, err = process.communicate(timeout=1500)
    assert process.returncode == status, err
    return out


def run(workdir, devices, *flags, method="mae", status=0):
    """The logged training steps of a run."""
    out = end(start(workdir, devices, *flags, method=method), status)
    assert f"{devices} devices" in out
    return records(workdir)


def run_two_processes(workdir, devices, method, *flags):
    port = tiny.free_port()
    flags = [*flags, "--processes=2", f"--port={port}"]
    processes = [start(workdir, devices, *flags, f"--process={i}", method=method) for i in range(2)]
    try:
        for process in processes:
            assert f"{2 * devices} devices" in end(process)
    finally:
        for process in processes:
            process.kill()
    return records(workdir)


def records(workdir):
    return [r for r in metrics.read_metrics(workdir / "metrics.jsonl") if "loss" in r]


def assert_same(found, expected):
    assert [r["step"] for r in found] == [r["step"] for r in expected] == list(range(1, STEPS + 1))
    for one, other in zip(found, expected, strict=True):
        for name in ("batch_digest", "mask_digest"):
            assert one[name] == other[name], (name, one["step"])
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)
        assert one.keys() == other.keys()
        for name in one.keys() - {"images_per_sec", "data_wait_frac"}:
            np.testing.assert_allclose(one[name], other[name], rtol=2e-4, err_msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Of a method, its run on one device."""
    done = {}

    def of(method):
        if method not in done:
            done[method] = run(tmp_path_factory.mktemp(method) / "run", 1, method=method)
            for name in ("batch_digest", "mask_digest"):  # they tell steps apart
                assert len({record[name] for record in done[method]}) > STEPS / 2
        return done[method]

    return of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "devices"),
    [
        ("mae", 8),
        ("ibot", 4),
        pytest.param("mae", 2, marks=pytest.mark.long),
        pytest.param("mae", 4, marks=pytest.mark.long),
        pytest.param("ibot", 8, marks=pytest.mark.long),
    ],
)
def test_any_number_of_devices_gives_the_same_run(method, devices, alone, tmp_path):
    assert_same(run(tmp_path / "run", devices, method=method), alone(method))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "devices"),
    [
        ("mae", 1),
        pytest.param("ibot", 1, marks=pytest.mark.long),
        pytest.param("mae", 4, marks=pytest.mark.long),
    ],
)
def test_two_processes_give_the_same_run(method, devices, alone, tmp_path):
    assert_same(run_two_processes(tmp_path / "run", devices, method), alone(method))


@pytest.mark.slow
def test_two_processes_share_a_state(alone, tmp_path):
    found = run_two_processes(tmp_path / "run", 2, "mae", "--mode=shard_map")
    assert_same(found, alone("mae"))


@pytest.mark.long  # test_faults_stops compares such a run with one of none, to the bit
def test_workers_give_the_same_run(alone, tmp_path):
    found, expected = run(tmp_path / "run", 1, "--workers=2"), alone("mae")
    assert_same(found, expected)
    assert [r["loss"] for r in found] == [r["loss"] for r in expected]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "saved", "gone_on"),
    [
        ("mae", "shard_map", "pmap"),
        pytest.param("mae", "pmap", "shard_map", marks=pytest.mark.long),
        pytest.param("mae", "pmap", "pmap", marks=pytest.mark.long),
        pytest.param("ibot", "pmap", "pmap", marks=pytest.mark.long),
        pytest.param("ibot", "shard_map", "shard_map", marks=pytest.mark.long),
    ],
)
def test_a_run_saved_on_eight_devices_goes_on_on_two(method, saved, gone_on, alone, tmp_path):
    flags = ["--stop_at=12", f"--mode={saved}"]
    begun = run(tmp_path / "run", 8, *flags, method=method, status=77)
    assert [record["step"] for record in begun] == list(range(1, 13))
    assert_same(run(tmp_path / "run", 2, f"--mode={gone_on}", method=method), alone(method))
