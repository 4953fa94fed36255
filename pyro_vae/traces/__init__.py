"""Traces of Pyro programs: sample sites, plates, and importance weights of draws."""
