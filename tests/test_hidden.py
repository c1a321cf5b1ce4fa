"""How often the masks of a run hide a whole object."""

import numpy as np
import pytest
import tiny
from PIL import Image
from test_eval_tasks import found

from dppmask_jax.errors import InputError

pytestmark = pytest.mark.usefixtures("fewer_blocks")
SIDE = 16


@pytest.fixture(scope="module")
def run(fewer_blocks, tmp_path_factory):
    return tiny.save_run(tmp_path_factory.mktemp("mae") / "run", mask__strategy="random")


def table(folder, masks):
    """A csv: source of grey images with some foreground masks, all of them for validation."""
    rng = np.random.default_rng(0)
    rows = ["path,mask,label,split"]
    for i, mask in enumerate(masks):
        image = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{i}.png")
        Image.fromarray(np.uint8(mask) * 255).save(folder / f"{i}_mask.png")
        rows += [f"{i}.png,{i}_mask.png,{i % 2},{split}" for split in ("train", "val")]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return f"csv:{folder / 'labels.csv'}"


def masks_of(*patches, side=4):
    """A foreground for each pair of (row, column): that patch; for None the whole image."""
    found = []
    for patch in patches:
        mask = np.full((SIDE, SIDE), patch is None)
        if patch:
            row, column = (side * each for each in patch)
            mask[row : row + side, column : column + side] = True
        found.append(mask)
    return found


def test_objects_of_one_patch_and_of_all(run, tmp_path):
    """12 of 16 patches are hidden: an object of one of them is, three times of four."""
    one = [(i % 4, i // 4 % 4) for i in range(16)]
    alone = table(tmp_path, masks_of(*one))
    record = found(run, tmp_path / "one", "task=hidden", data__source=alone, draws=16)
    of_one = record["metrics"]
    assert of_one["random"] == pytest.approx(0.75)
    # A patch is visible or hidden: the two measures are one.
    assert of_one["kept"] == pytest.approx(1 - of_one["none"])
    assert of_one["on_object"] == pytest.approx(of_one["kept"] / 4)
    assert abs(of_one["none"] - 0.75) < 4 * np.sqrt(0.75 * 0.25 / (16 * 16))
    assert record["score"]["value"] == of_one["none"]
    assert record["score"]["images"] == 16

    again = found(run, tmp_path / "again", "task=hidden", data__source=alone, draws=16)
    assert again["metrics"] == of_one


def test_images_without_a_foreground_are_left_out(run, tmp_path):
    blank = [np.zeros((SIDE, SIDE))] * 3
    mixed = table(tmp_path, [*masks_of(None, None), *blank])
    record = found(run, tmp_path / "mixed", "task=hidden", data__source=mixed)
    assert record["metrics"] == {"none": 0, "almost": 0, "kept": 0.25, "on_object": 1, "random": 0}
    assert record["score"]["images"] == 2

    with pytest.raises(InputError, match="no image has any foreground"):
        found(run, tmp_path / "bright", "task=hidden", data__source=table(tmp_path, blank))


def test_a_method_that_masks_nothing_is_refused(tmp_path):
    moco = tiny.save_run(tmp_path / "moco", "moco")
    with pytest.raises(InputError, match="needs masks of patches, and a MoCo v3 run draws none"):
        found(moco, tmp_path / "x", "task=hidden")


def test_masks_that_come_with_training_images_have_no_number(tmp_path):
    parts = tiny.save_run(tmp_path / "parts", mask__strategy="parts")
    record = found(parts, tmp_path / "x", "task=hidden")
    assert record["score"] is None and "come with the training images" in record["protocol"]
