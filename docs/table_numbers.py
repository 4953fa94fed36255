"""Numbers that pages name in double braces, each read from the table of its experiment."""

import csv
import re
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "experiments" / "results"
MEMORY = re.compile(r"of a run of (\d+) epochs: .* after epoch (\d+), .* at the end, ([+-][\d.]+)%")
COUNTS = ("runs", "kills", "identical")
TIME = "AIS's time / adapted's"


def rows(name: str) -> list[dict[str, str]]:
    """Return the rows of an experiment's table, ``experiments/results/NAME.csv``."""
    with (RESULTS / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def numbers() -> dict[str, str]:
    """Return the numbers of all tables by name."""
    parts = (_discontinuity, _tug_of_war, _estimators, _signal_to_noise, _priors, _likelihoods, _inference)
    parts += (_blur, _sleep, _imputation, _classifier, _reliability, _published, _speed)
    parts += (_schedules, _sweeps, _minute)
    return {name: value for part in parts for name, value in part().items()}


def _discontinuity() -> dict[str, str]:
    """Return ``gap_QUANTITY_MODEL_LATENT`` of draws from the standard normal, and of the real images."""
    values = {"gap_unreadable_real": _share(rows("discontinuity")[0]["unreadable"])}
    for row in rows("discontinuity"):
        if row["points"] == "standard normal":
            end = f"{'vae' if row['model'] == 'VAE' else 'plain'}_{row['latent']}"
            values |= {
                f"gap_unreadable_{end}": _share(row["unreadable"]),
                f"gap_jitter_{end}": _pair(row, "jitter (RMS)", 3),
            }
            values |= {f"gap_distance_{end}": _pair(row, "distance (RMS)", 3)}
        if row["points"] == "Gaussian fitted to codes" and row["model"] != "VAE":
            values[f"gap_distance_fitted_{row['latent']}"] = _pair(row, "distance (RMS)", 3)
    return values


def _blur() -> dict[str, str]:
    """Return ``blur_QUANTITY_MODEL`` of samples, and ``blur_sharpness_MODEL_rec`` of reconstructions."""
    names = {"Gaussian, optimal scale": "gaussian", "DiscretizedLogistic": "logistic", "GAN": "gan"}
    names |= {f"DiscretizedLogistic, {prior} prior": prior.lower() for prior in ("Flow", "Diffusion")}
    names |= {"VQ-VAE, independent codes": "vq", "VQ-VAE, Autoregressive prior": "vqar", "Gaussian, scale 1 (L2)": "l2"}
    values = {}
    for row in rows("blur"):
        name = names.get(row["model"])
        if name and row["images"] == "samples":
            values |= {f"blur_{key}_{name}": _number(row[key], 2) for key in ("sharpness", "coverage", "precision")}
            values[f"blur_unreadable_{name}"] = _share(row["unreadable"])
            values |= {} if row["bits/dim"] == "-" else {f"blur_bits_{name}": _number(row["bits/dim"], 3)}
        elif name:
            kind = "rec" if row["images"] == "reconstructions" else "draws"
            values[f"blur_sharpness_{name}_{kind}"] = _number(row["sharpness"], 2)
    return values


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
    table, values = rows("estimators"), {}
    for k in dict.fromkeys(row["K"] for row in table):
        own = [row for row in table if row["K"] == k]
        values[f"lab_steps_{k}"] = _range([row["-log p(x), same steps"] for row in own], 1)
        values[f"lab_seconds_{k}"] = _range([row["-log p(x), same seconds"] for row in own], 1)
        values[f"lab_ms_{k}"] = _range([row["ms per step"] for row in own], 0)
    for row in table:
        name = row["estimator"].replace("IWAE, ", "").lower()
        if name in ("iwae", "dreg", "stl"):
            values[f"lab_snr_{name}_{row['K']}"] = _number(row["SNR, guide"], 1)
    return values


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
    values = {}
    for row in rows("priors"):
        name = short.get(row["prior"], row["prior"].rpartition(" ")[2])
        values |= {f"prior_{name}": _number(row["-log p(x)"], 1), f"prior_{name}_unreadable": _share(row["unreadable"])}
    return values


def _likelihoods() -> dict[str, str]:
    """Return ``bits_NAME`` for each likelihood; sharpness and error of the Gaussian with a scale per pixel."""
    values = {}
    for row in rows("likelihoods"):
        name = re.sub(r"\W+", "_", row["likelihood"]).lower()
        values |= {f"bits_{name}": _number(row["bits/dim"], 2), f"sharpness_{name}": _number(row["sharpness"], 1)}
        values |= {f"rms_{name}": _number(row["RMS"], 2)}
    return values


def _inference() -> dict[str, str]:
    """Return the numbers of each guide, ``is_ais_diagonal`` and so on, and of the adapted proposals."""
    values = {}
    for row in rows("inference"):
        name = {"D": "diagonal", "L": "lowrank", "F": "flow"}[row["guide"][0]]
        values |= {f"is_ais_{name}": _pair(row, "IS - AIS", 2), f"k_{name}": _share(row["k-hat > 0.7"])}
        values |= {f"{part}_{name}": _number(row[part], 2) for part in ("approximation", "amortisation")}
        values[f"ais_{name}"] = _number(row["AIS"], 1)
    (row,) = rows("adapted/inference")
    values |= {"is_ais_20": _pair(row, "IS - AIS", 2), "adapted_ais": _pair(row, "adapted - AIS", 3)}
    values["adapted_time"] = f"{1 / float(row[TIME]):.2f}"
    return values | {"k_20": _share(row["k-hat > 0.7"]), "adapted_k": f"{float(row['adapted, k-hat > 0.7']):.1%}"}


def _sleep() -> dict[str, str]:
    """Return ``sleep_QUANTITY_before`` and ``_after``."""
    columns = {"elbo": ("ELBO", 1), "nll": ("-log p(x)", 1), "amortisation": ("amortisation", 1)}
    columns |= {"approximation": ("approximation", 2)}
    values = {}
    for row, end in zip(rows("sleep"), ("before", "after"), strict=True):
        values |= {f"sleep_{name}_{end}": _pair(row, key, places) for name, (key, places) in columns.items()}
        values[f"sleep_k_{end}"] = _share(row["k-hat > 0.7"])
    return values


def _imputation() -> dict[str, str]:
    """Return the coverage of 90% intervals: at random holes, of a scale per pixel and of one, and of halves."""
    table = [row for row in rows("imputation") if row["trained on"] == "these holes"]
    values = {}
    for scale, name in (("per pixel", "pixel"), ("one", "one")):
        held = {row["missing"]: row["coverage of 90%"] for row in table if row["scale"] == scale}
        values[f"held_half_{name}"] = _share(held.pop("a half"))
        values[f"held_{name}"] = f"{_share(min(held.values()))} to {_share(max(held.values()))}"
    return values


def _classifier() -> dict[str, str]:
    """Return the error of the classifier and -log p(x) with close classes drawn again."""
    row = rows("generative_classifier")[-1]
    return {"classifier_error": row["error"], "classifier_nll": row["-log p(x), nats"]}


def _reliability() -> dict[str, str]:
    """Return counts over all ways of running a step, and what the caption says of memory."""
    table = rows("reliability")
    values = {name: str(sum(int(row[name]) for row in table)) for name in COUNTS}
    match = MEMORY.search((RESULTS / "reliability.md").read_text())
    assert match is not None
    epochs, settled, change = match.groups()
    change = f"{change.replace('-', '−')}%"
    return values | {"memory_change": change, "memory_from": settled, "memory_to": epochs}


def _minute() -> dict[str, str]:
    """Return -log p(x) and the number of epochs of each rival."""
    names = {"pyro_vae": "ours", "handwritten": "hand", "NumPyro": "numpyro", "stock Pyro": "stock", "pythae": "pythae"}
    values = {}
    for row in rows("minute"):
        rival, *_, way = row["rival"].split(", ")
        end = names[rival] + ("" if way == "default" else f"_{way}")
        values |= {f"minute_{end}": _pair(row, "-log p(x)", 1), f"minute_epochs_{end}": f"{float(row['epochs']):.0f}"}
    return values


def _sweeps() -> dict[str, str]:
    """Return counts of the sweep that was killed, and the overhead of the one that was not."""
    whole, killed, *_ = rows("sweeps")
    values = {f"sweep_{name}": killed[name] for name in ("runs", "kills", "identical")}
    return values | {"sweep_overhead": f"{100 * float(whole['overhead']):.1f}%"}


def _published() -> dict[str, str]:
    """Return ``ours_ROW``, ``published_ROW`` and ``minutes_ROW`` of the last line of each row, and counts of rows."""
    last = {row["row"]: row for row in rows("published")}
    values = {}
    for name, row in last.items():
        end = name.replace("-", "_")
        values |= {f"ours_{end}": f"{float(row['ours']):.2f} ± {float(row['stderr']):.2f}"}
        values |= {f"published_{end}": _number(row["published"], 2), f"minutes_{end}": _number(row["minutes"], 0)}
    below = sum(float(row["ours"]) < float(row["published"]) for row in last.values())
    return values | {"rows_below": str(below), "rows_in_all": str(len(last))}


def _speed() -> dict[str, str]:
    """Return ranges of our time over that of others, exponents, and the speed-up of two processes."""
    table = rows("speed")
    wanted = {
        "speed_stock": ("step, inductor", "stock Pyro"),
        "speed_graph": ("step, graph", "stock Pyro"),
        "speed_hand": ("step, inductor", "handwritten, compiled"),
        "speed_numpyro": ("step, inductor", "NumPyro"),
        "speed_eager": ("step, graph", "handwritten, eager"),
        "speed_vamp": ("VampPrior, inductor", "stock Pyro"),
        "speed_flow": ("Flow, inductor", "stock Pyro"),
        "speed_conv": ("step, convolutions", "handwritten, compiled"),
        "speed_last": ("step, convolutions", "handwritten, channels last"),
        "speed_jax": ("step, convolutions", "JAX"),
        "speed_help": ("pyro-vae train --help", "import torch"),
        "speed_pythae": ("epoch of fit", "pythae"),
        "speed_iwae_stock": ("IWAE-50, inductor", "stock Pyro"),
        "speed_bfloat16": ("step, bfloat16", "float32"),
        "speed_nll_jax": ("-log p(x)", "JAX"),
        "speed_nll_torch": ("-log p(x)", "torch"),
        "speed_ais": ("AIS, an evaluation", "JAX"),
        "speed_nuts": ("NUTS, one image, an independent draw", "NumPyro, sequential"),
        "speed_nuts_compiling": ("NUTS, one image, an independent draw", "NumPyro, sequential, compiling"),
        "speed_nuts_vectorized_compiling": ("NUTS, one image, an independent draw", "NumPyro, vectorized, compiling"),
        "speed_nuts_vectorized": ("NUTS, one image, an independent draw", "NumPyro, vectorized"),
        "speed_ten_images": ("NUTS, ten images", "one image"),
        "speed_import": ("the same, with VAE, fit, ...", "import pyro"),
    }
    values = {
        name: _range([row["ratio"] for row in table if (row["what"], row["rival"]) == key], 2)
        for name, key in wanted.items()
    }
    for row in table:
        if row["what"].startswith("cost against"):
            values[f"exponent_{row['what'].rpartition(' ')[2]}"] = _number(row["ratio"], 2)
        if row["what"] == "two processes":
            values[f"two_processes_{row['setting'].rpartition(' ')[2]}"] = _number(row["ratio"], 2)
    return values


def _schedules() -> dict[str, str]:
    """Return what the default learning rate gains over a constant one on a few models, in nats of ELBO."""
    names = {"MLP": "mlp", "Conv": "conv", "Flow prior": "flow", "Bernoulli, VampPrior": "vamp"}
    gains = {row["model"]: float(row["trapezoid"]) - float(row["constant"]) for row in rows("schedules")}
    values = {f"schedule_{end}": _number(str(gains[name]), 1) for name, end in names.items()}
    better = sum(gain > 0 for gain in gains.values())
    return values | {"schedules_better": str(better), "schedules_in_all": str(len(gains))}


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
