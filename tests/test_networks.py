import math
from functools import partial

import pytest
import torch

from pyro_vae import VAE, data, fit, likelihoods, networks
from pyro_vae.networks import MLP, Auto, Conv, GatedMLP, ResNet

NETWORKS = {
    "MLP": MLP,
    "MLP deep": partial(MLP, hidden=(30, 20), activation="Tanh"),
    "MLP linear": partial(MLP, hidden=()),
    "GatedMLP": GatedMLP,
    "GatedMLP linear": partial(GatedMLP, hidden=()),
    "Conv": Conv,
    "Conv three levels": partial(Conv, channels=(4, 8, 16), hidden=32, activation="SiLU"),
    "Conv two dense layers": partial(Conv, channels=(4,), hidden=(32, 16)),
    "Conv with no dense layer": partial(Conv, channels=(4,), hidden=()),
    "ResNet": ResNet,
    "ResNet three levels of two": partial(ResNet, channels=(4, 8, 16), blocks=2, hidden=32, activation="SiLU"),
    "Auto": Auto,
    "Auto, told": partial(Auto, hidden=(30, 20), channels=(4, 8), activation="Tanh"),
}
SHAPES = {
    "encoder 8x8": ((1, 8, 8), (2, 5)),
    "decoder 8x8": ((5,), (1, 1, 8, 8)),
    "encoder 28x28": ((1, 28, 28), (2, 5)),
    "decoder 28x28": ((5,), (2, 1, 28, 28)),
    "encoder odd, in colour": ((3, 7, 11), (2, 5)),
    "decoder odd, in colour": ((5,), (2, 3, 7, 11)),
    "encoder odd, large": ((3, 21, 33), (2, 5)),
    "decoder odd, large": ((5,), (1, 3, 21, 33)),
}


def test_every_member_is_in_the_contract():
    made = {getattr(network, "func", network) for network in NETWORKS.values()}
    assert made == {getattr(networks, name) for name in networks.__all__} - {networks.Network, networks.Joint}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
class TestContract:
    def test_any_plates_go_through(self, network, shapes):
        in_shape, out_shape = shapes
        net = network(in_shape, out_shape)
        a = torch.randn(4, 3, *in_shape)
        assert net(a).shape == (4, 3, *out_shape)
        torch.testing.assert_close(net(a)[1, 2], net(a[1, 2]), rtol=1e-4, atol=1e-5)

    def test_every_parameter_gets_a_gradient(self, network, shapes):
        in_shape, out_shape = shapes
        net = network(in_shape, out_shape)
        net(torch.randn(16, *in_shape)).square().sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name

    def test_the_bias_moves_the_output_and_starts_at_zero(self, network, shapes):
        in_shape, out_shape = shapes
        net = network(in_shape, out_shape)
        assert net.bias.shape == out_shape
        assert not net.bias.any()
        a = torch.randn(2, *in_shape)
        before = net(a)
        with torch.no_grad():
            net.bias += 1
        torch.testing.assert_close(net(a), before + 1)

    def test_it_runs_where_it_is_put(self, network, shapes, device):
        in_shape, out_shape = shapes
        out = network(in_shape, out_shape).double().to(device)(torch.randn(2, *in_shape).double().to(device))
        assert (out.dtype, out.device.type) == (torch.float64, device)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_its_steps_are_recorded_and_train(network):
    """A step that cannot be recorded warns, and a warning is an error here."""
    x = torch.rand(96, 1, 9, 7).round()
    with torch.random.fork_rng():
        vae = VAE.build((1, 9, 7), latent=3, network=network)
        history = fit(vae, x, compile="graph", epochs=3, batch_size=16, progress=False)
    assert all(math.isfinite(loss) for loss in history["train"])
    assert history["train"][-1] < history["train"][0]


def test_each_hidden_unit_has_a_gate():
    """h = (A a + b) sigmoid(C a + d), layer by layer, in float64."""
    net, a = GatedMLP((5,), (2, 3), hidden=(4, 6)).double(), torch.randn(7, 5).double()
    first, second, last = (layer for layer in net.layers if not isinstance(layer, torch.nn.Flatten))
    h = a
    for layer in (first, second):
        with torch.no_grad():
            layer.value.bias.normal_()
            layer.gate.bias.normal_()
        sides = (h @ side.weight.T + side.bias for side in (layer.value, layer.gate))
        h = next(sides) / (1 + (-next(sides)).exp())
    torch.testing.assert_close(net(a), (h @ last.weight.T).reshape(7, 2, 3) + net.bias, rtol=1e-12, atol=1e-12)


class TestAuto:
    @pytest.mark.parametrize("event", [(6,), (1, 8, 8), (1, 28, 28), (1, 32, 32), (4, 2000), (3, 4, 5)], ids=str)
    def test_small_images_and_vectors_get_the_layers_of_an_mlp(self, event):
        self.same(MLP, event, hidden=(400,))

    @pytest.mark.parametrize("event", [(3, 32, 32), (1, 33, 32), (1, 64, 64), (3, 19, 19)], ids=str)
    def test_larger_images_get_the_layers_of_a_conv(self, event):
        self.same(Conv, event, hidden=400)

    def same(self, kind, event, **arguments):
        """The same names and the same random numbers, on both sides."""

        def state(network):
            torch.manual_seed(1)
            return [*network(event, (2, 5)).state_dict().items(), *network((5,), (1, *event)).state_dict().items()]

        with torch.random.fork_rng():
            found, expected = state(Auto), state(partial(kind, **arguments))
        assert [name for name, _ in found] == [name for name, _ in expected]
        assert all((mine == theirs).all() for (_, mine), (_, theirs) in zip(found, expected, strict=True))

    def test_it_is_what_a_vae_has_when_none_is_named(self):
        assert type(VAE.build((6,)).encoder.network) is Auto

    def test_a_likelihood_of_many_parameters_makes_no_image_large(self):
        assert isinstance(Auto((20,), (256, 1, 8, 8)).layers[0], torch.nn.Flatten)
        assert [name for name, _ in Auto((20,), (256, 1, 8, 8)).named_parameters()] == [
            name for name, _ in MLP((20,), (256, 1, 8, 8)).named_parameters()
        ]


@pytest.mark.parametrize("network", [Conv, ResNet])
def test_convolutions_find_a_code_that_is_worth_little(network):
    """A linear code of 8 dimensions is worth 14 nats.

    With ReLUs, which died, the code of 10 trainings was worth 0.0 to 3.0; with GELUs 6.6 to 10.2.
    """
    digits, scale = data.load("digits"), 0.25
    eigenvalues = torch.linalg.eigvalsh(digits.train[:].flatten(1).T.cov())[-8:] / scale**2
    worth = 0.5 * (eigenvalues - 1 - eigenvalues.log()).sum().item()
    assert 13 < worth < 15  # of probabilistic principal components (Tipping and Bishop, 1999)
    likelihood, small = partial(likelihoods.Gaussian, scale=scale), partial(network, channels=(8, 16), hidden=32)
    history = fit(
        VAE.build((1, 8, 8), 8, likelihood=likelihood, network=small), digits, epochs=8, batch_size=64, progress=False
    )
    x, mean = digits.valid[:], digits.train[:].mean(0)
    without = -torch.distributions.Normal(mean, scale).log_prob(x).flatten(1).sum(1).mean().item()
    assert history["valid"][-1] < without - 0.3 * worth


def test_a_residual_block_starts_near_the_identity():
    """Its change is an order of magnitude below what goes through, for inputs of size 1."""
    (block,) = (layer for layer in ResNet((16, 12, 12), (2, 5), channels=(16,)).layers if hasattr(layer, "residual"))
    h = torch.randn(8, 16, 12, 12)
    change = (block(h) - h).square().mean().sqrt()
    assert 0 < change < 0.1


def test_data_do_not_meet_in_a_resnet():
    """No statistics of a batch, in training or not: a datum's output is that of the datum alone."""
    net, a = ResNet((1, 9, 9), (2, 5)), torch.randn(6, 1, 9, 9)
    alone = torch.stack([net(row) for row in a])
    torch.testing.assert_close(net.train()(a), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.eval()(a), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLP((4,), (2,), activation="Relu"), r"activation in torch.nn.*got 'Relu'"),
        (lambda: MLP((4,), (2,), activation="Linear"), r"activation in torch.nn.*got 'Linear'"),
        (lambda: MLP((4,), (2,), hidden=(0,)), r"hidden layers of at least 1 unit; .*\(0,\)"),
        (lambda: Conv((64,), (2, 5)), r"Expected images.*\(64,\) .*\(2, 5\)\. Use MLP"),
        (lambda: ResNet((5,), (1, 64)), r"Expected images.*\(5,\) .*\(1, 64\)\. Use MLP"),
        (lambda: Conv((1, 8, 8), (2, 5), hidden=0), r"hidden layers of at least 1 unit; .*\(0,\)"),
        (lambda: Conv((5,), (1, 1, 8, 8), channels=(4, 0)), r"at least 1 channel; .*\(4, 0\)"),
        (lambda: ResNet((1, 8, 8), (2, 5), blocks=-1), r"blocks.*got -1"),
        (lambda: Auto((3, 32, 32), (2, 5), activation="Relu"), r"got 'Relu'"),
        (
            lambda: networks.Network((4,), (2, 5), torch.nn.Flatten())(torch.zeros(3, 4)),
            r"layers of Network to return 10 elements.*\(2, 5\); got 4",
        ),
        (lambda: MLP((1, 8, 8), (2, 5))(torch.zeros(3, 8, 9)), r"ends in \(1, 8, 8\); got \(3, 8, 9\)"),
        (lambda: MLP((1, 8, 8), (2, 5))(torch.zeros(8)), r"ends in \(1, 8, 8\); got \(8,\)"),
    ],
)
def test_bad_input_gets_a_sentence(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("network", "shape", "out"),
    [
        (partial(MLP, hidden=(4,)), (5,), (2, 3)),
        (partial(MLP, hidden=(4,)), (1, 4, 4), (2, 3)),
        (partial(GatedMLP, hidden=(4,)), (1, 4, 4), (2, 3)),
        (partial(Conv, channels=(2,), hidden=4), (1, 4, 4), (2, 3)),
        (partial(Conv, channels=(2,), hidden=4), (5,), (1, 1, 4, 4)),
    ],
)
def test_joint_is_the_network_of_the_joined_input(network, shape, out):
    joint = networks.Joint(network, [shape, (3,), (2,)], out)
    a, b, c = torch.randn(5, *shape), torch.randn(6, 5, 3), torch.randn(2)
    inputs = [a.expand(6, *a.shape), b, c.expand(6, 5, 2)]
    if shape == (1, 4, 4) and network.func is Conv:  # vectors are further channels
        joined = torch.cat([inputs[0], *(v[..., None, None].expand(6, 5, -1, 4, 4) for v in inputs[1:])], -3)
    else:
        joined = torch.cat([inputs[0].flatten(2), *inputs[1:]], -1)
    torch.testing.assert_close(joint(a, b, c), joint.network(joined))
    assert joint(a[0], b[0, 0], c).shape == out
