import functools
import os
import pickle

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from small_sources import assert_a_position_is_its_step, png, read_all
from tensorflow_datasets.proto import tf_example_pb2

from dppmask_jax.data.sources import array_records, cache, identity, opening
from dppmask_jax.errors import InputError


def example(**features):
    message = tf_example_pb2.Example()
    for name, value in features.items():
        feature = message.features.feature[name.replace("__", "/")]
        if isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            feature.bytes_list.value.append(value)
    return message.SerializeToString()


def written(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def files(folder, split="train", first=0):
    for number in range(2):
        records = [
            example(image=png(first + 6 * number + i), label=10 + i % 3, other=b"x")
            for i in range(6)
        ]
        written(folder / f"{split}.array_record-{number:05d}-of-00002", records)
    return folder


def test_examples_are_read_without_tensorflow(tmp_path):
    train, val = opening.open_splits(f"arrayrecord:{files(tmp_path)}", val_fraction=0.0)
    assert val is None and train.class_names == ("10", "11", "12")
    assert read_all(train) == [(png(i), i % 3) for i in range(12)]
    assert train.name(7) == "train.array_record-00001-of-00002 record 1"
    assert read_all(pickle.loads(pickle.dumps(train))) == read_all(train)
    files(tmp_path, "validation", 50)
    train, val = opening.open_splits(f"arrayrecord:{tmp_path}")
    assert len(train) == 12 and read_all(val) == [(png(50 + i), i % 3) for i in range(12)]


def test_features_of_other_names(tmp_path):
    records = [
        example(image__encoded=png(i), image__class__label=b"ab"[i : i + 1]) for i in range(2)
    ]
    path = written(tmp_path / "a", records)
    train, _ = opening.open_splits(f"arrayrecord:{path}", val_fraction=0.0)
    assert train.class_names == ("a", "b") and read_all(train) == [(png(0), 0), (png(1), 1)]
    path = written(tmp_path / "b", [example(picture=png(i), kind=i) for i in range(2)])
    with pytest.raises(InputError, match=r"The first record has kind, picture; give image=NAME"):
        opening.open_splits(f"arrayrecord:{path}")
    train, _ = opening.open_splits(f"arrayrecord:{path},image=picture,label=kind", val_fraction=0)
    assert train.class_names == ("0", "1")
    train, _ = opening.open_splits(f"arrayrecord:{path},image=picture", val_fraction=0)
    assert not train.labelled


def test_labels_of_many_records_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("DPPMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_KEPT_FROM", 5)
    spec = f"arrayrecord:{files(tmp_path / 'set')}"
    first = opening.open_source(spec, "train").labels()
    (kept,) = (tmp_path / "cache/files").iterdir()
    before = kept.stat().st_mtime_ns
    np.testing.assert_array_equal(opening.open_source(spec, "train").labels(), first)
    assert kept.stat().st_mtime_ns == before


def test_a_damaged_record_is_one_that_cannot_be_read(tmp_path):
    noise = np.random.default_rng(0).bytes
    for label, name in ((True, "labelled"), (False, "unlabelled")):
        records = [
            example(image=png(i), other=noise(3000), **{"label": i % 2} if label else {})
            for i in range(40)
        ]
        path = written(tmp_path / name, records)
        data = bytearray(path.read_bytes())
        middle = 70_000  # of a record; blocks of 64 KiB begin with headers
        data[middle : middle + 40] = bytes(40)
        path.write_bytes(data)
    with pytest.raises(InputError, match=f"{tmp_path}/labelled: a record cannot be read: Corr"):
        opening.open_splits(f"arrayrecord:{tmp_path}/labelled")
    train, _ = opening.open_splits(f"arrayrecord:{tmp_path}/unlabelled", val_fraction=0.0)
    damaged = []
    for i in range(40):
        try:
            assert train.read(i) == (png(i), -1)
        except OSError as error:
            damaged.append(error)
    assert len(damaged) == 1 and "hash mismatch" in damaged[0].strerror
    (tmp_path / "unlabelled").unlink()
    array_records._reader.cache_clear()
    with pytest.raises(FileNotFoundError):
        train.read(0)


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(
        array_records, "_reader", functools.lru_cache(3)(array_records._reader.__wrapped__)
    )
    for i in range(20):
        written(tmp_path / f"{i:02d}", [example(image=png(i), label=i % 2)])
    before = len(os.listdir("/proc/self/fd"))
    train, _ = opening.open_splits(f"arrayrecord:{tmp_path}/*", val_fraction=0.0)
    assert read_all(train) == [(png(i), i % 2) for i in range(20)]
    assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_files_for_testing_that_lack_labels_are_not_used(tmp_path):
    files(tmp_path)
    unlabelled = [example(image=png(i)) for i in range(3)]
    written(tmp_path / "test.array_record", unlabelled)
    train, val = opening.open_splits(f"arrayrecord:{tmp_path}", val_fraction=0.25)
    assert train.class_names == val.class_names == ("10", "11", "12")
    assert sorted(read_all(train) + read_all(val)) == sorted((png(i), i % 3) for i in range(12))
    (note,) = train.notes
    assert note.endswith("test.array_record record 0 has no label")
    (tmp_path / "test.array_record").rename(tmp_path / "val.array_record")
    train, val = opening.open_splits(f"arrayrecord:{tmp_path}")
    assert train.labelled and read_all(val) == [(png(i), -1) for i in range(3)]
    assert val.unlabelled_because == "val.array_record record 0 has no label"


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_a_position_is_its_step_for_any_start_workers_and_processes(tmp_path, workers):
    train = opening.open_source(f"arrayrecord:{files(tmp_path)}", "train")
    assert_a_position_is_its_step(pickle.loads(pickle.dumps(train)), workers)


def test_identity_is_that_of_the_files_wherever_they_lie(tmp_path):
    specs = [f"arrayrecord:{files(tmp_path / name)}" for name in "ab"]
    one, other = (identity.of_splits(*opening.open_splits(spec)) for spec in specs)
    assert one == other


def test_bad_files_are_refused_in_a_line(tmp_path):
    good = (files(tmp_path / "good") / "train.array_record-00000-of-00002").read_bytes()
    (tmp_path / "cut").write_bytes(good[: len(good) // 2])
    (tmp_path / "text").write_text("no records" * 100)
    (tmp_path / "empty").touch()
    written(tmp_path / "pickle", [pickle.dumps({"image": png(1)})])
    written(tmp_path / "none", [])
    written(tmp_path / "broken", [example(image=b"no image", label=i) for i in range(2)])
    written(tmp_path / "dog", [example(image=png(1), label=99)])
    cases = {
        "gone": "there is no file",
        "good/*-{00000..00002}-of-00002": "there is no file .*00002-of-00002",
        "cut": "damaged, cut short or no file of array_record",
        "text": "damaged, cut short or no file of array_record",
        "empty": "damaged, cut short or no file of array_record",
        "pickle": "no tf.train.Example",
        "none": "no record is for training",
        "broken": "none of the 2 images of arrayrecord:.* can be read",
        f"good,val={tmp_path}/dog": "no training image has the label '99'",
    }
    for place, words in cases.items():
        with pytest.raises(InputError, match=words) as raised:
            opening.open_splits(f"arrayrecord:{tmp_path}/{place}")
        assert "\n" not in str(raised.value)
