"""Traces of Pyro programs: their sites, their plates, and the importance weights of their draws."""
