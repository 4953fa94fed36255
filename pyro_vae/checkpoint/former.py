"""Defaults that a release changed: a run means what they were when it was written.

A run's ``config.yaml`` has the arguments that the user gave, and those of :data:`FORMER`. A run without the latter is
older than the change.
"""

import inspect
from typing import Any

_RELU: dict[str, Any] = {"activation": "ReLU"}
# The former defaults, by class and argument.
FORMER: dict[str, dict[str, Any]] = {
    "pyro_vae.networks.Conv": _RELU,
    "pyro_vae.networks.ResNet": _RELU,
    "pyro_vae.programs.VQVAE": {"network": {"class_path": "pyro_vae.networks.ResNet"}},
}


def changed_defaults(kind: type, path: str) -> dict[str, Any]:
    """Return the arguments of a class whose defaults a release changed, with today's defaults."""
    parameters = inspect.signature(kind).parameters if path in FORMER else {}
    return {name: parameters[name].default for name in FORMER.get(path, ())}


def with_former(spec: Any) -> Any:
    """Return plain data of a run with the former default of each argument that it lacks."""
    if isinstance(spec, list):
        return [with_former(item) for item in spec]
    if not isinstance(spec, dict):
        return spec
    former, arguments = FORMER.get(str(spec.get("class_path")), {}), spec.get("init_args") or {}
    unknown = "network" in former and not arguments  # a program whose arguments the run could not keep
    if former and isinstance(arguments, dict) and not unknown:
        spec = spec | {"init_args": former | arguments}
    return {name: with_former(value) for name, value in spec.items()}
