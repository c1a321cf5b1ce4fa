"""Files that are no ordinary image: what becomes of each, alone, in a folder and while training."""

import io
import os
import socket
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_data_decode import encode
from test_data_loader import same, single, stream

from dppmask_jax.data import loader
from dppmask_jax.data.images import crops, decode
from dppmask_jax.data.sources import image_files, opening
from dppmask_jax.evals import probe
from dppmask_jax.runs import run

ROOT = Path(__file__).parent.parent
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
PICTURE = Image.fromarray(PIXELS)


def animated(kind):
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    options = {"lossless": True} if kind == "WEBP" else {}
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def png_header(width, height):
    """A PNG file of a given size that has no pixels in it."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + crc

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x08\x02\0\0\0") + chunk(b"IDAT", b"")


def tiff_of_one_tile(side, tile):
    """A compressed TIFF whose one tile is of another size than the image."""
    data = zlib.compress(bytes(10**6))
    sizes = {256: side, 257: side, 322: tile, 323: tile, 325: len(data)}
    kinds = {258: 8, 259: 8, 262: 1, 277: 1}  # bits, zlib, grey, one channel
    fields = sorted([*sizes, *kinds, 324])
    behind = 8 + 2 + 12 * len(fields) + 4
    out = b"II*\0" + struct.pack("<IH", 8, len(fields))
    for tag in fields:
        kind, value = (3, kinds[tag]) if tag in kinds else (4, sizes.get(tag, behind))
        out += struct.pack("<HHII", tag, kind, 1, value)
    return out + bytes(4) + data


def saved(save, values):
    buffer = io.BytesIO()
    save(buffer, values)
    return buffer.getvalue()


# What is simply an image, though unusual.
GOOD = {
    "one_pixel.png": encode(Image.fromarray(PIXELS[:1, :1]), "PNG"),
    "column.png": encode(Image.fromarray(PIXELS[:, :1]), "PNG"),
    "wide.png": encode(Image.new("RGB", (30_000, 2), "red"), "PNG"),
    "wide.jpg": encode(Image.new("RGB", (30_000, 2), "red"), "JPEG"),
    "cmyk.jpg": encode(PICTURE.convert("CMYK"), "JPEG"),
    "deep.png": encode(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), "PNG"),
    "alpha.png": encode(Image.fromarray(np.concatenate([PIXELS, PIXELS[..., :1]], -1)), "PNG"),
    "palette.gif": encode(PICTURE.quantize(16), "GIF"),
    "animated.gif": animated("GIF"),
    "animated.webp": animated("WEBP"),
    "animated.png": animated("PNG"),
    "a_png.jpg": encode(PICTURE, "PNG"),
    "a_jpeg.gif": encode(PICTURE, "JPEG"),
}
if decode.READS_AVIF:
    GOOD["alpha.avif"] = encode(Image.open(io.BytesIO(GOOD["alpha.png"])), "AVIF")
# What is none.
BAD = {
    "empty.jpg": b"",
    "zeros.png": b"\0" * 4096,
    "truncated.jpg": encode(PICTURE, "JPEG")[:-200],
    "truncated.png": encode(PICTURE, "PNG")[:-200],
    "text.jpg": b"not an image\n" * 40,
    "page.jpg": b"<html><body>404 Not Found</body></html>",
    "bomb.png": png_header(60_000, 60_000),
    "wide_bomb.png": png_header(2**31 - 1, 2**31 - 1),
    "tile_bomb.tif": tiff_of_one_tile(10, 40_000),
    "array.png": saved(np.save, PIXELS),
    "arrays.jpg": saved(lambda file, x: np.savez(file, x=x), PIXELS),
    "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage",
}


@pytest.mark.parametrize("name", GOOD)
def test_unusual_images_are_images(name):
    out = decode.decode(GOOD[name])
    assert out.dtype == np.uint8 and out.ndim == 3 and out.shape[2] == 3
    for scale in ((1e-6, 1.0), (1.0, 1.0)):
        rng = np.random.default_rng(0)
        view = crops.random_crop(GOOD[name], rng, image_size=(8, 8), scale=scale)
        assert view.shape == (8, 8, 3)
    assert crops.center_crop(GOOD[name], image_size=(8, 12)).shape == (8, 12, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_counts(kind):
    error = np.abs(decode.decode(animated(kind)).astype(int) - PIXELS)
    assert error.mean() < (30 if kind == "GIF" else 1e-9)  # GIF has 256 colours


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_image_is_a_decode_error(name):
    with pytest.raises(decode.DecodeError) as error:
        decode.decode(BAD[name])
    assert "\n" not in str(error.value)


ENCODED = {
    "PNG": encode(PICTURE, "PNG"),
    "palette": encode(PICTURE.quantize(9), "PNG", transparency=1),
    "APNG": animated("PNG"),
    "JPEG": encode(PICTURE, "JPEG"),
    "progressive": encode(PICTURE, "JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
    "CMYK": encode(PICTURE.convert("CMYK"), "JPEG"),
    "WEBP": encode(PICTURE, "WEBP"),
    "WEBP animation": animated("WEBP"),
    "GIF": animated("GIF"),
    "TIFF": encode(PICTURE, "TIFF"),
    "TIFF LZW": encode(PICTURE, "TIFF", compression="tiff_lzw"),
    "BMP": encode(PICTURE, "BMP"),
    "PPM": encode(PICTURE, "PPM"),
} | ({"AVIF": encode(PICTURE, "AVIF")} if decode.READS_AVIF else {})


def corrupted(draw):
    data = bytearray(ENCODED[draw(st.sampled_from(sorted(ENCODED)))])
    for _ in range(draw(st.integers(0, 12))):
        # Headers are where a byte has the most to say.
        most = draw(st.sampled_from([len(data) - 1, min(64, len(data) - 1)]))
        data[draw(st.integers(0, most))] = draw(st.integers(0, 255))
    end = draw(st.sampled_from([None, None, "cut", "longer"]))
    if end == "cut":
        data = data[: draw(st.integers(0, len(data)))]
    return bytes(data) + (draw(st.binary(max_size=40)) if end == "longer" else b"")


def pixels_or_a_decode_error(data):
    calls = (
        lambda: decode.decode(data),
        lambda: crops.random_crop(
            data, np.random.default_rng(0), image_size=(8, 8), scale=(0.1, 1.0)
        ),
    )
    for call in calls:
        try:
            out = call()
        except decode.DecodeError as error:
            assert "\n" not in str(error)
        else:
            assert out.dtype == np.uint8 and out.ndim == 3 and out.shape[2] == 3


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_corrupted_images_give_pixels_or_a_decode_error(data):
    pixels_or_a_decode_error(corrupted(data.draw))


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, derandomize=True)
@given(st.data())
def test_many_corrupted_images_give_pixels_or_a_decode_error(data):
    pixels_or_a_decode_error(corrupted(data.draw))


def test_pillow_does_not_warn_of_what_it_meets():
    code = (
        "import sys; sys.path.insert(0, 'tests'); import warnings\n"
        "from dppmask_jax.data.images import decode\n"
        "from PIL import Image; Image.MAX_IMAGE_PIXELS = 500\n"
        "data = sys.stdin.buffer.read()\n"
        "assert decode.decode(data).shape == (24, 32, 3)\n"
        "warnings.warn('mine')"
    )
    data = encode(PICTURE, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, cwd=ROOT)
    assert done.returncode == 0 and b"mine" in done.stderr, done.stderr
    assert b"Corrupt EXIF" not in done.stderr and b"Decompression" not in done.stderr


MEASURE = """
import sys
import numpy as np
from dppmask_jax.data.images import crops, decode
from dppmask_jax.evals import probe

def memory(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(name))

data = open(sys.argv[1], "rb").read()
before = memory("VmRSS")
try:
    if sys.argv[2] == "decode":
        decode.decode(data)
    else:
        crops.random_crop(data, np.random.default_rng(0), image_size=(224, 224), scale=(0.2, 1.0))
except decode.DecodeError:
    pass
print(memory("VmHWM") - before)
"""


def peak_memory(path, how):
    """MiB that decoding a file, or cutting a view out of it, takes at most."""
    command = [sys.executable, "-c", MEASURE, str(path), how]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_tile_of_a_usual_size_is_read():
    assert decode.decode(tiff_of_one_tile(10, 16)).shape == (10, 10, 3)


@pytest.mark.parametrize("name", ["bomb.png", "wide_bomb.png", "tile_bomb.tif"])
def test_a_bomb_takes_no_memory(name, tmp_path):
    (tmp_path / name).write_bytes(BAD[name])
    assert peak_memory(tmp_path / name, "decode") < 30


LARGE = {  # of 30,000 pixels by as many rows as there may be; MiB that a view of it takes at most
    "RGB.png": 450,
    "RGBA.png": 850,
    "I;16.png": 700,
    "F.tiff": 850,
    "RGB.jpg": 150,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long) if n == "I;16.png" else n for n in LARGE]
)
def test_memory_of_the_largest_images_is_bounded(name, tmp_path):
    size = (30_000, decode.MAX_PIXELS // 30_000)
    mode, extension = name.split(".")
    image = Image.new("RGBA", size, (9, 8, 7, 6)) if mode == "RGBA" else Image.new(mode, size)
    image.save(tmp_path / name, **({"compression": "tiff_deflate"} if extension == "tiff" else {}))
    assert (tmp_path / name).stat().st_size < 4e6
    found = peak_memory(tmp_path / name, "view")
    print(f"\n{name}: {found} MiB for a view")
    assert found < LARGE[name]


# In a folder.


def folder_of_oddities(root):
    """A folder of good and bad images, and of things that are no files at all."""
    for name, data in (GOOD | BAD).items():
        (root / name).write_bytes(data)
    (root / "folder.jpg").mkdir()
    (root / "folder.jpg" / "inside.png").write_bytes(GOOD["one_pixel.png"])
    (root / "circle.jpg").symlink_to("circle.jpg")
    (root / "there.jpg").symlink_to("back.jpg")
    (root / "back.jpg").symlink_to("there.jpg")
    (root / "dangling.jpg").symlink_to("gone.jpg")
    os.mkfifo(root / "pipe.jpg")
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(root / "socket.jpg"))
    bound.close()
    (root / "zero.jpg").symlink_to("/dev/zero")
    return {"circle.jpg", "there.jpg", "back.jpg", "dangling.jpg", "pipe.jpg", "socket.jpg",
            "zero.jpg", *BAD}  # fmt: skip


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_folder_of_oddities_is_read_and_each_bad_one_named_once(workers):
    with tempfile.TemporaryDirectory() as short:  # names of sockets are short
        root = Path(short)
        bad = folder_of_oddities(root)
        source = opening.open_source(f"folder:{root}", "train", val_fraction=0.0)
        assert source.size == len(GOOD) + len(bad) + 1  # and the one in folder.jpg
        lines = []
        options = {"batch_size": source.size, "workers": workers, "log": lines.append}
        batches = stream(source, 3, **options)
        named = dict(
            line.removeprefix(f"unreadable image: {root}/").split(": ", 1) for line in lines
        )
        assert named.keys() == bad and len(lines) == len(bad) and all(named.values())
        assert named["empty.jpg"] == "the file is empty" and "HTML" in named["page.jpg"]
        assert named["pipe.jpg"] == "not a regular file" and "symbolic" in named["circle.jpg"]
        assert [int(batch["bad"].sum()) for batch in batches] == [len(bad)] * 3
        same(batches[1:], stream(source, 2, start_step=1, **options))


def test_the_probes_of_a_run_name_what_they_cannot_read_as_training_does(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (20, 20)).save(tmp_path / split / "a.png")
        (tmp_path / split / "bad.png").write_bytes(b"")
    config = tiny.config(data__source=f"folder:{tmp_path}")
    for source in run.open_data(config):
        for read in (probe.center_batches, probe.knn_batches):
            source.named.clear()
            lines = []
            list(read(config, source, say=lines.append)())
            assert lines == [f"unreadable image: {source.name(1)}: the file is empty"]


def test_files_that_go_while_training_are_replaced_and_a_resume_replaces_them_alike(tmp_path):
    for i in range(12):
        Image.fromarray(np.full((12, 12, 3), 20 * i, np.uint8)).save(tmp_path / f"{i:02}.png")
    source = opening.open_source(f"folder:{tmp_path}", "train", val_fraction=0.0)
    lines = []
    options = {"example": single(), "batch_size": 12, "seed": 1, "log": lines.append}
    with loader.train_stream(source, **options) as batches:
        first = next(batches)
        assert not first["bad"].any() and not lines
        for i in (3, 4):
            (tmp_path / f"{i:02}.png").unlink()
        # What was read ahead is from before; after some batches all is from afterwards.
        later = [next(batches) for _ in range(60)][-3:]
    gone = "No such file or directory"
    assert sorted(lines) == [f"unreadable image: {tmp_path}/{i:02}.png: {gone}" for i in (3, 4)]
    for batch in later:
        assert batch["bad"].sum() == 2
        shades = sorted(np.unique(batch["image"][:, 0, 0, 0] // 20))
        assert shades == [0, 1, 2, 5, 6, 7, 8, 9, 10, 11]
        assert set(batch["image"][batch["bad"], 0, 0, 0]) == {100}
    options["log"] = lambda line: None
    with loader.train_stream(source, start_step=58, **options) as resumed:
        same(later, [next(resumed) for _ in range(3)])


def test_files_that_may_not_be_read_are_replaced_and_named():
    """In a process that is nobody: root may read everything."""
    code = (
        "import os, sys; sys.path[:0] = ['.', 'tests']\n"
        "from test_data_loader import stream\n"
        "from dppmask_jax.data.sources import opening\n"
        "root = sys.argv[1]\n"
        "source = opening.open_source(f'folder:{root}', 'train', val_fraction=0.0)\n"
        "stream(source, 1)\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "lines = []\n"
        "(batch,) = stream(source, 1, batch_size=5, log=lines.append)\n"
        "print(lines, batch['bad'].sum())"
    )
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        for i in range(5):
            path = Path(root) / f"{i}.png"
            Image.fromarray(PIXELS).save(path)
            path.chmod(0o000 if i == 2 else 0o644)
        done = subprocess.run(
            [sys.executable, "-c", code, root], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"['unreadable image: {root}/2.png: Permission denied'] 1"


def test_a_file_of_more_bytes_than_any_image_is_not_read(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(image_files.MAX_BYTES + 1)  # takes no space on the disk
    with pytest.raises(OSError, match="too large"):
        image_files.read_file(str(tmp_path / "a.png"))
