import multiprocessing
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds

from dppmask_jax.data.images import decode
from dppmask_jax.data.sources import shapes
from dppmask_jax.errors import InputError

SMALL = shapes.Options(size=32, train=30, val=12, seed=3)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return cache, shapes.prepare(SMALL, cache)


def records(folder, split):
    return tfds.builder_from_directory(folder).as_data_source(
        split, decoders={"image": tfds.decode.SkipDecoding(), "mask": tfds.decode.SkipDecoding()}
    )


def test_scene_depends_on_seed_split_and_index_only():
    first = shapes.draw(SMALL, "train", 5)
    again = shapes.draw(SMALL._replace(train=7, val=1), "train", 5)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    for other in (
        shapes.draw(SMALL, "train", 6),
        shapes.draw(SMALL, "val", 5),
        shapes.draw(SMALL._replace(seed=4), "train", 5),
    ):
        assert np.any(first.image != other.image)


def test_scene_is_the_same_at_every_size():
    small, large = (shapes.draw(SMALL._replace(size=size), "train", 1) for size in (32, 128))
    assert (small.label, small.background) == (large.label, large.background)
    np.testing.assert_array_equal(small.attributes, large.attributes)
    shrunk = large.mask.reshape(32, 4, 32, 4).mean(axis=(1, 3)) >= 127.5
    assert np.mean(shrunk == (small.mask == 255)) > 0.98


def test_shapes_types_and_ranges():
    scene = shapes.draw(SMALL, "val", 0)
    assert scene.image.shape == (32, 32, 3) and scene.image.dtype == np.uint8
    assert scene.mask.shape == (32, 32) and set(np.unique(scene.mask)) == {0, 255}
    assert scene.attributes.shape == (24,) and scene.attributes.dtype == np.uint8
    assert len(shapes.ATTRIBUTES) == 24 and len(shapes.CLASSES) == len(shapes.BACKGROUNDS)


def test_large_object_gives_the_label_and_every_object_an_attribute():
    counts = []
    for index in range(200):
        rng = np.random.default_rng(index)
        label = int(rng.integers(len(shapes.CLASSES)))
        things = shapes._place(rng, label)
        counts.append(len(things))
        largest = max(things, key=lambda thing: thing.extent)
        name = f"{shapes.PATTERNS[largest.pattern]} {shapes.SHAPES[largest.shape]}"
        assert name == shapes.CLASSES[label]
        assert 0.35 <= largest.extent <= 0.6
        for thing in things:
            reach = shapes._reach(thing.shape, thing.extent)
            assert reach <= thing.x <= 1 - reach and reach <= thing.y <= 1 - reach
        for i, one in enumerate(things):
            for other in things[:i]:
                distance = np.hypot(one.x - other.x, one.y - other.y)
                reach = shapes._reach(one.shape, one.extent)
                assert distance > reach + shapes._reach(other.shape, other.extent)
    assert set(counts) == {1, 2, 3, 4}


def test_attributes_and_mask_are_those_of_the_objects(monkeypatch):
    # One scene with known objects: a large red square and a small blue disc.
    square = shapes._Object(0, 0, 0, 0.5, 0.35, 0.35)
    disc = shapes._Object(1, 0, 5, 0.2, 0.8, 0.8)
    monkeypatch.setattr(shapes, "_place", lambda rng, label: [square, disc])
    scene = shapes.draw(SMALL._replace(size=100), "train", 0)
    present = [shapes.ATTRIBUTES[i] for i in np.flatnonzero(scene.attributes)]
    assert present == ["red square", "blue disc"]
    area = 0.5**2 + np.pi * 0.1**2
    assert np.mean(scene.mask == 255) == pytest.approx(area, abs=0.003)
    assert scene.mask[35, 35] == scene.mask[80, 80] == 255
    assert scene.mask[5, 95] == scene.mask[95, 5] == 0
    red, blue = scene.image[35, 35].astype(int), scene.image[80, 80].astype(int)
    assert red[0] > red[1] + 40 and blue[2] > blue[0] + 40


def test_each_shape_covers_its_area():
    y, x = np.mgrid[0:200, 0:200] / 200 + 1 / 400
    for number, area in ((0, 0.4**2), (1, np.pi * 0.2**2), (2, np.sqrt(3) / 4 * 0.4**2)):
        thing = shapes._Object(number, 0, 0, 0.4, 0.5, 0.5)
        _, coverage = shapes._paint(np.random.default_rng(0), thing, x, y)
        assert coverage.mean() == pytest.approx(area, rel=0.01)


def test_patterns_differ_but_not_in_their_mean():
    y, x = np.mgrid[0:64, 0:64] / 64 + 1 / 128
    means, swings = [], []
    for pattern in range(3):
        paints = [
            shapes._paint(
                np.random.default_rng(seed), shapes._Object(1, pattern, 7, 0.6, 0.5, 0.5), x, y
            )[0]
            for seed in range(60)
        ]
        means.append(np.mean(paints))
        swings.append(np.mean([paint.std(axis=(0, 1)).mean() for paint in paints]))
    assert max(means) - min(means) < 0.06 * np.mean(means)
    assert swings[0] < 1 and min(swings[1:]) > 50


def test_background_goes_with_the_class_in_some_scenes():
    scenes = [shapes.draw(SMALL._replace(size=16), "train", i) for i in range(500)]
    matching = np.mean([scene.background == scene.label for scene in scenes])
    assert matching == pytest.approx(shapes.BACKGROUND_MATCH, abs=0.08)
    assert {scene.label for scene in scenes} == set(range(len(shapes.CLASSES)))
    assert {scene.background for scene in scenes} == set(range(len(shapes.BACKGROUNDS)))


def test_texture_families_have_the_same_mean_and_contrast():
    y, x = np.mgrid[0:64, 0:64] / 64 + 1 / 128
    for family in range(len(shapes.BACKGROUNDS)):
        drawn = [
            shapes._background(np.random.default_rng(seed), family, x, y) for seed in range(80)
        ]
        assert np.mean(drawn) == pytest.approx(120, abs=8)
        assert np.mean([image.std(axis=(0, 1)) for image in drawn]) == pytest.approx(27, abs=4)


def test_prepared_records_are_the_drawn_scenes(prepared):
    _, folder = prepared
    for split, count in (("train", 30), ("val", 12)):
        stored = records(folder, split)
        assert len(stored) == count
        for index in (0, 7, count - 1):
            scene, record = shapes.draw(SMALL, split, index), stored[index]
            np.testing.assert_array_equal(decode.decode(record["image"]), scene.image)
            np.testing.assert_array_equal(decode.decode(record["mask"])[..., 0], scene.mask)
            np.testing.assert_array_equal(record["attributes"], scene.attributes)
            assert (record["label"], record["background"]) == (scene.label, scene.background)


def test_cache_is_used_and_options_have_folders_of_their_own(prepared, monkeypatch):
    cache, folder = prepared
    monkeypatch.setattr(shapes, "draw", None)  # would fail if anything were drawn
    assert shapes.prepare(SMALL, cache) == folder
    monkeypatch.setenv("DPPMASK_CACHE", str(cache))
    assert shapes.prepare(SMALL) == folder
    with pytest.raises(TypeError):
        shapes.prepare(SMALL._replace(seed=4), cache)


def test_two_builds_are_identical(prepared, tmp_path):
    _, folder = prepared
    again = shapes.prepare(SMALL, tmp_path)
    for split in ("train", "val"):
        ours, theirs = records(folder, split), records(again, split)
        for one, other in zip(ours, theirs, strict=True):
            assert one["image"] == other["image"] and one["label"] == other["label"]


def test_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    draw = shapes.draw

    def interrupt(options, split, index):
        if index == 20:
            raise KeyboardInterrupt
        return draw(options, split, index)

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "draw", interrupt)
        with pytest.raises(KeyboardInterrupt):
            shapes.prepare(SMALL, tmp_path)
    assert not list(tmp_path.rglob("*record*"))
    assert len(records(shapes.prepare(SMALL, tmp_path), "train")) == 30


def test_folder_of_a_killed_process_is_cleared_away(tmp_path):
    for name, age in ((".building-old", 2 * 24 * 3600), (".building-new", 60)):
        (tmp_path / name).mkdir()
        then = (tmp_path / name).stat().st_mtime - age
        os.utime(tmp_path / name, (then, then))
    shapes.prepare(SMALL._replace(train=1, val=1), tmp_path)
    assert not (tmp_path / ".building-old").exists() and (tmp_path / ".building-new").exists()


def test_processes_may_prepare_at_once(tmp_path):
    options = SMALL._replace(train=60)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        folders = pool.starmap(shapes.prepare, [(options, tmp_path)] * 2, chunksize=1)
    assert folders[0] == folders[1] and len(records(folders[0], "train")) == 60
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


@pytest.mark.parametrize("wrong", [{"size": 8}, {"train": 0}, {"val": 0}, {"seed": -1}])
def test_options_out_of_range(wrong, tmp_path):
    with pytest.raises(InputError, match=next(iter(wrong))):
        shapes.prepare(SMALL._replace(**wrong), tmp_path)


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="DPPMASK_CACHE"):
        shapes.prepare(SMALL, tmp_path / "file")
