"""CompiledSVI gives the numbers of Pyro's SVI, on any program; and says so where it cannot be a graph."""

import copy
import math
import warnings
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import PER_DATUM, PROGRAMS, X, chain, local, regression
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoIAFNormal, AutoLowRankMultivariateNormal, AutoNormal
from pyro.optim import SGD, Adam, AdamW, ClippedAdam, ExponentialLR, PyroOptim

from pyro_vae import VAE, likelihoods, networks
from pyro_vae.compiled import CompiledSVI, device, fast_products, graph, traced
from pyro_vae.objectives import ELBO, IWAE, MMD, Linear, Renyi, ReweightedWakeSleep

pytestmark = pytest.mark.usefixtures("float64", "param_store")
STEPS = 5
# The covariance factor of `regression` is free: a step takes it out of its support, and stock Pyro stops there.
TRAINABLE = [program for program in PROGRAMS if program is not regression]
REPARAMETERISED = [program for program in PER_DATUM if program is not chain]
# Every program with the two ELBOs that serve all; the other losses in turn.
PAIRS = [
    *((program, Trace_ELBO) for program in TRAINABLE),
    *((program, lambda: ELBO(beta=Linear(4))) for program in TRAINABLE),
    *((program, TraceMeanField_ELBO) for program in TRAINABLE[::3]),
    *((program, lambda: ELBO(3, gradient="stl")) for program in REPARAMETERISED[::2]),
    *((program, lambda: IWAE(3, gradient="dreg")) for program in REPARAMETERISED[1::2]),
    *((program, lambda: IWAE(5, gradient="stl", resample=2)) for program in REPARAMETERISED[::2]),
    *((program, lambda: Renyi(0.5, 3)) for program in PER_DATUM[::2]),
    *((program, lambda: ReweightedWakeSleep(3)) for program in PER_DATUM[1::2]),
]


def trained(kind, program, loss, optim=None, steps=STEPS, args=(X,), **options):
    """The losses of some steps and the parameters after them, under one seed, in a param store of their own."""
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        torch.manual_seed(1)
        model, guide = program()
        svi = kind(model, guide, optim or Adam({"lr": 1e-2}), loss, **options)
        losses = [svi.step(*args) for _ in range(steps)]
        found = {name: value.detach().clone() for name, value in pyro.get_param_store().named_parameters()}
        return losses, found, svi


def assert_same(one, other, rtol=1e-10):
    torch.testing.assert_close(torch.tensor(one[0]), torch.tensor(other[0]), rtol=rtol, atol=rtol)
    torch.testing.assert_close(one[1], other[1], rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("program", "loss"), PAIRS, ids=lambda part: getattr(part, "__name__", ""))
def test_it_gives_the_numbers_of_pyros_svi(program, loss):
    ours = trained(CompiledSVI, program, loss(), compile="graph")
    assert ours[2].mode == "graph"
    assert_same(ours, trained(SVI, program, loss()))


def vae_program():
    vae = VAE.build((4,), latent=2, network=partial(networks.MLP, hidden=(8,)))
    return vae.model, vae.guide


IMAGES = torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.inductor
@pytest.mark.skipif(not graph.can_compile(torch.device("cpu")), reason="there is no C++ compiler")
def test_compiled_by_inductor_the_numbers_are_the_same():
    """To rounding, and of the same draws."""
    ours, stock = (
        trained(kind, vae_program, IWAE(5, gradient="dreg"), args=(IMAGES,), **how)
        for kind, how in ((CompiledSVI, {"compile": "inductor"}), (SVI, {}))
    )
    assert ours[2].mode == "inductor"
    assert_same(ours, stock)


AUTOGUIDES = [AutoNormal, AutoDelta, AutoLowRankMultivariateNormal, AutoIAFNormal]


@pytest.mark.parametrize("guide", AUTOGUIDES)
def test_autoguides_can_be_graphs(guide):
    def program():
        model = local()[0]
        return model, guide(model)

    ours = trained(CompiledSVI, program, Trace_ELBO(), compile="graph")
    assert ours[2].mode == "graph"
    assert_same(ours, trained(SVI, program, Trace_ELBO()))


def test_pyros_handlers_run_three_times_and_no_more():
    calls = []

    def program():
        model, guide = local()
        return lambda x: calls.append(x) or model(x), guide

    trained(CompiledSVI, program, ELBO(), steps=20)
    assert len(calls) == 3


def test_a_draw_that_nothing_needs_is_drawn_all_the_same():
    """Or what is drawn after it would be other numbers than Pyro's."""

    def program():
        model, guide = local()
        return lambda x: (torch.randn(3), model(x)), guide

    assert_same(*(trained(kind, program, ELBO()) for kind in (CompiledSVI, SVI)))


def test_the_first_step_is_validated():
    def program():
        return lambda x: pyro.sample("x", dist.Normal(0.0, pyro.param("s", torch.tensor(-1.0))), obs=x[0]), lambda x: 0

    with pytest.raises(ValueError, match="Expected parameter scale"):
        trained(CompiledSVI, program, ELBO(), steps=1)


def test_where_a_loss_is_not_finite_pyro_says_why():
    def program():
        def model(x):
            pyro.sample("x", dist.Normal(0.0, 1 - pyro.param("s", torch.tensor(0.0)) * 100), obs=0 * x[0])

        return model, lambda x: None

    with pytest.raises(ValueError, match="Expected parameter scale"):
        trained(CompiledSVI, program, ELBO(), Adam({"lr": 0.003}), compile="graph")


def branches(x):
    loc = pyro.param("loc", torch.tensor(0.1))
    pyro.sample("x", dist.Normal(loc if (x * loc).sum() > 0 else 2 * loc, 1.0), obs=x[0])


def counts_its_calls():
    calls = []

    def model(x):
        calls.append(x)
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 1.0 + len(calls)), obs=x[0])

    return model, lambda x: None


def draws_with_numpy():
    generator = np.random.default_rng(0)

    def model(x):
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 1 + generator.random()), obs=x[0])

    return model, lambda x: None


def chooses_numbers():
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(50), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z[z > 0].sum() + pyro.param("loc", torch.tensor(0.1)), 1.0), obs=x[0])

    def guide(x):
        pyro.sample("z", dist.Normal(torch.zeros(50) + pyro.param("mean", torch.tensor(0.2)), 1.0).to_event(1))

    return model, guide


def reads_a_number():
    scale = torch.tensor(1.5)  # which somebody may change

    def model(x):
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.1)), scale.item()), obs=x[0])

    return model, lambda x: None


def reads_a_sequence():
    layer = torch.nn.LSTM(1, 1, batch_first=True, dtype=torch.float32)  # of float64 it can be a graph

    def model(x):
        pyro.module("layer", layer)
        loc = layer(x.float().reshape(1, -1, 1))[0].flatten()
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x.flatten())

    return model, lambda x: None


class TestWhatCannotBeAGraph:
    @pytest.mark.parametrize(
        ("program", "loss", "why"),
        [
            (lambda: (branches, lambda x: None), ELBO(), "reads a number from a tensor"),
            (lambda: (branches, lambda x: None), Trace_ELBO(), "reads a number from a tensor"),
            (reads_a_number, ELBO(), "reads a number from a tensor"),
            (draws_with_numpy, ELBO(), "a second run differs"),
            (counts_its_calls, ELBO(), "a second run differs"),
            (chooses_numbers, ELBO(), "the values of a tensor decide a shape"),
            (reads_a_sequence, ELBO(), r"a graph \(RuntimeError: .* for argument"),
            (local, RenyiELBO(num_particles=2), "RenyiELBO reads numbers"),
        ],
    )
    def test_goes_on_in_plain_pyro_and_says_so_once(self, program, loss, why):
        with pytest.warns(UserWarning, match=why) as found:
            ours = trained(CompiledSVI, program, loss)
        assert len(found) == 1
        assert "plain Pyro" in str(found[0].message)
        assert ours[2].mode == "off"
        if program not in (draws_with_numpy, counts_its_calls):  # the call that found out was one more
            assert_same(ours, trained(SVI, program, loss), rtol=1e-6 if program is reads_a_sequence else 1e-10)

    def test_anomaly_detection(self):
        """Which is left on: the gradients that it looks at are those of plain Pyro."""
        why = r"\(anomaly detection reads the values of gradients\)"
        with pytest.warns(UserWarning, match=why), torch.autograd.set_detect_anomaly(True):
            ours = trained(CompiledSVI, local, ELBO())
        assert_same(ours, trained(SVI, local, ELBO()))

    def test_an_argument_that_may_change_unseen(self):
        def program():
            model, guide = local()
            return lambda x, other: model(x), lambda x, other: guide(x)

        with pytest.warns(UserWarning, match="an argument of type object"):
            ours = trained(CompiledSVI, program, ELBO(), args=(X, object()))
        assert_same(ours, trained(SVI, program, ELBO(), args=(X, object())))

    def test_numbers_that_change_at_every_step(self, monkeypatch):
        monkeypatch.setattr(traced, "MAX_GRAPHS", 4)
        model, guide = local()

        def scaled(x, factor):
            with poutine.scale(scale=factor):
                return model(x)

        svi = CompiledSVI(scaled, lambda x, factor: guide(x), Adam({"lr": 1e-2}), ELBO())
        with pytest.warns(UserWarning, match="at most 4 .* Pass numbers that change as tensors") as found:
            _ = [svi.step(X, 1.0 + step) for step in range(8)]
        assert len(found) == 1
        for _ in range(3):
            svi.step(X, 1.0)
        assert svi.mode == "graph"

    def test_no_parameters(self):
        """As stock SVI with an objective: nothing is stepped, and it is said."""
        svi = CompiledSVI(lambda x: pyro.sample("x", dist.Normal(0, 1), obs=x[0]), lambda x: None, Adam({}), ELBO())
        assert svi.step(X) == pytest.approx(0.5 * 0.25 + 0.5 * math.log(2 * math.pi))

    def test_a_compiler_that_fails(self, monkeypatch):
        def fail(self, tensors):
            raise RuntimeError("no such\nheader")

        monkeypatch.setattr(graph.Graph, "compile", fail)
        with pytest.warns(UserWarning, match=r"Expected TorchInductor .* \(no such header\)") as found:
            ours = trained(CompiledSVI, local, ELBO(), compile="inductor")
        assert len(found) == 1
        assert ours[2].mode == "graph"
        assert_same(ours, trained(SVI, local, ELBO()))


class TestWhatAGraphDependsOn:
    def test_shapes(self, monkeypatch):
        """A last minibatch is smaller: it is a graph of its own, once it has come as often as pays."""
        monkeypatch.setattr(traced, "RECORD_AFTER", 3)
        stock, ours = [], []
        for kind, losses in ((SVI, stock), (CompiledSVI, ours)):
            with pyro.get_param_store().scope(), torch.random.fork_rng():
                torch.manual_seed(1)
                model, guide = vae_program()
                svi = kind(model, guide, Adam({"lr": 1e-2}), ELBO())
                losses += [svi.step(x) for _ in range(5) for x in (IMAGES[:4], IMAGES[4:])]
        assert ours == pytest.approx(stock, rel=1e-10)
        assert [entry.graph is not None for entry in svi._gradients._entries.values()] == [True, True]

    @pytest.mark.parametrize("calls", range(1, 9))
    def test_which_call_of_a_shape_is_recorded(self, calls, monkeypatch):
        """Each shape's own: the function runs until then, and once more to be compared."""
        monkeypatch.setattr(traced, "RECORD_AFTER", 4)
        runs = []
        function = traced.GraphedFunction(lambda x: traced.Outputs([runs.append(len(x)) or 2 * x], None), "graph")
        for _ in range(calls):
            for x in (X, X[:2]):
                assert function((x,), {}).tensors[0].equal(2 * x)
        assert runs.count(len(X)) == min(calls, 3)
        assert runs.count(2) == min(calls, 5)
        assert function.mode == ("graph" if calls > 1 else "off")

    @pytest.mark.parametrize("calls", [0, 1, 5])
    def test_a_shape_is_recorded_when_asked(self, calls):
        runs = []
        function = traced.GraphedFunction(lambda x: traced.Outputs([runs.append(len(x)) or 2 * x], None), "graph")
        for x in (X, X[:2]):
            for _ in range(calls):
                function((x,), {})
            assert function.record((x,), {}).tensors[0].equal(2 * x)
            before = len(runs)
            assert function((x,), {}).tensors[0].equal(2 * x)
            assert len(runs) == before

    def test_keyword_arguments_and_numbers(self):
        def program():
            model, guide = local()

            def scaled(x, *, factor):
                with poutine.scale(scale=factor):
                    return model(x)

            return scaled, lambda x, *, factor: guide(x)

        for kind in (SVI, CompiledSVI):
            torch.manual_seed(1)
            pyro.clear_param_store()
            svi = kind(*program(), Adam({"lr": 1e-2}), ELBO())
            losses = [svi.step(x=X, factor=factor) for _ in range(4) for factor in (1.0, 2.0)]
            if kind is SVI:
                expected = losses
        torch.manual_seed(20261122)
        assert losses == pytest.approx(expected, rel=1e-10)

    def test_handlers_around_a_step(self):
        model, guide = local()
        svi = CompiledSVI(model, guide, SGD({"lr": 0.0}), ELBO())
        for _ in range(4):
            svi.step(X)
        torch.manual_seed(3)
        once = svi.step(X)
        torch.manual_seed(3)
        with poutine.scale(scale=0.5):
            assert svi.step(X) == pytest.approx(once / 2)
        torch.manual_seed(20261122)

    def test_a_new_param_store_has_new_parameters(self):
        model, guide = local()
        svi = CompiledSVI(model, guide, Adam({"lr": 1e-2}), ELBO())
        for _ in range(5):
            svi.step(X)
        pyro.clear_param_store()
        for _ in range(5):
            svi.step(X)
        assert (pyro.param("loc") != 0.3 * X).all()

    def test_another_modules_parameters_do_not_matter(self):
        svi = CompiledSVI(*local(), Adam({"lr": 1e-2}), ELBO(), compile="graph")
        for _ in range(4):
            svi.step(X)
        pyro.param("another", torch.tensor(1.0))
        svi.step(X)
        assert svi.mode == "graph"
        assert len(svi._gradients._entries) == 1

    def test_a_parameter_that_is_frozen(self):
        vae = VAE.build((4,), latent=2)
        svi = CompiledSVI(vae.model, vae.guide, Adam({"lr": 1e-2}), ELBO())
        for _ in range(5):
            svi.step(IMAGES)
        vae.eval().decoder.requires_grad_(False)
        before = [parameter.clone() for parameter in vae.parameters()]
        for _ in range(5):
            svi.step(IMAGES)
        moved = {name: not now.equal(then) for (name, now), then in zip(vae.named_parameters(), before, strict=True)}
        assert all(moved[name] == name.startswith("encoder") for name in moved)
        vae.train().decoder.requires_grad_(True)
        for _ in range(5):
            svi.step(IMAGES)
        assert all(not now.equal(then) for now, then in zip(vae.parameters(), before, strict=True))

    def test_a_buffer_that_is_replaced(self):
        vae = VAE.build((4,), latent=2, likelihood=partial(likelihoods.Gaussian, scale=1.0))
        svi = CompiledSVI(vae.model, vae.guide, Adam({"lr": 0.0}), ELBO(), compile="graph")
        steps = [svi.step(IMAGES) for _ in range(5)]
        vae.decoder.family.log_scale = torch.tensor(0.1).log()
        with torch.random.fork_rng():
            first, again = svi.step(IMAGES), [svi.step(IMAGES) for _ in range(4)]
        assert svi.mode == "graph"
        assert min(first, *again) > 2 * max(steps)

    @pytest.mark.parametrize(
        ("layer", "mode"),
        [
            (lambda: torch.nn.BatchNorm1d(4), "graph"),
            (lambda: torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(4, 4)), "graph"),
            (lambda: torch.nn.BatchNorm1d(4, momentum=None), "off"),  # which looks at how many batches there were
        ],
    )
    @pytest.mark.filterwarnings("ignore:Falling back to plain Pyro")
    def test_buffers_are_written_as_often(self, layer, mode):
        """The recording, one that fails too, and the comparison must not count twice."""

        def program():
            norm = layer()
            found.append(norm)

            def model(x):
                pyro.module("norm", norm)
                with pyro.plate("data", len(x)):
                    pyro.sample("x", dist.Normal(norm(x), 1.0).to_event(1), obs=x)

            return model, lambda x: None

        found = []
        runs = [trained(kind, program, ELBO(), args=(IMAGES,)) for kind in (CompiledSVI, SVI)]
        assert_same(*runs)
        assert runs[0][2].mode == mode
        ours, stock = (dict(norm.named_buffers()) for norm in found)
        torch.testing.assert_close(ours, stock, rtol=1e-12, atol=1e-12)
        assert stock


def rate(name):
    return {"lr": 1e-2 if name == "loc" else 1e-3}


OPTIMS = {
    "Adam": lambda: Adam({"lr": 1e-2}),
    "AdamW": lambda: AdamW({"lr": 1e-2, "weight_decay": 0.1}),
    "SGD": lambda: SGD({"lr": 1e-3, "momentum": 0.9}),
    "ClippedAdam": lambda: ClippedAdam({"lr": 1e-2, "clip_norm": 1.0, "lrd": 0.9}),
    "a rate for each": lambda: Adam(rate),
    "clipped one by one": lambda: PyroOptim(torch.optim.SGD, {"lr": 1e-2}, {"clip_norm": 0.5}),
    "not fused": lambda: Adam({"lr": 1e-2, "foreach": False}),
}


class TestOptimizer:
    @pytest.mark.parametrize("optim", OPTIMS.values(), ids=OPTIMS)
    def test_steps_as_pyro_does(self, optim):
        assert_same(*(trained(kind, local, ELBO(), optim()) for kind in (CompiledSVI, SVI)))

    def test_is_one_for_all_parameters_and_fused(self):
        optim = Adam({"lr": 1e-2})
        trained(CompiledSVI, local, ELBO(), optim)
        (only,) = optim.optim_objs.values()
        assert sum(len(group["params"]) for group in only.param_groups) == 4
        assert only.defaults["fused"]

    def test_learning_rate_schedules(self):
        losses = []
        for kind in (CompiledSVI, SVI):
            with pyro.get_param_store().scope(), torch.random.fork_rng():
                torch.manual_seed(1)
                optim = ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.5})
                svi = kind(*local(), optim, ELBO())
                for _ in range(STEPS):
                    losses.append(svi.step(X))
                    optim.step()
        assert losses[:STEPS] == pytest.approx(losses[STEPS:], rel=1e-10)

    def test_clips_the_whole_gradient(self):
        """One step of SGD at rate 1: its length is the norm, which is what was asked for."""
        lengths = []
        for clip in (None, 0.25):
            pyro.clear_param_store()
            svi = CompiledSVI(*local(), SGD({"lr": 1.0}), ELBO(), clip_norm=clip)
            svi.evaluate_loss(X)
            before = {name: p.detach().clone() for name, p in pyro.get_param_store().named_parameters()}
            svi.step(X)
            moved = [(p - before[name]).square().sum() for name, p in pyro.get_param_store().named_parameters()]
            lengths.append(sum(moved).sqrt().item())
        assert lengths[0] > 0.3
        assert lengths[1] == pytest.approx(0.25, rel=1e-4)

    def test_its_state_can_be_taken_up(self):
        optim = Adam({"lr": 1e-2})
        whole = trained(CompiledSVI, local, ELBO(), optim, steps=8)
        model, guide = local()
        torch.manual_seed(1)
        first = CompiledSVI(model, guide, optim := Adam({"lr": 1e-2}), ELBO())
        for _ in range(4):
            first.step(X)
        state = optim.get_state()
        optim = Adam({"lr": 1e-2})
        optim.set_state(state)
        second = CompiledSVI(model, guide, optim, ELBO())
        for _ in range(4):
            second.step(X)
        torch.manual_seed(20261122)
        torch.testing.assert_close(dict(pyro.get_param_store().named_parameters()), whole[1], rtol=1e-10, atol=1e-12)


class TestEvaluateLoss:
    @pytest.mark.parametrize("loss", [ELBO(), Trace_ELBO(), IWAE(3)], ids=lambda loss: type(loss).__name__)
    def test_is_that_of_svi_and_changes_nothing(self, loss):
        found = []
        for kind in (CompiledSVI, SVI):
            torch.manual_seed(1)
            pyro.clear_param_store()
            svi = kind(*local(), Adam({"lr": 1e-2}), loss)
            found.append([svi.evaluate_loss(X) for _ in range(5)])
            assert pyro.param("loc").equal(0.3 * X)
        torch.manual_seed(20261122)
        assert found[0] == pytest.approx(found[1], rel=1e-10)


class TestWhenItCompiles:
    @pytest.fixture
    def compiled(self, monkeypatch):
        found = []
        monkeypatch.setattr(graph.Graph, "compile", lambda self, tensors: found.append(len(tensors)))
        return found

    def test_auto_does_once_the_work_has_paid_for_it(self, compiled, monkeypatch):
        svi = trained(CompiledSVI, local, ELBO(), steps=4)[2]
        monkeypatch.setattr(traced, "COMPILE_AFTER", 10 * svi._gradients._last.graph.work)
        trained(CompiledSVI, local, ELBO(), steps=9)
        assert compiled == []
        svi = trained(CompiledSVI, local, ELBO(), steps=10)[2]
        assert svi.mode == ("inductor" if compiled else "graph")
        assert compiled == [1] * graph.can_compile(torch.device("cpu"))

    def test_auto_does_at_once_where_a_long_run_is_announced(self, compiled, monkeypatch):
        monkeypatch.setattr(traced, "can_compile", lambda device: True)
        work = trained(CompiledSVI, local, ELBO(), steps=4)[2]._gradients._last.graph.work
        monkeypatch.setattr(traced, "COMPILE_AFTER", 10 * work)
        for announced, expected in ((19, []), (20, [1])):
            with pyro.get_param_store().scope():
                svi = CompiledSVI(*local(), Adam({"lr": 1e-2}), ELBO(), steps=announced)
                for _ in range(4):
                    svi.step(X)
            assert compiled == expected

    @pytest.mark.parametrize("how", ["graph", "off"])
    def test_else_it_does_not(self, how, compiled, monkeypatch):
        monkeypatch.setattr(traced, "COMPILE_AFTER", 0)
        assert trained(CompiledSVI, local, ELBO(), compile=how)[2].mode == how
        assert compiled == []


class TestPrecision:
    @pytest.mark.skipif(device.SWITCH is None, reason="torch has no switch")
    def test_the_switch_is_put_back(self):
        before = device.SWITCH.fp32_precision
        with fast_products("auto"):
            assert (device.SWITCH.fp32_precision == "bf16") == device.products_are_faster()
        with pytest.raises(KeyError), fast_products("auto"):
            raise KeyError
        assert device.SWITCH.fp32_precision == before

    def test_what_is_tried_is_of_float32_whatever_the_default(self, monkeypatch):
        seen = []
        monkeypatch.setattr(device, "_seconds", lambda a, b, tries=1: seen.append((a.dtype, b.dtype)) or 1.0)
        assert torch.get_default_dtype() == torch.float64
        assert not device.products_are_faster.__wrapped__()
        assert {dtype for pair in seen for dtype in pair} <= {torch.float32}
        assert len(seen) == (2 if device.SWITCH is not None else 0)

    def test_auto_is_as_accurate_as_float32(self):
        a, b = torch.randn(64, 784, dtype=torch.float32), torch.randn(784, 400, dtype=torch.float32)
        with fast_products("auto"):
            error = ((a @ b).double() - a.double() @ b.double()).norm() / (a.double() @ b.double()).norm()
        assert error < 2e-6

    def test_bfloat16_rounds_products_and_keeps_parameters(self):
        torch.set_default_dtype(torch.float32)
        x = IMAGES.float()
        losses = {}
        for how in ("float32", "bfloat16"):
            found = trained(CompiledSVI, vae_program, ELBO(), args=(x,), precision=how, steps=12)
            losses[how] = torch.tensor(found[0])
            assert {value.dtype for value in found[1].values()} == {torch.float32}
        difference = (losses["bfloat16"] / losses["float32"] - 1).abs().max()
        assert 1e-7 < difference < 0.05

    @pytest.mark.parametrize(("times", "said"), [(30.0, True), (1.0, False), (0.5, False)])
    def test_a_cpu_that_is_slow_in_bfloat16_is_named(self, times, said, monkeypatch):
        monkeypatch.setattr(device, "_seconds", lambda a, b, tries=1: times if a.dtype == torch.bfloat16 else 1.0)
        device._bfloat16_slowdown.cache_clear()
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            for how in ("auto", "float32", "bfloat16"):
                device.warn_if_slower(how, torch.device("cpu"))
            device.warn_if_slower("bfloat16", torch.device("cuda"))
        device._bfloat16_slowdown.cache_clear()
        sentence = "bfloat16 matrix products take 30 times as long as float32 products"
        assert [str(one.message).startswith(sentence) for one in found] == [True] * said


BAD = {
    "compile": (dict(compile="jit"), "Expected compile to be auto, off, graph or inductor; got 'jit'"),
    "precision": (dict(precision="half"), "Expected precision to be auto, float32 or bfloat16; got 'half'"),
    "clip_norm": (dict(clip_norm=0.0), "Expected a positive clip_norm, or None for no clipping; got 0.0"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_input_gets_a_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        CompiledSVI(*local(), Adam({"lr": 1e-2}), ELBO(), **options)


def test_a_penalty_can_be_a_graph():
    ours = trained(CompiledSVI, vae_program, ELBO(penalty=MMD()), args=(IMAGES,), compile="graph")
    assert_same(ours, trained(SVI, vae_program, ELBO(penalty=MMD()), args=(IMAGES,)))


def test_no_warning_on_the_way(device):
    torch.set_default_dtype(torch.float32)
    vae = VAE.build((4,), latent=2).to(device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svi = CompiledSVI(vae.model, vae.guide, Adam({"lr": 1e-2}), ELBO(), compile="graph")
        losses = [svi.step(IMAGES.float().to(device)) for _ in range(50)]
    assert svi.mode == "graph"
    assert sum(losses[-10:]) < sum(losses[:10])


class ChannelsLast(torch.nn.Module):
    """A program whose convolution sees an input with its channels last in memory, so its gradient has them last too."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def model(self, x):
        pyro.module("program", self)
        with pyro.plate("data", len(x)):
            mean = self.conv(x.contiguous(memory_format=torch.channels_last)).mean((2, 3))
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=torch.ones(len(x), 4))

    def guide(self, x):
        pass


@pytest.mark.parametrize("mode", ["off", "graph"])
def test_a_step_is_adams_whatever_the_layout_of_a_gradient(mode, param_store):
    """torch's fused Adam pairs elements by their place in memory."""
    program, x = ChannelsLast(), torch.randn(5, 3, 6, 6)
    other = copy.deepcopy(program)
    svi = CompiledSVI(program.model, program.guide, Adam({"lr": 1e-2}), ELBO(), compile=mode)
    optimizer = torch.optim.Adam(other.parameters(), lr=1e-2, fused=False)
    for _ in range(5):
        svi.step(x)
        optimizer.zero_grad()
        (0.5 * (other.conv(x).mean((2, 3)) - 1).square()).sum().backward()
        optimizer.step()
    for ours, theirs in zip(program.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_empty_code_of_a_killed_compile_is_removed_and_compiled_again(tmp_path, monkeypatch):
    """From TorchInductor's cache alone: an empty file of another name stays."""
    from torch import _inductor

    folder = tmp_path / "ab"
    folder.mkdir()
    name = "c" + "a2" * 25 + "z"
    code = [folder / f"{name}{end}" for end in (".py", ".so", ".main.so", ".cpp")]
    others = [folder / end for end in ("__init__.py", f"{name}.so.load_ok", "mine.cpp")]
    for path in (*code, *others):
        path.touch()
    (folder / f"{name[:-1]}y.py").write_text("whole")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    calls = []

    def compiler(module, inputs, options):
        calls.append(options)
        if any(path.exists() for path in code):
            raise ImportError("file too short")
        return module

    monkeypatch.setattr(_inductor, "compile", compiler)
    recorded = graph.Graph(lambda x: [x + 1], [torch.zeros(3)], False)
    recorded.compile([torch.zeros(3)])
    assert [options.get("cpp.vec_isa_ok") for options in calls] == [True, None]  # then with a trial of instructions
    assert recorded([torch.ones(3)])[0].tolist() == [2, 2, 2]
    assert sorted(folder.iterdir()) == sorted([*others, folder / f"{name[:-1]}y.py"])

    def broken(module, inputs, options):
        raise ImportError("another reason")

    monkeypatch.setattr(_inductor, "compile", broken)
    with pytest.raises(ImportError, match="another reason"):
        recorded.compile([torch.zeros(3)])
