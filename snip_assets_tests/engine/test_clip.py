"""Image files as a CLIP model is given them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from snip_assets.engine.clip import open_image
from snip_assets.engine.errors import BadInputError

PIL = pytest.importorskip("PIL")
Image = pytest.importorskip("PIL.Image")
# Pillow 12.3 could not read the TIFF of this mode that it had written.
YCBCR = pytest.param(
    "YCbCr", marks=pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow < 13")
)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path: Path, mode: str) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[2:6, 2:6, 3] = 255  # a black square on nothing
    image = Image.fromarray(pixels)
    (image.quantize(4) if mode == "P" else image.convert(mode)).save(tmp_path / "a.png")
    found = np.asarray(open_image(tmp_path / "a.png"))
    assert (found == 255 - pixels[..., 3:]).all() and found.shape == (8, 8, 3)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_become_eight(tmp_path: Path, name: str) -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels * 257).save(tmp_path / name)
    assert (np.asarray(open_image(tmp_path / name))[..., 0] == levels).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "CMYK", YCBCR])
def test_others_are_as_pillow_has_them(tmp_path: Path, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image:
        assert image.mode == mode
        assert open_image(tmp_path / "a.tif").tobytes() == image.convert("RGB").tobytes()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    whole = bytearray(path.read_bytes())
    whole[8:12] = bytes(4)  # the length of the header: Pillow raises ValueError
    for data in (whole, b"P6 8 x 255 ", b"", b"GIF89a"):
        path.write_bytes(data)
        with pytest.raises(BadInputError, match=r"a\.png: not a readable image"):
            open_image(path)
