"""The figures of docs/results.md and of the README.

python benchmarks/figures.py curves                   # PQ against time, from results/stages_*.json
python benchmarks/figures.py film --workdir=RUN       # masks forming, from every checkpoint of a run
python benchmarks/figures.py failures --workdir=RUN   # the pictures with the lowest panoptic quality
python benchmarks/figures.py examples --workdir=RUN   # two held-out pictures

The film needs a run of few steps that keeps them all, such as --config.steps=200 --config.checkpoint.keep=10
--config.checkpoint.every_steps=40.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from stages import TABLES

from detr_jax import Predictor
from detr_jax.config import parse_config
from detr_jax.data.example import Example
from detr_jax.data.panoptic import PanopticSegmentation, from_example
from detr_jax.data.shapes import Shapes, shapes_categories
from detr_jax.evaluation.panoptic_quality import PanopticQuality
from detr_jax.models.detr import build_model
from detr_jax.visualize import overlay, side_by_side
from detr_jax.weights.runs import load_params

HERE = Path(__file__).parent
IMAGES = HERE.parent / "docs" / "images"
SCALE = 2  # small pictures are drawn larger


def predictor(workdir: Path, step: int | None = None) -> Predictor:
    """A run as it was at a step."""
    config = parse_config((workdir / "config.json").read_text())
    return Predictor(build_model(config.model), load_params(workdir, step), shapes_categories(), config)


def enlarged(segmentation: PanopticSegmentation) -> PanopticSegmentation:
    """At twice the size, so that names fit."""
    segment_map = segmentation.segment_map.repeat(SCALE, 0).repeat(SCALE, 1)
    return dataclasses.replace(segmentation, segment_map=segment_map)


def enlarged_image(example: Example) -> np.ndarray:
    """Likewise, of a picture."""
    return example.image.repeat(SCALE, 0).repeat(SCALE, 1)


def curves() -> None:
    """PQ against the seconds of training: mean over seeds, and their range."""
    files = sorted((HERE / "results").glob("stages_*.json"))
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


def film(workdir: Path, count: int = 3) -> None:
    """A row for each picture, a column for each checkpoint."""
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    source = Shapes("validation", count)
    examples = [source[index] for index in range(count)]
    images = [enlarged_image(example) for example in examples]
    columns = [("image", images)]
    for step in steps:
        predict = predictor(workdir, step)
        found = [enlarged(predict(example.image)) for example in examples]
        columns.append((f"step {step}", list(map(overlay, images, found))))
    side, gap, caption = columns[0][1][0].shape[0], 6, 24
    strip = Image.new("RGB", (len(columns) * (side + gap), caption + count * (side + gap)), "white")
    draw = ImageDraw.Draw(strip)
    for column, (title, pictures) in enumerate(columns):
        left = column * (side + gap)
        draw.text((left + side / 2, caption / 2), title, "#222222", ImageFont.load_default(14), anchor="mm")
        for row, picture in enumerate(pictures):
            strip.paste(Image.fromarray(picture), (left, caption + row * (side + gap)))
    strip.save(IMAGES / "film.png")


def failures(workdir: Path, count: int = 3, among: int = 200) -> None:
    """Image, ground truth and prediction of the worst pictures."""
    source, predict = Shapes("validation", among), predictor(workdir)
    scored = []
    for example in (source[index] for index in range(among)):
        truth, prediction = from_example(example, source.categories), predict(example.image)
        quality = PanopticQuality(source.categories)
        quality.update(truth, prediction, example.image_id)
        scored.append((quality.result()["All"]["pq"], example.image_id))
    draw_panels(predict, [source[index] for _, index in sorted(scored)[:count]], IMAGES / "failures.png")


def examples(workdir: Path, indices: tuple[int, ...] = (5, 7)) -> None:
    """The same of some held-out pictures."""
    source = Shapes("validation", max(indices) + 1)
    draw_panels(predictor(workdir), [source[index] for index in indices], IMAGES / "shapes.png")


def draw_panels(predict: Predictor, examples: list[Example], path: Path) -> None:
    """A row for each: image, ground truth, prediction."""
    panels = []
    for example in examples:
        truth, prediction = from_example(example, predict.categories), predict(example.image)
        panels.append(side_by_side(enlarged_image(example), enlarged(truth), enlarged(prediction)))
    Image.fromarray(np.concatenate(panels)).save(path)


def main() -> None:
    """Draws one of the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("figure", choices=("curves", "film", "failures", "examples"))
    parser.add_argument("--workdir", type=Path, help="of a run of configs/shapes.py")
    arguments = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    if arguments.figure == "curves":
        curves()
    elif arguments.workdir is None:
        parser.error(f"{arguments.figure} needs --workdir=RUN")
    else:
        {"film": film, "failures": failures, "examples": examples}[arguments.figure](arguments.workdir)


if __name__ == "__main__":
    main()
