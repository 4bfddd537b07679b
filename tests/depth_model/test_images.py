"""What goes through the one door for pictures, and what does not."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from depth_model.errors import InputError
from depth_model.images import MAX_PIXELS, list_images, open_image, read_grey16


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def pattern(height=20, width=30):
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 9, x * 8, y * 4 + x * 4], axis=-1).astype(np.uint8)


def test_every_kind_of_source_gives_the_same_pixels(tmp_path):
    array = pattern()
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path)
    with path.open("rb") as file:
        sources = [path, str(path), path.read_bytes(), file, Image.open(path), array]
        for source in sources:
            image = open_image(source)
            assert image.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(image), array)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_formats(format):
    image = open_image(encode(Image.fromarray(pattern()), format))
    assert (image.mode, image.size) == ("RGB", (30, 20))
    assert np.abs(np.asarray(image).astype(int) - pattern()).mean() < 25


def test_colour_modes():
    rgb = Image.new("RGB", (4, 3), (200, 40, 90))
    as_palette = rgb.quantize(4)
    as_cmyk = encode(Image.new("CMYK", (4, 3), (0, 255, 0, 0)), "JPEG")
    assert open_image(encode(as_palette)).getpixel((1, 1)) == (200, 40, 90)
    assert open_image(encode(Image.new("L", (4, 3), 77))).getpixel((1, 1)) == (77, 77, 77)
    assert open_image(encode(Image.new("1", (4, 3), 1))).getpixel((1, 1)) == (255, 255, 255)
    red, green, blue = open_image(as_cmyk).getpixel((1, 1))
    assert green < 60 < 180 < min(red, blue)
    with pytest.raises(InputError, match="mode La"):
        open_image(Image.new("La", (4, 3)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_lie_over_mid_grey(mode):
    image = Image.new("RGBA", (4, 4), (255, 255, 255, 255))
    image.paste((0, 0, 0, 0), (0, 0, 2, 4))
    source = encode(image.convert(mode) if mode != "P" else image.quantize(8))
    opened = open_image(source)
    assert opened.getpixel((3, 3)) == (255, 255, 255)
    assert opened.getpixel((0, 0)) == (128, 128, 128)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    codes = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    path = tmp_path / "depth.png"
    Image.fromarray(codes).save(path)
    np.testing.assert_allclose(np.asarray(open_image(path))[..., 0], codes / 257, atol=0.51)
    np.testing.assert_array_equal(np.asarray(open_image(codes))[..., 0], np.asarray(open_image(path))[..., 0])
    values, bits = read_grey16(path)
    assert bits == 16 and values.dtype == np.float32
    np.testing.assert_array_equal(values, codes)


def test_sixteen_bit_colour_png():
    row = b"\x00" + struct.pack(">3H", 65535, 32768, 0) * 5

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 4)) + chunk(b"IEND", b"")
    assert open_image(png).getpixel((2, 2)) == (255, 128, 0)


def test_grey_depth_from_eight_bits_and_from_equal_channels():
    grey = np.arange(60, dtype=np.uint8).reshape(6, 10)
    for source in (encode(Image.fromarray(grey)), encode(Image.fromarray(np.stack([grey] * 3, axis=-1)))):
        values, bits = read_grey16(source)
        assert bits == 8
        np.testing.assert_array_equal(values, grey)
    with pytest.raises(InputError, match="colour"):
        read_grey16(encode(Image.fromarray(pattern())))


def test_floating_point_images_are_depth_but_not_pictures(tmp_path):
    metres = np.linspace(0.5, 90, 24, dtype=np.float32).reshape(4, 6)
    path = tmp_path / "depth.tiff"
    Image.fromarray(metres).save(path)
    values, bits = read_grey16(path)
    assert bits == 32
    np.testing.assert_array_equal(values, metres)
    with pytest.raises(InputError, match="floating-point"):
        open_image(path)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(format, orientation):
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24] = (255, 0, 0)
    upright[16:, 24:] = (0, 0, 255)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = Image.fromarray(upright)
    if orientation in undo:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(stored, format, exif=exif)
    for source in (encoded, Image.open(io.BytesIO(encoded))):
        opened = np.asarray(open_image(source)).astype(int)
        assert opened.shape == upright.shape
        assert np.abs(opened - upright).mean() < 12
    again = open_image(open_image(encoded))
    assert np.abs(np.asarray(again).astype(int) - upright).mean() < 12


def huge_png():
    data = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + data + struct.pack(">I", zlib.crc32(b"IHDR" + data))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))

BAD = {
    "empty.png": (b"", "not an image"),
    "text.png": (b"I am not a picture.\n" * 10, "not an image"),
    "cut.jpg": (encode(NOISE, "JPEG")[:900], "damaged or incomplete"),
    "cut.png": (encode(NOISE)[:900], "damaged or incomplete"),
    "bomb.png": (huge_png(), "megapixels"),
    "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("reader", [open_image, read_grey16])
def test_bad_files_are_named(tmp_path, name, reader):
    content, reason = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        reader(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_just_over_the_limit_is_refused_before_decoding():
    side = int(MAX_PIXELS**0.5) + 1
    with pytest.raises(InputError, match=f"{side} x {side}"):
        open_image(encode(Image.new("1", (side, side))))


def test_missing_file_folder_and_wrong_types(tmp_path):
    for source, reason in (
        (tmp_path / "absent.png", "no such file"),
        (tmp_path, "folder"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((0, 4), np.uint8), "uint8"),
        (17, "int"),
    ):
        with pytest.raises(InputError, match=reason):
            open_image(source)


def test_list_images_sorts_and_filters(tmp_path):
    for name in ("b.JPG", "a.png", "c.txt", "._a.png", "d.webp"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG", "d.webp"]
    with pytest.raises(InputError, match="no such folder"):
        list_images(tmp_path / "absent")


SEEDS = [encode(Image.fromarray(pattern()), format) for format in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=12))
def test_damaged_bytes_either_open_or_are_refused(seed, changes):
    data = bytearray(seed)
    for position, value in changes:
        data[position % len(data)] = value
    try:
        assert open_image(bytes(data)).mode == "RGB"
    except InputError as error:
        assert "\n" not in str(error)
