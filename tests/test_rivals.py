"""The rivals compute what our objectives compute: same weights and same noise, same loss and gradients."""

import importlib
import os
import subprocess
import sys
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from torch.utils.flop_counter import FlopCounterMode

from pyro_vae import VAE, likelihoods, networks
from pyro_vae.objectives import ELBO, IWAE

pytestmark = pytest.mark.usefixtures("experiments_on_the_path")
BATCH, PARTICLES = 5, 3


@pytest.fixture(scope="module")
def jax():
    """Imported before the state of a test is noted: the import draws from numpy's generator."""
    pytest.importorskip("numpyro")
    return importlib.import_module("jax")


@pytest.fixture
def rivals(experiments_on_the_path):
    return importlib.import_module("rivals")


@pytest.fixture
def stock(experiments_on_the_path):
    return importlib.import_module("rival_pyro")


@pytest.fixture
def libraries(experiments_on_the_path):
    return importlib.import_module("rival_libraries")


def linears(module):
    return [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]


def ours(likelihood, theirs, **network):
    """A VAE of this package with the weights of a rival, and the pairs of parameters that are the same."""
    vae = VAE.build(
        (784,), latent=theirs.latent, likelihood=likelihood, network=partial(networks.MLP, **network)
    ).double()
    pairs = []
    for mine, other in ((vae.encoder.network, theirs.encoder), (vae.decoder.network, theirs.decoder)):
        for a, b in zip(linears(mine), linears(other), strict=True):
            pairs += [(a.weight, b.weight), (mine.bias if a.bias is None else a.bias, b.bias)]
    with torch.no_grad():
        for a, b in pairs:
            a.copy_(b.view_as(a))
    return vae, pairs


@pytest.fixture
def gaussian(rivals, float64):
    """Networks of a rival, a VAE with their weights, the pairs of parameters, and x."""
    theirs = rivals.Networks()
    return theirs, *ours(partial(likelihoods.Gaussian, scale=0.1), theirs), torch.rand(BATCH, 784)


@pytest.fixture
def bernoulli(rivals, float64):
    theirs = rivals.Networks.of_iwae()
    vae, pairs = ours(likelihoods.Bernoulli, theirs, hidden=(200, 200), activation="Tanh")
    return theirs, vae, pairs, torch.rand(BATCH, 784).bernoulli()


@contextmanager
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(7)
        yield


def noise(*shape):
    with seeded():
        return torch.randn(shape)


def assert_same(vae, pairs, objective, x, loss):
    """The rival's loss and the gradients it has left behind are those of our objective, drawn with the same seed."""
    with seeded():
        expected = objective.differentiable_loss(vae.model, vae.guide, x)
    expected.backward()
    torch.testing.assert_close(torch.as_tensor(loss), expected.detach(), rtol=1e-10, atol=0)
    for mine, other in pairs:
        torch.testing.assert_close(other.grad.view_as(mine), mine.grad, rtol=1e-8, atol=1e-8)


def test_elbo_by_hand(rivals, gaussian, param_store):
    theirs, vae, pairs, x = gaussian
    loss = rivals.elbo_loss(theirs, x, noise(BATCH, 20))
    loss.backward()
    assert_same(vae, pairs, ELBO(kl="analytic"), x, loss.detach())


def test_iwae_by_hand(rivals, bernoulli, param_store):
    theirs, vae, pairs, x = bernoulli
    loss = rivals.iwae_loss(theirs, x, noise(PARTICLES, BATCH, 50))
    loss.backward()
    assert_same(vae, pairs, IWAE(PARTICLES), x, loss.detach())


def test_elbo_of_binary_pixels_by_hand(rivals, bernoulli, param_store):
    theirs, vae, pairs, x = bernoulli
    loss = rivals.bernoulli_loss(theirs, x, noise(BATCH, 50))
    loss.backward()
    assert_same(vae, pairs, ELBO(kl="analytic"), x, loss.detach())


def test_stock_pyro(stock, gaussian, param_store):
    theirs, vae, pairs, x = gaussian
    program = stock.StockVAE.gaussian(theirs)
    with seeded():
        loss = Trace_ELBO().loss_and_grads(program.model, program.guide, x)
    assert_same(vae, pairs, ELBO(kl="sampled"), x, loss)


def test_stock_renyi(stock, bernoulli, param_store):
    theirs, vae, pairs, x = bernoulli
    program = stock.StockVAE.bernoulli(theirs)
    objective = RenyiELBO(alpha=0, num_particles=PARTICLES, max_plate_nesting=1, vectorize_particles=True)
    with seeded():
        loss = objective.loss_and_grads(program.model, program.guide, x)
    assert_same(vae, pairs, IWAE(PARTICLES), x, loss)


def test_numpyro(jax, libraries, gaussian, param_store):
    """NumPyro draws with another generator: its noise is read off its draw, and given to the loss by hand."""
    import numpyro

    theirs, vae, pairs, x = gaussian

    def stax(network):
        first, last = ((layer.weight.T, layer.bias) for layer in linears(network))
        return [tuple(jax.numpy.asarray(a.detach().numpy()) for a in layer) for layer in (first, (), last)]

    with jax.enable_x64(True):
        params = {f"{name}$params": stax(getattr(theirs, name)) for name in ("encoder", "decoder")}
        model, guide = libraries.numpyro_programs(BATCH)
        key, data = jax.random.PRNGKey(0), jax.numpy.asarray(x.numpy())

        def loss_of(params):
            return numpyro.infer.TraceMeanField_ELBO().loss(key, params, model, guide, data)

        loss, gradients = jax.value_and_grad(loss_of)(params)
        seeded = numpyro.handlers.seed(numpyro.handlers.substitute(guide, params), jax.random.split(key)[1])
        z = torch.tensor(np.array(numpyro.handlers.trace(seeded).get_trace(data)["z"]["value"]))
    mu, log_sigma = theirs.encode(x)
    by_hand = importlib.import_module("rivals").elbo_loss(theirs, x, ((z - mu) / log_sigma.exp()).detach())
    by_hand.backward()
    assert float(loss) == pytest.approx(by_hand.item(), rel=1e-10)
    for name in ("encoder", "decoder"):
        for layer, (weight, bias) in zip(linears(getattr(theirs, name)), gradients[f"{name}$params"][::2], strict=True):
            np.testing.assert_allclose(np.asarray(weight).T, layer.weight.grad, rtol=1e-8, atol=1e-8)
            np.testing.assert_allclose(np.asarray(bias), layer.bias.grad, rtol=1e-8, atol=1e-8)


def test_the_products_are_those_of_a_step(rivals):
    """As many multiplications as the loss by hand has, forward and backward."""
    with FlopCounterMode(display=False) as bare:
        step = rivals.products(BATCH)
    with FlopCounterMode(display=False) as once:
        step()
    with FlopCounterMode(display=False) as whole:
        rivals.elbo_loss(rivals.Networks(), torch.rand(BATCH, 784), torch.randn(BATCH, 20)).backward()
    assert once.get_total_flops() == bare.get_total_flops() == whole.get_total_flops()


@pytest.mark.parametrize("name", ["handwritten", "handwritten_iwae", "stock_pyro", "stock_renyi"])
def test_a_step_trains(name, rivals, stock, param_store):
    more = {"compiled": False} if name.startswith("handwritten") else {}
    more |= {"particles": PARTICLES} if name in ("handwritten_iwae", "stock_renyi") else {}
    build = getattr(stock if name.startswith("stock") else rivals, name)
    steps = [build(BATCH, **more) for _ in range(2)]  # two, since a second may not train in Pyro
    for step in steps:
        losses = [step() for _ in range(30)]
        assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", ["numpyro_update", "jax_convolutions"])
def test_a_step_of_another_library_trains(name, jax, libraries):
    step = getattr(libraries, name)(BATCH)
    losses = [step() for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


def test_an_epoch_of_pythae_trains_and_says_nothing(libraries, capfd):
    pytest.importorskip("pythae")
    epoch = libraries.pythae_epoch(torch.rand(40, 1, 28, 28), batch=8)
    losses = [epoch() for _ in range(5)]
    assert losses[-1] < 0.9 * losses[0]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("cached", [False, True])
def test_an_epoch_of_pyro_s_example_trains(cached, stock, monkeypatch, param_store):
    class Noise(torch.utils.data.Dataset):
        def __init__(self, root, train, transform):
            self.data = torch.randint(256, (40, 28, 28), dtype=torch.uint8)
            self.targets, self.transform = torch.zeros(40), transform

        def __len__(self):
            return 40

        def __getitem__(self, i):
            return self.transform(self.data[i].numpy()[..., None]), 0

    monkeypatch.setattr(stock.datasets, "MNIST", Noise)
    epoch = stock.pyro_example_epoch("nowhere", 8, cached)
    losses = [epoch() for _ in range(5)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.processes
@pytest.mark.parametrize("threads", [1, 2])
def test_the_environment_holds_torch_to_its_threads(threads, rivals):
    environment = os.environ | rivals.one_thread_environment(threads)
    program = "import torch; print(torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{threads}\n"
