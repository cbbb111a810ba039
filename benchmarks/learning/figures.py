"""Draws the figures of docs/results.md and of the README.

python benchmarks/learning/figures.py curves                   # PQ against time, from stages_*.json
python benchmarks/learning/figures.py film --workdir=RUN       # masks forming, one column per checkpoint
python benchmarks/learning/figures.py failures                 # pictures with the lowest PQ
python benchmarks/learning/figures.py examples                 # two held-out pictures

Failures and examples are those of the packaged model. The film needs a short run that keeps all its
checkpoints, such as --config.steps=200 --config.checkpoint.keep=10 --config.checkpoint.every_steps=40.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from stages import TABLES

from detr_jax import Predictor
from detr_jax.config import parse_config
from detr_jax.data.example import Example
from detr_jax.data.panoptic import from_example
from detr_jax.data.shapes import Shapes, shapes_categories
from detr_jax.evaluation.panoptic_quality import PanopticQuality
from detr_jax.models.detr import build_model
from detr_jax.visualize import overlay, side_by_side
from detr_jax.weights.runs import checkpoint_folder, load_params

HERE = Path(__file__).parent
IMAGES = HERE.parents[1] / "docs" / "images"
PACKAGED = "shapes-panoptic"
SCALE = 3  # pictures of 128x128 are enlarged in the film


def load_predictor(workdir: Path, step: int | None = None) -> Predictor:
    """Loads a run of configs/shapes.py.

    Args:
      workdir: Directory of the run.
      step: Step of the checkpoint; by default the newest.
    """
    config = parse_config((workdir / "config.json").read_text())
    return Predictor(build_model(config.model), load_params(workdir, step), shapes_categories(), config)


def enlarge_image(example: Example) -> np.ndarray:
    """Repeats rows and columns of the image."""
    return example.image.repeat(SCALE, 0).repeat(SCALE, 1)


def draw_curves() -> None:
    """PQ against minutes of training: mean and range over seeds."""
    files = sorted(HERE.glob("stages_*.json"))
    rows = json.loads(files[-1].read_text())["rows"]
    figure = Figure(figsize=(11, 4), dpi=130, layout="constrained")
    for column, group in enumerate(("All", "Things", "Stuff")):
        axes = figure.add_subplot(1, 3, column + 1)
        for name in TABLES["stages"]:
            runs = [row["curve"] for row in rows if row["row"] == name]
            minutes = np.mean([[point["seconds"] / 60 for point in run] for run in runs], 0)
            scores = 100 * np.array([[point[f"val_pq_{group.lower()}"] for point in run] for run in runs])
            axes.plot(minutes, scores.mean(0), marker="o", markersize=3, label=name)
            axes.fill_between(minutes, scores.min(0), scores.max(0), alpha=0.2)
        axes.set(title=group, xlabel="minutes of training", ylim=(0, 100))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("PQ (%)")
    figure.axes[0].legend(loc="upper left", fontsize=8)
    figure.savefig(IMAGES / "stages.png")


def draw_film(workdir: Path, count: int = 3) -> None:
    """Overlays of the first validation pictures: one row per picture, one column per checkpoint.

    Args:
      workdir: Directory of the run.
      count: Number of pictures.
    """
    folder = checkpoint_folder(workdir)
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    source = Shapes("validation", count)
    examples = [source[index] for index in range(count)]
    columns = [("image", [enlarge_image(example) for example in examples])]
    for step in steps:
        predictor = load_predictor(workdir, step)
        drawn = [overlay(example.image, predictor(example.image), scale=SCALE) for example in examples]
        columns.append((f"step {step}", drawn))
    side, gap, caption = columns[0][1][0].shape[0], 6, 24
    strip = Image.new("RGB", (len(columns) * (side + gap), caption + count * (side + gap)), "white")
    draw = ImageDraw.Draw(strip)
    for column, (title, pictures) in enumerate(columns):
        left = column * (side + gap)
        draw.text((left + side / 2, caption / 2), title, "#222222", ImageFont.load_default(14), anchor="mm")
        for row, picture in enumerate(pictures):
            strip.paste(Image.fromarray(picture), (left, caption + row * (side + gap)))
    strip.save(IMAGES / "film.png")


def draw_failures(count: int = 3, among: int = 200) -> None:
    """Image, ground truth and prediction of the pictures with the lowest PQ.

    Args:
      count: Number of pictures to draw.
      among: Number of validation pictures to choose from.
    """
    source, predictor = Shapes("validation", among), Predictor.from_pretrained(PACKAGED)
    scored = []
    for example in (source[index] for index in range(among)):
        truth, prediction = from_example(example, source.categories), predictor(example.image)
        quality = PanopticQuality(source.categories)
        quality.update(truth, prediction, example.image_id)
        scored.append((quality.result()["All"]["pq"], example.image_id))
    worst = [source[index] for _, index in sorted(scored)[:count]]
    draw_panels(predictor, worst, IMAGES / "failures.png")


def draw_examples(indices: tuple[int, ...] = (5, 7)) -> None:
    """Image, ground truth and prediction of some validation pictures.

    Args:
      indices: Indices of the pictures in the validation split.
    """
    source = Shapes("validation", max(indices) + 1)
    draw_panels(
        Predictor.from_pretrained(PACKAGED), [source[index] for index in indices], IMAGES / "shapes.png"
    )


def draw_panels(predictor: Predictor, examples: list[Example], path: Path) -> None:
    """Writes one row per example: image, ground truth, prediction."""
    panels = []
    for example in examples:
        truth, prediction = from_example(example, predictor.categories), predictor(example.image)
        panels.append(side_by_side(example.image, truth, prediction, scale=SCALE))
    Image.fromarray(np.concatenate(panels)).save(path)


def main() -> None:
    """Draws one of the figures into docs/images."""
    drawn = {"curves": draw_curves, "failures": draw_failures, "examples": draw_examples}
    parser = argparse.ArgumentParser()
    parser.add_argument("figure", choices=("film", *drawn))
    parser.add_argument("--workdir", type=Path, help="directory of a run of configs/shapes.py")
    arguments = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    if arguments.figure != "film":
        drawn[arguments.figure]()
    elif arguments.workdir is None:
        parser.error("film needs --workdir=RUN")
    else:
        draw_film(arguments.workdir)


if __name__ == "__main__":
    main()
