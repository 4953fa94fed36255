"""Where else an epoch's numbers go: TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pyro_vae import checkpoint

__all__ = ["Logger", "TensorBoard", "check_logger"]

Logger = Literal["tensorboard"]


def check_logger(logger: str | None, run_dir: str | Path | None) -> None:
    """Check that a logger is known and installed, and has a run to write to.

    Raises:
        ValueError: If it is not.
    """
    if logger not in (None, "tensorboard"):
        raise ValueError(f"Expected logger to be tensorboard, or None; got {logger!r}.")
    if logger and run_dir is None:
        raise ValueError(f"Expected a run_dir for {logger} to write to; got none.")
    if logger:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise ValueError(
                "Expected tensorboard to be installed for --logger tensorboard: pip install 'pyro_vae[tensorboard]'."
            ) from error


class TensorBoard:
    """Writes scalars, one a number and epoch, to ``tensorboard/`` of a run.

    Arguments:
        run: The run's directory.
        done: How many epochs there are already; what was written of later ones is hidden.
    """

    def __init__(self, run: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(checkpoint.inside(run, "tensorboard"), purge_step=done + 1)

    def epoch(self, number: int, numbers: Mapping[str, float]) -> None:
        """Write an epoch's numbers, counted from 1."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, number)

    def close(self) -> None:
        """Write what is not yet written."""
        self._writer.close()
