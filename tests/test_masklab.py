"""The mask lab: keys that all masks share, its command, and what it leaves out and refuses."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from dppmask_jax.errors import InputError
from dppmask_jax.masking import MASKERS, Masker, MaskerKind, Seen
from dppmask_jax.masklab import __main__ as command
from dppmask_jax.masklab import photographs, rows, showing, ways
from dppmask_jax.pixel_format import RGB

_SMALL = (
    "--source=shapes:size=32,train=8,val=6",
    "--image_size=32",
    "--patch_size=4",
    "--features=pixels",
)


def _run(folder, *arguments):
    command.main([*_SMALL, f"--out={folder}", *arguments])
    return json.loads((folder / "table.json").read_text())


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    return folder, _run(
        folder, "--seeds=1", "--strategy", "dpp", "block", "parts", "attention", "file"
    )


def test_the_command_writes_table_figure_and_page(measured):
    folder, report = measured
    (part,) = report["ratios"]
    assert report["images"] == 6 and report["grid"] == [8, 8] and part["visible"] == 16
    assert [record["mask"] for record in part["masks"]] == [
        "random, exact", "random", "DPP (τ = 0.9)", "DPP (τ = 0.9) of positions", "block",
        "parts (source)",
    ]  # fmt: skip
    page, tables = ((folder / name).read_text() for name in ("page.md", "table.md"))
    for words in (page, tables):
        assert "| DPP (τ = 0.9)" in words and "largest piece" in words
        assert "| visible patches" not in words
    assert "gallery.png" in page and "6 images of shapes" in page
    with Image.open(folder / "gallery.png") as figure:
        assert figure.width > 4 * 4 * 32


def test_what_is_left_out_is_named_with_its_reason(measured):
    folder, report = measured
    left_out = report["ratios"][0]["left_out"]
    assert "needs a class token's attention" in left_out["AttMask (high)"]
    assert "mask.path" in left_out["file"]
    assert "### Left out: 4 masks" in (folder / "page.md").read_text()


def test_statistics_of_the_command_are_those_of_the_masks(measured):
    _, report = measured
    records = {record["mask"]: record for record in report["ratios"][0]["masks"]}
    for record in list(records.values())[1:]:
        np.testing.assert_allclose(np.mean(record["visible_rate"]), 1 / 4)
    random, dpp = records["random"], records["DPP (τ = 0.9)"]
    assert "change" not in random["of_images"]["low"]
    for name in ("low", "copied", "log_det"):
        mean, base = dpp["of_images"][name]["mean"], random["of_images"][name]["mean"]
        np.testing.assert_allclose(dpp["of_images"][name]["change"], mean - base, atol=1e-9)
    assert records["block"]["of_images"]["low"]["mean"] > 1.5 * random["of_images"]["low"]["mean"]
    np.testing.assert_allclose(records["random, exact"]["of_objects"]["all"]["kept"]["mean"], 1 / 4)


def test_masks_of_one_key_share_their_noise(tmp_path):
    # A DPP of tau 1 picks nothing, and so is the random mask of its key.
    arguments = ("--seeds=2", "--no-positions", "--strategy", "dpp", "--tau", "1", "0")
    _, _, same, greedy = _run(tmp_path, *arguments)["ratios"][0]["masks"]
    assert [record["mask"] for record in (same, greedy)] == ["DPP (τ = 1)", "DPP (τ = 0)"]
    assert same["settings"] == {"tau": 1} and same["most_picks"] == 0
    for record, equal in ((same, True), (greedy, False)):
        every = [*record["of_images"].values(), *record["of_objects"]["all"].values()]
        changes = [found["change"] for found in every if "change" in found and found["mean"]]
        assert (np.abs(changes) < 1e-12).all() == equal
    assert greedy["most_picks"] == 16
    assert greedy["of_images"]["log_det"]["change"] > 0


def test_keys_are_those_of_the_image_and_the_seed():
    keys = jax.random.key_data(ways.keys_of(1, [4, 7]))
    alone = jax.random.key_data(ways.keys_of(1, [7]))
    assert (keys[1] == alone[0]).all() and not (keys[0] == keys[1]).all()
    assert not (alone == jax.random.key_data(ways.keys_of(0, [7]))).all()


def _only_at_a_quarter(mask):
    def draw(keys, count, seen, most):
        if 4 * count != seen.grid[0] * seen.grid[1]:
            raise ValueError("own masks hide three quarters")
        # and show four patches more
        return MASKERS["random"].build(mask).draw(keys, count + 4, seen, most)

    return Masker(draw, frozenset(), "own")


def test_a_mask_that_refuses_a_ratio_is_left_out_there(tmp_path, monkeypatch):
    monkeypatch.setitem(MASKERS, "own", MaskerKind(_only_at_a_quarter))
    report = _run(tmp_path, "--seeds=1", "--ratio", "0.75", "0.5", "--strategy", "own", "random")
    drawn, refused = report["ratios"]
    assert drawn["masks"][2]["mask"] == "own" and not drawn["left_out"]
    assert drawn["masks"][2]["of_images"]["visible"]["mean"] == 20
    assert (tmp_path / "table.md").read_text().count("visible patches") == 2  # of two ratios
    assert refused["left_out"] == {"own": "own masks hide three quarters"}
    assert refused["visible"] == 32 and len(refused["masks"]) == 2
    assert (tmp_path / "gallery_0.75.png").exists() and (tmp_path / "gallery_0.5.png").exists()


def test_a_run_shows_what_its_method_has():
    def masks(params, extra, images, keys, masker, count):
        bright = images.mean(axis=(1, 2, 3))[:, None] * params
        seen = Seen((4, 4), features=lambda: bright + jnp.zeros((1, 16)), attention=lambda: bright)
        return masker.draw(keys, count, seen, count)

    run = SimpleNamespace(
        has_masks=True, name="a run", image_size=(8, 8), params=2.0, extra=None,
        config=SimpleNamespace(model=SimpleNamespace(patch_size=2)),
        method=SimpleNamespace(masks=masks), pixels=RGB,
    )  # fmt: skip
    shower = showing.of_run(run)
    shown = shower.show(np.full((3, 8, 8, 3), 5, np.uint8), 0)
    assert shower.words == "a run" and shown.keys() == {"features", "attention"}
    np.testing.assert_allclose(shown["features"], np.full((3, 16), 10))
    run.pixels, run.config.data = RGB._replace(channels=4), SimpleNamespace(channels=4)
    with pytest.raises(InputError, match=r"config.data.channels=4, and .* 8-bit RGB photographs"):
        showing.of_run(run)


@pytest.mark.slow
def test_masks_by_the_attention_of_a_run(tmp_path):
    workdir = tiny.save_run(tmp_path / "run", "ibot")
    command.main(
        [
            "--source=shapes:size=16,train=8,val=4", f"--encoder={workdir}", "--seeds=1",
            f"--out={tmp_path / 'out'}", "--strategy", "attention", "--attention", "high",
        ]
    )  # fmt: skip
    report = json.loads((tmp_path / "out" / "table.json").read_text())
    assert report["shown_by"] == "an iBOT" and report["grid"] == [4, 4]
    assert [record["mask"] for record in report["ratios"][0]["masks"]][2:] == ["AttMask (high)"]


def test_parts_are_those_of_most_pixels_of_a_patch():
    source = photographs.chosen_split("shapes:size=32,train=8,val=6", "val")
    taken = photographs.read(
        source, "shapes", image_size=(32, 32), patch_size=8, limit=0, foreground=128, pieces=False,
        num_parts=7,
    )  # fmt: skip
    assert taken.parts.shape == (6, 16) and taken.objects.shape == (6, 16)
    for image, parts in enumerate(taken.parts):
        segments = source.extras(image)["segments"]
        _, numbered = np.unique(segments, return_inverse=True)
        cells = numbered.reshape(4, 8, 4, 8).transpose(0, 2, 1, 3).reshape(16, 64)
        assert parts.tolist() == [np.bincount(cell).argmax() for cell in cells]
        assert parts.max() > 0


def test_ways_of_one_label_are_told_apart():
    chosen, left_out = ways.all_of(["exact"], {"kernel": ["gaussian", "cosine"]}, 0.75, False)
    assert [way.label for way in chosen] == [
        "random", "exact DPP, kernel gaussian", "exact DPP, kernel cosine",
    ]  # fmt: skip
    assert not left_out


def test_positions_stand_in_for_features_whatever_an_image_shows():
    chosen, _ = ways.all_of(["dpp"], {"tau": [0.0]}, 0.75)
    assert [way.label for way in chosen] == ["random", "DPP (τ = 0)", "DPP (τ = 0) of positions"]
    keys = ways.keys_of(0, range(6))
    features = np.random.default_rng(0).normal(size=(2, 6, 64, 48)).astype(np.float32)

    def masks(way):
        return [
            ways.draw(way, keys, {"features": of}, ways.Terms((8, 8), 16))[0].mask
            for of in features
        ]

    for way, equal in zip(chosen[1:], (False, True), strict=True):
        first, second = masks(way)
        assert (np.asarray(first) == np.asarray(second)).all() == equal


def test_objects_are_grouped_by_size():
    sizes = np.array([1] * 6 + [2] * 6 + [3, 4, 5, 9])
    groups = rows.groups_of(sizes)
    assert list(groups) == [
        "all",
        "small (1 patch)",
        "medium (2 patches)",
        "large (3 to 9 patches)",
    ]
    assert sizes[groups["large (3 to 9 patches)"]].tolist() == [3, 4, 5, 9]
    assert "smallest tenth (1 to 2 patches)" in rows.groups_of(np.arange(1, 21))


def _write_folder(folder):
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for name in "abc":
        mask = np.zeros((32, 32), np.uint8)
        mask[:, 16:] = 128  # a boundary
        if name != "c":
            mask[8:24, 18:30] = 255
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")


def test_images_without_foreground_are_left_out_and_counted(tmp_path):
    _write_folder(tmp_path / "data")
    command.main(
        [
            f"--source=saliency:{tmp_path / 'data'}", "--image_size=32", "--patch_size=8",
            "--foreground=255", "--seeds=1", "--strategy", "random", f"--out={tmp_path / 'out'}",
        ]
    )  # fmt: skip
    report = json.loads((tmp_path / "out" / "table.json").read_text())
    assert report["images"] == 2 and report["without_foreground"] == 1
    assert report["objects"] == 2 and not report["in_pieces"]


@pytest.mark.parametrize(
    "words,arguments",
    {
        "--strategy=dots is not known": ["--strategy", "dots"],
        "--ratio": ["--ratio", "1.5"],
        "no visible patch": ["--ratio", "0.99"],
        "hides none": ["--ratio", "1e-17"],
        "--patch_size=7": ["--patch_size=7"],
        "4x4": ["--patch_size=16"],
        "--tau=2": ["--tau", "2"],
        "read by none": ["--strategy", "grid", "--tau", "0.5"],
        "needs a class token's attention": ["--strategy", "attention"],
        "--seeds": ["--seeds=0"],
        "--progress": ["--progress=2"],
        "--foreground": ["--foreground=0"],
        "leave it or --encoder out": ["--encoder=run"],
        "a file is of": ["--parts", "maps.npy"],
        "is a file": [f"--out={__file__}"],
        "it must be shapes": ["--source=nothing"],
    }.items(),
)
def test_bad_input_is_refused_in_one_line(tmp_path, words, arguments):
    with pytest.raises(InputError, match=words) as caught:
        command.main([*_SMALL, f"--out={tmp_path}", *arguments])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_images_without_masks_are_refused(tmp_path):
    for name in "ab":
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
    with pytest.raises(InputError, match="needs the mask"):
        command.main([f"--source=folder:{tmp_path}", "--out=nowhere"])
