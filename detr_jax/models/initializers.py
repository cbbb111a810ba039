"""The initial weights of the original PyTorch code, as Flax initializers."""

from typing import Any

import jax
from flax.linen.initializers import normal, uniform, variance_scaling
from flax.typing import Initializer

# torch.nn.init.xavier_uniform_
xavier_uniform = variance_scaling(1.0, "fan_avg", "uniform")

# torch.nn.init.xavier_uniform_ of a stacked (3 * features, features) matrix for queries, keys and values
xavier_uniform_third = variance_scaling(0.5, "fan_in", "uniform")

# torch.nn.init.kaiming_uniform_(a=1)
kaiming_uniform = variance_scaling(1.0, "fan_in", "uniform")

# PyTorch's default for linear layers: uniform in ±1 / sqrt(fan_in)
linear = variance_scaling(1.0 / 3.0, "fan_in", "uniform")

# ResNet in torchvision: kaiming_normal_(mode="fan_out", nonlinearity="relu")
resnet = variance_scaling(2.0, "fan_out", "normal")

# PyTorch's default for torch.nn.Embedding, used for the object queries (and one bias, see DecoderLayer)
embedding = normal(1.0)

# torch.nn.init.uniform_, used for learned position encodings
uniform_unit = uniform(1.0)


def amplified(initializer: Initializer, first: int, factor: float) -> Initializer:
    """Returns an initializer that scales the weights of the last input channels of a convolution.

    Args:
      initializer: Initializer of a (rows, columns, channels, features) kernel.
      first: Index of the first input channel that is scaled.
      factor: Factor of the weights from this channel on.
    """

    def amplify(key: jax.Array, *shape_and_dtype: Any) -> Any:
        return initializer(key, *shape_and_dtype).at[:, :, first:].multiply(factor)

    return amplify
