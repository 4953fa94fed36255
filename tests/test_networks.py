from functools import partial

import pytest
import torch

from pyro_vae.networks import MLP, Conv

NETWORKS = {
    "MLP": MLP,
    "MLP deep": partial(MLP, hidden=(30, 20), activation="Tanh"),
    "MLP linear": partial(MLP, hidden=()),
    "Conv": Conv,
    "Conv three levels": partial(Conv, channels=(4, 8, 16), hidden=32, activation="SiLU"),
}
SHAPES = {
    "encoder 8x8": ((1, 8, 8), (2, 5)),
    "decoder 8x8": ((5,), (1, 1, 8, 8)),
    "encoder 28x28": ((1, 28, 28), (2, 5)),
    "decoder 28x28": ((5,), (2, 1, 28, 28)),
    "encoder odd, in colour": ((3, 7, 11), (2, 5)),
    "decoder odd, in colour": ((5,), (2, 3, 7, 11)),
}


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


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLP((4,), (2,), activation="Relu"), r"activation in torch.nn, as ReLU or Tanh; got 'Relu'"),
        (lambda: MLP((4,), (2,), activation="Linear"), r"activation in torch.nn, as ReLU or Tanh; got 'Linear'"),
        (lambda: MLP((4,), (2,), hidden=(0,)), r"hidden layers of at least 1 unit; got \(0,\)"),
        (lambda: Conv((64,), (2, 5)), r"Expected images.*got a map from \(64,\) to \(2, 5\)\. Use MLP"),
        (lambda: MLP((1, 8, 8), (2, 5))(torch.zeros(3, 8, 9)), r"ends in \(1, 8, 8\); got \(3, 8, 9\)"),
        (lambda: MLP((1, 8, 8), (2, 5))(torch.zeros(8)), r"ends in \(1, 8, 8\); got \(8,\)"),
    ],
)
def test_bad_input_gets_a_sentence(build, message):
    with pytest.raises(ValueError, match=message):
        build()
