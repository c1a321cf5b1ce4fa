"""The sentences and the page of task inside, of metrics made by hand."""

import pytest

from dppmask_jax import words
from dppmask_jax.analyses import inside, inside_page, inside_words
from dppmask_jax.evals.base import Part
from dppmask_jax.tasks import TASKS


def noisy(drop, error=0.01):
    """Metrics of task frequencies whose second ring of noise costs the most."""
    return {
        "highest": {"mean": [-1.0, -1.0], "error": [0.1, 0.1]},
        "noise": {
            "clean": {"mean": 0.5, "error": 0.02},
            "drop": {"mean": [drop - 0.1, drop], "error": [0.02, error]},
            "frequencies": [0.4, 2.4],
        },
    }


def curved(first, last, error=0.1):
    return {"mean": [first, 9.0, last], "error": [error, 9.0, error]}


def scored(above):
    return {
        "scores": [0.91, 0.8], "errors": [0.01, 0.02], "above": above, "removed_variance": 0.0312
    }  # fmt: skip


def attended(gain):
    return {
        "accuracy": {"attentive": 0.6, "ridge": 0.5}, "error": {"attentive": 0.01, "ridge": 0.02},
        "gain": gain, "gain_error": 0.01, "chance": 0.25,
    }  # fmt: skip


def aligned(first, last):
    return {"tokens": curved(0.5, 0.5), "images_level": curved(first, last)}


def shifted(*names):
    part = {"original": {"mean": 0.9, "error": 0.01}, "changed": {"mean": 0.7, "error": 0.02},
            "drop": {"mean": 0.2, "error": 0.03}}  # fmt: skip
    wrong = {kind: {"mean": 0.0, "error": 0.0} for kind in part}
    return {"classifiers": {name: part if name == "ridge" else wrong for name in names}}


def reached(first, last):
    return {
        "distance": curved(first, last), "nmi": curved(last, first), "uniform_distance": 33.14
    }  # fmt: skip


def cut(iou):
    return {
        "masks": {name: {"IoU": {"value": value, "error": 0.01}}
                  for name, value in (("tokencut", iou), ("whole", 0.2))},
    }  # fmt: skip


def layered(*means):
    curve = {"mean": list(means), "error": [0.01] * len(means)}
    return {"chance": 0.25, "tokens": {"patches": {"ridge": curve}}}


@pytest.mark.parametrize(
    "says, metrics, words",
    [
        ("soap_scores", scored(0), "0.910 ± 0.010; none is above 0.75, so there is little"),
        ("soap_scores", scored(1), "1 of 2 directions is above 0.75: it carries position noise"),
        ("soap_scores", scored(2), "2 of 2 directions are above 0.75: they carry position noise. "
         "The projector takes away 3.12 % of"),
        ("soap_maps", {"ranks": [0, 3], "shares": [0.5, 0.032]},
         "component 0 holds 50.00 %, component 3 holds 3.20 %."),
        ("attentive", attended(0.1), "50.00 % ± 2.00; chance is 25.00 %: tokens know more than"),
        ("attentive", attended(-0.1), "chance is 25.00 %: attending loses against the mean."),
        ("attentive", attended(0.01), ": attending is not told apart from the mean."),
        ("distance", reached(20.0, 10.0), "distance falls from 20.00 ± 0.10 to 10.00 ± 0.10 pi"),
        ("distance", reached(20.0, 10.0), "reach 33.1; the dependence on the looking patch rises "
         "from 10.0000"),
        ("frequencies", {"highest": curved(-1, -2)}, "frequency falls, so the map gets smoother, "
         "from -1.00 ± 0.10 to -2.00 ± 0.10. The accuracy under noise was not measured: it needs"),
        ("frequencies", {"highest": curved(-2, -1)}, "rises, so it gets sharper, from -2.00"),
        ("frequencies", {"highest": curved(-1, -1.2)}, "does not change beyond its error, from"),
        ("frequencies", noisy(0.2), "; of an accuracy of 50.00 % ± 2.00, noise at 2.4 radians a "
         "pixel costs the most, 20.00 ± 1.00 points."),
        ("frequencies", noisy(0.01), "the most, 1.00 ± 1.00 points, not told apart from no loss."),
        ("frequencies", noisy(-0.003), "; noise of no frequency lowers the accuracy of 50.00 %"),
        ("diversity", aligned(0.9, 0.1), "one image does not change beyond its error, from 0.500"),
        ("diversity", aligned(0.9, 0.1), "of different images falls from 0.900"),
        ("diversity", aligned(0.1, 0.9), "of different images rises from 0.100"),
        ("layers", layered(0.3, 0.6, 0.5), "at depth 1 of 2, 60.00 % ± 1.00, above the 50.00 % ± "
         "1.00 of the last; the best depth was chosen on these very images"),
        ("layers", layered(0.3, 0.6, 0.59), "± 1.00, not told apart from the 59.00 %"),
        ("layers", layered(0.3, 0.6), "best at depth 1 of 1, 60.00 % ± 1.00; chance is 25.00 %."),
        ("shift", shifted("own", "ridge", "knn"), "Of 90.00 % ± 1.00 accuracy (ridge), 70.00 % ± "
         "2.00 is left on changed images, a drop of 20.00 ± 3.00 points."),
        ("shift", shifted("ridge"), "accuracy (ridge), 70.00 %"),
    ],
)  # fmt: skip
def test_sentences_say_which_way_numbers_go(says, metrics, words):
    assert words in getattr(inside_words, f"_{says}")(metrics)


@pytest.mark.parametrize(
    "iou, words", [(0.5, "better than"), (0.05, "worse than"), (0.21, "not told apart from")]
)
def test_a_cut_is_better_or_worse_than_the_whole_image(iou, words):
    metrics = cut(iou)
    assert f"covers, {words} calling the whole image" in inside_words._saliency(metrics)


FOUND = {"layers": layered(0.3, 0.6, 0.5), "saliency": cut(0.5), "tsne": {}}


def part(name, labels=(), left_out=(), note=""):
    record = {
        "metrics": FOUND[name], "protocol": "a; b", "note": note,
        "config": {"image_size": [16, 16], "data": {"source": "shapes"}},
        "data": {"train_images": 96, "val_images": 20},
    }  # fmt: skip
    return Part(
        name, dict.fromkeys(labels, record), [], {f"{name}.png": "a.png"}, {}, dict(left_out)
    )


def paged(*parts):
    return inside_page.text(parts, {"one": "an MAE", "two": "an MAE"}, "")


def test_a_part_of_one_run_alone_says_so_and_parts_are_counted_not_runs():
    text = paged(
        part("layers", ["one"], {"two": "no labels"}),
        part("saliency", left_out={"one": "no masks", "two": "no masks"}),
        part("tsne", ["one", "two"]),
    )
    assert "- **Which depth tells classes apart.** Of one alone. Ridge on the mean" in text
    assert "need not be the last. Of one alone.\n" in text and text.count(" alone.") == 2
    left = text.split("## Left out: 2 parts")[1]
    assert left.count("\n- ") == 3 and "(task layers), of two: no labels." in left


def test_the_page_has_no_heading_and_no_line_without_words_below_it():
    text = paged(part("layers", left_out={"one": "no labels", "two": "no labels"}))
    assert "## In short" not in text and "Images:" not in text
    assert "## Left out: 1 part\n" in text
    assert "## In short" not in paged(part("tsne", ["one", "two"]))
    text = paged(part("layers", ["one", "two"], note="± over images\nmore"))
    assert "Images: shapes, 16x16 pixels: 96 for" in text and "## In short\n\n- " in text
    assert "How it was measured:\n\n- a; b.\n- ± over images.\n- more.\n" in text


def test_every_part_has_words_and_numbers_are_told_apart_by_their_errors():
    assert set(inside_words.WORDS) == set(inside.PARTS) <= set(TASKS)
    words = ("below", "above", "alike")
    for other, expected in (((0.5, 0.1), "above"), ((0.2, 0.1), "alike"), ((-1, 0.1), "below")):
        assert inside_words._between((0.1, 0.1), other, words) == expected
    assert inside_words._between((0.1, 0.1), (5.0, float("nan")), words) == "alike"


def test_what_not_all_say_stands_behind_those_who_do():
    said = {"a": ["all", "own", "own"], "b": ["all", "two"], "c": ["two", "all"]}
    assert words.by_whom(said) == ["all", "a: own", "b, c: two"]
    assert words.by_whom({"a": ["x", "y"]}) == ["x", "y"]
