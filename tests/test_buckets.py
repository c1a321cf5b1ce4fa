"""Runs whose folders are in a bucket, on fsspec's file system in memory."""

import json
import shutil
import threading

import jax
import numpy as np
import pytest
import small_buckets
import tiny
from fsspec.implementations.memory import MemoryFileSystem
from small_buckets import URL, save, state_of

from dppmask_jax import evaluate, load_encoder, pretrain
from dppmask_jax.errors import InputError, Stopped
from dppmask_jax.figures import __main__ as figures
from dppmask_jax.results import __main__ as results
from dppmask_jax.runs import (
    bucket,
    bucket_copy,
    bucket_lock,
    checkpoint,
    metrics,
)

TINY = {"data__source": "shapes:size=16,train=32,val=8", "evaluate__every_epochs": 0.0,
        "checkpoint__every": 1, "model__depth": 1}  # fmt: skip


store = small_buckets.store  # a fixture


def steps_in(store):
    return bucket_copy.steps(store.url)


def test_names_of_buckets():
    assert bucket.is_one("gs://b/run") and bucket.is_one("s3:/b/run")
    assert not any(map(bucket.is_one, ("runs/mine", "/runs/a:b", "zoo:mae", "C:/run")))
    assert bucket.url_of("s3:/b/run/") == "s3://b/run"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host/run", "is not a local folder"),
        ("gs://bucket", "names no folder in a bucket"),
        ("s3://bucket/../run", "names no folder in a bucket"),
        ("gs://bucket/runs/*", "take for patterns"),
        ("gs://bucket/run", r"needs the package gcsfs.*dppmask-jax\[gs\]"),
        ("s3://bucket/run", r"needs the package s3fs.*dppmask-jax\[s3\]"),
    ],
)
def test_what_cannot_be_opened_is_one_line(url, words, monkeypatch):
    found = bucket.importlib.util.find_spec
    monkeypatch.setattr(
        bucket.importlib.util, "find_spec", lambda n: None if n.endswith("fs") else found(n)
    )
    with pytest.raises(InputError, match=words) as error:
        bucket.opened(url)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (figures.main, ["--workdir", "runs/x", "--out=gs://b/x"]),
        (results.main, ["a.json", "--out=s3://b/page.md"]),
        (results.main, ["a.json", "--out=page.md", "--keep=gs://b/x"]),
    ],
)
def test_what_is_written_locally_takes_no_url(main, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"--(out|keep)=(gs|s3)://b/.* is not a local path"):
        main(words)
    assert not list(tmp_path.iterdir())


def test_what_a_store_refuses_is_one_line_before_any_work(store, monkeypatch, tmp_path):
    def refuse(*args, **more):
        raise PermissionError("Forbidden")

    monkeypatch.setattr(store.fs, "pipe_file", refuse)
    with pytest.raises(
        InputError, match=r"cannot be used .*Forbidden.*check the name and the cred"
    ):
        pretrain.train(tiny.config("mae", **TINY), URL)
    assert not store.files()


def test_a_folder_goes_there_and_comes_back(store):
    with bucket_copy.opened(URL) as folder:
        (folder / "metrics.jsonl").write_text("one\n")
        (folder / "figures").mkdir()
        (folder / "figures" / "a.png").write_bytes(b"picture")
        (folder / "half.json.part").write_text("half")
        assert bucket_copy.named(folder / "figures" / "a.png") == f"{URL}/figures/a.png"
    assert not folder.exists()
    assert {n for n in store.files() if not n.startswith(".lock")} == {
        "metrics.jsonl", "figures/a.png"}  # fmt: skip
    with bucket_copy.opened(URL, reads=lambda name: True) as folder:
        assert (folder / "metrics.jsonl").read_text() == "one\n"
        (folder / "metrics.jsonl").write_text("one\ntwo\n")
        (folder / "figures" / "a.png").unlink()
    assert store.read("metrics.jsonl") == b"one\ntwo\n"
    assert "figures/a.png" not in store.files()


def test_names_in_a_bucket_never_lead_out_of_the_copy(store):
    store.fs.pipe_file("bucket/runs/mine/ok", b"")
    store.fs.store["/bucket/runs/mine/../../out"] = store.fs.store["/bucket/runs/mine/ok"]
    assert list(store.files()) == ["ok"]


def test_a_checkpoint_is_there_once_the_bucket_has_it(store, monkeypatch):
    with bucket_copy.opened(URL) as folder:
        save(folder, 1, 2, 3)
        assert steps_in(store) == [2, 3]
        upload = bucket.Store.upload

        def breaks(self, at, names):
            if any(name.endswith("manifest.json") for name in names):
                raise OSError(5, "the network is away")
            upload(self, at, names)

        checkpoints = checkpoint.Checkpoints(folder / checkpoint.FOLDER)
        with monkeypatch.context() as broken:
            broken.setattr(bucket.Store, "upload", breaks)
            checkpoints.save(4, state_of(4), {})
            with pytest.raises(checkpoint.SaveFailed, match="the network is away") as failed:
                checkpoints.wait()
            assert failed.value.reason.startswith(f"{URL}: OSError")
            assert steps_in(store) == [2, 3] and checkpoints.newest == 3
            assert any(name.startswith("checkpoints/4/") for name in store.files())
            assert checkpoint.read_newest(URL)[2] == 3
        checkpoints.save(5, state_of(5), {})
        checkpoints.close()
        assert steps_in(store) == [4, 5]
    np.testing.assert_array_equal(checkpoint.read_newest(URL)[1]["params"]["w"], np.full(5, 5.0))


def test_what_a_killed_run_left_half_copied_is_removed(store):
    with bucket_copy.opened(URL) as folder:
        save(folder, 1, 2)
    store.write("checkpoints/3/state/some", b"half")
    with bucket_copy.opened(URL) as folder:
        assert checkpoint.newest(folder) == (2, {"config": {}}, [])
        assert not [name for name in store.files() if "/3/" in name]


def test_a_damaged_checkpoint_in_a_bucket_is_named_and_set_aside(store):
    with bucket_copy.opened(URL) as folder:
        save(folder, 1, 2)
    name = next(n for n in store.files() if n.startswith("checkpoints/2/state/d/"))
    store.write(name, b"garbled")
    assert checkpoint.read_newest(URL)[2] == 1
    with pytest.raises(InputError, match=f"no whole checkpoint {URL}/checkpoints/2: state/d/"):
        checkpoint.read(URL, 2)
    with bucket_copy.opened(URL) as folder:
        assert checkpoint.newest(folder) == (1, {"config": {}}, [2])
        checkpoint.set_aside(folder, [2])
        save(folder, 2)
    assert steps_in(store) == [1, 2]
    assert any(n.startswith("checkpoints-damaged-2-0/") for n in store.files())
    assert checkpoint.read_newest(URL)[2] == 2


def test_reading_where_there_is_nothing_names_the_bucket(store):
    with pytest.raises(InputError, match=f"no checkpoint in {URL}"):
        checkpoint.read_newest(URL)


def test_a_second_run_is_refused_and_a_dead_one_is_not_waited_for_long(store):
    said = []
    with bucket_lock.held(store, ".lock", "a", said.append) as lock:
        with (
            pytest.raises(InputError, match=r"is in use by process \d+ on .* since "),
            bucket_lock.held(store, ".lock", "b", said.append),
        ):
            pass
        assert lock.number == 1 and "for a sign of life" in said.pop()
    with bucket_lock.held(store, ".lock", "b", said.append) as lock:  # released
        assert lock.number == 2 and not said
    for owner, waits in (("b", 0), ("c", 1)):  # b died, and comes back; then another machine
        store.write(f".lock/{lock.number:06}", json.dumps({"owner": "b", "by": "it"}).encode())
        with bucket_lock.held(store, ".lock", owner, said.append) as lock:
            assert len(said) == waits
            assert list(store.files(".lock")) == [f".lock/{lock.number:06}"]


class OneConnection(MemoryFileSystem):
    """A file system of one connection, which an upload keeps until `uploaded` is set."""

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.free = threading.Lock()
        self.begun, self.uploaded = threading.Event(), threading.Event()

    def put(self, *args, **more):
        with self.free:
            self.begun.set()
            self.uploaded.wait(60)

    def pipe_file(self, *args, **more):
        with self.free:
            super().pipe_file(*args, **more)


def test_signs_of_life_go_on_during_a_long_upload(store):
    own = store._replace(fs=OneConnection(skip_instance_cache=True))
    with bucket_lock.held(own, ".lock", "a", lambda line: None) as lock:
        upload = threading.Thread(target=own.fs.put)
        upload.start()
        own.fs.begun.wait(60)
        try:
            with (
                pytest.raises(InputError, match="is in use by"),
                bucket_lock.held(store, ".lock", "b", lambda line: None),
            ):
                pass
            assert upload.is_alive()
            bucket_lock.check(own, lock)
        finally:
            own.fs.uploaded.set()
        upload.join()


def test_one_of_many_that_start_at_once_holds_the_lock(store):
    done, held, refused = threading.Event(), [], []

    def start(owner):
        try:
            with bucket_lock.held(store, ".lock", owner, lambda line: None):
                held.append(owner)
                done.wait(60)
        except InputError:
            refused.append(owner)
            if len(refused) == 4:
                done.set()

    threads = [threading.Thread(target=start, args=(str(i),)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1 and len(refused) == 4


def test_who_lost_the_lock_writes_nothing_more(store):
    with (
        pytest.raises(Stopped, match="no sign of life") as stopped,
        bucket_copy.opened(URL) as folder,
    ):
        save(folder, 1)
        store.write(".lock/000007", b"{}")
        save(folder, 2)
    assert stopped.value.status == 1 and steps_in(store) == [1]


def test_who_loses_the_lock_in_the_middle_of_a_copy_stops_there(store, monkeypatch):
    upload = bucket.Store.upload

    def lose(self, at, names):
        names = list(names)
        if any(name.startswith("checkpoints/2/") for name in names):
            store.write(".lock/000007", b"{}")
        upload(self, at, names)

    with pytest.raises(Stopped, match="no sign of life"), bucket_copy.opened(URL) as folder:
        save(folder, 1)
        monkeypatch.setattr(bucket.Store, "upload", lose)
        save(folder, 2)
    assert steps_in(store) == [1]


def test_removing_takes_no_name_for_a_pattern(store):
    for name in ("a1", "a2", "a*", "[a]1"):
        store.write(name, b"")
    store.remove(["a*", "[a]1", "gone"])
    assert list(store.files()) == ["a1", "a2"]


def test_a_copy_that_cannot_be_uploaded_is_kept_and_no_fault_hides_another(store, monkeypatch):
    def away(*args, **more):
        raise ConnectionError("the network is away")

    with (
        pytest.raises(Stopped, match=r"mine-not-copied-1 could not be copied .*network is away"),
        bucket_copy.opened(URL) as folder,
    ):
        save(folder, 1)
        (folder / "late.txt").write_text("late")
        monkeypatch.setattr(store.fs, "put", away)
        monkeypatch.setattr(store.fs, "find", away)
    kept = folder.with_name("mine-not-copied-1")
    assert (kept / "late.txt").read_text() == "late" and not folder.exists()
    monkeypatch.undo()


def test_faults_of_the_program_keep_their_traceback(store, monkeypatch):
    def wrong(*args, **more):
        raise KeyError("a fault of ours")

    with monkeypatch.context() as broken, pytest.raises(KeyError, match="a fault of ours"):
        broken.setattr(bucket.Store, "files", wrong)
        with bucket_copy.opened(URL):
            pass
    with pytest.raises(KeyError, match="a fault of ours"), bucket_copy.opened(URL) as folder:
        (folder / "new.txt").write_text("new")
        monkeypatch.setattr(bucket.Store, "upload", wrong)


def test_a_holder_that_answers_late_is_no_dead_one(store, monkeypatch):
    look, slow = bucket_lock._holder, []

    def looks_slowly(*args):
        found = look(*args)
        if len(slow) == 1:  # the second look, with what was read before
            threading.Event().wait(1.2 * bucket_lock.DEAD_SECONDS)
        slow.append(None)
        return found

    with bucket_lock.held(store, ".lock", "a", lambda line: None):
        monkeypatch.setattr(bucket_lock, "_holder", looks_slowly)
        monkeypatch.setattr(bucket_lock, "_POLL_SECONDS", 0.0)
        with (
            pytest.raises(InputError, match="is in use by"),
            bucket_lock.held(store, ".lock", "b", lambda line: None),
        ):
            pass


@pytest.mark.slow
def test_a_run_goes_on_from_a_bucket_bit_for_bit(store, tmp_path, capsys):
    config = tiny.config("mae", **TINY)
    pretrain.train(config, tmp_path / "alone")
    pretrain.train(config, URL)
    said = capsys.readouterr().out
    assert f"workdir     {URL}, starting at step 0" in said
    assert f"checkpoint  {URL}/checkpoints/4" in said and str(tmp_path / "cache") not in said
    # Another machine, which knows nothing, and a bucket that lacks the last checkpoint.
    shutil.rmtree(tmp_path / "cache")
    store.remove(name for name in store.files() if name.startswith("checkpoints/4/"))
    pretrain.train(config, URL)
    assert "resuming at step 3" in capsys.readouterr().out
    alone, there = (
        checkpoint.read_newest(run, ("params", "opt_state")) for run in (tmp_path / "alone", URL)
    )
    assert alone[2] == there[2] == 4
    jax.tree.map(np.testing.assert_array_equal, alone[1], there[1])
    (tmp_path / "metrics.jsonl").write_bytes(store.read("metrics.jsonl"))
    records = metrics.read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    before = {name: store.read(name) for name in store.files() if ".lock" not in name}
    pretrain.train(config, URL)
    assert "nothing is left to do" in capsys.readouterr().out
    assert before == {name: store.read(name) for name in store.files() if ".lock" not in name}


@pytest.mark.slow
def test_evaluations_and_encoders_of_a_run_in_a_bucket(store, tmp_path, capsys):
    with bucket_copy.opened(URL) as folder:
        tiny.save_run(folder, **TINY)
    images = np.zeros((2, 16, 16, 3), np.uint8)
    assert np.isfinite(load_encoder(URL)(images)["cls"]).all()
    before = set(store.files())
    path = evaluate.evaluate(tiny.evaluation("task=knn", data__source=TINY["data__source"]), URL)
    assert bucket.url_of(path) == f"{URL}/eval_knn.json"
    record = json.loads(store.read("eval_knn.json"))
    assert record["checkpoint"]["workdir"] == URL
    assert f"result  {URL}/eval_knn.json" in capsys.readouterr().out
    assert {name.split("/")[0] for name in set(store.files()) - before} <= {
        "eval_knn.json", "eval_knn_images.npy", "figures", ".lock_eval_knn"}  # fmt: skip
    other = evaluate.evaluate(
        tiny.evaluation("task=knn", data__source=TINY["data__source"]), URL, tmp_path / "out"
    )
    assert json.loads(other.read_text())["metrics"] == record["metrics"]
    figures.main(["--workdir", URL, "--num", "1"])
    assert f"{URL}/figures/masks.png" in capsys.readouterr().out
    assert "figures/masks.png" in store.files()
