"""A class for each patch: heads on toy tokens, and the task on a small data set."""

import json
import re

import jax
import numpy as np
import pytest
import tiny
from PIL import Image
from test_data_segments import save

from dppmask_jax import evaluate
from dppmask_jax.analyses import segment_maps
from dppmask_jax.analyses.segmentation_heads import HEADS, Examples
from dppmask_jax.data.images import decode
from dppmask_jax.errors import InputError
from dppmask_jax.evaluating import subjects
from dppmask_jax.figures.class_maps import NO_CLASS, class_colors, draw_class_maps, voc_color
from dppmask_jax.figures.panels import _legend_lines
from dppmask_jax.scores import nearest

CONFIG = tiny.evaluation("task=segmentation", head_epochs=10, head_batch=256)

pytestmark = pytest.mark.usefixtures("fewer_blocks")


@pytest.fixture(scope="module")
def run(fewer_blocks, tmp_path_factory):
    return tiny.save_run(tmp_path_factory.mktemp("run") / "mae")


def toy(count, seed):
    """(count, 6) tokens of three classes on a common offset, apart in three of their channels, of
    which the last is small beside the noise of the others."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, count).astype(np.int32)
    tokens = 5 + rng.normal(size=(count, 6)) * [0.05, 0.05, 0.002, 1, 1, 1]
    tokens[:, :3] += np.eye(3)[classes] * [1, 1, 0.04]
    return tokens.astype(np.float32), classes


@pytest.mark.parametrize("name", ["ridge", "linear"])
def test_linear_heads_are_right_on_separable_tokens(name):
    tokens, classes = toy(1200, 0)
    head = HEADS[name](Examples(tokens, classes, np.arange(1200) // 12), 3, CONFIG)
    test, true = toy(500, 1)
    found = jax.jit(head.predict)(head.state, test)
    assert np.mean(np.asarray(found) == true) > 0.99
    again = HEADS[name](Examples(tokens, classes, np.arange(1200) // 12), 3, CONFIG)
    np.testing.assert_array_equal(again.state["weights"], head.state["weights"])


def test_neighbours_vote_as_in_the_classification_of_images():
    tokens, classes = toy(300, 2)
    classes = np.random.default_rng(4).permutation(classes)  # close votes: weights decide
    tokens = tokens - 5  # in all directions
    test = toy(40, 3)[0] - 5
    head = HEADS["knn"](Examples(tokens, classes, None), 3, CONFIG)
    found = np.asarray(jax.jit(head.predict)(head.state, test))
    expected = nearest.predictions(tokens, classes, test, num_classes=3, ks=(20,))[20]
    np.testing.assert_array_equal(found, expected)
    few = HEADS["knn"](Examples(tokens[:5], classes[:5], None), 3, CONFIG)  # fewer than k
    assert few.predict(few.state, test).shape == (40,)


def painted(root, count=24, size=16, palette=True):
    """Left and right halves dark and bright, in either order, an undecided column between them, as
    a table with maps of the classes 0 (dark) and 2 (bright)."""
    rng = np.random.default_rng(0)
    rows = ["path,split,segments"]
    for i in range(count):
        bright = np.arange(size) >= size // 2
        bright = np.tile(bright ^ (i % 2 == 1), (size, 1))
        pixels = np.where(bright[..., None], 200, 40) + rng.normal(0, 5, (size, size, 3))
        save(root / f"{i}.png", np.clip(pixels, 0, 255).astype(np.uint8))
        classes = np.where(bright, 2, 0).astype(np.uint8)
        classes[:, size // 2] = 255
        save(root / f"maps/{i}.png", classes, palette)
        rows.append(f"{i}.png,{'train' if i < count * 2 // 3 else 'val'},maps/{i}.png")
    (root / "list.csv").write_text("\n".join(rows) + "\n")
    return f"csv:{root}/list.csv"


def test_the_task_finds_what_is_painted(run, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("dark\nnever there\nbright\n")
    config = tiny.evaluation(
        "task=segmentation", data__source=painted(tmp_path), segments=str(names), shown=2,
        heads=("ridge", "knn"), batch_size=4, tokens=200,
    )  # fmt: skip
    path = evaluate.evaluate(config, run, tmp_path / "out")
    record = json.loads(path.read_text())
    found = record["metrics"]
    assert (found["train_images"], found["images"], found["train_tokens"]) == (16, 8, 16 * 12)
    assert found["absent"] == ["never there"] and found["pixels"] == [960, 0, 960]
    assert list(found["heads"]) == ["ridge", "knn", "commonest class", "limit of patches"]
    assert found["heads"]["limit of patches"]["miou"] == 1, (
        "borders of patches are those of classes"
    )
    for name in ("ridge", "knn"):
        assert found["heads"][name]["miou"] > 0.9
        assert found["heads"][name]["iou"][1] is None and found["heads"][name]["iou"][2] > 0.9
    assert found["heads"]["commonest class"]["miou"] == pytest.approx(0.25)
    assert record["score"]["name"] == "mean IoU (ridge)"
    assert record["score"]["standard_error"] == found["heads"]["ridge"]["miou_error"]
    printed = capsys.readouterr().out
    assert re.search(r"^IoU of bright +\d+\.\d\d % ± ", printed, re.MULTILINE)
    assert "left out of the mean, without a pixel in these images: never there" in printed
    drawn = sorted(figure.name for figure in (tmp_path / "out/figures").iterdir())
    assert drawn == ["segmentation_classes.png", "segmentation_maps.png"]


def opened(run, tmp_path, source, **changes):
    config = tiny.evaluation("task=segmentation", data__source=source, **changes)
    return segment_maps.opened(subjects.opened(subjects.Subject(config, run, tmp_path / "out", "")))


def test_classes_come_from_the_source_its_maps_or_its_masks(run, tmp_path):
    source = painted(tmp_path, palette=False)
    assert opened(run, tmp_path, source).names == ("class 0", "class 1", "class 2")
    assert len(opened(run, tmp_path, source, segments="5").names) == 5
    few = opened(run, tmp_path, source, train_images=4, images=2)
    assert few.train_rows.tolist() == [0, 5, 10, 15] and few.val_rows.tolist() == [0, 7]
    text = (tmp_path / "list.csv").read_text()
    for path in (tmp_path / "maps").iterdir():
        Image.fromarray(np.uint8([0, 128, 255])[np.asarray(Image.open(path)) % 3]).save(path)
    (tmp_path / "list.csv").write_text(text.replace("segments", "mask"))
    masked = opened(run, tmp_path, source)
    assert masked.names == ("background", "foreground") and masked.ignored == 255
    assert opened(run, tmp_path, tiny.COMMON["data.source"]).names[1] == "plain square"
    assert opened(run, tmp_path, tiny.COMMON["data.source"]).ignored is None


def _value(name, value, size=(16, 16)):
    return lambda root: save(root / f"maps/{name}.png", np.full(size, value, np.uint8))


def _training(value):
    return lambda root: [_value(i, value)(root) for i in range(16)]


def _broken(root):
    for i in range(1, 16):
        (root / f"maps/{i}.png").write_bytes(b"broken")


def _intact(root):
    pass


WRONG = {
    "size": (_value(3, 0, (16, 8)), {}, r"3\.png has 8 x 16 pixels, the image 16 x 16"),
    "outside": (_value(20, 7), {"segments": "3"}, r"20\.png has the value 7; .* 0 to 2, and 255"),
    "ignored": (_intact, {"ignored": 9, "segments": "3"}, "has the value 255; .* and 9 for none"),
    "one class": (_training(4), {}, "of which 1 appear in 16 training images"),
    "no class": (_training(255), {}, "no pixel of 16 training"),
    "no image": (_broken, {}, "1 of 16 training images can be read with their map"),
    "no file": (lambda root: (root / "maps/2.png").unlink(), {}, r"1 of the 16 files that .*list"),
    "names": (_intact, {"segments": "gone.txt"}, r"config\.segments=gone\.txt: No such file"),
    "folder": (_intact, {"data__source": "folder:{root}"}, "needs classes of pixels or foreground"),
    "number": (_intact, {"segments": "1"}, r"config\.segments='1' is not allowed: 2 to 1000"),
    "heads": (_intact, {"heads": ("knn", "knn")}, r"heads=\('knn', 'knn'\) is not allowed"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_before_anything_is_computed(name, run, tmp_path):
    break_it, changes, words = WRONG[name]
    changes = {"data__source": painted(tmp_path)} | changes
    changes["data__source"] = changes["data__source"].format(root=tmp_path)
    break_it(tmp_path)
    config = tiny.evaluation("task=segmentation", **changes)
    with pytest.raises(InputError, match=words) as error:
        evaluate.evaluate(config, run, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_colours_of_many_classes_are_those_of_voc_and_of_few_far_apart():
    few = np.array(class_colors(11))
    apart = np.abs(few[:, None] - few).sum(axis=2) + 999 * np.eye(11)
    assert apart.min() > 60 and tuple(few[0]) == (0, 0, 0)
    assert class_colors(12) == [voc_color(i) for i in range(12)]
    assert [voc_color(i) for i in (0, 1, 5, 15)] == [
        (0, 0, 0), (128, 0, 0), (128, 0, 128), (192, 128, 128),
    ]  # fmt: skip
    assert len({voc_color(i) for i in range(256)}) == 256


def test_the_picture_shows_the_colours_of_the_maps(tmp_path):
    maps = np.array([[[0, 1], [1, 255]]]).repeat(8, axis=1).repeat(8, axis=2)
    images = np.full((1, 16, 16, 3), 77, np.uint8)
    names = ["background", "thing", *map(str, range(2, 30))]
    figure = draw_class_maps(images, {"k-NN": maps % 255, "Truth": maps}, names, 255)
    figure.savefig(tmp_path / "maps.png")
    pixels = decode.decode((tmp_path / "maps.png").read_bytes()).reshape(-1, 3)
    for color in ((77, 77, 77), voc_color(0), voc_color(1), NO_CLASS):
        assert (pixels == color).all(axis=1).sum() > 1000, color
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["Image", "k-NN", "Truth", "background", "thing", "no class"]
    long = [((0, 0, 0), "a name of a class")] * 20
    lines = _legend_lines(long, 900)
    assert sum(map(len, lines)) == 20 and max(map(len, lines)) <= 6 and _legend_lines([], 9) == []
