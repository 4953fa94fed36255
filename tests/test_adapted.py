"""Importance sampling from a proposal fitted to each datum, of programs whose log p(x) is known exactly."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import PROGRAMS
from test_posterior_programs import EVERY, MOVED, Off
from torch import nn

from pyro_vae import data, evaluate
from pyro_vae.evaluate import adapted, weighing
from pyro_vae.oracle import LinearGaussian
from pyro_vae.report import evaluation, table

pytestmark = pytest.mark.usefixtures("float64", "param_store")


class TestStudent:
    def distribution(self, rows=2, dims=3):
        scale = torch.randn(rows, dims, dims).tril(-1) + torch.diag_embed(0.5 + torch.rand(rows, dims))
        return adapted.Student(torch.randn(rows, dims), scale)

    def test_densities_are_those_of_a_multivariate_student(self):
        distribution = self.distribution()
        u = distribution.draw(5)
        expected = dist.MultivariateStudentT(adapted.DF, distribution.loc, distribution.scale)
        assert u.shape == (5, 2, 3)
        torch.testing.assert_close(distribution.log_prob(u), expected.log_prob(u), rtol=0, atol=1e-10)
        torch.testing.assert_close(
            distribution.select(torch.tensor([1])).log_prob(u[:, 1:]), distribution.log_prob(u)[:, 1:]
        )

    def test_draws_have_its_covariance(self):
        """Of 200,000 draws, to 0.03 of the variances: five standard errors, once in a million runs."""
        distribution = self.distribution(1)
        u = distribution.draw(200_000)
        expected = distribution.scale[0] @ distribution.scale[0].T * adapted.DF / (adapted.DF - 2)
        assert (u[:, 0].T.cov() - expected).abs().max() < 0.03 * expected.diagonal().max()

    def test_a_fit_has_mean_and_covariance_of_the_weighted_draws(self):
        """But for a tenth of the correlations: draws of q weighted by p / q, both Gaussian."""
        p = dist.MultivariateNormal(torch.tensor([1.0, -1.0]), torch.tensor([[1.0, 0.6], [0.6, 1.0]]))
        q = dist.Normal(torch.zeros(2), 2.0).to_event(1)
        u = q.sample((200_000, 1))
        distribution = adapted.fit_student(u, p.log_prob(u) - q.log_prob(u))
        covariance = distribution.scale[0] @ distribution.scale[0].T * adapted.DF / (adapted.DF - 2)
        torch.testing.assert_close(distribution.loc[0], p.mean, rtol=0, atol=0.03)
        torch.testing.assert_close(covariance, torch.tensor([[1.0, 0.54], [0.54, 1.0]]), rtol=0, atol=0.05)

    def test_draws_of_two_laws_are_fitted_as_of_their_mixture(self):
        """Each distribution alone leaves out a half of the Gaussian; of 200,000 draws errors are as above."""
        p = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.6], [0.6, 1.0]]))
        distributions = [adapted.Student(torch.full((1, 2), side), 0.8 * torch.eye(2)[None]) for side in (-1.5, 1.5)]
        rounds = [
            adapted.Round(distribution, u, p.log_prob(u))
            for distribution in distributions
            for u in [distribution.draw(100_000)]
        ]
        distribution = adapted.fit_mixture(rounds)
        covariance = distribution.scale[0] @ distribution.scale[0].T * adapted.DF / (adapted.DF - 2)
        torch.testing.assert_close(distribution.loc[0], p.mean, rtol=0, atol=0.03)
        torch.testing.assert_close(covariance, torch.tensor([[1.0, 0.54], [0.54, 1.0]]), rtol=0, atol=0.05)

    def test_so_many_draws_count_at_the_power_that_is_taken(self):
        log_w = torch.stack([10 * torch.randn(1000), torch.zeros(1000)], dim=1)
        weight = adapted.temper(log_w, 30.0)
        torch.testing.assert_close(1 / weight.square().sum(0), torch.tensor([30.0, 1000.0]), rtol=1e-4, atol=0)


class TestWeights:
    @EVERY
    def test_an_exact_guide_stays(self, make):
        program = make()
        rows = program.sample(4)
        log_w = evaluate.log_weights(program, rows, 3, proposal="adapted", seed=0)
        torch.testing.assert_close(log_w, program.evidence(*rows).detach().expand(3, 4), rtol=0, atol=1e-10)

    @pytest.mark.parametrize("name", MOVED)
    def test_of_a_guide_that_is_off_they_come_to_log_p(self, name):
        """2,000 draws, of which hundreds count: standard errors are below 0.05. The seed is fixed."""
        program = Off(PROGRAMS[name])
        rows = program.exact.sample(4)
        log_w = evaluate.log_weights(program, rows, 2000, proposal="adapted", seed=0)
        torch.testing.assert_close(evaluate.iwae(log_w), program.evidence(*rows).detach(), rtol=0, atol=0.2)
        nll = evaluate.nll(program, rows, 2000, proposal="adapted", seed=0)
        torch.testing.assert_close(nll, -evaluate.iwae(log_w), rtol=0, atol=1e-10)

    @pytest.mark.parametrize("graph", [False, True])
    def test_their_mean_is_p(self, graph, monkeypatch):
        """Of 400 fits for one x, 4 draws each: within 5 standard errors, once in a million runs."""
        monkeypatch.setattr(weighing, "MANY", 0 if graph else 10**9)
        model = LinearGaussian(torch.randn(4, 2), torch.randn(4), scale=0.5)
        x = torch.randn(1, 4)
        log_w = evaluate.log_weights(model.vae("mean-field"), x.expand(400, 4), 4, proposal="adapted", seed=0)
        ratio = (log_w - model.log_evidence(x)).exp().mean(0)
        assert (ratio.std() > 0).all()
        assert abs(ratio.mean() - 1) < 5 * ratio.std() / len(ratio) ** 0.5

    def test_a_guide_far_too_narrow_is_mended(self):
        """A tenth of the posterior's scale in five dimensions: k says no of the guide, yes of the fit."""
        model = LinearGaussian(torch.randn(20, 5), torch.zeros(20), scale=2.0)
        vae, x = model.vae(), torch.randn(10, 20)
        vae.encoder = Narrow(vae.encoder)
        of_guide, of_fit = (
            evaluate.log_weights(vae, x, 1000, seed=0, proposal=proposal) for proposal in ("guide", "adapted")
        )
        assert (evaluate.pareto_k(of_guide) > 0.7).all()
        assert (evaluate.pareto_k(of_fit) < 0.7).all()
        torch.testing.assert_close(evaluate.iwae(of_fit), model.log_evidence(x), rtol=0, atol=0.2)

    @pytest.mark.parametrize("scale", [1e-4, 1e4])
    def test_a_posterior_of_any_scale(self, scale):
        """Of a Gaussian posterior that is a ten-thousandth of a unit wide, or ten thousand; the guide is off."""
        program, x = Scaled(scale), torch.randn(5, 3)
        log_w = evaluate.log_weights(program, x, 1000, seed=0, proposal="adapted")
        torch.testing.assert_close(evaluate.iwae(log_w), program.evidence(x), rtol=0, atol=0.2)
        assert (evaluate.ess(log_w) > 300).all()

    def test_chunks_do_not_change_what_is_estimated(self):
        model = LinearGaussian(torch.randn(6, 3), torch.randn(6), scale=0.7)
        x = torch.randn(5, 6)
        for at_once in (17, 64):
            found = evaluate.nll(model.vae("mean-field"), x, 1000, at_once, seed=0, proposal="adapted")
            torch.testing.assert_close(found, -model.log_evidence(x), rtol=0, atol=0.2)

    def test_to_few_data_at_once_where_their_draws_are_many_numbers(self, monkeypatch):
        """Of 4 rounds of 50 draws for each of 3 dimensions, in 3 dimensions."""
        model, sizes = LinearGaussian(torch.randn(6, 3), torch.randn(6), scale=0.7), []

        def fit(rows, *rest):
            sizes.append(len(rows))
            return adapted.AdaptedProposals(rows, *rest)

        monkeypatch.setattr(adapted, "AT_ONCE", 2 * 4 * 50 * 3 * 3)
        monkeypatch.setattr(weighing, "AdaptedProposals", fit)
        x = torch.randn(5, 6)
        found = evaluate.nll(model.vae("mean-field"), x, 1000, seed=0, proposal="adapted")
        torch.testing.assert_close(found, -model.log_evidence(x), rtol=0, atol=0.2)
        assert sizes == [2, 2, 1]

    def test_pixels_that_are_missing_are_integrated_out(self):
        model = LinearGaussian(torch.randn(6, 2), torch.randn(6), scale=0.7)
        x = torch.randn(5, 6)
        x[:, 0] = math.nan
        seen = LinearGaussian(model.weight[1:], model.bias[1:], model.scale)
        found = evaluate.nll(model.vae("mean-field"), x, 2000, seed=0, proposal="adapted")
        torch.testing.assert_close(found, -seen.log_evidence(x[:, 1:]), rtol=0, atol=0.2)

    def test_of_two_modes_the_bound_stays_below_log_p(self):
        """z and -z are as likely, and the guide sees one of them."""
        program, x = Square(), torch.full((5, 1), 9.0)
        log_w = evaluate.log_weights(program, x, 2000, seed=0, proposal="adapted")
        assert (evaluate.iwae(log_w) < program.evidence(x) + 0.1).all()

    def test_another_name_gets_a_sentence(self):
        model = LinearGaussian(torch.randn(4, 2), torch.randn(4), scale=0.5)
        with pytest.raises(ValueError, match="Expected proposal to be guide or adapted; got 'adpated'"):
            evaluate.nll(model.vae(), torch.randn(2, 4), 2, proposal="adpated")


class Narrow(nn.Module):
    """A tenth of the scale of another encoder."""

    def __init__(self, encoder):
        super().__init__()
        self.exact = encoder

    def forward(self, x):
        distribution = self.exact(x)
        return dist.MultivariateNormal(distribution.mean, scale_tril=0.1 * distribution.scale_tril)


class Scaled(nn.Module):
    """x ~ N(z / scale, 1), z ~ N(0, scale^2), three of each; the guide is half as wide as the posterior, and off."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), self.scale).to_event(1))
            pyro.sample("x", dist.Normal(z / self.scale, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x / 2 + 0.3) * self.scale, 0.35 * self.scale).to_event(1))

    def evidence(self, x):
        return dist.Normal(0.0, 2**0.5).log_prob(x).sum(-1)


class Square(nn.Module):
    """x ~ N(z^2, 1), z ~ N(0, 9); the guide is of one mode."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 3.0))
            pyro.sample("x", dist.Normal(z.square().unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0].clamp(min=0).sqrt(), 0.3))

    def evidence(self, x):
        z = torch.linspace(-20, 20, 400_001)
        log_p = dist.Normal(0.0, 3.0).log_prob(z) + dist.Normal(z.square(), 1.0).log_prob(x[:1, 0])
        return (log_p.logsumexp(0) + math.log(z[1] - z[0])).expand(len(x))


class Wandering(nn.Module):
    """A guide that draws a site which the model does not have, so that q(z | x) is not known."""

    def __init__(self):
        super().__init__()
        self.exact = LinearGaussian(torch.randn(6, 2), torch.randn(6), scale=0.7).vae()
        self.model = self.exact.model

    def guide(self, x):
        with pyro.plate("data", len(x)):
            shift = pyro.sample("shift", dist.Normal(0.0, 0.3), infer={"is_auxiliary": True})
            distribution = self.exact.encoder(x)
            pyro.sample("z", dist.Normal(distribution.mean + shift.unsqueeze(-1), 0.5).to_event(1))


def test_a_guide_of_unknown_density_is_where_the_fit_starts():
    program, x = Wandering(), torch.randn(5, 6)
    found = evaluate.nll(program, x, 2000, seed=0, proposal="adapted")
    torch.testing.assert_close(found, -program.exact.decoder.log_evidence(x).detach(), rtol=0, atol=0.2)


class TestEvaluation:
    """Of four test rows, where the guide is two standard deviations off, and of few draws that fit."""

    OPTIONS = {"num_particles": 50, "images": 4, "chosen": 0, "progress": False}

    @pytest.fixture(autouse=True)
    def few(self, monkeypatch):
        monkeypatch.setattr(adapted, "ROUNDS", (25, 25, 50))
        monkeypatch.setattr("pyro_vae.report.answers.SIMULATED", 20)

    @pytest.fixture
    def trained(self):
        vae = LinearGaussian(torch.randn(4, 2), torch.randn(4), scale=0.5).vae("mean-field")
        vae.encoder.network.bias.data += 2 * vae.encoder(torch.zeros(1, 4)).base_dist.scale[0].detach()
        return vae, data.from_tensor(torch.randn(40, 4))

    def test_by_one_proposal_all_splits_are_weighed_by_it(self, trained):
        """The guide is judged by its own draws, and the table says which."""
        vae, dataset = trained
        found = evaluation(vae, dataset, **self.OPTIONS, proposal="adapted")
        of_guide = evaluation(vae, dataset, **self.OPTIONS, proposal="guide")
        assert found.numbers["k, median"] == of_guide.numbers["k, median"]
        assert found.numbers["adapted, k, median"] != found.numbers["k, median"]
        assert found.images["-log p(x)"] != of_guide.images["-log p(x)"]
        assert "50 draws from a proposal adapted to each datum" in found.table
        assert "50 draws from the guide" in of_guide.table
        assert all("adapted" not in line for line in (*of_guide.table.splitlines(), str(of_guide.sections)))
        values = evaluate.per_image(vae, dataset.test, 50, 4, proposal="adapted")
        assert found.images["ELBO"] == values.elbo.tolist()

    def test_by_both_the_better_bound_counts(self, trained):
        vae, dataset = trained
        both, of_guide, of_adapted = (
            evaluation(vae, dataset, **self.OPTIONS, proposal=name) for name in ("both", "guide", "adapted")
        )
        assert both.numbers["test -log p(x)"] == of_adapted.numbers["test -log p(x)"]
        assert both.images["-log p(x)"] == of_adapted.images["-log p(x)"]
        for name in ("train -log p(x)", "test - train", "k > 0.7"):  # a difference is of one proposal
            assert both.numbers[name] == of_guide.numbers[name]
        rows = both.table.splitlines()[1:4]
        assert [row.split()[-1] for row in rows[:2]] == ["-", "-"]
        assert f"{both.numbers['test -log p(x)']:.2f} ±" in rows[2].rpartition("  ")[2]

    def test_a_guide_that_is_better_counts(self, trained, monkeypatch):
        vae, dataset = trained
        monkeypatch.setattr(adapted.AdaptedProposals, "log_weights", lambda self, num: self.rows.log_weights(num) - 1)
        both, of_guide = (evaluation(vae, dataset, **self.OPTIONS, proposal=name) for name in ("both", "guide"))
        assert both.numbers["test -log p(x)"] == of_guide.numbers["test -log p(x)"]
        assert "50 draws from the guide." in both.sections["How good is the model? The first 4 test rows"][0]

    @pytest.mark.filterwarnings("ignore:AIS")  # of so few temperatures
    def test_ais_is_asked_where_weights_are_not_trusted(self, trained, monkeypatch, short_pilots, brief_gaps):
        vae, dataset = trained[0], data.from_tensor(torch.randn(400, 4))
        options = self.OPTIONS | {"chosen": None, "images": 40, "temperatures": 5, "proposal": "guide"}
        monkeypatch.setattr("pyro_vae.report.answers.CHOSEN", 2)
        for k, chosen, asked in ((0.1, None, False), (0.1, 2, True), (0.9, None, True), (0.9, 0, False)):
            monkeypatch.setattr(evaluate, "pareto_k", lambda log_w, k=k: torch.full_like(log_w[0], k))
            numbers = evaluation(vae, dataset, **options | {"chosen": chosen}).numbers
            assert ("AIS" in numbers) is asked
            assert ("approximation" in numbers) is (chosen != 0)

    def test_where_no_proposal_can_be_adapted_it_says_why(self, trained, monkeypatch):
        def refuse(*_):
            raise ValueError("Expected another prior.")

        vae, dataset = trained
        of_guide = evaluation(vae, dataset, **self.OPTIONS, proposal="guide")
        monkeypatch.setattr(weighing, "AdaptedProposals", refuse)
        found = evaluation(vae, dataset, **self.OPTIONS)
        assert found.table == of_guide.table == table(vae, dataset, 50, 4, progress=False)
        assert "No adapted proposal: Expected another prior." in str(found)
        with pytest.raises(ValueError, match="Expected another prior"):
            evaluation(vae, dataset, **self.OPTIONS, proposal="adapted")

    def test_many_draws_are_taken_where_they_are_asked_for_alone(self, trained, monkeypatch):
        vae, dataset = trained
        monkeypatch.setattr("pyro_vae.report.proposals.OF_EVALUATION", 999)  # 4 * (200 + 50) = 1000 are needed
        assert "adapted, k, median" not in evaluation(vae, dataset, **self.OPTIONS).numbers
        assert "adapted, k, median" in evaluation(vae, dataset, **self.OPTIONS, proposal="adapted").numbers
        monkeypatch.setattr("pyro_vae.report.proposals.OF_EVALUATION", 1000)
        assert "adapted, k, median" in evaluation(vae, dataset, **self.OPTIONS).numbers


@pytest.mark.parametrize("part", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("num", [1, 4, 9, 30])
def test_blocks_have_one_shape_and_the_densities_of_their_rows(part, num):
    """Calls for 4 draws of 7 data: any number of draws and of data comes back in order."""
    shapes = set()

    def density(data, u):
        shapes.add((data[0].shape, u.shape))
        return u.square().sum(-1) + data[0].squeeze(-1)

    u, column = torch.randn(num, part, 2), torch.randn(part, 1)
    values = adapted.in_blocks(density, (column,), u, 7, 4)
    torch.testing.assert_close(values, u.square().sum(-1) + column.squeeze(-1), rtol=0, atol=0)
    assert shapes == {((7, 1), (4, 7, 2))}
