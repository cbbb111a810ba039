"""Commands that evaluate results and compare evaluations."""

import argparse

from detr_jax.commands.options import Commands, natural, positive


def add_evaluate(commands: Commands) -> None:
    """Adds `detr-jax evaluate`."""
    parser = commands.add_parser("evaluate", help="evaluate result files", description=evaluate.__doc__)
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


def add_compare(commands: Commands) -> None:
    """Adds `detr-jax compare`."""
    parser = commands.add_parser("compare", help="compare evaluated runs", description=compare.__doc__)
    parser.set_defaults(run=compare)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="workdir, or --output of `detr-jax evaluate`")
    parser.add_argument("--output", metavar="FILE", help="JSON file to write as well; default: none")
    parser.add_argument("--resamples", type=positive, default=2000, help="bootstrap samples; default: 2000")
    parser.add_argument("--seed", type=natural, default=0, help="random seed of the samples; default: 0")


def compare(options: argparse.Namespace) -> None:
    """Prints scores of evaluated runs, and their differences to the first run with 95% intervals."""
    from detr_jax.evaluation.compare_runs import compare_runs, read_run
    from detr_jax.evaluation.comparison_table import print_comparison, write_comparison

    comparison = compare_runs([read_run(run) for run in options.runs], options.resamples, options.seed)
    print_comparison(comparison)
    if options.output:
        write_comparison(options.output, comparison)
        print(f"wrote {options.output}")
