"""What sees each operation on a tensor, as torch does it."""

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Abstract: a context whose ``__torch_dispatch__`` is asked in place of each operation.

    Torch's own would import torch's compiler, some seconds, to have it leave the context alone.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
