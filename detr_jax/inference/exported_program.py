"""The program from images to panoptic maps as a file that runs without this package, by `jax.export`.

    program = jax.export.deserialize(bytearray(Path("model.stablehlo").read_bytes()))
    results = program.call(images, sizes)  # uint8 (batch, height, width, 3) and int32 (batch, 2)

Images are RGB, in the top left corner of a canvas of the height and width that the file was exported for;
`sizes` are their heights and widths. `results` is a dictionary of arrays:

    map      int32 (batch, height, width)  segment of each pixel, numbered from 1; 0 is void
    segment  int32 (batch, queries)        number of each query's segment in the map; 0 without a segment
    category int32 (batch, queries)        category id of each query
    score    float32 (batch, queries)      probability of that category
    area     int32 (batch, queries)        pixels of each query's segment
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, UInt8

from detr_jax.data.example import Size
from detr_jax.errors import MissingPackageError, UserError
from detr_jax.inference.fusion import DeviceRules, FusionRules, kinds_of_classes
from detr_jax.inference.pretrained import Pretrained
from detr_jax.inference.segmentation_program import Resizing, segment
from detr_jax.models.detr import PAIRS_PER_ROUND
from detr_jax.ops.padding import valid_mask

PLATFORMS = ("cpu", "cuda", "tpu")


def stablehlo_file(loaded: Pretrained, shape: Size) -> bytes:
    """The content of a `.stablehlo` file: program, parameters and thresholds, for any batch size.

    Args:
      loaded: Model with a mask head; the section `eval` of its config has the thresholds.
      shape: Height and width of the canvas, in pixels.

    Raises:
      MissingPackageError: The package flatbuffers is not installed, with which JAX writes such files.
      UserError: The model has no mask head.
    """
    if "mask_head" not in loaded.params:
        raise UserError("a model without a mask head has no panoptic maps, so it has no .stablehlo file")
    try:
        import flatbuffers  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "writing a .stablehlo file needs flatbuffers: pip install 'detr_jax[stablehlo]'"
        ) from error
    kinds = kinds_of_classes(loaded.categories, loaded.model.num_classes)
    loaded = loaded._replace(params=jax.tree.map(jnp.asarray, loaded.params))
    rules = FusionRules.from_config(loaded.config.eval).for_device()

    def segment_one(arguments: tuple[Array, Array]) -> dict[str, Array]:
        image, size = arguments
        return _one_image(loaded, kinds, rules, image, size)

    def segment_all(
        images: UInt8[Array, "batch height width 3"], sizes: Int32[Array, "batch 2"]
    ) -> dict[str, Array]:
        # One after another, because the model's own batches have a static size.
        return jax.lax.map(segment_one, (images, sizes))

    (batch,) = jax.export.symbolic_shape("batch")
    arguments = (
        jax.ShapeDtypeStruct((batch, *shape, 3), jnp.uint8),
        jax.ShapeDtypeStruct((batch, 2), jnp.int32),
    )
    return bytes(jax.export.export(jax.jit(segment_all), platforms=PLATFORMS)(*arguments).serialize())


def _one_image(
    loaded: Pretrained,
    kinds: np.ndarray,
    rules: DeviceRules,
    image: UInt8[Array, "height width 3"],
    size: Any,
) -> dict[str, Array]:
    """The results for one image, without a batch axis."""
    # Each valid row and column occurs once in the map, which is as large as the image.
    rows, columns = (
        (jnp.arange(length) < size[axis]).astype(jnp.int32) for axis, length in enumerate(image.shape[:2])
    )
    found = segment(
        loaded.model,
        PAIRS_PER_ROUND,
        loaded.params,
        image[None],
        size[None],
        Resizing(rows[None], columns[None]),
        jnp.asarray(kinds),
        DeviceRules(*map(jnp.asarray, rules)),
    )
    inside = valid_mask(size[None], image.shape[:2], 1)[0]
    visible = found.visible[0]
    return {
        "map": jnp.where(inside, found.canvas[0], 0).astype(jnp.int32),
        "segment": jnp.where(visible, jnp.cumsum(visible), 0).astype(jnp.int32),
        "category": found.classes[0],
        "score": found.scores[0],
        "area": found.areas[0],
    }
