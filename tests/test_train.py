import contextlib
import math
import re
import threading
from functools import partial
from pathlib import Path

import forked
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam, PyroLRScheduler

from pyro_vae import VAE, CompiledSVI, compare, data, evaluate, fit, likelihoods, load, plots, posterior, report
from pyro_vae.compiled import traced
from pyro_vae.networks import MLP
from pyro_vae.objectives import ELBO, IWAE, Linear
from pyro_vae.train import loop
from pyro_vae.train.optimizers import recipe

NETWORK = partial(MLP, hidden=(32,))


def build(event_shape=(1, 8, 8), seed=0, **parts):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VAE.build(event_shape, **({"latent": 3, "network": NETWORK} | parts))


quick = partial(fit, epochs=2, batch_size=256, progress=False)
DIGITS = data.load("digits")
DYNAMIC = data.load("digits", binarize="dynamic")


@pytest.mark.parametrize(
    ("likelihood", "dataset"),
    [(likelihoods.Gaussian, DIGITS), (likelihoods.Bernoulli, DYNAMIC)],
    ids=["Gaussian", "Bernoulli"],
)
def test_the_loss_falls(likelihood, dataset):
    history = fit(build(likelihood=likelihood), dataset, epochs=8, progress=False)
    assert {len(column) for column in history.values()} == {8}
    assert history["train"][-1] < history["train"][0]
    assert history["valid"][-1] < history["valid"][0]


def test_validation_is_minus_the_elbo_split_in_two():
    vae = build()
    history = quick(vae, DIGITS)
    for whole, *parts in zip(*(history[name] for name in ("valid", "valid_reconstruction", "valid_kl")), strict=True):
        assert whole == pytest.approx(sum(parts))
    reconstruction, kl = evaluate.elbo_terms(vae, DIGITS.valid[:], num_particles=200)
    assert history["valid_kl"][-1] == pytest.approx(kl.mean().item(), rel=1e-4)
    assert history["valid_reconstruction"][-1] == pytest.approx(-reconstruction.mean().item(), rel=0.05)


@pytest.mark.parametrize("dataset", [DIGITS, DYNAMIC], ids=str)
def test_the_same_seed_gives_the_same_losses_to_the_last_bit(dataset):
    likelihood = likelihoods.Bernoulli if dataset is DYNAMIC else likelihoods.Gaussian
    runs = []
    for noise in (1, 2):
        torch.manual_seed(noise)  # what was drawn before must not matter
        vae = build(likelihood=likelihood)
        history = quick(vae, dataset, seed=5)
        runs.append((history["train"], history["valid"], [p.tolist() for p in vae.parameters()]))
    torch.manual_seed(20261122)
    assert runs[0] == runs[1]
    assert quick(build(likelihood=likelihood), dataset, seed=6)["train"] != runs[0][0]


def test_global_state_is_as_it_was(param_store):
    pyro.param("mine", torch.tensor(1.0))
    before = torch.get_rng_state()
    quick(build(), DIGITS)
    assert (torch.get_rng_state() == before).all()
    assert list(param_store.keys()) == ["mine"]


def test_two_vaes_one_after_the_other_both_move():
    for seed in (0, 1):
        vae = build(seed=seed)
        before = [p.clone() for p in vae.parameters()]
        quick(vae, DIGITS)
        assert all((old != new).any() for old, new in zip(before, vae.parameters(), strict=True))


def test_it_is_pyros_svi():
    """One epoch of one batch equals one stock step from the same start: Adam on the ELBO, at the data's mean."""
    x = DIGITS.train[:]
    ours, stock = build(), build()
    fit(ours, DIGITS, epochs=1, batch_size=len(x), lr=1e-3, lr_schedule="constant", progress=False, seed=7)
    stock.decoder.start_at(DIGITS.mean)
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        torch.manual_seed(7)
        stock.prior().sample((1,))  # as the check of the support draws
        order = torch.randperm(len(x))
        SVI(stock.model, stock.guide, Adam({"lr": 1e-3}), ELBO()).step(x[order])
    for mine, theirs in zip(ours.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-8)  # fused Adam and another product round otherwise


def test_any_pyro_elbo_is_an_objective():
    assert quick(build(), DIGITS, objective=Trace_ELBO())["train"][1] < 500


def test_beta_is_optimised_but_the_elbo_is_validated():
    history = fit(build(), DIGITS, objective=ELBO(beta=20.0), epochs=15, progress=False)
    free = fit(build(), DIGITS, objective=ELBO(beta=0.01), epochs=15, progress=False)
    assert history["valid_kl"][-1] < free["valid_kl"][-1] / 2
    assert history["valid"][-1] == pytest.approx(history["valid_reconstruction"][-1] + history["valid_kl"][-1])


def test_the_log_carries_the_elbo_beside_what_is_optimised():
    """Of the same draws: for the ELBO at beta = 1 the two are one, for a warm-up at its end, for IWAE never."""
    plain = quick(build(), DIGITS, objective=ELBO())
    assert plain["train_at_beta_1"] == pytest.approx(plain["train"], rel=1e-6)
    assert plain["beta"] == [1.0, 1.0]
    warm = quick(build(), DIGITS, objective=ELBO(beta=Linear(0.5)), epochs=4)
    assert warm["beta"] == pytest.approx([5 / 11, 1.0, 1.0, 1.0])  # at the sixth of twelve steps
    assert warm["train_at_beta_1"][0] > warm["train"][0]
    assert warm["train_at_beta_1"][2:] == pytest.approx(warm["train"][2:], rel=1e-6)
    weighted = quick(build(), DIGITS, objective=IWAE(5))
    assert all(elbo > bound for elbo, bound in zip(weighted["train_at_beta_1"], weighted["train"], strict=True))
    assert "train_at_beta_1" not in quick(build(), DIGITS, objective=Trace_ELBO())


def test_training_starts_at_the_datas_mean():
    """Worth nats at the start: the first epoch's loss against that of a decoder whose start is held back."""
    started, held = build(likelihood=likelihoods.Bernoulli), build(likelihood=likelihoods.Bernoulli)
    with torch.no_grad():
        held.decoder.network.bias += 1e-6
    losses = [fit(vae, DYNAMIC, epochs=1, progress=False)["train"][0] for vae in (started, held)]
    assert losses[0] < losses[1] - 1


def test_a_tensor_will_do():
    assert len(quick(build((5,)), torch.rand(40, 5))["train"]) == 2


def test_every_image_is_seen_once_an_epoch(monkeypatch):
    seen = []
    vae = build()
    model = vae.model
    monkeypatch.setattr(vae, "model", lambda x: (torch.is_grad_enabled() and seen.append(x)) or model(x))
    fit(vae, DIGITS, epochs=1, batch_size=100, compile="off", progress=False)
    train = torch.cat(seen[: -(-1437 // 100)])
    assert len(train) == 1437
    assert sorted(map(tuple, train.flatten(1).tolist())) == sorted(map(tuple, DIGITS.train[:].flatten(1).tolist()))


@pytest.mark.parametrize(
    ("likelihood", "dataset"),
    [(likelihoods.Gaussian, DIGITS), (likelihoods.Bernoulli, DYNAMIC)],
    ids=["Gaussian", "Bernoulli"],
)
def test_it_runs_where_it_is_told(likelihood, dataset, device):
    vae = build(likelihood=likelihood)
    history = quick(vae, dataset, lr=1e-2, device=device)
    assert next(vae.parameters()).device.type == device
    assert history["train"][-1] < history["train"][0]


def test_float64_stays_float64():
    vae = build().double()
    quick(vae, DIGITS)
    assert {p.dtype for p in vae.parameters()} == {torch.float64}


def test_it_shows_a_bar_with_the_elbo_in_nats(capsys):
    fit(build(), DIGITS, epochs=1)
    shown = capsys.readouterr().err
    assert "epoch 1/1" in shown
    assert re.search(r"nats: train loss -?[\d.]+, valid ELBO -?[\d.]+", shown)


BAD = {
    "no epochs": (lambda: fit(build(), DIGITS, epochs=0), "epochs of at least 1; got 0"),
    "no batch": (lambda: fit(build(), DIGITS, batch_size=0), "batch_size of at least 1; got 0"),
    "lr": (lambda: fit(build(), DIGITS, lr=-1.0), "positive learning rate; got lr = -1.0"),
    "part of an epoch": (lambda: quick(build(), DIGITS, epochs=1.5), "epochs to be a whole number; got 1.5"),
    "part of a row": (lambda: quick(build(), DIGITS, batch_size=32.0), "batch_size to be a whole number; got 32.0"),
    "patience": (lambda: quick(build(), DIGITS, patience=2.0), "patience to be a whole number; got 2.0"),
    "lr, no number": (lambda: quick(build(), DIGITS, lr=math.nan), "learning rate; got lr = nan"),
    "lr, words": (lambda: quick(build(), DIGITS, lr="1e-3"), "learning rate; got lr = '1e-3'"),
    "seed": (lambda: quick(build(), DIGITS, seed=2**64), f"seed to be a whole number .*; got {2**64}"),
    "seed of draws": (lambda: evaluate.nll(build(), DIGITS.test[:2], 2, seed=1.5), "seed to be a whole .*; got 1.5"),
    "objective": (lambda: quick(build(), DIGITS, objective=IWAE), "objective, as .*; got <class .*IWAE"),
    "data parallel": (lambda: quick(torch.nn.DataParallel(build()), DIGITS), "got a DataParallel around the program"),
    "no program": (lambda: evaluate.nll(torch.nn.Linear(2, 2), torch.ones(2, 2), 2), "Linear has no model"),
    "schedule": (
        lambda: fit(build(), DIGITS, lr_schedule="linear"),
        "lr_schedule to be trapezoid, constant, cosine or one-cycle; got 'linear'",
    ),
    "clip": (lambda: fit(build(), DIGITS, clip_norm=-1.0), "positive clip_norm, or None for no clipping; got -1.0"),
    "compile": (lambda: fit(build(), DIGITS, compile="jit"), "compile to be auto, off, graph or inductor; got 'jit'"),
    "precision": (lambda: fit(build(), DIGITS, precision="half"), "precision to be auto, float32 or bfloat16"),
    "shape": (
        lambda: fit(build((1, 9, 9)), DIGITS),
        r"shape \(N, 1, 9, 9\).*got images of shape",
    ),
    "support": (
        lambda: fit(build(likelihood=likelihoods.Bernoulli), DIGITS),
        r"support of Bernoulli, Boolean\(\); got values in \[0, 1\] \(digits, not binarised\). Binarise with",
    ),
    "diverges": (
        lambda: quick(build(), DIGITS, lr=1e6),
        r"Training diverged in epoch 1, step 2: expected a finite loss; got nan. At q\(z\): loc in .*Try a smaller lr",
    ),
    "infinite loss": (
        lambda: quick(build(likelihood=partial(likelihoods.Gaussian, scale=1e-30)), DIGITS),
        "Training diverged in epoch 1, step 1: expected a finite loss; got .* Try a smaller lr",
    ),
}


@pytest.mark.parametrize(("run", "message"), BAD.values(), ids=BAD)
def test_bad_input_gets_a_sentence(run, message, capsys):
    with pytest.raises(ValueError, match=message):
        run()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_no_cuda_gets_a_sentence():
    with pytest.raises(ValueError, match="Expected a device that torch can use, as 'cpu'; got device = 'cuda'"):
        quick(build(), DIGITS, device="cuda")


class TestHowAStepIsRun:
    @pytest.mark.parametrize("seldom", [2, 50])
    def test_plain_pyro_and_the_graph_give_the_same_numbers(self, seldom, monkeypatch):
        """Whether the last minibatch and the validation, which come seldom, are graphs too or not."""
        monkeypatch.setattr(loop, "GRAPH_AFTER", seldom)
        made, graph = [], traced.Graph
        monkeypatch.setattr(traced, "Graph", lambda *args: made.append(args) or graph(*args))
        options = {"objective": ELBO(beta=Linear(0.5)), "epochs": 4}
        runs = {how: quick(build(), DIGITS, compile=how, **options) for how in ("off", "graph")}
        for name in runs["off"].keys() - {"seconds"}:
            assert runs["graph"][name] == pytest.approx(runs["off"][name], rel=1e-5)
        assert len(made) == (3 if seldom == 2 else 1)

    @pytest.mark.filterwarnings("ignore:bfloat16 matrix products take")
    def test_bfloat16_is_near_float32(self):
        one, other = (
            quick(build(), DIGITS, precision=precision, epochs=8)["valid"] for precision in ("float32", "bfloat16")
        )
        assert one != other
        assert other == pytest.approx(one, rel=0.03)

    def test_learning_rate_schedules_end_low(self):
        """Each schedule has its formula, and ends near zero; a constant rate does not."""
        moved = {}
        for schedule in ("constant", "cosine", "one-cycle", "trapezoid"):
            vae = build()
            optim = recipe("adam", 1e-2, schedule, 6, vae)
            monitor = []
            svi = CompiledSVI(vae.model, vae.guide, optim, ELBO())
            for _ in range(6):
                svi.step(DIGITS.train[:64])
                if isinstance(optim, PyroLRScheduler):
                    optim.step()
                (made,) = optim.optim_objs.values()
                monitor.append(getattr(made, "optimizer", made).param_groups[0]["lr"])
            moved[schedule] = monitor
            pyro.clear_param_store()
        assert moved["constant"] == [1e-2] * 6
        assert moved["cosine"] == pytest.approx([1e-2 * (1 + math.cos(math.pi * t / 6)) / 2 for t in range(1, 7)])
        assert max(moved["one-cycle"]) == pytest.approx(1e-2, rel=0.1)
        assert moved["one-cycle"][-1] < 1e-6
        assert moved["trapezoid"] == pytest.approx([1e-2 * (1 / 3 + t / 150) for t in range(2, 7)] + [0], abs=1e-9)

    def test_fit_takes_a_schedule_and_clips(self):
        plain = quick(build(), DIGITS)["valid"]
        for options in ({"lr_schedule": "cosine"}, {"lr_schedule": "one-cycle"}, {"clip_norm": 1.0}):
            assert quick(build(), DIGITS, **options)["valid"] != plain

    def test_a_likelihood_that_branches_is_trained_in_plain_pyro(self):
        class Branching(likelihoods.Gaussian):
            def distribution(self, loc):
                return super().distribution(loc if loc.mean() > -1e9 else -loc)

        with pytest.warns(UserWarning, match="plain Pyro.*reads a number from a tensor") as found:
            history = quick(build(likelihood=Branching), DIGITS)
        assert len(found) == 1
        assert history["train"][-1] < history["train"][0]


MEMORY = """
from functools import partial
from pathlib import Path
import torch
from pyro_vae import VAE, fit
from pyro_vae.networks import MLP
from pyro_vae.train import loop

resident, epoch = [], loop.Training.epoch
pages = Path("/proc/self/statm")
seen = lambda count: resident.append(int(pages.read_text().split()[1]) * 4096)
loop.Training.epoch = lambda self, _, pause: epoch(self, seen, pause)
x = torch.randint(0, 256, (130_000, 784), dtype=torch.uint8)
fit(VAE.build((784,), network=partial(MLP, hidden=(32,))), x, epochs=1, batch_size=256, compile="graph", progress=False)
print(len(resident), resident[-1] - resident[20])
"""


@pytest.mark.processes
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc")
def test_memory_is_flat_over_the_steps_of_an_epoch(tmp_path):
    """A small tensor kept at each step keeps the memory around it from being used again: some 50 MB here."""
    done = forked.run(MEMORY, tmp_path)
    steps, grown = map(int, done.stdout.split())
    assert steps == 430
    assert grown < 15e6


class TestNothingHeldOut:
    ALL = data.load("digits", valid=0)

    def test_all_that_is_not_for_test_is_trained_on(self):
        assert [*self.ALL.splits] == ["train", "test"]
        assert len(self.ALL.train) == len(DIGITS.train) + len(DIGITS.valid)
        assert (self.ALL.test[:] == DIGITS.test[:]).all()

    def test_there_are_no_numbers_of_validation_and_no_best(self, tmp_path):
        history = quick(build(), self.ALL, lr_schedule="constant", run_dir=tmp_path / "run")
        assert history.keys() == {"train", "train_at_beta_1", "beta", "seconds"}
        assert not (tmp_path / "run" / "checkpoint" / "best.safetensors").exists()
        with pytest.raises(FileNotFoundError, match=r"Expected a run directory with best weights; .* has none\."):
            load(tmp_path / "run", weights="best")
        more = fit(build(), self.ALL, epochs=3, batch_size=256, progress=False, resume=tmp_path / "run")
        assert more["train"][:2] == history["train"]
        assert len(plots.curves(more).axes) == 1

    def test_the_table_and_the_comparison_do_without(self, tmp_path):
        for seed in (0, 1):
            quick(vae := build(seed=seed), self.ALL, run_dir=tmp_path / f"{seed}")
        assert "valid" not in report.table(vae, self.ALL, num_particles=3, images=10)
        rows = compare.compare([tmp_path / "0", tmp_path / "1"], num_particles=3, images=10, progress=False)
        assert len(compare.figure(rows).axes) == 3
        with pytest.raises(ValueError, match=r"Expected images held out for valid; .* has none\. Use test\."):
            compare.compare([tmp_path / "0"], num_particles=3, images=10, split="valid", progress=False)

    def test_patience_needs_them(self):
        with pytest.raises(ValueError, match=r"Expected images held out for validation, .* got valid = 0\."):
            quick(build(), self.ALL, patience=2)


class TestOnEpoch:
    def test_it_is_called_after_each_epoch_with_the_history(self):
        found = []
        history = quick(build(), DIGITS, epochs=3, on_epoch=lambda seen: found.append([*seen["train"]]))
        assert found == [history["train"][:n] for n in (1, 2, 3)]

    def test_what_it_draws_moves_no_other_draw(self):
        plain = quick(build(), DIGITS, epochs=3)
        drawn = []
        noisy = quick(build(), DIGITS, epochs=3, on_epoch=lambda _: drawn.append(torch.randn(3)))
        assert len(drawn) == 3
        assert noisy["train"] == plain["train"]

    def test_it_sees_the_vae_as_it_is_in_evaluation_mode(self):
        vae, seen = build(), []
        quick(vae, DIGITS, on_epoch=lambda _: seen.append((vae.training, vae.decoder.network.bias.detach().clone())))
        assert [training for training, _ in seen] == [False, False]
        assert (seen[0][1] != seen[1][1]).any()
        assert (seen[1][1] == vae.decoder.network.bias).all()


def test_a_second_thread_gets_a_sentence_and_the_first_its_numbers():
    """Refused at once, whichever call it is, while the first trains; that has the losses that it has alone."""
    losses, refusals = [], []

    def train(ask):
        vae = VAE.build((1, 8, 8), latent=2, network=partial(MLP, hidden=(8,)))
        losses.append(fit(vae, digits, epochs=1, batch_size=300, progress=False, on_epoch=ask)["train"])

    def ask(history):
        vae = VAE.build((1, 8, 8), latent=2)
        for call in (lambda: evaluate.nll(vae, digits.test[:2], 3), lambda: fit(vae, digits, epochs=1)):
            try:
                call()
            except RuntimeError as error:
                refusals.append(str(error))

    def beside(history):
        thread = threading.Thread(target=ask, args=(history,))
        thread.start()
        thread.join()

    with torch.random.fork_rng():
        state, digits = torch.get_rng_state(), data.load("digits")
        for callback in (beside, None):
            torch.set_rng_state(state)
            train(callback)
    assert losses[0] == losses[1]
    assert len(refusals) == 2
    assert all(refusal.startswith("Expected one thread at a time") for refusal in refusals)


@contextlib.contextmanager
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


AROUND = {
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": float64_by_default,
    "another device": lambda: torch.device("meta"),
}


class TestWhatIsAroundACall:
    X = torch.rand(20, 4, generator=torch.Generator().manual_seed(0))
    ONCE = partial(fit, epochs=1, batch_size=10, progress=False, compile="off")

    @pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
    def test_fit_gives_the_same_numbers(self, around):
        vaes = build((4,)), build((4,))
        plain = self.ONCE(vaes[0], self.X)
        with around():
            found = self.ONCE(vaes[1], self.X)
            assert (
                evaluate.nll(vaes[1], self.X, 5, seed=0).tolist() == evaluate.nll(vaes[0], self.X, 5, seed=0).tolist()
            )
        assert {**found, "seconds": 0} == {**plain, "seconds": 0}

    @pytest.mark.filterwarnings("ignore:NUTS. the chains disagree")  # of 4 draws
    def test_what_is_made_in_inference_mode_has_gradients(self):
        calls = (
            lambda vae, x: posterior.nuts(vae, x, draws=4, warmup=12, chains=1).z,
            lambda vae, x: posterior.refine(vae, x, steps=1, seed=0).encoder.network.phi,
            lambda vae, x: self.ONCE(vae, x, objective=ELBO(beta=2.0)) and vae.decoder.network.bias,
        )
        for call in calls:
            likelihood = likelihoods.ContinuousBernoulli  # whose gradient needs x
            plain = call(build((4,), likelihood=likelihood), self.X[:8])
            with torch.inference_mode():
                found = call(build((4,), likelihood=likelihood), self.X[:8].clone())
            assert found.equal(plain)

    def test_a_handler_gets_a_sentence(self):
        for call in (lambda vae: self.ONCE(vae, self.X), lambda vae: evaluate.nll(vae, self.X, 2)):
            with (
                pytest.raises(ValueError, match="Expected no Pyro handler .* got ScaleMessenger"),
                poutine.scale(scale=0.5),
            ):
                call(build((4,)))


class TestBatchesOfOneRow:
    X = torch.rand(13, 4, generator=torch.Generator().manual_seed(0))

    def vae(self):
        vae = build((4,))
        vae.encoder.network.layers.insert(1, torch.nn.BatchNorm1d(4))
        return vae

    def test_batch_normalisation_gets_a_sentence_before_the_first_step(self, tmp_path):
        dataset, vae = data.from_tensor(self.X, valid=0), self.vae()
        rows = len(dataset.train)
        before = vae.encoder.network.layers[1].running_mean.clone()
        with pytest.raises(ValueError, match=f"at least 2 rows; {rows} rows in batches of {rows - 1} .* batch_size"):
            quick(vae, dataset, batch_size=rows - 1, run_dir=tmp_path / "run")
        assert not (tmp_path / "run").exists()
        assert vae.encoder.network.layers[1].running_mean.equal(before)
        assert len(quick(vae, dataset, batch_size=rows, compile="off")["train"]) == 2

    def test_where_one_row_will_do_nothing_is_said(self):
        assert len(quick(build((4,)), self.X, epochs=1, batch_size=1, compile="off")["train"]) == 1


class TestWhereAScaleStarts:
    """Of a table it is the data's own: minus the ELBO starts near the entropy of x, and not far above it."""

    X = torch.randn(400, 20, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize(
        ("likelihood", "unit"),
        [
            (likelihoods.Gaussian, 1.0),
            (likelihoods.Laplace, math.sqrt(2 / math.pi)),
            (likelihoods.StudentT, 0.86),
            (partial(likelihoods.Gaussian, scale="per-pixel"), 1.0),
        ],
    )
    def test_of_a_table(self, likelihood, unit):
        vae, x = build((20,), likelihood=likelihood), 5 * self.X + 100
        x[:, 0] = torch.where(torch.arange(len(x)) % 2 == 0, math.nan, x[:, 0])
        vae.start(data.from_tensor(x, valid=0))
        distribution = vae.decoder(torch.zeros(1, 3)).base_dist
        assert distribution.scale.mean().item() == pytest.approx(5 * unit, rel=0.05)
        entropy = 20 * math.log(5 * math.sqrt(2 * math.pi * math.e))
        complete = 5 * self.X + 100
        assert -distribution.log_prob(complete).sum(-1).mean().item() == pytest.approx(entropy, rel=0.03)

    def test_of_grey_pixels_and_of_a_trained_vae_it_stays(self):
        vae = build((20,))
        vae.start(data.from_tensor(self.X.sigmoid()))
        assert vae.decoder.family.log_scale.exp().item() == pytest.approx(0.1)
        vae.decoder.family.log_scale.data.fill_(0.7)
        vae.start(data.from_tensor(self.X))
        assert vae.decoder.family.log_scale.item() == pytest.approx(0.7)
        vae = build((20,), likelihood=partial(likelihoods.Gaussian, scale=0.1))
        vae.start(data.from_tensor(self.X))
        assert vae.decoder.family.log_scale.exp().item() == pytest.approx(0.1)
