"""The command `detr-jax`, also `python -m detr_jax`. Configs are run by main.py.

Each command imports what it needs when it runs, so that `--help` loads nothing.
"""

import argparse
import sys
from collections.abc import Sequence

from detr_jax import __version__
from detr_jax.runtime.startup import enable_compilation_cache, exit_with_message
from detr_jax.weights.published import PUBLISHED


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command. Exits with status 1 if it fails, or if `check` finds problems.

    Args:
      arguments: The command line without the name of the program; by default `sys.argv[1:]`.
    """
    options = _parser().parse_args(arguments)
    with exit_with_message():
        options.run(options)


def check(options: argparse.Namespace) -> None:
    """Prints the problems in a folder of COCO panoptic data."""
    from detr_jax.data.coco_check import check_folder
    from detr_jax.data.image_files import ImageRules

    count = 0
    rules = ImageRules(options.orientation, options.max_pixels)
    for problem in check_folder(options.folder, progress=sys.stderr.isatty(), rules=rules):
        print(problem)
        count += 1
    if count:
        sys.exit(f"{options.folder}: {count} {'problem' if count == 1 else 'problems'}")
    print(f"{options.folder}: no problems")


def export(options: argparse.Namespace) -> None:
    """Writes a model as one file: its weights, or a program that runs without this package."""
    from detr_jax.inference.exported import export

    export(
        options.model,
        options.file,
        dtype=options.dtype,
        layout=options.layout,
        shape=options.shape,
        dilation=options.dilation,
        categories=options.categories,
        averaged=options.averaged,
    )
    print(f"wrote {options.file}")


def shapes(options: argparse.Namespace) -> None:
    """Writes generated pictures in COCO's panoptic format."""
    from detr_jax.data.shapes import export

    export(options.folder, options.count, options.split, options.image_size, options.seed)
    print(f"wrote {options.count} images of the split {options.split!r} to {options.folder}")


def tfds(options: argparse.Namespace) -> None:
    """Downloads a dataset of TFDS and prepares it for random access."""
    from detr_jax.data.tfds import prepare

    prepare(options.name, options.data_dir)
    print(f"wrote {options.name} to {options.data_dir}")


def predict(options: argparse.Namespace) -> None:
    """Segments images and writes the results as files."""
    from detr_jax.data.images import list_images
    from detr_jax.inference.predict import predict_files
    from detr_jax.inference.prediction_folder import result_folders
    from detr_jax.inference.predictor import Predictor

    images = list(list_images(options.images, skip=result_folders(options.output)))
    enable_compilation_cache()
    predictor = Predictor.from_pretrained(
        options.weights,
        dilation=options.dilation,
        categories=options.categories,
        threshold=options.threshold,
        merge_stuff=options.merge_stuff,
        duplicate_iou=options.duplicate_iou,
        dtype=options.dtype,
    )
    predict_files(predictor, images, options.output, batch_size=options.batch_size, overlays=options.overlays)


def evaluate(options: argparse.Namespace) -> None:
    """Computes panoptic quality from COCO panoptic result files of any origin, without a model."""
    import jax

    from detr_jax.evaluation.file_evaluation import evaluate_files

    jax.config.update("jax_platforms", "cpu")  # an accelerator stays free for others
    evaluate_files(
        options.predictions,
        options.ground_truth,
        output=options.output,
        images=options.images,
        png_folder=options.png_folder,
        ground_truth_png_folder=options.ground_truth_png_folder,
    )


def compare(options: argparse.Namespace) -> None:
    """Prints scores of evaluated runs, and their differences to the first run with 95% intervals."""
    from detr_jax.evaluation.compare_runs import compare_runs, read_run
    from detr_jax.evaluation.comparison_table import print_comparison, write_comparison

    comparison = compare_runs([read_run(run) for run in options.runs], options.resamples, options.seed)
    print_comparison(comparison)
    if options.output:
        write_comparison(options.output, comparison)
        print(f"wrote {options.output}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("detr-jax", description="Panoptic segmentation with DETR.")
    parser.add_argument("--version", action="version", version=f"detr-jax {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    add = commands.add_parser("predict", help="segment images", description=predict.__doc__)
    _add_predict_options(add)

    add = commands.add_parser("evaluate", help="evaluate result files", description=evaluate.__doc__)
    _add_evaluate_options(add)

    add = commands.add_parser("compare", help="compare evaluated runs", description=compare.__doc__)
    add.set_defaults(run=compare)
    add.add_argument("runs", nargs="+", metavar="RUN", help="workdir, or --output of `detr-jax evaluate`")
    add.add_argument("--output", metavar="FILE", help="JSON file to write as well; default: none")
    add.add_argument("--resamples", type=_positive, default=2000, help="bootstrap samples; default: 2000")
    add.add_argument("--seed", type=int, default=0, help="random seed of the samples; default: 0")

    add = commands.add_parser("check", help="find problems in a dataset", description=check.__doc__)
    add.set_defaults(run=check)
    add.add_argument("folder", help="folder with annotations/ and the images and PNGs of each split")
    add.add_argument(
        "--orientation",
        choices=("upright", "stored"),
        default="upright",
        help="data.orientation of the training: 'stored' ignores EXIF orientations (default: %(default)s)",
    )
    add.add_argument(
        "--max_pixels",
        type=int,
        default=64_000_000,
        help="data.max_pixels of the training (default: %(default)s)",
    )

    add = commands.add_parser("export", help="export a model as one file", description=export.__doc__)
    _add_export_options(add)

    add = commands.add_parser("shapes", help="write generated pictures", description=shapes.__doc__)
    add.set_defaults(run=shapes)
    add.add_argument("folder", help="folder to write to; it may contain other splits")
    add.add_argument("--count", type=_positive, required=True, help="number of pictures")
    add.add_argument("--split", default="train", help="train (default), validation or test")
    add.add_argument("--image_size", type=int, default=128, help="height and width in pixels; default: 128")
    add.add_argument("--seed", type=int, default=0, help="random seed; default: 0")

    add = commands.add_parser(
        "tfds", help="download and prepare COCO panoptic of TFDS", description=tfds.__doc__
    )
    add.set_defaults(run=tfds)
    add.add_argument("--data_dir", required=True, help="folder to write to")
    add.add_argument("--name", default="coco/2017_panoptic", help="dataset; default: coco/2017_panoptic")
    return parser


def _add_predict_options(parser: argparse.ArgumentParser) -> None:
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
        "--output", required=True, help="folder to write to; the same command resumes what was stopped"
    )
    parser.add_argument(
        "--overlays",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether to write pictures of the segments to overlays/ as well; default: yes",
    )
    parser.add_argument(
        "--batch_size",
        type=_positive,
        help="number of images of one shape that run together; default: 1 on CPUs, otherwise 4",
    )
    parser.add_argument("--threshold", type=float, help="class probability above which a query is a segment")
    parser.add_argument(
        "--merge_stuff", choices=["first", "always"], help="rounds of fusion that merge stuff segments"
    )
    parser.add_argument(
        "--duplicate_iou", type=float, help="mask IoU above which the lower-scoring query is dropped"
    )
    parser.add_argument(
        "--categories",
        metavar="FILE",
        help='JSON file that names the classes: a list of categories, or an object with "categories"; by '
        "default those stored with the weights, or COCO's",
    )
    _add_dilation(parser)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="dtype of the computation")


def _add_evaluate_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=evaluate)
    parser.add_argument(
        "predictions",
        help="COCO panoptic JSON file with PNGs beside it, or folder written by `detr-jax predict`",
    )
    parser.add_argument(
        "ground_truth", help="COCO panoptic JSON file with categories, or folder of COCO data of one split"
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="folder for report.html, results.json and evaluation/images.jsonl; by default only a table",
    )
    parser.add_argument(
        "--images", metavar="FOLDER", help="images, for the pictures in the report; default: drawn on grey"
    )
    parser.add_argument(
        "--png_folder", metavar="FOLDER", help="PNGs of PREDICTIONS; default: named like the JSON file"
    )
    parser.add_argument(
        "--ground_truth_png_folder", metavar="FOLDER", help="PNGs of GROUND_TRUTH; default: likewise"
    )


def _add_export_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=export)
    parser.add_argument(
        "model", help="folder of a run, checkpoint file, or name of a model, like --weights of predict"
    )
    parser.add_argument(
        "file",
        help=".safetensors: weights with config and categories; .pth: weights alone, for PyTorch; "
        ".stablehlo: program from images to panoptic maps; .onnx: outputs of all queries",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "float16"],
        help="dtype of the weights; default: float32",
    )
    parser.add_argument(
        "--layout",
        default="original",
        choices=["original", "transformers", "timm"],
        help="names of the weights: those of facebookresearch/detr (default), or those on the Hugging Face "
        "hub with the backbone of transformers or of timm",
    )
    parser.add_argument(
        "--shape",
        nargs=2,
        type=_positive,
        metavar=("HEIGHT", "WIDTH"),
        help="size in pixels of the images that a program takes; default: the model's first evaluation shape",
    )
    parser.add_argument("--categories", metavar="FILE", help="JSON file that names the classes")
    parser.add_argument(
        "--averaged",
        action=argparse.BooleanOptionalAction,
        help="whether a run with optim.ema gives its averaged parameters; default: as its config says, yes",
    )
    _add_dilation(parser)


def _add_dilation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dilation",
        action=argparse.BooleanOptionalAction,
        help="whether it is a DC5 model; default: as stored with it or published, else if its name has dc5",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer above 0")
    return int(text)


if __name__ == "__main__":
    main()
