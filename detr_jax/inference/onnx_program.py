"""The outputs of all queries as an ONNX file, which onnxruntime and other runtimes read, by `jax2onnx`.

Inputs and outputs of the program, all of a single image:

    images       uint8 (1, height, width, 3)  RGB image in the top left corner of a canvas
    size         int32 (1, 2)                 height and width of the image
    pred_logits  float32 (1, queries, classes)
    pred_boxes   float32 (1, queries, 4)
    pred_masks   float32 (1, queries, mask_height, mask_width), where the model has a mask head

The outputs are those of `Predictor.raw`, except that the masks cover the whole canvas.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal
from jaxtyping import Array

from detr_jax.data.example import Size
from detr_jax.errors import MissingPackageError
from detr_jax.inference.pretrained import Pretrained
from detr_jax.inference.segmentation_program import detect_last_layer
from detr_jax.models.detr import predict_masks

INPUTS = ("images", "size")
OUTPUTS = ("pred_logits", "pred_boxes", "pred_masks")


def onnx_file(loaded: Pretrained, shape: Size) -> bytes:
    """The content of an `.onnx` file: program and parameters.

    Args:
      loaded: Model, with or without a mask head.
      shape: Height and width of the canvas, in pixels.

    Raises:
      MissingPackageError: The package jax2onnx is not installed.
    """
    try:
        import jax2onnx
    except ImportError as error:
        raise MissingPackageError(
            f"writing an .onnx file needs jax2onnx ({error}): pip install 'detr_jax[onnx]'"
        ) from error
    arguments = [jax.ShapeDtypeStruct((1, *shape, 3), jnp.uint8), jax.ShapeDtypeStruct((1, 2), jnp.int32)]
    traced = jax.make_jaxpr(_raw_function(loaded))(*arguments)

    # jax2onnx replaces functions of Flax while it traces, so it gets a program that has been traced before.
    def program(images: Array, size: Array) -> tuple[Array, ...]:
        return tuple(_evaluate(traced, (images, size)))

    # Harmless warnings about values without a static type: a hundred lines for a ResNet-50.
    logging.getLogger("onnx_ir.serde").setLevel(logging.ERROR)
    # Of its ways to write a file, the default one moves large parameters to a second file.
    proto = jax2onnx.to_onnx(
        program,
        arguments,
        model_name="detr",
        input_names=list(INPUTS),
        output_names=list(OUTPUTS[: len(traced.out_avals)]),
    )
    _remove_constants(proto.graph)
    return proto.SerializeToString()


def _raw_function(loaded: Pretrained) -> Callable[[Array, Array], tuple[Array, ...]]:
    model, params = loaded.model, jax.tree.map(jnp.asarray, loaded.params)

    def raw(images: Array, size: Array) -> tuple[Array, ...]:
        outputs = detect_last_layer(model, params, images, size)
        if "mask_head" not in params:
            return outputs.logits, outputs.boxes
        queries = np.arange(model.num_queries, dtype=np.int32)
        pairs = jnp.asarray(np.stack([np.zeros_like(queries), queries], 1))
        masks = predict_masks(model, params, outputs.features, size, pairs)
        return outputs.logits, outputs.boxes, masks[None]

    return raw


def _evaluate(program: ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    """Runs a traced program, with two operations in forms that jax2onnx converts correctly.

    It converts `reduce_window_max` to a pooling of all four axes, and a sum of integers divided by 2 to a
    mean of integers. onnxruntime has neither.
    """
    jaxpr = program.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*program.consts, *arguments], strict=True))
    for equation in jaxpr.eqns:
        inputs = [x.val if isinstance(x, Literal) else values[x] for x in equation.invars]
        params = equation.params
        inner = (
            params.get("jaxpr") if equation.primitive.name in ("pjit", "jit") else params.get("call_jaxpr")
        )
        if equation.primitive.name == "reduce_window_max":
            results = [_max_of_windows(inputs[0], params)]
        elif equation.primitive.name == "div" and jnp.issubdtype(jnp.result_type(inputs[0]), jnp.integer):
            results = [_divide_integers(*inputs)]
        elif isinstance(inner, ClosedJaxpr):
            results = _evaluate(inner, inputs)
        else:
            found = equation.primitive.bind(*inputs, **params)
            results = found if equation.primitive.multiple_results else [found]
        values.update(zip(equation.outvars, results, strict=True))
    return [x.val if isinstance(x, Literal) else values[x] for x in jaxpr.outvars]


def _remove_constants(graph: Any) -> None:
    """Removes tensors that no node uses, and fills those of a single value when the program starts.

    jax2onnx stores zeros of the size of the image: 57 MB for a ResNet-50 and images of 256 x 320 pixels.

    Args:
      graph: `onnx.GraphProto`; changed in place, with the graphs inside it.
    """
    from onnx import helper, numpy_helper

    used, kept, fills = _used_names(graph), [], []
    for tensor in graph.initializer:
        if tensor.name not in used:
            continue
        value = numpy_helper.to_array(tensor)
        if value.size < 1024 or (value != value.flat[0]).any():
            kept.append(tensor)
            continue
        shape = numpy_helper.from_array(np.array(value.shape, np.int64), f"{tensor.name}_shape")
        one = numpy_helper.from_array(value.reshape(-1)[:1])
        kept.append(shape)
        fills.append(helper.make_node("ConstantOfShape", [shape.name], [tensor.name], value=one))
    for inner in _inner_graphs(graph):
        _remove_constants(inner)
    _replace(graph.initializer, kept)
    _replace(graph.node, [*fills, *graph.node])


def _used_names(graph: Any) -> set[str]:
    """Names of the tensors that a graph uses, in the graphs inside it as well."""
    names = {output.name for output in graph.output}.union(*(node.input for node in graph.node))
    return names.union(*map(_used_names, _inner_graphs(graph)))


def _inner_graphs(graph: Any) -> list[Any]:
    """The bodies of loops and branches."""
    return [entry.g for node in graph.node for entry in node.attribute if entry.HasField("g")]


def _replace(field: Any, messages: list[Any]) -> None:
    """Replaces the content of a repeated field, which may hold some of the new messages."""
    copies = [type(message).FromString(message.SerializeToString()) for message in messages]
    del field[:]
    field.extend(copies)


def _divide_integers(dividend: Array, divisor: Array) -> Array:
    """Integer division that rounds towards zero, exact below 2**24, as sizes in pixels are."""
    quotient = jnp.asarray(dividend, jnp.float32) / jnp.asarray(divisor, jnp.float32)
    return jnp.trunc(quotient).astype(jnp.result_type(dividend))


def _max_of_windows(x: Array, params: dict[str, Any]) -> Array:
    """`reduce_window_max` as the maximum of strided slices, one axis after the other."""
    for axis, (window, stride, padding) in enumerate(
        zip(params["window_dimensions"], params["window_strides"], params["padding"], strict=True)
    ):
        if window == 1:
            continue
        widths = [(0, 0)] * x.ndim
        widths[axis] = padding
        padded = jnp.pad(x, widths, constant_values=-jnp.inf)
        span = (padded.shape[axis] - window) // stride * stride + 1
        slices = [jax.lax.slice_in_dim(padded, start, start + span, stride, axis) for start in range(window)]
        x = slices[0]
        for other in slices[1:]:
            x = jnp.maximum(x, other)
    return x
