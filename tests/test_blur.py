"""Measures of sample quality against answers by hand and in closed form; the experiment, small."""

import csv
import importlib
from dataclasses import replace
from functools import partial
from math import isfinite

import pytest
import torch
from conftest import EXPERIMENTS
from torch.nn.functional import avg_pool2d

from pyro_vae import data, fit, fit_prior, networks

pytestmark = pytest.mark.usefixtures("experiments_on_the_path")


@pytest.fixture
def measures(experiments_on_the_path):
    return importlib.import_module("sharpness")


@pytest.fixture
def gan(experiments_on_the_path):
    return importlib.import_module("gan")


def column(*numbers):
    return torch.tensor(numbers).unsqueeze(1)


class TestSharpness:
    def test_is_zero_on_a_ramp_and_known_on_a_point(self, measures):
        assert measures.sharpness(torch.full((2, 1, 6, 6), 0.3)) == 0
        assert measures.sharpness(torch.arange(6.0).expand(1, 1, 6, 6)) == 0
        point = torch.zeros(1, 1, 5, 5)
        point[..., 2, 2] = 1
        assert measures.sharpness(point) == pytest.approx((16 + 4) / 9)  # of mean 0
        assert measures.sharpness(point + 0.5) == pytest.approx((16 + 4) / 9)

    def test_is_a_mean_over_images(self, measures):
        x = torch.rand(3, 1, 6, 6)
        each = [measures.sharpness(image[None]) for image in x]
        assert measures.sharpness(x) == pytest.approx(sum(each) / 3)

    def test_falls_when_an_image_is_blurred(self, measures):
        x = torch.rand(4, 1, 9, 9)
        assert measures.sharpness(avg_pool2d(x, 3, 1, 1)) < measures.sharpness(x) / 2


class TestNeighbours:
    def test_equal_sets_have_all_four(self, measures):
        x = torch.randn(30, 5)
        assert measures.precision_recall(x, x.clone()) == (1, 1)
        assert measures.density_coverage(x, x.clone()) == pytest.approx((1, 1))

    def test_sets_far_apart_have_none(self, measures):
        x = torch.randn(30, 5)
        assert measures.precision_recall(x, torch.randn(30, 5) + 100) == (0, 0)
        assert measures.density_coverage(x, torch.randn(30, 5) + 100) == (0, 0)

    def test_four_points_by_hand(self, measures):
        """For k = 1 the radii are 1, 1, 2, 4 of the real points, and 3.5, 1, 1 of the fakes."""
        real, fake = column(0.0, 1.0, 3.0, 7.0), column(0.5, 4.0, 5.0)
        expected = [[True, True, False, False], [False, False, True, True], [False, False, False, True]]
        assert measures.inside(fake, real, 1).tolist() == expected
        assert measures.precision_recall(real, fake, 1) == (1, 3 / 4)  # 7 is in no ball of a fake
        assert measures.density_coverage(real, fake, 1) == pytest.approx((5 / 3, 1))
        assert measures.precision_recall(real, column(0.5, 0.6, 20.0), 1)[0] == pytest.approx(2 / 3)
        assert measures.density_coverage(real, column(0.5, 0.6, 20.0), 1) == pytest.approx((4 / 3, 1 / 2))

    def test_radii_reach_to_the_kth_nearest(self, measures):
        """For k = 2 the radii are 3, 2, 3, 6."""
        real = column(0.0, 1.0, 3.0, 7.0)
        assert measures.inside(column(2.5, -2.0), real, 2).tolist() == [[True] * 4, [True, False, False, False]]

    def test_a_mode_that_is_missing_costs_recall_and_coverage_and_not_precision(self, measures):
        half, other = torch.randn(40, 2), torch.randn(40, 2) + 50
        precision, recall = measures.precision_recall(torch.cat([half, other]), half)
        assert (precision, recall) == (1, 0.5)
        assert measures.density_coverage(torch.cat([half, other]), half) == pytest.approx((1, 0.5))

    def test_too_few_points_get_a_sentence(self, measures):
        with pytest.raises(ValueError, match="Expected more than k = 3 images, for balls to the k-th nearest; got 3"):
            measures.precision_recall(torch.randn(9, 2), torch.randn(3, 2))

    def test_nearest_is_the_least_distance(self, measures):
        points, centres = torch.randn(7, 4), torch.randn(1200, 4)
        expected = torch.cdist(points, centres).amin(1)
        torch.testing.assert_close(measures.nearest(points, centres), expected, atol=1e-3, rtol=0)
        assert measures.nearest(centres[:3], centres).max() < 1e-2


class TestFrechet:
    def points(self, mean, cov):
        """Points whose moments are exactly these."""
        x = torch.randn(50, len(mean), dtype=torch.float64)
        x = x - x.mean(0)
        x = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False).T
        return x @ torch.linalg.cholesky(cov).T + mean

    def test_diagonal_covariances_have_a_closed_form(self, measures):
        """|m1 - m2|^2 + sum (s1 - s2)^2, of standard deviations."""
        means = torch.tensor([[1.0, 2.0, 3.0], [1.0, 0.0, 4.0]], dtype=torch.float64)
        scales = torch.tensor([[1.0, 2.0, 0.5], [3.0, 2.0, 1.0]], dtype=torch.float64)
        a, b = (self.points(mean, scale.square().diag()) for mean, scale in zip(means, scales, strict=True))
        assert measures.frechet(a, b) == pytest.approx(5 + 4 + 0 + 0.25)

    def test_covariances_that_do_not_commute(self, measures):
        factors = torch.randn(2, 4, 4, dtype=torch.float64)
        first, second = factors @ factors.mT + torch.eye(4)
        a, b = self.points(torch.zeros(4), first), self.points(torch.ones(4), second)
        root = torch.linalg.eigvals(first @ second).real.sqrt().sum()
        assert measures.frechet(a, b) == pytest.approx((4 + first.trace() + second.trace() - 2 * root).item())
        assert measures.frechet(a, b) == pytest.approx(measures.frechet(b, a))

    def test_a_set_is_at_distance_0_from_itself_though_a_feature_is_constant(self, measures):
        x = torch.cat([torch.randn(40, 3), torch.ones(40, 1)], 1)
        assert measures.frechet(x, x) == pytest.approx(0, abs=1e-6)


class TestClassifier:
    def test_a_file_keeps_it(self, measures, monkeypatch, tmp_path):
        monkeypatch.setattr(measures, "STEPS", 150)
        digits, path = data.load("digits"), tmp_path / "classifier.pt"
        first = measures.Classifier(digits, (8,), 0, path)
        assert first.accuracy > 0.9
        monkeypatch.setattr(measures.Classifier, "learn", None)
        second = measures.Classifier(digits, (8,), 1, path)
        x = digits.test[:20]
        assert torch.equal(first.features(x), second.features(x))
        assert first.features(x).shape == (20, measures.FEATURES)
        torch.testing.assert_close(first.confidence(x), first.logits(x).softmax(1).amax(1))

    def test_data_without_labels_get_a_sentence(self, measures):
        with pytest.raises(ValueError, match="Expected a data set with labels, for the classifier; got tensor"):
            measures.Classifier(data.from_tensor(torch.rand(20, 1, 8, 8)), (8,))


class TestGAN:
    def test_the_penalty_of_a_linear_discriminator_is_the_squared_norm_of_its_weights(self, gan):
        weights = torch.randn(1, 8, 8)
        penalty = gan.r1_penalty(lambda x: (x * weights).flatten(1).sum(1), torch.rand(5, 1, 8, 8))
        assert penalty.item() == pytest.approx(weights.square().sum().item(), rel=1e-5)

    def test_the_penalty_is_a_mean_over_images_and_has_a_gradient(self, gan):
        """Of a |x|^2 / 2 it is a^2 |x|^2, and its derivative in a is 2 a |x|^2."""
        x, factor = torch.rand(5, 1, 8, 8), torch.tensor(3.0, requires_grad=True)
        penalty, square = gan.r1_penalty(lambda x: factor / 2 * x.square().flatten(1).sum(1), x), x.square().sum() / 5
        assert penalty.item() == pytest.approx(9 * square.item(), rel=1e-5)
        penalty.backward()
        assert factor.grad.item() == pytest.approx(6 * square.item(), rel=1e-5)

    def test_a_step_trains_each_player_on_its_own_loss(self, gan):
        """With SGD the steps are minus the gradients of the two losses, at the same draws."""
        model, x = gan.GAN((1, 8, 8), 3, (4,)), torch.rand(6, 1, 8, 8)
        before = {name: value.clone() for name, value in model.named_parameters()}
        z = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
        real, fake = model.logits(x), model.logits(model.images(z).detach())
        loss = -(real.sigmoid().log() + (1 - fake.sigmoid()).log()).mean() + 5 * gan.r1_penalty(model.logits, x)
        theirs = torch.autograd.grad(loss, [*model.discriminator.parameters()])
        players = [torch.optim.SGD(part.parameters(), 0.1) for part in (model.generator, model.discriminator)]
        gan.step(model, players, x, 10.0, torch.Generator().manual_seed(1))
        for (name, now), gradient in zip(model.discriminator.named_parameters(), theirs, strict=True):
            torch.testing.assert_close(now, before[f"discriminator.{name}"] - 0.1 * gradient)
        moved = [
            (now.detach().clone(), before[f"generator.{name}"]) for name, now in model.generator.named_parameters()
        ]
        for now, (_, old) in zip(model.generator.parameters(), moved, strict=True):
            now.data.copy_(old)
        loss = -model.logits(model.images(z)).sigmoid().log().mean()
        ours = torch.autograd.grad(loss, [*model.generator.parameters()])
        for (now, old), gradient in zip(moved, ours, strict=True):
            torch.testing.assert_close(now, old - 0.1 * gradient)
        assert all(torch.equal(value, before[f"average.{name}"]) for name, value in model.average.named_parameters())

    def test_the_average_follows(self, gan):
        model = gan.GAN((1, 8, 8), 3, (4,))
        old = model.average.bias.clone()
        model.generator.bias.data += 1
        model.follow(0.9)
        torch.testing.assert_close(model.average.bias, old + 0.1)

    def test_a_training_that_stopped_continues_and_is_the_same(self, gan, few_digits, tmp_path):
        digits, path = data.load("digits"), tmp_path / "gan.state"

        def trained(*lengths, path=None):
            for epochs in lengths:
                with torch.random.fork_rng():
                    torch.manual_seed(0)
                    model = gan.GAN(digits.event_shape, 3, (4,))
                seconds = gan.train(model, digits, epochs, 64, seed=1, path=path, progress=False)
            assert len(seconds) == lengths[-1]
            return model.state_dict()

        whole, parts = trained(3), trained(1, 3, path=path)
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
        assert [path.name for path in tmp_path.iterdir()] == ["gan.state"]


@pytest.fixture
def blur(experiments_on_the_path, monkeypatch):
    """In plain Pyro: to record a graph takes longer than the few steps. The classifier need not be good."""
    module = importlib.import_module("blur")
    monkeypatch.setattr(importlib.import_module("sharpness"), "STEPS", 100)
    for function in (fit, fit_prior):
        monkeypatch.setattr(module, function.__name__, partial(function, compile="off", progress=False))
    return module


SMALL = {"data": "digits", "epochs": 2, "prior_epochs": 1, "num": 50, "images": 20, "num_particles": 3}
COLUMNS = "model,images,bits/dim,rate,sharpness,precision,recall,density,coverage,Frechet,unreadable,memorised,seconds"


def small(blur, folder, **options):
    blur.main(**SMALL | options, runs=str(folder / "runs"), out=str(folder / "out"))
    with (folder / "out" / "blur.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
class TestBlur:
    def test_writes_a_table_and_figures_once(self, blur, tmp_path, monkeypatch, capsys):
        rows = small(blur, tmp_path)
        kinds = {}
        for row in rows:
            assert ",".join(row) == COLUMNS
            kinds.setdefault(row["model"], []).append(row["images"])
            numbers = [float(value) for value in [*row.values()][2:] if value != "-"]
            assert len(numbers) >= 8
            assert all(map(isfinite, numbers))
        both = ["reconstructions", "reconstructions at draws", "samples"]
        first = [both if row.likelihood else ["samples"] for row in blur.ROWS.values()]
        first[0], first[[*blur.ROWS].index("vq")] = ["real"], ["reconstructions", "samples"]
        assert kinds == dict(zip((row.title for row in blur.ROWS.values()), first, strict=True))
        with_bits = {row["model"] for row in rows if row["bits/dim"] != "-"}
        assert with_bits == {title for title in kinds if title.startswith(("Discretized", "VQ-VAE"))}
        out = tmp_path / "out"
        assert sorted(path.name for path in out.iterdir()) == ["blur.csv", "blur.md", "blur.png", "blur_images.png"]
        assert (out / "blur.md").read_text().startswith("50 images of each kind against the first 50 test images of")
        for figure in out.glob("*.png"):
            assert figure.read_bytes().startswith(b"\x89PNG")
        # The same again trains nothing, nor does a call for one row, and the table is the same.
        monkeypatch.setattr(blur, "Training", partial(Untrained, blur.Training))
        assert small(blur, tmp_path, rows=("gan",)) == rows
        assert (out / "blur.md").read_text().count("\n|") == 2 + len(rows)

    @pytest.mark.parametrize("name", ["logistic-flow", "vq-autoregressive"])
    def test_a_second_stage_resumes_and_keeps_the_first(self, blur, few_digits, tmp_path, name):
        digits = data.load("digits")
        training = blur.Training(digits, tmp_path, 1, 1, 0, 3, (8,))
        first, _ = training(blur.ROWS[name].first)
        program, seconds = training(name)
        again, same = training(name)
        weights = again.state_dict()
        assert same == seconds
        assert all(torch.equal(value, weights[key]) for key, value in program.state_dict().items())
        kept = {key: value for key, value in first.state_dict().items() if not key.startswith("prior.")}
        assert kept
        assert all(torch.equal(value, weights[key]) for key, value in kept.items())
        assert type(program.prior) is not type(first.prior)

    def test_vaes_and_the_gan_have_decoders_of_one_architecture(self, blur, tmp_path):
        training = blur.Training(data.load("digits"), tmp_path, 1, 1, 0, 8, (32,))
        names = ("gaussian-1", "gaussian-optimal", "continuous-bernoulli", "logistic")
        decoders = [training.build(name).decoder.network for name in names] + [training.build("gan").generator]
        assert all(type(decoder) is networks.Conv for decoder in decoders)
        assert len({repr(decoder.layers[:-1]) for decoder in decoders}) == 1  # the last has the parameters of x
        larger = replace(training, latent=32, channels=(32, 64), dataset=data.from_tensor(torch.rand(9, 1, 28, 28)))
        assert larger.build("gan").generate(2).shape == (2, 1, 28, 28)

    def test_unknown_rows_get_a_sentence(self, blur):
        with pytest.raises(ValueError, match="Expected rows among real, gaussian-1, .*, gan; got vae."):
            blur.main(rows=("vae",))


class Untrained:
    """A training that fails if a row is trained."""

    def __init__(self, kind, *arguments):
        self.run = kind(*arguments).run

    def __call__(self, name):
        raise AssertionError(f"{name} is trained again")


@pytest.mark.skipif(not (EXPERIMENTS / "results" / "blur.csv").exists(), reason="the table is not committed yet")
def test_the_committed_table_has_all_rows(experiments_on_the_path):
    with (EXPERIMENTS / "results" / "blur.csv").open() as file:
        rows = list(csv.DictReader(file))
    blur = importlib.import_module("blur")
    assert ",".join(rows[0]) == COLUMNS
    assert [*dict.fromkeys(row["model"] for row in rows)] == [row.title for row in blur.ROWS.values()]
