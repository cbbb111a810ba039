from pathlib import Path

import matplotlib
import pytest

from detr_jax.visualize import label_space

STIX = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "STIXGeneral.ttf"))


@pytest.fixture
def stix_alone(monkeypatch, tmp_path):
    """A system with one font, and a file that is none."""
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(label_space, "_system_fonts", lambda: (str(tmp_path / "broken.ttf"), STIX))
    label_space._font_file.cache_clear()
    yield
    label_space._font_file.cache_clear()


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("stra\u00dfe 90%", "DejaVuSans.ttf"),
        ("search \u2315 90%", "STIXGeneral.ttf"),
        ("\u6c7d\u8f66", "DejaVuSans.ttf"),
    ],
    ids=["usual", "of the system", "none has it"],
)
def test_a_label_has_a_font_with_its_characters_if_there_is_one(text, file, stix_alone):
    font = label_space.label_font(12, text)
    assert Path(font.path).name == file
    assert font.getlength(text) > 0


def test_fonts_of_the_system_have_no_last_resort():
    fonts = label_space._system_fonts()
    assert STIX in fonts and not [path for path in fonts if "LastResort" in path]
