"""ConditionalVAE, HierarchicalVAE, SemiSupervisedVAE: a contract for all, and each against an oracle."""

import math
from contextlib import nullcontext
from functools import partial
from itertools import product

import pyro
import pytest
import torch
from torch.nn.functional import one_hot

from pyro_vae import (
    CompiledSVI,
    ais,
    evaluate,
    fit,
    guides,
    load,
    networks,
    oracle,
    posterior,
    priors,
    programs,
    report,
)
from pyro_vae.data import from_columns
from pyro_vae.guides import FullNormal
from pyro_vae.likelihoods import Bernoulli, Gaussian
from pyro_vae.objectives import ELBO, IWAE, Renyi, ReweightedWakeSleep
from pyro_vae.seeds import seeded

CPU = torch.device("cpu")
SHAPE, CLASSES = (1, 6, 6), 3
SMALL = {"likelihood": Bernoulli, "network": partial(networks.MLP, hidden=(8,), activation="Tanh")}
CONDITIONAL = partial(programs.ConditionalVAE.build, SHAPE, 2, given=CLASSES, **SMALL)
LAYERS = partial(programs.HierarchicalVAE.build, SHAPE, latents=(3, 2), **SMALL)
PARTLY = partial(programs.SemiSupervisedVAE.build, SHAPE, 2, classes=CLASSES, **SMALL)
PROGRAMS = {
    "given a label": CONDITIONAL,
    "given a label, p(z) a flow": partial(CONDITIONAL, prior=priors.Flow),
    "layers, bottom-up": LAYERS,
    "layers, top-down, of a VampPrior": partial(
        LAYERS, guide="top-down", prior=partial(priors.VampPrior, components=5)
    ),
    "labels for some": PARTLY,
}
EVERY = pytest.mark.parametrize("name", PROGRAMS)
CODES = partial(programs.VQVAE.build, SHAPE, codes=4, dim=3, grid=(1, 2), **SMALL)
# tests/test_vector_quantised.py asks the questions of these: a point mass has other answers.
WITH_CODES = PROGRAMS | {
    "codes, VQ": CODES,
    "codes, VQ by gradients": partial(CODES, guide=partial(guides.VQ, decay=0.0)),
    "codes, FSQ": partial(CODES, guide=partial(guides.FSQ, levels=(2, 2))),
}


def columns(name, num=40):
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(num, *SHAPE, generator=draw).round()
    y = torch.randint(CLASSES, (num,), generator=draw)
    if name.startswith(("layers", "codes")):
        return {"x": x}
    return {"x": x, "y": torch.where(torch.arange(num) % 2 == 0, y, -1) if name == "labels for some" else y}


class TestContract:
    @EVERY
    @pytest.mark.parametrize(
        "objective", [ELBO(), ELBO(2, gradient="stl"), IWAE(3), IWAE(3, "dreg"), Renyi(0.5, 3), ReweightedWakeSleep(3)]
    )
    def test_every_objective_reaches_every_parameter(self, name, objective):
        program = PROGRAMS[name]()
        refused = name == "labels for some" and getattr(objective, "gradient", "") in ("stl", "dreg")
        with (
            pyro.get_param_store().scope(),
            pytest.raises(ValueError, match="classes are summed out") if refused else nullcontext(),
        ):
            objective.differentiable_loss(program.model, program.guide, *columns(name, 6).values()).backward()
        assert refused or not [key for key, p in program.named_parameters() if p.grad is None or not p.grad.any()]

    @pytest.mark.parametrize(
        ("name", "objective"), [*product(WITH_CODES, [ELBO]), *product([*WITH_CODES][1::2], [partial(IWAE, 3)])]
    )
    def test_a_step_is_a_graph_of_the_same_loss(self, name, objective):
        losses = []
        for mode in ("off", "graph"):
            with seeded(0, CPU):
                program = WITH_CODES[name]()
            with seeded(1, CPU), pyro.get_param_store().scope():
                svi = CompiledSVI(
                    program.model, program.guide, pyro.optim.Adam({"lr": 1e-3}), objective(), compile=mode
                )
                losses.append([svi.step(*columns(name, 8).values()) for _ in range(4)])
                assert svi.mode == mode
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)

    @pytest.mark.parametrize("name", WITH_CODES)
    def test_a_run_is_resumed_to_the_last_bit_and_loaded_without_more(self, name, tmp_path):
        def trained(epochs, **where):
            with seeded(0, CPU):
                program = WITH_CODES[name]()
            history = fit(program, columns(name), epochs=epochs, batch_size=10, compile="off", progress=False, **where)
            return program, history["train"]

        program, losses = trained(2, run_dir=tmp_path / "whole")
        trained(1, run_dir=tmp_path / "halves")
        assert trained(2, resume=tmp_path / "halves")[1] == losses
        for run in ("whole", "halves"):
            loaded, _ = load(tmp_path / run)
            assert type(loaded) is type(program)
            for key, value in program.state_dict().items():
                assert torch.equal(loaded.state_dict()[key], value), key

    @EVERY
    def test_every_question_has_an_answer(self, name, monkeypatch):
        monkeypatch.setattr("pyro_vae.annealing.PILOT", 3)
        monkeypatch.setattr("pyro_vae.annealing.SETTLE", 1)
        program, data = PROGRAMS[name](), columns(name, 4)
        rows = posterior.to_arviz(program, data, 25, predictive_draws=1)
        assert {*rows.posterior.data_vars} >= ({"z1", "z2"} if name.startswith("layers") else {"z"})
        assert ais.bdmc(program, data, 2, 2, num=2).upper.isfinite().all()
        assert evaluate.mutual_information(program, data, seed=0) < math.log(4) + 1e-5  # of 4 rows
        assert program.generate(5).shape == (5, *SHAPE)
        assert program.reconstruct(*data.values()).shape == (4, *SHAPE)
        table = report.table(program, from_columns(columns(name, 20)), 5, progress=False)
        assert ("log p(x | y)" in table) == name.startswith("given a label")


def affine(part, mean, offset, covariance=None):
    """Write an affine map, and the Cholesky factor of a covariance, into a Conditional whose network has one layer."""
    network = getattr(part.network, "network", part.network)
    (weight,) = network.layers.parameters()
    with torch.no_grad():
        weight.zero_()
        weight[: len(mean)] = mean
        network.bias.zero_()
        network.bias[0] = offset
        if covariance is not None:
            factor = torch.linalg.cholesky(covariance)
            network.bias[1:] = factor.tril(-1) + factor.diagonal().log().diag()


LINEAR = {
    "network": partial(networks.MLP, hidden=()),
    "likelihood": partial(Gaussian, scale=0.7),
}


class TestAgainstOracles:
    """Linear networks with an oracle's weights: every draw's weight is the oracle's evidence."""

    def test_covariates(self, float64):
        exact = oracle.Covariates.random(5, 2, given=3)
        program = programs.ConditionalVAE.build((5,), 2, given=3, guide=FullNormal, **LINEAR)
        affine(program.prior, exact.of_z, exact.shift)
        affine(program.decoder, torch.cat([exact.weight, exact.of_x], 1), exact.bias)
        y = torch.randn(4, 3)
        x = exact.sample(4, y)
        distribution = exact.posterior(x, y)
        # Its mean is affine in x and y: read off at unit vectors.
        eye, zero = torch.eye(8), torch.zeros(1, 8)
        means = exact.posterior(*torch.cat([zero, eye]).split([5, 3], 1)).mean
        affine(program.encoder, (means[1:] - means[0]).T, means[0], distribution.covariance_matrix[0])
        torch.testing.assert_close(evaluate.nll(program, (x, y), 3), -exact.log_evidence(x, y).detach())

    def test_labels_are_covariates_of_one_element_that_is_one(self):
        program, x, y = CONDITIONAL(), torch.rand(4, *SHAPE).round(), torch.tensor([0, 2, 1, 2])
        one, two = (evaluate.nll(program, (x, given), 10, seed=0) for given in (y, one_hot(y, CLASSES).float()))
        assert torch.equal(one, two)

    @pytest.mark.parametrize("guide", ["bottom-up", "top-down"])
    def test_layers(self, guide, float64):
        exact = oracle.Layers.random(5, (3, 2))
        program = programs.HierarchicalVAE.build((5,), (3, 2), guide=guide, family=FullNormal, **LINEAR)
        affine(program.decoder, exact.matrix(0), exact.shift(0))
        affine(program.layers["z1"], exact.matrix(1), exact.shift(1), 0.49 * torch.eye(3))
        x, seven = exact.sample(4), torch.cat([torch.zeros(1, 7), torch.eye(7)])
        for_x = {"z1": lambda a: exact.posterior(a[:, :5], 1), "z2": lambda a: exact.given_below(2, a[:, :3])}
        if guide == "top-down":
            for_x = {
                "z1": lambda a: exact.given_above(1, a[:, :5], a[:, 5:]),
                "z2": lambda a: exact.posterior(a[:, :5], 2),
            }
        for name, encoder in program.encoders.items():
            distribution = for_x[name](seven)
            columns = (distribution.mean[1:] - distribution.mean[0]).T
            width = {"bottom-up": {"z1": 5, "z2": 3}, "top-down": {"z2": 5, "z1": 7}}[guide][name]
            affine(encoder, columns[:, :width], distribution.mean[0], distribution.covariance_matrix[0])
        torch.testing.assert_close(evaluate.nll(program, x, 3), -exact.log_evidence(x).detach())

    @pytest.mark.parametrize(("guide", "sampled"), [("bottom-up", {"z1"}), ("top-down", set())])
    def test_which_layers_have_a_divergence_in_closed_form(self, guide, sampled, param_store):
        program = LAYERS(guide=guide)
        found = ELBO().report(program.model, program.guide, torch.rand(4, *SHAPE).round())
        assert {name for name, site in found.items() if site.kind == "sampled"} == sampled

    def test_classes(self, float64):
        weight, bias = oracle.base.normals(0, (4, 2), (3, 4))
        exact = oracle.Classes(weight.expand(3, 4, 2), bias, torch.zeros(3), 0.7)
        program = programs.SemiSupervisedVAE.build((4,), 2, classes=3, guide=FullNormal, **LINEAR)
        affine(program.decoder, torch.cat([weight, bias.T], 1), torch.zeros(4))
        eight = torch.cat([torch.zeros(1, 4), torch.eye(4)])
        distribution = exact.posterior(eight, torch.zeros(5, dtype=torch.long))
        gain = (distribution.mean[1:] - distribution.mean[0]).T
        affine(program.encoder, torch.cat([gain, -gain @ bias.T], 1), torch.zeros(2), distribution.covariance_matrix[0])
        logits = exact.log_joint(eight)
        slopes = (logits[1:] - logits[0]).T  # of log p(x, y): the square of x is the same for all classes
        affine(program.classifier, slopes, logits[0])
        x, y = exact.sample(6), torch.tensor([0, 1, -1, 2, -1, 0])
        for data in ((x,), (x, y)):
            torch.testing.assert_close(evaluate.nll(program, data, 3), -exact.log_evidence(*data))
        torch.testing.assert_close(evaluate.posterior(program, x, "y", 3), exact.posterior_of_y(x))
        torch.testing.assert_close(program.classify(x), exact.posterior_of_y(x))


class TestSemiSupervised:
    def test_the_classification_term_is_in_the_loss_alone(self):
        """Its gradient is the weight times that of -log q(y | x), of labels that are known; the loss is the bound's."""
        program, (x, y) = PARTLY(weight=0.0), columns("labels for some", 8).values()
        found = []
        for weight in (0.0, 7.0):
            program.weight = weight
            with seeded(1, CPU), pyro.get_param_store().scope():
                loss = ELBO().differentiable_loss(program.model, program.guide, x, y)
            found.append((loss.detach(), torch.autograd.grad(loss, program.classifier.network.bias)[0]))
        assert torch.equal(found[0][0], found[1][0])
        seen = y >= 0
        term = -program.classifier(x).logits.log_softmax(-1)[seen, y[seen]].sum()
        expected = 7.0 * torch.autograd.grad(term, program.classifier.network.bias)[0]
        torch.testing.assert_close(found[1][1] - found[0][1], expected, rtol=1e-4, atol=1e-5)


class TestBadInput:
    @pytest.mark.parametrize(
        ("build", "name"),
        [
            (lambda: CONDITIONAL(given=0), "given"),
            (lambda: CONDITIONAL(prior="learnt"), "learnt"),
            (lambda: CONDITIONAL(prior=priors.VampPrior), "VampPrior"),
            (lambda: LAYERS(latents=()), "latents"),
            (lambda: programs.HierarchicalVAE.build(SHAPE, (3, 0)), "z2"),
            (lambda: LAYERS(guide="sideways"), "sideways"),
            (lambda: PARTLY(classes=1), "classes"),
            (lambda: PARTLY(weight=-1.0), "weight"),
        ],
    )
    def test_of_a_constructor(self, build, name):
        with pytest.raises(ValueError, match=f"^Expected .*{name}"):
            build()

    @pytest.mark.parametrize(
        ("program", "y"),
        [
            (CONDITIONAL, torch.tensor([0, 1, 3, 0])),
            (CONDITIONAL, torch.tensor([0, 1, -1, 0])),
            (CONDITIONAL, torch.rand(4, 2)),
            (CONDITIONAL, torch.tensor([[0.0, 1.0, torch.nan]] * 4)),
            (PARTLY, torch.tensor([0, 1, 3, 0])),
            (PARTLY, torch.tensor([0, 1, -2, 0])),
            (PARTLY, torch.rand(4)),
        ],
    )
    def test_of_labels(self, program, y):
        x = torch.rand(4, *SHAPE).round()
        for ask in (partial(evaluate.nll, num_particles=2), partial(fit, epochs=1, progress=False)):
            with pytest.raises(ValueError, match="^Expected .*y"):
                ask(program(), {"x": x, "y": y})
