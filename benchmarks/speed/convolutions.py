"""How much faster are the CPU formulations of `detr_jax.ops` and `detr_jax.models` than the plain operations?

python benchmarks/speed/convolutions.py

Both sides compute the same result in float32, which the tests of the modules verify. They alternate call by
call in one process, so that the ratio of their medians holds even on a busy machine. "Backward" includes the
gradients of all arguments; "gradient of" is that gradient alone, without the forward pass.
"""

import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
import flax.linen as nn
import jax
import jax.numpy as jnp
import measure
import numpy as np

from detr_jax.models.layers import Dropout
from detr_jax.ops.convolution import convolve, convolve_stem, convolve_windows, max_pool
from detr_jax.ops.upsampled import convolve_upsampled, from_corner_layout

Function = Callable[..., jax.Array]
Shape = tuple[int, ...]

REPEATS = 11


class Case(NamedTuple):
    """A piece of work that both sides do.

    Attributes:
      ours: Function of this project.
      plain: Plain operation with the same result.
      shapes: Shapes of the arguments.
      argnums: Indices of the arguments whose gradients are computed.
      forward: Whether the result itself is computed.
    """

    ours: Function
    plain: Function
    shapes: Sequence[Shape]
    argnums: tuple[int, ...] = ()
    forward: bool = True


def plain_convolution(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0) -> jax.Array:
    """XLA's convolution of NHWC maps."""
    layout = ("NHWC", "HWIO", "NHWC")
    both_sides = [(padding, padding)] * 2
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), both_sides, dimension_numbers=layout)


def plain_max_pool(x: jax.Array) -> jax.Array:
    """3x3 max pooling with XLA's own gradient."""
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def upsampled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`convolve_upsampled` of maps without padding, converted back from corner layout."""
    shape = 2 * x.shape[1], 2 * x.shape[2]
    size = jnp.broadcast_to(jnp.array(shape), (len(x), 2))
    return from_corner_layout(convolve_upsampled(x, kernel, size), shape)


def plain_upsampled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Nearest upsampling by 2 and a 3x3 convolution."""
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return plain_convolution(x, kernel, padding=1)


def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention of 8 heads, with heads before tokens."""

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], 8, -1).swapaxes(1, 2)  # (batch, heads, tokens, channels)

    weights = jax.nn.softmax(split(query) @ split(key).swapaxes(2, 3))
    return (weights @ split(value)).swapaxes(1, 2).reshape(query.shape)


def plain_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention of 8 heads, with tokens before heads, as in `flax.linen.dot_product_attention`."""

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], 8, -1)  # (batch, tokens, heads, channels)

    weights = jax.nn.softmax(jnp.einsum("bqhc,bkhc->bhqk", split(query), split(key)))
    return jnp.einsum("bhqk,bkhc->bqhc", weights, split(value)).reshape(query.shape)


def dropout(x: jax.Array) -> jax.Array:
    """Dropout from 8 random bits per element."""
    return Dropout(0.1).apply({}, x, False, rngs={"dropout": jax.random.key(0)})


def plain_dropout(x: jax.Array) -> jax.Array:
    """Flax's dropout, from 32 random bits per element."""
    return nn.Dropout(0.1, deterministic=False).apply({}, x, rngs={"dropout": jax.random.key(0)})


def both(name: str, ours: Function, plain: Function, shapes: Sequence[Shape]) -> dict[str, Case]:
    """A case of the forward pass and one of forward and backward pass."""
    argnums = tuple(range(len(shapes)))
    return {
        f"{name}: forward": Case(ours, plain, shapes),
        f"{name}: forward and backward": Case(ours, plain, shapes, argnums),
    }


def stem(name: str, images: Shape, features: int) -> dict[str, Case]:
    """Cases of ResNet's first convolution, whose input needs no gradient."""
    plain = functools.partial(plain_convolution, stride=2, padding=3)
    shapes = [images, (7, 7, 3, features)]
    return {
        f"stem, {name}: forward": Case(convolve_stem, plain, shapes),
        f"stem, {name}: forward and backward": Case(convolve_stem, plain, shapes, (1,)),
    }


def windows(name: str, x: Shape, kernel: Shape, stride: int = 1) -> dict[str, Case]:
    """Cases of each gradient of a convolution with padding 1, whose forward pass is XLA's on both sides."""
    ours = functools.partial(convolve_windows, padding=(1, 1), stride=stride)
    plain = functools.partial(plain_convolution, padding=1, stride=stride)
    return {
        f"{name}: gradient of the kernel": Case(ours, plain, [x, kernel], (1,), forward=False),
        f"{name}: gradient of the input": Case(ours, plain, [x, kernel], (0,), forward=False),
    }


# Shapes of ResNet-50 and the mask head for an image of 800x1066, and of a small model for images of 64x64.
CASES = {
    **both("1x1 convolution", convolve, plain_convolution, [(1, 200, 267, 256), (1, 1, 256, 64)]),
    **stem("1 image of 800x1066", (1, 800, 1066, 3), 64),
    **stem("32 images of 64x64", (32, 64, 64, 3), 16),
    **both("max pooling, 1 map of 400x533", max_pool, plain_max_pool, [(1, 400, 533, 64)]),
    **both("max pooling, 32 maps of 32x32", max_pool, plain_max_pool, [(32, 32, 32, 16)]),
    **windows("3x3 windows, 2 maps of 100x134", (2, 100, 134, 128), (3, 3, 128, 128)),
    **windows("3x3 windows, 2 maps of 25x34", (2, 25, 34, 512), (3, 3, 512, 512)),
    **windows("3x3 windows of stride 2, 2 maps of 100x134", (2, 100, 134, 256), (3, 3, 256, 256), stride=2),
    **windows("3x3 windows, 8 maps of 40x40", (8, 40, 40, 16), (3, 3, 16, 16)),
    **windows("3x3 windows, 16 maps of 25x34", (16, 25, 34, 264), (3, 3, 264, 128)),
    **windows("2x2 windows, 16 maps of 50x67", (16, 50, 67, 64), (2, 2, 64, 128)),
    **windows("2x2 windows, 256 maps of 8x8", (256, 8, 8, 32), (2, 2, 32, 64)),
    **both("upsampled 3x3, 16 maps of 50x67", upsampled, plain_upsampled, [(16, 50, 67, 64), (3, 3, 64, 32)]),
    **both("attention, 850 tokens", attention, plain_attention, [(1, 850, 256)] * 3),
    **both("attention, 16 x 64 tokens", attention, plain_attention, [(16, 64, 128)] * 3),
    **both("dropout, 8 x 850 x 850 weights", dropout, plain_dropout, [(1, 8, 850, 850)]),
}


def program(function: Function, case: Case) -> Callable[..., Any]:
    """Compiles one side of a case. The program takes the cotangent of the result, and the arguments."""

    @jax.jit
    def compute(cotangent: jax.Array, *arguments: jax.Array) -> Any:
        result, vjp = jax.vjp(function, *arguments)
        gradients = vjp(cotangent)  # XLA computes only those that are returned
        return result if case.forward else None, [gradients[index] for index in case.argnums]

    return compute


def measure_case(case: Case) -> tuple[float, float]:
    """Returns the median seconds of both sides, ours first."""
    rng = np.random.default_rng(0)
    arguments = [jnp.asarray(rng.random(shape), jnp.float32) for shape in case.shapes]
    cotangent = jnp.asarray(rng.random(jax.eval_shape(case.plain, *arguments).shape), jnp.float32)
    programs = [program(function, case) for function in (case.ours, case.plain)]
    seconds: list[list[float]] = [[], []]
    for repeat in range(-1, REPEATS):  # the first call of each compiles and is not timed
        for index in (0, 1) if repeat % 2 else (1, 0):
            start = time.perf_counter()
            jax.block_until_ready(programs[index](cotangent, *arguments))
            if repeat >= 0:
                seconds[index].append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def main() -> None:
    """Measures all cases, prints a table and writes the result beside this script."""
    rows: list[dict[str, Any]] = []
    print("| work | ours | plain | faster |\n| --- | --- | --- | --- |")
    for name, case in CASES.items():
        ours, plain = measure_case(case)
        ratio = plain / ours
        rows.append({"case": name, "ours_s": ours, "plain_s": plain, "faster": ratio, "runs": REPEATS})
        print(f"| {name} | {1000 * ours:.1f} ms | {1000 * plain:.1f} ms | {ratio:.1f}x |", flush=True)
    measure.write(__file__, rows)


if __name__ == "__main__":
    main()
