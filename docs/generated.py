"""What the site takes from elsewhere, so that nothing stands in two places: notebooks, numbers of tables, help texts.

``python docs/generated.py`` writes the README's table of results, between ``<!-- results -->`` and
``<!-- /results -->``, from the tables of the experiments.
"""

import csv
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "experiments" / "results"
README = HERE.parent / "README.md"
BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
MEMORY = re.compile(r"of a run of (\d+) epochs: .* after epoch (\d+), .* at the end, ([+-][\d.]+)%")
COUNTS = ("runs", "kills", "identical")
TIME = "AIS's time / adapted's"
COMMANDS = ("train", "evaluate", "generate", "compare")
# A notebook links to the experiment beside it, the site to the page of its results.
LINK = re.compile(r"\]\(\.\./experiments/(?:results/)?(\w+)\.(?:py|md|png)\)")
# A figure of an experiment stays where it is.
IMAGE = re.compile(r"(!\[[^\]]*\]\()\.\./experiments/")


def rows(name: str) -> list[dict[str, str]]:
    """Return the rows of an experiment's table, ``experiments/results/NAME.csv``."""
    with (RESULTS / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def numbers() -> dict[str, Any]:
    """Return the numbers that pages name in double braces, each read from the table of its experiment."""
    parts = (_discontinuity, _tug_of_war, _estimators, _signal_to_noise, _priors, _likelihoods, _inference)
    parts += (_sleep, _imputation, _classifier, _reliability, _published, _speed)
    return {name: value for part in parts for name, value in part().items()}


def _discontinuity() -> dict[str, str]:
    """Return ``gap_QUANTITY_MODEL_LATENT`` of draws from the standard normal, and of the real images."""
    found = {"gap_unreadable_real": _share(rows("discontinuity")[0]["unreadable"])}
    for row in rows("discontinuity"):
        if row["points"] == "standard normal":
            end = f"{'vae' if row['model'] == 'VAE' else 'plain'}_{row['latent']}"
            found |= {
                f"gap_unreadable_{end}": _share(row["unreadable"]),
                f"gap_jitter_{end}": _pair(row, "jitter (RMS)", 3),
            }
            found |= {f"gap_distance_{end}": _pair(row, "distance (RMS)", 3)}
        if row["points"] == "Gaussian fitted to codes" and row["model"] != "VAE":
            found[f"gap_distance_fitted_{row['latent']}"] = _pair(row, "distance (RMS)", 3)
    return found


def _tug_of_war() -> dict[str, str]:
    """Return ``tug_QUANTITY_BETA`` for each beta, with p for the point: ``tug_rate_0p01``."""
    columns = {"rate": ("rate (nats)", 1), "elbo": ("ELBO (nats)", 1), "rms": ("distortion (RMS)", 3)}
    columns |= {"sharpness": ("sharpness, reconstructions", 2), "distance": ("distance (RMS)", 3)}
    return {
        f"tug_{name}_{row['beta'].replace('.', 'p')}": _pair(row, key, places)
        for row in rows("tug_of_war")
        if row["rate (nats)"]
        for name, (key, places) in columns.items()
    }


def _estimators() -> dict[str, str]:
    """Return ranges over the estimators of one K: ``lab_steps_5``, ``lab_seconds_5``, ``lab_ms_5``; and two SNRs."""
    table, found = rows("estimators"), {}
    for k in dict.fromkeys(row["K"] for row in table):
        own = [row for row in table if row["K"] == k]
        found[f"lab_steps_{k}"] = _range([row["-log p(x), same steps"] for row in own], 1)
        found[f"lab_seconds_{k}"] = _range([row["-log p(x), same seconds"] for row in own], 1)
        found[f"lab_ms_{k}"] = _range([row["ms per step"] for row in own], 0)
    for row in table:
        name = row["estimator"].replace("IWAE, ", "").lower()
        if name in ("iwae", "dreg", "stl"):
            found[f"lab_snr_{name}_{row['K']}"] = _number(row["SNR, guide"], 1)
    return found


def _signal_to_noise() -> dict[str, str]:
    """Return ``slope_iwae``, ``slope_dreg``, ``slope_model`` and the length of the mean gradient of STL."""
    slopes, length = {}, ""
    for row in rows("signal_to_noise"):
        name = "model" if row["gradient"] == "model" else row["estimator"].rpartition(" ")[2].lower().replace("-", "_")
        slopes[f"slope_{name}"] = _number(row["slope"], 2)
        if name == "stl":
            length = _number(row["length"], 1)
    return slopes | {"stl_length": length}


def _priors() -> dict[str, str]:
    """Return ``prior_NAME``, -log p(x), and ``prior_NAME_unreadable``, for each prior."""
    short = {"GaussianMixture, 100": "mixture", "VampPrior, 500": "vamp", "StandardNormal": "normal"}
    found = {}
    for row in rows("priors"):
        name = short.get(row["prior"], row["prior"].rpartition(" ")[2])
        found |= {f"prior_{name}": _number(row["-log p(x)"], 1), f"prior_{name}_unreadable": _share(row["unreadable"])}
    return found


def _likelihoods() -> dict[str, str]:
    """Return ``bits_NAME`` for each likelihood; sharpness and error of the Gaussian with a scale per pixel."""
    found = {}
    for row in rows("likelihoods"):
        name = re.sub(r"\W+", "_", row["likelihood"]).lower()
        found |= {f"bits_{name}": _number(row["bits/dim"], 2), f"sharpness_{name}": _number(row["sharpness"], 1)}
        found |= {f"rms_{name}": _number(row["RMS"], 2)}
    return found


def _inference() -> dict[str, str]:
    """Return the numbers of each guide, ``is_ais_diagonal`` and so on, and of the adapted proposals."""
    found = {}
    for row in rows("inference"):
        name = {"D": "diagonal", "L": "lowrank", "F": "flow"}[row["guide"][0]]
        found |= {f"is_ais_{name}": _pair(row, "IS - AIS", 2), f"k_{name}": _share(row["k-hat > 0.7"])}
        found |= {f"{part}_{name}": _number(row[part], 2) for part in ("approximation", "amortisation")}
        found[f"ais_{name}"] = _number(row["AIS"], 1)
    (row,) = rows("adapted/inference")
    found |= {"is_ais_20": _pair(row, "IS - AIS", 2), "adapted_ais": _pair(row, "adapted - AIS", 3)}
    found["adapted_time"] = f"{1 / float(row[TIME]):.2f}"
    return found | {"k_20": _share(row["k-hat > 0.7"]), "adapted_k": f"{float(row['adapted, k-hat > 0.7']):.1%}"}


def _sleep() -> dict[str, str]:
    """Return ``sleep_QUANTITY_before`` and ``_after``."""
    columns = {"elbo": ("ELBO", 1), "nll": ("-log p(x)", 1), "amortisation": ("amortisation", 1)}
    columns |= {"approximation": ("approximation", 2)}
    found = {}
    for row, end in zip(rows("sleep"), ("before", "after"), strict=True):
        found |= {f"sleep_{name}_{end}": _pair(row, key, places) for name, (key, places) in columns.items()}
        found[f"sleep_k_{end}"] = _share(row["k-hat > 0.7"])
    return found


def _imputation() -> dict[str, str]:
    """Return the coverage of 90% intervals: at random holes, of a scale per pixel and of one, and of halves."""
    table = [row for row in rows("imputation") if row["trained on"] == "these holes"]
    found = {}
    for scale, name in (("per pixel", "pixel"), ("one", "one")):
        held = {row["missing"]: row["coverage of 90%"] for row in table if row["scale"] == scale}
        found[f"held_half_{name}"] = _share(held.pop("a half"))
        found[f"held_{name}"] = f"{_share(min(held.values()))} to {_share(max(held.values()))}"
    return found


def _classifier() -> dict[str, str]:
    """Return the error of the classifier and -log p(x) with close classes drawn again."""
    row = rows("generative_classifier")[-1]
    return {"classifier_error": row["error"], "classifier_nll": row["-log p(x), nats"]}


def _reliability() -> dict[str, str]:
    """Return counts over all ways of running a step, and what the caption says of memory."""
    table = rows("reliability")
    found = {name: str(sum(int(row[name]) for row in table)) for name in COUNTS}
    match = MEMORY.search((RESULTS / "reliability.md").read_text())
    assert match is not None
    epochs, settled, change = match.groups()
    change = f"{change.replace('-', '−')}%"
    return found | {"memory_change": change, "memory_from": settled, "memory_to": epochs}


def _published() -> dict[str, str]:
    """Return ``ours_ROW``, ``published_ROW`` and ``minutes_ROW`` of the last line of each row, and counts of rows."""
    last = {row["row"]: row for row in rows("published")}
    found = {}
    for name, row in last.items():
        end = name.replace("-", "_")
        found |= {f"ours_{end}": f"{float(row['ours']):.2f} ± {float(row['stderr']):.2f}"}
        found |= {f"published_{end}": _number(row["published"], 2), f"minutes_{end}": _number(row["minutes"], 0)}
    below = sum(float(row["ours"]) < float(row["published"]) for row in last.values())
    return found | {"rows_below": str(below), "rows_in_all": str(len(last))}


def _speed() -> dict[str, str]:
    """Return ranges of our time over that of others, exponents, and the speed-up of two processes."""
    table = rows("speed")
    wanted = {
        "speed_stock": ("step, inductor", "stock Pyro"),
        "speed_graph": ("step, graph", "stock Pyro"),
        "speed_hand": ("step, inductor", "handwritten, compiled"),
        "speed_numpyro": ("step, inductor", "NumPyro"),
        "speed_pythae": ("epoch of fit", "pythae"),
        "speed_iwae_stock": ("IWAE-50, inductor", "stock Pyro"),
        "speed_bfloat16": ("step, bfloat16", "float32"),
        "speed_import": ("the same, with VAE, fit, ...", "import pyro"),
    }
    found = {
        name: _range([row["ratio"] for row in table if (row["what"], row["rival"]) == key], 2)
        for name, key in wanted.items()
    }
    for row in table:
        if row["what"].startswith("cost against"):
            found[f"exponent_{row['what'].rpartition(' ')[2]}"] = _number(row["ratio"], 2)
        if row["what"] == "two processes":
            found[f"two_processes_{row['setting'].rpartition(' ')[2]}"] = _number(row["ratio"], 2)
    return found


def readme_table() -> str:
    """Return the README's table of results in Markdown: an experiment, its result and its script a row."""
    n = numbers()
    lines = [
        ("−log p(x), MNIST, one layer", "{ours_vae} nats, published {published_vae}", "reproduce.py vae"),
        ("the same, two layers", "{ours_two_layers} nats, published {published_two_layers}", "reproduce.py two-layers"),
        ("Time of a training step", "{speed_stock} of stock Pyro's", "speed.py"),
        ("Killed and resumed runs", "{identical} of {runs} equal to the last bit", "reliability.py"),
        ("Learned priors", "−log p(x) from {prior_normal} down to {prior_vamp} nats", "priors.py"),
        ("90% intervals, missing pixels", "hold {held_pixel}", "imputation.py"),
    ]
    heads = ["| experiment | result | `python experiments/` |", "|---|---|---|"]
    return "\n".join([*heads, *(f"| {what} | {result.format(**n)} | `{script}` |" for what, result, script in lines)])


def write_readme(path: Path = README) -> None:
    """Write the table of results between the README's markers, where it has them."""
    text = path.read_text()
    _write_if_other(path, BLOCK.sub(lambda found: f"{found[1]}{readme_table()}\n{found[2]}", text))


def _number(text: str, places: int) -> str:
    """Write a number with a true minus sign."""
    return f"{float(text):.{places}f}".replace("-", "−")


def _pair(row: dict[str, str], key: str, places: int) -> str:
    """Write a number and its spread."""
    return f"{_number(row[key], places)} ± {_number(row[f'{key} ±'], places)}"


def _share(text: str) -> str:
    """Write a share as a percentage."""
    return f"{float(text):.0%}"


def _range(texts: list[str], places: int) -> str:
    """Write the least and the greatest number, or the one number that both are."""
    low, high = (_number(end, places) for end in (min(texts, key=float), max(texts, key=float)))
    return low if low == high else f"{low} to {high}"


def write(site: Path, root: Path) -> None:
    """Write the copies of notebooks and the help texts of the command into the site's folder."""
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        text = IMAGE.sub(r"\1../../experiments/", path.read_text())
        _write_if_other(site / "learn" / path.name, LINK.sub(r"](../results/\1.md)", text))
    for name in COMMANDS:
        words = [sys.executable, "-m", "pyro_vae", name, "--help"]
        text = subprocess.run(words, capture_output=True, text=True, check=True, env={"COLUMNS": "100"}).stdout
        _write_if_other(site / "reference" / "_generated" / f"{name}.txt", text)


def _write_if_other(path: Path, text: str) -> None:
    """Write a file unless it has this text, so that Sphinx reads no page twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


if __name__ == "__main__":
    write_readme()
