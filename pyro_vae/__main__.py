"""The ``pyro-vae`` command. Its options are the signatures of ``data.load``, ``VAE.build`` and ``fit``."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter
from matplotlib.figure import Figure
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae import VAE, data, evaluate, fit, guides, likelihoods, load, networks, plots, priors
from pyro_vae.objectives import closed_form_kl

__all__ = ["main"]

ROOMS = {"prior": priors, "likelihood": likelihoods, "guide": guides, "network": networks}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0, 2 after bad input, 130 after Ctrl-C."""
    parser, commands = _parsers()
    name = "pyro-vae"
    try:
        parsed = parser.parse_args(arguments)
        name = f"pyro-vae {parsed.subcommand}"
        options = parser.instantiate(parsed)[parsed.subcommand].as_dict()
        options.pop("config", None)
        commands[parsed.subcommand](**options)
    except ArgumentError as error:
        print(f"{name}: {_one_sentence(str(error))} See pyro-vae --help.", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted; a run directory holds the weights so far.", file=sys.stderr)
        return 130
    return 0


def _train(**options: Any) -> None:
    """Train a VAE, print its ELBO and -log p(x) on every split, and draw its figures."""

    def take(function: Callable[..., Any]) -> dict[str, Any]:
        return {key: options[key] for key in inspect.signature(function).parameters if key in options}

    dataset = data.load(**take(data.load))
    counts = ", ".join(f"{len(part):,} {name}" for name, part in dataset.splits.items())
    print(f"{dataset}: {counts} images of {'x'.join(map(str, dataset.event_shape))}")
    with torch.random.fork_rng():
        torch.manual_seed(options["seed"])
        vae = VAE.build(dataset.event_shape, **take(VAE.build))
    if options["run_dir"] is None:
        source = Path(options["data"]).stem or "data"
        options["run_dir"] = f"runs/{source}-{datetime.now():%Y%m%d-%H%M%S}"
    history = fit(vae, dataset, **take(fit))
    print(_table(vae, dataset))
    folder = _save_figures(vae, dataset, {"curves": plots.curves(history)}, options["run_dir"])
    print(f"figures: {folder}\nrun:     {options['run_dir']}")


def _evaluate(run: str, num_particles: int = 1000, images: int = 1000, seed: int = 0, device: str = "cpu") -> None:
    """Print the ELBO, its two terms and -log p(x) of a trained VAE, and draw its figures anew.

    Args:
        run: Run directory.
        num_particles: Draws per datum for -log p(x).
        images: How many images of each split, the first ones.
        seed: Seed of the draws.
        device: ``cpu`` or ``cuda``.
    """
    vae, config = load(run)
    dataset = _dataset_of(run, config)
    print(_table(vae.to(device), dataset, num_particles, images, seed))
    print(f"figures: {_save_figures(vae, dataset, {}, run)}")


def _generate(run: str, num: int = 64, seed: int = 0, output: str | None = None) -> None:
    """Draw images from a trained VAE: z from the prior, and the mean of p(x | z).

    Args:
        run: Run directory.
        num: How many.
        seed: Seed of the draws.
        output: A ``.png`` for a picture, a ``.npy`` for numbers. If not given, figures/generated.png of the run.
    """
    vae, _ = load(run)
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
        import numpy as np

        np.save(path, x.numpy())
    else:
        plots.samples(x).savefig(path, dpi=150)
    print(path)


def _dataset_of(run: str, config: dict[str, Any]) -> data.Dataset:
    if config["data"] == "tensor":
        raise ValueError(f"Expected a run on a named data set; {run!r} was trained on a tensor. Use evaluate.summary.")
    return data.load(**{key: config[key] for key in inspect.signature(data.load).parameters})


def _table(vae: VAE, dataset: data.Dataset, num_particles: int = 1000, images: int = 1000, seed: int = 0) -> str:
    """The closing table: nats per datum, mean and standard error over data, for each split."""
    law = vae.decoder(vae.prior().sample((1,)))
    kind = "mass" if law.support.is_discrete else "density"
    rows = [
        f"{'split':6}{'images':>8}" + "".join(f"{head:>18}" for head in ("ELBO", "E[log p(x|z)]", "KL", "-log p(x)"))
    ]
    for name, part in dataset.splits.items():
        found = evaluate.summary(vae, part.to(vae.reference.device), num_particles, images, seed, progress=True)
        cells = (f"{mean:10.2f} ± {error:<5.2f}" for mean, error in found[1:])
        rows.append(f"{name:6}{found.images:8,}" + "".join(f"{cell:>18}" for cell in cells))
    notes = (
        f"nats per datum, mean ± standard error over the images; {dataset}; a {kind}. ELBO at beta = 1 with 10 draws;\n"
        f"-log p(x) is minus the importance weighted bound with {num_particles:,} draws, an upper bound on average."
    )
    return "\n".join(["", *rows, notes, ""])


def _save_figures(vae: VAE, dataset: data.Dataset, figures: dict[str, Figure], run: str | Path) -> Path:
    """Save what can be drawn of the VAE on the test images beside ``figures``; return the folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        figures = figures | _figures(vae, dataset)
    folder = Path(run) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    return folder


def _figures(vae: VAE, dataset: data.Dataset) -> dict[str, Figure]:
    test = dataset.test.to(vae.reference.device)
    x = test[slice(0, 2000)].to(vae.reference)
    with torch.no_grad():
        q = vae.encoder(x)
    labels = None if test.labels is None else test.labels[: len(x)]
    figures = {"latent_space": plots.latent_space(q.mean, labels)}
    if len(dataset.event_shape) not in (2, 3):
        return figures
    nats = _kl_per_dimension(q, vae.prior())
    order = None if nats is None else nats.argsort(descending=True)[:20].tolist()
    rows = min(8, len(x) // 2)
    figures["reconstructions"] = plots.reconstructions(x[:16], vae.reconstruct(x[:16]))
    figures["samples"] = plots.samples(vae.generate(100))
    figures["interpolation"] = plots.interpolation(vae.interpolate(x[:rows], x[rows : 2 * rows]))
    figures["traversal"] = plots.traversal(
        vae.traverse(x[0]), order=order, nats=None if nats is None else nats.tolist()
    )
    if q.event_shape == (2,):
        figures["manifold"] = plots.manifold(vae.manifold())
    return figures


def _kl_per_dimension(q: TorchDistribution, p: TorchDistribution) -> Tensor | None:
    """Mean divergence of each latent dimension, where q and p are independent over them and have a closed form."""
    if not (isinstance(q, torch.distributions.Independent) and isinstance(p, torch.distributions.Independent)):
        return None
    kl = closed_form_kl(q.base_dist, p.base_dist)
    return None if kl is None or kl.shape[1:] != q.event_shape else kl.mean(0)


class _HelpFormatter(DefaultHelpFormatter):
    """Leaves torch's and Pyro's own modules out of the list of known classes."""

    def _expand_help(self, action: Any) -> str:
        return re.sub(
            r"(known subclasses: )([^)]*)",
            lambda found: found[1] + ", ".join(name for name in found[2].split(", ") if name.startswith("pyro_vae")),
            super()._expand_help(action),
        )


def _parsers() -> tuple[ArgumentParser, dict[str, Callable[..., None]]]:
    commands: dict[str, Callable[..., None]] = {"train": _train, "evaluate": _evaluate, "generate": _generate}
    settings: dict[str, Any] = {"exit_on_error": False, "formatter_class": _HelpFormatter}
    parser = ArgumentParser(
        prog="pyro-vae", description="Variational autoencoders as probabilistic programs.", **settings
    )
    subcommands = parser.add_subcommands()
    for name, command in commands.items():
        sub = ArgumentParser(description=(command.__doc__ or "").split("\n")[0], **settings)
        sub.add_argument("--config", action="config", help="YAML file of options, as --print_config prints.")
        if name == "train":
            sub.add_function_arguments(data.load)
            sub.add_method_arguments(VAE, "build", skip={"event_shape"})
            sub.add_function_arguments(fit, skip={"vae", "dataset", "progress"})
        else:
            sub.add_function_arguments(command, as_positional=True)
        subcommands.add_subcommand(name, sub, help=(command.__doc__ or "").split("\n")[0])
    return parser, commands


def _one_sentence(message: str) -> str:
    """Say what jsonargparse found wrong in one line, with the names that would have done for a part."""
    key = re.search(r'key "([\w.]+)"', message)
    if key and key[1] in ROOMS and "import path" in message:
        known = ", ".join(name for name in ROOMS[key[1]].__all__ if name != "Network")
        got = message.strip().rsplit(" ", 1)[-1]
        return f"Expected --{key[1]} to be one of {known}, or the import path of a class of yours; got {got}."
    return " ".join(message.split()).rstrip(".") + "."


if __name__ == "__main__":
    sys.exit(main())
