import json

from PIL import Image

from detr_jax.data.coco import CocoPanoptic
from detr_jax.data.coco_check import check_folder
from detr_jax.data.image_files import ImageRules


def test_finds_nothing_in_a_valid_folder(coco_folder):
    assert list(check_folder(coco_folder)) == []
    assert len(CocoPanoptic(coco_folder)) == 5


def test_finds_nothing_in_real_data(coco_sample):
    assert list(check_folder(coco_sample)) == []


def test_finds_every_problem_not_only_the_first(coco_folder, drawn):
    path = coco_folder / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    first = content["annotations"][0]["segments_info"]
    first[0]["area"] += 1
    first[0]["category_id"] = 99
    first.append({"id": 5, "category_id": 1, "area": 9})
    first.append({"id": 6})
    first.append({"id": 0, "category_id": 1, "area": 7})
    gone = content["annotations"][1]["segments_info"].pop()
    content["images"][1]["width"] = 63
    content["images"].append({"id": 7, "file_name": "seven.png", "height": 1, "width": 1})
    content["annotations"].append({"image_id": 8, "file_name": "eight.png", "segments_info": []})
    content["annotations"].append(3)
    content["categories"] += [{"id": -1, "name": "minus"}, {"id": 1, "name": "again"}, {"id": 50}]
    path.write_text(json.dumps(content))
    (coco_folder / "val2017" / drawn[2].file_name).unlink()
    (coco_folder / "panoptic_val2017" / "97.png").write_bytes(b"nothing")
    Image.new("RGB", (3, 2)).save(coco_folder / "val2017" / drawn[4].file_name)

    found = list(check_folder(coco_folder))
    for expected in (
        'panoptic_val2017.json: categories[15]: every category needs an integer "id" and a "name"',
        "panoptic_val2017.json: annotations[6]: missing or invalid image_id (integer), file_name (string), "
        "segments_info (list) in 3",
        "panoptic_val2017.json: 2 categories have the id 1",
        "panoptic_val2017.json: categories[13]: category ids must be from 0 to 2147483647, but one is -1",
        "panoptic_val2017.json: image 7 (seven.png) has no annotation",
        "panoptic_val2017.json: annotation eight.png belongs to image 8, which is not listed",
        "panoptic_val2017.json: image 100: a segment has missing or invalid category_id (integer), "
        "area (integer from 0) in {'id': 6}",
        "panoptic_val2017.json: image 100: segment 0 is listed, but 0 marks void pixels",
        f"panoptic_val2017.json: image 100: segment {first[0]['id']} has category 99, which is not listed",
        f"100.png (image 100): segment {first[0]['id']} has {first[0]['area'] - 1} pixels, but is listed "
        f"with {first[0]['area']}",
        "100.png (image 100): segment 5 is listed, but has no pixel",
        f"{drawn[1].file_name} (image 99): is 64 x 64, but annotated as 63 x 64",
        f"99.png (image 99): {gone['area']} pixels have the id {gone['id']}, which is not listed",
        f"{drawn[2].file_name} (image 98): does not exist",
        "97.png (image 97) cannot be read as an image",
        f"{drawn[4].file_name} (image 96): is 3 x 2, but annotated as 64 x 64",
    ):
        assert sum(expected in problem for problem in found) == 1, (expected, found)
    assert len(found) == 17  # 99.png also contradicts the width of 63


def test_finds_files_of_another_format(coco_folder, tmp_path):
    path = coco_folder / "annotations" / "panoptic_val2017.json"
    path.write_text('{"images": 3}')
    assert [problem.split(": ")[1] for problem in check_folder(coco_folder)] == [
        "no list of categories",
        "no list of images",
        "no list of annotations",
    ]
    path.write_text("{")
    assert "not JSON" in next(check_folder(coco_folder))
    path.write_text("[]")
    assert "no list of categories" in next(check_folder(coco_folder))
    path.unlink()
    assert "no annotations/panoptic_SPLIT.json" in next(check_folder(coco_folder))


def test_finds_too_many_and_repeated_segments(coco_folder):
    path = coco_folder / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    segments = content["annotations"][0]["segments_info"]
    segments += [segments[0]] * 255
    path.write_text(json.dumps(content))
    found = list(check_folder(coco_folder))
    too_many = f"image 100: {len(segments)} segments; at most 255 per image are supported"
    assert any(too_many in problem for problem in found)
    assert any(f"image 100: segment {segments[0]['id']} is listed 256 times" in problem for problem in found)


def test_finds_an_empty_list_of_images(coco_folder):
    path = coco_folder / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "images": [], "annotations": []}))
    assert [problem.split(": ")[1] for problem in check_folder(coco_folder)] == [
        "the list of images is empty"
    ]


def test_finds_pngs_of_grey_levels(coco_folder):
    path = coco_folder / "panoptic_val2017" / "99.png"
    Image.open(path).convert("L").save(path)
    (problem,) = check_folder(coco_folder)
    assert "99.png (image 99): none of its" in problem and "it holds grey levels (Pillow mode L)" in problem
    Image.new("I;16", (64, 64)).save(path)
    (problem,) = check_folder(coco_folder)
    assert "99.png (image 99): it holds 16-bit, 32-bit or other values (Pillow mode I" in problem


def test_names_the_exif_orientation_of_an_image_annotated_as_stored(coco_folder, drawn):
    path = coco_folder / "val2017" / drawn[0].file_name
    Image.open(path).crop((0, 0, 64, 48)).save(path, exif=_turned())
    png = coco_folder / "panoptic_val2017" / "100.png"
    Image.open(png).crop((0, 0, 64, 48)).save(png)
    path = coco_folder / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["images"][0]["height"] = 48
    path.write_text(json.dumps(content))
    found = [
        problem for problem in check_folder(coco_folder) if "pixel" not in problem.split("annotated as")[0]
    ]
    assert (
        len(found) == 1 and "is 48 x 64, but annotated as 64 x 48: its EXIF orientation turns it" in found[0]
    )
    assert "--config.data.orientation=stored" in found[0]
    rules = ImageRules(orientation="stored")
    assert not any("annotated as" in problem for problem in check_folder(coco_folder, rules=rules))


def _turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_finds_files_outside_of_the_folder(coco_folder, drawn, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "a.png"
    path = coco_folder / "val2017" / drawn[0].file_name
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    (problem,) = check_folder(coco_folder)
    assert f"{path} (image 100): is a symbolic link out of {coco_folder / 'val2017'}" in problem
