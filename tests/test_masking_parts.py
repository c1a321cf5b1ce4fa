"""Masks by the parts of an image, and where the maps of parts come from."""

import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from sklearn.cluster import KMeans

from configs import overlay
from dppmask_jax import config as config_checks
from dppmask_jax import masking, part_maps
from dppmask_jax.data import loader
from dppmask_jax.data.images import crops
from dppmask_jax.data.sources import opening
from dppmask_jax.data.sources.base import Source
from dppmask_jax.errors import InputError
from dppmask_jax.masking import semantic_parts
from dppmask_jax.methods import METHODS, single_view
from dppmask_jax.methods.base import Plan
from dppmask_jax.runs import image_parts, proposed
from dppmask_jax.runs.run import load_encoder, open_data


def masked_per_part(part_of, count, alpha, draws, num_parts=7, seed=0):
    """(draws, num_parts): how many patches of each part are masked."""
    keys = jax.random.split(jax.random.key(seed), draws)
    part_of = jnp.asarray(part_of, jnp.int32)

    @jax.jit
    def draw(keys, alpha):
        def one(key):
            return semantic_parts.parts(key, part_of, count, alpha, num_parts).mask

        return jax.vmap(one)(keys) @ jax.nn.one_hot(part_of, num_parts)

    return np.asarray(draw(keys, alpha)).astype(int)


def test_whole_parts_are_masked_at_the_end_and_the_same_share_of_each_at_the_start():
    part_of = np.repeat([0, 1, 2], [8, 4, 4])
    start = masked_per_part(part_of, 8, 1.0, 200, 3)
    assert (start == [4, 2, 2]).all()
    end = {tuple(row) for row in masked_per_part(part_of, 8, 0.0, 200, 3).tolist()}
    # The first in turn is masked whole, then the next as far as it goes.
    assert end == {(8, 0, 0), (4, 4, 0), (4, 0, 4), (0, 4, 4)}
    # Halfway: round((4 + 8) / 2), round((2 + 0) / 2) of the set above, and so on.
    half = {tuple(row) for row in masked_per_part(part_of, 8, 0.5, 200, 3).tolist()}
    assert half == {(6, 1, 1), (4, 3, 1), (4, 1, 3), (2, 3, 3)}


def test_numbers_that_do_not_add_up_are_made_up_at_random():
    # Half of each part of 5 is 2.5, rounded to 2: two patches more are masked, of any part.
    masked = masked_per_part(np.repeat(np.arange(4), 5), 10, 1.0, 500, 4)
    assert (masked.sum(axis=1) == 10).all() and masked.min() == 2 and masked.max() == 4
    np.testing.assert_allclose(masked.mean(axis=0), 2.5, atol=0.15)
    # Three quarters of 2 is 1.5, rounded to 2: all 16 would be masked, and 4 are shown again.
    masked = masked_per_part(np.repeat(np.arange(8), 2), 4, 1.0, 500, 8)
    assert (masked.sum(axis=1) == 12).all() and set(np.unique(masked)) == {0, 1, 2}


def test_numbers_of_parts_beyond_the_last_are_the_last():
    key, part_of = jax.random.key(0), jnp.array([0, 1, 5, 9] * 4)
    got = semantic_parts.parts(key, part_of, 8, 0.0, 3)
    want = semantic_parts.parts(key, jnp.minimum(part_of, 2), 8, 0.0, 3)
    np.testing.assert_array_equal(got.order, want.order)
    with pytest.raises(ValueError, match=r"visible count must be in 0\.\.16"):
        semantic_parts.parts(key, part_of, 17, 0.0)


def test_a_patch_has_the_part_of_most_of_its_pixels():
    pixels = np.zeros((2, 4, 8), np.uint8)
    pixels[0, :, 4:] = [[3, 3, 3, 3], [3, 3, 3, 3], [3, 1, 1, 1], [1, 1, 1, 1]]  # 9 of 3, 7 of 1
    pixels[1, :2, :4] = 2  # as many as of 0
    got = semantic_parts.of_patches(jnp.asarray(pixels), (1, 2), 4)
    np.testing.assert_array_equal(got, [[0, 3], [0, 0]])


# Where maps come from.


def source_of(images, **known):
    """A source of lossless images (H, W, 3)."""

    def read(i):
        out = io.BytesIO()
        Image.fromarray(images[i]).save(out, "PNG")
        return out.getvalue(), -1

    return Source(len(images), read, lambda i: f"image {i}", identity=lambda: "these", **known)


def parts_config(tmp_path, maps=None, method="mae", **changes):
    if maps is not None:
        np.save(tmp_path / "parts.npy", maps)
        changes["mask__parts"] = str(tmp_path / "parts.npy")
    return tiny.config(method, mask__strategy="parts", **changes)


COLOURS = np.random.default_rng(0).integers(0, 4, (6, 4, 4)).astype(np.uint8)


@pytest.mark.parametrize("method", ["mae", "ibot"])
def test_parts_follow_the_crop_and_the_flip_of_their_image(tmp_path, method):
    # Of images whose grey value is 60 times the part of the patch, 12 x 20 pixels a patch.
    images = np.kron(COLOURS, np.ones((1, 12, 20)))[..., None].repeat(3, axis=-1)
    ratio = {"mask__ratio": (0.5,), "mask__ratio_var": (0.0,)} if method == "ibot" else {}
    config = parts_config(tmp_path, COLOURS, method, data__crop_scale=(0.2, 1.0), **ratio)
    config_checks.check(config)
    images = source_of((images * 60).astype(np.uint8))
    source, val = image_parts.with_parts(config, images, images)
    built = METHODS[method].build(config, Plan(1, 1))
    assert built.extras == ("parts",)
    stream = loader.train_stream(
        source, example=built.example, extras=built.extras, batch_size=6, seed=0
    )
    with stream:
        batch = next(stream)
    batch = {name: value for name, value in batch.items() if name != "bad"}
    if method == "mae":
        views = single_view.views_of(config, batch, jax.random.key(1))
        raw, maps, parts = views.raw, views.maps["parts"], views.parts()
        again = single_view.views_of(config, batch, jax.random.key(2))
        assert (np.asarray(again.maps["parts"]) != maps).any(), "some are flipped"
    else:
        raw, maps = (
            batch[f"global_{name}"].reshape(-1, 16, 16, *more)
            for name, more in (("views", (3,)), ("parts", ()))
        )
        parts = semantic_parts.of_patches(jnp.asarray(maps), (4, 4), 7)
    # Bicubic edges apart, pixel by pixel.
    same = np.round(np.asarray(raw)[..., 0] / 60) == np.asarray(maps)
    assert same.mean() > 0.9
    by_patch = np.asarray(parts).reshape(-1, 4, 4)
    middle = np.asarray(maps)[:, 2::4, 2::4]
    assert (by_patch == middle).mean() > 0.6 and by_patch.max() == 3
    # Another file is other data; images without a map are one part, which is said.
    assert source.identity() != images.identity()
    assert not val.extras(0)["parts"].any() and val.extras(0)["parts"].shape == (48, 80)
    assert "validation images have no parts in" in val.notes[-1]


@pytest.mark.parametrize("strategy", ["parts", "file"])
def test_overlay_without_masks_asks_for_none_that_come_with_the_images(strategy):
    config = overlay.get_config("dataset=shapes,form=vit")
    config.mask.strategy = strategy
    config.mask.parts = config.mask.path = "nowhere.npy"
    images = source_of(np.zeros((2, 64, 64, 3), np.uint8))
    with_extras = {"parts": image_parts.with_parts, "file": proposed.with_masks}[strategy]
    config.mask.ratio = 0.0
    train, val = with_extras(config, images, images)
    assert train is images and val is images
    config.mask.ratio = 0.5
    with pytest.raises(InputError, match=r"nowhere\.npy cannot be read"):
        with_extras(config, images, images)


def test_a_sources_own_segments_are_parts(tmp_path):
    config = parts_config(tmp_path, mask__num_parts=3)
    train, val = image_parts.with_parts(
        config, *opening.open_splits("shapes:size=32,train=20,val=4", val_fraction=0.1)
    )
    for source in (train, val):
        known = source.extras(1)
        values = np.unique(known["segments"])
        for place, value in enumerate(values):
            found = known["parts"][known["segments"] == value]
            assert (found == min(place, 2)).all() and known["parts"].dtype == np.uint8
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4] = 60, 130, 200, 255, 127, 128, 0, 1
    images = np.zeros((2, 8, 8, 3), np.uint8)
    source, _ = image_parts.with_parts(
        config, source_of(images, extras=lambda i: {"mask": mask}), None
    )
    np.testing.assert_array_equal(source.extras(0)["parts"], mask >= 128)
    with pytest.raises(InputError, match="neither segments nor foreground masks; name an"):
        image_parts.with_parts(config, source_of(images), None)


@pytest.mark.parametrize(
    "maps, words",
    [
        (COLOURS[:5], "is (5, 4, 4); this config has 6 training images of 4 x 4 patches"),
        (COLOURS[:, :2], "is (6, 2, 4); this config has 6 training images of 4 x 4 patches"),
        (COLOURS.reshape(6, 16), "holds uint8 (6, 16); it takes (images, rows, columns)"),
        (COLOURS / 2, "holds float64 (6, 4, 4)"),
        (COLOURS + 4, "holds parts 4 to 7; config.mask.num_parts=7 takes 0 to 6"),
        (COLOURS.astype(int) - 1, "holds parts -1 to 2"),
    ],
)
def test_maps_that_do_not_fit_are_one_line(tmp_path, maps, words):
    config = parts_config(tmp_path, maps)
    images = source_of(np.zeros((6, 8, 8, 3), np.uint8))
    with pytest.raises(InputError) as error:
        config_checks.check(config)
        image_parts.with_parts(config, images, None)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_what_has_no_maps_says_so(tmp_path):
    with pytest.raises(InputError, match=r"config\.mask\.parts=nowhere\.npy cannot be read"):
        config_checks.check(parts_config(tmp_path, mask__parts="nowhere.npy"))
    with pytest.raises(
        ValueError, match="strategy='parts' needs maps of parts, which images alone do not"
    ):
        masking.export_masks(np.zeros((1, 32, 32, 3), np.uint8), strategy="parts")


@pytest.mark.slow
def test_runs_train_on_masks_by_parts(tmp_path):
    maps = np.random.default_rng(0).integers(0, 5, (96, 4, 4)).astype(np.uint8)
    np.save(tmp_path / "parts.npy", maps)
    file = f"--config.mask.parts={tmp_path / 'parts.npy'}"
    short = {"batch_size": 48, "mask__strategy": "parts", "model__depth": 1,
             "evaluate__knn_images": 0}  # fmt: skip
    commands = [
        tiny.command(tmp_path / name, *words, method=method, **short)
        for name, method, words in (("file", "mae", [file]), ("source", "ibot", []))
    ]
    for done in map(tiny.run, commands):
        assert done.returncode == 0, done.stderr
        assert "masks       parts (" in done.stdout and "step 2/2  loss" in done.stdout
    again = tiny.command(tmp_path / "file", file, **short)
    np.save(tmp_path / "parts.npy", maps[::-1])
    wrong = tiny.command(tmp_path / "new", file, **short | {"model__patch_size": 8})
    tiny.assert_refused(
        {
            "another file": (again, "120 images there as here, of other"),
            "another grid": (wrong, "96 training images of 2 x 2 patches"),
        }
    )


# Maps by k-means.


def test_tokens_of_one_direction_are_one_part():
    rng = np.random.default_rng(1)
    group = rng.permutation(np.repeat([0, 1, 2], [10, 5, 4]))
    tokens = 5 * np.eye(3, 8)[group] * rng.uniform(1, 9, (19, 1)) + 0.1 * rng.normal(size=(19, 8))
    found = np.asarray(part_maps.grouped(jax.random.key(0), jnp.asarray(tokens), 3))
    assert len(set(zip(group.tolist(), found.tolist(), strict=True))) == 3
    assert len(set(found.tolist())) == 3
    same = np.asarray(part_maps.grouped(jax.random.key(0), jnp.ones((6, 4)), 3))
    assert len(set(same.tolist())) == 1


def test_a_file_of_maps_is_made_of_an_encoders_tokens(tmp_path, capsys):
    sizes = {"model__width": 24, "model__depth": 1, "model__heads": 2}
    run = tiny.save_run(tmp_path / "run", **sizes)
    spec, out = "shapes:size=16,train=40,val=8", tmp_path / "maps.npy"
    part_maps.main([f"--encoder={run}", f"--source={spec}", "--parts=3", f"--out={out}"])
    maps = np.load(out)
    assert maps.shape == (40, 4, 4) and maps.dtype == np.uint8 and set(np.unique(maps)) == {0, 1, 2}
    assert f"--config.mask.parts={out} --config.mask.num_parts=3" in capsys.readouterr().out
    # Row i is of image i: scikit-learn's k-means of its tokens is no better than ours by much.
    train, _ = opening.open_splits(spec, val_fraction=0.1)
    for i in (0, 37):
        image = crops.whole_image(train.read(i)[0], image_size=(16, 16))
        tokens = np.asarray(load_encoder(run)(image[None])["patches"])[0]
        tokens = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
        groups = [tokens[maps[i].ravel() == part] for part in range(3)]
        ours = sum(((group - group.mean(axis=0)) ** 2).sum() for group in groups if len(group))
        best = KMeans(3, n_init=20, random_state=0).fit(tokens).inertia_
        assert best - 1e-4 <= ours < 1.4 * best
    config = parts_config(
        tmp_path, mask__parts=str(out), mask__num_parts=3, data__source=spec, data__val_fraction=0.1
    )
    train, _ = open_data(config)
    assert train.extras(5)["parts"].shape == (16, 16)
    np.testing.assert_array_equal(train.extras(5)["parts"][::4, ::4], maps[5])


@pytest.mark.parametrize(
    "words, says",
    [
        (["--parts=17"], "--parts=17 is more than the 16 patches of --encoder"),
        (["--parts=0"], "--parts=0: it must be a whole number from 1 to 256"),
        (["--source=nothing"], "--source=nothing: it must be"),
        (["--out=nowhere/maps.npy"], "there is no folder nowhere"),
        (["--val_fraction=1"], "--val_fraction=1.0: it must be"),
    ],
)
def test_a_command_that_makes_no_maps_says_why(tmp_path, words, says):
    sizes = {"model__width": 24, "model__depth": 1, "model__heads": 2}
    run = tiny.save_run(tmp_path / "run", **sizes)
    source = [] if words[0].startswith("--source") else ["--source=shapes"]
    with pytest.raises(InputError, match=re.escape(says)):
        part_maps.main([f"--encoder={run}", *source, *words])
