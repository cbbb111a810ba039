import numpy as np
import pytest
from converted import examples, same_regions, write_image, write_mask

from detr_jax.data.convert import ConvertOptions, convert
from detr_jax.errors import UserError


def classes():
    """Two regions of a thing (1), two of stuff (2), and an id that is no category (255)."""
    ids = np.zeros((40, 60), np.uint8)
    ids[0:10, 0:10] = ids[20:30, 0:10] = 1
    ids[0:10, 30:50] = ids[30:40, 30:60] = 2
    ids[10:12, :] = 255
    return ids


@pytest.fixture
def source(tmp_path):
    write_image(tmp_path / "images" / "0.png")
    write_mask(tmp_path / "masks" / "0.png", classes())
    (tmp_path / "categories.csv").write_text("id,name,isthing\n1,cell,1\n2,tissue,0\n")
    return tmp_path


def options(source, **changes):
    fields = {"format": "semantic", "images": source / "images", "split": "all"}
    return ConvertOptions(**{**fields, "categories": source / "categories.csv", **changes})


def test_things_are_connected_regions_and_stuff_is_one_segment(source):
    report = convert(source / "masks", source / "out", options(source))
    example, categories = examples(source / "out", "all")["0.png"]
    assert categories == ["cell", "cell", "tissue"]
    expected = classes().astype(int)
    expected[20:30, 0:10] = 3
    assert same_regions(example.segment_map, expected, void=(0, 255))
    assert [(drop.item, drop.reason) for drop in report.dropped] == [("class 255", "no category")]


def test_the_background_is_what_has_the_id_0(source):
    convert(source / "masks", source / "out", options(source, background="ground"))
    example, categories = examples(source / "out", "all")["0.png"]
    assert categories == ["cell", "cell", "tissue", "ground"]
    assert (example.segment_map == 4).sum() == (classes() == 0).sum()
    assert (example.segment_map == 0).sum() == (classes() == 255).sum()


def test_categories_are_needed_and_checked(source):
    with pytest.raises(UserError, match="semantic masks need categories"):
        convert(source / "masks", source / "out", options(source, categories=None))
    table = source / "categories.csv"
    for text, message in (
        ("name\ncell\n", "has no column id: its first line names the columns"),
        ("id,name\n1.5,cell\n", r"the id '1\.5' is not an integer"),
        ("id,name,isthing\n1,cell,maybe\n", "isthing is 'maybe': must be 0 or 1"),
        ("id,name\n1,\n", "line 2 lacks id or name"),
        ("id,name\n", "lists no categories"),
        ("id,name\n1,a\n1,b\n", "category ids must be unique"),
    ):
        table.write_text(text)
        with pytest.raises(UserError, match=message):
            convert(source / "masks", source / "out", options(source))


def test_masks_saved_as_jpeg_are_refused(source):
    (source / "masks" / "0.png").unlink()
    write_mask(source / "masks" / "0.jpg", classes())
    with pytest.raises(UserError, match="is a JPEG, whose compression changes ids"):
        convert(source / "masks", source / "out", options(source))
