"""The skeletons of docs/skeletons, which users copy: each is short, its example runs, and it is what it says it is."""

import doctest
import importlib
from functools import partial
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch

from pyro_vae import VAE, Posterior, checkpoint, data, evaluate, fit, load, networks, objectives

SKELETONS = Path(__file__).parent.parent / "docs" / "skeletons"
NAMES = ["guide", "likelihood", "objective", "prior", "program"]


@pytest.fixture(scope="module")
def digits():
    return data.from_tensor(data.load("digits").train[:200])


@pytest.fixture
def skeleton(monkeypatch):
    """Import a skeleton by the name of its file, as a user does who has copied it."""
    monkeypatch.syspath_prepend(SKELETONS)
    return importlib.import_module


def build(**parts):
    return VAE.build((1, 8, 8), 3, network=partial(networks.MLP, hidden=(16,)), **parts)


def train_and_load(program, dataset, run, name, **options):
    """Train for an epoch, see that every parameter moves, and load the run as a user does who trusts the file."""
    before = {key: value.clone() for key, value in program.named_parameters()}
    history = fit(program, dataset, epochs=1, lr=1e-2, run_dir=run, progress=False, **options)
    assert torch.tensor(history["train"] + history["valid"]).isfinite().all()
    assert not [key for key, value in program.named_parameters() if torch.equal(value, before[key])]
    loaded, config = load(run, trust=[name])
    checkpoint.objective_from_spec(config["objective"], [name])
    assert loaded.state_dict().keys() == program.state_dict().keys()
    return loaded


def test_all_are_tested():
    assert sorted(path.stem for path in SKELETONS.glob("*.py")) == NAMES


@pytest.mark.parametrize("name", NAMES)
class TestEach:
    def test_is_short(self, name):
        assert 20 <= len((SKELETONS / f"{name}.py").read_text().splitlines()) <= 50

    @pytest.mark.usefixtures("param_store")
    def test_its_example_runs(self, name, skeleton):
        results = doctest.testmod(skeleton(name))
        assert results.attempted
        assert not results.failed


def test_prior(skeleton, digits, tmp_path):
    prior = skeleton("prior").LaplacePrior
    vae = train_and_load(build(prior=prior), digits, tmp_path / "run", "prior")
    z = torch.linspace(-60, 60, 200_001)
    with torch.no_grad():
        density = vae.prior().base_dist.expand((200_001, 3)).log_prob(z.unsqueeze(-1)).exp()
    torch.testing.assert_close(torch.trapezoid(density, z, dim=0), torch.ones(3), rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match="scale"):
        prior(3, scale=0.0)


def test_likelihood(skeleton, tmp_path):
    binomial = skeleton("likelihood").Binomial
    counts = data.from_tensor((16 * data.load("digits").train[:200]).round(), counts=True)
    vae = train_and_load(build(likelihood=binomial), counts, tmp_path / "run", "likelihood")
    with torch.no_grad():
        log_mass = vae.decoder(torch.randn(3)).base_dist.log_prob(torch.arange(17.0).reshape(17, 1, 1, 1))
    torch.testing.assert_close(log_mass.logsumexp(0), torch.zeros(1, 8, 8), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="support"):
        fit(build(likelihood=partial(binomial, total=8)), counts, epochs=1, progress=False)


def test_guide(skeleton, digits, tmp_path):
    guide = skeleton("guide").StudentTGuide
    vae = train_and_load(build(guide=guide), digits, tmp_path / "run", "guide")
    assert vae.encoder(digits.test[:]).mean.shape == (20, 3)
    assert evaluate.log_weights(vae, digits.test[:], 30, seed=0).isfinite().all()
    with pytest.raises(ValueError, match="df"):
        guide(3, df=-1.0)(torch.zeros(1, 2, 3))


@pytest.mark.usefixtures("param_store")
def test_objective(skeleton, digits, tmp_path):
    combined = skeleton("objective").CombinedBound
    vae = train_and_load(build(), digits, tmp_path / "run", "objective", objective=combined(0.3, num_particles=4))

    def loss(objective):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return objective.loss(vae.model, vae.guide, digits.test[:])

    elbo, iwae = loss(objectives.ELBO(4, kl="sampled")), loss(objectives.IWAE(4))
    assert iwae < elbo
    for share, expected in {1.0: elbo, 0.0: iwae, 0.25: 0.25 * elbo + 0.75 * iwae}.items():
        assert loss(combined(share, num_particles=4)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("param_store")
def test_program(skeleton, tmp_path):
    digits = data.load("digits")
    x, y = digits.train[:200].flatten(1), digits.train.labels[:200]
    cluster = train_and_load(skeleton("program").ClusterVAE(), {"x": x, "y": y}, tmp_path / "run", "program")
    posterior = Posterior.of(cluster, x[:5], y[:5])
    with torch.no_grad():
        draws, _ = posterior.propose(7)
        mixture = dist.MixtureSameFamily(
            dist.Categorical(logits=cluster.logits), dist.Normal(cluster.means, 1.0).to_event(1)
        )
        codes = torch.cat([draws["z"], torch.eye(10)[y[:5]].expand(7, 5, 10)], -1)
        p_x = dist.Normal(cluster.decoder(codes), cluster.log_scale.exp()).to_event(1)
        expected = mixture.log_prob(draws["z"]) + p_x.log_prob(x[:5])
        torch.testing.assert_close(posterior.log_joint(draws), expected)
    few = (x[:5], y[:5])
    p_class = evaluate.posterior(cluster, few, site="k", seed=0)
    torch.testing.assert_close(p_class.sum(-1), torch.ones(5))
    reconstruction, kl = evaluate.elbo_terms(cluster, few, 50, seed=0)
    elbo = evaluate.elbo(evaluate.log_weights(cluster, few, 50, seed=0))  # of the same draws
    torch.testing.assert_close(reconstruction - kl, elbo, rtol=1e-4, atol=1e-3)
