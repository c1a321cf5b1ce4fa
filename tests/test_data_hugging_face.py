import json
import pickle

import datasets
import numpy as np
import pytest
from small_sources import assert_a_position_is_its_step, png, read_all

from dppmask_jax.data.sources import hugging_face, identity, opening
from dppmask_jax.errors import InputError

datasets.config.HF_HUB_OFFLINE = True
NAMES = ["cat", "cow", "dog"]


def rows(count, first=0, image="image", label="label", labels=None, **more):
    """A data set of `count` images; labels go round."""
    columns = {
        image: [{"bytes": png(first + i), "path": None} for i in range(count)],
        label: labels or [i % 3 for i in range(count)],
        **{name: [kind[1]] * count for name, kind in more.items()},
    }
    kind = datasets.ClassLabel(names=NAMES)
    kinds = {image: datasets.Image(), label: kind} | {name: k for name, (k, _) in more.items()}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def saved(path, **splits):
    datasets.disable_progress_bars()
    datasets.DatasetDict(splits).save_to_disk(path)
    return f"hf:{path}"


@pytest.fixture
def both(tmp_path):
    return saved(tmp_path / "both", train=rows(9), validation=rows(4, 50), test=rows(4, 70))


def test_splits_columns_and_classes_of_a_data_set_on_disk(both):
    train, val = opening.open_splits(both)
    assert read_all(train) == [(png(i), i % 3) for i in range(9)]
    assert read_all(val) == [(png(50 + i), i % 3) for i in range(4)]
    assert train.class_names == val.class_names == tuple(NAMES)
    assert train.name(3) == f"{both} train row 3"
    np.testing.assert_array_equal(val.labels(), [0, 1, 2, 0])
    assert read_all(pickle.loads(pickle.dumps(val))) == read_all(val)
    _, test = opening.open_splits(f"{both},val=test")
    assert test.read(0)[0] == png(70)
    assert opening.open_splits(f"{both},label=none")[0].read(1) == (png(1), -1)


def typed(count, label, kind, first=0):
    """A data set of `count` images whose labels are of some type."""
    images = [{"bytes": png(first + i), "path": None} for i in range(count)]
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    return datasets.Dataset.from_dict({"image": images, "label": label}, features=features)


def test_splits_share_classes_by_their_names(tmp_path):
    def of(*names):
        return datasets.ClassLabel(names=list(names))

    train = typed(4, [0, 1, 2, 0], of("dog", "cat", "cow"))
    for name, other in {
        "order": typed(3, [0, 1, 0], of("cat", "dog")),
        "text": typed(3, ["cat", "dog", "cat"], datasets.Value("string")),
        "more": typed(3, [1, 2, 1], of("ant", "cat", "dog")),
    }.items():
        first, second = opening.open_splits(saved(tmp_path / name, train=train, validation=other))
        assert first.class_names == second.class_names == ("dog", "cat", "cow")
        assert first.labels().tolist() == [0, 1, 2, 0] and second.labels().tolist() == [1, 0, 1]
        assert [label for _, label in read_all(second)] == [1, 0, 1]
    for name, other in {
        "new": typed(3, [0, 1, 2], of("cat", "dog", "ant")),
        "new_text": typed(3, ["cat", "dog", "ant"], datasets.Value("string")),
    }.items():
        with pytest.raises(InputError, match="no training image has the label 'ant'"):
            opening.open_splits(saved(tmp_path / name, train=train, validation=other))


def test_a_test_split_without_labels_is_told(tmp_path):
    unlabelled = rows(3, 50, labels=[-1] * 3)
    for name, test in {"a": unlabelled, "b": unlabelled.remove_columns("label")}.items():
        train, val = opening.open_splits(saved(tmp_path / name, train=rows(30), test=test))
        assert train.labelled and len(train) + len(val) == 30
        (note,) = val.notes
        assert note.endswith("test row 0 has no label") and "a share of the training images" in note
    train, val = opening.open_splits(saved(tmp_path / "c", train=rows(9), validation=unlabelled))
    assert train.labelled and not val.labelled and len(val) == 3


def test_columns_of_other_types_hold_no_labels(tmp_path):
    real, several = datasets.Value("float32"), datasets.List(datasets.Value("int64"))
    for name, values, kind in (
        ("float", [0.5, 1.5], real),
        ("list", [[0], [1]], several),
        ("image", [{"bytes": png(i), "path": None} for i in range(2)], datasets.Image()),
    ):
        spec = saved(tmp_path / name, train=typed(2, values, kind))
        with pytest.raises(InputError, match=r"the column label of train holds .*label=none"):
            opening.open_splits(spec)
        assert not opening.open_source(f"{spec},label=none", "train", val_fraction=0).labelled
    spec = saved(tmp_path / "bool", train=typed(2, [True, False], datasets.Value("bool")))
    assert opening.open_source(spec, "train", val_fraction=0).class_names == ("False", "True")


def test_without_a_split_for_validation_a_share_is_held_out(tmp_path):
    rows(30).save_to_disk(tmp_path / "one")
    train, val = opening.open_splits(f"hf:{tmp_path}/one", val_fraction=0.2)
    assert (len(train), len(val)) == (24, 6) and np.bincount(val.labels()).tolist() == [2, 2, 2]
    assert sorted(read_all(train) + read_all(val)) == sorted((png(i), i % 3) for i in range(30))
    spec = saved(tmp_path / "unlabelled", train=rows(30), test=rows(3, 50, labels=[-1] * 3))
    train, val = opening.open_splits(spec, val_fraction=0.2)
    assert len(val) == 6 and val.labelled


def test_columns_that_can_be_told_and_those_that_cannot(tmp_path):
    coarse = (datasets.ClassLabel(names=["a", "b"]), 0)
    spec = saved(tmp_path / "a", train=rows(6, image="img", label="fine"))
    assert opening.open_source(spec, "train", val_fraction=0.0).read(1) == (png(1), 1)
    spec = saved(tmp_path / "b", train=rows(6, image="img", label="fine", coarse=coarse))
    with pytest.raises(
        InputError, match=r"which column is the label\? .*fine \(ClassLabel\), coarse"
    ):
        opening.open_splits(spec)
    train = opening.open_source(f"{spec},label=coarse", "train", val_fraction=0.0)
    assert train.class_names == ("a", "b") and train.read(4) == (png(4), 0)
    texts = datasets.Dataset.from_dict(
        {"jpg": [png(i) for i in range(4)], "label": ["u", "v", "u", "v"]},
        features=datasets.Features(
            {"jpg": datasets.Value("binary"), "label": datasets.Value("string")}
        ),
    )
    spec = saved(tmp_path / "c", train=texts)
    with pytest.raises(InputError, match=r"which column is the image\? .*jpg \(Value\), label"):
        opening.open_splits(spec)
    train = opening.open_source(f"{spec},image=jpg", "train", val_fraction=0.0)
    assert train.class_names == ("u", "v") and read_all(train) == [
        (png(i), i % 2) for i in range(4)
    ]


@pytest.mark.slow
def test_a_folder_that_load_dataset_reads_and_images_that_are_paths(tmp_path):
    for i in range(6):
        path = tmp_path / f"set/train/{'ab'[i % 2]}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    train = opening.open_source(
        f"hf:{tmp_path}/set", "train", val_fraction=0.0, data_dir=str(tmp_path / "cache")
    )
    assert train.class_names == ("a", "b")
    assert sorted(read_all(train)) == sorted((png(i), i % 2) for i in range(6))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_position_is_its_step_for_any_start_workers_and_processes(both, workers):
    train = opening.open_source(both, "train")
    assert_a_position_is_its_step(pickle.loads(pickle.dumps(train)), workers)


def test_identity_is_that_of_sizes_and_labels_wherever_they_lie(both, tmp_path):
    splits = {"train": rows(9), "validation": rows(4, 50)}
    other = identity.of_splits(*opening.open_splits(saved(tmp_path / "other", **splits)))
    assert identity.of_splits(*opening.open_splits(both)) == other
    changed = saved(tmp_path / "changed", **splits | {"train": rows(9, 1)})
    assert identity.of_splits(*opening.open_splits(changed)) != other


def test_identity_sees_images_that_lie_apart(tmp_path, monkeypatch):
    """As load_dataset leaves them; save_to_disk takes their bytes along."""

    def identity_of(*names):
        columns = {"image": [str(tmp_path / name) for name in names], "label": [0, 1]}
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
        made = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
        assert made.data.column("image").to_pylist()[0]["bytes"] is None
        monkeypatch.setattr(hugging_face, "_loaded", lambda *about: {"train": made})
        return opening.open_source("hf:made", "train", val_fraction=0.0).identity()

    for name in ("0.png", "1.png", "2.png", "other/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    first = identity_of("0.png", "1.png")
    assert identity_of("0.png", "other/1.png") == first
    assert identity_of("0.png", "2.png") != first
    (tmp_path / "1.png").write_bytes(png(1) + b"more")
    assert identity_of("0.png", "1.png") != first


def test_faults_of_our_own_keep_their_traceback(both, monkeypatch):
    def broken(*arguments, **more):
        raise AssertionError("a fault")

    monkeypatch.setattr(datasets, "load_from_disk", broken)
    with pytest.raises(AssertionError, match="a fault"):
        opening.open_splits(both)


def test_bad_data_sets_are_refused_in_a_line(both, tmp_path):
    kinds = datasets.Features({"image": datasets.Image()})
    images = {"image": [{"bytes": b"no image", "path": None}] * 3}
    broken = datasets.Dataset.from_dict(images, features=kinds)
    (tmp_path / "half").mkdir()
    (tmp_path / "half/dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    cases = {
        f"hf:{tmp_path}/gone": "cannot open hf:.*gone",
        f"hf:{tmp_path}/half": "cannot open hf:.*half",
        f"{both},val=dev": "no split dev, only train, validation, test",
        f"{both},image=img": "no column img, only image, label",
        f"{both},image=label": "holds ClassLabel.*no images",
        f"{both},column=image": "unknown option 'column=image'",
        saved(tmp_path / "ab", a=rows(3), b=rows(3)): "which of its splits a, b is for training",
        saved(tmp_path / "broken", train=broken): "none of the 2 images of hf:.* can be read",
    }
    for spec, words in cases.items():
        with pytest.raises(InputError, match=words) as raised:
            opening.open_splits(spec)
        assert "\n" not in str(raised.value)
