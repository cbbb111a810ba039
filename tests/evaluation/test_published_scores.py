"""Published scores are those of the papers: PQ is the mean of things and stuff, and below SQ and RQ."""

from detr_jax.evaluation.report.published_scores import PUBLISHED_SCORES


def test_scores_are_consistent():
    for model in PUBLISHED_SCORES:
        mean = (80 * model.things[0] + 53 * model.stuff[0]) / 133
        # Table 2 prints 42.8 for DETR, although its things and stuff have the mean 43.2.
        assert abs(model.all[0] - mean) < (0.45 if model.name == "DETR" else 0.15), model
        for quality, segmentation, recognition in (model.all, model.things, model.stuff):
            assert quality <= segmentation * recognition / 100 + 2 and quality < min(
                segmentation, recognition
            )


def test_the_models_that_can_be_loaded_have_their_published_scores():
    scores = {model.name: (model.all[0], model.box_ap, model.mask_ap) for model in PUBLISHED_SCORES[:3]}
    assert scores == {
        "DETR R50": (43.4, 38.8, 31.1),
        "DETR-DC5 R50": (44.6, 40.2, 31.9),
        "DETR R101": (45.1, 40.1, 33.0),
    }
