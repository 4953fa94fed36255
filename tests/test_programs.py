"""One contract for programs that are no VAEs, each against its exact evidence: objectives, evaluation, fit and load."""

import math
from functools import partial

import exact
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_vae import VAE, data, evaluate, fit, likelihoods, load, report
from pyro_vae.compiled import CompiledSVI
from pyro_vae.objectives import ELBO, IWAE, ReweightedWakeSleep
from pyro_vae.program import Posterior, argument_names, posterior_of
from pyro_vae.seeds import param_store_scope
from pyro_vae.traces import sites

PROGRAMS = {
    "two layers, bottom-up": exact.TwoLayers,
    "two layers, top-down": partial(exact.TwoLayers, "top-down"),
    "a covariate": exact.Covariate,
    "a class": exact.Classes,
    "labels for some rows": exact.PartlyLabelled,
    "2^10 bits": exact.Bits,
    "a Gamma and an inner plate": exact.GammaPlate,
    "a state space, padded": exact.StateSpace,
    "a positive and a real latent": exact.Pair,
}
DISCRETE = {"a class", "labels for some rows", "2^10 bits"}


@pytest.fixture(params=PROGRAMS)
def case(request, float64):
    program = PROGRAMS[request.param]()
    return request.param, program, program.sample(12)


class TestExactGuides:
    """Where the guide is the posterior every weight is p(x), so every bound is log p(x), whatever the draws."""

    def test_every_log_weight_is_the_evidence(self, case):
        _, program, data = case
        log_w = evaluate.log_weights(program, data, 5)
        torch.testing.assert_close(log_w, program.evidence(*data).detach().expand(5, -1), rtol=0, atol=1e-9)

    def test_nll_ess_and_k_hat(self, case):
        _, program, data = case
        torch.testing.assert_close(
            evaluate.nll(program, data, 30), -program.evidence(*data).detach(), rtol=0, atol=1e-9
        )
        log_w = evaluate.log_weights(program, data, 30)
        torch.testing.assert_close(evaluate.ess(log_w), torch.full((len(data[0]),), 30.0), rtol=1e-6, atol=0)
        assert not evaluate.pareto_k(log_w).any()

    @pytest.mark.parametrize("objective", [IWAE(4), IWAE(4, vectorize_particles=False), ReweightedWakeSleep(3)])
    def test_objectives_of_weights(self, case, objective):
        _, program, data = case
        expected = -program.evidence(*data).sum().item()
        with pyro.get_param_store().scope():
            assert objective.loss(program.model, program.guide, *data) == pytest.approx(expected, abs=1e-8)

    def test_the_sampled_elbo(self, case):
        """kl='sampled': each draw's term is log p(x), with closed forms only of what is enumerated."""
        _, program, data = case
        expected = -program.evidence(*data).sum().item()
        with pyro.get_param_store().scope():
            loss = ELBO(kl="sampled").loss(program.model, program.guide, *data)
        assert loss == pytest.approx(expected, abs=1e-8)

    def test_terms_add_up(self, case):
        """The reconstruction is a mean over draws, the divergence exact where it can be: within 6 standard errors."""
        _, program, data = case
        reconstruction, kl = evaluate.elbo_terms(program, data, 100, seed=0)
        sites = evaluate.kl_by_site(program, data, 100, seed=0)
        torch.testing.assert_close(torch.stack([*sites.values()]).sum(0), kl, rtol=0, atol=1e-9)
        assert ((reconstruction - kl) - program.evidence(*data)).abs().mean() < 0.3  # each about 1 / 10

    def test_a_row_is_a_row(self, case):
        _, program, data = case
        with param_store_scope():
            whole = posterior_of(program, data)
            draws, log_q = whole.propose(3)
            part = {name: value[:, 4:7] for name, value in draws.items()}
            torch.testing.assert_close(whole[4:7].log_joint(part), whole.log_joint(draws)[:, 4:7], rtol=0, atol=1e-9)
            torch.testing.assert_close(whole.log_q(draws), log_q, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("case", sorted(DISCRETE), indirect=True)
    def test_the_gradient_is_that_of_the_evidence(self, case):
        """Of classes alone the sum is exact; elsewhere 200 draws are, to a fifth of the gradient or 2."""
        name, program, data = case
        want = torch.autograd.grad(program.evidence(*data).sum(), [*program.parameters()], allow_unused=True)
        with pyro.get_param_store().scope():
            loss = ELBO(200).differentiable_loss(program.model, program.guide, *data)
        got = torch.autograd.grad(loss, [*program.parameters()], allow_unused=True)
        for one, other in zip(want, got, strict=True):
            if one is not None:
                torch.testing.assert_close(-other, one, rtol=0.2, atol=2.0 if name != "2^10 bits" else 1e-8)


class TestPosteriorOfAClass:
    def test_is_exact(self, float64):
        program = exact.Classes()
        (x,) = program.sample(20)
        torch.testing.assert_close(evaluate.posterior(program, x, "y", 3), program.of_classes(x).softmax(-1).detach())

    def test_of_labels_that_are_seen_it_is_the_label(self, float64):
        program = exact.PartlyLabelled()
        x, y = program.sample(30)
        p = evaluate.posterior(program, (x, y), "y", 3)
        seen = y >= 0
        assert seen.any()
        assert not seen.all()
        torch.testing.assert_close(p[seen], nn.functional.one_hot(y[seen], p.shape[1]).to(p))
        torch.testing.assert_close(p[~seen], program.of_classes(x[~seen]).softmax(-1).detach())

    def test_says_what_there_is(self, float64):
        program = exact.Classes()
        with pytest.raises(ValueError, match="'z'.*sums out 'y'"):
            evaluate.posterior(program, program.sample(5), "z")


@pytest.mark.parametrize("name", PROGRAMS)
def test_fit_and_load_to_the_last_bit(name, tmp_path):
    """A step of each is a graph, or a warning would say that it is not."""
    program = PROGRAMS[name]()
    data = program.sample(60)
    names = [*argument_names(program)]
    history = fit(
        program, dict(zip(names, data, strict=True)), objective=IWAE(3) if name != "2^10 bits" else None, epochs=2,
        batch_size=20, lr=1e-3, run_dir=tmp_path / "run", progress=False,
    )  # fmt: skip
    assert all(map(math.isfinite, history["valid"]))
    other = PROGRAMS[name]()
    found, _ = load(tmp_path / "run", program=other)
    assert found is other
    for key, value in program.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
    one, two = (evaluate.nll(one, data, 10, seed=0) for one in (program, other))
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["labels for some rows", "a Gamma and an inner plate", "a state space, padded"])
def test_report_of_any_program(name):
    program = PROGRAMS[name]()
    names = [*argument_names(program)]
    dataset = data.from_columns(dict(zip(names, program.sample(60), strict=True)))
    written = report.evaluation(program, dataset, 60, 6, chosen=0, progress=False)
    x = dataset.test.with_columns(names[1:]).batch(slice(0, 6))
    assert written.numbers["test -log p(x)"] == pytest.approx(-program.evidence(*x).mean().item(), abs=1e-3)
    assert written.numbers["k > 0.7"] == 0
    assert ("log p(x | lengths)" in written.table) == (name == "a state space, padded")
    assert [*report.figures(program, dataset)] == ["latent_space", "marginals"]


def test_a_step_of_classes_is_a_graph(float64):
    program = exact.Classes()
    (x,) = program.sample(20)
    with pyro.get_param_store().scope():
        svi = CompiledSVI(program.model, program.guide, pyro.optim.Adam({"lr": 1e-3}), ELBO(2))
        losses = [svi.step(x) for _ in range(4)]
    assert svi.mode == "graph"
    assert all(map(math.isfinite, losses))


class TestInnerPlatesAndChains:
    """Classes inside a datum, by variable elimination."""

    def test_a_mixture_of_each_pixel(self):
        class Pixels(nn.Module):
            def model(self, x):
                with pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", x.shape[1], dim=-1):
                    k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
                    pyro.sample("x", dist.Normal(2.0 * k, 1.0), obs=x)

            def guide(self, x):
                pass

        x = torch.randn(5, 3)
        distribution = dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([0.3, 0.7])), dist.Normal(torch.tensor([0.0, 2.0]), 1.0)
        )
        for rows in (x, x[:1]):
            torch.testing.assert_close(evaluate.nll(Pixels(), rows, 3), -distribution.log_prob(rows).sum(1))
            torch.testing.assert_close(
                Posterior.of(Pixels(), rows).log_joint({})[0], distribution.log_prob(rows).sum(1)
            )

    def test_a_hidden_markov_model(self):
        turn = torch.tensor([[0.9, 0.1], [0.2, 0.8]])

        class Hidden(nn.Module):
            def model(self, x):
                with pyro.plate("data", len(x)):
                    k = torch.tensor(0)
                    for t in pyro.markov(range(x.shape[1])):
                        k = pyro.sample(f"k{t}", dist.Categorical(turn[k]), infer={"enumerate": "parallel"})
                        pyro.sample(f"x{t}", dist.Normal(2.0 * k, 1.0), obs=x[:, t])

            def guide(self, x):
                pass

        x = torch.randn(5, 6)
        distribution = dist.DiscreteHMM(
            torch.tensor([0.0, -1e30]), turn.log(), dist.Normal(torch.tensor([0.0, 2.0]), 1.0)
        )
        torch.testing.assert_close(evaluate.nll(Hidden(), x, 3), -distribution.log_prob(x), rtol=1e-5, atol=1e-4)
        with pytest.raises(ValueError, match="Markov chain"):
            ELBO().loss(Hidden().model, Hidden().guide, x)


class TestGlobals:
    class Shared(nn.Module):
        def model(self, x):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(mu, 1.0))
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

        def guide(self, x):
            mu = pyro.sample("mu", dist.Normal(0.3, 0.1))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.8 * x + 0.2 * mu, math.sqrt(0.2)))

    def test_have_no_weight_of_each_datum(self):
        with pytest.raises(ValueError, match="'mu' is outside it.*given="):
            evaluate.nll(self.Shared(), torch.randn(4), 10)

    def test_fixed_it_is_the_evidence_given_them(self):
        x = torch.randn(5)
        nll = evaluate.nll(self.Shared(), x, 4, given={"mu": torch.tensor(0.7)})
        torch.testing.assert_close(nll, -dist.Normal(0.7, math.sqrt(1.25)).log_prob(x))

    def test_of_draws_it_is_the_predictive_density(self):
        """40,000 of 50 draws at random: a standard error of 0.005 nats at most; 6 of them."""
        x, mu = torch.randn(5), 0.5 * torch.randn(50)
        nll = evaluate.nll(self.Shared(), x, 40_000, seed=0, given={"mu": mu})
        expected = dist.Normal(mu.unsqueeze(1), math.sqrt(1.25)).log_prob(x).logsumexp(0) - math.log(50)
        torch.testing.assert_close(nll, -expected, rtol=0, atol=0.03)


class TestSentences:
    def test_other_rows_in_the_guide(self):
        """Pyro #3468: an autoguide's plate draws rows of its own."""

        def model(x, rows):
            with pyro.plate("data", 90, subsample=rows):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        rows = torch.arange(10, 20)
        x = torch.randn(90)
        guide = AutoNormal(model)
        with param_store_scope():
            guide(x[rows], rows)
        for objective in (ELBO(), IWAE(3)):
            with (
                pyro.get_param_store().scope(),
                pytest.raises(ValueError, match="same rows of the data in plate 'data'"),
            ):
                objective.loss(model, guide, x[rows], rows)

    def test_a_plate_made_outside(self):
        plate = pyro.plate("data", 8, subsample_size=4)

        def model(x):
            with plate as rows:
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

        def guide(x):
            with plate:
                pyro.sample("z", dist.Normal(0.0, 1.0))

        with pytest.raises(ValueError, match="plate 'data', which subsamples .*outside"):
            ELBO().loss(model, guide, torch.randn(8))

    @pytest.mark.parametrize("where", ["by hand", "batch normalisation"])
    def test_a_density_that_looks_at_other_rows(self, where):
        class Batch(nn.Module):
            def __init__(self):
                super().__init__()
                self.normal = nn.BatchNorm1d(1, affine=False)

            def model(self, x):
                centred = x - x.mean() if where == "by hand" else self.normal(x.unsqueeze(-1)).squeeze(-1)
                with pyro.plate("data", len(x)):
                    z = pyro.sample("z", dist.Normal(centred, 1.0))
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

            def guide(self, x):
                with pyro.plate("data", len(x)):
                    pyro.sample("z", dist.Normal(0.5 * x, 1.0))

        program, x = Batch(), torch.randn(6)
        if where == "by hand":
            with pytest.raises(ValueError, match="density of a row .*program.eval"):
                evaluate.nll(program, x, 10)
        else:
            assert evaluate.nll(program, x, 10).isfinite().all()  # at test it is the running mean
            with pytest.raises(ValueError, match="density of a row .*program.eval"):
                Posterior.of(program, x)

    def test_names_of_arguments(self):
        program = exact.Covariate()
        x, y = program.sample(5)
        with pytest.raises(ValueError, match="x, y; got x, labels"):
            evaluate.nll(program, {"x": x, "labels": y}, 10)
        with pytest.raises(ValueError, match="as many rows"):
            evaluate.nll(program, (x, y[:3]), 10)

    def test_no_plate(self):
        class Bare(nn.Module):
            def model(self, x):
                pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

            def guide(self, x):
                pyro.sample("z", dist.Normal(0.0, 1.0))

        with pytest.raises(ValueError, match="plate"):
            evaluate.nll(Bare(), torch.randn(1), 10)


class TestLossTerms:
    """A factor of the guide is trained with, and is in no density."""

    @pytest.fixture
    def program(self, float64):
        class Factor(exact.Pair):
            def guide(self, x):
                super().guide(x)
                pyro.factor("extra", -3.0 * len(x) * self.knob, has_rsample=True)

        program = Factor()
        program.knob = nn.Parameter(torch.tensor(1.0))
        sites._warn_of_unmarked.cache_clear()
        return program

    def test_are_in_no_bound(self, program):
        data = program.sample(8)
        expected = -program.evidence(*data).sum().item()
        with pyro.get_param_store().scope():
            with pytest.warns(UserWarning, match="'extra' is not in the model"):
                loss = IWAE(3).loss(program.model, program.guide, *data)
            assert loss == pytest.approx(expected, abs=1e-8)
            loss = ELBO(kl="sampled").loss(program.model, program.guide, *data)
            assert loss == pytest.approx(expected, abs=1e-8)
        assert evaluate.nll(program, data, 9).sum().item() == pytest.approx(expected, abs=1e-8)

    @pytest.mark.filterwarnings("ignore:The guide's 'extra'")
    def test_are_trained_with(self, program):
        data = program.sample(8)
        with pyro.get_param_store().scope():
            ELBO(kl="sampled").differentiable_loss(program.model, program.guide, *data).backward()
        assert program.knob.grad.item() == pytest.approx(-24.0)


def test_masks_written_twice_are_one(float64):
    """Equal by their numbers: the closed form; different for some: there it is sampled, in a graph without a look."""
    x, keep = torch.randn(6), torch.tensor([True, True, False, True, False, True])

    def program(mask, loc):
        def run(x):
            with pyro.plate("data", 6), poutine.mask(mask=mask()):
                z = pyro.sample("z", dist.Normal(loc * x, 0.7))
                if not loc:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        return run

    model, guide = program(lambda: keep & True, 0.0), program(lambda: keep | False, 0.5)
    kl = (0.5 * (0.25 * x**2 + 0.0 * x))[keep].sum().item() / 0.49
    report = ELBO().report(model, guide, x)["z"]
    assert report.kind == "analytic"
    assert report.nats == pytest.approx(kl)
    other = program(lambda: ~keep, 0.5)
    assert ELBO().report(model, other, x)["z"].kind == "sampled"


@pytest.mark.parametrize("likelihood", ["Bernoulli", "Poisson", "Beta"])
@pytest.mark.parametrize("row", [0, 40])
def test_supports_are_checked_where_validation_is_off(likelihood, row):
    """Whichever row is outside, among more than the few that a program is looked at on."""
    vae, x = VAE.build((4,), 2, likelihood=getattr(likelihoods, likelihood)), torch.full((50, 4), 1.0)
    x = 0.5 * x if likelihood == "Beta" else x
    with pyro.validation_enabled(False):
        assert evaluate.nll(vae, x, 3).isfinite().all()
        x[row, 1] = 1.5 if likelihood == "Beta" else 0.5
        with pytest.raises(ValueError, match=r"'x' in the support of .*; got values in \[0.5, 1"):
            evaluate.nll(vae, x, 3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.float64, torch.bool, np.int16])
def test_x_of_any_real_dtype_is_that_of_the_program(dtype):
    vae, x = VAE.build((4,), 2, likelihood=likelihoods.Bernoulli), (torch.rand(5, 4) < 0.5).float()
    right = evaluate.log_weights(vae, x, 7, seed=0)
    other = x.numpy().astype(dtype) if dtype is np.int16 else x.to(dtype)
    assert torch.equal(evaluate.log_weights(vae, other, 7, seed=0), right)
    assert torch.equal(evaluate.nll(vae, other, 7, seed=0), -evaluate.iwae(right))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(4), r"x of shape \(B, 4\) with B of at least 1; got \(4,\)"),
        (torch.zeros(0, 4), "at least 1 image; got none"),
        (torch.zeros(3, 4) * 1j, r"real arguments .*; got \(3, 4\) of torch.complex64"),
        ({"y": torch.zeros(3, 4)}, "from the first on: x; got y"),
    ],
)
def test_other_data_get_a_sentence(data, message):
    with pytest.raises(ValueError, match=message):
        evaluate.nll(VAE.build((4,), 2), data, 3)
