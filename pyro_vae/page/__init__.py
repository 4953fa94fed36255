"""A page to share: one HTML file about trained runs, without a server, a network or a script from elsewhere."""

from pyro_vae.page.building import html

__all__ = ["html"]
