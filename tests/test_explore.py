"""Sliders over latents: each picture is the program's own decoding of the code, computed here from its parts."""

import asyncio
import base64
import io
import signal
import sys
import textwrap
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
import PIL.Image
import pyro
import pyro.distributions as dist
import pytest
import torch
from ipywidgets import HTML, Image
from sklearn.decomposition import PCA
from torch import nn

from pyro_vae import VAE, evaluate, likelihoods, networks, oracle, plots, priors, programs
from pyro_vae.plots.axes import latent_axes, principal_axes
from pyro_vae.plots.frames import SIDE

NOTEBOOKS = str(Path(__file__).parent.parent / "notebooks")
EVENT, N = (1, 8, 8), 12
KINDS = ("latents", "principal directions")


class Mine(nn.Module):
    """A class, shares, a positive code and a shift: the guide draws the code after the shift, the model before it."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(4, 2), nn.Linear(2, 4)

    def model(self, x, shift):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.LogNormal(k.unsqueeze(-1) + torch.zeros(2), 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            loc = self.decode(z) + (b + k + shift).unsqueeze(-1)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x, shift):
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Normal(x[:, 0], 0.5))
            pyro.sample("z", dist.LogNormal(self.encode(x), 1.0).to_event(1))


def of_mine(program, panel, code, data):
    x, shift = data
    start = panel.start.value
    shift = shift[start].lerp(shift[panel.end.value], panel.mix.value)
    return program.decode(code[:2].exp()) + code[2] + 1 + shift  # 1: the most probable class


def of_vae(program, panel, code, data):
    return program.decoder(code[None]).mean[0]


def of_label(program, panel, code, data):
    return program.decoder(code[None], program.one_hot(torch.tensor([panel.labels["y"].value]))).mean[0]


def of_covariates(program, panel, code, data):
    y = data[1][panel.start.value].lerp(data[1][panel.end.value], panel.mix.value)
    return program.decoder(code[None], y[None]).mean[0]


def of_most_probable(program, panel, code, data):
    best = program.classify(data[0][panel.start.value][None]).argmax(-1)
    return program.decoder(code[None], program.one_hot(best)).mean[0]


def of_first_layer(program, panel, code, data):
    return program.decoder(code[None, 3:]).mean[0]  # z2 has 3 dimensions, z1 has 5


def of_top_layer(program, panel, code, data):
    return program.decoder(program.layers["z1"](code[None, :3]).mean).mean[0]


IMAGES = torch.rand(N, *EVENT, generator=torch.Generator().manual_seed(1))
Y = torch.arange(N) % 3
LAYERS = {guide: partial(programs.HierarchicalVAE.build, EVENT, (5, 3), guide) for guide in ("bottom-up", "top-down")}
# The program, the data, its decoding by hand, options of explore, and whether ``reconstruct`` is the first picture.
CASES = {
    "VAE": (partial(VAE.build, EVENT, 3), (IMAGES,), of_vae, {}, True),
    "a flow": (partial(VAE.build, EVENT, 3, priors.Flow, likelihoods.Bernoulli), (IMAGES.round(),), of_vae, {}, True),
    "convolutions": (partial(VAE.build, EVENT, 3, network=networks.Conv), (IMAGES,), of_vae, {}, True),
    "missing pixels": (
        partial(VAE.build, EVENT, 3),
        (IMAGES.where(IMAGES > 0.2, torch.nan),),
        of_vae,
        {},
        True,
    ),
    "a table": (partial(VAE.build, (4,), 2), (torch.randn(N, 4),), of_vae, {"names": ["<b>", "b", "c", "d"]}, True),
    "labels": (partial(programs.ConditionalVAE.build, EVENT, 3, 3), (IMAGES, Y), of_label, {}, True),
    "covariates": (
        partial(programs.ConditionalVAE.build, EVENT, 3, 2),
        (IMAGES, torch.rand(N, 2)),
        of_covariates,
        {},
        True,
    ),
    "some labels": (partial(programs.SemiSupervisedVAE.build, EVENT, 3, 3), (IMAGES, Y), of_label, {}, True),
    "no labels": (partial(programs.SemiSupervisedVAE.build, EVENT, 3, 3), (IMAGES,), of_most_probable, {}, True),
    "bottom-up": (LAYERS["bottom-up"], (IMAGES,), of_first_layer, {}, True),
    "top-down": (LAYERS["top-down"], (IMAGES,), of_first_layer, {}, True),
    "the top layer": (LAYERS["top-down"], (IMAGES,), of_top_layer, {"site": "z2"}, False),
    "mine": (Mine, (torch.randn(N, 4), torch.randn(N)), of_mine, {}, False),
}


@pytest.fixture(params=CASES)
def case(request):
    build, data, by_hand, options, reconstructs = CASES[request.param]
    return build(), data, by_hand, options, reconstructs


def explored(program, data, by_hand, options):
    panel = plots.explore(program, data, **options)

    def check():
        with torch.no_grad():
            expected = by_hand(program, panel, panel.code, data)
        torch.testing.assert_close(panel.decoded, expected, rtol=1e-5, atol=1e-6)

    return panel, check


def shown(panel):
    """The three images of the picture, each (height, width), read from the file."""
    pixels = np.asarray(PIL.Image.open(io.BytesIO(panel.picture.value)))
    factor = SIDE // 8
    pixels = pixels[::factor, ::factor, 0]
    return [pixels[:, i * 9 : i * 9 + 8] for i in range(3)]


class TestEachProgram:
    def test_the_picture_is_the_programs_decoding_wherever_sliders_are(self, case):
        panel, check = explored(*case[:-1])
        check()
        for kind in KINDS:
            panel.kind.value = kind
            assert panel.children[-1].children[0].children == tuple(panel.sliders[kind])
            for slider in panel.sliders[kind]:
                before = panel.decoded
                slider.value = 0.7 * slider.max + 0.3 * slider.min
                assert not torch.equal(panel.decoded, before)
                check()
        for labels in panel.labels.values():
            for label in labels.options:
                labels.value = label
                check()

    def test_the_ends_are_the_reconstructions_and_reset_returns(self, case):
        program, data, *_, reconstructs = case
        panel, check = explored(*case[:-1])
        panel.end.value, (first, first_label) = 4, (panel.decoded, [box.value for box in panel.labels.values()])
        panel.sliders["latents"][0].value = panel.sliders["latents"][0].max
        for box in panel.labels.values():
            box.value = 2
        panel.reset.click()
        assert torch.equal(panel.decoded, first)
        assert [box.value for box in panel.labels.values()] == first_label
        for mix, row in ((0.0, 0), (1.0, 4)):
            panel.mix.value = mix
            for box in panel.labels.values():
                box.value = int(data[1][row])
            check()
            if reconstructs and not (row and len(data) == 1 and hasattr(program, "classify")):
                rebuilt = program.reconstruct(*(column[row][None] for column in data))[0]
                torch.testing.assert_close(panel.decoded, rebuilt, rtol=1e-5, atol=1e-6)
        panel.mix.value = 0.5
        check()
        panel.start.value = 7
        assert panel.mix.value == 0.5
        assert [box.value for box in panel.labels.values()] == [int(data[1][7]) for _ in panel.labels]
        check()

    def test_nothing_of_the_program_or_the_session_changes(self, case):
        program, data, *_ = case
        program.train()
        for parameter in program.parameters():
            parameter.grad = torch.ones_like(parameter)
        weights = {name: value.clone() for name, value in program.state_dict().items()}
        state = torch.get_rng_state()
        panel = plots.explore(program, data)
        panel.sliders["latents"][0].value = panel.sliders["latents"][0].max
        panel.mix.value = 0.5
        assert torch.equal(torch.get_rng_state(), state)
        assert all(module.training for module in program.modules())
        assert not panel.decoded.requires_grad
        assert not panel.code.requires_grad
        assert all(torch.equal(value, weights[name]) for name, value in program.state_dict().items())
        assert all((parameter.grad == 1).all() for parameter in program.parameters())
        assert all(parameter.requires_grad for parameter in program.parameters())


def test_the_file_has_the_start_the_decoding_and_the_end_to_8_bits():
    panel = plots.explore(VAE.build(EVENT, 3), IMAGES)
    panel.start.value, panel.end.value = 2, 5
    panel.sliders["latents"][1].value = 0.1
    assert isinstance(panel.picture, Image)
    for pixels, x in zip(shown(panel), (IMAGES[2], panel.decoded, IMAGES[5]), strict=True):
        np.testing.assert_array_equal(pixels, (x[0].clamp(0, 1) * 255).round())


def test_counts_are_white_at_the_largest():
    x = torch.arange(N * 64.0).reshape(N, *EVENT)
    panel = plots.explore(VAE.build(EVENT, 2, likelihood=likelihoods.Poisson), x)
    np.testing.assert_array_equal(shown(panel)[2], (x[1, 0] / x.max() * 255).round())


def test_numbers_of_a_table_have_their_names():
    x = torch.randn(N, 2)
    x[0, 1] = torch.nan
    panel = plots.explore(VAE.build((2,), 2), x, names=["<b>", "mass"])
    assert isinstance(panel.picture, HTML)
    rows = [panel.decoded.tolist(), x[1].tolist()]
    assert (
        f"<td>&lt;b&gt;</td><td>{x[0, 0]:.4g}</td><td>{rows[0][0]:.4g}</td><td>{rows[1][0]:.4g}<" in panel.picture.value
    )
    assert f"<td>mass</td><td>missing</td><td>{rows[0][1]:.4g}</td><td>{rows[1][1]:.4g}</td>" in panel.picture.value


class TestAxes:
    def test_principal_directions_are_those_of_scikit_learn(self):
        draws = torch.randn(300, 4).double() @ torch.randn(4, 4).double()
        columns = [3, 0, 2]
        axes, pca = principal_axes(draws, columns, most=2), PCA(2).fit(draws[:, columns])
        signs = np.sign((axes.vectors[:, columns].numpy() * pca.components_).sum(1, keepdims=True))
        np.testing.assert_allclose(axes.vectors[:, columns].numpy() * signs, pca.components_, atol=1e-8)
        assert not axes.vectors[:, 1].any()
        np.testing.assert_allclose(axes.high, 3 * np.sqrt(pca.explained_variance_), rtol=1e-8)
        shares = [f"{share:.0%}" for share in pca.explained_variance_ratio_]
        assert [name.split()[2] for name in axes.names] == shares
        mean = draws.mean(0)
        torch.testing.assert_close(axes.coordinates(mean + 2 * axes.vectors[1]), torch.tensor([0.0, 2.0]).double())

    def test_of_equal_draws_the_range_is_not_empty(self):
        for axes in (latent_axes(torch.ones(5, 2), [0], ["z"]), principal_axes(torch.ones(5, 2), [0, 1], 2)):
            assert (axes.high > axes.low).all()

    def test_sliders_span_the_aggregate_posterior_and_the_most_nats_come_first(self):
        """Its variance is the variance of means plus the mean variance: 3,000 draws, a tenth is 8 standard errors."""
        model = oracle.LinearGaussian(torch.randn(6, 4), torch.zeros(6), scale=0.5)
        vae, x = (
            model.vae("mean-field"),
            model.simulate(3000)[0] if hasattr(model, "simulate") else torch.randn(3000, 6),
        )
        panel = plots.explore(vae, x, sliders=3)
        order = evaluate.kl_per_dim(vae, x).mean(0).argsort(descending=True)[:3].tolist()
        sliders = panel.sliders["latents"]
        assert [slider.description.split(",")[0] for slider in sliders] == [f"z[{i}]" for i in order]
        with torch.no_grad():
            q = vae.encoder(x)
            stddev = (q.mean.var(0) + q.variance.mean(0)).sqrt()
        for slider, i in zip(sliders, order, strict=True):
            assert (slider.max - slider.min) / 6 == pytest.approx(stddev[i].item(), rel=0.1)

    def test_a_slider_moves_its_dimension_alone(self):
        panel = plots.explore(VAE.build(EVENT, 3), IMAGES)
        slider, before = panel.sliders["latents"][1], panel.code
        slider.value = slider.min
        dim = int(slider.description[2])
        assert panel.code[dim].item() == pytest.approx(slider.min, abs=1e-6)
        assert [i for i in range(3) if panel.code[i] != before[i]] == [dim]
        assert all(
            other.value == pytest.approx(panel.code[int(other.description[2])].item(), abs=1e-6)
            for other in panel.sliders["latents"]
        )


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("program", "x", "options", "message"),
        [
            (partial(programs.VQVAE.build, EVENT, 8, 4), IMAGES, {}, "a continuous latent site.* discrete sites z"),
            (partial(VAE.build, EVENT, 2), IMAGES, {"site": "w"}, "site to be one of the continuous sites z; got 'w'"),
            (partial(VAE.build, EVENT, 2), IMAGES, {"sliders": 0}, "sliders of at least 1; got 0"),
            (partial(VAE.build, EVENT, 2), IMAGES, {"sliders": 2.5}, "sliders to be a whole number; got 2.5"),
            (partial(VAE.build, (2, 1, 2, 2), 2), torch.rand(3, 2, 1, 2, 2), {}, r"images or rows; got shape \(2, 1"),
            (partial(VAE.build, (4,), 2), torch.rand(3, 4), {"names": ["a"]}, "each of the 4 columns of x; got 1"),
            (partial(VAE.build, EVENT, 2), IMAGES[:0], {}, "at least 1 image; got none"),
        ],
    )
    def test_has_one_sentence(self, program, x, options, message):
        with pytest.raises(ValueError, match=f"^Expected .*{message}"):
            plots.explore(program(), x, **options)

    def test_without_ipywidgets_the_sentence_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "ipywidgets", None)
        monkeypatch.delitem(sys.modules, "pyro_vae.plots.panel")
        with pytest.raises(ValueError, match=r'^Expected ipywidgets.*pip install "pyro_vae\[notebook\]"\.$'):
            plots.explore(VAE.build(EVENT, 2), IMAGES)


def test_one_row_is_enough():
    panel = plots.explore(VAE.build(EVENT, 2), IMAGES[:1])
    panel.mix.value = 1.0
    panel.reset.click()
    assert (panel.start.value, panel.end.value) == (0, 0)


@pytest.fixture
def signals():
    """Restore the handlers of signals, which a notebook's client replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.processes
@pytest.mark.usefixtures("signals")
def test_an_executed_notebook_shows_the_picture_without_a_kernel(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(NOTEBOOKS)
    import execute

    source = """
    import torch
    from pyro_vae import VAE, plots
    panel = plots.explore(VAE.build((8, 8), 2), torch.rand(5, 8, 8))
    print(len(panel.picture.value))
    panel
    """
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(textwrap.dedent(source).strip())])
    nbformat.write(notebook, path := tmp_path / "sliders.ipynb")
    assert asyncio.run(execute.execute(path)) == ""
    number, picture = nbformat.read(path, 4).cells[0].outputs
    png = base64.b64decode(picture["data"]["image/png"])
    assert len(png) == int(number["text"])
    assert PIL.Image.open(io.BytesIO(png)).size == (SIDE // 8 * 26, SIDE // 8 * 8)
    assert not [kind for kind in picture["data"] if "widget" in kind]
