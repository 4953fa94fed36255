"""A base class for contexts that intercept each operation on a tensor."""

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """An abstract context: ``__torch_dispatch__`` of a subclass replaces each operation on a tensor.

    The class overrides a method of torch, since torch's method imports torch's compiler and the import takes seconds.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
