"""Whatever form the data have, and whatever is around a call, it gives the plain call's numbers, or a sentence.

The plain call is of float32 in one piece, with nothing around it. 50 draws; ``ANY_INPUT=500 pytest
tests/test_any_input.py`` takes so many.
"""

import contextlib
import os
import warnings
from copy import deepcopy
from functools import cache, partial

import numpy as np
import pandas
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyro import poutine
from torch import nn
from torch.utils._pytree import tree_leaves

from pyro_vae import VAE, ais, evaluate, fit, likelihoods, networks, posterior
from pyro_vae.oracle import LinearGaussian
from pyro_vae.programs import ConditionalVAE, HierarchicalVAE, SemiSupervisedVAE

DRAWN = int(os.environ.get("ANY_INPUT", "50"))
ROWS = 6


class Plain(nn.Module):
    """A regression with a latent intercept, and nothing but the two Pyro programs."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def model(self, x, y):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + self.weight[y.long()], torch.ones(())).to_event(1), obs=x)

    def guide(self, x, y):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(0.5 * x, 0.7).to_event(1))


# The values of x that a program is of, and how it is made.
SMALL = partial(networks.Auto, hidden=(5,))
CONV = partial(networks.Conv, channels=(3,), hidden=5)
PROGRAMS = {
    "Bernoulli": ("binary", lambda: VAE.build((4,), 2, likelihood=likelihoods.Bernoulli, network=SMALL)),
    "image": ("binary", lambda: VAE.build((2, 4, 3), 2, likelihood=likelihoods.Bernoulli, network=CONV)),
    "Gaussian": ("holes", lambda: VAE.build((4,), 2, network=SMALL)),
    "Poisson": ("counts", lambda: VAE.build((4,), 2, likelihood=likelihoods.Poisson, network=SMALL)),
    "label": ("binary", lambda: ConditionalVAE.build((4,), 2, 2, likelihood=likelihoods.Bernoulli, network=SMALL)),
    "layers": ("holes", lambda: HierarchicalVAE.build((4,), (3, 2), network=SMALL)),
    "classes": ("holes", lambda: SemiSupervisedVAE.build((4,), 2, 2, network=SMALL)),
    "oracle": ("holes", lambda: LinearGaussian(torch.randn(4, 2), torch.zeros(4), 0.5).vae("mean-field")),
    "plain": ("real", Plain),
}
TWO = {"label", "classes", "plain"}  # programs of x and y
REAL = [(0, 1), (0, 1, 3), (-2, 0, 1), (-1.5, 0.5, 2)]
VALUES = {"binary": [(0, 1)], "counts": [(0, 1), (0, 1, 2, 5)], "real": REAL, "holes": [*REAL, (0.5, 2, np.nan)]}
QUESTIONS = {
    "nll": lambda program, data: evaluate.nll(program, data, 3, seed=0),
    "elbo": lambda program, data: evaluate.elbo(evaluate.log_weights(program, data, 3, seed=0)),
    "active_units": lambda program, data: (
        evaluate.latent_activity(program, data, seed=0),
        evaluate.active_units(program, data, seed=0),
    ),
    "terms": lambda program, data: evaluate.elbo_terms(program, data, seed=0),
    "to_arviz": lambda program, data: posterior.to_arviz(program, data, draws=25, predictive_draws=2),
    "reconstruct": lambda program, data: program.reconstruct(*(data.values() if isinstance(data, dict) else data)),
    "fit": lambda program, data: trained(deepcopy(program), data),
}
SLOW = {"ais": lambda program, data: ais.ais(program, data, chains=2, temperatures=3, leapfrog=1, seed=0)}

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, *FLOATS]
LAYOUTS = {
    "as it is": lambda x: x,
    "another order": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "every second": lambda x: x.repeat_interleave(2, 0)[::2],
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "with a gradient": lambda x: x.clone().requires_grad_(x.is_floating_point()),
    "an answer": lambda x: (x * nn.Parameter(torch.ones((), dtype=x.dtype))) if x.is_floating_point() else x,
    "of inference mode": torch.inference_mode()(torch.clone),
    "unsigned": lambda x: x if x.dtype not in (torch.int32, torch.int64) or (x < 0).any() else x.to(torch.uint16),
    "an array": lambda x: array_of(x),
    "a table": lambda x: pandas.DataFrame(array_of(x)) if x.dim() == 2 else array_of(x),
    "big-endian": lambda x: array_of(x).astype(array_of(x).dtype.newbyteorder(">")),
    "backwards": lambda x: array_of(x)[::-1].copy()[::-1],
    "read-only": lambda x: read_only(array_of(x)),
    "an array in another order": lambda x: np.asfortranarray(array_of(x)),
    "lists": lambda x: x.tolist(),
    "sparse": lambda x: x.to_sparse(),
    "on meta": lambda x: x.to("meta"),
    "masked": lambda x: np.ma.masked_array(array_of(x), mask=True),
}

NO_NUMBERS = {"sparse", "on meta", "masked"}


def array_of(x):
    """An array, in float32 of what NumPy has not."""
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def trained(program, data):
    history = fit(program, data, epochs=1, batch_size=2, progress=False, compile="off")
    return {**history, "seconds": 0}, program.state_dict()


@contextlib.contextmanager
def switched(get, put, value):
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


AROUND = {
    "nothing": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "float64": partial(switched, torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "bfloat16": partial(switched, torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16),
    "meta": partial(torch.device, "meta"),
    "cpu": partial(torch.device, "cpu"),
    "device set": partial(switched, lambda: None, torch.set_default_device, "meta"),
    "not validated": partial(pyro.validation_enabled, False),
    "not validated by torch": partial(
        switched,
        lambda: torch.distributions.Distribution._validate_args,
        torch.distributions.Distribution.set_default_validate_args,
        False,
    ),
    "compile": partial(torch.compiler.set_stance, "force_eager"),
    "threads": partial(switched, torch.get_num_threads, torch.set_num_threads, 2),
    "deterministic": partial(
        switched, torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "seed": partial(poutine.seed, rng_seed=5),
    "block": poutine.block,
    "param store": lambda: pyro.get_param_store().scope(),
    # Handlers of the caller's: a sentence.
    "plate": partial(pyro.plate, "outer", 3),
    "scale": partial(poutine.scale, scale=2.0),
    "trace": poutine.trace,
    "mask": partial(poutine.mask, mask=False),
}
HANDLERS = {"plate", "scale", "trace", "mask"}
SHAPES = {
    "rows": lambda x: x,
    "one row": lambda x: x[:1],
    "the same row": lambda x: x[:1].expand(x.shape),
    "one datum": lambda x: x[0],
    "no rows": lambda x: x[:0],
    "a longer event": lambda x: torch.cat([x, x], -1),
    "a deeper event": lambda x: x.unsqueeze(1),
    "a scalar": lambda x: x.flatten()[0],
}
RIGHT = {"rows", "one row", "the same row"}


@cache
def program_of(name):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return PROGRAMS[name][1]()


@cache
def values_of(name, values):
    """x in float32, and y."""
    event = {"image": (2, 4, 3)}.get(name, (4,))
    numbers = np.random.default_rng(3)
    x = torch.from_numpy(numbers.choice(np.array(values, dtype=np.float32), (ROWS, *event)))
    return x, torch.arange(ROWS) % 2


def outcome(question, name, data):
    """Numbers, or what is said; of anything else the exception itself."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "AIS")  # so few chains
            answer = (QUESTIONS | SLOW)[question](program_of(name), data)
    except (ValueError, TypeError, RuntimeError) as error:
        if not str(error).startswith("Expected ") or "\n" in str(error):
            raise
        return str(error)
    if question == "to_arviz":
        found = {f"{group}.{n}": v.values for group in answer.groups() for n, v in answer[group].items()}
        return {name: v.astype(np.int64) if v.dtype.kind in "biu" else v for name, v in found.items()}  # y as it is
    return answer


@cache
def plain(question, name, values, shape):
    return outcome(question, name, given_as(name, "by name", *(c.contiguous() for c in shaped(name, values, shape))))


def shaped(name, values, shape):
    x, y = values_of(name, values)
    return SHAPES[shape](x), y if "event" in shape else SHAPES[shape](y)


def given_as(name, way, x, y):
    if name not in TWO:
        return {"alone": x, "by name": {"x": x}, "in a tuple": (x,), "in a list": [x]}[way]
    return {"by name": {"x": x, "y": y}, "in a list": [x, y]}.get(way, (x, y))


def same(one, other):
    """Whether two answers are the same to the last bit, and of one type."""
    one, other = tree_leaves(one), tree_leaves(other)
    return len(one) == len(other) and all(map(_same, one, other))


def _same(one, other):
    one, other = (value.detach().numpy() if isinstance(value, torch.Tensor) else value for value in (one, other))
    if not isinstance(one, np.ndarray):
        return type(one) is type(other) and (one == other or one != one)
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@st.composite
def forms(draw, dtypes):
    """A dtype, and how the numbers lie or what holds them."""
    return draw(st.sampled_from(dtypes)), draw(st.sampled_from([*LAYOUTS]))


@st.composite
def calls(draw):
    """A question, a program, the values and the forms of its data, and what is around the call."""
    name, question = draw(st.sampled_from([*PROGRAMS])), draw(st.sampled_from([*[*QUESTIONS] * 3, *SLOW]))
    values = draw(st.sampled_from(VALUES[PROGRAMS[name][0]]))
    numbers, shape = torch.tensor(values), draw(st.sampled_from([*["rows"] * 6, *SHAPES]))
    dtypes = [dtype for dtype in DTYPES if numbers.to(dtype).double().equal(numbers.double())]
    dtypes = FLOATS if name == "plain" else dtypes or FLOATS  # whole numbers stay such in a plain program
    of_x, of_y = draw(forms(dtypes)), draw(forms([torch.bool, torch.uint8, torch.int32, torch.int64]))
    way = draw(st.sampled_from(["alone", "by name", "in a tuple", "in a list"]))
    way = "by name" if way == "alone" and question in ("fit", "reconstruct") else way  # whole numbers alone are pixels
    around = draw(st.lists(st.sampled_from([*AROUND]), min_size=1, max_size=2, unique=True))
    return question, name, values, shape, of_x, of_y, way, tuple(around)


@pytest.mark.slow
@settings(derandomize=True, deadline=None, database=None, max_examples=DRAWN, suppress_health_check=list(HealthCheck))
@given(call=calls())
def test_any_input(call):
    question, name, values, shape, (dtype, layout), (dtype_y, layout_y), way, around = call
    if name == "plain" and (question == "reconstruct" or "event" in shape):
        return  # which it has not; what it cannot take, its own code says
    right = plain(question, name, values, shape)
    x, y = shaped(name, values, shape)
    x, y = x.to(dtype), y.to(dtype_y)
    x, y = (LAYOUTS[layout](x), LAYOUTS[layout_y](y)) if y.dim() else (x, y)
    with contextlib.ExitStack() as stack:
        for one in around:
            stack.enter_context(AROUND[one]())
        got = outcome(question, name, given_as(name, way, x, y))
    refused = shape not in RIGHT or layout in NO_NUMBERS or (name in TWO and layout_y in NO_NUMBERS)
    refused |= name not in TWO and way == "alone" and layout == "lists"  # a list is one of arguments
    if refused or isinstance(right, str) or ({*around} & HANDLERS and question != "reconstruct"):
        assert isinstance(got, str), got
    else:
        assert same(got, right), (got, right)
