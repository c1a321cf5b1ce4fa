"""What of a run may change while it goes on, and what is kept of a change."""

import json
import shutil
import types

import numpy as np
import PIL.Image
import pytest
import tiny

from dppmask_jax import announcement, fields, parallel
from dppmask_jax import config as config_checks
from dppmask_jax.data.sources import identity, opening
from dppmask_jax.errors import InputError
from dppmask_jax.fields import flatten
from dppmask_jax.runs import checkpoint, comparable, history, workdir
from dppmask_jax.runs.workdir import to_json
from dppmask_jax.training import build, resuming

IMAGES = {"training": 12, "validation": 4, "digest": "a"}
OTHERS = {"training": 15, "validation": 5, "digest": "b"}
STEP = 12
FIELDS = config_checks.fields_of("mae")
FREE = fields.free(FIELDS, *fields.FREE)


def write(folder, config, step=STEP, images=IMAGES, **meta):
    """A folder with a checkpoint of a step that was made with a config."""
    checkpoints = checkpoint.Checkpoints(folder / checkpoint.FOLDER)
    meta = {"config": to_json(config), "data_identity": images, **meta}
    checkpoints.save(step, {"params": {"w": np.zeros(2, np.float32)}}, meta)
    checkpoints.close()


def start(folder, config, images=IMAGES, **terms):
    known = config_checks.fields_of(config.method)
    terms = {"total_steps": 99, "ways": "or go back"} | terms
    return resuming.start_in(
        folder,
        config,
        lambda: images,
        resuming.Terms(known, FREE, fixed=fields.fixed(FIELDS).__contains__, **terms),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of tiny.config()."""
    made = tmp_path_factory.mktemp("run")
    write(made, tiny.config())
    return made


def other(field, value):
    """Another value of the type of that of a field."""
    if isinstance(value, bool):
        return not value
    if value is None:
        return (1,) if FIELDS[field].rule.type is tuple else 1
    if isinstance(value, str):
        return value + "x"
    return tuple(value) * 2 if isinstance(value, tuple) else value + 1


def changed(method="mae", **changes):
    return tiny.config(method, **{field.replace(".", "__"): v for field, v in changes.items()})


def test_what_no_step_depends_on_may_change(folder):
    config = tiny.config()
    assert set(FREE.values()) == set(fields.FREE), "a group of no field"
    assert flatten(config).keys() >= resuming.PLACES
    got = start(
        folder,
        changed(
            **{field: other(field, v) for field, v in flatten(config).items() if field in FREE}
        ),
    )
    assert (got.step, got.restored) == (STEP, True)
    (note,) = got.notes
    assert "evaluate.knn_k: 5 -> 6" in note and "not comparable" in note
    # What a measure means is told all the same: curves and tables have both.
    (entry,) = got.record["history"]
    assert entry["step"] == STEP and set(entry["changed"]) == set(fields.free(FIELDS, "measured"))
    finished = start(folder, changed(**{"evaluate.knn_k": 6}), total_steps=STEP)
    assert not finished.notes and "history" not in finished.record


def test_every_other_field_is_refused_with_the_ways_to_go_on(folder):
    config = flatten(tiny.config())
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    for field in config.keys() - FREE.keys() - resuming.PLACES - {"method"}:
        old, new = config[field], other(field, config[field])
        with pytest.raises(InputError) as error:
            start(folder, changed(**{field: new}))
        assert f"{field}: {old!r} -> {new!r}" in str(error.value)
        assert "\n" not in str(error.value)
        model = FIELDS[field].fixed
        assert ("name another folder" if model else "or go back") in str(error.value)
        if model:
            with pytest.raises(InputError, match="holds checkpoints of another run"):
                start(folder, changed(**{field: new}), allow=True)
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_what_was_allowed_is_kept_step_by_step(folder, tmp_path):
    first = start(folder, changed(**{"mask.tau": 0.5, "image_size": (16, 16)}), allow=True)
    entry = {"step": 12, "changed": {"mask.tau": [0.9, 0.5]}}
    assert first.record == {"data_identity": IMAGES, "history": [entry]}
    write(tmp_path, changed(**{"mask.tau": 0.5}), 20, **first.record)
    assert start(tmp_path, changed(**{"mask.tau": 0.5})).record == first.record
    second = start(tmp_path, changed(**{"mask.tau": 0.5}), OTHERS, allow=True)
    assert second.record["history"] == [entry, {"step": 20, "changed": {"data": [IMAGES, OTHERS]}}]
    assert history.describe(second.record["history"]) == (
        "changed at step 12: mask.tau: 0.9 -> 0.5; "
        "changed at step 20: data: 16 images there, 20 here"
    )
    with pytest.raises(InputError, match=r"16 steps|20 steps, and this config has 20 .* none"):
        start(tmp_path, changed(), allow=True, total_steps=20)


def test_images_that_moved_are_the_same_and_others_are_not(folder):
    moved = changed(**{"data.source": "folder:/elsewhere", "data.val_fraction": 0.3})
    got = start(folder, moved)
    assert "history" not in got.record and "/elsewhere" in got.notes[0]
    for config in (tiny.config(), moved):
        with pytest.raises(InputError, match="data: 16 images there, 20 here"):
            start(folder, config, OTHERS)
    with pytest.raises(InputError, match="data: 16 images there as here, of other names, sizes"):
        start(folder, tiny.config(), IMAGES | {"digest": "b"})


def test_before_the_first_step_all_but_the_model_may_change(tmp_path):
    assert start(tmp_path, tiny.config()) == resuming.Start(record={"data_identity": IMAGES})
    write(tmp_path, tiny.config(), 0, images=None)
    got = start(tmp_path, changed(**{"mask.tau": 0.5, "batch_size": 4}), OTHERS)
    assert (got.step, got.restored) == (0, True) and got.record == {"data_identity": OTHERS}
    with pytest.raises(InputError, match=r"model\.size"):
        start(tmp_path, changed(**{"model.size": "Mu"}))


CONSTANT = {"optim.warmup_epochs": 0.0, "optim.final_lr": 4e-3 * 8 / 256}


@pytest.mark.parametrize(
    ("method", "fields", "problem"),
    [
        ("mae", CONSTANT, ""),
        ("mae", {"optim.warmup_epochs": 1.5}, ""),
        ("mae", {}, "the learning rate of step 7 was"),
        ("mae", CONSTANT | {"mask.tau_end": 0.5}, "the mask.tau of step 1 was 0.882609, not 0.88"),
        ("mae", CONSTANT | {"optim.weight_decay_end": 0.1}, "the weight decay of step 1 was"),
        ("ibot", CONSTANT | {"optim.weight_decay_end": None}, "the decay of the teacher of step"),
    ],
)
def test_a_run_gets_longer_where_all_its_steps_would_have_been_the_same(
    method, fields, problem, tmp_path
):
    write(tmp_path, changed(method, epochs=2.0, **fields))
    schedules = {"schedules": lambda config: build.schedules(config, 96)}
    longer = changed(method, epochs=3.0, **fields)
    if problem:
        with pytest.raises(InputError, match=r"epochs: 2\.0 -> 3\.0, and ") as error:
            start(tmp_path, longer, **schedules)
        assert problem in str(error.value)
    else:
        got = start(tmp_path, longer, **schedules)
        assert got.notes[0].startswith("epochs: 2.0 -> 3.0") and "history" not in got.record
    with pytest.raises(InputError, match="shorter"):
        start(tmp_path, changed(method, epochs=1.75, **fields), **schedules)


def test_a_field_that_came_after_a_run_is_at_its_default_there(tmp_path):
    early = tiny.config()
    del early.mask.cell, early.seed
    write(tmp_path, early)
    assert not start(tmp_path, tiny.config()).notes
    kept = workdir.from_json(to_json(early))  # as what loads a run reads it
    assert kept.mask.cell == tiny.config().mask.cell and "seed" not in kept
    runs = [tmp_path / "early", tmp_path / "late"]
    for run, mask in zip(runs, ({}, {"cell": 3}), strict=True):
        run.mkdir()
        config = to_json(early) | {"mask": {"strategy": "cells", **mask}}
        (run / "config.json").write_text(json.dumps(config))
    assert "not comparable: mask.cell 2 | 3" in comparable.warnings_of(runs)[0]
    with pytest.raises(InputError, match=r"\(mask\.cell: 2 -> 3\)"):
        start(tmp_path, changed(**{"mask.cell": 3}))


def test_an_evaluation_has_to_be_of_the_same_encoder_wherever_its_images_lie():
    def run(source="folder:/a", digest="a", step=3, history="", **fields):
        config = to_json(changed(**{"data.source": source, **fields}))
        images = IMAGES | {"digest": digest}
        return {"pretrained": {"step": step, "config": config, "data_identity": images,
                               "history": history}}  # fmt: skip

    def names(other):
        return set(resuming.differences(run(), other, (), FREE)[0])

    assert names(run("folder:/b", log_every=9)) == set()
    early = run()
    del early["pretrained"]["config"]["mask"]["cell"]  # a field that came later
    assert names(early) == set()
    assert names(run("folder:/b", "b")) == {
        "pretrained.config.data", "pretrained.config.data.source",
    }  # fmt: skip
    assert names(run(step=4)) == {"pretrained.step"}
    assert names(run(history="changed")) == {"pretrained.history"}
    assert names(run(**{"mask.tau": 0.5})) == {"pretrained.config.mask.tau"}


def test_what_is_proposed_after_a_run_fits_it():
    method = types.SimpleNamespace(masks=print, restore=None)

    def words(probed=True, **fields):
        return "\n".join(announcement.next_steps(changed(**fields), "a run", probed, method))

    assert words().count("'a run'") == words().count("a run") == 3
    assert (
        "mask.strategy=random" in words()
        and "dataset=small" in words()
        and "dppmask eval" in words()
    )
    of_random = words(**{"mask.strategy": "random", "data.source": "folder:x"}, probed=False)
    assert "mask.strategy=dpp" in of_random and "strategy=random" not in of_random
    assert "dataset=small" not in of_random and "dppmask eval" not in of_random
    method.masks, method.restore = None, print
    assert words().count("a run") == 2 and "strategy" not in words() and "YOUR.jpg" in words()


def test_a_probed_encoder_is_untrained_only_where_it_is():
    of_probe = {"knn": 0.5, "knn_pixels": 0.2, "knn_chance": 0.1, "knn_images": 24}
    source = type("Some", (), {"__len__": lambda self: 24, "num_classes": 9})()
    for more, name in (({"knn_untrained": 0.5}, "untrained encoder"),
                       ({}, "encoder it started from")):  # fmt: skip
        first, last = {"step": 0, **of_probe, **more}, {"step": 9, **of_probe}
        table = announcement.knn_table(tiny.config(), first, last, source, source)
        assert f"  {name} " in table and table.count("encoder") == 2


def test_bfloat16_is_warned_about_on_a_cpu():
    assert "--config.model.dtype=float32" in parallel.idle_dtype("bfloat16")
    assert not parallel.idle_dtype("float32")


# The identity of images.


def make_images(root, names=("a/1.png", "a/2.png", "b/1.png", "b/2.png")):
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(path)
    return root


def identity_of(spec, **options):
    return identity.of_splits(*opening.open_splits(spec, **options))


def test_the_identity_of_a_folder_is_that_of_its_copy(tmp_path, monkeypatch):
    first = make_images(tmp_path / "first")
    before = identity_of(f"folder:{first}")
    assert (before["training"], before["validation"]) == (2, 2)
    copy = tmp_path / "deep" / "copy"
    shutil.copytree(first, copy)
    assert identity_of(f"folder:{copy}") == before == json.loads(json.dumps(before))
    monkeypatch.setattr(identity, "MOST_SIZES", 1)  # of the first file alone
    of_some = identity_of(f"folder:{copy}", val_fraction=0.0)
    (copy / "b" / "2.png").write_bytes(b"longer" * 999)
    assert identity_of(f"folder:{copy}", val_fraction=0.0) == of_some


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "a" / "1.png").unlink(),
        lambda root: (root / "a" / "1.png").rename(root / "a" / "0.png"),
        lambda root: (root / "a" / "1.png").rename(root / "b" / "0.png"),
        lambda root: (root / "a" / "1.png").write_bytes(b"longer" * 999),
        lambda root: (root / "a").rename(root / "c"),
        lambda root: make_images(root, ["a/3.png"]),
    ],
)
def test_another_file_name_or_size_is_another_identity(change, tmp_path):
    root = make_images(tmp_path / "images")
    before = identity_of(f"folder:{root}")
    change(root)
    assert identity_of(f"folder:{root}") != before


def test_the_identity_of_a_table_and_of_generated_images(tmp_path):
    root = make_images(tmp_path / "images")
    table = root / "table.csv"
    table.write_text("path,label\na/1.png,x\na/2.png,y\nb/1.png,x\nb/2.png,y\n")
    before = identity_of(f"csv:{table}")
    shutil.copytree(root, tmp_path / "copy")
    assert identity_of(f"csv:{tmp_path}/copy/table.csv") == before
    table.write_text(table.read_text().replace("b/2.png,y", "b/2.png,x"))
    assert identity_of(f"csv:{table}") != before
    shapes = [identity_of(f"shapes:size=16,train={n},val=4") for n in (8, 8, 9)]
    assert shapes[0] == shapes[1] != shapes[2]
