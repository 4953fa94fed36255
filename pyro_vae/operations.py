"""What sees each operation on a tensor, as torch does it."""

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Abstract: a context whose ``__torch_dispatch__`` is asked in place of each operation.

    Torch's class imports torch's compiler, which takes seconds.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
