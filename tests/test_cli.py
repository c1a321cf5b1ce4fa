"""The console script: its commands, recipes by name, and the wheel that has both."""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib

import numpy as np
import pytest
import tiny
from PIL import Image

from dppmask_jax import cli, recipes
from dppmask_jax.commands import masks
from dppmask_jax.errors import InputError
from dppmask_jax.masking import export_masks


def ran(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["dppmask", *words])
    cli.main()


def test_alone_it_lists_its_commands(monkeypatch, capsys):
    ran(monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    listed = [found[1] for line in lines if (found := re.match(r"  ([a-z-]+)  +[a-z]", line))]
    assert listed[: len(cli.COMMANDS)] == list(cli.COMMANDS)
    assert {"train", "eval", "masks", "figures", "weights", "sweep", "show-config"} <= set(listed)
    ran(monkeypatch, "--version")
    assert re.fullmatch(r"dppmask-jax \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    "word,said",
    [("trian", "did you mean train?"), ("q", "commands: train, eval, "), ("--config=x", "'--con")],
)
def test_an_unknown_command_is_one_line_and_status_2(word, said, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        ran(monkeypatch, word)
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert err.startswith("error: there is no command ") and said in err and err.count("\n") == 1


def test_a_command_is_named_with_dashes_or_not_and_knows_its_name(monkeypatch):
    found = []
    command = cli.COMMANDS["show-config"]._replace(run=lambda: found.append(sys.argv[:]))
    monkeypatch.setitem(cli.COMMANDS, "show-config", command)
    ran(monkeypatch, "show-config", "--config=mae")
    ran(monkeypatch, "show_config")
    assert found == [["dppmask show-config", "--config=mae"], ["dppmask show-config"]]


def test_recipes_are_listed_and_explained(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        ran(monkeypatch, "recipes", "--help")
    assert "dppmask recipes mae" in capsys.readouterr().out
    from dppmask_jax.commands import recipes as listing

    listing.main([])
    lines = capsys.readouterr().out.splitlines()
    assert any(re.match(r"  mae +Pre-train a masked autoencoder", line) for line in lines)
    listing.main(["ibot"])
    assert "Arguments after the colon:" in capsys.readouterr().out
    with pytest.raises(InputError, match="there is no recipe 'iboth'"):
        listing.main(["iboth"])


def test_every_command_has_a_heading_and_an_example_on_its_page():
    page = (tiny.ROOT / "docs" / "commands.md").read_text()
    _, *sections = re.split(r"^## ", page, flags=re.MULTILINE)
    assert [section.split("\n")[0] for section in sections] == [*cli.COMMANDS, "Exit statuses"]
    for name, section in zip(cli.COMMANDS, sections[:-1], strict=True):
        assert f"\n    dppmask {name} " in section


def test_versions_agree():
    project = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["project"]
    version = project["version"]
    changes = (tiny.ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## (\S+)$", changes, re.MULTILINE)[1] == version
    assert f"\nversion: {version}\n" in (tiny.ROOT / "CITATION.cff").read_text()
    assert f"dppmask_jax-{version}-" in (tiny.ROOT / "README.md").read_text()
    (ruff,) = [each for each in project["optional-dependencies"]["dev"] if each.startswith("ruff")]
    hooks = (tiny.ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"additional_dependencies: (.*)", hooks) == [f'["{ruff}"]'] * 2
    workflow = (tiny.ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "run: .ci/run\n" in workflow


# Recipes.


def test_a_recipe_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"mae", "ibot", "eval"} <= set(recipes.names())
    assert not {"common", "__init__"} & set(recipes.names())
    assert recipes.path_of("mae") == str(tiny.ROOT / "configs" / "mae.py")
    assert recipes.shadowed("mae") == ""


@pytest.mark.parametrize(
    "file,said",
    [
        ("mea", "there is no recipe 'mea'; did you mean mae? Known: adios, "),
        ("zzzz", "there is no recipe 'zzzz'. Known: adios, "),
        ("common", "there is no recipe 'common'. Known: "),
        ("configs/mae.py", "no config file configs/mae.py in {cwd}; --config=mae is the recipe"),
        ("mae.py", "there is no config file mae.py in {cwd}; --config=mae is the recipe"),
        ("configs/my.py", "configs/my.py in {cwd}; name one with --config=FILE"),
        ("/no/my.py", "there is no config file /no/my.py; name one with --config=FILE"),
        ("", "--config is empty: name a recipe (adios, "),
        (".", "--config=. is a folder: name a file in it, or a recipe (adios, "),
    ],
)
def test_what_is_no_recipe_and_no_file_is_named_as_typed(file, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(said.format(cwd=tmp_path))):
        recipes.path_of(file)


def test_what_a_user_calls_as_a_recipe_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = str(tiny.ROOT / "configs" / "mae.py")
    (tmp_path / "mae").mkdir()
    assert recipes.path_of("mae") == recipe and recipes.shadowed("mae") == ""  # it is no config
    (tmp_path / "mae.py").touch()
    assert recipes.shadowed("mae") == ""  # it is no config either
    (tmp_path / "mae.py").write_text("def get_config():\n    return {}\n")
    assert recipes.path_of("mae") == recipe and recipes.path_of("mae.py") == "mae.py"
    note = "note: --config=mae is the recipe; the file here is --config=mae.py"
    assert recipes.shadowed("mae") == note and recipes.shadowed("mae.py") == ""
    (tmp_path / "ibot").touch()
    with pytest.raises(InputError, match=r"ibot is a recipe and a file .*: name the file \./ibot"):
        recipes.path_of("ibot")
    assert recipes.path_of("./ibot") == "./ibot"


# Masks of a folder.


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("b.png", "c.PNG", "sub/a.png"):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    (tmp_path / "images" / "a.png").write_text("no image")
    (tmp_path / "images" / "notes.txt").touch()
    return tmp_path / "images"


def exported(folder, *words):
    out = folder.parent / "made.npz"
    masks.main([str(folder), f"--out={out}", "--image_size=32", "--patch_size=8", *words])
    with np.load(out) as file:
        return dict(file)


def test_masks_of_a_folder(folder, capsys):
    made = exported(folder, "--tau=0.5", "--seed=3", "--num=2", "--ratio=0.5")
    out, err = capsys.readouterr()
    assert re.search(r"^left out: \S+a\.png: damaged", err) and err.count("\n") == 1
    assert "made.npz: 3 masks, 8 of 16 patches hidden" in out and "image: 1 file\n" in out
    assert list(made["paths"]) == ["b.png", "c.PNG", "sub/a.png"]
    assert made["grid"].tolist() == [4, 4] and made["patch_size"].tolist() == [8, 8]
    settings = {"strategy": "dpp", "ratio": 0.5, "seed": 3, "features": "embedding", "tau": 0.5}
    assert json.loads(str(made["settings"])) == settings
    # Images as they are: their size is the one asked for. The unreadable one is number 0.
    pixels = np.stack([np.asarray(Image.open(folder / name)) for name in made["paths"]])
    wanted = export_masks(pixels, patch_size=8, ratio=0.5, tau=0.5, seed=3, start_index=1)
    for name in ("order", "mask", "count", "num_greedy"):
        np.testing.assert_array_equal(made[name], getattr(wanted, name))
    with Image.open(folder.parent / "made.png") as figure:
        assert min(figure.size) > 300


def test_a_mask_does_not_depend_on_whether_others_can_be_read(folder):
    before = exported(folder, "--strategy=random", "--num=1")
    with Image.open(folder.parent / "made.png") as figure:
        assert figure.width > 600  # enlarged
    for name in ("made.npz", "made.png"):
        (folder.parent / name).unlink()
    (folder / "a.png").write_bytes((folder / "b.png").read_bytes())
    after = exported(folder, "--strategy=random", "--num=0")
    assert len(before["mask"]) == 3 and len(after["mask"]) == 4
    np.testing.assert_array_equal(before["mask"], after["mask"][1:])
    assert not (folder.parent / "made.png").exists()


@pytest.mark.parametrize(
    "words,said",
    [
        (("--strategy=hard",), "needs predicted losses, which images alone do not show"),
        (("--strategy=dppp",), "strategy must be dpp | "),
        (("--strategy=random", "--tau=1"), "--tau is not read by --strategy=random"),
        (("--tau=2",), "--tau=2: it must be"),
        (("--ratio=1",), "mask ratio must be in"),
        (("--patch_size=7",), "is not a multiple of the patch size 7"),
        (("--seed=-1",), "seed must be an int in"),
        (("--num=-1",), "--num must be at least 0"),
        (("--out=masks.npy",), "name a file that ends in .npz"),
        (("--out=/no/such/masks.npz",), "there is no folder /no/such"),
        (("--figure=x.jpg",), "name a file that ends in .png"),
    ],
)
def test_masks_are_refused_before_any_image_is_read(words, said, folder, monkeypatch):
    monkeypatch.setattr(masks, "_read", lambda *_: pytest.fail("reads"))
    with pytest.raises(InputError, match=re.escape(said)):
        exported(folder, *words)
    assert [path.name for path in folder.parent.iterdir()] == ["images"]


def test_masks_write_over_nothing(folder):
    out = folder.parent / "made.npz"
    out.write_text("kept")
    with pytest.raises(InputError, match=r"made\.npz exists: name another file, or remove it"):
        exported(folder)
    assert out.read_text() == "kept"
    out.unlink()
    (folder.parent / "made.png").write_text("kept")
    with pytest.raises(InputError, match=r"made\.png exists"):
        exported(folder)


def test_masks_of_nothing_that_can_be_read(folder, tmp_path):
    for path in folder.rglob("*.[pP]*"):
        path.write_text("no image")
    with pytest.raises(InputError, match=r"none of 4 images in .* can be read"):
        exported(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image in"):
        exported(tmp_path / "empty")
    with pytest.raises(InputError, match="there is no file or folder"):
        exported(tmp_path / "nowhere")


# The wheel.


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """(runs a command of a wheel in an empty folder, that folder). The environment has the wheel's
    files, and the libraries of this one behind them."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    kept = ("dppmask_jax", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE")
    for name in kept:
        path = tiny.ROOT / name
        copy = shutil.copytree if path.is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(path, source / name)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    (packages,) = (folder / "env").glob("lib/python*/site-packages")
    # A path in such a file is searched, and files like it there are not read: not this project's.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    away = folder / "away"
    away.mkdir()

    def run(*words):
        variables = tiny.environment(1, as_users=True)
        variables.pop("PYTHONPATH", None)
        return subprocess.run(
            [folder / "env" / "bin" / "dppmask", *map(str, words)],
            cwd=away, env=variables, capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    return run, away


def fields(flag, values):
    return [f"--{flag}.{name}={value}" for name, value in values.items()]


@pytest.mark.slow
def test_a_wheel_away_from_the_source_trains_evaluates_masks_and_draws(installed):
    run, away = installed
    # A user's own configs/ is neither taken for the recipes' nor in their way.
    (away / "configs").mkdir()
    (away / "configs" / "common.py").write_text("raise RuntimeError('not this one')\n")
    one_block = {"model.depth": 1, "evaluate.knn_images": 0}
    tiny_run = fields("config", tiny.OVERRIDES["mae"] | one_block)

    def done(*words):
        result = run(*words)
        assert result.returncode == 0, (words, result.stderr)
        return result.stdout

    done("train", "--config=mae:dataset=shapes,mask=dpp", "--workdir=runs/first", *tiny_run)
    config = json.loads((away / "runs/first/config.json").read_text())
    assert config["mask"]["strategy"] == "dpp" and config["image_size"] == [16, 16]
    done("eval", "--config=eval:task=knn,dataset=shapes", "--checkpoint=runs/first")
    result = json.loads((away / "runs/first/eval_knn.json").read_text())
    assert result["command"].startswith("dppmask eval --config=eval:task=knn")
    drawn = done("figures", "--workdir=runs/first", "--num=2").splitlines()
    assert drawn and all((away / name).is_file() for name in drawn)
    (away / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(away / "images" / "one.png")
    done("masks", "images", "--image_size=32", "--patch_size=8")
    with np.load(away / "masks.npz") as file:
        assert file["mask"].shape == (1, 16) and file["mask"].sum() == 12
    assert (away / "masks.png").is_file()


@pytest.mark.slow
def test_a_wheel_has_each_recipe_once_and_says_what_is_wrong(installed):
    run, away = installed
    found = run("recipes").stdout
    wanted = [*recipes.names(), *recipes.names("studies")]
    assert all(f"\n  {name} " in found for name in wanted)
    code = (
        "import runpy\nfrom dppmask_jax import recipes\n"
        "for flag in ('config', 'study'):\n"
        "    for name in recipes.names(recipes.BELOW.get(flag, '')):\n"
        "        file = recipes.path_of(name, flag)\n"
        "        print(name, len(runpy.run_path(file)['get_config']()))\n"
    )
    python = away.parent / "env" / "bin" / "python"
    read = subprocess.run([python, "-c", code], cwd=away, capture_output=True, text=True)
    assert [line.split()[0] for line in read.stdout.splitlines()] == wanted, read.stderr
    assert " batch_size = 64 " in run("show-config", "--config=mae:dataset=shapes").stdout
    (packages,) = (away.parent / "env").glob("lib/python*/site-packages")
    assert not (packages / "configs").exists() and not (packages / "tests").exists()
    assert (packages / "dppmask_jax" / "py.typed").is_file()
    ours = list((packages / "dppmask_jax").rglob("simmim.py"))
    assert len(ours) == 1 + len(list((tiny.ROOT / "dppmask_jax").rglob("simmim.py")))
    for words, said in {
        ("train",): "error: --config is missing: name a recipe, such as --config=mae:",
        ("train", "--config=mea:mask=dpp"): "error: --config: there is no recipe 'mea'; did you",
        ("train", "--config=mae:msk=dpp"): "error: unknown config argument 'msk=dpp'; did you",
        ("train", "--config=configs/mae.py"): "error: there is no config file configs/mae.py in",
    }.items():
        done = run(*words)
        assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(said), done
        assert done.stderr.count("\n") == 1
