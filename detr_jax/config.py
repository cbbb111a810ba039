"""Every config field and its default. The experiments under `configs/` change some of them."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict


def default_config() -> ConfigDict:
    """The panoptic ResNet-50 model on COCO, as published."""
    config = ConfigDict()
    config.seed = 0
    # What is trained: "boxes" (all but the mask head), "masks" (the mask head alone), "joint" (everything).
    config.stage = "joint"
    # Start from these weights: a .pth or .safetensors file, a hub name, or the workdir of another run.
    config.init_from = ""
    # Start the backbone from these: an ImageNet ResNet of torchvision, or the backbone of a DETR.
    config.init_backbone_from = ""
    config.batch_size = 16  # over all devices of all hosts
    # k: a batch is computed in k parts, one after the other: the same update in less memory.
    config.accumulate_steps = 1
    config.epochs = 1.0
    config.steps = 0  # 0: what the epochs make
    # Static lengths of the mask head's pair lists, per image.
    config.pair_lengths = (8, 16, 32, 64, 100)

    config.model = model = ConfigDict()
    model.masks = True
    # Class indices are category ids. 0: as many as the checkpoint has if its classes are the data's; else 250
    # for COCO, as published, and one more than the largest id for other data.
    model.num_classes = 0
    model.num_queries = 100
    model.resnet_depth = 50
    model.resnet_width = 64
    model.norm = "frozen_batch"  # or "group", to train a backbone from scratch
    model.dilation = False  # True: DC5
    model.position = "sine"  # or "learned"
    model.hidden_dim = 256
    model.num_heads = 8
    model.num_encoder_layers = 6
    model.num_decoder_layers = 6
    model.feedforward_dim = 2048
    model.dropout = 0.1
    model.dtype = "float32"  # of the computation; or "bfloat16"
    model.remat = False  # True: less memory in training, more time
    model.pyramid = True  # False: the mask head does not see the backbone's levels
    model.attention_gain = 1.0  # of the mask head's initial weights for attention maps

    # The lambdas of the paper's Eqs. 4, 8 and 14; here as in the original code.
    config.loss = loss = ConfigDict()
    loss.cls = 1.0
    loss.count = 0.0
    loss.box = 1.0
    loss.iou = 2.0
    loss.l1 = 5.0
    loss.seg = 1.0
    loss.dice = 1.0
    loss.focal = 1.0
    loss.no_object = 0.1
    loss.auxiliary = True  # class and box losses on every decoder layer
    # Masks cost most of a step; on a part of the targets and pixels the losses are the same but for noise.
    loss.mask_targets = 0  # of an image at most so many, drawn anew every time; 0: all
    loss.mask_pixels = 1  # k: only every k-th row and column

    # Eq. 6. A frozen detector was trained with these, so they do not follow the lambdas of the loss.
    config.matching = matching = ConfigDict()
    matching.method = "scipy"  # on the host; or "optax", on the device
    matching.cls = 1.0
    matching.l1 = 5.0
    matching.iou = 2.0

    config.optim = optim = ConfigDict()
    optim.learning_rate = 1e-4
    optim.learning_rate_backbone = 1e-5  # 0: the backbone is frozen
    optim.weight_decay = 1e-4
    optim.b2 = 0.999  # decay of AdamW's second moment
    optim.clip_norm = 0.1
    optim.schedule = "step"  # a tenth from `drop_at` of the run on; or "cosine", "constant"
    optim.drop_at = 2.0 / 3.0
    optim.warmup_steps = 0

    config.data = data = ConfigDict()
    data.source = "coco"  # a COCO panoptic folder; or "tfds", "shapes"
    data.root = ""  # the folder; for tfds, its data_dir
    data.train_split = "train2017"
    data.eval_split = "val2017"
    data.train_count = 0  # of generated images
    data.eval_count = 0
    # Static shapes (height, width) that images are padded to.
    data.train_shapes = (
        (544, 736),
        (640, 864),
        (704, 960),
        (768, 608),
        (768, 1024),
        (800, 1216),
        (864, 736),
        (1024, 800),
        (1216, 800),
        (1344, 1344),
    )
    data.eval_shapes = (
        (800, 800),
        (800, 1088),
        (1088, 800),
        (800, 1216),
        (1216, 800),
        (800, 1344),
        (1344, 800),
    )
    data.eval_scale = 800  # shortest side, in pixels
    data.train_scales = tuple(range(480, 801, 32))
    data.max_size = 1333  # longest side
    data.crop_probability = 0.5
    data.crop_scales = (400, 500, 600)
    data.crop_range = (384, 600)
    data.flip = True
    data.max_targets = 100  # per image
    data.crowd = "keep"  # as the original panoptic reader; or "drop"
    data.threads = 8

    config.eval = evaluation = ConfigDict()
    evaluation.every_epochs = 1.0
    evaluation.batch_size = 8
    evaluation.threshold = 0.85
    evaluation.merge_stuff = "first"  # as the original; or "always"
    evaluation.duplicate_iou = 1.0  # of masks, beyond which the surer query remains; 1: both, as the original
    evaluation.backend = "stream"  # or "panopticapi", the official code
    evaluation.pictures = 8

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every_steps = 1000
    checkpoint.keep = 2  # of the newest; the one of the best evaluation is kept in the workdir's best/

    # Several processes, on one host or many, that train one model. Each is started with the same command.
    config.distributed = distributed = ConfigDict()
    # host:port of process 0; "auto": as Slurm, Open MPI, Kubernetes or a cloud TPU tells; "": one process.
    distributed.coordinator = ""
    distributed.processes = 1
    distributed.process = 0  # which of them this is

    config.log_every_steps = 50
    config.profile = 0  # writes a trace of this many steps to the workdir, for TensorBoard or Perfetto
    return config


def parse_config(text: str) -> ConfigDict:
    """The config that a run left as JSON, in its workdir or in an exported checkpoint."""

    def tuples(value: Any) -> Any:  # which JSON does not have
        if isinstance(value, dict):
            return {key: tuples(entry) for key, entry in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    config = default_config()
    config.update(tuples(json.loads(text)))
    return config


def apply_variants(
    config: ConfigDict, names: str, variants: Mapping[str, Callable[[ConfigDict], None]]
) -> ConfigDict:
    """Applies what stands after the colon of `--config=configs/file.py:a,b`.

    Raises:
      ValueError: no such variant.
    """
    for name in filter(None, names.split(",")):
        if name not in variants:
            raise ValueError(f"no config variant {name!r}: there are {', '.join(variants)}")
        variants[name](config)
    return config
