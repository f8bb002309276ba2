"""Images that are too large to be opened: one limit is named, and it is the one that counts."""

import pytest
from PIL import Image

from libs.data.reading import read_image


@pytest.mark.parametrize("side", [11, 15, 40])
def test_one_limit(tmp_path, monkeypatch, side):
    Image.new("L", (side, side)).save(tmp_path / "1.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError) as error:
        read_image(tmp_path / "1.png")
    said = str(error.value)
    assert (
        said.count("100") == 1 and "200" not in said and "MAX_IMAGE_PIXELS = 100: tile or shrink it" in said
    )
    assert str(side * side) in said or f"{side}x{side}" in said
