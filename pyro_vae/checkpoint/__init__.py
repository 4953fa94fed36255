"""Run directories: a trained program as files that anyone can read, and nothing that can run.

``config.yaml`` names the parts and the settings, ``model.safetensors`` holds the weights, ``metrics.csv`` one line
an epoch and ``seconds.csv`` how long it took, ``environment.json`` versions, command, seed, commit and hardware,
``checkpoint/`` what it takes to go on. Nothing in it is pickle. Every file is written whole or not at all.
"""

from pyro_vae.checkpoint.describing import describe, describe_program, event_shape, parts_of
from pyro_vae.checkpoint.files import hold, inside, replacing, write
from pyro_vae.checkpoint.loading import build, check_weights, config_of, load, restore
from pyro_vae.checkpoint.nests import clone, pack, unpack
from pyro_vae.checkpoint.parts import (
    arguments,
    check_config,
    check_trust,
    construct,
    construct_objective,
    read_config,
)
from pyro_vae.checkpoint.runs import (
    begin,
    begin_again,
    create,
    hold_new,
    load_metrics,
    load_state,
    save_metrics,
    save_weights,
)

__all__ = [
    "arguments",
    "begin",
    "begin_again",
    "build",
    "check_config",
    "check_trust",
    "check_weights",
    "clone",
    "config_of",
    "construct",
    "construct_objective",
    "create",
    "describe",
    "describe_program",
    "event_shape",
    "hold",
    "hold_new",
    "inside",
    "load",
    "load_metrics",
    "load_state",
    "pack",
    "parts_of",
    "read_config",
    "replacing",
    "restore",
    "save_metrics",
    "save_weights",
    "unpack",
    "write",
]
