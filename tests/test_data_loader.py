import functools
import io
import itertools
import os
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from dppmask_jax.data import loader
from dppmask_jax.data.images import crops, decode
from dppmask_jax.data.sources import base, opening
from dppmask_jax.errors import InputError

REAL = os.environ.get("DPPMASK_TEST_DATA", "")
COUNT = 22


BROKEN = f"damaged, or of no format that is read ({', '.join(decode.FORMATS)})"


def png(value):
    """A gradient of its own colour, so that crops of it differ as well."""
    pixels = np.zeros((12, 12, 3), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = value, np.arange(12) * 20, 7
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _read(contents, i):
    if contents[i] is None:
        raise FileNotFoundError(f"file {i}")
    return contents[i], i % 3


def _name(i):
    return f"file {i}"


def _targets():
    """Two numbers an image: whether it is even, and whether it is below ten."""
    return np.array([[i % 2 == 0, i < 10] for i in range(COUNT)], np.uint8)


def make_source(count=COUNT, bad=(), missing=()):
    """Image i has red = i, so that a batch shows which images it holds."""
    contents = [b"broken" if i in bad else None if i in missing else png(i) for i in range(count)]
    return base.Source(
        count,
        functools.partial(_read, contents),
        _name,
        class_names=("a", "b", "c"),
        targets=_targets,
        target_names=("even", "small"),
    )


def single(image_size=(8, 8), scale=(0.2, 1.0)):
    return functools.partial(crops.single_view, image_size=image_size, scale=scale)


def stream(source, steps, **options):
    defaults = {"example": single(), "batch_size": 6, "seed": 1}
    options = {"log": lambda line: None} | defaults | options
    with loader.train_stream(source, **options) as batches:
        return list(itertools.islice(batches, steps))


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def join(shards):
    """The batches of all shards put together."""
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shards, strict=True)
    ]


def drawn(batches):
    return np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches])


def test_batches_have_the_promised_arrays():
    source = make_source()
    first, second = stream(source, 2, example=single((8, 10)))
    assert set(first) == {"image", "label", "index", "row", "bad"}
    assert first["image"].shape == (6, 8, 10, 3) and first["image"].dtype == np.uint8
    assert first["label"].dtype == first["index"].dtype == np.int32
    assert first["bad"].dtype == np.bool_ and not first["bad"].any()
    np.testing.assert_array_equal(first["index"], np.arange(6))
    np.testing.assert_array_equal(second["index"], np.arange(6, 12))
    np.testing.assert_array_equal(first["label"], drawn([first]) % 3)
    assert second["row"].dtype == np.int32
    np.testing.assert_array_equal(second["row"], drawn([second]))


def test_every_epoch_is_another_permutation():
    order = drawn(stream(make_source(), 11))  # 66 images: three epochs, across batches
    epochs = order.reshape(3, COUNT)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(COUNT))
        assert np.any(epoch != np.arange(COUNT))
    assert np.any(epochs[0] != epochs[1]) and np.any(epochs[1] != epochs[2])


def test_order_and_crops_depend_on_the_seed():
    source = make_source()
    one, other = stream(source, 4, seed=1), stream(source, 4, seed=2)
    assert np.any(drawn(one) != drawn(other))
    same(one, stream(source, 4, seed=1))
    # Seeds in a row are no shifted copies of each other.
    second_epoch = drawn(stream(source, 8, seed=1))[COUNT : 2 * COUNT]
    assert np.any(second_epoch != drawn(stream(source, 4, seed=2))[:COUNT])


def test_crops_of_an_image_differ_between_epochs():
    batches = stream(make_source(count=1), 2, batch_size=4, example=single(scale=(0.3, 0.9)))
    images = np.concatenate([batch["image"] for batch in batches])
    assert len(np.unique(images.reshape(8, -1), axis=0)) >= 5


def test_crop_is_that_of_the_position():
    source = make_source()
    batch = stream(source, 3)[2]
    for i, position in enumerate(batch["index"]):
        expected = crops.random_crop(
            source.read(int(batch["image"][i, 0, 0, 0]))[0],
            np.random.default_rng((1, int(position))),
            image_size=(8, 8),
            scale=(0.2, 1.0),
        )
        np.testing.assert_array_equal(batch["image"][i], expected)


@pytest.mark.parametrize("start", [1, 3, 4, 9])
def test_starting_in_the_middle(start):
    source = make_source()
    same(stream(source, 3, start_step=start), stream(source, start + 3)[start:])


def test_far_into_the_stream():
    step = 2**31 // 6 + 5
    (batch,) = stream(make_source(), 1, start_step=step)
    positions = step * 6 + np.arange(6)
    np.testing.assert_array_equal(batch["index"], positions % 2**31)
    assert (batch["index"] >= 0).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_several_labels_an_image(workers):
    batches = stream(base.with_targets(make_source(bad=[3])), 4, workers=workers)
    for batch in batches:
        assert batch["label"].shape == (6, 2) and batch["label"].dtype == np.int32
        red = drawn([batch])
        np.testing.assert_array_equal(batch["label"], np.stack([red % 2 == 0, red < 10], axis=1))


@pytest.mark.parametrize("num_shards", [2, 4])
def test_shards_are_parts_of_the_batch(num_shards):
    source = make_source(bad=[4])
    options = {"batch_size": 8, "start_step": 2}
    whole = stream(source, 5, **options)
    parts = [
        stream(source, 5, shard=shard, num_shards=num_shards, **options)
        for shard in range(num_shards)
    ]
    same(whole, join(parts))


def test_workers_and_threads_change_nothing(monkeypatch):
    source = make_source(bad=[5])
    # A shard's part of 96 is read in several chunks, dealt out to the workers in turn.
    options = {"batch_size": 192, "start_step": 1, "shard": 1, "num_shards": 2}
    expected = stream(source, 4, **options)
    same(expected, stream(source, 4, workers=2, **options))
    monkeypatch.setattr(loader, "_cores", lambda: 7)
    same(expected, stream(source, 4, **options))


def test_several_views_of_each_image():
    example = functools.partial(
        crops.multi_crop,
        image_size=(8, 8),
        scale=(0.4, 1.0),
        local_size=(4, 4),
        local_scale=(0.1, 0.4),
        num_local=3,
        flip=True,
    )
    source = make_source(bad=[5])
    options = {"example": example, "batch_size": 64, "start_step": 1}
    whole = stream(source, 3, **options)
    batch = whole[1]
    assert set(batch) == {"global_views", "local_views", "label", "index", "row", "bad"}
    assert batch["global_views"].shape == (64, 2, 8, 8, 3)
    assert batch["local_views"].shape == (64, 3, 4, 4, 3)
    for i, position in enumerate(batch["index"]):
        image = int(batch["global_views"][i, 0, 0, 0, 0])
        expected = example(source.read(image)[0], np.random.default_rng((1, int(position))))
        for name, views in expected.items():
            np.testing.assert_array_equal(batch[name][i], views)
    parts = [
        stream(source, 3, shard=shard, num_shards=2, workers=workers, **options)
        for shard, workers in ((0, 0), (1, 2))
    ]
    same(whole, join(parts))


@pytest.mark.parametrize("batch_size", [1, 31, 64, 37 * 2])
def test_any_batch_size(batch_size):
    batches = stream(make_source(), 2, batch_size=batch_size)
    index = np.concatenate([batch["index"] for batch in batches])
    np.testing.assert_array_equal(index, np.arange(2 * batch_size))


def test_batch_that_does_not_split():
    with pytest.raises(InputError, match="7"):
        loader.train_stream(make_source(), example=single(), batch_size=7, seed=0, num_shards=2)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_replaced_flagged_and_named_once(workers):
    lines = []
    options = {"log": lines.append, "workers": workers}
    batches = stream(make_source(bad=[3, 4], missing=[21]), 11, **options)
    clean = stream(make_source(), 11)
    red, expected = drawn(batches), drawn(clean)
    bad = np.concatenate([batch["bad"] for batch in batches])
    np.testing.assert_array_equal(bad, np.isin(expected, [3, 4, 21]))
    assert bad.sum() == 9  # three epochs
    for wanted, instead in ((3, 5), (4, 5), (21, 0)):  # the next readable one, around the end
        assert set(red[expected == wanted]) == {instead}
    np.testing.assert_array_equal(red[~bad], expected[~bad])
    for batch, other in zip(batches, clean, strict=True):
        np.testing.assert_array_equal(batch["index"], other["index"])
        np.testing.assert_array_equal(batch["label"], drawn([batch]) % 3)
        np.testing.assert_array_equal(batch["row"], drawn([batch]))
        keep = ~batch["bad"]
        np.testing.assert_array_equal(batch["image"][keep], other["image"][keep])
    assert sorted(lines) == [
        "unreadable image: file 21: file 21",  # what the error says
        f"unreadable image: file 3: {BROKEN}",
        f"unreadable image: file 4: {BROKEN}",
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_at_all(workers):
    source = make_source(bad=range(COUNT))
    with pytest.raises(InputError, match=r"22 images in a row are unreadable, .*\(damaged, or"):
        stream(source, 1, workers=workers)


def threads():
    """Those of this process but for the pool that grain makes once and keeps."""
    kept = re.compile(r"\((worker|_handle_\w+)\)")
    return {thread for thread in threading.enumerate() if not kept.search(thread.name)}


@pytest.mark.parametrize("workers", [0, 1])
def test_closing_ends_threads_and_processes(workers):
    before = threads()
    batches = loader.train_stream(
        make_source(), example=single(), batch_size=6, seed=0, workers=workers
    )
    next(batches)
    assert threads() - before
    batches.close()
    batches.close()
    deadline = time.monotonic() + 60
    while threads() - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not threads() - before


SCRIPT = """
import functools, sys
sys.path.insert(0, {tests!r})
from test_data_loader import make_source, single
from dppmask_jax.data import loader

if __name__ == "__main__":
    batches = loader.train_stream(
        make_source(), example=single(), batch_size=6, seed=0, workers={workers}
    )
    print(next(batches)["index"].sum())
    {end}
"""


@pytest.mark.parametrize(
    "workers, end",
    [(0, "pass"), (1, "pass"), pytest.param(1, "batches.close()", marks=pytest.mark.slow)],
)
def test_program_ends_without_a_word(workers, end, tmp_path):
    script = tmp_path / "script.py"
    tests = os.path.dirname(__file__)
    script.write_text(SCRIPT.format(tests=tests, workers=workers, end=end))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "15\n", "")


# Evaluation.


def evaluate(source, **options):
    defaults = {"image_size": (8, 8), "batch_size": 8, "log": lambda line: None}
    return list(loader.eval_batches(source, **(defaults | options)))


def test_one_pass_in_order_with_a_filled_up_end():
    batches = evaluate(make_source())
    assert [len(batch["valid"]) for batch in batches] == [8, 8, 8]
    assert set(batches[0]) == {"image", "label", "index", "valid"}
    valid = np.concatenate([batch["valid"] for batch in batches])
    np.testing.assert_array_equal(valid, np.arange(24) < COUNT)
    np.testing.assert_array_equal(drawn(batches)[valid], np.arange(COUNT))
    index, label = (np.concatenate([b[name] for b in batches]) for name in ("index", "label"))
    assert index.dtype == label.dtype == np.int32
    np.testing.assert_array_equal(index[valid], np.arange(COUNT))
    np.testing.assert_array_equal(label[valid], np.arange(COUNT) % 3)
    assert (batches[-1]["image"][~batches[-1]["valid"]] == 0).all()
    assert (label[~valid] == -1).all() and (index >= 0).all()
    expected = crops.center_crop(make_source().read(9)[0], image_size=(8, 8))
    np.testing.assert_array_equal(batches[1]["image"][1], expected)


def test_chosen_images():
    chosen = np.array([5, 0, 21, 5])
    (batch,) = evaluate(make_source(), indices=chosen, batch_size=4)
    np.testing.assert_array_equal(batch["index"], chosen)
    np.testing.assert_array_equal(drawn([batch]), chosen)
    assert batch["valid"].all()
    assert evaluate(make_source(), indices=[]) == []


def test_another_view_of_the_images():
    (batch,) = evaluate(make_source(), indices=[9], batch_size=1, view=crops.whole_image)
    expected = crops.whole_image(make_source().read(9)[0], image_size=(8, 8))
    np.testing.assert_array_equal(batch["image"][0], expected)
    other = crops.center_crop(make_source().read(9)[0], image_size=(8, 8))
    assert not np.array_equal(expected, other)


def test_unreadable_images_are_not_valid_and_named():
    lines = []
    batches = evaluate(make_source(bad=[6], missing=[9]), log=lines.append)
    valid = np.concatenate([batch["valid"] for batch in batches])
    np.testing.assert_array_equal(np.flatnonzero(~valid[:COUNT]), [6, 9])
    assert lines == [f"unreadable image: file 6: {BROKEN}", "unreadable image: file 9: file 9"]


def test_unreadable_images_are_named_once_over_all_passes_and_splits():
    lines = []
    one = make_source(bad=[6, 7])
    evaluate(one, log=lines.append)
    evaluate(one, log=lines.append)
    stream(one, 3, log=lines.append)
    evaluate(base.with_targets(one), log=lines.append)
    assert lines == [f"unreadable image: file {i}: {BROKEN}" for i in (6, 7)]


def test_evaluation_of_several_labels_an_image():
    batches = evaluate(base.with_targets(make_source(bad=[6], missing=[21])))
    label = np.concatenate([batch["label"] for batch in batches])
    assert label.shape == (24, 2) and label.dtype == np.int32
    expected = _targets().astype(int)
    expected[[6, 21]] = -1
    np.testing.assert_array_equal(label, np.concatenate([expected, np.full((2, 2), -1)]))


def test_evaluation_shards_and_workers():
    source = make_source(bad=[6])
    whole = evaluate(source)
    parts = [
        evaluate(source, shard=shard, num_shards=2, workers=workers)
        for shard, workers in ((0, 0), (1, 1))
    ]
    same(whole, join(parts))


def test_shard_of_padding_only():
    parts = [evaluate(make_source(count=9), shard=shard, num_shards=2) for shard in range(2)]
    assert [len(part) for part in parts] == [2, 2]
    assert not parts[1][1]["valid"].any()


def test_batches_after_the_end():
    batches = loader.eval_batches(make_source(count=2), image_size=(8, 8), batch_size=2)
    assert len(list(batches)) == 1 and list(batches) == []


def test_leaving_an_evaluation_early_ends_its_threads():
    before = threading.active_count()
    batches = loader.eval_batches(make_source(), image_size=(8, 8), batch_size=2)
    next(batches)
    batches.close()
    deadline = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before


# Real files.


@pytest.mark.realdata
@pytest.mark.skipif(not REAL, reason="DPPMASK_TEST_DATA names no folder of real images")
def test_real_photographs():
    path = os.path.join(REAL, "photos")
    if not os.path.isdir(path):
        pytest.skip(f"no folder {path}")
    source = opening.open_source(f"folder:{path}", "train")
    batches = stream(source, 3, example=single((64, 96)), batch_size=32)
    assert not any(batch["bad"].any() for batch in batches)
    assert all(batch["valid"].all() for batch in evaluate(source, indices=np.arange(16)))
