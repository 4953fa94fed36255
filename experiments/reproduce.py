r"""Reproduction of published numbers: each command trains a row of a paper's table and evaluates it as the paper does.

The data are MNIST, binarised dynamically: 60,000 training images, binarised at every reading; 10,000 test images,
binarised once, with the seed of :func:`pyro_vae.data.load`. For each row:

- -log p(x): the importance weighted bound with 5,000 draws on all test images, nats per image; on average an upper
  bound;
- -ELBO at beta = 1, and active units: latent dimensions u with Var_x(E_q[u | x]) > 0.01;
- minutes: wall time of training;
- AIS, for some rows, on 100 test images: -log p(x) by annealed importance sampling, and by the bound with 5,000 draws
  on the same images, which shows the error of the bound;
- adapted, for some rows, on the first test images of a trained row (``--adapted 500``): -log p(x) by 1,000 draws from a
  proposal fitted to each image, by the bound with 5,000 draws on the same images, and the shares of k-hat above 0.7.

The recipe (``papers.py``) was chosen with ``--held_out true``, which trains on 50,000 of the training images and
evaluates on the other 10,000, never on test images. Repeat the command to resume an interrupted row.

With 50 draws per image, arrays are larger than the memory that glibc reuses. To let it reuse them, put
``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647`` before the command, as for ``iwae-5`` and ``iwae-50``.

References:
    Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016).

    VAE with a VampPrior (Tomczak and Welling, 2018).

    Exemplar VAE: Linking Generative Models, Nearest Neighbor Retrieval, and Data Augmentation (Norouzi, Fleet and
    Norouzi, 2020).

    On the Quantitative Analysis of Decoder-Based Generative Models (Wu, Burda, Salakhutdinov and Grosse, 2017).

The committed table and figure: ``python experiments/reproduce.py ROW --root DATA``, for each ROW of ``--list``.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from papers import RECIPE, ROWS
from published import FEW, append, draw, read

from pyro_vae import VAE, ais, evaluate, fit
from pyro_vae import load as load_run
from pyro_vae.checkpoint import to_spec
from pyro_vae.compare.rows import format_spec
from pyro_vae.compiled.device import Precision
from pyro_vae.data import Dataset, Split, load
from pyro_vae.evaluate.summaries import mean_and_error
from pyro_vae.objectives import Objective

POINTS = 12  # of the curve of a row
ADAPTED = 1000  # draws per image from an adapted proposal
WITH_AIS = ("vae", "gated-flow")


def main(
    row: str,
    root: str = "data",
    runs: str = "runs/published",
    seed: int = 0,
    num_particles: int | None = None,
    images: int | None = None,
    held_out: bool = False,
    recipe: dict[str, Any] | None = None,
    objective: Objective | None = None,
    epochs: int | None = None,
    precision: Precision = "auto",
    temperatures: int = 1000,
    adapted: int = 0,
    data: str = "mnist",
    out: str = "experiments/results",
) -> None:
    """Train or resume a row, evaluate it, and write it to published.csv, .md and .png in ``out``.

    Args:
        row: Name of a row, as ``--list`` shows.
        root: Folder where torchvision finds MNIST.
        runs: Folder of the run directories.
        seed: Seed of the weights, the order and the draws.
        num_particles: Draws per image for -log p(x); by default the row's number.
        images: Number of test images, the first ones; by default the row's number.
        held_out: Whether to try a recipe: train on 50,000 images, evaluate on the other 10,000 training images, and
            append a line to published_recipes.csv.
        recipe: Arguments of ``fit`` that replace the recipe's, as '{"optimizer": "adam", "lr": 2e-3}'.
        objective: Objective that replaces the row's.
        epochs: Passes over the training images, by default as many as the row has.
        precision: Precision of products in training, as in ``fit``: ``bfloat16`` is faster on CPUs with instructions
            for it. The evaluation is in float32.
        temperatures: Temperatures of AIS, for the rows that have it.
        adapted: Only weigh this number of test images, the first ones, of a trained row by adapted proposals.
        data: Name of another data set, to try the script.
        out: Folder for the results.
    """
    if row not in ROWS:
        raise ValueError(f"Expected a row among {', '.join(ROWS)}; got {row!r}.")
    if (recipe or objective) and not held_out:
        raise ValueError(f"Expected --held_out true with another recipe or objective; got {recipe or objective}.")
    if adapted and (held_out or recipe or objective):
        raise ValueError(
            f"Expected --adapted {adapted} alone, for a trained row of the table; got a trial of a recipe."
        )
    wanted = ROWS[row]
    num_particles, images = num_particles or wanted.particles, images or wanted.images
    chosen = {} if precision == "auto" else {"precision": precision}
    options = RECIPE | dict(wanted.own) | chosen | (recipe or {})
    length = epochs or wanted.epochs
    dataset = load(data, root, binarize="dynamic", valid=None if held_out else 0)
    part = dataset.valid if held_out else dataset.test
    if adapted:
        line = compare_proposals(load_run(Path(runs) / f"{row}-{seed}")[0], dataset.test[:adapted], num_particles, seed)
        append(Path(out) / "published_adapted.csv", [{"row": row, "seed": seed} | line])
        draw(Path(out) / "published")
        return
    vae = wanted.build(dataset.event_shape, seed, runs)
    objective = objective or wanted.objective()
    named = format_spec(to_spec(objective))
    tried = "-".join(["", "held-out", named, *map(str, (chosen | (recipe or {})).values())]) if held_out else ""
    run = Path(runs) / f"{row}-{seed}{tried}"
    where: dict[str, Any] = {"resume": run} if (run / "config.yaml").exists() else {"run_dir": run}
    curve = Curve(run / "curve.csv", vae, part, length, images)
    history = fit(vae, dataset, objective, length, seed=seed, on_epoch=curve, **options, **where)
    minutes = round(sum(history["seconds"]) / 60, 1)
    which = f"{images:,} {'images held out' if held_out else 'test images'}"
    print(f"{wanted.title}: {minutes} minutes; now {num_particles:,} draws for each of {which}")
    values = evaluate.per_image(vae, part, num_particles, images, seed, progress=True)
    ours, error = (round(number, 3) for number in mean_and_error(values.nll))
    elbo = round(values.elbo.mean().item(), 3)
    print(f"-log p(x) {ours:.2f} ± {error:.2f} nats, published {wanted.published:.2f}; -ELBO {-elbo:.2f}")
    stem = Path(out) / "published"
    stem.parent.mkdir(parents=True, exist_ok=True)
    if held_out:
        shown = " ".join(f"{name}={value}" for name, value in options.items())
        line = {"row": row, "objective": named, "recipe": shown, "epochs": length, "minutes": minutes}
        line |= {"threads": torch.get_num_threads(), "held out": ours, "particles": num_particles}
        append(stem.with_name("published_recipes.csv"), [line | {"images": len(values.nll), "seed": seed}])
        return
    words = f"python experiments/reproduce.py {row} --seed {seed}" + (f" --epochs {epochs}" if epochs else "")
    words += f" --precision {precision}" if chosen else ""
    found = {"row": row, "source": wanted.source, "published": wanted.published, "ours": ours, "stderr": error}
    found |= {"particles": num_particles, "images": len(values.nll), "minutes": minutes, "seed": seed, "command": words}
    activity = evaluate.latent_activity(vae, part[:images], seed=seed)
    more = {"row": row, "seed": seed, "-ELBO": -elbo, "active": int((activity > 0.01).sum()), "latent": len(activity)}
    more |= {"epochs": length} | machine(run)
    slack = annealed(vae, dataset, values.nll, temperatures, seed) if row in WITH_AIS else ("", "")
    more |= dict(zip(("AIS", "bound on the same"), slack, strict=True))
    append(stem.with_suffix(".csv"), [found])
    append(stem.with_name("published_more.csv"), [more])
    append(stem.with_name("published_curves.csv"), [{"row": row, "seed": seed} | point for point in read(curve.path)])
    draw(stem)
    print(stem.with_suffix(".md"))


class Curve:
    """Evaluates a VAE on images during training, at some epochs, and keeps a line for each in the run.

    ``fit`` calls it with the history. It does not affect the training.

    Args:
        path: A .csv file: epoch, minutes of training, -log p(x).
        vae: The VAE in training.
        part: Images for the evaluation.
        epochs: Epochs of the training.
        images: Number of images, the first ones.
    """

    def __init__(self, path: Path, vae: VAE, part: Split, epochs: int, images: int) -> None:
        self.path, self.vae, self.part, self.epochs, self.images = path, vae, part, epochs, images

    def __call__(self, history: dict[str, list[float]]) -> None:
        """Add a line, at one of the chosen epochs."""
        epoch = len(history["train"])
        if epoch * POINTS // self.epochs == (epoch - 1) * POINTS // self.epochs:
            return
        nll = evaluate.nll(self.vae, self.part[: self.images], FEW, seed=0).mean().item()
        points: list[dict[str, Any]] = [point for point in read(self.path) if int(point["epoch"]) < epoch]
        minutes = round(sum(history["seconds"]) / 60, 2)
        points.append({"epoch": epoch, "minutes": minutes, f"-log p(x), {FEW} draws": round(nll, 3)})
        self.path.unlink(missing_ok=True)
        append(self.path, points)


def annealed(vae: VAE, dataset: Dataset, nll: torch.Tensor, temperatures: int, seed: int) -> tuple[float, float]:
    """Return -log p(x) of the first 100 test images by AIS and by importance sampling."""
    first = nll[:100]
    found = -ais.ais(vae, dataset.test[: len(first)], chains=16, temperatures=temperatures, seed=seed, progress=True)
    return round(found.mean().item(), 3), round(first.mean().item(), 3)


def compare_proposals(program: torch.nn.Module, x: torch.Tensor, num_particles: int, seed: int) -> dict[str, Any]:
    """Return -log p(x) of images by the guide and by adapted proposals, and shares of k-hat above 0.7."""
    by_guide = evaluate.log_weights(program, x, num_particles, seed=seed, progress=True)
    adapted = evaluate.log_weights(program, x, ADAPTED, seed=seed, progress=True, proposal="adapted")
    less, error = mean_and_error(evaluate.iwae(adapted) - evaluate.iwae(by_guide))
    line: dict[str, Any] = {"images": len(x), "draws": ADAPTED, "less": round(less, 3), "stderr": round(error, 3)}
    for name, log_w in (("guide", by_guide), ("adapted", adapted)):
        line[name] = round(-evaluate.iwae(log_w).mean().item(), 3)
        line[f"{name}, k-hat > 0.7"] = round((evaluate.pareto_k(log_w) > 0.7).float().mean().item(), 3)
    return line


def machine(run: Path) -> dict[str, Any]:
    """Return the threads, CPU instructions and commits of a run, at its start and at each resume."""
    made = json.loads((run / "environment.json").read_text())
    starts = [made, *made.get("resumed", [])]
    found = [(start["threads"], start["instructions"], (start["git"] or {}).get("commit", "")) for start in starts]
    columns = (" ".join(dict.fromkeys(map(str, column))) for column in zip(*found, strict=True))
    return dict(zip(("threads", "instructions", "commit"), columns, strict=True))


def listed() -> str:
    """Return the rows as text, for ``--list``."""
    width = max(map(len, ROWS))
    heads = f"{'row':{width}}  {'published':>9}  {'paper':>6}  {'epochs':>6}  model"
    lines = (
        f"{name:{width}}  {row.published:9.2f}  {'-' if math.isnan(row.paper) else f'{row.paper:.2f}':>6}  "
        f"{row.epochs:6}  {row.title}"
        for name, row in ROWS.items()
    )
    return "\n".join([heads, *lines, "\n-log p(x) in nats per test image: dynamic MNIST, 5,000 draws, 10,000 images"])


if __name__ == "__main__":
    parser = ArgumentParser(description="Train a row of a published table, evaluate it, and append it to the table.")
    parser.add_argument("row", nargs="?", type=str, help="Name of a row, as --list shows.")
    parser.add_argument("--list", action="store_true", help="Show the rows.")
    parser.add_function_arguments(main, skip={"row"})
    given = parser.instantiate(parser.parse_args()).as_dict()
    if given.pop("list") or not given["row"]:
        print(listed())
        sys.exit()
    try:
        main(**given)
    except KeyboardInterrupt as stopped:
        sys.exit(f"\nStopped. {stopped} Or repeat the command.")
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
