import math

import pytest

from detr_jax import config_rules as rules
from detr_jax.config_rules import parse_json
from detr_jax.errors import UserError


@pytest.mark.parametrize(
    ("rule", "accepted", "refused"),
    [
        (rules.one_of("scipy", "optax"), ["scipy", "optax"], ["", "SCIPY", None, ("scipy",)]),
        (rules.at_least(2), [2, 10**9], [1, 2.0, True, None, "2"]),
        (rules.between(0, 1), [0, 0.0, 0.5, 1.0], [-1e-9, 1.001, math.nan, True, None, "0.5"]),
        (rules.below_one, [0, 0.999], [-0.1, 1.0, math.nan]),
        (rules.positive, [1e-12, 5], [0.0, -1.0, math.inf, math.nan]),
        (rules.non_negative, [0.0, 3], [-1e-12, math.inf, math.nan]),
        (rules.even, [2, 256], [0, 3, 2.0]),
        (rules.segments, [1, 255], [0, 256]),
        (rules.boolean, [True, False], [0, 1, None, "True"]),
        (rules.any_text, ["", "runs/boxes"], [None, 1]),
        (rules.some_text, ["train"], ["", None]),
        (rules.lengths, [(4,), (4, 8), [4, 8]], [(), (8, 4), (4, 4), (0, 4), (4.0,), 4]),
        (rules.scales, [(), (480, 512), (512, 480)], [(0,), (480.0,), 480]),
        (rules.interval, [(384, 600), (400, 400)], [(), (384,), (600, 384), (1, 2, 3)]),
        (rules.shapes, [((64, 96),), [[64, 96], [96, 64]]], [(), (64, 96), ((64,),), ((0, 96),)]),
        (
            rules.address,
            ["", "auto", "host:1234", "10.0.0.1:80"],
            ["host", "host:", ":80", "host:port", None],
        ),
    ],
)
def test_accepts_valid_and_rejects_invalid_values(rule, accepted, refused):
    assert all(rule.accepts(value) for value in accepted)
    assert not any(rule.accepts(value) for value in refused)


def test_json_is_read_from_text_and_bytes():
    assert parse_json('{"a": [1, "ä"]}', "the file") == {"a": [1, "ä"]}
    assert parse_json('\ufeff{"a": [1, "ä"]}'.encode(), "the file") == {"a": [1, "ä"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is not JSON"),
        ('{"a": ', "the file is not JSON"),
        (b"\xff\xfe\x00", "the file is not JSON"),
        ("9" * 5000, "the file is not JSON"),
        ("[" * 100_000, "the file is nested too deeply: at most 32 levels"),
        ("[" * 34 + "]" * 34, "the file is nested too deeply: at most 32 levels"),
        (" " * 1001, "the file has 1001 bytes of JSON: at most 1000 are read"),
    ],
)
def test_damaged_and_hostile_json_is_one_line(text, message):
    max_bytes = 1000 if len(text) == 1001 else 1_000_000
    with pytest.raises(UserError, match=message) as error:
        parse_json(text, "the file", max_bytes=max_bytes)
    assert "\n" not in str(error.value)


def test_json_as_deep_as_allowed_is_read():
    parse_json("[" * 32 + "]" * 32, "the file")
