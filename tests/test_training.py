"""Whole runs of train.py, in processes of their own."""

import json
import os
import re
import shutil
import signal
import time

import jax
import numpy as np
import PIL.Image
import pytest
import tiny

import dppmask_jax
from dppmask_jax import evaluate
from dppmask_jax.runs import checkpoint, metrics

TIMING = ("images_per_sec", "data_wait_frac")


def curve(workdir):
    """The records of a run without what depends on the clock."""
    records = metrics.read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k not in TIMING} for record in records]


def final_params(workdir):
    return checkpoint.read_newest(workdir)[1]["params"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on one device that was left alone, and its output."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    done = tiny.run(tiny.command(workdir, evaluate__figure_images=2, epochs=2.0))
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_a_run_writes_what_it_promises(finished):
    workdir, _ = finished
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["mask"]["tau"] == 0.9 and saved["image_size"] == [16, 16]
    records = curve(workdir)
    training = [record for record in records if "loss" in record]
    assert [record["step"] for record in training] == list(range(1, 25))
    assert {"lr", "grad_norm", "num_greedy"} <= training[0].keys()
    every = metrics.read_metrics(workdir / "metrics.jsonl")
    assert set(TIMING) <= next(record for record in every if "loss" in record).keys()
    probes = [record["step"] for record in records if "knn" in record]
    assert probes == [0, 6, 12, 18, 24]
    assert all(0 <= r["knn"] <= 1 and r["val_loss"] > 0 for r in records if "knn" in r)
    assert sorted(p.name for p in (workdir / "figures").iterdir()) == [
        "attention.png",
        "curves.png",
        "masks.png",
        "tau.png",
    ]
    assert list((workdir / "tensorboard").iterdir())


def test_a_run_says_what_it_does(finished):
    _, out = finished
    for words in (
        "1 x cpu",
        "96 training images, 24 for validation",
        "4 visible, 12 masked of 16 patches",
        "24 of 8 images",
        "0.000125 at its peak (0.004 x 8/256)",
        "starting at step 0",
        "k-NN accuracy (cosine, k = 5, patches; 96 training and 24 ",
        "trained encoder",
        "untrained encoder",
        "chance",
        "checkpoints/24",
        "masks.png",
    ):
        assert words in out, words


def test_knn_is_one_measure_wherever_it_stands(finished, tmp_path):
    """In the log, in the table that a run ends with, and in task=knn."""
    workdir, out = finished
    logged = curve(workdir)[-1]
    assert logged["knn_chance"] == 1 / 9 and logged["knn_images"] == 24
    first = next(record for record in curve(workdir) if record["step"] == 0)
    assert first["knn_untrained"] == first["knn"] and "knn_untrained" not in logged
    for name, key in (("trained encoder", "knn"), ("raw pixels", "knn_pixels")):
        error = 100 * (logged[key] * (1 - logged[key]) / 24) ** 0.5
        row = rf"^  {name} +{100 * logged[key]:.1f}% ± {error:.1f}$"
        assert re.search(row, out, re.MULTILINE), (row, out)

    config = tiny.evaluation("task=knn", k=(5,), center=True)
    result = json.loads(evaluate.evaluate(config, workdir, tmp_path).read_text())
    found = {name: of_k["5"] for name, of_k in result["metrics"].items()}
    assert found["pixels"] == logged["knn_pixels"] != found["pixels_centred"]
    # Other devices and batches: one image of the 24 may be a matter of rounding.
    assert abs(found["patches"] - logged["knn"]) < 1.5 / 24
    assert found["patches"] != found["patches_centred"]
    assert result["score"]["value"] == found["patches"]


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_numbers(finished, tmp_path):
    workdir, _ = finished
    victim = tmp_path / "run"
    kill_and_resume(tiny.command(victim, evaluate__figure_images=2, epochs=2.0), victim)
    assert curve(victim) == curve(workdir)
    jax.tree.map(np.testing.assert_array_equal, final_params(victim), final_params(workdir))


def kill_and_resume(command, victim):
    """Runs a command, kills it once it has saved step 8, and runs it again."""
    process = tiny.start(command)
    deadline = time.monotonic() + 240
    while not (victim / checkpoint.FOLDER / "8").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"

    resumed = tiny.run(command)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming at step" in resumed.stdout and "starting" not in resumed.stdout


IBOT = {
    "method": "ibot", "evaluate__figure_images": 2, "evaluate__loss_images": 24, "epochs": 2.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def finished_ibot(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("ibot") / "run"
    done = tiny.run(tiny.command(workdir, **IBOT))
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


@pytest.mark.slow
def test_an_ibot_run_writes_what_it_promises(finished_ibot):
    workdir, out = finished_ibot
    for words in ("ibot 96x2x3/4", "4 to 6 visible, 10 to 12 masked of 16", "trained encoder"):
        assert words in out, words
    records = [record for record in curve(workdir) if "loss" in record]
    assert [record["step"] for record in records] == list(range(1, 25))
    for name in (
        "loss_class", "loss_patch", "teacher_entropy", "prototype_entropy", "kl", "masked_share",
        "prototypes_used", "class_center_norm", "patch_center_norm", "num_greedy",
    ):  # fmt: skip
        assert all(np.isfinite(record[name]) for record in records), name
    probed = [r for r in curve(workdir) if "knn" in r]
    assert [r["step"] for r in probed] == [0, 6, 12, 18, 24]
    assert all(0 < r["val_loss"] < 2 * np.log(24) for r in probed)
    assert len({r["val_loss"] for r in probed}) == len(probed)
    names = sorted(path.name for path in (workdir / "figures").iterdir())
    assert names == ["attention.png", "curves.png", "masks.png", "tau.png"]
    encoder = dppmask_jax.load_encoder(workdir)
    out = encoder(np.zeros((2, 16, 16, 3), np.uint8))
    assert out["cls"].shape == (2, 96) and out["patches"].shape == (2, 16, 96)


@pytest.mark.slow
def test_a_killed_ibot_run_goes_on_with_the_same_numbers(finished_ibot, tmp_path):
    workdir, _ = finished_ibot
    victim = tmp_path / "run"
    kill_and_resume(tiny.command(victim, **IBOT), victim)
    assert curve(victim) == curve(workdir)
    for one, other in zip(checkpoint.read_newest(victim)[1].values(),
                          checkpoint.read_newest(workdir)[1].values(), strict=True):  # fmt: skip
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [
    pytest.param({"mask__strategy": "hard", "mask__hard": 0.5}, marks=pytest.mark.long),
    {"mask__strategy": "amt", "mask__guided_from": 0.0, "mask__refresh_epochs": 0.9},  # 11 steps
], ids=["hard", "amt"])  # fmt: skip
def test_a_killed_run_with_a_teacher_of_masks_goes_on_with_the_same_numbers(mask, tmp_path):
    settings = {"epochs": 2.0, **mask}
    whole, victim = tmp_path / "whole", tmp_path / "victim"
    done = tiny.run(tiny.command(whole, **settings))
    assert done.returncode == 0, done.stderr
    kill_and_resume(tiny.command(victim, **settings), victim)
    assert curve(victim) == curve(whole)
    states = [checkpoint.read_newest(folder)[1] for folder in (victim, whole)]
    assert "mask_teacher" in states[1]["extra"]
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.slow
def test_ibot_starts_from_another_ibot_and_refuses_an_mae(finished, finished_ibot, tmp_path):
    settings = {
        "method": "ibot",
        "epochs": 0.1,
        "optim__base_lr": 1e-9,
        "optim__warmup_epochs": 0.0,
        "optim__freeze_last_layer_epochs": 0.0,
    }
    done = tiny.run(tiny.command(tmp_path / "warm", init_from=finished_ibot[0], **settings))
    assert done.returncode == 0, done.stderr
    warm = checkpoint.read_newest(tmp_path / "warm")[1]
    source = checkpoint.read_newest(finished_ibot[0])[1]["extra"]["teacher"]["encoder"]
    for encoder in (warm["params"]["encoder"], warm["extra"]["teacher"]["encoder"]):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), encoder, source
        )
    refused = tiny.run(tiny.command(tmp_path / "refused", init_from=finished[0], **settings))
    assert refused.returncode == 2 and "has an MAE encoder" in refused.stderr
    assert not (tmp_path / "refused").exists()


@pytest.mark.slow
@pytest.mark.long  # tests/test_elastic.py has its like
def test_several_devices_give_the_same_run(finished, tmp_path):
    workdir, _ = finished
    done = tiny.run(tiny.command(tmp_path / "run", epochs=2.0), devices=4)
    assert done.returncode == 0, done.stderr
    assert "4 x cpu" in done.stdout
    for one, several in zip(curve(workdir), curve(tmp_path / "run"), strict=True):
        assert one.keys() == several.keys()
        for name in one.keys() - {"knn", "num_greedy"}:
            np.testing.assert_allclose(several[name], one[name], rtol=1e-5, err_msg=name)
        # Another mask anywhere would move the loss by far more than rounding.
        assert one.get("num_greedy") == several.get("num_greedy")
        assert abs(one.get("knn", 0) - several.get("knn", 0)) < 2.5 / 24


@pytest.mark.slow
def test_validation_loss_does_not_depend_on_the_devices(finished, tmp_path):
    """20 images in batches of 12: what is left over must not follow the number of devices."""
    losses = []
    for devices in (1, 3):
        done = tiny.run(
            tiny.command(
                tmp_path / str(devices), batch_size=12, epochs=0.125, evaluate__loss_images=20,
                evaluate__knn_images=0, optim__warmup_epochs=0.0,
            ),
            devices=devices,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        losses.append([r["val_loss"] for r in curve(tmp_path / str(devices)) if "val_loss" in r])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "knn": 0.5}\n{"step": 1, "loss": 9.0}\n')
    done = tiny.run(
        tiny.command(tmp_path, epochs=0.25, evaluate__knn_images=0, optim__warmup_epochs=0.0)
    )
    assert done.returncode == 0, done.stderr
    assert [record["step"] for record in curve(tmp_path)] == [0, 1, 2, 3, 3]


@pytest.mark.slow
def test_running_again_after_the_end_changes_nothing(finished):
    workdir, _ = finished
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    again = tiny.run(tiny.command(workdir, log_every=3, epochs=2.0))
    assert again.returncode == 0, again.stderr
    assert "finished at step 24" in again.stdout and "trained encoder" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_a_longer_run_of_images_that_moved_is_the_run_of_that_length(tmp_path):
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (32, 20, 20, 3))):
        path = tmp_path / "first" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels.astype(np.uint8)).save(path)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    constant = {"optim__warmup_epochs": 0.0, "optim__final_lr": 4e-3 * 8 / 256}
    for workdir, source, epochs, where in (
        ("one", "second", 4.0, "starting at step 0"),
        ("two", "first", 2.0, "starting at step 0"),
        ("two", "second", 4.0, "resuming at step 6"),
    ):
        done = tiny.run(
            tiny.command(
                tmp_path / workdir, epochs=epochs, data__source=f"folder:{tmp_path / source}",
                evaluate__every_epochs=2.0, **constant,
            )
        )  # fmt: skip
        assert done.returncode == 0 and where in done.stdout, done.stderr
    assert "the same images: data.source" in done.stdout and "epochs: 2.0 -> 4.0" in done.stdout
    assert curve(tmp_path / "two") == curve(tmp_path / "one")
    saved = json.loads((tmp_path / "two" / "config.json").read_text())
    assert saved["epochs"] == 4.0 and "history" not in saved
    jax.tree.map(
        np.testing.assert_array_equal,
        final_params(tmp_path / "two"),
        final_params(tmp_path / "one"),
    )


@pytest.mark.slow
def test_warm_start_takes_the_encoder(finished, tmp_path):
    workdir, _ = finished
    done = tiny.run(
        tiny.command(
            tmp_path / "warm", epochs=0.1, init_from=workdir, optim__base_lr=1e-9,
            optim__warmup_epochs=0.0, model__decoder_depth=2,
        )
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    warm, source = final_params(tmp_path / "warm"), final_params(workdir)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        warm["encoder"],
        source["encoder"],
    )


def bad_inputs(tmp_path, finished_workdir):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.jpg").write_text("not an image")
    (tmp_path / "file").write_text("")
    return {
        "unknown field": (["--config.mask.tua=0.8"], "did you mean mask.tau?"),
        "tau": (["--config.mask.tau=1.5"], "config.mask.tau=1.5"),
        "ratio": (["--config.mask.ratio=1.0"], "config.mask.ratio=1.0"),
        "image size": (["--config.image_size=(18, 16)"], "not a multiple of the patch size"),
        "batch": (["--config.batch_size=6"], "config.batch_size=6 is not a positive multiple of 4"),
        "empty folder": ([f"--config.data.source=folder:{tmp_path}/empty"], "no image below"),
        "missing folder": (["--config.data.source=folder:/no/such"], "there is no folder"),
        "unreadable": ([f"--config.data.source=folder:{tmp_path}/text"], "can be read"),
        "unprepared": (["--config.data.source=tfds:mnist"], "tfds build mnist"),
        "all thrown": (
            ["--config.mask.strategy=amt", "--config.mask.ratio=0.3"],
            "throws 6 away, which leaves none to predict",
        ),
        "workdir": ([f"--workdir={tmp_path}/file"], "is a file"),
        "remote workdir": (["--workdir=ftp://host/run"], "not a local folder"),
        "init_from": ([f"--config.init_from={tmp_path}/empty"], "no checkpoint in"),
        "other model": (
            [f"--workdir={finished_workdir}", "--config.model.size=Mu"],
            "model.size: 'Pi' -> 'Mu'",
        ),
        "stray word": (["stray"], "unexpected argument 'stray'"),
        "no config file": (["--config=configs/none.py"], "configs/none.py"),
    }


BAD_INPUTS_OF_IBOT = {
    "--config.mask.ratio=(0.7,)": "as many variations as ratios",
    "--config.model.prototypes=0": "config.model.prototypes=0 is not allowed",
    "--config.data.local_size=(9,9)": "config.data.local_size",
}
COMMON_MISTAKES = ("unknown field", "missing folder")


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_bad_input_is_one_line_and_status_2(finished, tmp_path, every):
    workdir, _ = finished

    def files():
        return {p: p.stat().st_mtime_ns for p in sorted(workdir.rglob("*")) if p.is_file()}

    before = files()
    cases = bad_inputs(tmp_path, workdir)
    if not every:
        cases = {name: cases[name] for name in COMMON_MISTAKES}
    commands = {
        name: (tiny.command(tmp_path / f"new-{number}", *extra, batch_size=8), words)
        for number, (name, (extra, words)) in enumerate(cases.items())
    }
    if every:
        commands |= {
            flag: (tiny.command(tmp_path / "new-ibot", flag, method="ibot"), words)
            for flag, words in BAD_INPUTS_OF_IBOT.items()
        }
    tiny.assert_refused(commands, devices=4, TFDS_DATA_DIR=str(tmp_path))
    assert not list(tmp_path.glob("new-*"))
    assert files() == before


@pytest.mark.slow
def test_unlabelled_folder_trains_without_knn(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(12):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    done = tiny.run(
        tiny.command(
            tmp_path / "run", data__source=f"folder:{tmp_path}/images", epochs=2.0,
            data__val_fraction=0.3, image_size=(16, 24), optim__clip_norm=1.0,
            optim__accum_steps=2, model__drop_path=0.2, model__remat=True,
            model__dtype="bfloat16",
        )
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no k-NN probe" in done.stdout
    records = curve(tmp_path / "run")
    assert any("val_loss" in record for record in records)
    assert not any("knn" in record for record in records)
    assert all(np.isfinite(record["loss"]) for record in records if "loss" in record)


@pytest.mark.slow
def test_profile_is_written(tmp_path):
    done = tiny.run(tiny.command(tmp_path / "run", "--profile=2"))
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def two_processes(workdir, **changes):
    """Exit codes and (stdout, stderr) of a run on two processes with two devices each."""
    port = tiny.free_port()
    flags = ["--num_processes=2", f"--coordinator=127.0.0.1:{port}"]
    processes = [
        tiny.start(tiny.command(workdir, *flags, f"--process_id={i}", **changes), devices=2)
        for i in range(2)
    ]
    outs = [process.communicate(timeout=900) for process in processes]
    return [process.returncode for process in processes], outs


@pytest.mark.slow
def test_two_processes_stop_together_at_too_many_unreadable_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 20, 20, 3), np.uint8)
    for i, image in enumerate(pixels):
        path = tmp_path / "images" / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(image).save(path)
        if i % 8 == 0:
            path.write_bytes(path.read_bytes()[:60])
    codes, outs = two_processes(
        tmp_path / "run",
        data__source=f"folder:{tmp_path}/images",
        data__max_bad_frac=0.05,
        evaluate__knn_images=0,
        epochs=4.0,
    )
    assert codes == [2, 2], outs
    for _, err in outs:
        assert re.search(r"^.*were unreadable, more than data\.max_bad_frac=0\.05", err, re.M), err
    named = {line for out in outs for text in out for line in text.split("\n") if ".png" in line}
    counts = [record.get("bad_images", 0) for record in curve(tmp_path / "run")]
    limit = 0.05 * 36  # a tenth of the forty is held out
    assert counts[-1] > limit and max(counts[:-1]) <= limit
    assert counts[-1] <= len(named) <= 5


@pytest.mark.slow
@pytest.mark.long  # tests/test_elastic.py has its like
def test_two_processes_give_the_same_run(finished, tmp_path):
    workdir, _ = finished
    codes, outs = two_processes(tmp_path / "run", epochs=2.0)
    assert codes == [0, 0], outs
    assert "2 processes" in outs[0][0] and "step" not in outs[1][0]
    for one, several in zip(curve(workdir), curve(tmp_path / "run"), strict=True):
        for name in one.keys() - {"knn"}:
            np.testing.assert_allclose(several[name], one[name], rtol=1e-5, err_msg=name)
