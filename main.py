"""Trains, evaluates or runs a panoptic DETR.

python main.py --config=configs/shapes.py --workdir=runs/shapes
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "The experiment, a file under configs/.", lock_config=True)
flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, pictures, predictions.")
flags.DEFINE_enum("mode", "train", ["train", "eval", "predict"], "What to do.")
flags.DEFINE_multi_string("images", [], "For --mode=predict: image files, or folders of them.")
flags.mark_flags_as_required(["config", "workdir"])


def main(_: list[str]) -> None:
    """Does what the flags say."""
    logging.set_verbosity(logging.WARNING)  # Orbax tells every file it writes
    # Imported late, so that wrong flags are answered at once.
    from detr_jax.runtime import parallel
    from detr_jax.runtime.startup import enable_compilation_cache, exit_with_message

    enable_compilation_cache()
    with exit_with_message():
        parallel.connect(FLAGS.config.distributed)
        if FLAGS.mode == "train":
            from detr_jax.training.loop import train

            train(FLAGS.config, FLAGS.workdir)
        elif FLAGS.mode == "eval":
            from detr_jax.evaluation.evaluate import evaluate

            evaluate(FLAGS.config, FLAGS.workdir)
        else:
            from detr_jax.inference.predict import predict

            predict(FLAGS.config, FLAGS.workdir, FLAGS.images)


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses the command line; a config field that does not exist is named."""
    try:
        return app.parse_flags_with_usage(arguments)
    except AttributeError as error:
        changed = " ".join(argument for argument in arguments if argument.startswith("--config."))
        sys.exit(
            f"error: the config has no field {error}, see {changed}; detr_jax/config.py lists all fields"
        )


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
