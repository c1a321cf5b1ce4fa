"""A bucket in memory, for tests of runs that lie in one."""

import fsspec
import numpy as np
import pytest

from dppmask_jax.runs import bucket, bucket_lock, checkpoint

URL = "gs://bucket/runs/mine"


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The bucket's folder, in memory and empty; what is copied here lies below tmp_path."""
    fs = fsspec.filesystem("memory", skip_instance_cache=True)
    fs.store.clear()
    real = bucket.opened

    def opened(where):
        url = bucket.url_of(where)
        return bucket.Store(fs, url.partition("://")[2], url) if ":/" in str(where) else real(where)

    monkeypatch.setattr(bucket, "opened", opened)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(bucket_lock, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(bucket_lock, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(bucket_lock, "DEAD_SECONDS", 1.5)
    yield opened(URL)
    fs.store.clear()


def state_of(step):
    return {"params": {"w": np.full(5, step, np.float32)}}


def save(folder, *steps, keep=2):
    """Saves a small checkpoint of each step."""
    checkpoints = checkpoint.Checkpoints(folder / checkpoint.FOLDER, keep=keep)
    for step in steps:
        checkpoints.save(step, state_of(step), {"config": {}})
    checkpoints.close()
