"""A base class for contexts that intercept each operation on a tensor."""

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """An abstract context that calls its ``__torch_dispatch__`` in place of each operation.

    It overrides the method of torch that imports torch's compiler, which takes seconds.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
