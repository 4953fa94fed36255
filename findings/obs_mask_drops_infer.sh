#!/usr/bin/env bash
# Pyro drops `infer` of a sample statement that has an `obs_mask`, in silence.
#
# Version    pyro-ppl 1.9.1 and 1.9.2 (PYRO=1.9.2), torch 2.14.1, Python 3.11.
# Statement  pyro.sample("y", law, obs=y, obs_mask=seen, infer={"enumerate": "parallel"}): makes sites y_observed,
#            y_unobserved. The docs of pyro.sample say what infer is, and nothing of it under obs_mask.
# Expected   the mark reaches y_unobserved, so that its classes are enumerated.
# Seen       infer of y without a mask {'enumerate': 'parallel'}, shape (3, 1); of both sites with it {}, shape (4,).
#            exact log p(x) -8.657; ELBO without obs_mask -8.657 three times; with it -31.009, -22.431, -24.92.
# Why        in pyro/primitives.py `infer` is a named argument of `sample`, so that it is not among the kwargs that
#            `_masked_observe` hands on.
# Exit       0 while this is so, 1 if the behaviour changes. Run: bash findings/obs_mask_drops_infer.sh (3 to 5 minutes)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet "torch==2.14.1" "pyro-ppl==${PYRO:-1.9.1}"
cat > "$folder/case.py" <<'CASE'
import sys

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO

p, loc, x = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.0, 3.0, 6.0]), torch.tensor([0.1, 2.5, 6.2, 4.0])
y, seen = torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.bool)

def model(**mask):
    with pyro.plate("data", 4):
        k = pyro.sample("y", dist.Categorical(p), infer={"enumerate": "parallel"}, **mask)
        pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)

def sites(**mask):
    trace = poutine.trace(poutine.enum(model, first_available_dim=-2)).get_trace(**mask)
    for name in ("y", "y_observed", "y_unobserved"):
        if name in trace.nodes and trace.nodes[name]["fn"].has_enumerate_support:
            infer = {key: value for key, value in trace.nodes[name]["infer"].items() if not key.startswith("_")}
            print(f"{name:13} infer {infer}, value of shape {tuple(trace.nodes[name]['value'].shape)}")
            yield name, infer

def elbos(**mask):
    elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    return [round(-elbo.loss(lambda **_: model(**mask), lambda **_: None), 3) for _ in range(3)]

pyro.set_rng_seed(0)
without, masked = dict(sites()), dict(sites(obs=y, obs_mask=seen))
exact = (p.log() + dist.Normal(loc, 1.0).log_prob(x[:, None])).logsumexp(-1).sum()
print("exact log p(x)        ", round(exact.item(), 3))
print("ELBO without obs_mask ", elbos())
print("ELBO with obs_mask    ", elbos(obs=y, obs_mask=seen))
dropped = without["y"].get("enumerate") == "parallel" and masked == {"y_observed": {}, "y_unobserved": {}}
sys.exit("the behaviour has changed" if not dropped else print("infer is dropped"))
CASE
"$folder/env/bin/python" -W ignore "$folder/case.py"
