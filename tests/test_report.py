import csv
import json
import math
import re
from functools import cache, partial

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import VAE, ais, data, evaluate, guides, likelihoods, networks, posterior, report
from pyro_vae.conditional import Family
from pyro_vae.evaluate.summaries import mean_and_error
from pyro_vae.report.answers import SIMULATED
from pyro_vae.report.closing import format_table
from pyro_vae.report.evaluation import TEXTS
from pyro_vae.words import pair

DIGITS = data.load("digits")
IMAGES = {"latent_space", "reconstructions", "samples", "interpolation", "traversal"}


class StudentPrior(nn.Module):
    """A prior whose divergence has no closed form."""

    def __init__(self, latent):
        super().__init__()
        self.latent = latent

    def forward(self):
        return dist.StudentT(5.0, torch.zeros(self.latent), 1.0).to_event(1)


def table(vae, dataset=DIGITS, **options):
    return report.table(vae, dataset, **({"num_particles": 7, "images": 20, "progress": False} | options))


def test_the_table_is_the_summary_of_each_split():
    vae = VAE.build((1, 8, 8), latent=2)
    rows = table(vae).splitlines()[1:4]
    for row, (name, split) in zip(rows, DIGITS.splits.items(), strict=True):
        found = evaluate.summary(vae, split, num_particles=7, images=20)
        numbers = [f"{number:.2f}" for pair in found[1:] for number in pair]
        *cells, adapted = row.split("  ")
        assert "  ".join(cells).replace("±", "").split() == [name, "20", *numbers]
        expected = "-"
        if name == "test":
            expected = pair(mean_and_error(evaluate.nll(vae, split[:20], 7, seed=0, proposal="adapted")))
        assert adapted.strip() == expected


@pytest.mark.parametrize(
    ("likelihood", "binarize", "words"),
    [
        (likelihoods.Gaussian, "none", "digits, not binarised; log p(x) is of a density"),
        (likelihoods.Bernoulli, "static", "digits, binarised statically; log p(x) is of a mass"),
    ],
)
def test_the_table_says_what_its_numbers_are(likelihood, binarize, words):
    dataset = data.load("digits", binarize=binarize)
    shown = " ".join(table(VAE.build((1, 8, 8), likelihood=likelihood), dataset).split())
    assert words in shown
    assert "ELBO at beta = 1 with 10 draws, KL in closed form" in shown
    assert "7 draws from the guide" in shown


def test_the_table_says_where_the_divergence_is_sampled():
    assert "with 10 draws, KL sampled" in table(VAE.build((1, 8, 8), latent=2, prior=StudentPrior))


def test_figures_of_images():
    drawn = report.figures(VAE.build((1, 8, 8), latent=3), DIGITS)
    assert set(drawn) == IMAGES
    assert "nats" in drawn["traversal"].axes[0].get_yticklabels()[0].get_text()
    assert len(drawn["latent_space"].axes[0].collections[0].get_offsets()) == 1437


def test_a_manifold_where_there_are_two_dimensions():
    assert set(report.figures(VAE.build((1, 8, 8), latent=2), DIGITS)) == IMAGES | {"manifold"}


@pytest.mark.parametrize("count", [3, 12, 100])
def test_a_few_images_are_enough(count):
    """Of 3 images one is for test."""
    dataset = data.from_tensor(torch.rand(count, 1, 8, 8))
    assert set(report.figures(VAE.build((1, 8, 8), latent=3), dataset)) == IMAGES


@pytest.mark.parametrize("columns", [5, 1])
def test_a_table_has_figures_of_its_columns(columns):
    x = torch.rand(40, columns)
    x[::3, 1:2] = math.nan
    drawn = report.figures(VAE.build((columns,), latent=3), data.from_tensor(x))
    assert set(drawn) == {"latent_space", "marginals", "reconstructions"}
    for name in ("marginals", "reconstructions"):
        titles = [axes.get_title() for axes in drawn[name].axes if axes.axison]
        assert sorted(titles) == ([f"x[{i}]" for i in range(5)] if columns > 1 else ["x"])
        assert "4 test rows" in drawn[name].get_suptitle()
    assert "training rows" in drawn["latent_space"].axes[0].get_title()


def test_the_table_is_as_wide_as_its_numbers():
    numbers = [1e6, -12345.67, 1e-9, -math.inf]
    values = {"test": evaluate.Values(*(torch.tensor([number, number, number * 1.5]) for number in numbers))}
    head, row, *_ = format_table(VAE.build((1, 8, 8), latent=2), DIGITS, values, 7).splitlines()
    cells = [cell.strip() for cell in row.split("  ") if cell.strip()]
    assert cells[:2] == ["test", "3"]
    assert cells[2:] == ["1166666.62 ± 166666.66", "-14403.28 ± 2057.61", "1.2e-09 ± 1.7e-10", "-inf ± nan"]
    assert len(head) == len(row)


def test_without_a_closed_form_the_traversal_names_dimensions_alone():
    drawn = report.figures(VAE.build((1, 8, 8), latent=3, prior=StudentPrior), DIGITS)
    assert [label.get_text() for label in drawn["traversal"].axes[0].get_yticklabels()] == ["z0", "z1", "z2"]


def test_torchs_generator_is_left_alone():
    vae, before = VAE.build((1, 8, 8), latent=2), torch.get_rng_state()
    table(vae)
    report.figures(vae, data.load("digits", binarize="dynamic"))
    assert (torch.get_rng_state() == before).all()


@pytest.fixture(autouse=True)
def short(monkeypatch, short_pilots):
    """Short pilot runs: an evaluation says the same sentences of a VAE after them."""
    monkeypatch.setattr("pyro_vae.posterior.gaps", partial(posterior.gaps, steps=20))


TINY = partial(networks.MLP, hidden=(16,))
HEADS = ("How good is the model?", "How good is the guide?", "How are the codes used?")
FREE = {"bounds", "calibration", "dimensions", "weights"}  # figures of any evaluation
TERMS = ("AIS - IS", "BDMC gap", "approximation", "amortisation", "gap", "amortisation - approximation")
COSTLY = {"AIS"} | {f"{name}{end}" for name in TERMS for end in ("", ", error")}


def evaluation(vae, dataset=DIGITS, **options):
    settings = {"num_particles": 30, "images": 40, "chosen": 0, "temperatures": 10, "proposal": "guide"}
    return report.evaluation(vae, dataset, progress=False, **(settings | options))


@cache
def tiny():
    """A VAE that knows a little of digits, so that its numbers are not all at an end."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        vae = VAE.build((1, 8, 8), latent=3, likelihood=likelihoods.Bernoulli, network=TINY)
        optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
        x = data.load("digits", binarize="threshold").train[:200]
        for _ in range(50):
            optimizer.zero_grad()
            q = vae.encoder(x)
            z = q.rsample()
            (-vae.decoder(z).log_prob(x) - vae.prior().log_prob(z) + q.log_prob(z)).mean().backward()
            optimizer.step()
    return vae.requires_grad_(False), data.load("digits", binarize="threshold")


@cache
def full():
    return evaluation(*tiny(), num_particles=50, chosen=4, temperatures=20, seed=5, proposal="both")


@pytest.mark.usefixtures("brief_gaps")
@pytest.mark.filterwarnings("ignore:AIS")
class TestEvaluation:
    def test_the_table_is_that_of_a_run_with_the_same_seed(self):
        assert full().table == report.table(*tiny(), num_particles=50, images=40, seed=5, progress=False)

    def test_log_p_and_its_estimates_are_those_of_the_functions(self):
        vae, dataset = tiny()
        x = dataset.test[:40]
        log_w = evaluate.log_weights(vae, x, 50, seed=5)
        adapted = evaluate.log_weights(vae, x, 50, seed=5, proposal="adapted")
        assert evaluate.iwae(adapted).mean() > evaluate.iwae(log_w).mean()
        numbers, images = full().numbers, full().images
        torch.testing.assert_close(torch.tensor(images["-log p(x)"]), -evaluate.iwae(adapted))
        assert numbers["adapted, k, median"] == evaluate.pareto_k(adapted).median().item()
        k, ess = evaluate.pareto_k(log_w), evaluate.ess(log_w)
        assert images["k-hat"] == k.tolist()
        assert images["ESS"] == ess.tolist()
        assert numbers["k > 0.7"] == pytest.approx((k > 0.7).double().mean().item())
        assert (numbers["k, median"], numbers["ESS, median"]) == (k.median().item(), ess.median().item())
        log_p = ais.ais(vae, x[:4], temperatures=20, seed=5)
        assert images["-log p(x) by AIS"] == (-log_p).tolist()
        difference = log_p - evaluate.iwae(adapted[:, :4])
        assert numbers["AIS"] == pytest.approx(-log_p.mean().item())
        assert numbers["AIS - IS"] == pytest.approx(difference.mean().item())
        assert numbers["AIS - IS, error"] == pytest.approx(difference.std().item() / 2)
        lower, upper = ais.bdmc(vae, x[:4], temperatures=20, seed=5, num=4)
        assert numbers["BDMC gap"] == pytest.approx((upper - lower).mean().item())
        gaps = posterior.gaps(vae, x[:4], log_p, temperatures=0, seed=5)
        assert images["approximation"] == gaps.approximation.tolist()
        assert numbers["amortisation"] == pytest.approx(gaps.amortisation.mean().item())
        assert numbers["gap, error"] == pytest.approx((gaps.log_p - gaps.elbo).std().item() / 2)
        assert numbers["amortisation - approximation, error"] == pytest.approx(
            (gaps.amortisation - gaps.approximation).std().item() / 2
        )
        assert numbers["BDMC gap, error"] == pytest.approx((upper - lower).std().item() / 2)
        assert (numbers["images"], numbers["chosen"], numbers["codes"], numbers["simulated"]) == (40, 4, 40, SIMULATED)

    def test_calibration_and_codes_are_those_of_the_functions(self):
        vae, dataset = tiny()
        x, numbers = dataset.test[:40], full().numbers
        assert numbers["coverage at 0.9"] == posterior.sbc(vae, x, seed=5, num=SIMULATED).coverage([0.9]).mean().item()
        covered = posterior.sbc(vae, x, seed=5, num=SIMULATED).covers(0.9).double().mean(1)
        assert numbers["coverage at 0.9, error"] == pytest.approx(covered.std().item() / SIMULATED**0.5)
        assert (numbers["active"], numbers["latent"]) == (evaluate.active_units(vae, x), 3)
        ratios = evaluate.aggregate_of_codes(vae, x, seed=5)[1]
        assert numbers["aggregate KL, error"] == pytest.approx(ratios.std().item() / 40**0.5)
        found = evaluate.elbo_surgery(vae, x, seed=5)
        assert (numbers["mutual information"], numbers["aggregate KL"]) == tuple(found)
        assert numbers["log N"] == math.log(40)
        train = evaluate.per_image(vae, dataset.train, 50, 40, seed=5).nll
        test = evaluate.per_image(vae, dataset.test, 50, 40, seed=5).nll
        assert numbers["train -log p(x)"] == pytest.approx(train.mean().item())
        assert numbers["test -log p(x)"] == pytest.approx(torch.tensor(full().images["-log p(x)"]).mean().item())
        assert numbers["test - train"] == pytest.approx((test.mean() - train.mean()).item())
        assert numbers["test - train, error"] == pytest.approx(math.hypot(train.std(), test.std()) / 40**0.5)

    def test_sections_say_what_the_numbers_are(self):
        found = full()
        assert [*found.sections] == [f"{head} The first 40 test images" for head in HEADS]
        model, guide, codes = ("\n".join(lines) for lines in found.sections.values())
        n = found.numbers
        headline, particles, bounds, *_ = model.splitlines()
        assert headline.startswith(f"-log p(x) ≤ {n['test -log p(x)']:.2f} ± ")
        assert headline.endswith("50 draws from a proposal adapted to each datum, after 525 to 2,025 draws to fit it.")
        assert particles.split() == ["particles", "1", "10", "50"]
        assert f"{n['test -log p(x)']:.2f} ± " in bounds.rpartition("  ")[2]
        assert f"the first 4 images: -log p(x) ≤ {n['AIS']:.2f} ± " in model
        assert f"with 50 particles on the same images: {n['AIS - IS']:.2f} ± {n['AIS - IS, error']:.2f} more." in model
        assert "BDMC, 4 images drawn from the model: " in model
        assert f"gap {n['BDMC gap']:.2f}, at most" in model
        worst = max(range(40), key=found.images["k-hat"].__getitem__)
        assert f"median {n['k, median']:.2f}" in guide
        assert f"Largest: {found.images['k-hat'][worst]:.2f} (image {worst})" in guide
        assert f"approximation {n['approximation']:.2f} ± " in guide
        assert f"90% intervals contain {n['coverage at 0.9']:.1%} of the true z" in guide
        assert f"{n['active']} of 3 dimensions are active" in codes
        assert f"mutual information {n['mutual information']:.2f} nats (at most log N = 3.69)" in codes

    def test_bounds_fall_with_particles(self):
        means = full().figures["bounds"].axes[0].lines[0].get_ydata()
        assert means[0] > means[1] > means[2]

    def test_printed_it_is_table_sections_and_diagnosis(self):
        shown, found = str(full()), full()
        assert shown.startswith(found.table + "\n\n")
        places = [shown.index(f"\n\n{head}") for head in (*found.sections, "Diagnosis\n")]
        assert places == sorted(places)
        assert all(len(line) <= 110 for line in shown[len(found.table) :].splitlines())
        assert found.diagnosis == report.diagnosis(found.numbers)
        words = " ".join(shown[places[-1] :].split())
        assert words == "Diagnosis " + " ".join(f"- {line}" for line in found.diagnosis)

    def test_every_figure_is_there(self):
        assert set(full().figures) == FREE | {"worst", "gaps"}

    def test_is_saved_as_text_numbers_and_a_line_an_image(self, tmp_path):
        found = full()
        found.save(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {f"evaluation.{end}" for end in ("txt", "json", "csv")}
        assert (tmp_path / "evaluation.txt").read_text() == f"{found}\n"
        content = json.loads((tmp_path / "evaluation.json").read_text())
        assert content == found.numbers | {name: getattr(found, name) for name in TEXTS}
        with (tmp_path / "evaluation.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row.pop("image") for row in rows] == [str(i) for i in range(40)]
        assert [*rows[0]] == [*found.images]
        for name, column in found.images.items():
            assert [float(row[name]) for row in rows[: len(column)]] == pytest.approx(column)
            assert {row[name] for row in rows[len(column) :]} <= {""}
        assert len(found.images["-log p(x) by AIS"]) == len(found.images["amortisation"]) == 4
        assert rows[4]["approximation"] == rows[39]["-log p(x) by AIS"] == ""

    def test_numbers_that_are_not_finite_are_saved_as_words(self, tmp_path):
        numbers = full().numbers | {"k, median": math.inf, "AIS - IS, error": math.nan}
        report.Evaluation(full().table, {}, numbers, full().images, {}).save(tmp_path)
        found = json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=pytest.fail)
        assert (found["k, median"], found["AIS - IS, error"]) == ("inf", "nan")

    def test_with_none_chosen_what_costs_much_is_left_out(self):
        found = evaluation(*tiny())
        assert set(found.figures) == FREE | {"worst"}
        of_guide = {name for name in full().numbers if not name.startswith("adapted, ")}
        assert of_guide - set(found.numbers) == COSTLY
        assert set(found.images) == {"ELBO", "E[log p(x|z)]", "KL", "-log p(x)", "k-hat", "ESS"}
        said = " ".join(line for lines in found.sections.values() for line in lines)
        assert all(words not in said for words in ("AIS", "BDMC", "amortisation"))

    def test_the_seed_says_what_is_drawn_and_torchs_state_is_left_alone(self):
        vae, dataset = VAE.build((1, 8, 8), latent=2, network=TINY), data.load("digits", binarize="dynamic")
        before = torch.get_rng_state()
        one, same = (evaluation(vae, dataset, images=10, seed=3, proposal="both") for _ in range(2))
        assert (torch.get_rng_state() == before).all()
        assert str(one) == str(same)
        assert one.numbers == same.numbers
        assert one.table != table(vae, dataset, num_particles=30, images=10, seed=4)
        assert one.table == table(vae, dataset, num_particles=30, images=10, seed=3)
        assert all(parameter.grad is None for parameter in vae.parameters())
        assert vae.training

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_particles": 0}, "num_particles of at least 1; got 0"),
            ({"images": 0}, "images of at least 1; got 0"),
            ({"chosen": -1}, "chosen of at least 0; got -1"),
            ({"temperatures": 0}, "temperatures of at least 1; got 0"),
        ],
    )
    def test_bad_arguments_get_a_sentence(self, options, message):
        with pytest.raises(ValueError, match=rf"^Expected {message}\.$"):
            evaluation(tiny()[0], **options)


class Gamma(nn.Module):
    """A prior of positive z."""

    def __init__(self, latent):
        super().__init__()
        self.latent = latent

    def forward(self):
        return dist.Gamma(torch.full((self.latent,), 2.0), 1.0).to_event(1)


class LogNormal(Family):
    params = 2

    def distribution(self, loc, log_scale):
        return dist.LogNormal(loc, log_scale.exp())


@pytest.mark.usefixtures("brief_gaps")
@pytest.mark.filterwarnings("ignore:AIS")  # of so few temperatures
class TestEvaluationOfAnyVAE:
    @pytest.fixture(autouse=True)
    def few_simulations(self, monkeypatch):
        monkeypatch.setattr("pyro_vae.report.answers.SIMULATED", 40)

    def test_with_positive_z_there_is_ais_too(self):
        vae = VAE.build((1, 8, 8), latent=2, prior=Gamma, guide=LogNormal, network=TINY)
        found = evaluation(vae, chosen=2)
        assert {"AIS", "AIS - IS", "BDMC gap", "approximation", "coverage at 0.9"} < set(found.numbers)
        assert "KL sampled" in found.table
        assert found.numbers["k > 0.7"] > 0.1

    def test_with_an_encoder_of_unknown_parameters_it_says_why_there_are_no_gaps(self):
        class Encoder(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, x):
                return self.inner(x)

        vae = VAE.build((1, 8, 8), latent=2, network=TINY)
        found = evaluation(VAE(vae.prior, vae.decoder, Encoder(vae.encoder)), chosen=2)
        lines = found.sections[f"{HEADS[1]} The first 40 test images"]
        assert "No gaps: the guide cannot be refined for each image, since the encoder is no Conditional." in lines
        assert "gaps" not in found.figures
        assert "AIS" in found.numbers
        assert "approximation" not in found.numbers

    def test_with_missing_pixels(self):
        x = torch.rand(400, 1, 8, 8)
        dataset = data.from_tensor(x.masked_fill(torch.rand_like(x) < 0.25, math.nan))
        found = evaluation(VAE.build((1, 8, 8), latent=2, network=TINY), dataset, chosen=2)
        assert "of the pixels missing, left out" in found.table
        assert all(math.isfinite(value) for value in found.numbers.values())
        assert set(found.figures) == FREE | {"worst", "gaps"}

    def test_of_vectors_it_shows_no_images(self):
        dataset = data.from_tensor(torch.rand(400, 5))
        found = evaluation(VAE.build((5,), latent=3, network=TINY), dataset)
        assert set(found.figures) == FREE
        assert "The first 40 test rows" in str(found)
        assert "image" not in str(found).replace("--images", "")

    def test_with_dimensions_that_are_not_independent_it_leaves_their_divergences_out(self):
        found = evaluation(VAE.build((1, 8, 8), latent=3, guide=guides.FullNormal, network=TINY))
        assert len(found.figures["dimensions"].axes) == 1
        assert "KL by dimension" not in str(found)
        assert "Activity: " in str(found)

    def test_of_fewer_images_than_it_is_asked_for(self):
        """Of 20 images 2 are for test."""
        dataset = data.from_tensor(torch.rand(20, 1, 8, 8))
        found = evaluation(VAE.build((1, 8, 8), latent=2, network=TINY), dataset, chosen=9)
        assert [*found.sections] == [f"{head} The first 2 test images" for head in HEADS]
        assert len(found.images["approximation"]) == len(found.images["ELBO"]) == 2

    def test_with_one_dimension_and_one_chosen_image(self, tmp_path):
        """Whose standard error is not known."""
        found = evaluation(VAE.build((1, 8, 8), latent=1, network=TINY), images=10, chosen=1)
        assert found.numbers["latent"] == 1
        assert math.isnan(found.numbers["AIS - IS, error"])
        found.save(tmp_path)
        for name in ("bounds", "calibration", "gaps"):
            found.figures[name].draw_without_rendering()


@pytest.mark.filterwarnings("ignore")
def test_an_evaluation_of_no_probability_says_so():
    vae = VAE.build((1, 8, 8), latent=2, network=TINY)
    [*vae.decoder.network.parameters()][-1].data.fill_(1e30)
    found = evaluation(vae, images=5)
    assert "No k-hat: Expected finite log-weights" in str(found)
    assert any(re.match("Cannot tell whether the model overfits", line) for line in found.diagnosis)
    assert found.table.splitlines()[3].split("  ")[-1] == "inf ± nan"


@pytest.mark.usefixtures("brief_gaps")
@pytest.mark.filterwarnings("ignore:AIS")
def test_an_evaluation_of_one_image_and_few_particles_says_what_it_cannot_tell():
    vae = VAE.build((1, 8, 8), latent=2)
    found = report.evaluation(vae, DIGITS, num_particles=5, images=1, chosen=1, temperatures=5, progress=False)
    assert "No k-hat: it needs at least 25 particles." in str(found)
    assert sum(line.startswith("Cannot tell") for line in found.diagnosis) == 4  # but for calibration, of 500 data
    assert "codes" not in str(found)
    assert set(found.figures) == {"bounds", "gaps", "calibration"}
