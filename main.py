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

from detr_jax.config import FIELDS, default_config, describe_fields, parse_config, unknown_field, validate
from detr_jax.errors import MissingFileError, UserError
from detr_jax.runtime.memory import configure_heap
from detr_jax.runtime.startup import divide_cpu, enable_compilation_cache, exit_with_message

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, pictures, predictions.")
_MODES = ["train", "eval", "predict"]
flags.DEFINE_enum("mode", "train", _MODES, "Task: training, evaluation or prediction.")
flags.DEFINE_string("categories", None, "JSON file that names the classes of the weights.")
flags.DEFINE_multi_string("images", [], "Image files or folders of images, for --mode=predict.")

HELP = """\
usage: python main.py --config=FILE[:VARIANTS] --workdir=FOLDER [--mode=MODE] [--config.FIELD=VALUE ...]

  --config=FILE[:VARIANTS]  config file, as in configs/, and optionally its variants, separated by commas;
                            eval and predict need none in the folder of a run, whose own config is used then
  --config.FIELD=VALUE      overrides a field of the config
  --workdir=FOLDER          folder of the run: checkpoints, metrics, pictures, predictions
  --mode=train              trains and evaluates; resumes the run if the folder has a checkpoint (default)
  --mode=eval               evaluates the newest checkpoint in the folder
  --mode=predict IMAGES     segments image files or folders of images with the same weights
  --categories=FILE         for eval and predict with weights that do not name their classes: a JSON file that
                            does, a list of categories or an object with "categories"

--config.init_from=WEIGHTS, a file, a published or packaged model, a hub repository or the folder of another
run, is what a training starts from. In a folder without a checkpoint, eval and predict use it if it is on the
command line. Fields of config.model that have their defaults follow the weights.

examples:
  python main.py --config=configs/shapes.py --workdir=runs/shapes
  python main.py --config=configs/shapes.py:boxes --workdir=runs/boxes --config.optim.learning_rate=1e-3
  python main.py --mode=eval --workdir=runs/shapes
  python main.py --mode=predict --workdir=runs/shapes pictures/
  python main.py --config=configs/panoptic.py --mode=eval --workdir=runs/published --config.data.root=COCO \\
      --config.init_from=detr-r50-panoptic

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
        from detr_jax.runtime.reporting import log

        enable_compilation_cache()
        if not config.distributed.coordinator:  # several processes have one CPU device each
            part = config.batch_size // config.accumulate_steps
            divide_cpu(config.cpu_devices, (part, config.eval.batch_size))
        parallel.connect(config.distributed)
        log("loading the program")  # which takes seconds
        configure_heap(one=config.cpu_devices == 1)  # a CPU is divided for small models
        if FLAGS.mode == "train":
            from detr_jax.training.loop import train

            train(config, workdir)
            return
        _check_weights(config, workdir)
        if FLAGS.mode == "eval":
            from detr_jax.evaluation.evaluate import evaluate

            evaluate(config, workdir, FLAGS.categories)
        else:
            from detr_jax.inference.predict import predict

            predict(config, workdir, images, FLAGS.categories)


def _check_weights(config: ConfigDict, workdir: str) -> None:
    """Checks that the weights to evaluate or to predict with are those that the user means.

    The `init_from` of a config file is what its training starts from: without a checkpoint in the workdir, it
    must not pass for the trained model.

    Raises:
      MissingFileError: The workdir has no checkpoint, and the command line no `init_from`.
    """
    from detr_jax.weights.runs import checkpoint_folder, latest_step

    chosen = "init_from" in config_flags.get_override_values(FLAGS["config"])
    if latest_step(workdir) is None and not (chosen and config.init_from):
        start = f" (this config trains from {config.init_from!r})" if config.init_from else ""
        raise MissingFileError(
            f"no checkpoint in {checkpoint_folder(workdir)}: train a model there first, set --workdir to the "
            f"folder of a run, or name other weights with --config.init_from=WEIGHTS{start}"
        )


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
        _check_mode(_value_of("mode", rest) or "train")
        return _parse(load_config(source) if source else _config_of_run(rest), rest)


def _check_mode(mode: str) -> None:
    """Checks the mode before the config: without --config, the mode decides where the config comes from.

    Raises:
      UserError: There is no such mode.
    """
    if mode not in _MODES:
        near = [known for known in _MODES if mode.startswith(known[:4])]
        hint = f"; did you mean --mode={near[0]}?" if near else ""
        raise UserError(f"flag --mode={mode}: value should be one of <{'|'.join(_MODES)}>{hint}")


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


def _config_of_run(arguments: Sequence[str]) -> ConfigDict:
    """The config that the run in --workdir stored, for --mode=eval and --mode=predict without --config.

    It runs as one process, however many trained the model.

    Raises:
      UserError: There is no such config, it cannot be read, or the mode needs another.
    """
    workdir = _value_of("workdir", arguments)
    if not workdir or _value_of("mode", arguments) not in ("eval", "predict"):
        raise UserError("no config: set --config=FILE, for example --config=configs/shapes.py")
    file = Path(workdir) / "config.json"
    if not file.is_file():
        raise MissingFileError(
            f"no config: set --config=FILE, or set --workdir to the folder of a run; there is no {file}"
        )
    try:
        config = parse_config(file.read_text())
    except (OSError, UnicodeDecodeError, UserError) as error:
        reason = "; ".join(str(error).splitlines())
        raise UserError(f"{file} cannot be used, set --config=FILE: {reason}") from error
    config.distributed = default_config().distributed
    return config


def _value_of(name: str, arguments: Sequence[str]) -> str:
    """The last value of a flag, before the flags are parsed; empty if it is not set."""
    value = ""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, separator, text = argument.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            value = text if separator else following
    return value


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
    except flags.IllegalFlagValueError as error:
        field = re.match(r"flag --config\.([\w.]+)=", str(error))
        if not field or field[1] not in FIELDS:
            raise UserError(f"{error}. See python main.py --help") from error
        value = _value_of(f"config.{field[1]}", arguments)
        raise UserError(f"{field[1]} is {value!r}: must be {FIELDS[field[1]].rule.allowed}") from error
    except flags.Error as error:
        raise UserError(f"{error}. See python main.py --help") from error
    if FLAGS.workdir is None:
        raise UserError("no workdir: set --workdir=FOLDER, the folder of the run")
    images = [*FLAGS.images, *positional[1:]]
    if images and FLAGS.mode != "predict":
        raise UserError(f"unexpected argument {images[0]!r}: only --mode=predict takes images")
    if FLAGS.categories is not None and FLAGS.mode == "train":
        raise UserError("unexpected --categories: a training takes the categories from its data")
    return positional


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
