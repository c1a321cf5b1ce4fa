"""Analyses that need classes: layers, frequency noise, changed images, maps of tokens."""

from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from test_eval_tasks import COLOURS, TRAIN, VAL, found, painted

from dppmask_jax.analyses import ring_noise, shift, tsne
from dppmask_jax.errors import InputError
from dppmask_jax.evaluating import subjects

pytestmark = pytest.mark.usefixtures("fewer_blocks")


@pytest.fixture(scope="module")
def run(fewer_blocks, tmp_path_factory):
    return tiny.save_run(tmp_path_factory.mktemp("mae") / "run")


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return painted(tmp_path_factory.mktemp("colours"), shuffled=False)


@pytest.mark.slow
def test_every_layer_tells_colours_apart_and_no_label_by_chance(run, colours, tmp_path):
    out = found(run, tmp_path, "task=layers", data__source=colours, k=5)
    tokens = out["metrics"]["tokens"]
    assert list(tokens) == ["patches", "cls"]
    for probe in ("knn", "ridge"):
        assert tokens["patches"][probe] == {"mean": [1.0] * 3, "error": [0.0] * 3}
        assert tokens["cls"][probe]["mean"][0] == 0.25, "the embedded class token knows no image"
        assert min(tokens["cls"][probe]["mean"][1:]) > 0.8
    assert [row[0] for row in out["table"][1:]] == ["0", "1", "2", "chance"]
    assert out["score"]["value"] == 1.0 and out["metrics"]["train_images"] == 4 * TRAIN
    assert np.load(tmp_path / "eval_layers_images.npy").tolist() == [True] * (4 * VAL)
    assert [p.name for p in (tmp_path / "figures").iterdir()] == ["layers.png"]


@pytest.mark.slow
def test_frequencies_of_tokens_and_accuracy_under_noise(run, colours, tmp_path):
    settings = {
        "data__source": colours,
        "image_size": (16, 20),
        "noise__frequencies": (0.4, 2.5),
        "noise__half_width": 0.5,
        "noise__eps": 100.0,
    }
    out = found(run, tmp_path, "task=frequencies", **settings)["metrics"]
    assert out["frequencies"] == [0, 0.5]
    assert len(out["spectra"]) == len(out["highest"]["mean"]) == 3
    assert out["spectra"][2]["mean"] == [0, out["highest"]["mean"][2]]
    noise = out["noise"]
    assert noise["clean"] == {"mean": 1.0, "error": 0.0} and noise["images"] == 4 * VAL
    assert min(noise["drop"]["mean"]) > 0.3
    assert noise["accuracy"]["mean"] == pytest.approx([1 - x for x in noise["drop"]["mean"]])
    assert noise["deviation"][0] == pytest.approx(100 * (16 / 320) ** 0.5, rel=0.2)


def copied(colours, root, names=COLOURS, prefix="", change=lambda pixels: pixels):
    """The validation images as TIFF files in folders of some of the classes."""
    for path in sorted(Path(colours.removeprefix("folder:")).glob("val/*/*.png")):
        if path.parent.name in names:
            copy = root / path.parent.name / f"{prefix}{path.stem}.tif"
            copy.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(change(np.asarray(Image.open(path)))).save(copy)
    return f"folder:{root}"


def test_changed_copies_go_by_class_and_name(run, colours, tmp_path):
    changed = copied(colours, tmp_path / "new", ("red", "blue"), change=lambda x: x[..., [1, 0, 2]])
    for path in ("pink/1.tif", "red/more.tif"):
        (tmp_path / "new" / path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "new" / path)
    (tmp_path / "new/blue/00.tif").write_bytes(b"broken")
    out = found(run, tmp_path / "out", "task=shift", data__source=colours, changed=changed, k=5)
    values = out["metrics"]
    assert values["paired"] and values["images"] == values["changed_images"] == 2 * VAL - 1
    for words in ("1 changed image of other classes left out", "12 validation images of classes "
                  "without", "1 changed image without an original left out", "strength 1e-06 "
                  "chosen on a tenth", "k-NN of the mean patch token, k = 5"):  # fmt: skip
        assert words in out["protocol"]
    # Red is green now, and blue is as it was but for a little: 6 of 11 go wrong.
    for of_one in values["classifiers"].values():
        assert of_one["original"] == {"mean": 1.0, "error": 0.0}
        assert of_one["changed"]["mean"] == pytest.approx(5 / 11)
        assert of_one["drop"]["mean"] == pytest.approx(6 / 11)
        assert of_one["drop"]["error"] == pytest.approx((5 * 6 / 11**2 / 10) ** 0.5)
    assert out["score"]["value"] == pytest.approx(5 / 11)
    assert np.load(tmp_path / "out" / "eval_shift_images.npy").sum() == 5
    assert [p.name for p in (tmp_path / "out" / "figures").iterdir()] == ["shift.png"]


def opened(run, source, argument, **changes):
    """An evaluation that could run."""
    config = tiny.evaluation(argument, data__source=source, **changes)
    return subjects.opened(subjects.Subject(config, run, run, ""))


def test_other_images_are_no_copies(run, colours, tmp_path):
    other = copied(colours, tmp_path / "other", prefix="other-")
    tested = shift._tested(opened(run, colours, "task=shift", changed=other))
    assert not tested.paired and not tested.notes
    assert len(tested.original_rows) == len(tested.changed_rows) == 4 * VAL
    independent = shift._drop(np.array([1, 1, 1, 0]), np.array([1, 0]), paired=False)
    assert independent["drop"]["mean"] == 0.25
    assert independent["drop"]["error"] == pytest.approx((0.1875 / 3 + 0.25 / 1) ** 0.5)
    assert shift._table({"knn": independent})[1] == (
        "k-NN", "75.00 % ± 25.00", "50.00 % ± 50.00", "25.00 ± 55.90 points"
    )  # fmt: skip
    (tmp_path / "train").symlink_to(Path(colours.removeprefix("folder:")) / "train")
    same = copied(colours, tmp_path / "same")
    sorted((tmp_path / "same").glob("red/*.tif"))[0].unlink()
    tested = shift._tested(opened(run, colours, "task=shift", changed=same))
    assert tested.paired and tested.notes == ["1 validation image without a copy left out"]
    for path in (tmp_path / "other").glob("*/*"):  # the last images of training, by name
        path.unlink()
    for path in sorted((tmp_path / "train").glob("white/*.png")):
        path_of_copy = tmp_path / "other" / "white" / path.name
        path_of_copy.write_bytes(path.read_bytes())
        Image.new("RGB", (16, 16)).save(tmp_path / "other" / "blue" / f"x{path.name}")
    tested = shift._tested(opened(run, colours, "task=shift", changed=other))
    assert (
        not tested.paired and "8 of the changed images have names of training" in tested.notes[-1]
    )


@pytest.mark.slow
def test_a_map_has_as_many_tokens_of_each_class(run, colours, tmp_path):
    settings = {"images": 8, "classes": 3, "tokens": 6, "perplexity": 5.0, "iterations": 250}
    out = found(run, tmp_path, "task=tsne", data__source=colours, **settings)
    values = out["metrics"]
    assert values["classes"] == ["blue", "red", "white"] and values["depth"] == 2
    assert np.bincount(values["class_of"]).tolist() == [18, 18, 12]
    assert np.shape(values["points"]) == (48, 2) and out["score"] is None
    again = found(run, tmp_path, "task=tsne", data__source=colours, **settings)["metrics"]
    assert again == values


def test_tokens_that_are_all_alike_have_no_map():
    tokens = np.ones((2, 3, 4), np.float32)
    with pytest.raises(InputError, match="all tokens at depth 5 are alike"):
        tsne._check_different(tokens, 5)
    tokens[1, 2, 3] = 2
    tsne._check_different(tokens, 5)


def test_what_the_source_or_the_encoder_cannot_serve_is_refused(run, colours, tmp_path):
    plain = tmp_path / "plain"
    for path in Path(colours.removeprefix("folder:")).glob("val/*/*.png"):
        plain.mkdir(exist_ok=True)
        (plain / path.name).write_bytes(path.read_bytes())
    plain, green = f"folder:{plain}", copied(colours, tmp_path / "c", ("green", "red"))
    (tmp_path / "c" / "green").rename(tmp_path / "c" / "verde")
    (tmp_path / "c" / "red").rename(tmp_path / "c" / "rosso")
    for argument, source, changes, words in (
        ("layers", plain, {}, "task layers needs labels, and .* has none"),
        ("tsne", plain, {}, "task tsne needs labels, and .* has none"),
        ("tsne", colours, {"depth": 3}, "config.depth=3 is beyond the encoder's 2 blocks; take"),
        ("tsne", colours, {"images": 2}, "needs more than 60 tokens, and 2 images have 32"),
        ("shift", colours, {}, "config.changed is empty"),
        ("shift", colours, {"changed": plain}, "config.changed=.*plain has no labels: "),
        ("shift", colours, {"changed": green}, "no class in common: rosso, verde there, blue, gre"),
        ("frequencies", colours, {"image_size": (8, 16)}, "at least 3 x 3 patches, .* have 2 x 4"),
        ("frequencies", colours, {"noise__classifier": "own"}, "is an MAE run, which has none; gi"),
        (
            "frequencies",
            plain,
            {"noise__classifier": "ridge"},
            "needs labels of both splits, and .*plain has no labels: .*; set it to n",
        ),
        ("frequencies", colours, {"noise__half_width": 0.01}, "about 0.8 holds no frequency of im"),
    ):
        with pytest.raises(InputError, match=words) as error:
            opened(run, source, f"task={argument}", **changes)
        assert "\n" not in str(error.value)
    assert ring_noise._classifier(opened(run, plain, "task=frequencies"))[0] == ""


def test_drops_are_in_points_and_stand_under_no_other_quantity():
    drop = {"mean": [0.02, 0.135], "error": [0.01, 0.0233]}
    noise = {
        "clean": {"mean": 0.53, "error": 0.025},
        "drop": drop,
        "frequencies": [0.4, 2.4],
        "deviation": [0.13, 0.4],
    }
    assert ring_noise.rows(noise) == [
        ("accuracy without noise", "53.00 % ± 2.50"),
        ("drop under noise at 0.4 rad, deviation 0.13", "2.00 ± 1.00 points"),
        ("drop under noise at 2.4 rad, deviation 0.40", "13.50 ± 2.33 points"),
    ]
    assert ring_noise.row(noise)["largest drop"] == "13.50 ± 2.33 points (2.4 rad)"
