"""How long does a user wait for a photo, from `import detr_jax` to its map?

python benchmarks/speed/first_photo.py [--other=CHECKOUT] [--model=small]

The models are the published ResNet-50 with made-up weights, of whose queries 16 survive, and the packaged
small model. Every start is a process of its own: with an empty cache folder, then with the programs that the
first start stored there. `--other` names another checkout of this project, which takes turns with this one
and is called in the same way.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
import measure
from PIL import Image

ROOT = Path(__file__).parents[2]
SURVIVORS = 16


class Work(NamedTuple):
    """What a user asks of a model.

    Attributes:
      source: Argument of `Predictor.from_pretrained`.
      threshold: Threshold of the predictor.
      first: Path of the first image.
      second: Path of another image of the same size.
    """

    source: str
    threshold: float
    first: str
    second: str


def make_small(folder: Path) -> Work:
    """Two generated pictures for the packaged model.

    Args:
      folder: Folder that the files are written to.
    """
    from detr_jax.data.shapes import Shapes

    paths = [folder / f"small{index}.png" for index in range(2)]
    for path, example in zip(paths, Shapes("validation", 2), strict=True):
        Image.fromarray(example.image).save(path)
    return Work("shapes-panoptic", 0.85, *map(str, paths))


def make_resnet50(folder: Path) -> Work:
    """A checkpoint of the ResNet-50 model and two photos of 480x640 with equally many masks.

    Args:
      folder: Folder that the files are written to.
    """
    import peer

    from detr_jax import Predictor
    from detr_jax.data.categories import coco_panoptic
    from detr_jax.weights import layouts, tensor_files

    state = layouts.to_state_dict(peer.make_params(peer.make_model()), "original")
    bias, known = state["detr.class_embed.bias"], {category.id for category in coco_panoptic()}
    bias[[label not in known for label in range(len(bias))]] = -1e4  # classes that COCO lacks
    weights = folder / "resnet50.safetensors"
    tensor_files.write_state_dict(state, weights)
    image = peer.make_image()
    paths = [folder / "photo.png", folder / "mirrored.png"]
    Image.fromarray(image).save(paths[0])
    Image.fromarray(image[:, ::-1]).save(paths[1])
    scores = [found["score"] for found in Predictor.from_pretrained(weights).detect(image, 0.0)]
    threshold = (scores[SURVIVORS - 1] + scores[SURVIVORS]) / 2
    return Work(str(weights), threshold, *map(str, paths))


MODELS = {"resnet50": make_resnet50, "small": make_small}


def run_here(work: Work) -> dict[str, Any]:
    """Runs the work in this process, which has not imported the package yet.

    Returns:
      Results of `measure.timed`: "load", until the weights are on the device; "first", from the start of the
      import to the first map; "second", of another image; and "later", of that image again.
    """
    start, cpu_start = time.perf_counter(), time.process_time()

    def since_start() -> dict[str, Any]:
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        return {"seconds": [seconds], "cpu_seconds": [cpu_seconds], "peak_gb": measure.peak_gb()}

    from detr_jax import Predictor

    predictor = Predictor.from_pretrained(work.source, threshold=work.threshold)
    load = since_start()
    predictor(work.first)
    first = since_start()
    second = measure.timed(lambda: predictor(work.second), repeats=1, warmups=0)
    later = measure.timed(lambda: predictor(work.second), repeats=5, warmups=0)
    return {"load": load, "first": first, "second": second, "later": later}


def run_start(checkout: Path, work: Work, cache: Path) -> dict[str, Any]:
    """Runs the work in a process of its own.

    Args:
      checkout: Checkout of this project whose package is imported.
      work: What to do.
      cache: The user's cache folder in that process.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION")}
    environment = kept | {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, __file__, "--alone", json.dumps(work)]
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"failed with the package in {checkout}:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_twice(checkout: Path, work: Work) -> dict[str, dict[str, Any]]:
    """One start with an empty cache of programs, and one with a filled cache.

    Args:
      checkout: Checkout of this project whose package is imported.
      work: What to do.

    Returns:
      Results of `measure.timed`, by row of the table. A checkout that stores nothing has the same first photo
      at every start.
    """
    with tempfile.TemporaryDirectory() as folder:
        cold = run_start(checkout, work, Path(folder))
        stored = any(path.is_file() for path in Path(folder).rglob("*"))
        warm = run_start(checkout, work, Path(folder)) if stored else cold
    return {
        "import and weights": warm["load"],
        "first photo, nothing stored": cold["first"],
        "first photo, programs on disk": warm["first"],
        "second photo of that size, nothing stored": cold["second"],
        "later photos of that size": warm["later"],
    }


def compare(model: str, checkouts: dict[str, Path], rounds: int) -> list[dict[str, Any]]:
    """The rows of one model, in which all checkouts take turns.

    Args:
      model: Key of `MODELS`.
      checkouts: Checkouts by the name of their side, this one first.
      rounds: Number of turns.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = MODELS[model](Path(folder))
        turns = [{side: run_twice(path, work) for side, path in checkouts.items()} for _ in range(rounds)]
    rows = []
    for name in next(iter(turns[0].values())):
        row = {side: measure.summary([turn[side][name] for turn in turns]) for side in checkouts}
        ours, *others = checkouts
        ratios = {side: measure.ratios(row[ours], row[side]) for side in others}
        rows.append({"case": f"{model}: {name}", **row, "ratios": ratios})
    return rows


def main() -> None:
    """Prints a table and writes it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--other", type=Path, help="another checkout of this project")
    parser.add_argument("--model", choices=MODELS, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(run_here(Work(*json.loads(arguments.alone)))))
        return
    checkouts = {"detr_jax": ROOT}
    if arguments.other:
        checkouts[arguments.other.resolve().name] = arguments.other.resolve()
    rows: list[dict[str, Any]] = []
    for model in arguments.model or MODELS:
        rows += compare(model, checkouts, arguments.rounds)
    print(measure.format_rows(rows, list(checkouts)))
    measure.write(__file__, rows)


if __name__ == "__main__":
    main()
