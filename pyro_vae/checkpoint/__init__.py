"""Run directories: a trained program as files that anyone can read, and nothing that can run.

``config.yaml`` names the parts and the settings, ``model.safetensors`` holds the weights, ``metrics.csv`` one line
an epoch and ``seconds.csv`` how long it took, ``environment.json`` versions, command, seed, commit and hardware,
``checkpoint/`` what it takes to go on. Nothing in it is pickle. Every file is written whole or not at all.
"""

# Each file says in __all__ what is public.
from pyro_vae.checkpoint.files import *  # noqa: F403
from pyro_vae.checkpoint.loading import *  # noqa: F403
from pyro_vae.checkpoint.parts import *  # noqa: F403
from pyro_vae.checkpoint.runs import *  # noqa: F403
