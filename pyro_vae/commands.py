"""What the ``pyro-vae`` command does. Options are the signatures of ``data.load``, ``VAE.build`` and ``fit``."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyro.infer
import torch
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter
from matplotlib.figure import Figure

from pyro_vae import VAE, data, fit, guides, likelihoods, load, networks, objectives, plots, priors, report
from pyro_vae.conditional import Family
from pyro_vae.train import check_device, is_first

__all__ = ["run"]

# Where the classes of each option live, and what they are subclasses of.
ROOMS: dict[str, tuple[ModuleType, type]] = {
    "prior": (priors, torch.nn.Module),
    "likelihood": (likelihoods, Family),
    "guide": (guides, Family),
    "network": (networks, networks.Network),
    "objective": (objectives, pyro.infer.ELBO),
    "objective.beta": (objectives, objectives.Schedule),
    "objective.penalty": (objectives, objectives.Penalty),
}


def run(given: list[str]) -> int:
    """Run a subcommand, the first word given; return the exit code: 0, 2 after bad input, 130 after Ctrl-C."""
    commands: dict[str, Callable[..., None]] = {"train": _train, "evaluate": _evaluate, "generate": _generate}
    name = f"pyro-vae {given[0]}"
    parser = _parser(commands)
    sys.path.append(str(Path.cwd()))  # where a class of the user's own is
    show, warnings.showwarning = warnings.showwarning, lambda message, *_: print(f"{name}: {message}", file=sys.stderr)
    try:
        parser = _parser(commands, _chosen(parser, given))
        parsed = parser.parse_args(given)
        options = parser.instantiate(parsed)[parsed.subcommand].as_dict()
        options.pop("config", None)
        commands[parsed.subcommand](**options)
    except ArgumentError as error:
        print(f"{name}: {_one_sentence(str(error))} See {name} --help.", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        # Of a union of types jsonargparse lists what each said; ours is the sentence.
        ours = re.search(r"^ *- (Expected (?!an? <class).*)$", str(error), flags=re.MULTILINE)
        print(f"{name}: {ours[1] if ours else error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"\n{name}: interrupted. {interrupt}".rstrip(), file=sys.stderr)
        return 130
    finally:
        sys.path.pop()
        warnings.showwarning = show
    return 0


def _train(**options: Any) -> None:
    """Train a VAE, print its ELBO and -log p(x) on every split, and draw its figures."""

    def take(function: Callable[..., Any]) -> dict[str, Any]:
        return {key: options[key] for key in inspect.signature(function).parameters if key in options}

    dataset = data.load(**take(data.load))
    counts = ", ".join(f"{len(part):,} {name}" for name, part in dataset.splits.items())
    if is_first():
        print(f"{dataset}: {counts} images of {'x'.join(map(str, dataset.event_shape))}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options["seed"])
        vae = VAE.build(dataset.event_shape, **take(VAE.build))
    if options["run_dir"] is None:
        source = Path(options["data"]).stem or "data"
        options["run_dir"] = f"runs/{source}-{datetime.now():%Y%m%d-%H%M%S}"
    history = fit(vae, dataset, **take(fit))
    if not is_first():
        return
    print(f"\n{report.table(vae, dataset)}\n")
    folder = _save({"curves": plots.curves(history)} | report.figures(vae, dataset), options["run_dir"])
    print(f"figures: {folder}\nrun:     {options['run_dir']}")


def _evaluate(
    run: str, num_particles: int = 1000, images: int = 1000, seed: int = 0, device: str = "cpu", trust: str = ""
) -> None:
    """Print the ELBO, its two terms and -log p(x) of a trained VAE, and draw its figures anew.

    Args:
        run: Run directory.
        num_particles: Draws per datum for -log p(x).
        images: How many images of each split, the first ones.
        seed: Seed of the draws.
        device: ``cpu`` or ``cuda``.
        trust: Modules of your own whose classes the run may name, as ``my_parts``; spaces between.
    """
    check_device(device)
    vae, config = load(run, trust.split())
    if config["data"] == "tensor":
        raise ValueError(f"Expected a run on a named data set; {run!r} was trained on a tensor. Use report.table.")
    dataset = data.load(**{key: config[key] for key in inspect.signature(data.load).parameters})
    print(report.table(vae.to(device), dataset, num_particles, images, seed))
    print(f"\nfigures: {_save(report.figures(vae, dataset, seed), run)}")


def _generate(run: str, num: int = 64, seed: int = 0, output: str | None = None, trust: str = "") -> None:
    """Draw images from a trained VAE: z from the prior, and the mean of p(x | z).

    Args:
        run: Run directory.
        num: How many.
        seed: Seed of the draws.
        output: A ``.png`` for a picture, a ``.npy`` for numbers. If not given, figures/generated.png of the run.
        trust: Modules of your own whose classes the run may name, as ``my_parts``; spaces between.
    """
    vae, _ = load(run, trust.split())
    if num < 1:
        raise ValueError(f"Expected to generate at least 1 image; got num = {num}.")
    path = Path(output) if output else Path(run) / "figures" / "generated.png"
    if path.suffix not in (".png", ".npy"):
        raise ValueError(f"Expected output to end in .png or .npy; got {str(path)!r}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x = vae.generate(num)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, x.numpy())
    else:
        plots.samples(x).savefig(path, dpi=150)
    print(path)


def _save(figures: dict[str, Figure], run: str | Path) -> Path:
    folder = Path(run) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    return folder


class _HelpFormatter(DefaultHelpFormatter):
    """Names the classes of an option's own room, where jsonargparse names every subclass that was ever imported."""

    def _expand_help(self, action: Any) -> str:
        text = super()._expand_help(action)
        if action.dest in ROOMS:
            text = re.sub(r"known subclasses: [^)]*", f"known: {_known(action.dest)}", text)
        return text


def _parser(commands: dict[str, Callable[..., None]], parts: dict[str, Any] | None = None) -> ArgumentParser:
    settings: dict[str, Any] = {"exit_on_error": False, "formatter_class": _HelpFormatter}
    parser = ArgumentParser(prog="pyro-vae", **settings)
    subcommands = parser.add_subcommands()
    for name, command in commands.items():
        sub = ArgumentParser(description=(command.__doc__ or "").split("\n")[0], **settings)
        sub.add_argument("--config", action="config", help="YAML file of options, as --print_config prints.")
        if name == "train":
            sub.add_function_arguments(data.load)
            sub.add_method_arguments(VAE, "build", skip={"event_shape"})
            sub.add_function_arguments(fit, skip={"vae", "dataset", "progress"})
            sub.set_defaults(parts or {})
        else:
            sub.add_function_arguments(command, as_positional=True)
        subcommands.add_subcommand(name, sub)
    return parser


def _chosen(parser: ArgumentParser, given: list[str]) -> dict[str, Any]:
    """Return the classes that were chosen, to be the defaults of another parse.

    Where a class replaces another, jsonargparse keeps the arguments that both have: ``--objective IWAE`` would take
    the single particle of the default ELBO.
    """
    parsed = parser.parse_args([word for word in given if not word.startswith("--print_config")])
    options = parsed[parsed.subcommand] if parsed.subcommand else {}
    return {
        option: {"class_path": options[option]["class_path"]}
        for option in ROOMS
        if "." not in option and options.get(option)
    }


def _known(option: str) -> str:
    """Names of the classes that an option may be, in its room."""
    room, base = ROOMS[option]
    found = (getattr(room, name) for name in room.__all__)
    parts = (part for part in found if inspect.isclass(part) and issubclass(part, base) and part is not base)
    return ", ".join(part.__name__ for part in parts if not inspect.isabstract(part))


def _one_sentence(message: str) -> str:
    """Say what jsonargparse found wrong in one line: expected, got."""
    message = " ".join(message.split())
    option = ".".join(dict.fromkeys(re.findall(r'Parser key "([\w.]+)"', message)))
    got = re.search(r"(?:(?:Got|Given) value|import path string): (.+?)(?:\. Got value|\.?$)", message)
    part = re.search(r"class_path='([\w.]+)'", message)
    kinds = [*dict.fromkeys(re.findall(r"Expected an? (?:<class ')?(.+?)(?:'>)?(?=\. Got| - | Given|$)", message))]
    if unknown := re.search(r"Option '(\w+)' is not accepted", message):
        owner = re.findall(r"class_path(?:=| )'(?:\w+\.)*(\w+)'", message)
        return f"Expected an argument of {owner[-1] if owner else option}; got --{option}.{unknown[1]}."
    if option in ROOMS and got:
        number = "a number, or " if kinds and kinds[0].startswith("float") else ""
        return (
            f"Expected --{option} to be {number}one of {_known(option)}, or the import path of a class of yours; "
            f"got {part[1] if part else re.split(' Given | - ', got[1])[0]}."
        )
    if option and got and kinds:
        kinds = [kind for kind in kinds if kind != "NoneType"] or kinds
        kind = " or ".join(re.sub(r"typing\.Literal\[(.*)\]|(?:\w+\.)*(\w+)", r"\1\2", kind) for kind in kinds)
        found = re.split(" Given | - ", got[1])[0]
        return f"Expected --{option} to be {kind.replace('Sequence', 'a list, as [200, 200]')}; got {found}."
    return re.sub(r'Parser key "([\w.]+)": ', r"--\1: ", message).rstrip(".") + "."
