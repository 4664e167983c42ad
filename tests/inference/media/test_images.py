"""Photos of all kinds are read as a viewer shows them."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, features

from fer_lightning.errors import UserError
from fer_lightning.inference.media import images
from fer_lightning.inference.media.images import read_image, without_remarks

RAMP = np.linspace(0, 255, 40 * 30).reshape(30, 40).astype(np.uint8)
COLOURS = np.dstack([RAMP, RAMP.T.reshape(30, 40), 255 - RAMP])
ALPHA = np.full_like(RAMP, 255)
ALPHA[:, 20:] = 0
ON_WHITE = np.where(ALPHA[..., None] > 0, COLOURS, 255).astype(np.uint8)


def save(path: Path, image: Image.Image, **settings: object) -> Path:
    image.save(path, **settings)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("form", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path: Path, form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{form}", Image.fromarray(COLOURS), exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    pixels, note = read_image(path)
    assert pixels.dtype == np.uint8 and note is None
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("form", ["png", "bmp", "tif", "ppm"])
def test_lossless_colours(tmp_path: Path, form: str) -> None:
    path = save(tmp_path / f"a.{form}", Image.fromarray(COLOURS))
    np.testing.assert_array_equal(read_image(path).pixels, COLOURS)
    assert cv2.imread(str(path)) is None or (cv2.imread(str(path))[..., ::-1] == COLOURS).all()


def test_grey_sixteen_bit_and_bilevel(tmp_path: Path) -> None:
    grey = np.repeat(RAMP[..., None], 3, 2)
    np.testing.assert_array_equal(read_image(save(tmp_path / "8.png", Image.fromarray(RAMP))).pixels, grey)
    for name in ("16.png", "16.tif", "16.pgm"):
        path = save(tmp_path / name, Image.fromarray(RAMP.astype(np.uint16) * 256 + 7))
        np.testing.assert_array_equal(read_image(path).pixels, grey)
    sixteen = COLOURS[..., ::-1].astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "rgb16.png"), sixteen)
    np.testing.assert_array_equal(read_image(tmp_path / "rgb16.png").pixels, COLOURS)
    black_or_white = read_image(save(tmp_path / "1.png", Image.fromarray(RAMP > 99))).pixels
    np.testing.assert_array_equal(black_or_white[..., 0], 255 * (RAMP > 99))


def test_transparency_is_white(tmp_path: Path) -> None:
    rgba, la = np.dstack([COLOURS, ALPHA]), np.dstack([RAMP, ALPHA])
    np.testing.assert_array_equal(read_image(save(tmp_path / "rgba.png", Image.fromarray(rgba))).pixels, ON_WHITE)
    grey = np.where(ALPHA > 0, RAMP, 255)
    np.testing.assert_array_equal(read_image(save(tmp_path / "la.png", Image.fromarray(la))).pixels[..., 0], grey)
    # 16-bit grey with alpha, which Pillow cannot write.
    png_16 = tmp_path / "la16.png"
    png_16.write_bytes(grey_alpha_16(RAMP, ALPHA))
    np.testing.assert_array_equal(read_image(png_16).pixels[..., 0], grey)
    half = np.dstack([np.zeros_like(COLOURS), np.full_like(RAMP, 128)])
    assert abs(int(read_image(save(tmp_path / "half.png", Image.fromarray(half))).pixels[0, 0, 0]) - 127) <= 1


def grey_alpha_16(grey: np.ndarray, alpha: np.ndarray) -> bytes:
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = grey.shape
    rows = np.dstack([grey, alpha]).astype(">u2") * 257
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, 4, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("transparency", [3, bytes([255, 255, 255, 0])])
def test_palette_with_transparency(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.new("P", (40, 30), 1)
    image.putpalette([0, 0, 0, 200, 10, 20, 0, 0, 255, 9, 9, 9])
    image.paste(3, (0, 0, 10, 30))
    pixels = read_image(save(tmp_path / "p.png", image, transparency=transparency)).pixels
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[0, 20].tolist() == [200, 10, 20]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    cmyk = Image.fromarray(COLOURS).convert("CMYK")
    pixels = read_image(save(tmp_path / "a.jpg", cmyk, quality=100)).pixels
    assert np.abs(pixels.astype(int) - np.asarray(cmyk.convert("RGB"))).mean() < 3


@pytest.mark.parametrize("form", ["gif", "webp", "png", "tif"])
def test_first_frame_of_several(tmp_path: Path, form: str) -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "green")]
    settings = {"lossless": True} if form == "webp" else {}
    path = save(tmp_path / f"a.{form}", frames[0], save_all=True, append_images=frames[1:], **settings)
    photo = read_image(path)
    assert photo.pixels[5, 5].tolist() == [255, 0, 0]
    assert photo.note == ("first page only" if form == "tif" else "animation: first frame only")
    single = read_image(save(tmp_path / f"single.{form}", frames[0], **settings))
    assert single.note is None


def test_preview_in_a_camera_jpeg_is_no_animation(tmp_path: Path) -> None:
    frames = [Image.fromarray(COLOURS), Image.new("RGB", (20, 15))]
    path = save(tmp_path / "a.jpg", frames[0], format="MPO", save_all=True, append_images=frames[1:])
    photo = read_image(path)
    assert photo.note is None and photo.pixels.shape == COLOURS.shape


def test_read_pixels_convert_to_the_grey_of_the_readers_of_data(tmp_path: Path) -> None:
    from fer_lightning.data.readers.images import decode

    face = np.random.default_rng(0).integers(0, 256, (48, 48), np.uint8)
    path = save(tmp_path / "face.png", Image.fromarray(face))
    np.testing.assert_array_equal(Image.fromarray(read_image(path).pixels).convert("L"), face)
    np.testing.assert_array_equal(decode(path.read_bytes(), "face.png")[0], face)


# ---------------------------------------------------------------- size


def test_large_jpeg_is_read_at_half_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 300 * 200)
    image = Image.fromarray(COLOURS).resize((401, 300))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = read_image(save(tmp_path / "a.jpg", image, exif=exif, quality=95))
    assert photo.pixels.shape == (201, 150, 3) and photo.note is not None and "half" in photo.note
    small = np.asarray(image.resize((201, 150)).transpose(Image.Transpose.ROTATE_270))
    assert np.abs(photo.pixels.astype(int) - small).mean() < 3
    for name in ("a.png", "b.jpg"):
        path = save(tmp_path / name, image.resize((601, 401)))
        with pytest.raises(UserError, match=rf"{name} has more than 60,000 pixels.*smaller copy"):
            read_image(path)


def test_panorama_of_50000_pixels(tmp_path: Path) -> None:
    """Written without its pixels: neither header may lead to an allocation of gigabytes."""
    content = BytesIO()
    Image.new("L", (50_000, 1)).save(content, "JPEG")
    width = (50_000).to_bytes(2)
    jpeg = content.getvalue().replace(b"\0\1" + width, (9_000).to_bytes(2) + width)
    bmp = BytesIO()
    Image.new("L", (50_000, 1)).save(bmp, "BMP")
    for name, data in (
        ("a.jpg", jpeg),
        ("a.bmp", bmp.getvalue()[:22] + (2_000).to_bytes(4, "little") + bmp.getvalue()[26:]),
        ("b.bmp", bmp.getvalue()[:22] + (9_000).to_bytes(4, "little") + bmp.getvalue()[26:]),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=rf"{name} has more than 64,000,000 pixels"):
            read_image(tmp_path / name)


# ---------------------------------------------------------------- bad files


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    whole = BytesIO()
    Image.fromarray(COLOURS).resize((400, 300)).save(whole, "JPEG")
    for name, data, message in (
        ("truncated.jpg", whole.getvalue()[:3000], "damaged image .*truncated"),
        ("header.jpg", whole.getvalue()[:30], "damaged|known format"),
        ("text.jpg", b"not an image\n", "known format"),
        ("empty.jpg", b"", "is empty"),
        ("zeros.png", bytes(4000), "known format"),
        ("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "known format"),
        ("a\nb.jpg", b"x", r"a\\nb.jpg.*known format"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(UserError, match=message) as refused:
            read_image(path)
        assert "\n" not in str(refused.value) and str(tmp_path) in str(refused.value)
    preview = save(tmp_path / "raw.dng", Image.fromarray(COLOURS), format="TIFF", tiffinfo={254: 1})
    with pytest.raises(UserError, match=r"raw\.dng: only a preview .*save it as JPEG"):
        read_image(preview)
    float_image = save(tmp_path / "float.tif", Image.fromarray(RAMP.astype(np.float32)))
    with pytest.raises(UserError, match=r"float\.tif has pixels of 32-bit floats"):
        read_image(float_image)


def test_odd_metadata_is_no_warning(tmp_path: Path) -> None:
    """Here, warnings are errors."""
    path = save(tmp_path / "a.jpg", Image.fromarray(COLOURS), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    with without_remarks():
        assert read_image(path).pixels.shape == COLOURS.shape


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.jpg cannot be read \(No such file"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(UserError, match="is a folder that cannot be listed"):
        read_image(tmp_path)


@pytest.mark.parametrize("name", [b"caf\xe9.png", "Bücher, „neu“ ☺.png".encode(), b"a\nb\t.png", b" .png", b"-o.png"])
def test_odd_names(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    save(path, Image.fromarray(COLOURS))
    np.testing.assert_array_equal(read_image(path).pixels, COLOURS)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_bytes_are_either_read_or_refused(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for form in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"):
        content = BytesIO()
        Image.fromarray(COLOURS).save(content, form)
        for _ in range(12):
            data = np.frombuffer(content.getvalue(), np.uint8).copy()
            data[rng.integers(0, len(data), 6)] = rng.integers(0, 256, 6)
            path = tmp_path / "a.bin"
            path.write_bytes(data[: rng.integers(1, len(data) + 1)].tobytes())
            try:
                read_image(path)
            except UserError as error:
                message = str(error)
            else:
                continue
            assert "a.bin" in message and "\n" not in message


# ---------------------------------------------------------------- formats that a package may add

AVIF = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_avif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.avif"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older versions of Pillow do not know the feature
        supported = features.check("avif")
    if supported:
        save(path, Image.fromarray(COLOURS), quality=100, subsampling="4:4:4")
        assert np.abs(read_image(path).pixels.astype(int) - COLOURS).mean() < 3
    monkeypatch.setattr(features, "check", lambda feature: False)
    path.write_bytes(AVIF)
    with pytest.raises(UserError, match=r"a\.avif is an AVIF image: install Pillow 11\.3 or newer"):
        read_image(path)


def test_heic_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "a.jpg"  # as some phones name it
    path.write_bytes(HEIC)
    with pytest.raises(UserError, match=r"a\.jpg is a HEIC photo: pip install pillow-heif"):
        read_image(path)


@pytest.mark.slow
def test_heic_with_pillow_heif(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site")]
    if subprocess.run([*pip, "pillow-heif"], capture_output=True, check=False).returncode:
        pytest.skip("pip cannot install pillow-heif: no network, or no pip")
    script = (
        "import sys, numpy as np, pillow_heif; from PIL import Image; from pathlib import Path\n"
        "pillow_heif.register_heif_opener()\n"
        "image = Image.effect_noise((40, 30), 9).convert('RGB'); image.paste('red', (0, 0, 20, 15))\n"
        "exif = Image.Exif(); exif[0x0112] = 6\n"
        "path = Path(sys.argv[1]); image.save(path, format='HEIF', quality=95, exif=exif.tobytes())\n"
        "from fer_lightning.inference.media.images import read_image\n"
        "pixels, note = read_image(path)\n"
        "assert pixels.shape == (40, 30, 3) and note is None, (pixels.shape, note)\n"
        "assert pixels[5, 25, 0] > 200 > 90 > pixels[5, 25, 1], pixels[5, 25]\n"
    )
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, sys.path)])
    run = [sys.executable, "-c", script, str(tmp_path / "a.heic")]
    subprocess.run(run, check=True, env={**os.environ, "PYTHONPATH": path})


# ---------------------------------------------------------------- memory


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_is_flat_over_ten_thousand_files(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    big = Image.fromarray(COLOURS).resize((400, 300))
    paths = [
        save(tmp_path / "a.jpg", big, exif=exif),
        save(tmp_path / "a.png", big),
        save(tmp_path / "a.webp", big),
        save(tmp_path / "a.gif", big, save_all=True, append_images=[Image.new("RGB", big.size)]),
    ]
    (tmp_path / "bad.jpg").write_bytes(paths[0].read_bytes()[:2000])

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def read(n: int) -> None:
        for _ in range(n // 5):
            for path in paths:
                read_image(path)
            with pytest.raises(UserError):
                read_image(tmp_path / "bad.jpg")

    read(1000)
    before = resident()
    read(9000)
    assert resident() - before < 4e6
