import math

import pytest

from detr_jax import config_rules as rules


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
