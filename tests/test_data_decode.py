import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dppmask_jax.data.images import decode


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def pixels():
    """(20, 30, 3) uint8: smooth, so that JPEG keeps it, and without any symmetry."""
    y, x = np.mgrid[0:20, 0:30]
    return np.stack([x * 8, y * 12, 120 + x - y], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_are_exact(kind, pixels):
    out = decode.decode(encode(Image.fromarray(pixels), kind))
    assert out.dtype == np.uint8 and out.shape == (20, 30, 3)
    np.testing.assert_array_equal(out, pixels)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_are_close(kind, pixels):
    out = decode.decode(encode(Image.fromarray(pixels), kind, quality=95))
    np.testing.assert_allclose(out, pixels.astype(int), atol=12)


def test_webp_lossless_is_exact(pixels):
    out = decode.decode(encode(Image.fromarray(pixels), "WEBP", lossless=True))
    np.testing.assert_array_equal(out, pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_greyscale_is_repeated(kind, pixels):
    out = decode.decode(encode(Image.fromarray(pixels[..., 0]), kind))
    np.testing.assert_array_equal(out, np.repeat(out[..., :1], 3, axis=2))
    np.testing.assert_allclose(out[..., 0], pixels[..., 0].astype(int), atol=4)


def test_cmyk_jpeg(pixels):
    image = Image.fromarray(pixels)
    out = decode.decode(encode(image.convert("CMYK"), "JPEG", quality=95))
    np.testing.assert_allclose(out, pixels.astype(int), atol=14)


def test_palette(pixels):
    image = Image.fromarray(pixels).quantize(16)
    out = decode.decode(encode(image, "PNG"))
    np.testing.assert_array_equal(out, np.asarray(image.convert("RGB")))
    out = decode.decode(encode(image, "GIF"))
    np.testing.assert_array_equal(out, np.asarray(image.convert("RGB")))


def test_palette_with_transparent_entry_is_laid_over_white():
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    out = decode.decode(encode(image, "PNG", transparency=1))
    np.testing.assert_array_equal(out[0], [[255, 0, 0], [255, 255, 255], [0, 0, 255]])
    out = decode.decode(encode(image, "PNG", transparency=bytes([255, 255, 0])))
    np.testing.assert_array_equal(out[0], [[255, 0, 0], [0, 255, 0], [255, 255, 255]])


def test_alpha_is_laid_over_white():
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [0, 0, 0, 51]]], np.uint8)
    out = decode.decode(encode(Image.fromarray(rgba), "PNG"))
    np.testing.assert_array_equal(out[0], [[200, 100, 0], [255, 255, 255], [204, 204, 204]])
    grey_alpha = np.array([[[10, 255], [10, 0]]], np.uint8)
    out = decode.decode(encode(Image.fromarray(grey_alpha), "PNG"))
    np.testing.assert_array_equal(out[0], [[10, 10, 10], [255, 255, 255]])


def test_transparent_colour_is_laid_over_white():
    rgb = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    out = decode.decode(encode(Image.fromarray(rgb), "PNG", transparency=(1, 2, 3)))
    np.testing.assert_array_equal(out[0], [[255, 255, 255], [4, 5, 6]])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_greyscale_is_scaled(kind):
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    out = decode.decode(encode(Image.fromarray(values), kind))
    np.testing.assert_array_equal(out[0], np.repeat([[0], [1], [128], [255]], 3, axis=1))


def test_16_bit_pgm_is_scaled():
    data = b"P5 3 1 65535\n" + np.array([0, 128 * 257, 65535], ">u2").tobytes()
    np.testing.assert_array_equal(decode.decode(data)[0, :, 0], [0, 128, 255])


def test_float_tiff():
    unit = np.array([[0, 0.5, 1]], np.float32)
    out = decode.decode(encode(Image.fromarray(unit), "TIFF"))
    np.testing.assert_array_equal(out[0, :, 0], [0, 128, 255])
    out = decode.decode(encode(Image.fromarray(unit * 200), "TIFF"))
    np.testing.assert_array_equal(out[0, :, 0], [0, 100, 200])


def test_black_and_white():
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    np.testing.assert_array_equal(decode.decode(encode(bits, "PNG"))[0, :, 1], [0, 255])


# What each EXIF orientation says was done to the upright image, undone by NumPy.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind, orientation, pixels):
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain, options = Image.fromarray(pixels), {"lossless": True} if kind == "WEBP" else {}
    stored = decode.decode(encode(plain, kind, **options))
    out = decode.decode(encode(plain, kind, exif=exif, **options))
    np.testing.assert_array_equal(out, UPRIGHT[orientation](stored))


def test_broken_exif_leaves_the_pixels(pixels):
    data = encode(Image.fromarray(pixels), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert decode.decode(data).shape == (20, 30, 3)


def test_first_frame_of_an_animation(pixels):
    frames = [Image.fromarray(pixels), Image.fromarray(255 - pixels)]
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(decode.decode(data), pixels)
    data = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])  # stereo JPEG
    np.testing.assert_array_equal(decode.decode(data), decode.decode(encode(frames[0], "JPEG")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("keep", [0, 0.05, 0.5, 0.9])
def test_cut_off_file(kind, keep, pixels):
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    with pytest.raises(decode.DecodeError):
        decode.decode(data[: int(len(data) * keep)])


@pytest.mark.parametrize("data", [b"", b"hello", b"\0" * 1000, b"\xff\xd8\xff", b"GIF89a"])
def test_no_image(data):
    with pytest.raises(decode.DecodeError):
        decode.decode(data)


def test_damaged_bytes_give_pixels_or_a_decode_error(pixels):
    rng = np.random.default_rng(0)
    failed = 0
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"):
        data = np.frombuffer(encode(Image.fromarray(pixels), kind), np.uint8)
        for _ in range(60):
            damaged = data.copy()
            damaged[rng.integers(len(data), size=8)] = rng.integers(0, 256, 8)
            try:
                out = decode.decode(damaged.tobytes())
                assert out.dtype == np.uint8 and out.ndim == 3 and out.shape[2] == 3
            except decode.DecodeError:
                failed += 1
    assert 0 < failed < 7 * 60


def test_bombs_are_refused_by_their_header(pixels):
    data = bytearray(encode(Image.fromarray(pixels), "PNG"))
    data[16:24] = struct.pack(">II", 20000, 20000)  # the size, then its checksum
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(decode.DecodeError, match=r"400000000|20000"):
        decode.open_image(bytes(data))


def test_pixel_bound(pixels, monkeypatch):
    data = encode(Image.fromarray(pixels), "PNG")
    monkeypatch.setattr(decode, "MAX_PIXELS", 600)
    decode.decode(data)
    monkeypatch.setattr(decode, "MAX_PIXELS", 599)
    with pytest.raises(decode.DecodeError, match="30 x 20"):
        decode.decode(data)


def test_formats_that_start_other_programs_are_refused():
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(decode.DecodeError):
        decode.open_image(script)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "F"])
def test_converting_in_bands_changes_nothing(mode, pixels, monkeypatch):
    options = {}
    if mode in ("RGBA", "LA"):
        image = Image.fromarray(pixels).convert(mode)
        image.putalpha(Image.fromarray(pixels[..., 1]))
    elif mode == "P":
        image, options = Image.fromarray(pixels).quantize(16), {"transparency": 3}
    elif mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 201)
    else:
        image = Image.fromarray(pixels[..., 0].astype(np.float32) / np.float32(150))
    data = encode(image, "TIFF" if mode == "F" else "PNG", **options)
    whole = decode.decode(data)
    assert len(np.unique(whole)) > 2
    for band in (1, 95):  # a row, and three rows, of which the last band lacks one
        monkeypatch.setattr(decode, "_BAND", band)
        np.testing.assert_array_equal(decode.decode(data), whole)


def shrunk_by_pillow(data, shrink):
    image = Image.open(io.BytesIO(data))
    image.draft(None, tuple(side // shrink for side in image.size))
    return np.asarray(image.convert("RGB"))


def jpeg_pixels(data, box, shrink=1):
    return decode.jpeg_pixels(data, decode.open_image(data), shrink, box)


@pytest.mark.parametrize("kind", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(64, 48), (37, 91), (9, 8)])
def test_jpeg_pixels_are_pillows(kind, shrink, size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    data = encode(Image.fromarray(pixels).convert(kind), "JPEG", quality=85)
    width, height = (-(-side // shrink) for side in size)
    out = jpeg_pixels(data, (0, 0, width, height), shrink)
    assert out.shape == (height, width, 3)
    np.testing.assert_array_equal(out, shrunk_by_pillow(data, shrink))


def test_a_progressive_jpeg_of_which_a_scan_is_missing():
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(pixels), "JPEG", progressive=True)
    data = data[: data.rindex(b"\xff\xda")] + b"\xff\xd9"
    out = jpeg_pixels(data, (20, 10, 50, 40))
    np.testing.assert_array_equal(out, decode.decode(data)[10:40, 20:50])


def test_what_pillow_overlooks_in_a_jpeg_is_overlooked():
    data = encode(Image.new("RGB", (40, 30), "teal"), "JPEG")
    broken = data[:-2] + b"\x00\x01" + data[-2:]  # stray bytes before the end marker
    out = jpeg_pixels(broken, (0, 0, 40, 30))
    np.testing.assert_array_equal(out, decode.decode(data))


@pytest.mark.parametrize("box", [(0, 0, 64, 8), (0, 0, 64, 64)])
def test_a_jpeg_that_is_cut_short_is_unreadable_wherever_it_ends(box):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(pixels), "JPEG")
    with pytest.raises(decode.DecodeError):
        jpeg_pixels(data[: len(data) * 3 // 4], box)


def test_damage_inside_a_box_is_left_to_pillow():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(pixels), "JPEG")
    middle = len(data) * 2 // 3
    broken = data[:middle] + b"\xff\xd9" + data[middle + 2 :]  # ends early, and goes on
    for box in ((0, 0, 64, 8), (0, 40, 64, 64)):
        wanted = decode.decode(broken)[box[1] : box[3], box[0] : box[2]]
        np.testing.assert_array_equal(jpeg_pixels(broken, box), wanted)
