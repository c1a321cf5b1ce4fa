import os
import pickle

import numpy as np
import pytest
from test_data_annotations import fails, names, red, write

from dppmask_jax.data.sources import opening


def write_set(root, images=("b.png", "a.jpg", "c.png"), folders=("images", "masks")):
    """Images and masks that differ in their extensions; mask k has the value 100 + k."""
    for number, name in enumerate(images):
        write(root / folders[0] / name, number)
        write(root / folders[1] / f"{os.path.splitext(name)[0]}.bmp", 100 + number)
    return f"saliency:{root}"


def test_images_and_masks_of_one_name(tmp_path):
    spec = write_set(tmp_path)
    write(tmp_path / "masks" / "spare.png")
    (tmp_path / "images" / "list.txt").write_text("a\nb\n")
    train, val = opening.open_splits(spec)
    assert val is None, "nothing is held out"
    assert names(train, tmp_path) == ["images/a.jpg", "images/b.png", "images/c.png"]
    assert [red(train, i) for i in range(3)] == [1, 0, 2]
    copy = pickle.loads(pickle.dumps(train))
    for i, value in enumerate((101, 100, 102)):
        mask = copy.extras(i)["mask"]
        assert mask.dtype == np.uint8 and mask.shape == (4, 4) and (mask == value).all()
    assert not train.labelled and train.read(0)[1] == -1
    assert train.notes == ("masks without an image: spare.png",)
    moved = opening.open_source(write_set(tmp_path / "moved"), "train")
    assert moved.identity() == train.identity()


@pytest.mark.parametrize(
    "folders",
    [
        ("DUTS-TE-Image", "DUTS-TE-Mask"),
        ("DUT-OMRON-image", "pixelwiseGT-new-PNG"),
        ("images", "ground_truth_mask"),
        ("imgs", "gt"),
    ],
)
def test_folders_as_the_data_sets_call_them(folders, tmp_path):
    train, _ = opening.open_splits(write_set(tmp_path, folders=folders))
    assert len(train) == 3 and train.extras(1)["mask"].max() == 100


def test_wrong_folders(tmp_path):
    fails(f"saliency:{tmp_path}/gone", r"cannot list .*gone")
    (tmp_path / "bare").mkdir()
    fails(f"saliency:{tmp_path}/bare", r"bare has no folder that may be images; saliency:ROOT is")
    write(tmp_path / "half" / "images" / "a.png")
    fails(f"saliency:{tmp_path}/half", r"half has no folder that may be masks")
    spec = write_set(tmp_path / "two", folders=("img", "gt"))
    write(tmp_path / "two" / "gt2" / "a.png")
    fails(spec, r"two has several folders that may be masks: gt, gt2;")
    spec = write_set(tmp_path / "twice")
    write(tmp_path / "twice" / "masks" / "b.png")
    fails(spec, r"masks has two files 'b': b.bmp and b.png; remove one")
    spec = write_set(tmp_path / "empty")
    for path in (tmp_path / "empty" / "masks").iterdir():
        path.unlink()
    fails(spec, r"there is no image in .*empty/masks")


def test_images_without_a_mask_are_listed(tmp_path):
    spec = write_set(tmp_path, images=[f"{i}.png" for i in range(8)])
    for i in range(1, 8):
        (tmp_path / f"masks/{i}.bmp").unlink()
    fails(
        spec,
        r"7 of 8 images in .*/images have no mask of their name in .*/masks: 1.png, .* and 2 more;",
    )
