import csv
import functools
import itertools
import json
import statistics
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from PIL import Image
from sklearn.metrics import normalized_mutual_info_score

import dppmask_jax
from dppmask_jax import evaluate
from dppmask_jax.errors import InputError
from dppmask_jax.evals import base, cluster
from dppmask_jax.evals.seeds import folder_of
from dppmask_jax.evaluating import subjects
from dppmask_jax.models.sizes import SIZES, Size
from dppmask_jax.runs import checkpoint, metrics
from dppmask_jax.runs.run import load_run, open_data
from dppmask_jax.scores.clustering import cluster_scores
from dppmask_jax.training import fit

COLOURS = {
    "blue": (20, 40, 220),
    "green": (30, 200, 60),
    "red": (230, 30, 20),
    "white": (240, 235, 230),
}
TRAIN, VAL = 8, 6  # images of each colour


pytestmark = pytest.mark.usefixtures("fewer_blocks")


@pytest.fixture(scope="module")
def mae_run(fewer_blocks, tmp_path_factory):
    return tiny.save_run(tmp_path_factory.mktemp("mae") / "run")


@pytest.fixture(scope="module")
def ibot_run(fewer_blocks, tmp_path_factory):
    return tiny.save_run(tmp_path_factory.mktemp("ibot") / "run", method="ibot")


def painted(root, shuffled):
    """Folders of plain colours, with a little noise; `shuffled` gives any image any class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", VAL)):
        images = [colour for colour in COLOURS.values() for _ in range(count)]
        names = [name for name in COLOURS for _ in range(count)]
        if shuffled:
            names = rng.permutation(names)
        for number, (colour, name) in enumerate(zip(images, names, strict=True)):
            folder = root / split / str(name)
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.clip(colour + rng.normal(0, 8, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return f"folder:{root}"


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return painted(tmp_path_factory.mktemp("colours"), shuffled=False)


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory):
    return painted(tmp_path_factory.mktemp("shuffled"), shuffled=True)


def painted_squares(root):
    """A CSV file: squares in the colour of their class on grey noise, with masks and attributes."""
    rng = np.random.default_rng(0)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 5:13] = 255
    Image.fromarray(mask).save(root / "mask.png")
    with open(root / "list.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "split", "label", "mask", "reddish", "greenish"])
        for number in range(4 * (TRAIN + VAL)):
            name = list(COLOURS)[number % 4]
            pixels = rng.integers(90, 140, (16, 16, 3)).astype(np.uint8)
            pixels[mask > 0] = COLOURS[name]
            Image.fromarray(pixels).save(root / f"{number}.png")
            split = "train" if number < 4 * TRAIN else "val"
            red, green = (int(COLOURS[name][channel] > 150) for channel in (0, 1))
            rows.writerow([f"{number}.png", split, name, "mask.png", red, green])
    return f"csv:{root}/list.csv"


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return painted_squares(tmp_path_factory.mktemp("squares"))


def found(run, workdir, argument, **changes):
    """The JSON of an evaluation."""
    config = tiny.evaluation(argument, **changes)
    return json.loads(evaluate.evaluate(config, run, workdir, "as typed").read_text())


QUICK = {"batch_size": 16, "data__crop_scale": (0.5, 1.0)}
FINETUNE = QUICK | {"epochs": 8.0, "checkpoint__every": 4, "log_every": 6}
# LARS changes the weights by a thousandth of their length a step, and so takes many.
LINEAR = QUICK | {"epochs": 150.0, "log_every": 50, "evaluate__every_epochs": 75.0}


def test_knn_of_plain_colours(mae_run, colours, tmp_path, capsys):
    out = found(mae_run, tmp_path / "new", "task=knn", data__source=colours, k=(1, 5))
    assert out["metrics"] == {name: {"1": 1.0, "5": 1.0} for name in ("cls", "patches", "pixels")}
    assert out["task"] == "knn" and out["command"] == "as typed"
    assert out["data"] == {"train_images": 4 * TRAIN, "val_images": 4 * VAL, "classes": 4}
    assert out["checkpoint"]["workdir"] == str(mae_run) and out["checkpoint"]["step"] == 12
    assert out["checkpoint"]["config"]["method"] == "mae"
    assert out["config"]["k"] == [1, 5] and out["config"]["image_size"] == [16, 16]
    assert "32 training and 24 validation images" in out["protocol"] and "4 x" in out["devices"]
    written = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert written == ["eval_knn.json", "eval_knn_images.npy"]
    lines = capsys.readouterr().out.splitlines()
    assert "patches  100.00 % ± 0.00  100.00 % ± 0.00" in lines
    assert "chance           25.00 %          25.00 %" in lines
    assert lines[0] == f"knn: {mae_run} (mae Pi/4, step 12)"


def test_knn_of_shuffled_labels_is_chance(mae_run, shuffled, tmp_path):
    settings = {"data__source": shuffled, "k": (5,), "center": True, "image_size": (20, 16)}
    out = found(mae_run, tmp_path, "task=knn", **settings)
    plain = {"cls", "patches", "pixels"}
    assert out["metrics"].keys() == plain | {f"{name}_centred" for name in plain}
    for name, of_k in out["metrics"].items():
        assert of_k["5"] < 0.6, name  # 4 standard deviations above a quarter of 24
    assert "centred: less the training mean" in out["protocol"]
    assert "fixed positions resized" in out["protocol"]
    share = out["score"]["value"]
    assert out["score"]["standard_error"] == pytest.approx((share * (1 - share) / 24) ** 0.5)


def test_ridge_of_plain_colours_and_shuffled_labels(ibot_run, colours, shuffled, tmp_path):
    for source, low, high, size in ((shuffled, 0.0, 0.6, None), (colours, 1.0, 1.0, (16, 20))):
        settings = {"solver": "ridge", "data__source": source, "image_size": size}
        out = found(ibot_run, tmp_path, "task=linear", **settings)
        words = "images of 16x20, the run's are 16x16: learned positions resized"
        assert out["protocol"].endswith(words) == (size is not None)
        assert out["config"]["image_size"] == list(size or (16, 16))
        assert out["checkpoint"]["config"]["image_size"] == [16, 16]
        assert low <= out["metrics"]["top1"] <= high
        assert out["task"] == "linear_ridge" and out["score"]["value"] == out["metrics"]["top1"]
    assert (tmp_path / "eval_linear_ridge.json").exists(), "apart from MAE's protocol"


def test_clusters_of_plain_colours_are_the_classes(mae_run, colours, tmp_path):
    out = found(mae_run, tmp_path, "task=cluster", data__source=colours)
    clusters = out["metrics"]["clusters"]
    assert set(clusters) == {"k-means (cls)", "k-means (mean)"}, "MAE has no prototypes"
    for values in clusters.values():
        assert values["acc"] == {"mean": 1.0, "std": 0.0, "values": [1.0] * 3}
        assert values["least_nmi"] == 1.0 and values["nmi"]["mean"] == pytest.approx(1.0)
    assert out["metrics"]["agreement"] is None
    for _, *measures, acc, _ in out["table"][1:]:
        assert acc == "100.00 % ± 0.00" and measures[0] == "1.0000", "shares alone in percent"


@pytest.mark.slow
def test_clusters_of_the_head_and_of_its_views(ibot_run, colours, tmp_path, monkeypatch):
    labels_scored = []

    def score(assignment, labels):
        labels_scored.append(labels)
        return cluster_scores(assignment, labels)

    monkeypatch.setattr(cluster, "cluster_scores", score)
    settings = {"num_clusters": 7, "batch_size": 20}  # the last batch of 24 images is not full
    out = found(ibot_run, tmp_path, "task=cluster", data__source=colours, **settings)
    clusters = out["metrics"]["clusters"]
    assert set(clusters) == {
        "k-means (cls)",
        "k-means (mean)",
        "arg-max of the head",
        "arg-max of the head, augmented view",
    }
    assert not any("least_nmi" in values for values in clusters.values()), "for more clusters"
    whole, of_views = labels_scored[-2:]
    np.testing.assert_array_equal(np.bincount(of_views), np.bincount(whole), "each image once")
    share = out["metrics"]["agreement"]
    assert 0 <= share <= 1
    assert out["table"][-1][4] == base.percent(share, (share * (1 - share) / 24) ** 0.5)
    run = load_run(ibot_run)
    best, labels = [], []
    for number, name in enumerate(COLOURS):
        for path in sorted((Path(colours.removeprefix("folder:")) / "val" / name).iterdir()):
            with Image.open(path) as image:
                logits = run.method.logits(run.params, run.extra, np.asarray(image)[None])
            best.append(int(np.argmax(logits)))
            labels.append(number)
    nmi = normalized_mutual_info_score(labels, best)
    assert clusters["arg-max of the head"]["nmi"]["mean"] == pytest.approx(nmi)
    assert out["score"]["value"] == pytest.approx(nmi)


def test_features_too_large_for_memory_are_kept_in_a_file(mae_run, colours, tmp_path):
    run, results = load_run(mae_run), []
    for gigabytes in (1.0, 1e-9):
        config = tiny.evaluation("task=knn", data__source=colours, memory_gb=gigabytes)
        config = subjects.completed(config, run.config)
        train, val = open_data(config)
        evaluation = base.Evaluation(config, run, tmp_path, train, val, print)
        results.append(base.frozen_features(evaluation, train, ("cls", "pixels"), "training"))
    assert isinstance(results[1][0]["cls"], np.memmap)
    assert not isinstance(results[0][0]["cls"], np.memmap)
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert not list(tmp_path.iterdir())


def files(folder):
    return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def finetuned(mae_run, squares, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finetuned")
    return workdir, found(mae_run, workdir, "task=finetune", data__source=squares, **FINETUNE)


@pytest.mark.slow
def test_finetuning_learns_colours(finetuned):
    workdir, out = finetuned
    assert out["metrics"]["last"] == {"top1": {"mean": 1.0, "std": None, "values": [1.0]}}
    records = metrics.read_metrics(folder_of(workdir, "finetune", 0) / "metrics.jsonl")
    scored = [record for record in records if "top1" in record]
    assert [record["step"] for record in scored] == list(range(2, 18, 2)), "each epoch"
    assert all(record["images_scored"] == 4 * VAL for record in scored)
    assert scored[0]["top1"] < 1.0, "it has to be learned"


@pytest.mark.slow
def test_an_interrupted_finetuning_gives_the_same(finetuned, mae_run, squares, tmp_path,
                                                  monkeypatch, capsys):  # fmt: skip
    workdir, out = finetuned
    save = checkpoint.Checkpoints.save

    def save_and_stop(self, step, *rest):
        save(self, step, *rest)
        if step == 8:
            raise KeyboardInterrupt

    again = functools.partial(
        found, mae_run, tmp_path, "task=finetune", data__source=squares, **FINETUNE
    )
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            again()
    assert not (tmp_path / "eval_finetune.json").exists()
    backgrounds = {"data__source": squares, "classifier": "finetune"}
    with pytest.raises(InputError, match=r"needs a finished training in .*; run task=finetune"):
        found(mae_run, tmp_path, "task=backgrounds", **backgrounds)
    assert again()["metrics"] == out["metrics"]
    one, other = (
        checkpoint.read_newest(folder_of(folder, "finetune", 0))[1:]
        for folder in (workdir, tmp_path)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)

    def refuse(*_, **__):
        raise AssertionError("trained again")

    def step_refused(*args, **kwargs):
        return refuse

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(fit, "make_step", step_refused)
        assert again()["metrics"] == out["metrics"]
    said = capsys.readouterr().out
    assert "finished at step" in said and "resuming" not in said


@pytest.mark.slow
def test_a_training_belongs_to_its_config_and_its_encoder(
    finetuned, mae_run, squares, tmp_path, monkeypatch
):
    workdir, _ = finetuned
    other = tiny.save_run(tmp_path / "other", mask__tau=0.5)
    before = files(workdir)
    for run, change, words in (
        (mae_run, {"loss__smoothing": 0.2}, "loss.smoothing: 0.1 -> 0.2"),
        (other, {}, "pretrained.config.mask.tau: 0.9 -> 0.5"),
    ):
        settings = FINETUNE | {"data__source": squares} | change
        with pytest.raises(InputError, match="holds checkpoints of another run") as error:
            found(run, workdir, "task=finetune", **settings)
        assert words in str(error.value) and "\n" not in str(error.value)
        assert files(workdir) == before
    settings = {"data__source": squares, "classifier": "finetune"}
    with pytest.raises(InputError, match="was not trained on this checkpoint"):
        found(other, workdir, "task=backgrounds", **settings)


@pytest.mark.slow
def test_a_classifier_of_another_image_size(ibot_run, squares, tmp_path):
    settings = QUICK | {"data__source": squares, "epochs": 0.5, "image_size": (16, 24)}
    settings |= {"optim__warmup_epochs": 0.0, "evaluate__every_epochs": 0.5}
    out = found(ibot_run, tmp_path, "task=finetune", **settings)
    assert "learned positions resized" in out["protocol"]
    folder = folder_of(tmp_path, "finetune", 0)
    with pytest.raises(InputError, match=r"image_size: \(16, 24\) -> \(16, 16\)"):
        found(ibot_run, tmp_path, "task=finetune", **settings | {"image_size": None})
    encoder = dppmask_jax.load_encoder(folder)
    assert encoder.image_size == (16, 24) and encoder.grid == (4, 6)
    assert encoder(np.zeros((1, 16, 24, 3), np.uint8))["patches"].shape == (1, 24, 24)

    again = {"data__source": squares, "classifier": "finetune"}
    with pytest.raises(InputError, match=r'16x24; add --config.image_size="\(16,24\)"'):
        found(ibot_run, tmp_path, "task=backgrounds", **again)
    of_run = found(ibot_run, tmp_path, "task=backgrounds", **again, image_size=(16, 24))
    itself = {"data__source": squares, "classifier": "own"}
    own = found(folder, tmp_path / "own", "task=backgrounds", **itself)
    assert own["metrics"] == of_run["metrics"] and own["config"]["image_size"] == [16, 24]
    tested = found(folder, tmp_path / "own", "task=finetune", **QUICK, data__source=squares,
                   epochs=0.0, image_size=(16, 16))  # fmt: skip
    assert "learned positions resized" in tested["protocol"]


@pytest.mark.slow
def test_the_background_challenge_with_a_trained_classifier(finetuned, mae_run, squares, colours):
    workdir, _ = finetuned
    settings = {"data__source": squares, "classifier": "finetune"}
    out = found(mae_run, workdir, "task=backgrounds", **settings)["metrics"]
    assert out["variants"]["original"] == {
        "accuracy": 1.0,
        "per_class": dict.fromkeys(COLOURS, 1.0),
        "images": 4 * VAL,
    }
    assert out["ceiling"] == 1.0
    gap = out["variants"]["mixed_same"]["accuracy"] - out["variants"]["mixed_rand"]["accuracy"]
    assert out["bg_gap"] == gap
    with pytest.raises(InputError, match=r"needs a finished training in .*seed-1; run"):
        found(mae_run, workdir, "task=backgrounds", classifier_seed=1, **settings)


def test_the_background_challenge_by_ridge(ibot_run, squares, tmp_path):
    out = found(ibot_run, tmp_path, "task=backgrounds", data__source=squares)
    variants = out["metrics"]["variants"]
    assert set(variants) == {"original", "only_fg", "mixed_same", "mixed_rand", "mixed_next"}
    assert all(values["images"] == 4 * VAL for values in variants.values())
    assert variants["original"]["accuracy"] == 1.0
    assert "ridge classifier on frozen features" in out["protocol"]
    right = np.load(tmp_path / "eval_backgrounds_images.npy")
    assert right.shape == (4 * VAL,) and right.mean() == variants["mixed_rand"]["accuracy"]
    cells = {row[0]: row[1] for row in out["table"]}
    errors = {}
    for name, values in variants.items():
        share = values["accuracy"]
        errors[name] = (share * (1 - share) / (4 * VAL)) ** 0.5
        assert cells[name] == base.percent(share, errors[name])
    gap = (errors["mixed_same"] ** 2 + errors["mixed_rand"] ** 2) ** 0.5
    assert cells["BG-gap"] == base.percent(out["metrics"]["bg_gap"], gap)


@pytest.mark.slow
def test_linear_probes_with_several_seeds(mae_run, colours, tmp_path):
    settings = LINEAR | {"data__source": colours, "epochs": 10.0}
    out = found(mae_run, tmp_path, "task=linear", **settings, seeds=(0, 1))
    last = out["metrics"]["last"]["top1"]
    by_hand, heads = [], []
    for seed in (0, 1):
        folder = folder_of(tmp_path, "linear", seed)
        by_hand.append(metrics.read_metrics(folder / "metrics.jsonl")[-1]["top1"])
        heads.append(checkpoint.read_newest(folder)[1]["params"]["head"]["kernel"])
    assert last["values"] == by_hand
    assert last["mean"] == pytest.approx(statistics.fmean(by_hand))
    assert last["std"] == pytest.approx(statistics.stdev(by_hand))
    shares = np.load(tmp_path / "eval_linear_images.npy")
    assert set(shares) <= {0.0, 0.5, 1.0}, "of two seeds"
    assert shares.mean() == pytest.approx(last["mean"])
    assert not np.allclose(*heads)
    error = (last["mean"] * (1 - last["mean"]) / (4 * VAL)) ** 0.5
    assert out["score"]["standard_error"] == pytest.approx(error)
    cells = [base.percent(last["mean"], error), base.percent(last["std"])]
    assert out["table"][0][1:3] == ["accuracy", "std over seeds"] and out["table"][1][1:3] == cells
    alone = found(mae_run, tmp_path / "alone", "task=linear", **settings, seeds=(1,))
    assert alone["metrics"]["last"]["top1"]["values"] == by_hand[1:]
    state = checkpoint.read_newest(folder_of(tmp_path / "alone", "linear", 1))[1]
    np.testing.assert_array_equal(state["params"]["head"]["kernel"], heads[1])


@pytest.mark.slow
def test_linear_probes_learn_colours_but_not_shuffled_labels(mae_run, colours, shuffled, tmp_path):
    cases = {"own": (colours, 0.95, 1.0), "shuffled": (shuffled, 0.0, 0.6)}
    for name, (source, low, high) in cases.items():
        settings = LINEAR | {"data__source": source, "epochs": 100.0}
        out = found(mae_run, tmp_path / name, "task=linear", **settings)
        assert low <= out["metrics"]["last"]["top1"]["mean"] <= high


@pytest.mark.slow
def test_finetuning_on_shuffled_labels_is_chance(mae_run, shuffled, tmp_path):
    out = found(mae_run, tmp_path, "task=finetune", data__source=shuffled, **FINETUNE)
    assert out["metrics"]["last"]["top1"]["mean"] < 0.6  # 4 standard deviations above a quarter


@pytest.mark.slow
@pytest.mark.parametrize("train,loss", [("linear", "bce"), ("finetune", "asl")])
def test_several_labels_of_a_csv_file(mae_run, squares, tmp_path, train, loss, capsys):
    table = Path(squares.removeprefix("csv:"))
    (table.parent / "broken.png").write_bytes(b"broken")
    more = table.with_name(f"{train}.csv")
    more.write_text(table.read_text() + "broken.png,val,blue,,1,1\n")  # it counts nowhere
    settings = {"linear": LINEAR, "finetune": FINETUNE}[train] | {"data__source": f"csv:{more}"}
    out = found(mae_run, tmp_path, f"task=multilabel,train={train}", **settings, loss__kind=loss)
    last = out["metrics"]["last"]
    assert last["mAP"]["mean"] == 1.0
    # ASL shifts the probabilities of negatives: half is no good threshold for it.
    assert loss == "asl" or last["f1_macro"]["mean"] > 0.9
    # Blue is neither, green and red are one of the two, white is both.
    assert out["metrics"]["accuracy_of_no_labels"] == 0.5
    assert f"tested on {4 * VAL} " in out["protocol"]
    assert out["metrics"]["per_label"]["0"]["reddish"]["positives"] == 2 * VAL
    assert out["metrics"]["excluded"] == [] and out["score"]["value"] == 1.0
    said = [line.split("  ", 2)[2] for line in capsys.readouterr().out.splitlines()
            if line.startswith("seed 0  step")]  # fmt: skip
    same = [one == other for one, other in itertools.pairwise(said)]
    assert len(said) > 1 and not any(same[:-1]), "nothing is said again but at the end"
    cells = {row[0]: row[1] for row in out["table"]}
    # Half of the images have both labels or none, each right or wrong as one.
    assert cells["accuracy of no labels"] == base.percent(0.5, (0.125 / (4 * VAL - 1)) ** 0.5)
    assert "±" in cells["accuracy"] and "±" not in cells["mAP"]


@pytest.mark.slow
def test_reconstructions_of_an_mae(mae_run, colours, tmp_path):
    images = colours.removeprefix("folder:")
    out = found(mae_run, tmp_path, "task=reconstruct", images=images, num=3)
    assert out["metrics"] == {"figure": str(tmp_path / "figures" / "reconstruct.png"), "images": 3}
    with Image.open(out["metrics"]["figure"]) as image:
        assert min(image.size) > 100
    assert "DPP (τ = 0.9)" in out["protocol"], "the run's"


def refused(mae_run, ibot_run, tmp_path, colours):
    """Of each case: the run, the task, changed fields, and what the error has to say."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted((tmp_path / "colours").rglob("*.png")):
        path.rename(flat / path.name)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    odd = painted(tmp_path / "odd", shuffled=False)
    Image.new("RGB", (16, 16)).save(_made(tmp_path / "odd" / "val" / "pink") / "1.png")
    coco = tmp_path / "coco" / "annotations"
    coco.mkdir(parents=True)
    for split in ("train", "val"):
        (coco / f"instances_{split}2014.json").write_text(
            json.dumps(
                {
                    "images": [{"id": 1, "file_name": "gone.jpg"}],
                    "categories": [{"id": 1, "name": "cat"}],
                    "annotations": [{"image_id": 1, "category_id": 1}],
                }
            )
        )
    unlabelled = {"data__source": f"folder:{flat}"}
    needs = "needs labels, and config.data.source=folder:"
    return {
        "no run": (tmp_path / "none", "task=knn", {}, "there is no checkpoint in"),
        "no checkpoint": (tmp_path / "empty", "task=knn", {}, "there is no checkpoint in"),
        "knn without labels": (mae_run, "task=knn", unlabelled, f"task knn {needs}"),
        "linear without labels": (mae_run, "task=linear", unlabelled, f"task linear {needs}"),
        "finetune without labels": (mae_run, "task=finetune", unlabelled, f"finetune {needs}"),
        "cluster without labels": (mae_run, "task=cluster", unlabelled, f"task cluster {needs}"),
        "class in val": (mae_run, "task=knn", {"data__source": odd}, "class 'pink' is in"),
        "no validation": (
            mae_run, "task=knn", unlabelled | {"data__val_fraction": 0.0}, "no validation split",
        ),
        "missing images": (
            mae_run, "task=multilabel", {"data__source": f"coco:{tmp_path}/coco"}, "gone.jpg",
        ),
        "one label": (mae_run, "task=multilabel", {"data__source": colours}, "several labels"),
        "softmax": (mae_run, "task=multilabel", {"loss__kind": "softmax"}, "bce | asl"),
        "bce": (mae_run, "task=linear", {"loss__kind": "bce"}, "config.loss.kind='bce'"),
        "odd pairs": (
            mae_run,
            "task=finetune",
            {"data__mixup": 0.8, "batch_size": 12},
            "is not a positive multiple of 8",
        ),
        "batch": (mae_run, "task=linear", {"batch_size": 6}, "is not a positive multiple of 4"),
        "no masks": (mae_run, "task=backgrounds", {"data__source": colours}, "foreground masks"),
        "not trained": (
            mae_run, "task=backgrounds", {"classifier": "linear"}, "needs a finished training",
        ),
        "no pixels": (ibot_run, "task=reconstruct", {}, "an iBOT run reconstructs no pixels"),
        "warm-up": (mae_run, "task=linear", {"epochs": 0.5}, "config.optim.warmup_epochs"),
        "value": (mae_run, "task=knn", {"temperature": 0.0}, "config.temperature=0.0"),
        "workdir": (mae_run, "task=knn", {"workdir": tmp_path / "file"}, "is a file"),
        "below a file": (mae_run, "task=knn", {"workdir": tmp_path / "file" / "x"}, "is a file"),
        "remote": (mae_run, "task=knn", {"workdir": "ftp://host/run"}, "not a local folder"),
    }  # fmt: skip


def _made(folder):
    folder.mkdir(parents=True)
    return folder


def test_bad_input_is_one_line_before_anything_is_written(mae_run, ibot_run, colours, tmp_path):
    painted(tmp_path / "colours", shuffled=False)
    cases = refused(mae_run, ibot_run, tmp_path, colours)
    before = files(mae_run) | files(ibot_run) | files(tmp_path)
    for name, (run, argument, changes, words) in cases.items():
        changes = dict(changes)
        workdir = changes.pop("workdir", tmp_path / "new")
        with pytest.raises(InputError) as error:
            found(run, workdir, argument, **changes)
        message = str(error.value)
        assert words in message and "\n" not in message, (name, message)
        assert not (tmp_path / "new").exists(), name
    assert files(mae_run) | files(ibot_run) | files(tmp_path) == before
    with pytest.raises(InputError, match=r"config\.task='clasify' is not allowed: finetune"):
        config = tiny.evaluation("task=knn")
        config.task = "clasify"
        evaluate.evaluate(config, mae_run)
    with pytest.raises(InputError, match=r"unknown config field config\.data.mixup"):
        config = tiny.evaluation("task=linear")
        with config.unlocked():
            config.data.mixup = 0.8
        evaluate.evaluate(config, mae_run)
    with pytest.raises(InputError, match="task=multilabel,train=linear"):
        evaluate.evaluate(tiny.evaluation("task=multilabel", train="linear"), mae_run)


def test_what_is_no_run_is_refused(tmp_path):
    """A checkpoint without a config, and a linear probe, whose encoder is that of its run."""
    for name, meta in (("bare", {}), ("probe", {"config": {"task": "linear"}})):
        checkpoints = checkpoint.Checkpoints(tmp_path / name / checkpoint.FOLDER)
        checkpoints.save(1, {"params": {"x": np.zeros(2)}}, meta)
        checkpoints.close()
        with pytest.raises(InputError, match="is neither a pre-training run nor a fine-tuning"):
            found(tmp_path / name, tmp_path / "new", "task=knn")
    assert not (tmp_path / "new").exists()


def command(*flags, task="knn"):
    return [sys.executable, "eval.py", f"--config=configs/eval.py:task={task}", *flags]


@pytest.mark.slow
def test_the_command_answers_bad_input_in_one_line_with_status_2(tmp_path, monkeypatch):
    monkeypatch.undo()
    run = _whole_run(tmp_path)
    before = files(run)
    there = f"--checkpoint={run}"
    two = f"--checkpoint={run},{run}"
    (tmp_path / "file").write_text("")
    cases = {
        "no checkpoint flag": (command(), "--checkpoint is missing"),
        "no config": ([*command(there)[:2], there], "--config is missing"),
        "missing run": (command(f"--checkpoint={tmp_path}/none"), "there is no checkpoint in"),
        "unknown task": (command(there, task="clasify"), "config argument task=clasify"),
        "typo": (command(there, "--config.temprature=0.1"), "did you mean temperature?"),
        "unused": (command(there, "--config.data.mixup=0.8", task="linear"), "data.mixup"),
        "two results": (command(two, f"--workdir={tmp_path}/new"), "one --checkpoint"),
        "file": (command(there, f"--workdir={tmp_path}/file"), "is a file"),
        "odd": (
            command(
                there, "--config.data.mixup=0.8", "--config.batch_size=12",
                f"--workdir={tmp_path}/new", task="finetune",
            ),
            "config.batch_size=12 is not a positive multiple of 8",
        ),
        "stray": (command(there, "stray"), "unexpected argument 'stray'"),
    }  # fmt: skip
    tiny.assert_refused(cases, devices=4)
    assert files(run) == before and not (tmp_path / "new").exists()


def _whole_run(folder):
    """A run of the sizes that a process of its own knows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "Pi", Size(96, 4, 3))
        return tiny.save_run(folder / "whole")


@pytest.mark.slow
def test_the_command_evaluates_several_runs_and_on_several_processes(tmp_path):
    runs = [_whole_run(tmp_path / name) for name in "ab"]
    flags = ["--config.k=(1,5)", "--config.batch_size=12"]
    done = tiny.run(command(f"--checkpoint={runs[0]},{runs[1]}", *flags), devices=2)
    assert done.returncode == 0, done.stderr
    alone = [json.loads((run / "eval_knn.json").read_text()) for run in runs]
    for run, out in zip(runs, alone, strict=True):
        assert out["data"] == {"train_images": 96, "val_images": 24, "classes": 9}
        assert out["command"].endswith("--config.batch_size=12") and "2 x" in out["devices"]
        assert out["config"]["data"]["source"] == tiny.COMMON["data.source"]
        assert f"result  {run}/eval_knn.json" in done.stdout

    port = tiny.free_port()
    flags += [f"--checkpoint={runs[0]}", f"--workdir={tmp_path}/two"]
    flags += ["--num_processes=2", f"--coordinator=127.0.0.1:{port}"]
    processes = [tiny.start(command(*flags, f"--process_id={i}")) for i in range(2)]
    outs = [process.communicate(timeout=900) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outs
    together = json.loads((tmp_path / "two" / "eval_knn.json").read_text())
    assert together["metrics"] == alone[0]["metrics"] and together["data"] == alone[0]["data"]
    assert "result" in outs[0][0] and "result" not in outs[1][0], "one process speaks"
