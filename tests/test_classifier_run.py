"""A fine-tuned classifier as a run: imported, tested as it is, probed, trained on."""

import functools
import json
import sys

import exported
import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny

import dppmask_jax
from dppmask_jax import evaluate, pretrain
from dppmask_jax.analyses import base, ring_noise, shift
from dppmask_jax.config import check
from dppmask_jax.data import loader
from dppmask_jax.data.images.augment import normalize
from dppmask_jax.errors import InputError
from dppmask_jax.evals.seeds import folder_of
from dppmask_jax.evals.starting_head import head_for
from dppmask_jax.evaluating import subjects
from dppmask_jax.figures import __main__ as figures
from dppmask_jax.imagenet import STD
from dppmask_jax.methods import supervised
from dppmask_jax.methods.base import Plan
from dppmask_jax.models.sizes import SIZES, Size
from dppmask_jax.models.vit_module import ViT
from dppmask_jax.results.page import page as page_of
from dppmask_jax.results.records import load as load_record
from dppmask_jax.runs import checkpoint, metrics, projection
from dppmask_jax.runs.run import Run, load_run, open_data
from dppmask_jax.weights.exporting import export_weights
from dppmask_jax.weights.importing import Options, import_weights
from dppmask_jax.weights.sizes import Known

SHAPES = tiny.COMMON["data.source"]
CLASSES = 9
KNOWN = Known(image_size=(16, 24))
QUICK = {"data__source": SHAPES, "batch_size": 16}


pytestmark = pytest.mark.usefixtures("fewer_blocks")


@pytest.fixture(scope="module")
def files(fewer_blocks, tmp_path_factory):
    """{pool: (a fine-tuning's folder, the file that it was exported to)}."""
    folder = tmp_path_factory.mktemp("files")
    found = {}
    for pool in ("mean", "cls"):
        run = exported.finetuned(folder / pool, CLASSES, model__pool=pool)
        path = export_weights(run, folder / f"{pool}.safetensors", "mae-finetuned")
        found[pool] = run, path
    return found


def taken(path, folder, options=None, argument="task=finetune", **changes):
    config = tiny.evaluation(argument, **changes)
    return import_weights(path, "mae-finetuned", folder, config, options or Options(KNOWN))


@pytest.fixture(scope="module")
def imported(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported") / "run"
    taken(files["mean"][1], folder)
    return folder


@pytest.fixture(scope="module")
def mae_run(fewer_blocks, tmp_path_factory):
    return tiny.save_run(tmp_path_factory.mktemp("mae") / "run")


def found(run, workdir, argument="task=finetune", **changes):
    """The JSON of an evaluation."""
    config = tiny.evaluation(argument, **QUICK | changes)
    return json.loads(evaluate.evaluate(config, run, workdir, "as typed").read_text())


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# The file and the run.


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_a_classifier_comes_back_bit_for_bit(files, pool, tmp_path):
    before, path = files[pool]
    made = taken(path, tmp_path / "run", model__dtype="float32")
    assert made.classes == CLASSES and made.fresh == ("optimiser",) and not made.left_aside
    assert made.config.model.pool == pool, "which the file shows"
    assert made.config.image_size == (16, 24) and made.config.model.size == "Pi"
    meta, state, step = checkpoint.read_newest(tmp_path / "run")
    assert step == 0 and meta["config"]["task"] == "finetune"
    assert meta["config"] == json.loads((tmp_path / "run" / "config.json").read_text())
    same(state["params"], exported.state_of(before)["params"])
    again = export_weights(tmp_path / "run", tmp_path / "again.safetensors", "mae-finetuned")
    assert again.read_bytes() == path.read_bytes()
    tensors = safetensors.numpy.load_file(path)
    assert tensors["head.weight"].shape == (CLASSES, 24)
    assert ("fc_norm.weight" in tensors, "norm.weight" in tensors) == (
        pool == "mean",
        pool == "cls",
    )


def test_positions_of_a_classifier_are_resized_by_choice(files, tmp_path):
    run, path = files["mean"]
    made = taken(path, tmp_path / "run", Options(KNOWN, resize_positions=(24, 24)))
    assert made.config.image_size == (24, 24)
    old, new = (
        exported.state_of(folder)["params"]["encoder"]["positions"]
        for folder in (run, tmp_path / "run")
    )
    assert new.shape == (1, 37, 24)
    np.testing.assert_array_equal(new[0, 0], old[0, 0])
    loaded = load_run(run, image_size=(24, 24))
    np.testing.assert_array_equal(loaded.encoder["positions"], new)
    assert loaded.config.image_size == (16, 24), "what it was trained with"


def changed(path, folder, **tensors):
    """A copy of a file with other tensors; None takes one out."""
    kept = safetensors.numpy.load_file(path) | {k.replace("__", "."): v for k, v in tensors.items()}
    kept = {name: np.asarray(value) for name, value in kept.items() if value is not None}
    safetensors.numpy.save_file(kept, folder / "changed.safetensors")
    return folder / "changed.safetensors"


ZEROS = functools.partial(np.zeros, dtype=np.float32)


@pytest.mark.parametrize(
    "tensors,words",
    [
        ({"head__bias": None, "head__extra": ZEROS(3)},
         ("2 tensors", "missing head.bias (9,)", "unmatched head.extra")),
        ({"head__bias": ZEROS(8)}, ("head.bias has shape (8,), wanted (9,)",)),
        ({"head__weight": ZEROS((9, 25))}, ("head.weight has shape (9, 25)",)),
        ({"head__weight": None}, ("no head.weight",)),
        ({"head__weight": ZEROS((0, 24)), "head__bias": ZEROS(0)}, ("an empty one",)),
        ({"fc_norm__bias": None}, ("missing fc_norm.bias",)),
        ({"fc_norm__weight": None, "fc_norm__bias": None}, ("missing fc_norm.bias",)),
        ({"norm__weight": ZEROS(24), "norm__bias": ZEROS(24)}, ("unmatched norm.weight",)),
        ({"blocks__1__norm1__bias": np.full(24, np.nan, np.float32)}, ("is not finite",)),
    ],
)  # fmt: skip
def test_every_tensor_of_a_classifier_counts(files, tensors, words, tmp_path):
    path = changed(files["mean"][1], tmp_path, **tensors)
    with pytest.raises(InputError) as caught:
        taken(path, tmp_path / "run")
    for word in words:
        assert word in str(caught.value) and "\n" not in str(caught.value), str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_configs_and_formats_that_do_not_go_together(files, tmp_path):
    _, path = files["mean"]
    mae = export_weights(tiny.save_run(tmp_path / "mae"), tmp_path / "mae.safetensors", "mae")
    evaluation = tiny.evaluation("task=finetune")
    fixed = Options(KNOWN)
    cases = [
        (path, "mae-finetuned", tiny.evaluation("task=knn"), fixed, "is one for task=knn"),
        (path, "mae-finetuned", tiny.config("mae"), fixed, "leave --config out"),
        (mae, "mae", evaluation, fixed, "--format=mae has no classifier"),
        (path, "mae-finetuned", evaluation, fixed._replace(allow_missing=("head",)),
         "nothing that may be missing"),
        (path, "mae-finetuned", evaluation, fixed._replace(resize_positions=(15, 24)),
         "--resize_positions: "),
        (path, "mae-finetuned", evaluation, Options(), "add --image_size"),
        (path, "mae-finetuned", evaluation, fixed._replace(drop=("head",)), "no head.weight"),
        (path, "mae-finetuned", tiny.evaluation("task=finetune", loss__kind="bce"), fixed,
         "config.loss.kind"),
    ]  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    for file, format_name, config, options, words in cases:
        with pytest.raises(InputError) as caught:
            import_weights(file, format_name, tmp_path / "run", config, options)
        assert words in str(caught.value) and "\n" not in str(caught.value), str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_fine_tuned_file_still_makes_a_bare_encoder_of_ibot(files, tmp_path):
    before, path = files["mean"]
    options = Options(KNOWN, ("head", "norm"), drop=("head", "fc_norm"))
    made = import_weights(path, "mae-finetuned", tmp_path / "run", tiny.config("ibot"), options)
    assert made.classes is None and "norm" in made.fresh
    encoder = load_run(tmp_path / "run").encoder
    assert (encoder["norm"]["scale"] == 1).all() and not encoder["norm"]["bias"].any()
    theirs = exported.state_of(before)["params"]["encoder"]
    same({name: encoder[name] for name in theirs}, theirs)


# What a run of a classifier answers.


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_the_encoder_of_a_classifier(files, pool):
    folder, _ = files[pool]
    run = load_run(folder)
    assert run.kind == "classifier" and not run.has_masks and not run.can_reconstruct
    assert run.knn_feature == {"mean": "patches", "cls": "cls"}[pool]
    params = exported.state_of(folder)["params"]["encoder"]
    assert ("norm" in params) == (pool == "cls")
    fresh = {"scale": np.ones(24, np.float32), "bias": np.zeros(24, np.float32)}
    params = {"norm": fresh, **params}
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    latent, prenorm = ViT(SIZES["Pi"], (16, 24), 4).apply({"params": params}, normalize(images))
    out = run.encode(images)
    np.testing.assert_allclose(out["cls"], latent[:, 0], atol=1e-5)
    np.testing.assert_allclose(out["patches"], latent[:, 1:], atol=1e-5)
    np.testing.assert_allclose(out["patches_prenorm"], prenorm[:, 1:], atol=1e-5)
    encoder = dppmask_jax.load_encoder(folder)
    assert encoder.grid == (4, 6) and encoder.width == 24
    same(encoder(images)["cls"], out["cls"])


def direct_accuracies(run, source=SHAPES):
    """Top-1 and top-5 of the run's own logits on the validation split, in float64."""
    config = subjects.completed(tiny.evaluation("task=finetune", data__source=source), run.config)
    _, val = open_data(config)
    (batch,) = loader.eval_batches(val, image_size=(16, 24), batch_size=len(val))
    logits = np.asarray(run.method.logits(run.params, run.extra, batch["image"]), np.float64)
    best = np.argsort(-logits, axis=1, kind="stable")
    hits = best == batch["label"][:, None]
    return {"top1": hits[:, :1].any(axis=1).mean(), "top5": hits[:, :5].any(axis=1).mean()}


@pytest.fixture(scope="module")
def as_it_is(imported, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("as-it-is")
    return workdir, found(imported, workdir, epochs=0.0, model__dtype="float32")


def test_no_epochs_test_the_classifier_as_it_is(as_it_is, imported):
    workdir, out = as_it_is
    config = load_run(imported).config
    config.model.dtype = "float32"
    state = exported.state_of(imported)
    expected = direct_accuracies(Run(config, state["params"], {}, 0))
    assert out["metrics"] == pytest.approx(expected) and len(expected) == 2
    assert 0 < expected["top1"] < expected["top5"] < 1, "or it would show nothing"
    assert out["task"] == "classifier" and out["score"]["value"] == out["metrics"]["top1"]
    assert "as it is, not trained further" in out["protocol"]
    written = sorted(path.name for path in workdir.iterdir())
    assert written == ["eval_classifier.json", "eval_classifier_images.npy"], "and no training"


def test_the_page_of_results_has_a_place_for_it(as_it_is):
    workdir, _ = as_it_is
    record = load_record(workdir / "eval_classifier.json")
    page = page_of([record])
    assert "| classifier Pi/4, 16×24, 15 epochs | – | run, step 0 |" in page
    assert "imported classifier" in page and "(4 x cpu" in page
    masked = {"mask": {"strategy": "random", "ratio": 0.5}}
    record["checkpoint"]["config"] |= {"seed": 3, "pretrained": {"step": 1, "config": masked}}
    page = page_of([record])
    assert "random, 50 % masked" in page and "fine-tuning seed 3" in page


def test_knn_of_a_classifiers_encoder(imported, tmp_path):
    out = found(imported, tmp_path, "task=knn", k=(5,))
    assert set(out["metrics"]) == {"cls", "patches", "pixels"}
    assert out["score"]["name"].endswith("patches)")
    assert out["checkpoint"]["config"]["task"] == "finetune"


@pytest.mark.slow
@pytest.mark.parametrize(
    "argument,changes",
    [
        ("task=linear", {"epochs": 2.0}),
        ("task=linear", {"solver": "ridge"}),
        ("task=cluster", {}),
        ("task=multilabel", {"epochs": 1.0}),
        ("task=backgrounds", {}),
        ("task=backgrounds", {"classifier": "own"}),
        ("task=frequencies", {"noise__frequencies": (1.5,)}),
        ("task=shift", {"changed": SHAPES}),
    ],
)
def test_the_other_tasks_of_a_classifiers_encoder(imported, argument, changes, tmp_path):
    if "backgrounds" in argument:
        changes = changes | {"data__source": "shapes:size=32,train=36,val=120"}
    out = found(imported, tmp_path, argument, **changes)
    if "frequencies" in argument:
        noise, accuracy = out["metrics"]["noise"], direct_accuracies(load_run(imported))["top1"]
        assert noise["classifier"] == "own" and noise["clean"]["mean"] == pytest.approx(accuracy)
        return
    assert out["score"] is not None
    if "shift" in argument:
        own = out["metrics"]["classifiers"]["own"]
        assert out["score"]["name"].endswith("(own head)") and own["drop"] == {
            "mean": 0,
            "error": 0,
        }
        assert own["original"]["mean"] == pytest.approx(
            direct_accuracies(load_run(imported))["top1"]
        )
    if changes.get("classifier") == "own":
        accuracy = direct_accuracies(load_run(imported), changes["data__source"])["top1"]
        assert out["metrics"]["variants"]["original"]["accuracy"] == pytest.approx(accuracy)
        assert "as it is" in out["protocol"]


def opened(run, argument, **changes):
    """An evaluation that could run."""
    config = tiny.evaluation(argument, data__source=SHAPES, **changes)
    return subjects.opened(subjects.Subject(config, run, run, ""))


def test_its_own_head_under_noise_of_one_ring(files):
    """Against NumPy's transform, image by image."""
    run, _ = files["mean"]
    settings = {"noise__images": 12, "noise__frequencies": (0.9, 2.2), "noise__eps": 3.0}
    evaluation = opened(run, "task=frequencies", **settings)
    loaded, rows = evaluation.run, base.spread(len(evaluation.val), 12)
    (batch,) = loader.eval_batches(evaluation.val, image_size=(16, 24), batch_size=12, indices=rows)
    scores_of = functools.partial(loaded.method.logits, loaded.params, loaded.extra)
    # Random weights name one class alone, unless each has as high a mean score.
    loaded.params["head"]["bias"] -= np.mean(scores_of(batch["image"]), axis=0)
    noise, _ = ring_noise.measured(evaluation)
    assert noise["classifier"] == "own" and noise["words"] == "the checkpoint's own head"
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), rows)
    drawn = np.asarray(ring_noise.sign_noise(keys, (16, 24, 3), 3.0), np.float64)
    images = batch["image"] / 255.0
    for place, frequency in enumerate(settings["noise__frequencies"]):
        inside = ring_noise.ring((16, 24), frequency, noise["half_width"])
        kept = np.fft.ifft2(np.fft.fft2(drawn, axes=(1, 2)) * inside[..., None], axes=(1, 2)).real
        best = np.argmax(scores_of(np.float32(images + kept * STD)), axis=1)
        right = best == batch["label"]
        assert noise["accuracy"]["mean"][place] == pytest.approx(right.mean())
        assert noise["deviation"][place] == pytest.approx(kept.std(), rel=1e-3)
        assert len(set(best.tolist())) > 1
    assert noise["clean"]["mean"] not in noise["accuracy"]["mean"]


def test_what_a_projection_does_not_change_is_not_measured_twice(files, tmp_path, monkeypatch):
    run, _ = files["mean"]
    loaded, file = load_run(run), tmp_path / "soap.safetensors"
    projection.write(file, arrays={"projector": np.eye(24)}, layer=2, run=loaded)
    with pytest.raises(InputError, match=r"own head was trained without; set .*classifier=ridge"):
        opened(run, "task=frequencies", projection=str(file))
    opened(run, "task=frequencies", projection=str(file), noise__classifier="ridge")

    labels = np.arange(20) % CLASSES
    found = {name: np.random.default_rng(0).normal(size=(20, 24)) for name in ("patches", "cls")}
    monkeypatch.setattr(shift, "_features", lambda *_, **__: (found, None, labels))
    evaluations = [
        opened(run, "task=shift", changed=SHAPES, projection=path) for path in ("", str(file))
    ]
    predict = [list(shift._classifiers(evaluation)[0]) for evaluation in evaluations]
    assert predict == [["own", "ridge", "knn"], ["ridge", "knn"]]
    for evaluation in evaluations:
        evaluation.run.knn_feature = "cls"
    predict = [list(shift._classifiers(evaluation)[0]) for evaluation in evaluations]
    assert predict == [["own", "ridge", "knn"], ["ridge"]]


def test_what_a_classifier_cannot_do_is_said_in_one_line(imported, mae_run, tmp_path):
    few = exported.finetuned(tmp_path / "few", 4)
    reading = {"image_size": (16, 24), "model__size": "Pi"}
    into_mae = tiny.config("mae", init_from=str(imported), **reading)
    cases = [
        (lambda: evaluate.evaluate(tiny.evaluation("task=reconstruct"), imported, tmp_path / "new"),
         "a classifier run reconstructs no pixels"),
        (lambda: figures.main([f"--workdir={imported}"]), "masks nothing"),
        (lambda: pretrain.train(into_mae, tmp_path / "new"), "use --config=ibot"),
        (lambda: check(tiny.evaluation("task=finetune")), "config.task=finetune is for eval,"),
        (lambda: found(imported, tmp_path / "new", data__source=""), "say where the images are"),
        (lambda: found(mae_run, tmp_path / "new", epochs=0.0), "an MAE run, which has none"),
        (lambda: found(few, tmp_path / "new", epochs=0.0), "4 classes there, 9 here"),
        (lambda: found(imported, tmp_path / "new", epochs=0.0, model__pool="cls"),
         "mean pooling, config.model.pool is cls"),
        (lambda: found(few, tmp_path / "new", "task=backgrounds", classifier="own"),
         "4 classes there, 9 here"),
        (lambda: found(mae_run, tmp_path / "new", "task=backgrounds", classifier="own"),
         "which has none"),
        (lambda: found(imported, tmp_path / "new", "task=linear", epochs=0.0), "config.epochs"),
    ]  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    for call, words in cases:
        with pytest.raises(InputError) as caught:
            call()
        assert words in str(caught.value) and "\n" not in str(caught.value), str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_head_is_taken_for_its_own_classes_only(imported):
    run = load_run(imported)
    names = tuple("abcdefghi")
    head, because = head_for(run, names, several=False, pool="mean")
    assert because == "" and set(head) == {"head", "fc_norm"}
    for changes, words in (
        ({"names": names[:-1]}, "9 classes there, 8 here"),
        ({"several": True}, "one for task=finetune"),
        ({"pool": "cls"}, "mean pooling"),
    ):
        given = {"names": names, "several": False, "pool": "mean"} | changes
        head, because = head_for(run, given.pop("names"), **given)
        assert head is None and words in because
    with run.config.unlocked():
        run.config.class_names = names
    assert head_for(run, names, several=False, pool="mean")[0] is not None
    swapped = ("b", "a", *names[2:])
    head, because = head_for(run, swapped, several=False, pool="mean")
    assert head is None and "class 'a' there, where 'b' is here" in because


# Training on.


def test_training_on_starts_from_the_head(imported):
    run = load_run(imported)
    config = subjects.completed(tiny.evaluation("task=finetune", **QUICK), run.config)
    for head, kept in ((supervised.head_of(run.params), True), (None, False)):
        method = supervised.finetune(
            config, Plan(1, 1), num_outputs=CLASSES, several=False, head=head
        )
        fresh, extra = tiny.filled(jax.eval_shape(method.init, jax.random.key(1)), seed=1)
        params, _ = method.with_encoder(fresh, extra, run.encoder)
        assert "norm" not in params["encoder"]
        same(params["encoder"], run.params["encoder"])
        expected = run.params if kept else fresh
        same({name: params[name] for name in ("head", "fc_norm")},
             {name: expected[name] for name in ("head", "fc_norm")})  # fmt: skip


SHORT = {"epochs": 0.5, "optim__warmup_epochs": 0.0, "evaluate__every_epochs": 0.5, "log_every": 1}


@pytest.mark.slow
def test_a_finetuning_goes_on_from_an_import_and_is_resumed(imported, tmp_path, monkeypatch,
                                                            capsys):  # fmt: skip
    settings = SHORT | {"checkpoint__every": 2}
    whole = found(imported, tmp_path / "whole", **settings)
    assert "head: from the checkpoint" in capsys.readouterr().out
    folder = folder_of(tmp_path / "whole", "finetune", 0)
    trained = json.loads((folder / "config.json").read_text())
    assert len(trained["class_names"]) == CLASSES and trained["pretrained"]["step"] == 0
    save = checkpoint.Checkpoints.save

    def save_and_stop(self, step, *rest):
        save(self, step, *rest)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            found(imported, tmp_path / "again", **settings)
    assert found(imported, tmp_path / "again", **settings)["metrics"] == whole["metrics"]
    one, two = (
        checkpoint.read_newest(folder_of(tmp_path / name, "finetune", 0))[1]
        for name in ("whole", "again")
    )
    same(one, two)

    # The fine-tuning is a classifier again, which knows the names of its classes.
    out = found(folder, tmp_path / "tested", epochs=0.0)
    records = metrics.read_metrics(folder / "metrics.jsonl")
    assert out["metrics"]["top1"] == records[-1]["top1"]
    capsys.readouterr()
    found(folder, tmp_path / "fresh", data__source="shapes:size=16,train=96,val=24", **SHORT)
    assert "head: from the checkpoint" in capsys.readouterr().out


@pytest.mark.slow
def test_an_ibot_run_starts_from_a_classifier(imported, tmp_path):
    settings = {
        "image_size": (16, 24),
        "epochs": 0.1,
        "optim__base_lr": 1e-9,
        "optim__warmup_epochs": 0.0,
        "optim__freeze_last_layer_epochs": 0.0,
        "evaluate__knn_images": 0,
    }
    config = tiny.config("ibot", init_from=str(imported), **settings)
    pretrain.train(config, tmp_path / "warm")
    encoder = checkpoint.read_newest(tmp_path / "warm")[1]["extra"]["teacher"]["encoder"]
    source = load_run(imported).encoder
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                 encoder, dict(source))  # fmt: skip


@pytest.mark.slow
def test_the_commands_that_an_import_prints_run(tmp_path, monkeypatch):
    """As printed, but for where the images are and for how long."""
    monkeypatch.undo()
    import shlex

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "Pi", Size(96, 4, 3))
        path = export_weights(
            exported.finetuned(tmp_path / "tuned", CLASSES, model__pool="cls"),
            tmp_path / "weights.safetensors",
            "mae-finetuned",
        )
    run = tmp_path / "run"
    done = tiny.run(
        [sys.executable, "-m", "dppmask_jax.weights", "import", str(path), "--image-size=16,24",
         "--format=mae-finetuned", f"--workdir={run}", "--config.batch_size=16"]
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(None, 1) for line in done.stdout.splitlines()
                 if not line.startswith(("as it is", "go on")))  # fmt: skip
    assert lines["run"].endswith("classifier of 9 classes, Pi/4, 16x24 px, step 0")
    commands = {line[:12].strip(): shlex.split(line[12:]) for line in done.stdout.splitlines()}
    assert "--config.model.pool=cls" in commands["as it is"]

    def command(name, *extra, **replaced):
        words = [sys.executable, "-m", "dppmask_jax", *commands[name][1:], *extra]
        return tiny.run([replaced.get(word.split("=")[0].lstrip("-"), word) for word in words])

    there = {"config.data.source": f"--config.data.source={SHAPES}"}
    done = command("as it is", **there)
    assert done.returncode == 0, done.stderr
    assert (run / "eval_classifier.json").exists()
    done = command("go on", "--config.epochs=0.3", "--config.optim.warmup_epochs=0",
                   "--config.data.randaugment=0", **there)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "head: from the checkpoint" in done.stdout
    assert (run / "eval_finetune.json").exists() and (run / "eval_classifier.json").exists()
    done = command("pre-train", f"--config.data.source={SHAPES}", "--config.batch_size=8",
                   "--config.epochs=0.1", "--config.optim.warmup_epochs=0",
                   "--config.optim.freeze_last_layer_epochs=0", "--config.evaluate.knn_images=0",
                   "--config.data.local_views=0", "--config.model.prototypes=16",
                   "--config.evaluate.figure_images=0",
                   workdir=f"--workdir={tmp_path / 'ibot'}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = tiny.run([sys.executable, "train.py", "--config=configs/eval.py:task=finetune",
                     f"--workdir={tmp_path / 'new'}"])  # fmt: skip
    assert done.returncode == 2 and "dppmask eval" in done.stderr
    assert len(done.stderr.splitlines()) == 1
