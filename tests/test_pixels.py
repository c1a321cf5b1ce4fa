"""Images whose pixels are kept as their files have them: from files to crops, and to an encoder."""

import argparse
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny
from ml_collections import config_dict
from PIL import Image

from configs import eval as evaluations
from configs import overlay
from dppmask_jax import config as configs
from dppmask_jax import evaluate, load_encoder, parallel, patches, pixel_format
from dppmask_jax.commands.data import main
from dppmask_jax.data import loader, measuring
from dppmask_jax.data.images import crops, decode, kept
from dppmask_jax.data.sources import opening
from dppmask_jax.errors import InputError
from dppmask_jax.evals import seeds
from dppmask_jax.evals.base import Evaluation
from dppmask_jax.evaluating import subjects
from dppmask_jax.figures import colours
from dppmask_jax.methods import METHODS
from dppmask_jax.methods.base import Plan
from dppmask_jax.pixel_format import Pixels
from dppmask_jax.runs import checkpoint, encoder_files
from dppmask_jax.runs.image_sizes import checked_images
from dppmask_jax.runs.run import load_run
from dppmask_jax.targets import TARGETS
from dppmask_jax.weights import exporting

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (20, 28, 4), dtype=np.uint8)
WORDS = RNG.integers(0, 2**16, (20, 28, 4), dtype=np.uint16)
WIDE = Pixels(4, (0.5,) * 4, (0.25,) * 4, (0.0, 65535.0), kept=True)
EIGHT = WIDE._replace(range=None)
FOUR = {
    "data__channels": 4,
    "data__range": "0,10000",
    "data__mean": (0.2, 0.3, 0.4, 0.5),
    "data__std": (0.1, 0.2, 0.3, 0.4),
}


def png(values, mode=None):
    buffer = io.BytesIO()
    Image.fromarray(values, mode).save(buffer, "PNG")
    return buffer.getvalue()


def npy(values):
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def tiff(values, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, photometric="minisblack", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data,wanted",
    [
        (npy(WORDS), WORDS),
        (npy(np.moveaxis(WORDS, -1, 0)), WORDS),
        (npy(WORDS[..., 0]), WORDS[..., :1]),
        (tiff(WORDS), WORDS),
        (tiff(WORDS, compression="lzw", predictor=True), WORDS),
        (tiff(np.moveaxis(WORDS, -1, 0)), WORDS),  # pages
        (tiff(np.moveaxis(WORDS, -1, 0), planarconfig="separate"), WORDS),
        (tiff(WORDS[..., 0].astype(np.float32)), WORDS[..., :1]),
        (png(BYTES), BYTES),  # RGBA
        (png(BYTES[..., 0]), BYTES[..., :1]),
        (png(WORDS[..., 0]), WORDS[..., :1]),
    ],
)
def test_values_are_those_of_the_file(data, wanted):
    np.testing.assert_array_equal(kept.values_of(data, wanted.shape[-1]), wanted)


def test_a_png_of_16_bit_colours_keeps_them():
    imagecodecs = pytest.importorskip("imagecodecs")
    colours = np.ascontiguousarray(WORDS[..., :3])
    data = imagecodecs.png_encode(colours)
    np.testing.assert_array_equal(kept.values_of(data), colours)


def by_pillow(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", **options)
    return buffer.getvalue()


def test_a_palette_of_a_tiff_is_looked_up_as_that_of_a_png():
    image = Image.fromarray(BYTES[..., :3]).quantize(20)
    colours = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(kept.values_of(by_pillow(image)), colours)
    turned = np.asarray(image.convert("RGB").transpose(Image.Transpose.ROTATE_270))
    exif = Image.Exif()
    exif[0x0112] = 6
    np.testing.assert_array_equal(kept.values_of(by_pillow(image, exif=exif)), turned)


def test_grey_of_a_tiff_whose_white_is_0_is_turned():
    def white_is_0(values, **options):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, values, photometric="miniswhite", **options)
        return buffer.getvalue()

    data = white_is_0(np.full((4, 6), 10, np.uint8))
    assert np.asarray(Image.open(io.BytesIO(data))).flat[0] == 245
    np.testing.assert_array_equal(kept.values_of(data), np.full((4, 6, 1), 245))
    words = kept.values_of(white_is_0(np.full((4, 6), 10, np.uint16)))
    assert words.dtype == np.uint16 and (words == 65525).all()
    bits = kept.values_of(white_is_0(np.eye(8, dtype=bool)))
    np.testing.assert_array_equal(bits[..., 0].astype(bool), ~np.eye(8, dtype=bool))
    with pytest.raises(decode.DecodeError, match=r"a TIFF of float32 .* white is 0"):
        kept.values_of(white_is_0(np.ones((4, 6), np.float32)))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_tiff_is_turned_as_pillow_turns_it(orientation):
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(BYTES[..., :3]).save(buffer, "TIFF", exif=exif)
    data = buffer.getvalue()
    np.testing.assert_array_equal(kept.values_of(data, 3), decode.decode(data))


def test_16_bits_are_not_squeezed():
    near = np.array([[[1000], [1001]]], np.uint16)
    black_white = Pixels(1, (0.0,), (1.0,), (0.0, 4095.0), kept=True)
    found = kept.read(npy(near), black_white)
    np.testing.assert_array_equal(found.ravel(), np.float32([1000, 1001]) / np.float32(4095))
    floats = kept.read(npy(np.array([[-2000.0, -1000, 500, 9000]])), black_white._replace(
        range=(-1000.0, 2000.0)
    ))  # fmt: skip
    np.testing.assert_allclose(floats.ravel(), [0, 0, 0.5, 1])


def jpeg(values):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("encoded", [png, jpeg])
def test_three_channels_of_8_bits_are_cropped_as_rgb_to_the_bit(encoded):
    image = np.asarray(Image.fromarray(BYTES[..., :3]).resize((90, 70)))
    data = encoded(image)
    rgb = kept.read(data, Pixels(kept=True))
    size = {"image_size": (16, 24)}
    for crop in (
        lambda data: crops.center_crop(data, **size),
        lambda data: crops.whole_image(data, **size),
        lambda data: crops.random_crop(data, np.random.default_rng(1), scale=(0.2, 1), **size),
    ):
        np.testing.assert_array_equal(crop(rgb), crop(data))


def test_each_channel_of_floats_is_resampled_as_8_bits_are_but_for_their_rounding():
    middle = BYTES[..., :3] // 2 + 60  # where nothing is cut off between the passes of the filter
    image = np.asarray(Image.fromarray(middle).resize((90, 70)))
    floats = (image / 255).astype(np.float32)
    four = np.concatenate([floats, floats[..., :1]], axis=-1)
    for seed in range(3):
        made = [
            crops.single_view(
                data, np.random.default_rng(seed), image_size=(16, 24), scale=(0.2, 1)
            )
            for data in (four, png(image))
        ]
        found, wanted = (example["image"] for example in made)
        assert found.dtype == np.float32 and found.shape == (16, 24, 4)
        # Of 8 bits Pillow rounds twice: behind its pass over rows, and that over columns.
        np.testing.assert_allclose(255 * found[..., :3], wanted, atol=1.0)
        np.testing.assert_array_equal(found[..., 3], found[..., 0])


def test_floats_stay_within_black_and_white_where_the_filter_overshoots():
    step = np.zeros((32, 32, 2), np.float32)
    step[:, 16:] = 1
    found = crops.whole_image(step, image_size=(64, 64))
    assert found.min() == 0 and found.max() == 1


@pytest.mark.parametrize(
    "data,pixels,words",
    [
        (npy(WORDS[..., :3]), WIDE, "3 channels (uint16, 28 x 20 pixels), and config"),
        (png(BYTES[..., :3]), EIGHT, "it has 3 channels (uint8"),
        (npy(WORDS), EIGHT, "it holds uint16 from"),
        (npy(np.full((4, 4, 4), np.nan, np.float32)), WIDE, "64 of its 64 values are NaN"),
        (npy(np.zeros((4, 4, 4), complex)), WIDE, "complex128, which is no real number"),
        (npy(np.zeros((2, 4, 4, 4))), WIDE, "an array of 2x4x4x4"),
        (npy(np.array([{}], object)), WIDE, "broken .npy"),
        (npy(WORDS)[:100], WIDE, "broken .npy"),
        (tiff(WORDS)[:400], WIDE, "Error"),
        (b"", WIDE, "the file is empty"),
    ],
)  # fmt: skip
def test_what_does_not_fit_says_so(data, pixels, words):
    with pytest.raises(decode.DecodeError) as raised:
        kept.read(data, pixels)
    assert words in str(raised.value)


def folder(path, values=WORDS, odd=0, number=8):
    for i in range(number):
        np.save(path / f"{i}.npy", values[..., :3] if i < odd else values)
    return f"folder:{path}"


def test_a_folder_is_streamed_as_floats_the_same_for_any_start(tmp_path):
    train, val = opening.open_splits(folder(tmp_path), val_fraction=0.25, pixels=WIDE)
    assert (len(train), len(val)) == (6, 2)
    example = METHODS["mae"].build(tiny.config(), Plan(1, 1)).example
    streams = []
    for start in (0, 2):
        options = {"batch_size": 4, "seed": 3, "start_step": start}
        with loader.train_stream(train, example=example, **options) as stream:
            streams.append([next(stream)["image"] for _ in range(3 - start)])
    np.testing.assert_array_equal(streams[0][2], streams[1][0])
    assert streams[0][0].dtype == np.float32 and streams[0][0].shape == (4, 16, 16, 4)
    (batch,) = loader.eval_batches(val, image_size=(16, 16), batch_size=3)
    assert batch["valid"].tolist() == [True, True, False]
    assert batch["image"].dtype == np.float32 and not batch["image"][2].any()


def test_what_a_sample_shows_is_refused_and_what_it_does_not_is_named(tmp_path):
    spec = folder(tmp_path, odd=1)
    with pytest.raises(InputError, match=r"0.npy: it has 3 channels"):
        opening.open_splits(spec, val_fraction=0.0, pixels=WIDE)
    with pytest.raises(InputError, match="say which values are black"):
        folder(tmp_path)
        opening.open_splits(spec, pixels=WIDE._replace(range=None))
    with pytest.raises(InputError, match=r"8 .npy; .* need config.data.channels"):
        opening.open_splits(spec)
    folder(tmp_path, odd=1)
    (tmp_path / "7.npy").write_bytes(b"\x93NUMPY")  # unreadable, not of another kind
    (tmp_path / "0.npy").unlink()
    train, _ = opening.open_splits(spec, val_fraction=0.0, pixels=WIDE)
    lines = []
    batches = loader.eval_batches(train, image_size=(8, 8), batch_size=7, log=lines.append)
    (batch,) = batches
    assert batch["valid"].sum() == 6 and len(lines) == 1 and "7.npy: a broken .npy" in lines[0]


@pytest.mark.parametrize(
    "method",
    [
        name if name == "mae" else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(METHODS)
    ],
)
def test_every_method_trains_on_four_channels(method):
    changes = FOUR | {
        f"data__{name}": 0.0 for name in ("jitter_prob", "grey_prob") if f"data.{name}" in
        configs.fields_of(method)
    }  # fmt: skip
    changes["model__depth"] = 1
    if method == "overlay":
        config = overlay.get_config("dataset=shapes")
        config.image_size, config.batch_size, config.model.patch_size = (16, 16), 4, 4
        config.model.size, config.model.depth = "Pi", 1
        for name, value in FOUR.items():
            config.data[name.removeprefix("data__")] = value
    else:
        config = tiny.config(method, **changes)
    configs.check(config)
    built = METHODS[method].build(config, Plan(4, 8))
    rng = np.random.default_rng(0)
    read = WORDS.astype(np.float32) / 65535
    rows = [built.example(read, rng) for _ in range(4)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    batch |= {name: np.arange(4, dtype=np.int32) for name in ("index", "label", "row")}

    def losses(key):
        params, extra = built.init(key)
        seen = built.before_step(batch, key)
        return [turn.loss(params, extra, seen, key, 0)[0] for turn in built.turns]

    # One device of a named axis, as `parallel` maps a step.
    keys = jax.random.split(jax.random.key(0), 1)
    found = jax.eval_shape(jax.vmap(losses, axis_name=parallel.AXIS), keys)
    assert [loss.shape for loss in found] == [(1,)] * len(built.turns)


def test_pixels_are_normalised_by_the_config_and_predicted_in_all_channels():
    config = tiny.config("mae", **FOUR, loss__norm_pix=False, model__depth=1)
    built = METHODS["mae"].build(config, Plan(1, 1))
    params, extra = tiny.filled(jax.eval_shape(built.init, jax.random.key(0)), 0)
    assert params["encoder"]["patch_embed"]["proj"]["kernel"].size == 4 * 4 * 4 * 96
    images = np.random.default_rng(0).random((2, 16, 16, 4), np.float32)
    order = np.tile(np.arange(16, dtype=np.int32), (2, 1))
    painted = np.asarray(jax.jit(built.reconstruct)(params, extra, images, order))
    visible = painted.reshape(2, 4, 4, 4, 4, 4)[:, 0]  # the first row of patches
    np.testing.assert_allclose(visible, images.reshape(2, 4, 4, 4, 4, 4)[:, 0], atol=1e-6)
    wanted = (images.astype(np.float64) - config.data.mean) / np.array(config.data.std)
    found = TARGETS["pixels"].build(config).of(jnp.asarray(images))
    np.testing.assert_allclose(found, patches.patchify(wanted, 4), rtol=1e-5, atol=1e-5)


def test_a_run_takes_whole_numbers_as_its_files_have_them_and_floats_from_0_to_1(tmp_path):
    encoder = load_encoder(tiny.save_run(tmp_path, **FOUR, model__dtype="float32", model__depth=1))
    words = np.random.default_rng(0).integers(0, 10001, (2, 16, 16, 4), dtype=np.uint16)
    by_floats = encoder((words / 10000).astype(np.float32))
    for name, values in encoder(words).items():
        np.testing.assert_allclose(values, by_floats[name], atol=2e-5)
    with pytest.raises(InputError, match=r"takes .B, 16, 16, 4., whole numbers from 0"):
        encoder(words[..., :3])
    with pytest.raises(InputError, match=r"scale them by data.range"):
        encoder(words.astype(np.float32))


def test_whole_numbers_of_32_bits_are_scaled_before_they_are_rounded():
    black, large = 2.0**30, Pixels(1, (0.5,), (0.5,), (2.0**30, 2.0**30 + 10), kept=True)
    images = np.int32([0, 3, 7, 20]).reshape(1, 2, 2, 1) + np.int32(black)
    found = checked_images(images, (2, 2), large)
    np.testing.assert_array_equal(np.ravel(found), np.float32([0, 0.3, 0.7, 1]))


def test_colours_of_images_that_have_none_are_refused_by_the_names_of_the_fields():
    for method in ("ibot", "moco"):
        with pytest.raises(InputError) as raised:
            configs.check(tiny.config(method, **FOUR))
        assert "config.data.jitter_prob and config.data.grey_prob change colours" in str(
            raised.value
        ) and "--config.data.jitter_prob=0 --config.data.grey_prob=0" in str(raised.value)


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"data__channels": 4}, "dppmask data measure shapes:size=16,train=96,val=24 --channels=4"),
        (FOUR | {"data__mean": (0.1,)}, "config.data.mean has 1 numbers, and the images have 4"),
        (FOUR | {"data__shown": (0, 4, 1)}, "config.data.shown=(0, 4, 1) must be one channel"),
        (FOUR | {"data__channels": 0}, "config.data.channels=0 is not allowed"),
    ],
)
def test_fields_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(InputError) as raised:
        configs.check(tiny.config(**changes))
    assert words in str(raised.value)


def test_figures_show_the_first_three_channels_one_in_grey_or_those_that_are_named():
    images = np.zeros((1, 10, 10, 4), np.float32)
    images[..., 0] = np.linspace(0.2, 0.4, 100).reshape(10, 10)
    show = colours.look(WIDE, images)
    found = show(images)
    assert found.shape == (1, 10, 10, 3) and found[..., 0].min() == 0 and found[..., 0].max() == 255
    assert abs(int(found[0, 4, 9, 0]) - 127) <= 3  # halfway, at 0.3
    middle = np.full((1, 10, 10, 4), 0.3, np.float32)  # by the range of the images
    assert set(np.unique(show(middle)[..., 0])) <= {127, 128}
    grey = colours.shown(WIDE._replace(shown=(0,)), images)
    assert np.ptp(grey, axis=-1).max() == 0 and np.ptp(grey) == 255
    as_they_are = colours.shown(EIGHT._replace(shown=(3, 1, 0)), BYTES[None])
    np.testing.assert_array_equal(as_they_are, BYTES[None][..., [3, 1, 0]])


def test_measure_prints_lines_for_a_config(tmp_path, capsys):
    values = np.broadcast_to(np.uint16([100, 900]), (6, 6, 2))
    spec = folder(tmp_path, values, number=4)
    np.save(tmp_path / "4.npy", np.full((6, 6, 2), 500, np.uint16))
    main(["measure", spec, "--val_fraction=0"])
    out = capsys.readouterr().out
    assert "5 images of 5 for training: 2 channels, uint16" in out
    # Four images of (100, 900) and one of 500: means 180 and 820, deviations 160.
    assert 'config.data.range = "0,1023"' in out
    assert f"config.data.mean = ({180 / 1023:.6g}, {820 / 1023:.6g})" in out
    assert f'--config.data.std="({160 / 1023:.6g}, {160 / 1023:.6g})"' in out
    main(["measure", spec, "--val_fraction=0", "--range=0,500"])  # 900 is cut to 500
    assert f"config.data.mean = ({180 / 500:.6g}, 1)" in capsys.readouterr().out


@pytest.mark.parametrize("value", [5, 1000000])
def test_measure_prints_no_range_of_one_value(tmp_path, value):
    spec = folder(tmp_path, np.full((6, 6, 1), value, np.float32), number=2)
    with pytest.raises(
        InputError, match=rf"all values are from {value} to {value}, .*--range=BLACK,WHITE"
    ):
        measuring.run(measure_arguments(spec))
    measuring.run(measure_arguments(spec, "--range=0,2e6"))


def measure_arguments(spec, *more):
    parser = argparse.ArgumentParser()
    measuring.add_arguments(parser)
    return parser.parse_args([spec, "--val_fraction=0", *more])


def test_default_pixels_are_8_bit_rgb_by_imagenets_mean():
    assert EIGHT.words == "4 channels of 8 bits"
    assert WIDE.words == "4 channels, from 0 (black) to 65535 (white)"
    assert pixel_format.of(tiny.config()) == pixel_format.RGB
    assert pixel_format.of(tiny.config(data__range="0,4095")) == pixel_format.RGB


def test_an_exported_patch_embedding_has_the_channels_of_the_run(tmp_path):
    run = tiny.save_run(tmp_path / "run", **FOUR, model__depth=1)
    kernel = checkpoint.read_newest(run)[1]["params"]["encoder"]["patch_embed"]["proj"]["kernel"]
    path = exporting.export_weights(run, tmp_path / "out.safetensors", "timm")
    written = safetensors.numpy.load_file(path)["patch_embed.proj.weight"]
    assert written.shape == (96, 4, 4, 4)
    for unit, channel, row, column in ((0, 0, 0, 0), (5, 3, 1, 2), (95, 2, 3, 0)):
        wanted = kernel[(row * 4 + column) * 4 + channel, unit]
        assert written[unit, channel, row, column] == wanted
    words = exporting.loaded_by(run, path, "timm")
    assert "in_chans=4" in words and "'mean': (0.2, 0.3, 0.4, 0.5)" in words

    folder = exporting.export_weights(run, tmp_path / "hf", "hf")
    assert json.loads((folder / "config.json").read_text())["num_channels"] == 4
    of_pixels = json.loads((folder / "preprocessor_config.json").read_text())
    assert of_pixels["rescale_factor"] == 1e-4 and of_pixels["image_std"] == [0.1, 0.2, 0.3, 0.4]


def test_the_shift_of_a_range_is_in_the_mean_of_an_exported_preprocessor(tmp_path):
    changes = FOUR | {"data__range": "-1000,3000", "model__depth": 1}
    run = tiny.save_run(tmp_path / "run", **changes)
    folder = exporting.export_weights(run, tmp_path / "hf", "hf-encoder")
    said = json.loads((folder / "preprocessor_config.json").read_text())
    value = 500.0  # (500 + 1000) / 4000 is .375 of the range
    theirs = (value * said["rescale_factor"] - said["image_mean"][1]) / said["image_std"][1]
    np.testing.assert_allclose(theirs, (0.375 - 0.3) / 0.2, rtol=1e-9)


def test_a_file_of_an_encoder_keeps_its_pixels(tmp_path):
    changes = FOUR | {"model__depth": 1, "model__dtype": "float32"}
    run = tiny.save_run(tmp_path / "run", **changes)
    encoder_files.write(tmp_path / "e.safetensors", load_run(run))
    words = RNG.integers(0, 10001, (1, 16, 16, 4), dtype=np.uint16)
    found, wanted = load_encoder(tmp_path / "e.safetensors"), load_encoder(run)
    assert found.pixels == wanted.pixels and found.pixels.range == (0.0, 10000.0)
    np.testing.assert_array_equal(found(words)["cls"], wanted(words)["cls"])


def test_evaluations_take_channels_mean_and_deviation_from_the_run():
    run = tiny.config(**FOUR)
    found = subjects.completed(tiny.evaluation("task=knn"), run)
    assert (found.data.channels, found.data.mean) == (4, (0.2, 0.3, 0.4, 0.5))
    for name, value in (("channels", 3), ("std", (1.0,))):
        with pytest.raises(InputError, match=rf"config.data.{name}=.* is not that of the run"):
            subjects.completed(tiny.evaluation("task=knn", **{f"data__{name}": value}), run)


def test_what_is_for_8_bit_rgb_alone_says_so():
    config = overlay.get_config("dataset=shapes")
    config.data.corruption = "autoaugment"
    for name, value in FOUR.items():
        config.data[name.removeprefix("data__")] = value
    with pytest.raises(InputError, match=r"AutoAugment.* take another corruption"):
        configs.check(config)
    with pytest.raises(InputError, match=r"RandAugment.*range=0,9; set --config.data.rand"):
        data = {"channels": 3, "range": "0,9", "randaugment": 9.0}
        seeds.check(
            Evaluation(
                config_dict.ConfigDict(
                    {"data": data, "batch_size": 8, "optim": {"accum_steps": 1}}
                ),
                None, None, None, None, print,
            ),
            (),
        )  # fmt: skip


@pytest.mark.slow
def test_a_run_of_four_channels_goes_on_to_the_bit_and_is_evaluated_and_drawn(tmp_path):
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    for kind in (0, 1):
        (tmp_path / "data" / str(kind)).mkdir()
        for i in range(10):
            values = rng.integers(0, 3000 + 6000 * kind, (20, 24, 4), dtype=np.uint16)
            np.save(tmp_path / "data" / str(kind) / f"{i}.npy", values)
    source = f"folder:{tmp_path / 'data'}"
    changes = {"data__source": source, "data__val_fraction": 0.2, "epochs": 2.0}
    changes |= {"checkpoint__every": 2, "evaluate__every_epochs": 0.0, "model__depth": 2}
    changes |= {"evaluate__figure_images": 2, "optim__warmup_epochs": 0.0}
    run = tiny.trained_and_gone_on(tiny.config(**FOUR, **changes), tmp_path)
    assert (run / "figures" / "masks.png").stat().st_size > 1000
    tasks = {"knn": {}, "linear": {"solver": "ridge"}, "reconstruct": {}, "attention": {}}
    for task, fields in tasks.items():
        evaluation = evaluations.get_config(f"task={task}")
        evaluation.update(fields)
        assert evaluate.evaluate(evaluation, run, tmp_path / task).exists()
