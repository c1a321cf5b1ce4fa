import pickle

import numpy as np
from test_data_annotations import fails, names, red, write

from dppmask_jax.data.sources import caltech256, opening
from dppmask_jax.data.sources.holdout import held_out_of_all

INSIDE = "256_ObjectCategories"
COUNTS = {"001.ak47": 7, "002.american-flag": 4, "256.toad": 4}


def write_set(root, counts=COUNTS):
    """Images whose red is their number; clutter and strangers among them."""
    for name, count in counts.items():
        for i in range(1, count + 1):
            write(root / INSIDE / name / f"{name[:3]}_{i:04d}.jpg", 10 * i)
    write(root / INSIDE / "257.clutter" / "257_0001.jpg")
    write(root / INSIDE / "001.ak47" / "copies" / "001_0001.jpg")
    write(root / INSIDE / "001.ak47" / "002_0001.jpg")
    (root / INSIDE / "256.toad" / "RENAME2").write_text("mv")
    return f"caltech256:{root}"


def test_classes_images_and_what_is_left_out(tmp_path):
    train, val = opening.open_splits(write_set(tmp_path), val_fraction=0.2)
    assert train.class_names == val.class_names == tuple(COUNTS)
    assert (len(train), len(val)) == (12, 3)
    every = names(train, tmp_path) + names(val, tmp_path)
    wanted = [
        f"{INSIDE}/{n}/{n[:3]}_{i:04d}.jpg" for n, c in COUNTS.items() for i in range(1, c + 1)
    ]
    assert sorted(every) == wanted
    assert train.notes == val.notes == (
        "257.clutter is left out",
        "15 images of 3 classes; all of Caltech-256 without clutter is 29,780 of 256",
    )  # fmt: skip
    copy = pickle.loads(pickle.dumps(train))
    for i, name in enumerate(names(train, tmp_path)):
        label = list(COUNTS).index(name.split("/")[1])
        assert copy.read(i)[1] == label == train.labels()[i]
        assert abs(red(train, i) - 10 * int(name[-8:-4])) <= 2  # JPEG's rounding


def test_the_folder_itself_will_do_and_its_place_does_not_matter(tmp_path):
    outer = opening.open_splits(write_set(tmp_path / "a"), val_fraction=0.2)
    write_set(tmp_path / "b")
    inner = opening.open_splits(f"caltech256:{tmp_path}/b/{INSIDE}", val_fraction=0.2)
    for one, other in zip(outer, inner, strict=True):
        assert one.identity() == other.identity()
        assert names(one, tmp_path / "a") == names(other, tmp_path / "b")
    assert opening.open_splits(f"caltech256:{tmp_path}/a", val_fraction=0.0)[1] is None


def test_the_published_set_is_split_as_in_the_paper():
    # 256 classes of 80 images and more: 29,780 in all.
    counts = np.full(256, 116)
    counts[:84] += 1
    assert counts.sum() == caltech256.NUM_IMAGES and len(counts) == caltech256.NUM_CLASSES
    labels = np.repeat(np.arange(256), counts)
    out = held_out_of_all([str(i).encode() for i in range(len(labels))], labels, 0.2)
    assert (np.sum(~out), np.sum(out)) == (23_824, 5_956)
    of_class = np.bincount(labels[out], minlength=256)
    assert np.abs(of_class - 0.2 * counts).max() < 1
    # Neither the first of a class nor the last: the mean place is in the middle.
    place = np.concatenate([np.arange(count) / (count - 1) for count in counts])
    assert abs(np.mean(place[out]) - 0.5) < 4 * 0.29 / 5956**0.5


def test_never_all_of_a_class_is_held_out():
    out = held_out_of_all([b"a", b"b", b"c"], np.array([0, 1, 1]), 0.9)
    assert not out[0] and out[1:].sum() == 1


def test_wrong_folders(tmp_path):
    fails(f"caltech256:{tmp_path}/gone", r"cannot list .*gone")
    (tmp_path / "bare").mkdir()
    fails(
        f"caltech256:{tmp_path}/bare", r"bare has no folder such as 001\.ak47; caltech256:PATH is"
    )
    write(tmp_path / "none" / "003.backpack" / "backpack.jpg")
    fails(f"caltech256:{tmp_path}/none", r"003\.backpack has no image such as 003_0001\.jpg; add")
    (tmp_path / "torn" / "003.backpack").mkdir(parents=True)
    (tmp_path / "torn" / "003.backpack" / "003_0001.jpg").write_text("no image")
    fails(f"caltech256:{tmp_path}/torn", r"none of the 1 images below .*torn can be read")
