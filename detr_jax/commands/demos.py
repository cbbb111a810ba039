"""The command that serves a page in the browser."""

import argparse
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import NoReturn

from detr_jax.commands.options import Commands, add_categories, add_dilation, positive
from detr_jax.errors import UserError
from detr_jax.runtime.memory import configure_heap

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_demo(commands: Commands) -> None:
    """Adds `detr-jax demo`."""
    parser = commands.add_parser("demo", help="try a model in the browser", description=demo.__doc__)
    parser.set_defaults(run=demo)
    parser.add_argument(
        "--weights", default="shapes-panoptic", help="model, as in `predict` (default: %(default)s)"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 admits other computers (default: %(default)s, this one alone)",
    )
    parser.add_argument("--port", type=positive, help="port; default: the first free one from 7860")
    parser.add_argument(
        "--max_pixels",
        type=positive,
        default=25_000_000,
        help="maximum width times height of an image (default: %(default)s)",
    )
    parser.add_argument(
        "--max_megabytes", type=positive, default=20, help="maximum size of a file (default: %(default)s)"
    )
    add_categories(parser)
    add_dilation(parser)


def demo(options: argparse.Namespace) -> None:
    """Serves a page that segments the images of its visitors, which are deleted when it stops, at Ctrl-C."""
    from detr_jax.demo.example_images import example_images
    from detr_jax.demo.page import build_page, serve
    from detr_jax.inference.predictor import Predictor

    configure_heap()
    predictor = Predictor.from_pretrained(
        options.weights, dilation=options.dilation, categories=options.categories
    )
    if not predictor.has_masks:
        raise UserError(f"{options.weights} has no mask head, which the page needs: choose a panoptic model")
    predictor.config.data.max_pixels = options.max_pixels
    signal.signal(signal.SIGTERM, _stop)
    with tempfile.TemporaryDirectory(prefix="detr_jax_demo_", ignore_cleanup_errors=True) as folder:
        examples, uploads = Path(folder, "examples"), Path(folder, "uploads")
        examples.mkdir()
        # Gradio's own folder is shared by all users of the computer, and outlives the server.
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        page = build_page(predictor, options.weights, example_images(predictor, examples))
        address = serve(page, options.host, options.port, options.max_megabytes)
        print(f"{address} - stop with Ctrl-C", flush=True)
        if options.host not in _LOOPBACK:
            print("everyone who can reach this computer can use the page", flush=True)
        threading.Event().wait()


def _stop(number: int, _: object) -> NoReturn:
    """Ends the program with the status that shells expect, so that its files are removed."""
    sys.exit(128 + number)
