import gc
import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
from small_sources import assert_a_position_is_its_step, png, read_all

from dppmask_jax.data.sources import cache, identity, opening, packed
from dppmask_jax.errors import InputError
from dppmask_jax.pixel_format import Pixels


def shard(path, samples):
    """A shard of [(key, {extension: bytes or text})]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples:
            for extension, data in members.items():
                data = data.encode() if isinstance(data, str) else data
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def shards(folder, name="train", count=3, first=0):
    for number in range(count):
        samples = [
            (f"{10 * number + i:05d}", {"png": png(first + 10 * number + i), "cls": str(i % 3)})
            for i in range(4)
        ]
        shard(folder / f"{name}-{number:03d}.tar", samples)
    return folder


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset's reader closes no shard
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_samples_of_the_webdataset_package(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "train-%06d.tar"), maxcount=4, verbose=0) as sink:
        for i in range(10):
            sink.write({"__key__": f"sample/{i:04d}", "png": png(i), "cls": i % 3})
    train, val = opening.open_splits(f"wds:{tmp_path}/train-{{000000..000002}}.tar", val_fraction=0)
    assert val is None and train.class_names == ("0", "1", "2")
    assert read_all(train) == [(png(i), i % 3) for i in range(10)]
    assert train.name(4) == f"{tmp_path}/train-000001.tar/sample/0004.png"
    theirs = webdataset.WebDataset(str(tmp_path / "train-{000000..000002}.tar"), shardshuffle=False)
    assert [sample["png"] for sample in theirs] == [train.read(i)[0] for i in range(10)]
    del theirs
    gc.collect()


@pytest.mark.parametrize("pattern", ["", "/*.tar", "/train-{000..002}.tar", "/train-00{0,1,2}.tar"])
def test_a_pattern_names_shards(tmp_path, pattern):
    shards(tmp_path)
    train, val = opening.open_splits(f"wds:{tmp_path}{pattern}", val_fraction=0.25)
    assert len(train) == 8 and len(val) == 4 and train.labelled and val.labelled
    assert sorted(d for d, _ in read_all(train) + read_all(val)) == sorted(
        png(10 * n + i) for n in range(3) for i in range(4)
    )


def test_splits_by_words_in_names_or_as_they_are_named(tmp_path):
    shards(tmp_path)
    shards(tmp_path, "imagenet-validation", 1, first=50)
    shards(tmp_path, "test", 1, first=70)
    train, val = opening.open_splits(f"wds:{tmp_path}")
    assert len(train) == 12 and [data for data, _ in read_all(val)] == [
        png(50 + i) for i in range(4)
    ]
    assert train.notes == (f"1 file not used, such as {tmp_path}/test-000.tar",)
    train, val = opening.open_splits(f"wds:{tmp_path}/train-*.tar,val={tmp_path}/test-000.tar")
    assert len(train) == 12 and [data for data, _ in read_all(val)] == [
        png(70 + i) for i in range(4)
    ]
    folders = tmp_path / "folders"
    shards(folders / "train", "part"), shards(folders / "val", "part", 1)
    train, val = opening.open_splits(f"wds:{folders}/{{train,val}}/*.tar")
    assert (len(train), len(val)) == (12, 4)


def test_where_labels_come_from(tmp_path):
    def opened(samples, options=""):
        path = shard(tmp_path / "a.tar", samples)
        return opening.open_source(f"wds:{path}{options}", "train", val_fraction=0.0)

    jpg = [{"png": png(i)} for i in range(3)]
    of_json = [
        ("abc"[i], jpg[i] | {"json": json.dumps({"label": "xyz"[i], "n": 10 - i})})
        for i in range(3)
    ]
    assert opened(of_json).class_names == ("x", "y", "z")
    assert opened(of_json, ",label=json.n").class_names == ("8", "9", "10")
    assert not opened(of_json, ",label=none").labelled
    texts = [("abc"[i], jpg[i] | {"txt": "uvu"[i] + "\n"}) for i in range(3)]
    assert opened(texts).unlabelled_because == f"wds:{tmp_path}/a.tar has no labels"
    assert [label for _, label in read_all(opened(texts, ",label=txt"))] == [0, 1, 0]
    some = [("a", jpg[0] | {"cls": "1"}), ("b", jpg[1])]
    assert "a.tar/b.png has no label" in opened(some).unlabelled_because


def unlabelled(path):
    return shard(path, [(f"u{i}", {"png": png(60 + i)}) for i in range(3)])


def test_shards_for_testing_without_labels_are_not_used(tmp_path):
    shards(tmp_path)
    path = unlabelled(tmp_path / "test-000.tar")
    train, val = opening.open_splits(f"wds:{tmp_path}", val_fraction=0.25)
    assert train.class_names == val.class_names == ("0", "1", "2")
    assert (len(train), len(val)) == (8, 4)
    own = {png(10 * n + i): i % 3 for n in range(3) for i in range(4)}
    assert dict(read_all(train) + read_all(val)) == own
    assert train.notes == (
        f"a share of the training images is for validation, since {path}/u0.png has no label",
    )


def test_validation_without_labels_leaves_those_of_training(tmp_path):
    shards(tmp_path)
    path = unlabelled(tmp_path / "val-000.tar")
    for spec in (f"wds:{tmp_path}", f"wds:{tmp_path}/train-*.tar,val={path}"):
        train, val = opening.open_splits(spec)
        assert (len(train), len(val)) == (12, 3)
        assert train.class_names == ("0", "1", "2") and train.labels().tolist() == [0, 1, 2, 0] * 3
        assert not val.labelled and val.unlabelled_because == f"{path}/u0.png has no label"


def test_json_counts_where_there_is_no_other_label(tmp_path):
    def opened(members, options=""):
        samples = [(str(i), {"png": png(i)} | each) for i, each in enumerate(members)]
        path = shard(tmp_path / "a.tar", samples)
        return opening.open_source(f"wds:{path}{options}", "train", val_fraction=0.0)

    deep = "[" * 100_000
    broken_beside_cls = [{"json": text, "cls": "ab"[i]} for i, text in enumerate(["{", deep])]
    assert opened(broken_beside_cls).class_names == ("a", "b")
    assert opened([{"json": '{"label": true}'}, {"json": '{"label": "x"}'}]).class_names == (
        "True",
        "x",
    )
    cases = {
        deep: "0.json is no JSON of data: it is nested too deeply",
        '{"label": {"a": 1}}': "0.json has dict for label, not a text or a whole number",
        '{"label": [1]}': "has list for label",
        '{"label": 0.5}': "has float for label",
        '{"label": "%s"}' % ("9" * 5000): "has 5,000 characters for label",
        '{"label": %s}' % ("9" * 5000): "0.json is no JSON",
    }
    for text, words in cases.items():
        with pytest.raises(InputError, match=words):
            opened([{"json": text}])
        assert not opened([{"json": text}], ",label=none").labelled
    with pytest.raises(InputError, match=r"0\.cls has 5,000 bytes, more than 1,000"):
        opened([{"cls": "9" * 5000}])


def test_headers_are_read_once_and_again_where_a_shard_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("DPPMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_KEPT_FROM", 5)
    folder, read, members_of = shards(tmp_path / "set"), [], packed.members_of_tar

    def noted(path):
        read.append(path)
        return members_of(path)

    def opened():
        read.clear()
        train, _ = opening.open_splits(f"wds:{folder}", val_fraction=0)
        return read_all(train), sorted(os.path.basename(path) for path in read)

    monkeypatch.setattr(packed, "members_of_tar", noted)
    names = [f"train-{number:03d}.tar" for number in range(3)]
    first, of_first = opened()
    assert of_first == names and len(list((tmp_path / "cache/files").iterdir())) == 1
    assert opened() == (first, [])
    last = folder / names[-1]
    stamp = last.stat()
    os.utime(last, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert opened() == (first, names) and opened() == (first, [])
    shard(last, [(f"new{i:02}", {"png": png(90 + i), "cls": "2"}) for i in range(12)])
    os.utime(last, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert last.stat().st_size != stamp.st_size
    assert opened() == ([*first[:8], *((png(90 + i), 2) for i in range(12))], names)


def test_brackets_and_braces_in_the_names_of_folders(tmp_path):
    for name in ("data[1]", "data{1}", "a{b,c}"):
        folder = shards(tmp_path / name)
        for place in ("", "/*.tar", "/train-00{0..2}.tar"):
            if name.startswith("a{") and place:
                continue  # braces with a comma are a pattern
            train, _ = opening.open_splits(f"wds:{folder}{place}", val_fraction=0)
            assert len(train) == 12, (name, place)
        train, _ = opening.open_splits(f"wds:{folder}/train-000.tar", val_fraction=0)
        assert len(train) == 4


def test_a_pattern_that_names_too_many_files_is_refused_at_once():
    for pattern in ("/x/{0..999}/{0..999}/{0..999}.tar", "/x/" + "{a,b}" * 64):
        with pytest.raises(InputError, match="names more than 1,000,000 files"):
            opening.open_splits(f"wds:{pattern}")


def test_one_shard_under_two_names_counts_once(tmp_path, monkeypatch):
    monkeypatch.chdir(shards(tmp_path))
    (tmp_path / "link-000.tar").symlink_to("train-000.tar")
    train, _ = opening.open_splits(
        "wds:{train-000.tar,./train-000.tar,link-000.tar}", val_fraction=0
    )
    assert len(train) == 4
    for val in ("./train-000.tar", "link-000.tar"):
        with pytest.raises(InputError, match="is for training and for validation"):
            opening.open_splits(f"wds:train-000.tar,val={val}")


def test_which_member_is_the_image(tmp_path):
    samples = [
        ("a.b", {}),
        ("k/1", {"seg.png": png(9), "PNG": png(1), "txt": "x"}),
        ("2", {"txt": "y"}),
    ]
    path = shard(tmp_path / "a.tar", [*samples, (".hidden", {"png": b""})])
    train, _ = opening.open_splits(f"wds:{path}", val_fraction=0.0)
    assert read_all(train) == [(png(1), -1)] and train.notes == (
        "1 sample without an image left out",
    )
    train, _ = opening.open_splits(f"wds:{path},image=seg.png", val_fraction=0.0)
    assert read_all(train) == [(png(9), -1)]


def test_arrays_are_images_where_pixels_are_kept(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.arange(80, dtype=np.uint16).reshape(4, 5, 4))
    path = shard(tmp_path / "a.tar", [("1", {"npy": buffer.getvalue(), "cls": "0"})])
    pixels = Pixels(4, range=(0.0, 79.0), kept=True)
    train, _ = opening.open_splits(f"wds:{path}", pixels=pixels)
    assert train.read(0)[0].shape == (4, 5, 4) and train.read(0)[0].max() == 1
    with pytest.raises(InputError, match="no sample has an image"):
        opening.open_splits(f"wds:{path}")


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_a_position_is_its_step_for_any_start_workers_and_processes(tmp_path, workers):
    train = opening.open_source(f"wds:{shards(tmp_path)}", "train")
    assert_a_position_is_its_step(pickle.loads(pickle.dumps(train)), workers)


def test_identity_is_that_of_names_sizes_and_labels_wherever_they_lie(tmp_path):
    specs = [f"wds:{shards(tmp_path / name)}" for name in "ab"]
    one, other = (identity.of_splits(*opening.open_splits(spec)) for spec in specs)
    assert one == other
    shards(tmp_path / "b", first=1)
    assert identity.of_splits(*opening.open_splits(specs[1])) != one


def test_bad_shards_are_refused_in_a_line(tmp_path):
    good = shards(tmp_path / "good", count=2)
    data = (good / "train-000.tar").read_bytes()
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "cut.tar").write_bytes(data[:2000])
    (bad / "text.tar").write_text("no tar" * 200)
    (bad / "a.tar.gz").write_bytes(b"\x1f\x8b" + bytes(600))
    image = {"png": png(1)}
    shard(bad / "twice.tar", [("a", image), ("b", image), ("a", image)])
    shard(bad / "two.tar", [("a", image | {"jpg": png(2)})])
    shard(bad / "json.tar", [("a", image | {"json": "{"})])
    shard(bad / "none.tar", [("a", {"txt": "x"})])
    shard(bad / "broken.tar", [("a", {"png": b"no image", "cls": "1"})])
    shard(bad / "dog.tar", [("a", image | {"cls": "dog"})])
    cases = {
        "bad/gone-{00..02}.tar": "no file .*gone-00.tar, the first of 3",
        "bad/*.tgz": "there is no file",
        "bad/empty": "there is no file",
        "good/train-{000..002}.tar": "no file .*train-002.tar; correct",
        "good/train-{002..000}.tar": "no range",
        "bad/cut.tar": "cut short or no tar file",
        "bad/text.tar": "cut short or no tar file",
        "bad/a.tar.gz": "compressed as a whole.*gzip -d",
        "bad/twice.tar": "has a.png twice",
        "bad/two.tar": "has several images, jpg, png; .*image=",
        "bad/json.tar": "a.json is no JSON.*label=none",
        "bad/none.tar": "no sample has an image",
        "bad/broken.tar": "none of the 1 images",
        f"good/*.tar,val={bad}/dog.tar": "no training image has the label 'dog'",
        f"good/*.tar,val={good}/train-000.tar": "is for training and for validation",
        f"good/*.tar,val={bad}/none.tar": "no shard for validation has an image, .*none.tar",
        "good,labl=cls": "unknown option 'labl=cls'",
    }
    for place, words in cases.items():
        with pytest.raises(InputError, match=words) as raised:
            opening.open_splits(f"wds:{tmp_path}/{place}")
        assert "\n" not in str(raised.value)
    for place in ("gs://bucket/a.tar", "pipe:cat a.tar"):
        with pytest.raises(InputError, match="read from disk"):
            opening.open_splits(f"wds:{place}")
