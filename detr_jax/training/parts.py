"""Parts of a model whose training is watched apart: backbone, transformer and mask head."""

import optax
from jaxtyping import Array, Float

from detr_jax.models.detr import Params


def part_of(module: str) -> str:
    """The part of a module at the top of the tree of parameters.

    "transformer" stands for all other modules, too: input projection, queries, heads of classes and boxes.
    """
    return module if module in ("backbone", "mask_head") else "transformer"


def norms(name: str, tree: Params) -> dict[str, Float[Array, ""]]:
    """The L2 norm of a tree of gradients or trained parameters, and those of its parts.

    Args:
      name: Name of the norm; those of parts end in "_" and the name of the part.
      tree: Arrays, by module.
    """
    parts: dict[str, Params] = {}
    for module, leaves in tree.items():
        parts.setdefault(part_of(module), {})[module] = leaves
    named = {f"{name}_{part}": optax.global_norm(leaves) for part, leaves in parts.items()}
    return {name: optax.global_norm(tree), **named}
