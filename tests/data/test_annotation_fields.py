import copy
import json

import numpy as np
import pytest

from detr_jax.data.annotation_fields import (
    ANNOTATION,
    IMAGE,
    SEGMENT,
    columns,
    field_problem,
    find_json_problems,
)
from detr_jax.data.annotations import read_annotations
from detr_jax.errors import UserError

IMAGE_ENTRY = {"id": 1, "file_name": "a.jpg", "height": 4, "width": 6}
ANNOTATION_ENTRY = {"image_id": 1, "file_name": "a.png", "segments_info": []}
SEGMENT_ENTRY = {"id": 7, "category_id": 1, "area": 9, "iscrowd": 0}
NAN, INFINITY = float("nan"), float("inf")
INTEGERS = [0, 1, 2, -1, 255, 256, 2**24 - 1, 2**24, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**64), 10**400]
TEXTS = [
    "",
    "0",
    "no",
    "7.jpg",
    "../7.jpg",
    "/etc/passwd",
    "a\0b",
    "\ud800",
    "x" * 300,
    "C:\\a",
    "..\\a",
    "red",
]
OTHERS = [None, True, False, 0.0, 1.0, 0.5, -0.0, NAN, INFINITY, [], [1], [[]], {}, {"id": 1}, [True, 0, 0]]
ANYTHING = [*INTEGERS, *TEXTS, *OTHERS]


def _reads(path, content):
    path.write_text(json.dumps(content))
    try:
        read_annotations(path)
    except UserError as error:
        assert "\n" not in str(error), error
        return False
    return True


@pytest.mark.parametrize(
    ("entry", "fields", "changes"),
    [
        (IMAGE_ENTRY, IMAGE, [("id", "1"), ("id", 1.0), ("id", True), ("id", 2**63), ("height", 0)]),
        (IMAGE_ENTRY, IMAGE, [("width", NAN), ("width", 2**31), ("file_name", None), ("file_name", 3)]),
        (ANNOTATION_ENTRY, ANNOTATION, [("image_id", "1"), ("segments_info", None), ("segments_info", {})]),
        (SEGMENT_ENTRY, SEGMENT, [("iscrowd", "0"), ("iscrowd", 1.0), ("iscrowd", None), ("iscrowd", 2)]),
        (SEGMENT_ENTRY, SEGMENT, [("id", "7"), ("id", -1), ("id", 2**24), ("category_id", NAN)]),
        (SEGMENT_ENTRY, SEGMENT, [("area", -1), ("area", 1.5), ("area", "9"), ("area", 2**63)]),
    ],
)
def test_names_the_invalid_field(entry, fields, changes):
    assert field_problem(entry, fields) is None and columns([entry], fields) is not None
    for name, value in changes:
        wrong = {**entry, name: value}
        assert f"missing or invalid {name}" in field_problem(wrong, fields)
        assert columns([entry, wrong], fields) is None


@pytest.mark.parametrize("iscrowd", [0, 1, True, False])
def test_iscrowd_is_a_number_or_a_truth_value(iscrowd):
    assert field_problem({**SEGMENT_ENTRY, "iscrowd": iscrowd}, SEGMENT) is None


def test_iscrowd_may_be_absent():
    segments = [{"id": 7, "category_id": 1, "area": 9}, SEGMENT_ENTRY]
    assert columns(segments, SEGMENT)["iscrowd"] == [0, 0]


@pytest.mark.parametrize(
    "name",
    ["a.jpg", "train/a.jpg", "a b.jpg", "ü.jpg", "图\u3000像.jpg", ".a", "a..b.jpg", "..a/b", "a\\b.jpg"],
)
def test_files_may_lie_in_folders_within_their_folder(name):
    assert field_problem({**IMAGE_ENTRY, "file_name": name}, IMAGE) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../a.jpg", "leads out of its folder"),
        ("a/../../b.jpg", "leads out"),
        ("..", "leads out"),
        ("..\\a.jpg", "leads out"),
        ("/etc/passwd", "not relative"),
        ("\\\\host\\a.jpg", "not relative"),
        ("C:\\a.jpg", "not relative"),
        ("", "is empty"),
        ("a\0.jpg", "control characters"),
        ("a\n.jpg", "control characters"),
        ("\ud800.jpg", "control characters"),
        ("x" * 256, "too long"),
        ("图" * 86, "too long"),
        ("x/" * 600 + "a", "too long"),
    ],
)
@pytest.mark.parametrize("key", ["images", "annotations"])
def test_file_names_cannot_lead_elsewhere(tmp_path, name, reason, key):
    content = {
        "categories": [{"id": 1, "name": "a"}],
        "images": [IMAGE_ENTRY],
        "annotations": [ANNOTATION_ENTRY],
    }
    content[key] = [{**content[key][0], "file_name": name}]
    (problem, *_) = find_json_problems(content)
    assert problem.startswith(f"{key}[0]: missing or invalid file_name") and reason in problem
    assert not _reads(tmp_path / "a.json", content)


def _nodes(value, path=()):
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _nodes(value[key], (*path, key))


def _mutate(content, rng):
    """Changes, removes or repeats a random value."""
    paths = [path for path in _nodes(content) if path]
    *parents, key = paths[rng.integers(len(paths))]
    parent = content
    for step in parents:
        parent = parent[step]
    action = rng.integers(4)
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    elif action == 2:
        other = content
        for step in paths[rng.integers(len(paths))]:
            other = other[step] if not isinstance(other, list) or step < len(other) else other
        parent[key] = copy.deepcopy(other)
    else:
        parent[key] = ANYTHING[rng.integers(len(ANYTHING))]


def test_the_reader_refuses_exactly_what_the_check_finds(coco_folder):
    """Random changes of a valid file, one or several at a time."""
    path = coco_folder / "annotations" / "panoptic_val2017.json"
    valid = json.loads(path.read_text())
    assert _reads(path, valid) and not list(find_json_problems(valid))
    valid = {key: value if key == "categories" else value[:2] for key, value in valid.items()}
    assert _reads(path, valid)
    rng = np.random.default_rng(0)
    accepted = 0
    for _ in range(600):
        content = copy.deepcopy(valid)
        for _ in range(rng.integers(1, 3)):
            _mutate(content, rng)
        content = json.loads(json.dumps(content))
        problems = list(find_json_problems(content))
        reads = _reads(path, content)
        assert reads == (not problems), (problems[:3], content)
        accepted += reads
    assert 50 < accepted < 550
