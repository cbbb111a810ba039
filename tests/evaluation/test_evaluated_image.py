"""Evaluated images survive a file, and a damaged file is named."""

import numpy as np
import pytest

from detr_jax.data.segment_matches import match_segments
from detr_jax.errors import UserError
from detr_jax.evaluation.evaluated_image import EvaluatedImage, read_images, write_images


def image(number, truths, predictions):
    rng = np.random.default_rng(number)
    true = [{"category_id": int(rng.integers(1, 4)), "iscrowd": k % 3 == 2} for k in range(truths)]
    predicted = [
        {"category_id": int(rng.integers(1, 4)), "score": float(rng.random())} for _ in range(predictions)
    ]
    overlaps = (
        rng.integers(0, 3, (truths + 1, predictions + 1)) * 50
        + np.eye(truths + 1, predictions + 1, dtype=int) * 400
    )
    return EvaluatedImage(
        number, f"folder/{number}.jpg", (30, 40 + number), match_segments(overlaps, true, predicted)
    )


def test_what_is_read_is_what_was_written(tmp_path):
    images = [image(1, 5, 4), image(2, 0, 3), image(3, 3, 0), image(4, 0, 0)]
    path = tmp_path / "images.jsonl"
    write_images(path, images)
    found = read_images(path)
    assert [one[:3] for one in found] == [one[:3] for one in images]
    for one, other in zip(found, images, strict=True):
        for name in one.matches._fields:
            mine, theirs = getattr(one.matches, name), getattr(other.matches, name)
            assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs), name


def test_a_prediction_without_score_survives_too(tmp_path):
    matches = match_segments(np.array([[0, 5]]), [], [{"category_id": 1}])
    write_images(tmp_path / "images.jsonl", [EvaluatedImage(1, "a.jpg", (1, 5), matches)])
    assert np.isnan(read_images(tmp_path / "images.jsonl")[0].matches.score[0])


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"image_id": 1}', "[" * 100_000])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "images.jsonl"
    write_images(path, [image(1, 2, 2)])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=r"line 2 is damaged.*--mode=eval"):
        read_images(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot read .*images.jsonl"):
        read_images(tmp_path / "images.jsonl")
