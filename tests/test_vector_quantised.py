"""The VQVAE: the bound against sums over all codes, the quantiser's gradients, and the contract of programs."""

import copy
import math
import re
from functools import partial
from itertools import product

import pyro
import pytest
import torch
from conftest import close_briefly
from torch import nn

from pyro_vae import (
    VAE,
    ais,
    evaluate,
    fit,
    fit_prior,
    guides,
    likelihoods,
    load,
    networks,
    posterior,
    priors,
    programs,
    report,
)
from pyro_vae.commands import run
from pyro_vae.data import from_columns
from pyro_vae.objectives import PriorCrossEntropy

CPU = torch.device("cpu")
SHAPE = (1, 4, 4)
SMALL = {"likelihood": likelihoods.Bernoulli, "network": partial(networks.MLP, hidden=(8,)), "grid": (1, 2)}
VQ = partial(programs.VQVAE.build, SHAPE, codes=4, dim=3, **SMALL)
GUIDES = {"VQ": guides.VQ, "VQ, gradient": partial(guides.VQ, decay=0.0), "FSQ": partial(guides.FSQ, levels=(2, 2))}
PRIORS = {"Independent": priors.Independent, "Autoregressive": partial(priors.Autoregressive, width=8, layers=1)}
EVERY = pytest.mark.parametrize("name", GUIDES)


def random_program(name="VQ", prior=priors.Independent):
    """A program whose prior and decoder are not uniform."""
    program = VQ(guide=GUIDES[name], prior=prior)
    with torch.no_grad():
        for parameter in (*program.prior.parameters(), *program.decoder.parameters()):
            parameter.add_(0.5 * torch.randn_like(parameter))
    return program.eval()


def images(num=12):
    return torch.rand(num, *SHAPE, generator=torch.Generator().manual_seed(0)).round()


def joint(program, x):
    """log p(c, x) of all 16 grids of codes, and the grids, by hand."""
    grids = torch.tensor([*product(range(4), repeat=2)]).reshape(16, 1, 2)
    vectors = program.quantiser.vectors[grids].permute(0, 3, 1, 2)  # (16, dim, 1, 2)
    log_p = program.prior().log_prob(grids)
    return log_p + program.decoder(vectors).log_prob(x.unsqueeze(1)), grids


@pytest.mark.parametrize("prior", PRIORS)
@EVERY
class TestEvidence:
    def test_the_bound_is_below_and_equal_over_all_codes(self, name, prior):
        program, x = random_program(name, PRIORS[prior]), images()
        with torch.no_grad():
            log_p, grids = joint(program, x)
        exact, codes = log_p.logsumexp(1), program.codes(x)
        place = (grids.unsqueeze(0) == codes.unsqueeze(1)).flatten(2).all(2).double().argmax(1)
        guide_alone = log_p[torch.arange(len(x)), place]
        nll = {num: evaluate.nll(program, x, num) for num in (1, 5, 16, 1000)}
        torch.testing.assert_close(-nll[1], guide_alone)
        torch.testing.assert_close(-evaluate.nll(program, x, 16), exact)
        torch.testing.assert_close(-nll[1000], exact)
        assert (nll[1] > nll[5]).all()
        assert (-nll[5] < exact).all()
        reconstruction, kl = evaluate.elbo_terms(program, x)
        torch.testing.assert_close(reconstruction - kl, guide_alone)  # the ELBO; the gap is -log p(c* | x)

    def test_neighbours_are_distinct_and_the_nearest_first(self, name, prior):
        program, x = random_program(name, PRIORS[prior]), images(3)
        codes = program.quantiser.nearest(program.neighbours(x, 7)["z"])
        assert codes.shape == (7, 3, 1, 2)  # the guide's, and 3 other codes at each of 2 places
        assert torch.equal(codes[0], program.codes(x))
        changed = (codes != codes[0]).flatten(2).sum(2)
        assert changed.tolist() == [[0] * 3, *[[1] * 3] * 6]
        for row in range(3):
            assert len({tuple(grid.flatten().tolist()) for grid in codes[:, row]}) == 7

    def test_a_prior_sums_to_one_and_draws_as_it_weighs(self, name, prior):
        """4,000 draws: 5 standard errors for each of 16 grids."""
        program = random_program(name, PRIORS[prior])
        with torch.no_grad():
            grids = joint(program, images(1))[1]
            p = program.prior().log_prob(grids).exp()
            draws = program.prior().sample((4000,)).reshape(-1, 2)
        assert p.sum().item() == pytest.approx(1, abs=1e-5)
        share = (draws * torch.tensor([4, 1])).sum(1).bincount(minlength=16) / 4000
        assert ((share - p).abs() < 5 * (p * (1 - p) / 4000).sqrt() + 1e-3).all()


class TestQuantisers:
    def test_the_terms_reach_one_side_each(self):
        z = torch.randn(5, 1, 3, 1, 2, requires_grad=True)
        quantiser = guides.VQ((4, 3, 1, 2), decay=0.0, commitment=0.25)
        loss = quantiser(z).loss.sum()
        of_z, of_codebook = torch.autograd.grad(loss, [z, quantiser.codebook])
        nearest = quantiser.embed(quantiser.nearest(z[:, 0])).detach()
        torch.testing.assert_close(of_z[:, 0], 2 * 0.25 * (z[:, 0] - nearest).detach())
        expected = torch.zeros(4, 3).index_add_(
            0, quantiser.nearest(z[:, 0]).flatten(), 2 * (nearest - z[:, 0].detach()).movedim(1, -1).reshape(-1, 3)
        )
        torch.testing.assert_close(of_codebook, expected)
        quantiser.commitment = 0.0  # the codebook's term alone has no gradient for the encoder
        assert not torch.autograd.grad(quantiser(z).loss.sum(), z)[0].any()
        averaged = guides.VQ((4, 3, 1, 2), decay=0.9, commitment=1.0)
        assert not [*averaged.parameters()]  # and the commitment's none for the codebook

    @pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
    @pytest.mark.parametrize("levels", [(3, 5), (2, 4, 6), (7,)], ids=str)
    def test_the_nearest_code_has_the_least_distance_wherever_a_vector_is(self, levels, size):
        """Beyond the outer levels too, where rounding alone names a code that does not exist."""
        for quantiser in (guides.FSQ((1, 1, 4, 5), levels), guides.VQ((9, 3, 4, 5))):
            z = size * torch.randn(20, *quantiser.event)
            nearest, distances = quantiser.nearest(z), quantiser.distances(z)
            assert nearest.min() >= 0
            assert nearest.max() < quantiser.codes
            torch.testing.assert_close(distances.gather(-1, nearest.unsqueeze(-1))[..., 0], distances.amin(-1))

    @EVERY
    def test_the_gradient_goes_straight_through(self, name):
        quantiser = GUIDES[name]((4, 3, 1, 2)).eval()
        z = torch.randn(5, 1, *quantiser.event, requires_grad=True)
        q = quantiser(z)
        weights = torch.randn(5, *quantiser.event)
        (gradient,) = torch.autograd.grad((weights * q.rsample()).sum(), [q.outputs], retain_graph=True)
        torch.testing.assert_close(gradient, weights)
        assert torch.equal(q.rsample(), quantiser.embed(quantiser.nearest(q.rsample())))

    @pytest.mark.parametrize("levels", [(3, 3), (2, 5), (8, 8, 8), (7, 5, 5, 5, 5)])
    def test_fsq_has_all_codes_and_finds_each(self, levels):
        quantiser = guides.FSQ((2, 2, 1, 1), levels=levels)
        assert quantiser.codes == math.prod(levels) == len(quantiser.vectors.unique(dim=0))
        codes = torch.arange(quantiser.codes).reshape(-1, 1, 1)
        assert torch.equal(quantiser.nearest(quantiser.embed(codes)), codes)
        z = 3 * torch.randn(20_000, 1, len(levels), 1, 1)
        draws = quantiser.nearest(quantiser(z).mean)
        assert ((draws >= 0) & (draws < quantiser.codes)).all()
        assert (quantiser(z).mean.flatten(1).amax(0) - quantiser.vectors.amax(0)).abs().max() < 1e-6
        if quantiser.codes < 100:
            assert len(draws.unique()) == quantiser.codes

    def test_moving_averages_are_the_means_of_the_outputs(self):
        """With decay near 0 one step sets each code to the mean of its outputs."""
        quantiser = guides.VQ((2, 1, 1, 1), decay=1e-6, restart=0.0).train()
        quantiser.codebook.copy_(torch.tensor([[-1.0], [1.0]]))
        quantiser(torch.tensor([-3.0, -2.0, 0.5, 4.0]).reshape(4, 1, 1, 1, 1))
        torch.testing.assert_close(quantiser.codebook, torch.tensor([[-2.5], [2.25]]), rtol=0, atol=1e-4)

    @pytest.mark.parametrize("decay", [0.0, 0.9])
    def test_dead_codes_restart_at_outputs(self, decay):
        quantiser = guides.VQ((8, 2, 1, 1), decay=decay, restart=0.5).train()
        with torch.no_grad():
            for tensor in (quantiser.codebook, quantiser.sums) if decay else (quantiser.codebook,):
                tensor.add_(100.0)  # far from all outputs: one code takes them all
        z = torch.randn(64, 1, 2, 1, 1)
        for _ in range(60):
            quantiser(z)
        assert quantiser.restarts > 5
        assert len(quantiser.nearest(z[:, 0]).unique()) > 5
        before = quantiser.codebook.clone()
        quantiser.eval()(z)
        with torch.no_grad():
            quantiser.train()(z)
        assert torch.equal(quantiser.codebook, before)

    @EVERY
    def test_the_networks_convolve_between_image_and_grid(self, name):
        program = programs.VQVAE.build((3, 16, 12), codes=4, dim=3, grid=(4, 3), guide=GUIDES[name])
        x = torch.rand(2, 3, 16, 12)
        assert program.reconstruct(x).shape == x.shape
        assert not any(isinstance(layer, nn.Linear) for layer in program.modules())


class TestQuestions:
    @EVERY
    def test_the_second_stage_changes_the_prior_alone(self, name):
        program = VQ(guide=GUIDES[name])
        fit(program, images(40), epochs=2, batch_size=10, progress=False, compile="off")
        start = copy.deepcopy(program.state_dict())
        history = fit_prior(program, images(40), PRIORS["Autoregressive"], epochs=8, lr=1e-2, progress=False)
        assert history["train"][-1] < history["train"][0] <= 2 * math.log(4) + 0.1
        assert all(
            torch.equal(value, start[key])
            for key, value in program.state_dict().items()
            if key in start and not key.startswith("prior.")
        )
        log_p = evaluate.kl_by_site(program, images(40))["z"]
        torch.testing.assert_close(log_p, -program.prior().log_prob(program.codes(images(40))).detach())

    @EVERY
    def test_every_question_has_an_answer_or_a_sentence(self, name):
        program, x = random_program(name), images(4)
        assert program.generate(5).shape == (5, *SHAPE)
        assert program.blank(5).shape == (5, *SHAPE)
        assert program.reconstruct(x).shape == x.shape
        assert program.usage(x).sum() == 8
        assert evaluate.log_weights(program, x, 3).std(0).max() < 1e-5  # a point mass
        assert {*posterior.to_arviz(program, x, 25, predictive_draws=1).posterior.data_vars} >= {"z"}
        dataset = from_columns({"x": images(20)})
        assert "a sum over the guide's codes and their neighbours, at most 5" in report.table(
            program, dataset, 5, progress=False
        )
        text = str(report.evaluation(program, dataset, 16, progress=False))
        assert "codes are in use" in text
        assert "k-hat is above" not in text
        for ask in (ais.ais, posterior.nuts, posterior.sbc, lambda program, x: posterior.sleep(program, 5, x)):
            with pytest.raises(ValueError, match="Expected"):
                ask(program, x)

    def test_stock_svi_and_the_objective_of_the_second_stage(self, param_store):
        program = VQ()
        svi = pyro.infer.SVI(program.model, program.guide, pyro.optim.Adam({"lr": 1e-2}), PriorCrossEntropy())
        start = copy.deepcopy(program.state_dict())
        svi.step(images())
        moved = {key for key, value in program.state_dict().items() if not torch.equal(value, start[key])}
        assert moved == {"prior.logits"}


class Zero(nn.Module):
    """A prior that returns a number."""

    def forward(self):
        return torch.zeros(())


class TestBadInput:
    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (lambda: VQ(codes=1), "codes of at least 2, .*; got 1"),
            (lambda: programs.VQVAE.build((1, 30, 28)), "divides the image's .*; got images of 30x28, and no grid"),
            (lambda: programs.VQVAE.build((1, 28, 28), grid=(3, 7)), r"got images of 28x28 and grid \[3, 7\]"),
            (
                lambda: programs.VQVAE.build((64,)),
                r"images of shape \(channels, height, width\) .*; got \(64,\)",
            ),
            (lambda: programs.VQVAE.build((1, 8, 8), grid=(4, 4)), "one number in channels for each halving from 8x8"),
            (
                lambda: VQ(guide=guides.DiagonalNormal),
                "guide to be a quantiser, .*; got Diag|guide that accepts",
            ),
            (lambda: VQ(prior=priors.StandardNormal), r"prior over event shape \(1, 2\)"),
            (lambda: VQ(prior=lambda shape: nn.Linear(1, 1)), r"prior whose forward\(\) takes no arguments"),
            (lambda: VQ(prior=lambda shape: Zero()), r"prior whose forward\(\) returns a distribution"),
            (lambda: VQ(guide=partial(guides.VQ, decay=1.0)), "decay and restart in .*; got 0.25, 1.0 and 0.05"),
            (lambda: VQ(guide=partial(guides.FSQ, levels=(1, 3))), r"levels of at least 2 .*; got \[1, 3\]"),
            (lambda: VQ(prior=partial(priors.Autoregressive, width=9)), "multiple of heads; got 9, 3 and 4"),
            (lambda: VAE.build(SHAPE, 2, guide=guides.VQ), r"\(codes, dim, height, width\), as a VQVAE passes"),
            (lambda: VAE.build(SHAPE, 2, prior=priors.Independent), r"\(height, width, codes\), as a VQVAE passes"),
            (lambda: fit_prior(VQ(), images(), priors.Flow), "prior that accepts the call|grid of codes"),
        ],
    )
    def test_is_one_sentence(self, build, message):
        with pytest.raises(ValueError, match=message):
            build()


class TestCommand:
    def test_two_stages(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        close_briefly(monkeypatch, 5, 20)
        words = "--program VQVAE --program.grid [4,4] --network MLP --network.hidden [8] --program.codes 8 --guide FSQ"
        assert (
            run(
                [
                    "train",
                    *words.split(),
                    "--binarize",
                    "static",
                    "--likelihood",
                    "Bernoulli",
                    "--epochs",
                    "1",
                    "--run_dir",
                    "first",
                ]
            )
            == 0
        )
        words = "--stage prior first --prior Autoregressive --prior.width 8 --prior.layers 1 --epochs 1"
        assert run(["train", *words.split(), "--run_dir", "second"]) == 0
        assert run(["train", "--resume", "second", "--epochs", "2"]) == 0
        assert run(["generate", "second", "--num", "2"]) == 0
        capsys.readouterr()
        assert run(["compare", "first", "second", "--num_particles", "5", "--images", "20"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "-log p(x) by a sum over the guide's codes and their neighbours, at most 5: an upper bound" in text
        assert "importance sampling" not in text
        program, config = load("second")
        assert isinstance(program.prior, priors.Autoregressive)
        assert config["program"]["init_args"]["guide"]["class_path"] == "pyro_vae.guides.FSQ"

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("--program.codes 1", "codes of at least 2"),
            ("--program.grid [3,3]", r"divides the image's .* 8x8 and grid \[3, 3\]"),
            ("--prior Flow", "prior that accepts the call"),
            ("--latent 3", "no --latent, a part of a VAE, with the program VQVAE"),
        ],
    )
    def test_bad_words_are_one_sentence(self, words, message, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert run(["train", "--program", "VQVAE", *words.split()]) == 2
        err = capsys.readouterr().err.strip()
        assert re.search(message, err), err
        assert len(err.splitlines()) == 1
        assert not [*tmp_path.iterdir()]
