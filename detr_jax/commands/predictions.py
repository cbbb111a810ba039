"""The command that segments images."""

import argparse

from detr_jax.commands.options import Commands, add_categories, add_dilation, positive
from detr_jax.config import FIELDS
from detr_jax.errors import UserError
from detr_jax.runtime.memory import configure_heap
from detr_jax.runtime.startup import enable_compilation_cache
from detr_jax.weights.published import PUBLISHED


def add_predict(commands: Commands) -> None:
    """Adds `detr-jax predict`."""
    parser = commands.add_parser("predict", help="segment images", description=predict.__doc__)
    panoptic = ", ".join(name for name, model in PUBLISHED.items() if model.panoptic)
    parser.set_defaults(run=predict)
    parser.add_argument("images", nargs="+", help="image files, or folders of images and sub-folders")
    parser.add_argument(
        "--weights",
        required=True,
        help=f"published model, downloaded once ({panoptic}); packaged checkpoint (shapes-panoptic); file "
        "(.pth, .safetensors); repository on the Hugging Face hub; or folder of a run",
    )
    parser.add_argument(
        "--output",
        required=True,
        help="folder to write to; the same command resumes what was stopped, another one replaces it",
    )
    parser.add_argument(
        "--overlays",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether to write pictures of the segments to overlays/ as well; default: yes",
    )
    parser.add_argument(
        "--batch_size",
        type=positive,
        help="number of images of one shape that run together; default: 1 on CPUs, otherwise 4",
    )
    parser.add_argument(
        "--tile",
        type=positive,
        metavar="PIXELS",
        help="side of the overlapping tiles that images are cut into, for large images with small objects; "
        "default: images stay whole",
    )
    parser.add_argument(
        "--tile_overlap",
        type=int,
        metavar="PIXELS",
        help="what neighbouring tiles share; default: half of --tile",
    )
    parser.add_argument(
        "--max_pixels",
        type=positive,
        help="width times height above which an image is refused; default: data.max_pixels of the training, "
        "or 64000000",
    )
    _add_settings(parser)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds options that replace what is stored with the weights."""

    def stored(field: str) -> str:
        return f"by default as stored with the weights, or else {FIELDS[field].default}"

    parser.add_argument(
        "--threshold",
        type=float,
        help=f"class probability above which a query is a segment; {stored('eval.threshold')}",
    )
    parser.add_argument(
        "--merge_stuff",
        choices=["first", "always"],
        help=f"rounds of fusion that merge stuff segments; {stored('eval.merge_stuff')}",
    )
    parser.add_argument(
        "--duplicate_iou",
        type=float,
        help="mask IoU above which the lower-scoring query is dropped; 1 keeps both; "
        + stored("eval.duplicate_iou"),
    )
    add_categories(parser)
    add_dilation(parser)
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help=f"dtype of the computation; {stored('model.dtype')}",
    )


def predict(options: argparse.Namespace) -> None:
    """Segments images and writes the results as files."""
    from detr_jax.inference.earlier_predictions import images_to_segment
    from detr_jax.inference.predict import predict_files
    from detr_jax.inference.predictor import Predictor
    from detr_jax.inference.tiles import Tiling

    if options.tile_overlap is not None and not options.tile:
        raise UserError("--tile_overlap needs --tile: the side of the tiles")
    tiling = Tiling.checked(options.tile, options.tile_overlap) if options.tile else None
    images = images_to_segment(options.images, options.output)
    enable_compilation_cache()
    configure_heap()
    predictor = Predictor.from_pretrained(
        options.weights,
        dilation=options.dilation,
        categories=options.categories,
        threshold=options.threshold,
        merge_stuff=options.merge_stuff,
        duplicate_iou=options.duplicate_iou,
        dtype=options.dtype,
    )
    if options.max_pixels:
        predictor.config.data.max_pixels = options.max_pixels
    predict_files(
        predictor,
        images,
        options.output,
        batch_size=options.batch_size,
        overlays=options.overlays,
        tiling=tiling,
    )
