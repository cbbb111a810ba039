"""The original's initial weights, as Flax initializers."""

from typing import Any

import jax
from flax.linen.initializers import normal, uniform, variance_scaling
from flax.typing import Initializer

# torch.nn.init.xavier_uniform_
xavier_uniform = variance_scaling(1.0, "fan_avg", "uniform")


# xavier_uniform_ of a query, key and value matrix stacked into one (3d, d) matrix
xavier_uniform_third = variance_scaling(0.5, "fan_in", "uniform")


# torch.nn.init.kaiming_uniform_(a=1)
kaiming_uniform = variance_scaling(1.0, "fan_in", "uniform")


# PyTorch's default for linear layers: uniform within 1 / sqrt(fan_in)
linear = variance_scaling(1.0 / 3.0, "fan_in", "uniform")


# torchvision's ResNet: kaiming_normal_(mode="fan_out", nonlinearity="relu")
resnet = variance_scaling(2.0, "fan_out", "normal")


# torch.nn.Embedding's default, used for the object queries
embedding = normal(1.0)


# torch.nn.init.uniform_, used for learned positions
uniform_unit = uniform(1.0)


def amplified(initializer: Initializer, first: int, factor: float) -> Initializer:
    """The same for a (rows, columns, in, out) kernel, times a factor from the `first` input channel on."""

    def amplify(key: jax.Array, *shape_and_dtype: Any) -> Any:
        return initializer(key, *shape_and_dtype).at[:, :, first:].multiply(factor)

    return amplify
