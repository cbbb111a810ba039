"""Commands that check, write and download datasets."""

import argparse
import sys

from detr_jax.commands.options import Commands, add_image_rules, positive


def add_check(commands: Commands) -> None:
    """Adds `detr-jax check`."""
    parser = commands.add_parser("check", help="find problems in a dataset", description=check.__doc__)
    parser.set_defaults(run=check)
    parser.add_argument("folder", help="folder with annotations/ and the images and PNGs of each split")
    add_image_rules(parser)


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


def add_shapes(commands: Commands) -> None:
    """Adds `detr-jax shapes`."""
    parser = commands.add_parser("shapes", help="write generated pictures", description=shapes.__doc__)
    parser.set_defaults(run=shapes)
    parser.add_argument("folder", help="folder to write to; it may contain other splits")
    parser.add_argument("--count", type=positive, required=True, help="number of pictures")
    parser.add_argument("--split", default="train", help="train (default), validation or test")
    parser.add_argument(
        "--image_size", type=int, default=128, help="height and width in pixels; default: 128"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed; default: 0")


def shapes(options: argparse.Namespace) -> None:
    """Writes generated pictures in COCO's panoptic format."""
    from detr_jax.data.shapes import export

    export(options.folder, options.count, options.split, options.image_size, options.seed)
    print(f"wrote {options.count} images of the split {options.split!r} to {options.folder}")


def add_tfds(commands: Commands) -> None:
    """Adds `detr-jax tfds`."""
    parser = commands.add_parser(
        "tfds", help="download and prepare COCO panoptic of TFDS", description=tfds.__doc__
    )
    parser.set_defaults(run=tfds)
    parser.add_argument("--data_dir", required=True, help="folder to write to")
    parser.add_argument("--name", default="coco/2017_panoptic", help="dataset; default: coco/2017_panoptic")


def tfds(options: argparse.Namespace) -> None:
    """Downloads a dataset of TFDS and prepares it for random access."""
    from detr_jax.data.tfds import prepare

    prepare(options.name, options.data_dir)
    print(f"wrote {options.name} to {options.data_dir}")
