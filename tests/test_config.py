import json
import math
from pathlib import Path

import pytest

from detr_jax.config import (
    FIELDS,
    apply_variants,
    default_config,
    describe_fields,
    parse_config,
    unknown_field,
    validate,
)
from detr_jax.errors import UserError

# Invalid values of fields, by rule.
REFUSED = {
    "True or False": [1, 0, "yes", None],
    "text": [None, 1, ("a",)],
    "text that is not empty": ["", None],
    "a number above 0": [0.0, -1.0, math.inf, math.nan, None, "1"],
    "a number of at least 0": [-1e-9, math.inf, math.nan, None],
    "a number of at least 0 and below 1": [-0.1, 1.0, math.nan, None],
    "a number from 0 to 1": [-0.1, 1.1, math.nan, None, "0.5"],
    "an integer of at least 0": [-1, 1.5, True, None, "1"],
    "an integer of at least 1": [0, -1, 1.0, True, None],
    "an even integer above 0": [0, -2, 3, 2.0, None],
    "an integer from 1 to 255": [0, 256, 1.0, None],
    "a list of increasing integers above 0": [(), (0, 1), (2, 1), (1, 1), (1.0,), 1, None],
    "a list of integers above 0, or an empty list": [(0,), (-1,), (1.5,), 1, None],
    "two integers above 0, the smaller first": [(), (1,), (2, 1), (0, 1), (1, 2, 3), (1, 2.0), None],
    "a list of (height, width) pairs of integers above 0": [
        (),
        (1, 2),
        ((1,),),
        ((0, 1),),
        ((1, 2, 3),),
        None,
    ],
    "a list of at least one of 'pq', 'boxes', 'masks'": ["pq", (), ("AP",), ("pq", "pq"), (["pq"],), None],
    "'', 'auto' or HOST:PORT": ["localhost", "host:port", "host:", None],
}


CONTRADICTIONS = [
    ({"stage": "masks", "model.masks": False}, "model.masks is False: must be True"),
    ({"model.hidden_dim": 192}, "model.hidden_dim is 192: must be a multiple of 128"),
    ({"model.hidden_dim": 100, "model.masks": False}, "must be a multiple of model.num_heads=8"),
    ({"model.num_heads": 4}, "model.num_heads is 4: must be a multiple of 8"),
    ({"model.norm": "group", "model.resnet_width": 12}, "model.resnet_width is 12: must be a multiple of 8"),
    ({"batch_size": 6, "accumulate_steps": 4}, "accumulate_steps is 4: must divide batch_size=6"),
    ({"init_from": "a.pth", "init_backbone_from": "b.pth"}, "init_backbone_from is set: must be ''"),
    ({"distributed.processes": 2, "distributed.process": 2}, "must be below distributed.processes=2"),
    (
        {"distributed.processes": 2, "distributed.process": 1},
        "distributed.coordinator is '': must be HOST:PORT",
    ),
]


def changed_config(changes):
    """The default config with some fields changed, even to values of another type."""
    config = default_config()
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


def flatten(config, prefix=""):
    values = {}
    for name, value in config.items():
        nested = hasattr(value, "items")
        values |= flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return values


def test_default_config_keeps_its_values():
    stored = json.loads((Path(__file__).parent / "reference" / "default_config.json").read_text())
    assert flatten(json.loads(default_config().to_json())) == stored
    assert list(FIELDS) == list(stored)


def test_every_default_is_valid():
    assert flatten(default_config()) == {path: field.default for path, field in FIELDS.items()}
    validate(default_config())


@pytest.mark.parametrize("path", FIELDS)
def test_rejects_invalid_values_of_every_field(path):
    allowed = FIELDS[path].rule.allowed
    is_choice = allowed.startswith("one of ")
    for value in ["", "other", None, -1, ("boxes",)] if is_choice else REFUSED[allowed]:
        config = changed_config({path: value})
        with pytest.raises(UserError) as refused:
            validate(config)
        assert str(refused.value) == f"{path} is {flatten(config)[path]!r}: must be {allowed}"


def test_messages_shorten_long_values():
    config = changed_config({"model.position": "1" * 10_000})
    with pytest.raises(UserError, match=r"^model\.position is '1{299}\.\.\. \(10002 characters\): must be"):
        validate(config)
    with pytest.raises(UserError) as refused:
        parse_config(json.dumps({"model": {"resnet_depth": "1" * 10_000, "x" * 10_000: 1}}))
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("path", FIELDS)
def test_every_field_has_a_description(path):
    description = FIELDS[path].description
    assert len(description.split()) > 1
    assert not description.endswith(".")


@pytest.mark.parametrize(
    "changes",
    [
        {
            "eval.threshold": 0.0,
            "eval.duplicate_iou": 0.0,
            "optim.drop_at": 0.0,
            "data.crop_probability": 0.0,
        },
        {
            "eval.threshold": 1.0,
            "eval.duplicate_iou": 1.0,
            "optim.drop_at": 1.0,
            "data.crop_probability": 1.0,
        },
        {"model.dropout": 0.0, "optim.b2": 0.0, "optim.learning_rate_backbone": 0.0, "loss.no_object": 0.0},
        {"data.max_targets": 255, "data.train_scales": (), "data.crop_range": (400, 400), "data.threads": 0},
        {"model.masks": False, "stage": "boxes", "model.num_heads": 4, "model.hidden_dim": 96},
        {"distributed.coordinator": "auto"},
        {"distributed.coordinator": "host:1234", "distributed.processes": 2, "distributed.process": 1},
    ],
)
def test_accepts_the_ends_of_ranges(changes):
    validate(changed_config(changes))


@pytest.mark.parametrize(("changes", "message"), CONTRADICTIONS)
def test_rejects_fields_that_contradict_each_other(changes, message):
    with pytest.raises(UserError, match=message):
        validate(changed_config(changes))


def test_reports_all_problems_one_per_line():
    with pytest.raises(UserError) as refused:
        validate(changed_config({"eval.threshold": 2.0, "model.norm": "batch"}))
    assert str(refused.value).splitlines() == [
        "model.norm is 'batch': must be one of 'frozen_batch', 'group'",
        "eval.threshold is 2.0: must be a number from 0 to 1",
    ]


def test_rejects_unknown_and_missing_fields():
    config = default_config()
    config.optim.learning_rat = 1e-3
    with pytest.raises(UserError, match="no field 'optim.learning_rat': did you mean 'optim.learning_rate'?"):
        validate(config)
    config = default_config()
    del config.optim.b2
    with pytest.raises(UserError, match="lacks the field 'optim.b2'"):
        validate(config)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("optim.lr", "did you mean 'optim.learning_rate'?"),
        ("optim.lrate", "did you mean 'optim.learning_rate'?"),
        ("lr", "did you mean 'optim.learning_rate'?"),
        ("optim.lr_backbone", "did you mean 'optim.learning_rate_backbone'?"),
        ("loss.dise", "did you mean 'loss.dice'?"),
        ("los.dice", "did you mean 'loss.dice'?"),
        ("data.batch_size", "did you mean 'batch_size'?"),
        ("optim.momentum", "the fields of 'optim' are learning_rate, learning_rate_backbone, weight_decay,"),
        ("optim", "the fields of 'optim' are learning_rate, "),
        ("num_workers", "python main.py --config=FILE --help lists all fields"),
        ("a" * 1000, "python main.py --config=FILE --help lists all fields"),
    ],
)
def test_suggests_a_near_field_or_lists_those_of_the_section(path, hint):
    assert hint in unknown_field(path)


def test_describes_every_field_with_its_value_and_default():
    listing = describe_fields(changed_config({"eval.threshold": 0.5}))
    assert "--config.eval.threshold=0.5  (default: 0.85)\n" in listing
    assert all(f"--config.{path}=" in listing for path in FIELDS)
    assert all(field.description in listing for field in FIELDS.values())


def test_reads_the_config_of_a_run():
    config = changed_config({"pair_lengths": (4, 8), "data.train_shapes": ((64, 64), (64, 96)), "seed": 3})
    assert parse_config(config.to_json()) == config


def test_missing_fields_of_a_stored_config_get_defaults():
    config = parse_config('{"seed": 3, "model": {"num_queries": 20}}')
    assert (config.seed, config.model.num_queries, config.model.hidden_dim) == (3, 20, 256)
    validate(config)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ('{"optim": {"b3": 0.9}}', "no field 'optim.b3'"),
        ('{"batch_size": "many"}', "batch_size"),
        ('{"model": 3}', "cannot read the stored config"),
        ("{", "cannot read the stored config"),
    ],
)
def test_rejects_stored_configs_that_do_not_fit(stored, message):
    with pytest.raises(UserError, match=message):
        parse_config(stored)


def test_names_an_unknown_variant():
    with pytest.raises(UserError, match="no config variant 'dc6': available are dc5"):
        apply_variants(default_config(), "dc6", {"dc5": lambda config: None})
