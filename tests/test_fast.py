"""What makes a step fast on a CPU: no subnormal numbers, no search for missing elements, fewer operations."""

import math
from functools import partial

import pytest
import torch
from pyro.optim import SGD, Adam

from pyro_vae import VAE, likelihoods
from pyro_vae.compiled import CompiledSVI, device, product_operations, traced
from pyro_vae.compiled.optimizer import FLUSH_EVERY, Optimizer
from pyro_vae.compiled.svi import _without_nan
from pyro_vae.likelihoods.unit import BernoulliMass
from pyro_vae.missing import Missing
from pyro_vae.networks import MLP
from pyro_vae.objectives import ELBO, IWAE
from pyro_vae.operations import log_sum_exp

TINY = torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_moments_that_vanish_become_zero(optimizer):
    """Where a gradient stops, torch's Adam keeps a subnormal first moment for good, on which a CPU is slow."""
    weight, rounds = torch.nn.Parameter(torch.ones(40, 3)), 3 * FLUSH_EVERY * (20 if optimizer == "sgd" else 5)
    optim = Adam({"lr": 1e-3}) if optimizer == "adam" else SGD({"lr": 1e-3, "momentum": 0.9})
    ours, gradient = Optimizer(optim), torch.full((40, 3), 1e-3)
    ours._add([weight])
    for step in range(rounds):
        weight.grad = gradient.clone() if step == 0 else torch.zeros_like(gradient)
        weight.grad[0] = 1e-3
        ours.step([weight])
    (state,) = ours._torch.state.values()
    moments = torch.stack([value for value in state.values() if isinstance(value, torch.Tensor) and value.dim()])
    tiny = torch.finfo(torch.float32).tiny
    assert not ((moments.abs() > 0) & (moments.abs() < tiny)).any()
    assert (moments[0][0] > 1e-4).all()  # where there is a gradient
    assert (moments[0][1:] == 0).all()


def test_moments_of_half_precision_stay():
    weight = torch.nn.Parameter(torch.ones(40, 3, dtype=torch.float16))
    ours = Optimizer(SGD({"lr": 1e-3, "momentum": 0.9}))
    for step in range(FLUSH_EVERY):
        weight.grad = torch.full_like(weight, 0.5 if step < 2 else 0.0)
        ours.step([weight])
    assert (ours._torch.state[weight]["momentum_buffer"] > 0).all()


def test_when_moments_are_looked_at_is_saved():
    weight = torch.nn.Parameter(torch.ones(2, 3))
    ours, other = Optimizer(Adam({"lr": 1e-3})), Optimizer(Adam({"lr": 1e-3}))
    for _ in range(FLUSH_EVERY - 1):
        weight.grad = torch.ones(2, 3)
        ours.step([weight])
    other.load_state_dict(ours.state_dict(), [weight])
    other._torch.state[weight]["exp_avg"].fill_(1e-37)
    weight.grad = torch.zeros(2, 3)
    other.step([weight])
    assert not other._torch.state[weight]["exp_avg"].any()
    state = ours.state_dict()
    del state["steps"]  # of an older version
    Optimizer(Adam({"lr": 1e-3})).load_state_dict(state, [weight])


@pytest.mark.parametrize("before", [True, False])
def test_subnormal_numbers_are_zero_within_a_step_and_as_before_after_it(before):
    if not torch.set_flush_denormal(before):
        pytest.skip("this CPU has no such switch")
    subnormal, half = torch.full((3,), 2e-38), torch.full((3,), 0.1)
    try:
        with device.flush_subnormals():
            assert not (subnormal * half).any()
        assert bool((subnormal * half).any()) is not before
    finally:
        torch.set_flush_denormal(False)


class TestCompleteData:
    """A minibatch without NaN runs a graph that does not look for missing elements."""

    @staticmethod
    def operations(svi):
        return [node.target.overloadpacket.__name__ for node in svi._gradients._last.graph.nodes]

    def test_each_kind_of_minibatch_has_a_graph(self, param_store, monkeypatch):
        monkeypatch.setattr(traced, "RECORD_AFTER", 2)
        vae, x = VAE.build((6,), 2, network=partial(MLP, hidden=(5,))), torch.rand(8, 6)
        vae.encoder.fill.fill_(0.5)
        holes = x.clone()
        holes[:, 0] = torch.nan
        svi = CompiledSVI(vae.model, lambda x: vae.guide(x), Adam({"lr": 0.0}), ELBO(), compile="graph")
        assert svi._complete is None  # another guide may need the elements
        svi = CompiledSVI(vae.model, vae.guide, Adam({"lr": 1e-9}), ELBO(), compile="graph")
        for _ in range(4):
            svi.step(x)
        assert "isnan" not in self.operations(svi)
        assert vae.encoder.has_missing
        filled = CompiledSVI(Missing()(vae.model), vae.guide, Adam({"lr": 1e-9}), ELBO(), compile="graph")
        for _ in range(4):
            assert math.isfinite(filled.step(holes))
        assert "isnan" in self.operations(filled)
        for _ in range(4):
            assert math.isfinite(filled.evaluate_loss(x))

    def test_a_minibatch_with_a_hole_is_seen(self, param_store):
        class Masked(VAE):
            def model(self, x):
                return super().model(x.nan_to_num(0.0))

        vae = Masked.build((6,), 2, network=partial(MLP, hidden=(5,)))
        vae.encoder.fill.fill_(0.5)
        x = torch.rand(8, 6)
        holes = x.clone()
        holes[0, 0] = torch.nan
        svi = CompiledSVI(vae.model, vae.guide, Adam({"lr": 1e-9}), ELBO(), compile="graph")
        for batch in (x, x, x, holes, x, holes):
            assert math.isfinite(svi.step(batch))
        infinite = x.clone()
        infinite[0, 0] = torch.inf
        assert not _without_nan((infinite,), {})
        assert not _without_nan((x,), {"y": "text"})
        assert _without_nan((x, torch.ones(3, dtype=torch.long)), {})


@pytest.mark.parametrize(
    ("run", "operations"),
    [
        (lambda: torch.ones(2, 3) @ torch.ones(3, 5), 2 * 2 * 3 * 5),
        (lambda: torch.ones(7, 2, 3) @ torch.ones(7, 3, 5), 7 * 2 * 2 * 3 * 5),
        (lambda: torch.nn.functional.linear(torch.ones(2, 3), torch.ones(5, 3), torch.ones(5)), 2 * 2 * 3 * 5),
        (lambda: torch.nn.functional.conv2d(torch.ones(1, 3, 8, 8), torch.ones(4, 3, 3, 3)), 2 * 4 * 36 * 27),
        (lambda: torch.nn.functional.conv_transpose2d(torch.ones(1, 3, 8, 8), torch.ones(3, 4, 2, 2)), 2 * 3 * 64 * 16),
        (lambda: torch.ones(3).exp(), 0),
    ],
)
def test_operations_of_products_are_those_that_torch_counts(run, operations):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    assert product_operations(run) == counter.get_total_flops() == operations


class TestLogSumExp:
    def test_it_is_torchs(self):
        x = torch.randn(5, 3, dtype=torch.float64).requires_grad_()
        for options in ((0,), (-1,), ([0, 1], True)):
            ours, theirs = log_sum_exp(x, *options), x.logsumexp(*options)
            assert torch.equal(ours, theirs)
            assert torch.equal(*(torch.autograd.grad(value.sum(), x)[0] for value in (ours, theirs)))

    def test_its_gradient_has_no_subnormal_numbers(self):
        x = torch.linspace(-200, 0, 400).requires_grad_()
        (theirs,) = torch.autograd.grad(x.logsumexp(0), x)
        (ours,) = torch.autograd.grad(log_sum_exp(x, 0), x)
        assert ((theirs > 0) & (theirs < TINY)).any()
        assert not ((ours > 0) & (ours < TINY)).any()
        assert torch.equal(ours[ours > 0], theirs[theirs > 1.1e-19])

    def test_second_gradients(self):
        x = torch.randn(5, 3, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradgradcheck(lambda x: log_sum_exp(x, 1), [x])

    def test_half_precision_keeps_its_gradient(self):
        x = torch.linspace(-9, 0, 10, dtype=torch.float16).requires_grad_()
        (ours,) = torch.autograd.grad(log_sum_exp(x, 0), x)
        assert (ours > 0).all()

    def test_weights_of_importance_have_none(self, param_store):
        """Log-weights of one datum hundreds of nats apart."""
        vae = VAE.build((50,), 2, likelihood=partial(likelihoods.Gaussian, scale=0.01))
        seen = []
        vae.decoder.network.register_full_backward_hook(lambda module, of_input, of_output: seen.append(of_output[0]))
        x = torch.rand(8, 50)
        loss = IWAE(50).differentiable_loss(vae.model, vae.guide, x)
        loss.backward()
        assert seen
        assert not ((seen[0].abs() > 0) & (seen[0].abs() < TINY)).any()


class TestBernoulliMass:
    X = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.3])
    LOGITS = torch.tensor([-120.0, -30.0, 0.0, 2.0, 45.0])

    def test_value_and_gradient_in_float32(self):
        logits = self.LOGITS.clone().requires_grad_()
        (slope,) = torch.autograd.grad(BernoulliMass.apply(logits, self.X).sum(), logits)
        exact = self.LOGITS.double().requires_grad_()
        value = self.X * torch.nn.functional.logsigmoid(exact) + (1 - self.X) * torch.nn.functional.logsigmoid(-exact)
        (expected,) = torch.autograd.grad(value.sum(), exact)
        torch.testing.assert_close(
            BernoulliMass.apply(self.LOGITS, self.X).double(), value.detach(), rtol=1e-6, atol=1e-6
        )
        torch.testing.assert_close(slope.double(), expected, rtol=1e-6, atol=1e-7)

    def test_first_and_second_gradients_by_differences(self):
        inputs = [self.LOGITS.double().clamp(-3, 3).requires_grad_(), self.X.double().requires_grad_()]
        inputs[0].data[2] = 0.1  # at 0 the value has two slopes by differences of |l|
        assert torch.autograd.gradcheck(BernoulliMass.apply, inputs)
        assert torch.autograd.gradgradcheck(BernoulliMass.apply, inputs)

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:FutureWarning")  # which torch.func calls
    def test_forward_mode(self):
        x, logits = self.X.double(), self.LOGITS.double().clamp(-3, 3)
        hessian = torch.func.hessian(lambda logits: BernoulliMass.apply(logits, x).sum())(logits)
        slope = logits.sigmoid() * (1 - logits.sigmoid())
        torch.testing.assert_close(hessian, -slope.diag())
        inputs = (logits, x), (torch.ones_like(logits), torch.full_like(x, 2.0))
        _, derivative = torch.func.jvp(BernoulliMass.apply, *inputs)
        torch.testing.assert_close(derivative, x - logits.sigmoid() + 2 * logits)

    def test_each_row_by_vmap(self):
        rows = torch.func.vmap(BernoulliMass.apply)(self.LOGITS.unsqueeze(-1), self.X.unsqueeze(-1))
        assert torch.equal(rows.squeeze(-1), BernoulliMass.apply(self.LOGITS, self.X))

    def test_shapes_that_differ_are_broadcast(self):
        distribution = likelihoods.Bernoulli((5,))(self.LOGITS.expand(3, 1, 5))
        assert distribution.log_prob(self.X.round().expand(7, 3, 5)).shape == (7, 3)
