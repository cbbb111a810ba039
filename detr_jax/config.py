"""Every config field: its default, the values it accepts, and its meaning.

The experiments in `configs/` start from these defaults: the panoptic ResNet-50 model on COCO, as published.
Equations are numbered as in the paper on panoptic segmentation, see docs/architecture.md.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from detr_jax.config_rules import (
    Field,
    address,
    any_text,
    at_least,
    below_one,
    between,
    boolean,
    contradictions,
    even,
    interval,
    lengths,
    no_such_field,
    non_negative,
    one_of,
    parse_json,
    positive,
    scales,
    segments,
    shapes,
    shortened,
    some_of,
    some_text,
)
from detr_jax.errors import UserError

# fmt: off
FIELDS: dict[str, Field] = {
    "seed": Field(0, at_least(0), "random seed of initial weights, dropout and the order of images"),
    "stage": Field("joint", one_of("boxes", "masks", "joint"),
        "parameters to train: 'boxes', all but the mask head; 'masks', the mask head; 'joint', all"),
    "init_from": Field("", any_text,
        "checkpoint to start from: a file, the workdir of a run, or a name, see detr_jax.available()"),
    "init_backbone_from": Field("", any_text,
        "backbone to start from: an ImageNet ResNet (resnet50, resnet101, or a file), or a DETR"),
    "batch_size": Field(16, at_least(1), "images per training step, over all devices of all hosts"),
    "accumulate_steps": Field(1, at_least(1),
        "parts that a batch is divided into, computed one after another: less memory, the same update"),
    "epochs": Field(1.0, positive, "length of the training in passes over the data"),
    "steps": Field(0, at_least(0), "length of the training in steps; 0: as given by `epochs`"),
    "pair_lengths": Field((8, 16, 32, 64, 100), lengths,
        "static numbers of (image, query) pairs that the mask head is compiled for, per image"),

    "model.masks": Field(True, boolean, "whether the model has a mask head"),
    "model.num_classes": Field(0, at_least(0),
        "number of classes, whose indices are category ids; 0: that of the checkpoint if its classes are "
        "the data's, else the largest id plus one (COCO: 250)"),
    "model.num_queries": Field(100, at_least(1), "number of object queries"),
    "model.resnet_depth": Field(50, one_of(18, 34, 50, 101), "layers of the ResNet"),
    "model.resnet_width": Field(64, at_least(1), "channels of the ResNet's stem"),
    "model.norm": Field("frozen_batch", one_of("frozen_batch", "group"),
        "normalisation of the backbone; 'group' to train a backbone from scratch"),
    "model.dilation": Field(False, boolean, "whether C5 is dilated to stride 16 (DC5) instead of 32"),
    "model.position": Field("sine", one_of("sine", "learned"), "position encoding"),
    "model.hidden_dim": Field(256, even, "features of the transformer"),
    "model.num_heads": Field(8, at_least(1), "attention heads"),
    "model.num_encoder_layers": Field(6, at_least(0), "encoder layers"),
    "model.num_decoder_layers": Field(6, at_least(1), "decoder layers"),
    "model.feedforward_dim": Field(2048, at_least(1), "hidden features of the feed-forward layers"),
    "model.dropout": Field(0.1, below_one, "dropout probability of the transformer"),
    "model.dtype": Field("float32", one_of("float32", "bfloat16"),
        "dtype of the computation; parameters and losses are float32"),
    "model.remat": Field(False, boolean, "whether training recomputes activations: less memory, more time"),
    "model.pyramid": Field(True, boolean, "whether the mask head adds the backbone's C2 to C4, as in an FPN"),
    "model.attention_gain": Field(1.0, positive,
        "factor on the mask head's initial weights for attention maps"),

    # The lambdas of Eqs. 4, 8 and 14, by default as in the original code.
    "loss.cls": Field(1.0, non_negative, "weight of the class losses"),
    "loss.count": Field(0.0, non_negative, "weight of the counting term, which has no gradient"),
    "loss.box": Field(1.0, non_negative, "weight of both box losses"),
    "loss.iou": Field(2.0, non_negative, "weight of the GIoU loss among the box losses"),
    "loss.l1": Field(5.0, non_negative, "weight of the L1 loss among the box losses"),
    "loss.seg": Field(1.0, non_negative, "weight of both mask losses"),
    "loss.dice": Field(1.0, non_negative, "weight of the dice loss among the mask losses"),
    "loss.focal": Field(1.0, non_negative, "weight of the focal loss among the mask losses"),
    "loss.no_object": Field(0.1, non_negative, "weight of queries without a target in the cross-entropy"),
    "loss.auxiliary": Field(True, boolean, "whether every decoder layer has class and box losses"),
    # On a subset of the targets and pixels, mask losses take less time and are the same up to noise.
    "loss.mask_targets": Field(0, at_least(0),
        "maximum number of mask targets per image, resampled every step; 0: all"),
    "loss.mask_pixels": Field(1, at_least(1),
        "stride of the rows and columns that mask losses are computed on"),

    # Eq. 6. A frozen detector was trained with these weights, so they are separate from those of the loss.
    "matching.method": Field("scipy", one_of("scipy", "optax"),
        "solver of the assignment: 'scipy' on the host, 'optax' on the device"),
    "matching.cls": Field(1.0, non_negative, "weight of the class cost"),
    "matching.l1": Field(5.0, non_negative, "weight of the L1 cost of boxes"),
    "matching.iou": Field(2.0, non_negative, "weight of the GIoU cost of boxes"),

    "optim.learning_rate": Field(1e-4, positive, "learning rate of all but the backbone"),
    "optim.learning_rate_backbone": Field(1e-5, non_negative, "learning rate of the backbone; 0: frozen"),
    "optim.weight_decay": Field(1e-4, non_negative, "weight decay of AdamW"),
    "optim.b2": Field(0.999, below_one, "decay of AdamW's second moment"),
    "optim.clip_norm": Field(0.1, positive, "maximum global norm of the gradient"),
    "optim.ema": Field(0.0, below_one,
        "decay of a moving average of the trained parameters, kept beside them; 0: none"),
    "optim.skip_nonfinite": Field(False, boolean,
        "whether a step with a loss or gradient that is not finite is skipped and counted, or ends the run"),
    "optim.schedule": Field("step", one_of("step", "cosine", "constant"),
        "schedule of the learning rates; 'step': divided by 10 at `drop_at`"),
    "optim.drop_at": Field(2.0 / 3.0, between(0, 1),
        "fraction of the training after which 'step' lowers the rates"),
    "optim.warmup_steps": Field(0, at_least(0), "steps of linear warm-up"),

    "data.source": Field("coco", one_of("coco", "tfds", "shapes"),
        "dataset: a folder in COCO's panoptic format, TFDS, or generated pictures"),
    "data.root": Field("", any_text, "folder of the dataset; for TFDS, its data_dir"),
    "data.instances": Field("", any_text,
        "COCO instances file of the evaluation split, whose objects AP is computed from; '': the segments"),
    "data.train_split": Field("train2017", some_text, "name of the training split"),
    "data.eval_split": Field("val2017", some_text, "name of the evaluation split"),
    "data.train_count": Field(0, at_least(0), "number of generated training pictures"),
    "data.eval_count": Field(0, at_least(0), "number of generated evaluation pictures"),
    "data.train_shapes": Field(
        ((544, 736), (640, 864), (704, 960), (768, 608), (768, 1024), (800, 1216), (864, 736), (1024, 800),
         (1216, 800), (1344, 1344)), shapes,
        "static shapes (height, width) that training images are padded to, in pixels; one program each"),
    "data.eval_shapes": Field(
        ((800, 1088), (1088, 800), (800, 1344), (1344, 800)), shapes,
        "static shapes (height, width) of images in evaluation and prediction; one program each"),
    "data.eval_scale": Field(800, at_least(1), "shorter side of evaluation images in pixels"),
    "data.train_scales": Field(tuple(range(480, 801, 32)), scales,
        "shorter sides that training images are resized to, in pixels; empty: no resize"),
    "data.max_size": Field(1333, at_least(1), "maximum longer side of resized images in pixels"),
    "data.crop_probability": Field(0.5, between(0, 1), "probability of a random crop"),
    "data.crop_scales": Field((400, 500, 600), scales,
        "shorter sides before a crop, in pixels; empty: no resize"),
    "data.crop_range": Field((384, 600), interval, "smallest and largest side of a crop in pixels"),
    "data.flip": Field(True, boolean, "whether training images are mirrored with probability 0.5"),
    "data.max_targets": Field(100, segments, "maximum number of segments per image; the largest are kept"),
    "data.crowd": Field("keep", one_of("keep", "drop"),
        "crowd segments in training; 'keep': targets, as in the original panoptic reader; 'drop': void"),
    "data.orientation": Field("upright", one_of("upright", "stored"),
        "orientation of images; 'upright': rotated according to EXIF; 'stored': as stored, if annotated so"),
    "data.max_pixels": Field(64_000_000, at_least(1),
        "maximum width times height of an image file; larger ones are refused before they are decoded"),
    "data.threads": Field(8, at_least(0), "threads that load batches; 0: load on demand"),

    "eval.every_epochs": Field(1.0, positive, "epochs between evaluations"),
    "eval.every_steps": Field(0, at_least(0), "steps between evaluations; 0: as given by `every_epochs`"),
    "eval.part_count": Field(0, at_least(0),
        "evenly spaced images that evaluations while training use, and that choose `best/`; 0: all. "
        "The last evaluation uses all images, too"),
    "eval.batch_size": Field(8, at_least(1), "images per evaluation batch, over all devices of all hosts"),
    "eval.averaged": Field(True, boolean,
        "whether the averaged parameters of a run with `optim.ema` are evaluated, predict, and start other "
        "runs, or those of the last step"),
    "eval.threshold": Field(0.85, between(0, 1), "class probability above which a query becomes a segment"),
    "eval.merge_stuff": Field("first", one_of("first", "always"),
        "rounds of fusion that merge segments of one stuff class: 'first', as in the original, or all"),
    "eval.duplicate_iou": Field(1.0, between(0, 1),
        "mask IoU above which the lower-scoring query is dropped; 1: none, as in the original"),
    "eval.metrics": Field(("pq", "boxes", "masks"), some_of("pq", "boxes", "masks"),
        "scores: 'pq', 'boxes' (box AP), 'masks' (mask AP), as far as the model has them; evaluations while "
        "training skip 'masks', which needs the masks of all queries"),
    "eval.backend": Field("stream", one_of("stream", "hotcoco", "panopticapi"),
        "implementation of PQ: this project's, hotcoco's or the official one, with equal results"),
    "eval.pictures": Field(8, at_least(0), "images drawn beside their ground truth in the last evaluation"),

    "checkpoint.every_steps": Field(1000, at_least(1), "steps between checkpoints"),
    "checkpoint.keep": Field(2, at_least(1), "newest checkpoints to keep; the best one is in `best/`"),
    "checkpoint.fallback": Field(False, boolean,
        "whether a run whose newest checkpoint is damaged resumes from the newest one that is not"),

    # Several processes train one model, on one host or many. Each is started with the same command.
    "distributed.coordinator": Field("", address,
        "HOST:PORT of process 0; 'auto': from Slurm, Open MPI, Kubernetes or a cloud TPU; '': one process"),
    "distributed.processes": Field(1, at_least(1), "number of processes"),
    "distributed.process": Field(0, at_least(0), "index of this process"),

    "cpu_devices": Field(1, at_least(1), "maximum number of devices that a CPU is divided into"),
    "log_every_steps": Field(50, at_least(1), "steps between logged metrics"),
    "profile": Field(0, at_least(0), "training steps to trace into the workdir, for TensorBoard or Perfetto"),
}
# fmt: on


def default_config() -> ConfigDict:
    """The default of every field, by section."""
    config = ConfigDict()
    for path, field in FIELDS.items():
        section, _, key = path.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict()
        (config[section] if section else config)[key] = field.default
    return config


def parse_config(stored: str) -> ConfigDict:
    """Reads a config that a run stored as JSON, in its workdir or in an exported checkpoint.

    Args:
      stored: JSON text.

    Returns:
      The config; fields that `stored` lacks have their defaults.

    Raises:
      UserError: The text is not JSON, has unknown fields, or has a value of the wrong type.
    """

    def tuples(value: Any) -> Any:  # JSON has only lists
        if isinstance(value, dict):
            return {key: tuples(entry) for key, entry in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    config = default_config()
    try:
        config.update(tuples(parse_json(stored, "it")))
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"cannot read the stored config: {shortened(str(error))}") from error
    if problems := list(_unknown_fields(config)):
        raise UserError("cannot read the stored config: " + shortened("\n".join(problems), 2000))
    return config


def apply_variants(
    config: ConfigDict, names: str, variants: Mapping[str, Callable[[ConfigDict], None]]
) -> ConfigDict:
    """Applies the variants that follow the colon in `--config=configs/file.py:a,b`, in order.

    Args:
      config: Config to change in place.
      names: Names of the variants, separated by commas; may be empty.
      variants: Functions that change a config in place, by name.

    Returns:
      `config`.

    Raises:
      UserError: A variant does not exist.
    """
    for variant in filter(None, names.split(",")):
        if variant not in variants:
            raise UserError(f"no config variant {variant!r}: available are {', '.join(variants)}")
        variants[variant](config)
    return config


def validate(config: ConfigDict) -> None:
    """Checks the value of every field, then the constraints between fields.

    Raises:
      UserError: A field is unknown, missing or invalid. The message has one line per problem.
    """
    values = dict(_flatten(config))
    problems = list(_unknown_fields(config))
    problems += [f"the config lacks the field {path!r}" for path in FIELDS if path not in values]
    problems += [
        f"{path} is {shortened(repr(values[path]))}: must be {field.rule.allowed}"
        for path, field in FIELDS.items()
        if path in values and not field.rule.accepts(values[path])
    ]
    problems = problems or list(contradictions(config))
    if problems:
        raise UserError("\n".join(problems))


def describe_fields(config: ConfigDict) -> str:
    """Lists the flag of every field with its value, its meaning and the allowed values, for `--help`."""
    values = dict(_flatten(config))
    lines = []
    for path, field in FIELDS.items():
        value = values.get(path, field.default)
        changed = "" if value == field.default else f"  (default: {field.default!r})"
        lines.append(f"  --config.{path}={value!r}{changed}")
        lines.append(f"      {field.description} ({field.rule.allowed})")
    return "\n".join(lines)


def unknown_field(path: str) -> str:
    """The error message for a field that does not exist, see `no_such_field`."""
    return no_such_field(path, list(FIELDS))


def _flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _unknown_fields(config: ConfigDict) -> Iterator[str]:
    return (unknown_field(path) for path, _ in _flatten(config) if path not in FIELDS)
