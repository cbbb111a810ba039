"""The command that converts datasets."""

import argparse
import sys
from pathlib import Path

from detr_jax.commands.options import Commands, add_image_rules, positive


def add_convert(commands: Commands) -> None:
    """Adds `detr-jax convert`."""
    parser = commands.add_parser("convert", help="convert a dataset", description=convert.__doc__)
    parser.set_defaults(run=convert)
    parser.add_argument("source", type=Path, help="COCO instances JSON file, or folder of masks")
    parser.add_argument("folder", type=Path, help="folder to write to; it may contain other splits")
    parser.add_argument(
        "--format",
        choices=("instances", "masks", "objects", "semantic"),
        required=True,
        help="of SOURCE: 'instances', a COCO instances JSON file; 'masks', one image of object ids per "
        "image; 'objects', a folder per image with one binary mask per object; 'semantic', one image of "
        "category ids per image, whose connected regions become things",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="folder of the images, named like their masks; default: */images/ beside */masks/ of 'objects'",
    )
    _add_category_options(parser)
    _add_split_options(parser)
    parser.add_argument(
        "--overlap",
        choices=("smaller", "first", "last"),
        default="smaller",
        help="object that gets a pixel of several: the smaller (default), the first or the last one listed",
    )
    parser.add_argument(
        "--min_area",
        type=positive,
        default=1,
        metavar="PIXELS",
        help="smaller segments become void; default: 1",
    )
    parser.add_argument(
        "--tile",
        type=positive,
        default=0,
        metavar="PIXELS",
        help="maximum side of the pieces that images are cut into; default: images stay whole",
    )
    add_image_rules(parser)


def _add_category_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--categories",
        type=Path,
        metavar="FILE",
        help="categories: JSON list, or CSV, with id, name and isthing (1 for countable objects)",
    )
    parser.add_argument(
        "--table",
        type=Path,
        metavar="FILE",
        help="category of each object: CSV with the columns id, category and, if ids differ by image, image; "
        "or a JSON object",
    )
    parser.add_argument("--thing", metavar="NAME", help="name of the only category, instead of these files")
    parser.add_argument(
        "--background", metavar="NAME", help="stuff category of all other pixels; default: they are void"
    )


def _add_split_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--val_fraction",
        type=float,
        default=0.2,
        help="fraction of the images in the split val; default: 0.2",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of that fraction; default: 0")
    parser.add_argument(
        "--val_names", type=Path, metavar="FILE", help="names of the images in val, one a line, instead"
    )
    parser.add_argument("--split", metavar="NAME", help="write all images as this split")


def convert(options: argparse.Namespace) -> None:
    """Writes annotated images of another format as a COCO panoptic folder, with the splits train and val."""
    from detr_jax.data.convert import ConvertOptions, convert
    from detr_jax.data.image_files import ImageRules

    settings = dict(vars(options))
    for name in ("run", "source", "folder"):
        del settings[name]
    rules = ImageRules(settings.pop("orientation"), settings.pop("max_pixels"))
    report = convert(
        options.source, options.folder, ConvertOptions(**settings, rules=rules), sys.stderr.isatty()
    )
    print("\n".join(report.lines()))
    if rules.orientation == "stored" and not options.tile:
        print("read these images as stored, too: --config.data.orientation=stored, or --orientation=stored")
    print(f"wrote {report.folder}; {report.record} lists what was dropped")
