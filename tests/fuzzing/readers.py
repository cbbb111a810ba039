"""Every reader of the package: valid inputs, how to change them, and how to read the result."""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from mutations import (
    mutate_arguments,
    mutate_bytes,
    mutate_json,
    mutate_json_text,
    mutate_lines,
    mutate_safetensors,
)
from PIL import Image
from tiny import TINY, initial_params, tiny_config, tiny_model

from detr_jax import __main__ as command_line
from detr_jax.config import parse_config, validate
from detr_jax.data import categories
from detr_jax.data.coco import CocoPanoptic
from detr_jax.data.coco_check import check_folder
from detr_jax.data.images import display_size, read_image
from detr_jax.data.shapes import Shapes, export
from detr_jax.errors import UserError
from detr_jax.evaluation.file_evaluation import evaluate_files
from detr_jax.inference.predictor import Predictor
from detr_jax.models.detr import build_model
from detr_jax.runtime.reporting import Reporter
from detr_jax.training.checkpoints import BestCheckpoint
from detr_jax.weights import layouts, tensor_files
from detr_jax.weights.runs import load_run, stored_with

Mutate = Callable[[bytes, Sequence[bytes], random.Random], bytes]


class Reader(NamedTuple):
    """A reader under test.

    Attributes:
      files: Valid files, which are changed.
      mutate: Changes the content of one file, given that of all.
      read: Reads everything that depends on the changed file, and asserts that the result is valid.
    """

    files: list[Path]
    mutate: Mutate
    read: Callable[[Path], Any]


def images(folder: Path, kind: str) -> Reader:
    """Images of one format, in several modes."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in {"JPEG": ("RGB", "L", "CMYK"), "BMP": ("RGB", "P", "1"), "WEBP": ("RGB", "RGBA")}.get(
        kind, ("RGB", "RGBA", "P", "1", "L", "I;16")
    ):
        if mode == "I;16":
            if kind == "GIF":
                continue
            image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
        else:
            image = Image.fromarray(noise).convert("RGB").convert(mode)
        options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
        image.save(folder / f"{mode.replace(';', '')}.{kind.lower()}", kind, **options)

    def read(file: Path) -> None:
        pixels = read_image(file)
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert display_size(file) == pixels.shape[:2]

    return Reader(sorted(folder.iterdir()), mutate_bytes, read)


def annotations(folder: Path, part: str) -> Reader:
    """The JSON file or the PNGs of a folder of panoptic data; reader and check must be of one mind."""
    export(folder, 3, "train", 64, 0)

    def read(file: Path) -> None:
        problems = list(check_folder(folder))
        assert all(len(problem) < 3000 for problem in problems)
        try:
            source = CocoPanoptic(folder, "train")
            for example in (source[index] for index in range(len(source))):
                assert example.segment_map.shape == example.orig_size
                assert example.segment_map.max(initial=0) <= len(example.labels)
        except UserError as error:
            assert problems, f"the reader refuses what the check accepts: {error}"
            raise

    if part == "json":
        return Reader([folder / "annotations" / "panoptic_train.json"], mutate_json_text, read)
    return Reader(sorted((folder / f"{part}train").glob("*")), mutate_bytes, read)


def result_files(folder: Path) -> Reader:
    """Panoptic result files: predictions and ground truth, both changed."""
    export(folder / "truth", 2, "test", 64, 0)
    export(folder / "predictions", 2, "test", 64, 0)

    def read(file: Path) -> None:
        quality = evaluate_files(folder / "predictions", folder / "truth")["panoptic"]["All"]["pq"]
        assert quality is None or 0 <= quality <= 1

    return Reader(sorted(folder.glob("*/annotations/*.json")), mutate_json_text, read)


def category_lists(folder: Path) -> Reader:
    """Lists of categories."""
    folder.mkdir()
    for name, known in (("shapes", Shapes("train", 1).categories), ("coco", categories.coco_panoptic())):
        (folder / f"{name}.json").write_text(json.dumps(categories.to_json(known)))

    def mutate(data: bytes, others: Sequence[bytes], choose: random.Random) -> bytes:
        changed = mutate_json(json.loads(data), choose)
        return json.dumps(changed if isinstance(changed, list) else [changed]).encode()

    def read(file: Path) -> None:
        found = categories.from_json(json.loads(file.read_text()))
        categories.from_json(categories.to_json(found))

    return Reader(sorted(folder.iterdir()), mutate, read)


def configs(folder: Path) -> Reader:
    """Stored configs."""
    folder.mkdir()
    (folder / "config.json").write_text(tiny_config().to_json())
    return Reader(
        [folder / "config.json"],
        mutate_json_text,
        lambda file: validate(parse_config(file.read_text(errors="replace"))),
    )


def _tiny_state() -> tuple[Any, dict[str, np.ndarray], dict[str, str]]:
    params = initial_params(tiny_model())
    known = json.dumps(categories.to_json(Shapes("train", 1).categories))
    config = tiny_config()
    return params, layouts.to_state_dict(params), {"config": config.to_json(), "categories": known}


def checkpoint_files(folder: Path, suffix: str) -> Reader:
    """Checkpoint files with tensors and metadata."""
    folder.mkdir()
    _, state, metadata = _tiny_state()
    tensor_files.write_state_dict(state, folder / f"checkpoint{suffix}", metadata)
    known = Shapes("train", 1).categories

    def read(file: Path) -> None:
        state = tensor_files.read_state_dict(file)
        assert all(isinstance(array, np.ndarray) for array in state.values())
        options = layouts.model_options_of(state)
        layouts.from_state_dict(state, build_model(tiny_config(**{**TINY, **options}).model), str(file))
        Predictor.from_pretrained(file, categories=known)

    return Reader(sorted(folder.iterdir()), mutate_safetensors if suffix != ".pth" else mutate_bytes, read)


def runs(folder: Path, what: str) -> Reader:
    """A workdir: the files of its checkpoint, or its JSON files."""
    from tiny import small_run

    from detr_jax.training.loop import train

    config = small_run()
    config.stage, config.steps, config.eval.threshold = "masks", 2, 0.0
    train(config, folder)
    if what == "checkpoint":
        newest = folder / "checkpoints" / "2"
        files = sorted(file for file in newest.rglob("*") if file.is_file())
        _, trained = load_run(folder, config.model)

        def read_checkpoint(file: Path) -> None:
            _, params = load_run(folder, config.model)
            jax.tree.map(np.testing.assert_array_equal, params, trained)  # right, or refused

        return Reader(files, mutate_bytes, read_checkpoint)
    if what == "metrics":

        def read_metrics(file: Path) -> None:
            reporter = Reporter(folder)
            reporter.drop_records_after(2)
            reporter.draw_curves()

        return Reader([folder / "metrics.jsonl"], mutate_lines, read_metrics)
    if what == "best":
        return Reader(
            [folder / "best" / "evaluation.json"], mutate_json_text, lambda file: BestCheckpoint(folder, 2, 9)
        )

    def read_description(file: Path) -> None:
        stored = stored_with(folder)
        validate(parse_config(stored["config"]))
        Predictor.from_pretrained(folder)

    return Reader([folder / "config.json", folder / "categories.json"], mutate_json_text, read_description)


def command_lines(folder: Path) -> Reader:
    """Arguments of `detr-jax`, one a line."""
    export(folder / "pictures", 1, "train", 64, 0)
    lines = folder / "lines"
    lines.mkdir()
    for number, arguments in enumerate(
        [
            ["check", f"{folder}/pictures"],
            ["shapes", f"{folder}/more", "--count=1", "--image_size=64", "--seed=1"],
            ["export", f"{folder}/none", f"{folder}/none.safetensors", "--dtype=float16"],
            ["predict", f"{folder}/none", "--weights=shapes-panoptic", f"--output={folder}/out"],
            [
                "predict",
                f"{folder}/pictures",
                "--weights=none.pth",
                f"--output={folder}/out",
                "--threshold=0.5",
            ],
        ]
    ):
        (lines / f"{number}").write_text("\x1f".join(arguments))

    def mutate(data: bytes, others: Sequence[bytes], choose: random.Random) -> bytes:
        return "\x1f".join(mutate_arguments(data.decode().split("\x1f"), choose)).encode()

    def read(file: Path) -> None:
        shutil.rmtree(folder / "more", ignore_errors=True)
        try:
            command_line.main(file.read_text().split("\x1f"))
        except SystemExit as end:
            if end.code not in (0, None):
                raise UserError(str(end.code)) from end

    return Reader(sorted(lines.iterdir()), mutate, read)


READERS: dict[str, Callable[[Path], Reader]] = {
    **{f"image_{kind}": lambda folder, kind=kind: images(folder, kind)
       for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")},
    "panoptic_json": lambda folder: annotations(folder, "json"),
    "panoptic_png": lambda folder: annotations(folder, "panoptic_"),
    "panoptic_image": lambda folder: annotations(folder, ""),
    "result_files": result_files,
    "categories": category_lists,
    "config": configs,
    "safetensors": lambda folder: checkpoint_files(folder, ".safetensors"),
    "pth": lambda folder: checkpoint_files(folder, ".pth"),
    "orbax": lambda folder: runs(folder, "checkpoint"),
    "description": lambda folder: runs(folder, "description"),
    "metrics": lambda folder: runs(folder, "metrics"),
    "best": lambda folder: runs(folder, "best"),
    "arguments": command_lines,
}  # fmt: skip
