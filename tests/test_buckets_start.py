"""What a run in a bucket copies when it starts, and whether that arrives as it is there."""

from pathlib import Path

import pytest
import small_buckets
import tiny
from small_buckets import URL, save

from dppmask_jax import evaluate
from dppmask_jax.errors import InputError
from dppmask_jax.runs import bucket, bucket_copy, bucket_download, checkpoint

store = small_buckets.store  # a fixture


def copied(folder):
    """The names of the files in a copy; a checkpoint counts as one."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    parts = {name: bucket_download.CHECKPOINT.match(name) for name in names if name[0] != "."}
    return {part[0] if part else name for name, part in parts.items()}


def contents(store):
    return {name: store.read(name) for name in store.files() if ".lock" not in name}


OF_RUN = {"config.json", "metrics.jsonl", "trackers.json", "mlruns/0/ab/meta.yaml",
          "wandb/offline-run-1-ab/run-ab.wandb"}  # fmt: skip
FOUND = {"eval_knn.json", "eval_knn_images.npy", "figures/a.png", "soap.safetensors"}
FOREIGN = {"video.mp4", "backup/metrics.jsonl", "tensorboard/events.1", "profile/a",
           "mlruns/0/ab/artifacts/a.png", "wandb/replaced/offline-run-0-ab/a",
           "checkpoints/notes.txt", "checkpoints-damaged-2-0/state/a"}  # fmt: skip
TRAININGS = [f"eval_{name}/seed-{seed}" for name in ("finetune", "linear") for seed in (0, 1)]


@pytest.fixture
def full(store):
    """The store, with all that may lie in the folder of a run."""
    with bucket_copy.opened(URL) as folder:
        save(folder, 1, 2, 3)
    for name in OF_RUN | FOUND | FOREIGN | {f"{below}/metrics.jsonl" for below in TRAININGS}:
        store.write(name, name.encode())
    for below in (*TRAININGS, "another"):
        for name in store.files("checkpoints/3"):
            store.write(f"{below}/{name}", store.read(name))
    return store


def test_a_run_that_goes_on_copies_what_it_reads_alone_and_all_else_stays(full):
    before = contents(full)
    with bucket_copy.opened(URL) as folder:
        assert copied(folder) == OF_RUN | {"checkpoints/3/"}
        (folder / "figures").mkdir()
        (folder / "figures" / "b.png").write_bytes(b"new")
        save(folder, 4)
    after = contents(full)
    assert bucket_copy.steps(URL) == [3, 4] and after["figures/b.png"] == b"new"
    assert before == {name: after.get(name, data) for name, data in before.items()}
    assert {name for name in before if name not in after} == {
        name for name in before if name.startswith("checkpoints/2/")}  # fmt: skip


@pytest.mark.parametrize(
    ("task", "fields", "trainings"),
    [
        ("knn", {}, []),
        ("finetune", {"seeds": (1,)}, ["eval_finetune/seed-1"]),
        ("finetune", {"scratch": True}, []),
        ("backgrounds", {"classifier": "linear"}, ["eval_linear/seed-0"]),
    ],
)
def test_an_evaluation_copies_what_others_found_and_its_own_trainings(
    full, task, fields, trainings
):
    before, config = contents(full), tiny.evaluation(f"task={task}", **fields)
    with bucket_copy.opened(URL, f".lock_eval_{task}", evaluate._reads(config)) as folder:
        of_trainings = {f"{training}/{name}" for training in trainings
                        for name in ("metrics.jsonl", "checkpoints/3/")}  # fmt: skip
        assert copied(folder) == OF_RUN | FOUND | {"checkpoints/3/"} | of_trainings
    assert contents(full) == before


def test_what_is_set_aside_leaves_what_was_before_it(store):
    with bucket_copy.opened(URL) as folder:
        save(folder, 1, 2)
        (folder / "checkpoints-damaged-2-0").mkdir()
        (folder / "checkpoints-damaged-2-0" / "a").write_text("of an earlier start")
    store.write("checkpoints/2/manifest.json", b"garbled")
    with bucket_copy.opened(URL) as folder:
        checkpoint.set_aside(folder, checkpoint.newest(folder).damaged)
    assert list(store.files("checkpoints-damaged-2-0")) == ["checkpoints-damaged-2-0/a"]
    assert store.read("checkpoints-damaged-2-1/manifest.json") == b"garbled"


def arrives_cut(store, monkeypatch, wanted, times):
    """Has downloads of files whose names hold `wanted` lack their last bytes, so many times."""
    get, cut = store.fs.get, []

    def get_less(there, here):
        get(there, here)
        for path in map(Path, here):
            if wanted in str(path) and len(cut) < times:
                cut.append(path)
                path.write_bytes(path.read_bytes()[:-3])

    monkeypatch.setattr(store.fs, "get", get_less)
    return cut


@pytest.mark.parametrize("name", ["state/d/", "manifest.json"])
def test_a_checkpoint_that_arrives_damaged_is_downloaded_again(store, monkeypatch, name):
    with bucket_copy.opened(URL) as folder:
        save(folder, 1, 2)
    before = contents(store)
    for times in (1, 2):
        with monkeypatch.context() as network:
            cut = arrives_cut(store, network, name, times)
            with bucket_copy.opened(URL) as folder:
                assert checkpoint.newest(folder) == (2, {"config": {}}, [])
            assert len(cut) == times and contents(store) == before
    arrives_cut(store, monkeypatch, name, 1)
    assert checkpoint.read_newest(URL)[2] == 2


def test_records_that_arrive_cut_are_downloaded_again_and_never_go_back(store, monkeypatch):
    with bucket_copy.opened(URL) as folder:
        (folder / "metrics.jsonl").write_text("one\ntwo\n")
    with monkeypatch.context() as network:
        arrives_cut(store, network, "metrics.jsonl", 1)
        with bucket_copy.opened(URL) as folder:
            assert (folder / "metrics.jsonl").read_text() == "one\ntwo\n"
    arrives_cut(store, monkeypatch, "metrics.jsonl", 100)
    words = f"{URL}/metrics.jsonl has 8 bytes there and did not arrive whole, 3 times"
    with pytest.raises(InputError, match=words), bucket_copy.opened(URL):
        pass
    assert store.read("metrics.jsonl") == b"one\ntwo\n"


def test_a_file_that_goes_while_it_is_copied_is_done_without(store, monkeypatch):
    for name in ("metrics.jsonl", "trackers.json"):
        store.write(name, name.encode())
    files, looked = bucket.Store.files, []

    def goes(self, below=""):
        found = files(self, below)
        if "metrics.jsonl" in found:
            looked.append(None)
            self.remove(["metrics.jsonl"])
        return found

    monkeypatch.setattr(bucket.Store, "files", goes)
    with bucket_copy.opened(URL) as folder:
        assert copied(folder) == {"trackers.json"} and looked
