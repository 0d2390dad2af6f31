"""Linear layers on CPUs use the fast product of :mod:`kernels.products`.

Only the class of a layer changes: its parameters, their names and what is saved stay as they are.
"""

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from offpref.kernels.torch_products import linear


class FastLinear(nn.Linear):
    """torch's linear layer; float32 on a CPU uses the faster of torch's libraries."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``inputs @ weight.T + bias``."""
        return linear(inputs, self.weight, self.bias)


class FastConv1D(Conv1D):
    """GPT-2's linear layer, whose weight is transposed."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``inputs @ weight + bias``."""
        return linear(inputs, self.weight.t(), self.bias)


FAST: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: FastLinear, Conv1D: FastConv1D}


def use_fast_layers(model: nn.Module) -> None:
    """Let every plain linear layer of a model use the fast product; subclasses are left alone."""
    for module in model.modules():
        if type(module) in FAST:
            module.__class__ = FAST[type(module)]
