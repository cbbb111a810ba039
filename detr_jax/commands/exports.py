"""The command that exports models."""

import argparse

from detr_jax.commands.options import Commands, add_categories, add_dilation, positive


def add_export(commands: Commands) -> None:
    """Adds `detr-jax export`."""
    parser = commands.add_parser("export", help="export a model as one file", description=export.__doc__)
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
        type=positive,
        metavar=("HEIGHT", "WIDTH"),
        help="size in pixels of the images that a program takes; default: the model's first evaluation shape",
    )
    add_categories(parser)
    parser.add_argument(
        "--averaged",
        action=argparse.BooleanOptionalAction,
        help="whether a run with optim.ema gives its averaged parameters; default: as its config says, yes",
    )
    parser.add_argument(
        "--masks",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether a panoptic model keeps its mask head; --no-masks leaves a detector",
    )
    add_dilation(parser)


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
        masks=options.masks,
    )
    print(f"wrote {options.file}")
    if options.file.endswith(".pth"):
        print("it holds weights alone; .safetensors also keeps image size, thresholds and class names")
