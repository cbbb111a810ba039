"""Runs are compared on the same images; intervals hold the difference; what cannot be compared is named."""

import json

import numpy as np
import pytest
from evaluated import CATEGORIES, evaluation

from detr_jax.__main__ import main
from detr_jax.data.categories import to_json
from detr_jax.data.segment_matches import match_segments
from detr_jax.data.shapes import export as write_shapes
from detr_jax.errors import UserError
from detr_jax.evaluation.compare_runs import EvaluatedRun, compare_runs, read_run
from detr_jax.evaluation.evaluated_image import write_images

IMAGES, RESULT = evaluation(60)
RARE = CATEGORIES[5]
COUNTS = {"a": 5000, "b": 5000, "c": 4}


def worse(image, every):
    """The image without its first match, if its id is a multiple of `every`."""
    matches = image.matches
    found = np.flatnonzero(matches.match >= 0)
    if image.image_id % every or not len(found):
        return image
    match, missed, wrong = matches.match.copy(), matches.missed.copy(), matches.wrong.copy()
    wrong[match[found[0]]] = missed[found[0]] = True
    match[found[0]] = -1
    return image._replace(matches=matches._replace(match=match, missed=missed, wrong=wrong))


def run(name, images, **result):
    return EvaluatedRun(name, result, CATEGORIES, list(images))


def save(folder, images, result, categories=CATEGORIES, count=0):
    (folder / "evaluation").mkdir(parents=True)
    write_images(folder / "evaluation" / "images.jsonl", images)
    content = {"result": result, "categories": to_json(categories), "images": count or len(images)}
    (folder / "results.json").write_text(json.dumps(content))
    return str(folder)


def test_scores_are_those_of_the_evaluation_and_differences_are_theirs():
    first = run("a", IMAGES, boxes={"AP": 0.5}, masks={"AP": None})
    second = run("b", [worse(image, 2) for image in IMAGES], boxes={"AP": 0.54})
    found = compare_runs([first, second], resamples=300)
    for group, suffix in (("All", ""), ("Things", " things"), ("Stuff", " stuff")):
        for key in ("pq", "sq", "rq"):
            scores = found.scores[key.upper() + suffix]
            assert scores[0].value == pytest.approx(RESULT[group][key], abs=1e-12)
            assert scores[0].difference is None
            assert scores[1].difference == pytest.approx(scores[1].value - scores[0].value)
    low, high = found.scores["PQ"][1].interval
    assert low < found.scores["PQ"][1].difference < high < 0
    assert found.scores["box AP"][1].difference == pytest.approx(0.04)
    assert found.scores["box AP"][1].interval is found.scores["mask AP"][1].difference is None


def test_equal_runs_differ_by_exactly_nothing_and_seeds_repeat():
    same = compare_runs([run("a", IMAGES), run("b", IMAGES)], resamples=50)
    assert same.scores["PQ"][1][1:] == (0.0, (0.0, 0.0))
    runs = [run("a", IMAGES), run("b", [worse(image, 3) for image in IMAGES])]
    assert (
        compare_runs(runs, 100, seed=1) == compare_runs(runs, 100, seed=1) != compare_runs(runs, 100, seed=2)
    )


def test_the_interval_is_that_of_drawing_images():
    """Against a plain loop over samples, each evaluated from scratch."""
    other = [worse(image, 2) for image in IMAGES]
    found = compare_runs([run("a", IMAGES), run("b", other)], resamples=1000)
    rng = np.random.default_rng(7)
    differences = []
    for _ in range(40):
        drawn = rng.integers(0, len(IMAGES), len(IMAGES))
        sample = compare_runs(
            [run("a", [IMAGES[i] for i in drawn]), run("b", [other[i] for i in drawn])], resamples=1
        )
        differences.append(sample.scores["PQ"][1].difference)
    low, high = found.scores["PQ"][1].interval
    assert np.std(differences) == pytest.approx((high - low) / 3.92, rel=0.4)
    assert np.mean(differences) == pytest.approx((low + high) / 2, abs=np.std(differences))


def test_folders_are_compared_and_written(tmp_path, capsys):
    folders = [
        save(tmp_path / "first", IMAGES, {"boxes": {"AP": 0.25}}),
        save(tmp_path / "second[b]", [worse(image, 2) for image in IMAGES[::-1]], {"boxes": {"AP": None}}),
    ]
    main(["compare", *folders, f"--output={tmp_path}/compare.json", "--resamples=100"])
    printed = capsys.readouterr().out
    assert "60 images" in printed and " second[b] " in printed and " first " in printed
    assert f"{100 * RESULT['All']['pq']:.1f}" in printed and "box AP" in printed and "mask AP" not in printed
    content = json.loads((tmp_path / "compare.json").read_text())
    assert content["runs"] == folders and content["resamples"] == 100
    low, high = content["scores"]["PQ"][1]["interval"]
    assert f"{100 * low:+.1f} to {100 * high:+.1f}" in printed
    assert read_run(folders[1]).images[0].image_id == 0
    names = [category.name for category in CATEGORIES]
    assert [one["name"] for one in content["classes"]] == names
    for one in content["classes"]:
        limits = one["scores"][1]["interval"]
        listed = f"{100 * limits[0]:+.1f} to {100 * limits[1]:+.1f}" in printed if limits else False
        assert listed == (limits is not None and (limits[1] < 0 or limits[0] > 0)), one


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda images: images[:-1], r"60 and 59; only a has image 59"),
        (lambda images: [*images, images[0]._replace(image_id=-1)], r"only b has image -1"),
        (
            lambda images: [images[0], images[1]._replace(matches=images[5].matches), *images[2:]],
            "a and b have different annotations of image 1",
        ),
    ],
)
def test_runs_on_other_data_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        compare_runs([run("a", IMAGES), run("b", change(IMAGES))])


def test_detectors_are_compared_by_box_ap_alone(tmp_path, capsys):
    folders = [
        save(tmp_path / name, [], {"boxes": {"AP": 0.4}}, count=count) for name, count in COUNTS.items()
    ]
    main(["compare", *folders[:2]])
    printed = capsys.readouterr().out
    assert "5,000 images" in printed and "box AP" in printed and "There are no intervals" in printed
    with pytest.raises(SystemExit, match="a has 5000 images, .*c 4: evaluate"):
        main(["compare", folders[0], folders[2]])
    both = save(tmp_path / "both", IMAGES[:4], {"boxes": {"AP": 0.4}})
    for pair in ([folders[2], both], [both, folders[2]]):
        with pytest.raises(SystemExit, match="c has no panoptic quality: evaluate"):
            main(["compare", *pair])


def test_seeds_are_not_negative(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "a", "b", "--seed=-1"])
    assert "'-1' is not an integer of 0 or more" in capsys.readouterr().err


def test_runs_of_other_categories_are_refused():
    other = [CATEGORIES[0]._replace(isthing=False), *CATEGORIES[1:]]
    with pytest.raises(UserError, match="a and b differ in category 7"):
        compare_runs([run("a", IMAGES), EvaluatedRun("b", {}, tuple(other), IMAGES)])


def test_what_is_missing_or_damaged_is_named(tmp_path):
    good = save(tmp_path / "good", IMAGES[:2], {})
    with pytest.raises(SystemExit, match="1 run to compare: name two or more"):
        main(["compare", good])
    with pytest.raises(SystemExit, match="there is no folder .*nothing: name"):
        main(["compare", good, str(tmp_path / "nothing")])
    (tmp_path / "new").mkdir()
    with pytest.raises(SystemExit, match="results.json does not exist: evaluate again, with --mode=eval"):
        main(["compare", good, str(tmp_path / "new")])
    (tmp_path / "good" / "results.json").write_text('{"result": 3}')
    with pytest.raises(SystemExit, match="results.json is damaged or of another version"):
        main(["compare", good, good])


def test_files_that_do_not_belong_together_are_named(tmp_path):
    folder = save(tmp_path / "a", IMAGES[:2], {}, CATEGORIES[1:])
    with pytest.raises(UserError, match="image 0 has categories that .*results.json lacks: evaluate again"):
        read_run(folder)


@pytest.mark.parametrize("result", [{"boxes": [1]}, {"boxes": {"AP": "high"}}, {"panoptic": {"All": 3}}])
def test_results_that_are_no_numbers_are_damaged(tmp_path, result):
    with pytest.raises(UserError, match="results.json is damaged or of another version: evaluate again"):
        read_run(save(tmp_path / "a", IMAGES[:2], result))


def test_files_of_different_evaluations_are_not_mixed(tmp_path):
    """As they lie in a folder if a second evaluation stops while it writes them."""
    runs = [
        read_run(save(tmp_path / name, images, {"panoptic": RESULT}))
        for name, images in (("a", IMAGES), ("b", [worse(image, 2) for image in IMAGES]))
    ]
    compare_runs([runs[0], runs[0]], resamples=1)
    with pytest.raises(UserError, match="b: results.json and .*images.jsonl are of different evaluations"):
        compare_runs(runs, resamples=1)


def test_classes_of_few_images_have_no_interval():
    """An interval of one image has no width, so that it would exclude 0 whatever changed."""

    def interval(count):
        images = [image for image in IMAGES if len(image.matches.match)][:count]
        found = compare_runs([run("a", images), run("b", [worse(image, 1) for image in images])], 200)
        assert found.scores["PQ"][1].difference < 0
        return found.scores["PQ"][1].interval

    assert interval(1) is interval(5) is None
    assert interval(6)[1] < 0


def test_a_class_of_one_image_has_no_interval():
    position = next(index for index, image in enumerate(IMAGES) if (image.matches.match >= 0).any())
    matches = IMAGES[position].matches
    row = np.flatnonzero(matches.match >= 0)[0]
    true_category, category = matches.true_category.copy(), matches.category.copy()
    true_category[row] = category[matches.match[row]] = RARE.id
    images = list(IMAGES)
    images[position] = images[position]._replace(
        matches=matches._replace(true_category=true_category, category=category)
    )
    found = compare_runs([run("a", images), run("b", [worse(image, 1) for image in images])], resamples=200)
    (score,) = [one.scores[1] for one in found.classes if one.id == RARE.id]
    assert score.value == 0 > score.difference and score.interval is None
    assert all(one.scores[1].interval for one in found.classes if one.id != RARE.id)


def test_evaluated_files_can_be_compared(tmp_path, capsys):
    write_shapes(tmp_path / "pictures", 6, "validation")
    for name in ("a", "b"):
        main(["evaluate", *[str(tmp_path / "pictures")] * 2, f"--output={tmp_path / name}"])
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--resamples=20"])
    printed = capsys.readouterr().out
    assert "6 images" in printed and "100.0" in printed and "+0.0 to +0.0" in printed


def test_images_without_segments_have_no_score():
    nothing = match_segments(np.array([[100]]), [], [])
    images = [image._replace(matches=nothing) for image in IMAGES[:3]]
    found = compare_runs([run("a", images), run("b", images)], resamples=10)
    assert found.scores["PQ"][1] == (None, None, None)
