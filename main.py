"""Trains, evaluates or runs a panoptic DETR.

python main.py --config=configs/shapes.py --workdir=runs/shapes
"""

import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from detr_jax.config import FIELDS, describe_fields, unknown_field, validate
from detr_jax.errors import MissingFileError, UserError
from detr_jax.runtime.startup import enable_compilation_cache, exit_with_message

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, pictures, predictions.")
flags.DEFINE_enum("mode", "train", ["train", "eval", "predict"], "Task: training, evaluation or prediction.")
flags.DEFINE_multi_string("images", [], "Image files or folders of images, for --mode=predict.")

HELP = """\
usage: python main.py --config=FILE[:VARIANTS] --workdir=FOLDER [--mode=MODE] [--config.FIELD=VALUE ...]

  --config=FILE[:VARIANTS]  config file, as in configs/, and optionally its variants, separated by commas
  --config.FIELD=VALUE      overrides a field of the config
  --workdir=FOLDER          folder of the run: checkpoints, metrics, pictures, predictions
  --mode=train              trains and evaluates; resumes the run if the folder has a checkpoint (default)
  --mode=eval               evaluates the newest checkpoint in the folder, or else --config.init_from
  --mode=predict IMAGES     segments image files or folders of images with the same weights

examples:
  python main.py --config=configs/shapes.py --workdir=runs/shapes
  python main.py --config=configs/shapes.py:boxes --workdir=runs/boxes --config.optim.learning_rate=1e-3
  python main.py --config=configs/shapes.py --workdir=runs/shapes --mode=eval
  python main.py --config=configs/shapes.py --workdir=runs/shapes --mode=predict pictures/

Ctrl-C or SIGTERM ends a training after it has saved the current step, with status 0; a second one ends it at
once, with status 130. After an error, the status is 1.

python main.py --config=FILE --help lists all fields of a config with their values and meanings."""


def main(arguments: list[str]) -> None:
    """Runs the chosen mode.

    Args:
      arguments: The name of the program and the positional arguments, which are images.
    """
    config, workdir, images = FLAGS.config, FLAGS.workdir, [*FLAGS.images, *arguments[1:]]
    logging.set_verbosity(logging.WARNING)  # Orbax logs every file that it writes
    with exit_with_message():
        validate(config)
        # Imported here, so that mistakes on the command line are reported within a second.
        from detr_jax.runtime import parallel

        enable_compilation_cache()
        parallel.connect(config.distributed)
        if FLAGS.mode == "train":
            from detr_jax.training.loop import train

            train(config, workdir)
        elif FLAGS.mode == "eval":
            from detr_jax.evaluation.evaluate import evaluate

            evaluate(config, workdir)
        else:
            from detr_jax.inference.predict import predict

            predict(config, workdir, images)


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses the command line, prints the help, or exits with a message that names the mistake.

    Args:
      arguments: The command line, including the name of the program.

    Returns:
      The name of the program and the positional arguments.
    """
    with exit_with_message():
        source, rest = _split_config(arguments)
        if any(re.fullmatch("--?(h|help|helpshort|helpfull)", argument) for argument in rest[1:]):
            print(f"Fields of {source}:\n\n{describe_fields(load_config(source))}" if source else HELP)
            sys.exit(0)
        if not source:
            raise UserError("no config: set --config=FILE, for example --config=configs/shapes.py")
        return _parse(load_config(source), rest)


def load_config(source: str) -> ConfigDict:
    """The config that a file's `get_config` returns. A bug in the file keeps its traceback.

    Args:
      source: Path of the file, optionally followed by a colon and variants.

    Raises:
      MissingFileError: There is no such file.
      UserError: The file is not a Python file, `get_config` is missing or does not return a config, or there
        is no such variant.
    """
    path, _, variants = source.partition(":")
    if not Path(path).is_file():
        raise MissingFileError(f"no config file {path!r}")
    spec = importlib.util.spec_from_file_location("config", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} does not define get_config(variants), which returns the config")
    config = module.get_config(variants) if variants else module.get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config of {path} returned {config!r}: must return a ConfigDict")
    return config


def _split_config(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The value of --config, and the other arguments."""
    source, rest, position = "", list(arguments), 1
    while position < len(rest):
        flag, separator, value = rest[position].partition("=")
        if flag in ("--config", "-config"):
            source = value if separator else "".join(rest[position + 1 : position + 2])
            del rest[position : position + (1 if separator else 2)]
        else:
            position += 1
    return source, rest


def _parse(config: ConfigDict, arguments: list[str]) -> list[str]:
    """Applies the flags to the config. Returns the positional arguments, after the name of the program."""
    for argument in arguments[1:]:
        field = re.match(r"--?(?:no)?config\.([\w.]+)", argument)
        if field and field[1] not in FIELDS:
            raise UserError(unknown_field(field[1]))
    try:
        config_flags.DEFINE_config_dict("config", config, lock_config=True, sys_argv=arguments)
        positional = FLAGS(arguments)
    except flags.Error as error:
        raise UserError(f"{error}. See python main.py --help") from error
    if FLAGS.workdir is None:
        raise UserError("no workdir: set --workdir=FOLDER, the folder of the run")
    images = [*FLAGS.images, *positional[1:]]
    if images and FLAGS.mode != "predict":
        raise UserError(f"unexpected argument {images[0]!r}: only --mode=predict takes images")
    return positional


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
