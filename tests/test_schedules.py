"""Schedules of beta end at 1, whatever the run, and objectives follow them step by step."""

import pyro
import pytest
import torch
from programs import Module, X, local
from pyro.infer import SVI
from pyro.optim import Adam

from pyro_vae import VAE, data, fit
from pyro_vae.objectives import ELBO, Cosine, Cyclical, Linear, Schedule

pytestmark = pytest.mark.usefixtures("param_store")
# A new schedule is one line here.
SCHEDULES = [Linear, Cosine, Cyclical]


@pytest.mark.parametrize("kind", SCHEDULES)
class TestEverySchedule:
    @pytest.mark.parametrize("warmup", [1, 2, 7, 100, 0.01, 0.3, 0.999, 1.0])
    @pytest.mark.parametrize("start", [0.0, 0.25, 1.0])
    def test_starts_where_it_says_and_ends_at_one(self, kind, warmup, start):
        schedule = kind(warmup=warmup, start=start)
        for steps in (100, 101, 256):
            schedule.check(steps)
            betas = [schedule(step, steps) for step in range(steps)]
            assert betas[-1] == 1.0
            assert min(betas) >= start
            assert max(betas) == 1.0
            length = warmup if isinstance(warmup, int) else max(1, round(warmup * steps))
            assert betas[0] == (start if length > 1 else 1.0)
            assert set(betas[length - 1 :]) == {1.0}

    def test_is_refused_where_it_would_not_end(self, kind):
        with pytest.raises(
            ValueError, match=r"beta to reach 1 within the run, of 99 steps; the warm-up takes 100\. Train"
        ):
            kind(warmup=100).check(99)

    @pytest.mark.parametrize("warmup", [0, -3, 0.0, 1.5, float("nan")])
    def test_bad_warmup_gets_a_sentence(self, kind, warmup):
        with pytest.raises(ValueError, match="a whole number of steps, as 2000, or a fraction of the run"):
            kind(warmup=warmup)

    def test_bad_start_gets_a_sentence(self, kind):
        with pytest.raises(ValueError, match="start, the first beta, between 0 and 1; got 2"):
            kind(start=2.0)

    def test_beta_follows_it_in_stock_svi_and_as_a_module(self, kind):
        schedule, (model, guide) = kind(warmup=6), local()
        for step in ("svi", "module"):
            objective = ELBO(beta=schedule)
            svi = SVI(model, guide, Adam({"lr": 0.0}), objective)
            for i in range(9):
                assert objective.beta_now == pytest.approx(schedule(i), abs=1e-7)
                objective.loss(model, guide, X)  # an evaluation is no step
                if step == "svi":
                    svi.step(X)
                else:
                    objective(Module(model), Module(guide))(X).backward()

    def test_the_loss_is_the_one_at_that_beta(self, kind):
        model, guide = local()
        objective = ELBO(beta=kind(warmup=5, start=0.2))
        for i in range(6):
            torch.manual_seed(i)
            found = objective.loss_and_grads(model, guide, X)
            torch.manual_seed(i)
            assert found == pytest.approx(ELBO(beta=kind(warmup=5, start=0.2)(i)).loss(model, guide, X), rel=1e-5)
        torch.manual_seed(20261122)

    def test_fit_takes_it_from_start_to_end_and_again(self, kind):
        digits, objective = data.load("digits"), ELBO(beta=kind(warmup=0.5))
        for _ in range(2):
            history = fit(VAE.build((1, 8, 8), latent=2), digits, objective, epochs=4, batch_size=512, progress=False)
            assert history["beta"][-1] == 1.0
            assert objective.beta_now == 1.0
            assert history["train_at_beta_1"][-1] == pytest.approx(history["train"][-1], rel=1e-6)
            assert history["train_at_beta_1"][0] > history["train"][0]

    def test_fit_refuses_one_that_would_not_end_and_leaves_nothing(self, kind, tmp_path):
        with pytest.raises(ValueError, match="beta to reach 1 within the run, of 3 steps; the warm-up takes 4"):
            fit(
                VAE.build((1, 8, 8), latent=2),
                data.load("digits"),
                ELBO(beta=kind(warmup=4)),
                epochs=1,
                batch_size=512,
                run_dir=tmp_path / "run",
            )
        assert not (tmp_path / "run").exists()


def test_a_fraction_needs_the_length_of_the_run():
    model, guide = local()
    svi = SVI(model, guide, Adam({"lr": 0.0}), ELBO(beta=Linear(0.5)))
    with pytest.raises(
        ValueError, match=r"number of steps, for a warmup of 0.5 of the run; .* objective.start\(steps\)"
    ):
        svi.step(X)
    svi.loss.__self__.start(10)
    svi.step(X)


def test_cycles_begin_anew():
    betas = [Cyclical(warmup=41, cycles=4, ramp=0.5)(step) for step in range(41)]
    assert [i for i, beta in enumerate(betas) if beta == 0] == [0, 10, 20, 30]
    assert betas[5:10] == [1.0] * 5
    assert betas == pytest.approx(sorted(betas[:10]) * 4 + [1.0])


def test_bad_cycles_get_a_sentence():
    for arguments in ({"cycles": 0}, {"ramp": 0.0}, {"ramp": 1.5}):
        with pytest.raises(ValueError, match="at least 1 cycle, and a ramp above 0 and at most 1"):
            Cyclical(**arguments)


def test_one_of_your_own_is_one_method():
    class Late(Schedule):
        def rise(self, u):
            return 0.0

    assert [Late(3)(step) for step in range(4)] == [0.0, 0.0, 1.0, 1.0]


def test_pyros_own_scale_refuses_zero_and_ours_does_not():
    """So a warm-up by poutine.scale cannot start at 0."""
    model, guide = local()
    with pytest.raises(ValueError, match="Expected scale > 0"):
        pyro.poutine.scale(model, 0.0)
    assert ELBO(beta=0.0).loss(model, guide, X) == pytest.approx(-ELBO().split(model, guide, X)[0], abs=20)
