import jax

from detr_jax import Predictor
from detr_jax.data.categories import coco_panoptic
from detr_jax.data.shapes import Shapes


def test_a_predictor_is_shown_in_one_line(tiny_model, tiny_params):
    predictor = Predictor.from_pretrained("shapes-panoptic")
    assert repr(predictor) == (
        "Predictor('shapes-panoptic', 13 classes, images of 160 pixels, 1.9M parameters)"
    )
    own = Predictor(tiny_model, jax.device_get(tiny_params), coco_panoptic())
    assert repr(own).startswith("Predictor(133 classes, images of 800 (at most 1333) pixels, 0.")


def test_outputs_are_shown_by_their_shapes():
    predictor = Predictor.from_pretrained("shapes-boxes")
    image = Shapes("validation", 8)[5].image
    outputs = predictor.raw(image)
    assert repr(outputs) == (
        "RawOutputs(pred_logits=float32 (20, 15), pred_boxes=float32 (20, 4), pred_masks=None)"
    )
    assert str([outputs]) == f"[{outputs!r}]"
    attention = repr(predictor.attention(image))
    assert attention.startswith("Attention(decoder=float32 (3, 8, 20, ")
    assert "mask_head=None" in attention and len(attention) < 400 and "\n" not in attention
