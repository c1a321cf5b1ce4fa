import io
import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from dppmask_jax.data import loader
from dppmask_jax.data.images import decode
from dppmask_jax.data.sources import mixed_backgrounds, opening
from dppmask_jax.errors import InputError

REAL = os.environ.get("DPPMASK_TEST_DATA", "")


def write(path, value=0, size=(4, 4), exif=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(buffer, "PNG", exif=exif)
    path.write_bytes(buffer.getvalue())


def names(source, root):
    return [os.path.relpath(source.name(i), root) for i in range(len(source))]


def red(source, i):
    return decode.decode(source.read(i)[0])[0, 0, 0]


def fails(spec, words, **options):
    with pytest.raises(InputError, match=words) as error:
        opening.open_splits(spec, **options)
    assert "\n" not in str(error.value)


# COCO.

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 7, "name": "train"}]


def annotation(image, category, crowd=0):
    return {
        "id": 100 * image + category,
        "image_id": image,
        "category_id": category,
        "iscrowd": crowd,
        "segmentation": [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]],
    }


def coco_document(split="train", year=2014):
    return {
        "info": {},
        "images": [
            {"id": number, "file_name": f"COCO_{split}{year}_{number}.png"}
            for number in (9, 5, 30, 7)
        ],
        "annotations": [
            annotation(30, 18),
            annotation(5, 7, crowd=1),
            annotation(5, 1),
            annotation(30, 18),
            annotation(7, 1),
        ],
        "categories": CATEGORIES,
    }


def write_coco(root, year=2014, **documents):
    (root / "annotations").mkdir(exist_ok=True, parents=True)
    for split in ("train", "val"):
        document = documents.get(split, coco_document(split, year))
        path = root / "annotations" / f"instances_{split}{year}.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        for number in (9, 5, 30, 7):
            write(root / f"{split}{year}" / f"COCO_{split}{year}_{number}.png", number)
    return f"coco:{root}"


def test_coco(tmp_path):
    val_document = coco_document("val")
    val_document["annotations"] = [annotation(9, 7)]
    train, val = opening.open_splits(write_coco(tmp_path, val=val_document))
    # Image 9 is not annotated; the others stay in the file's order.
    expected = ["COCO_train2014_5.png", "COCO_train2014_30.png", "COCO_train2014_7.png"]
    assert names(train, tmp_path / "train2014") == expected
    assert train.target_names == val.target_names == ("person", "train", "dog")  # ids 1, 7, 18
    np.testing.assert_array_equal(train.targets(), [[1, 1, 0], [0, 0, 1], [1, 0, 0]])
    assert train.targets().dtype == np.uint8
    np.testing.assert_array_equal(val.targets(), [[0, 1, 0]])
    assert names(val, tmp_path) == ["val2014/COCO_val2014_9.png"]
    assert red(train, 1) == 30 and train.read(1)[1] == -1
    assert not train.labelled and train.labels is None and "several" in train.unlabelled_because
    copy = pickle.loads(pickle.dumps(train))
    assert copy.read(2) == train.read(2)
    np.testing.assert_array_equal(copy.targets(), train.targets())


def test_newest_year_of_coco_that_is_complete(tmp_path):
    for year in (2014, 2017):
        spec = write_coco(tmp_path, year)
    write_coco(tmp_path, 2021)
    (tmp_path / "annotations/instances_val2021.json").unlink()
    (tmp_path / "annotations/captions_train2030.json").write_text("{}")
    train, val = opening.open_splits(spec)
    assert names(train, tmp_path)[0] == "train2017/COCO_train2017_5.png"
    assert names(val, tmp_path)[0] == "val2017/COCO_val2017_5.png"


def test_wrong_coco(tmp_path):
    fails(f"coco:{tmp_path}/gone", r"cannot list .*gone/annotations")
    (tmp_path / "bare/annotations").mkdir(parents=True)
    fails(f"coco:{tmp_path}/bare", "lacks instances_trainYEAR.json")
    fails(write_coco(tmp_path / "text", train="{'a':"), r"instances_train2014.json is not JSON")
    fails(
        write_coco(tmp_path / "other", val={"images": []}), r"val2014.json has not .*'categories'"
    )
    fails(write_coco(tmp_path / "list", val=[1]), "has not the format of COCO")
    stray = coco_document("train")
    stray["annotations"].append(annotation(77, 1))
    fails(write_coco(tmp_path / "stray", train=stray), r"has not the format .*no 77")
    twice = coco_document("train")
    twice["images"].append(twice["images"][1])
    train, _ = opening.open_splits(write_coco(tmp_path / "twice", train=twice))
    assert len(train) == 3 and train.targets().tolist() == [[0, 0, 1], [1, 0, 0], [1, 1, 0]]
    nothing = coco_document("train") | {"annotations": []}
    fails(write_coco(tmp_path / "nothing", train=nothing), "train2014.json annotates no image")
    renamed = coco_document("val") | {
        "categories": [category | {"name": "x"} for category in CATEGORIES]
    }
    fails(write_coco(tmp_path / "renamed", val=renamed), "differ in their categories")


def test_coco_without_its_images(tmp_path):
    spec = write_coco(tmp_path)
    for number in (30, 7):
        (tmp_path / f"val2014/COCO_val2014_{number}.png").unlink()
    fails(spec, r"2 of the 3 files that .*instances_val2014.json names .* is .*_val2014_30\.png;")
    for file in (tmp_path / "train2014").iterdir():
        file.unlink()
    (tmp_path / "train2014").rmdir()
    fails(spec, r"3 of the 3 files .*train2014/COCO_train2014_5\.png")


def test_annotated_images_that_cannot_be_read(tmp_path):
    spec = write_coco(tmp_path)
    for file in (tmp_path / "train2014").iterdir():
        file.write_bytes(b"text")
    fails(spec, r"none of the 3 images .* can be read")


# CLEVR.


def scene(name, *things):
    objects = [dict(zip(("color", "shape"), thing.split(), strict=True)) for thing in things]
    return {"image_filename": name, "objects": [{"size": "large"} | thing for thing in objects]}


def write_clevr(root, split="train", scenes=(), folder="images/{}", file="CLEVR_{}_scenes.json"):
    path = root / "scenes" / file.format(split)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"info": {}, "scenes": list(scenes)}))
    for number, one in enumerate(scenes):
        write(root / folder.format(split) / one["image_filename"], number)
    return f"clevr:{root}"


def test_clevr(tmp_path):
    write_clevr(
        tmp_path,
        "train",
        [scene("a.png", "gray cube", "yellow cylinder", "gray cube"), scene("b.png", "red sphere")],
    )
    spec = write_clevr(tmp_path, "val", [scene("c.png", "yellow cube")])
    train, val = opening.open_splits(spec)
    assert names(train, tmp_path) == ["images/train/a.png", "images/train/b.png"]
    assert names(val, tmp_path) == ["images/val/c.png"]
    # colour + 8 * shape: gray 0, red 1, ..., yellow 7; cube 0, sphere 1, cylinder 2.
    assert [np.flatnonzero(row).tolist() for row in train.targets()] == [[0, 23], [9]]
    assert np.flatnonzero(val.targets()[0]).tolist() == [7]
    assert train.targets().shape == (2, 24) and train.targets().dtype == np.uint8
    assert len(train.target_names) == 24
    assert [train.target_names[i] for i in (0, 9, 23)] == [
        "gray cube", "red sphere", "yellow cylinder",
    ]  # fmt: skip
    assert red(train, 1) == 1 and not train.labelled


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"folder": "images"},
        {"folder": "images", "file": "scenes.json"},
    ],
)
def test_one_file_of_scenes_is_split(layout, tmp_path):
    colors = ("red", "cyan")
    scenes = [scene(f"{i}.png", f"{colors[i % 2]} cube") for i in range(40)]
    train, val = opening.open_splits(write_clevr(tmp_path, "train", scenes, **layout))
    assert (len(train), len(val)) == (28, 12)
    numbers = [int(os.path.basename(name)[:-4]) for name in names(train, "/") + names(val, "/")]
    assert sorted(numbers) == list(range(40))
    assert numbers[:28] == sorted(numbers[:28])
    # By hashes of the file names, for ever: else runs do not compare.
    assert numbers[28:] == [0, 3, 18, 21, 22, 23, 25, 29, 31, 32, 37, 39]
    for source, part in ((train, numbers[:28]), (val, numbers[28:])):
        for i, number in enumerate(part):
            assert red(source, i) == number
            assert np.flatnonzero(source.targets()[i]).tolist() == [6 if number % 2 else 1]


def test_wrong_clevr(tmp_path):
    fails(f"clevr:{tmp_path}/gone", r"cannot list .*gone/scenes")
    (tmp_path / "bare/scenes").mkdir(parents=True)
    fails(f"clevr:{tmp_path}/bare", "has neither CLEVR_train_scenes.json and")
    write_clevr(tmp_path / "two", "train", [scene("a.png", "red cube")])
    fails(write_clevr(tmp_path / "two", "test", [scene("a.png", "red cube")]), "has neither")
    pink = [scene("a.png", "pink cube")]
    fails(write_clevr(tmp_path / "pink", "train", pink), "has not the format of CLEVR")
    fails(write_clevr(tmp_path / "none", "train", []), "annotates no image")
    path = tmp_path / "none/scenes/CLEVR_train_scenes.json"
    path.write_text('{"questions": []}')
    fails(f"clevr:{tmp_path}/none", r"format of CLEVR's scenes \(no 'scenes'\)")
    path.write_bytes(b"\xff\xfe\x00")
    fails(f"clevr:{tmp_path}/none", "is not JSON")
    spec = write_clevr(tmp_path / "lost", "train", [scene(f"{i}.png") for i in range(4)])
    (tmp_path / "lost/images/train/2.png").unlink()
    fails(spec, r"1 of the 4 files .*images/train/2\.png")


# CSV.


def write_csv(root, text, count=6):
    for i in range(count):
        write(root / f"images/{i}.png", i, size=(5, 3))
    path = root / "list.csv"
    path.write_text(text)
    return f"csv:{path}"


LABELLED = """\
path,split,label,breed,round,age,red
images/0.png,trainval,wolf,x,1,3,0
images/3.png,test,dog,x,1,4,1
images/2.png,train,dog,x,0,5,0
"images/1.png",Train,cat,x, 1 ,1,0
images/4.png,test,wolf,x,0,0,1
"""


def test_csv(tmp_path):
    train, val = opening.open_splits(write_csv(tmp_path, LABELLED))
    assert names(train, tmp_path) == ["images/0.png", "images/2.png", "images/1.png"]
    assert names(val, tmp_path) == ["images/3.png", "images/4.png"]
    assert train.class_names == val.class_names == ("cat", "dog", "wolf")
    assert [train.read(i)[1] for i in range(3)] == [2, 1, 0] == train.labels().tolist()
    assert [val.read(i)[1] for i in range(2)] == [1, 2]
    assert [red(train, i) for i in range(3)] == [0, 2, 1]
    assert train.target_names == ("round", "red")
    np.testing.assert_array_equal(train.targets(), [[1, 0], [0, 0], [1, 0]])
    np.testing.assert_array_equal(val.targets(), [[1, 1], [0, 1]])
    assert train.targets().dtype == np.uint8
    assert train.extras(0) == {}
    copy = pickle.loads(pickle.dumps(val))
    assert copy.read(1) == val.read(1) and copy.labels().tolist() == [1, 2]


def test_numbers_are_classes_in_the_order_of_numbers(tmp_path):
    text = "path,label\n" + "".join(f"images/{i}.png,{(10, 2, 0)[i % 3]}\n" for i in range(6))
    train, val = opening.open_splits(write_csv(tmp_path, text), val_fraction=0.0)
    assert val is None and train.class_names == ("0", "2", "10")
    assert train.labels().tolist() == [2, 1, 0, 2, 1, 0]
    assert train.targets is None and train.target_names == ()


def test_csv_without_splits_holds_out_a_share_of_each_label(tmp_path):
    text = "path,label\n" + "".join(
        f"images/{i}.png,{'ab'[i >= 12]}\n" for i in range(20)
    )  # 12 and 8
    train, val = opening.open_splits(write_csv(tmp_path, text, 20), val_fraction=0.25)
    assert sorted(val.labels().tolist()) == [0, 0, 0, 1, 1]
    assert len(set(names(train, tmp_path)) | set(names(val, tmp_path))) == 20
    assert names(val, tmp_path) != [f"images/{i}.png" for i in (0, 1, 2, 12, 13)]


def test_csv_without_labels(tmp_path):
    train, val = opening.open_splits(write_csv(tmp_path, "path\nimages/0.png\nimages/5.png\n"))
    assert (len(train), len(val)) == (1, 1)
    for source in (train, val):
        assert not source.labelled and source.labels is None and source.read(0)[1] == -1
        assert "no column 'label'" in source.unlabelled_because
    one = "path,label\nimages/0.png,a\nimages/1.png,a\n"
    train, _ = opening.open_splits(write_csv(tmp_path, one))
    assert not train.labelled and "one label only" in train.unlabelled_because
    one = "path,label\nimages/0.png,a\nimages/1.png,\nimages/2.png,b\n"
    train, _ = opening.open_splits(write_csv(tmp_path, one))
    assert len(train) == 2 and "images/1.png in" in train.unlabelled_because


def test_csv_from_a_spreadsheet(tmp_path, monkeypatch):
    write_csv(tmp_path, "")
    (tmp_path / "list.csv").write_bytes(
        '\ufeffpath,label\r\n"images/0.png",ä\r\n\r\nimages/1.png,b\r\n'.encode()
    )
    monkeypatch.chdir(tmp_path)
    train, _ = opening.open_splits("csv:list.csv", val_fraction=0.0)
    assert train.class_names == ("b", "ä") and train.name(1) == "images/1.png"
    assert red(train, 1) == 1


def test_absolute_paths(tmp_path):
    write(tmp_path / "elsewhere/a.png", 9)
    spec = write_csv(tmp_path / "set", f"path\n{tmp_path}/elsewhere/a.png\nimages/0.png\n")
    train, _ = opening.open_splits(spec, val_fraction=0.0)
    assert red(train, 0) == 9 and red(train, 1) == 0


def write_mask(path, size, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def test_masks(tmp_path):
    write_mask(tmp_path / "masks/a.png", (5, 3), 128)
    write_mask(tmp_path / "masks/b.png", (3, 5), 255)
    text = "path,split,mask\nimages/0.png,train,\nimages/1.png,val,masks/a.png\n"
    spec = write_csv(tmp_path, text + "turned.png,val,masks/b.png\nimages/2.png,val,masks/b.png\n")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown upright it is 3 wide and 5 high
    write(tmp_path / "turned.png", 1, size=(5, 3), exif=exif)
    train, val = opening.open_splits(spec)
    assert train.extras(0) == {}
    mask = pickle.loads(pickle.dumps(val)).extras(0)["mask"]
    assert mask.shape == (3, 5) and mask.dtype == np.uint8 and np.all(mask == 128)
    assert val.extras(1)["mask"].shape == (5, 3) == decode.decode(val.read(1)[0]).shape[:2]
    lines = []  # the third image's mask is of another size: it is named, and left out
    options = {"image_size": (4, 4), "batch_size": 3, "extras": ("mask",), "log": lines.append}
    with loader.eval_batches(val, **options) as batches:
        assert [batch["valid"].tolist() for batch in batches] == [[True, True, False]]
    assert len(lines) == 1 and "2.png: its mask has 3 x 5 pixels, the image 5 x 3" in lines[0]
    (tmp_path / "masks/b.png").unlink()
    train, val = opening.open_splits(spec)  # what needs no masks goes without
    train.check_extras()
    with pytest.raises(InputError, match=r"2 of the 3 files that .*list\.csv names .*masks/b\.png"):
        mixed_backgrounds.require_masks(val)


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
@pytest.mark.parametrize("name", ["Path", "file", "Image Path", "image"])
def test_other_delimiters_and_names_of_the_columns(delimiter, name, tmp_path):
    rows = [
        [name, "Split", "label", "a, b"],
        ["images/0.png", "train", "x,1", "0"],
        ["images/1.png", "train", "y", "1"],
        ["images/2.png", "val", "y", "0"],
    ]
    spec = write_csv(tmp_path, "".join(delimiter.join(row) + "\n" for row in rows))
    train, val = opening.open_splits(spec)
    assert names(train, tmp_path) == ["images/0.png", "images/1.png"] and len(val) == 1
    assert train.class_names == ("x,1", "y") and train.target_names == ("a, b",)


def test_splits_of_a_csv_file(tmp_path):
    text = "path,split\nimages/0.png,train\nimages/1.png,valid\nimages/2.png,test\n"
    train, val = opening.open_splits(write_csv(tmp_path, text))
    assert names(val, tmp_path) == ["images/1.png"] and "1 images for testing" in train.notes[0]
    train, val = opening.open_splits(write_csv(tmp_path, text.replace("split", "subset")))
    assert len(train) + len(val) == 3 and "'subset' of" in train.notes[0]


def test_no_masks_at_all(tmp_path):
    spec = write_csv(tmp_path, "path,mask\nimages/0.png,\nimages/1.png,\n")
    train, _ = opening.open_splits(spec)
    assert train.extras(0) == {} and train.target_names == ()


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "no column 'path', only none"),
        ("picture,label\nimages/0.png,1\n", "no column 'path', only picture, label"),
        ("file,Image\na,b\n", r"only 2 columns that may be it \(file, Image\)"),
        ("path,label\n", "names no image"),
        ("path,path\na,b\n", "two columns 'path'"),
        ("path,label\nimages/0.png\n", "line 2 has 1 values for 2 columns"),
        ('path,label\n"images/0.png,1\n', "is no CSV file"),
        ("path,label\nimages/0.png,1\nimages/x.png,2\n", r"1 of the 2 .*images/x\.png"),
        ("path,split\nimages/0.png,test\n", "no training image; write train"),
        (
            "path,split,label\nimages/0.png,train,a\nimages/1.png,train,b\nimages/2.png,val,c\n",
            "no training image has the label 'c'",
        ),
    ],
)
def test_wrong_csv(text, words, tmp_path):
    fails(write_csv(tmp_path, text), words)


def test_unreadable_csv(tmp_path):
    fails(f"csv:{tmp_path}/gone.csv", r"cannot read .*gone\.csv: No such file")
    fails(f"csv:{tmp_path}", "Is a directory")
    (tmp_path / "list.csv").write_bytes(b"path\n\xff\xfe\n")
    fails(f"csv:{tmp_path}/list.csv", "no CSV file in UTF-8")


@pytest.mark.realdata
@pytest.mark.skipif(not REAL, reason="DPPMASK_TEST_DATA names no folder of real images")
def test_real_csv():
    path = os.path.join(REAL, "pets224", "labels.csv")
    if not os.path.exists(path):
        pytest.skip(f"no file {path}")
    train, val = opening.open_splits(f"csv:{path}")
    assert len(train) + len(val) == 600 and train.num_classes == 3 and train.targets is None
    for i in range(0, len(val), 60):
        data, label = val.read(i)
        assert val.labels()[i] == label
        assert val.extras(i)["mask"].shape == decode.decode(data).shape[:2]
