"""A page to share: one HTML file about trained runs, without a server, a network or a script from elsewhere."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyro_vae.page.building import html

__all__ = ["html"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import the page at first use: the command imports this room, and matplotlib takes half a second."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from pyro_vae.page.building import html

        return html
