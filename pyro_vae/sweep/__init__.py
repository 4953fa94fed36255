"""Sweeps: a run for each setting and seed of a file, in several processes, by a grid or by a search."""

from pyro_vae.sweep.running import best_of, setting_name, sweep

__all__ = ["best_of", "setting_name", "sweep"]
