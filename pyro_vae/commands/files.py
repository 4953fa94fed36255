"""Files that the subcommands write."""

import io
from pathlib import Path

from pyro_vae import checkpoint, plots


def write(path: Path, content: bytes) -> None:
    """Write a file, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write(path, content)


def check_output(path: Path, suffix: str) -> None:
    """Refuse a path for a new file that has another suffix, or that no file can have."""
    if path.suffix != suffix:
        raise ValueError(f"Expected output to end in {suffix}; got {str(path)!r}.")
    first = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not first.is_dir():
        raise ValueError(
            f"Expected output to be a file in a folder; {str(path if path.is_dir() else first)!r} is none."
        )


def pictures(figures: dict[str, "plots.Figure"]) -> dict[str, bytes]:
    """Return figures as PNG files by path."""
    return {f"figures/{name}.png": picture(figure) for name, figure in figures.items()}


def picture(figure: "plots.Figure") -> bytes:
    """Return a figure as a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, dpi=150)
    return content.getvalue()
