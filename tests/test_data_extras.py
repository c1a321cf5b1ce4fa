"""What a source knows of its images goes with them: through crops, flips, replacements, shards."""

import functools
import io
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import config_dict
from PIL import Image

from dppmask_jax.data import loader
from dppmask_jax.data.images import augment, crops, decode
from dppmask_jax.data.sources import base, opening
from dppmask_jax.errors import InputError
from dppmask_jax.evals import probe
from dppmask_jax.methods import METHODS, single_view
from dppmask_jax.methods.base import Turn
from dppmask_jax.runs.run import open_data
from dppmask_jax.training import build, fit
from dppmask_jax.training.resuming import Start

COUNT = 10
SHAPES = "shapes:size=24,train=12,val=4"


@pytest.fixture(scope="module")
def masks():
    source = opening.open_source(SHAPES, "train")
    return [source.extras(i)["mask"] for i in range(COUNT)]


def painted(mask, size=None):
    """An encoded image that shows its own mask."""
    image = Image.fromarray(np.repeat(mask[..., None], 3, axis=2))
    buffer = io.BytesIO()
    (image if size is None else image.resize(size)).save(buffer, "PNG")
    return buffer.getvalue()


def _read(masks, broken, i):
    return (b"broken" if i in broken else painted(masks[i])), i


def _known(masks, without, i):
    more = {"part": np.full(3, i, np.uint8), "unused": 0}
    return more if i in without else more | {"mask": masks[i]}


def source_of(masks, broken=(), without=()):
    return base.Source(
        COUNT,
        functools.partial(_read, masks, broken),
        "image {}".format,
        class_names=tuple(map(str, range(COUNT))),
        extras=functools.partial(_known, masks, without),
    )


def unscaled(example):
    """Crops of half the sides, which take over each pixel as it is."""
    return functools.partial(example, image_size=(12, 12), scale=(0.25, 0.25), ratio=(1.0, 1.0))


def agree(mask, image):
    """Whether a map and a crop of its painted image agree, off the edges that resizing blurs."""
    plain = (image[..., 0] < 2) | (image[..., 0] > 253)
    assert plain.mean() > 0.5 and mask.dtype == np.uint8
    return np.mean((mask > 0) == (image[..., 0] > 127), where=plain) > 0.99


def test_a_map_is_cropped_as_its_image(masks):
    for i, mask in enumerate(masks):
        rng = np.random.default_rng(i)
        one = unscaled(crops.single_view)(painted(mask), rng, {"mask": mask, "label": 3})
        np.testing.assert_array_equal(one["mask"], one["image"][..., 0])
        assert one["label"] == 3
        options = {"image_size": (20, 36), "scale": (0.2, 1.0)}
        other = crops.single_view(painted(mask), rng, {"mask": mask}, **options)
        assert other["mask"].shape == (20, 36) and agree(other["mask"], other["image"])
    plain = crops.single_view(painted(mask), np.random.default_rng(7), **options)
    known = crops.single_view(painted(mask), np.random.default_rng(7), {"mask": mask}, **options)
    np.testing.assert_array_equal(plain["image"], known["image"])  # the same random numbers


def test_each_view_has_its_own_map_mirrored_with_it(masks):
    options = {"local_size": (6, 6), "local_scale": (0.0625, 0.0625), "num_local": 3, "flip": True}
    example = functools.partial(unscaled(crops.multi_crop), **options)
    for i, mask in enumerate(masks):
        known = example(painted(mask), np.random.default_rng(i), {"mask": mask, "part": i})
        assert known["part"] == i and "mask" not in known
        for kind, shape in (("global", (2, 12, 12)), ("local", (3, 6, 6))):
            assert known[f"{kind}_mask"].shape == shape
            np.testing.assert_array_equal(known[f"{kind}_mask"], known[f"{kind}_views"][..., 0])


def test_maps_are_mirrored_on_the_device_where_images_are():
    images = np.random.default_rng(0).integers(0, 256, (32, 4, 6, 3), dtype=np.uint8)
    keys = jax.random.split(jax.random.key(0), 32)
    flipped = augment.flip(jnp.asarray(images), keys)
    maps = jax.jit(augment.flip)(images[..., 0], keys)
    assert maps.dtype == jnp.uint8 and np.any(maps != images[..., 0])
    np.testing.assert_array_equal(flipped[..., 0], maps)


def test_a_step_has_the_maps_of_its_images_mirrored_with_them():
    images = np.random.default_rng(0).integers(0, 256, (16, 4, 6, 3), dtype=np.uint8)
    extras = {"mask": images[..., 0], "part": np.zeros((16, 4), np.uint8)}
    batch = {"image": images, "index": np.arange(16, dtype=np.int32), **extras}
    for flip in (True, False):
        config = config_dict.ConfigDict({"data": {"flip": flip}})
        views = single_view.views_of(config, jax.tree.map(jnp.asarray, batch), jax.random.key(0))
        assert set(views.maps) == {"mask"} and np.any(views.raw != images) == flip
        np.testing.assert_array_equal(views.maps["mask"], views.raw[..., 0])


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.long)])
def test_extras_row_and_image_stay_together(masks, workers):
    """Also where another image stands in, and whatever the number of shards and workers."""
    lines = []
    options = {
        "example": unscaled(crops.single_view),
        "batch_size": 4,
        "seed": 1,
        "workers": workers,
    }
    source = source_of(masks, broken=(3,), without=(5, 6))

    def batches(steps, **more):
        more = options | {"extras": ("mask", "part"), "log": lines.append} | more
        with loader.train_stream(source, **more) as stream:
            return list(itertools.islice(stream, steps))

    whole = batches(6)
    for batch in whole:
        assert set(batch) == {"image", "mask", "part", "label", "index", "row", "bad"}
        np.testing.assert_array_equal(batch["mask"], batch["image"][..., 0])
        np.testing.assert_array_equal(batch["part"], np.repeat(batch["row"][:, None], 3, 1))
        np.testing.assert_array_equal(batch["label"], batch["row"])
    bad = np.concatenate([batch["bad"] for batch in whole])
    rows = np.concatenate([batch["row"] for batch in whole])
    assert bad.sum() >= 6 and set(rows[bad]) == {4, 7}
    assert sorted(lines)[1:] == [f"unreadable image: image {i}: it has no mask" for i in (5, 6)]
    shards = [batches(6, shard=k, num_shards=2, workers=0, start_step=0) for k in range(2)]
    for batch, *parts in zip(whole, *shards, strict=True):
        for name in batch:
            np.testing.assert_array_equal(batch[name], np.concatenate([p[name] for p in parts]))
    for batch, resumed in zip(whole[4:], batches(2, start_step=4), strict=True):
        np.testing.assert_array_equal(batch["mask"], resumed["mask"])


def test_a_map_of_another_size_makes_an_image_unreadable(masks):
    with pytest.raises(decode.DecodeError, match="its mask has 24 x 24 pixels, the image 30 x 20"):
        unscaled(crops.single_view)(
            painted(masks[0], (30, 20)), np.random.default_rng(0), {"mask": masks[0]}
        )


def test_evaluation_crops_have_the_maps_that_go_with_them(masks):
    source = source_of(masks, broken=(3,), without=(4,))
    options = {"image_size": (16, 16), "batch_size": 6, "extras": ("mask",)}
    with loader.eval_batches(source, **options, log=lambda line: None) as batches:
        found = list(batches)
    valid = np.concatenate([batch["valid"] for batch in found])
    assert valid.sum() == COUNT - 2 and not valid[3] and not valid[4]
    images, maps = (np.concatenate([batch[name] for batch in found]) for name in ("image", "mask"))
    assert maps.shape == (12, 16, 16) and not maps[~valid].any() and not images[~valid].any()
    assert all(agree(m, image) for m, image in zip(maps[valid], images[valid], strict=True))


def test_what_a_source_does_not_know_is_refused_in_one_line(masks):
    assert set(base.first_extras(source_of(masks, without=(0,)), ("mask",), "mine")) == {"mask"}
    with pytest.raises(InputError) as caught:
        base.first_extras(source_of(masks), ("mask", "depth"), "config.method=mine")
    assert str(caught.value).startswith("config.method=mine needs the mask and depth of each image")
    assert "\n" not in str(caught.value) and "data.source" in str(caught.value)


def test_a_method_that_asks_gets_them_in_training_and_validation():
    config = tiny.config(data__source="shapes:size=16,train=16,val=8", evaluate__loss_images=8)
    train, val = open_data(config)
    plan = build.plan_from(config, len(train))
    (turn,) = METHODS["mae"].build(config, plan).turns

    def loss(params, extra, batch, key, step):
        return jnp.mean(batch["mask"] > 0), ({}, {})

    method = (
        METHODS["mae"]
        .build(config, plan)
        ._replace(extras=("mask",), turns=(Turn(loss, turn.optimizer),))
    )
    training = fit.Training(config, None, Start(), plan, method, train, None)
    with fit._stream(training, print) as stream:
        batch = next(stream)
    for image, mask in zip(batch["image"], batch["mask"], strict=True):
        assert mask.shape == image.shape[:2] == (16, 16) and set(np.unique(mask)) <= {0, 255}
    probed = probe.Probed(config, plan, train, val, True)
    state = types.SimpleNamespace(params={}, extra={})
    share = np.mean([val.extras(i)["mask"] > 0 for i in range(8)])
    measured = probe.validation_loss(probed, method, jax.random.key(0), print)(state)
    assert measured == pytest.approx(share, abs=1e-6)
