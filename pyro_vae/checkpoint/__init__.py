"""Run directories: the files of a trained program, in open formats. Loading a run executes no content of the files.

``config.yaml`` holds the parts and the settings, ``model.safetensors`` the weights, ``metrics.csv`` one line per
epoch, ``seconds.csv`` the run time, ``environment.json`` versions, command, seed, commit and hardware, and
``checkpoint/`` the state to resume from. No file is a pickle. Each write replaces a whole file or leaves the old file.
"""

# Each file lists its public names in __all__.
from pyro_vae.checkpoint.files import *  # noqa: F403
from pyro_vae.checkpoint.loading import *  # noqa: F403
from pyro_vae.checkpoint.runs import *  # noqa: F403
from pyro_vae.checkpoint.spec import *  # noqa: F403
