import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import VAE, data, evaluate, likelihoods, report

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
        assert row.replace("±", "").split() == [name, "20", *numbers]


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


def test_vectors_have_a_latent_space_only():
    assert set(report.figures(VAE.build((5,), latent=3), data.from_tensor(torch.rand(40, 5)))) == {"latent_space"}


def test_without_a_closed_form_the_traversal_names_dimensions_alone():
    drawn = report.figures(VAE.build((1, 8, 8), latent=3, prior=StudentPrior), DIGITS)
    assert [label.get_text() for label in drawn["traversal"].axes[0].get_yticklabels()] == ["z0", "z1", "z2"]


def test_torchs_generator_is_left_alone():
    vae, before = VAE.build((1, 8, 8), latent=2), torch.get_rng_state()
    table(vae)
    report.figures(vae, data.load("digits", binarize="dynamic"))
    assert (torch.get_rng_state() == before).all()
