#!/usr/bin/env bash
# torch's fused Adam on a CPU pairs a parameter with a gradient by their places in memory, not by their indices.
#
# Version    torch 2.14.1 (TORCH=2.14.1), Python 3.11, CPU.
# Statement  torch.autograd.grad returns the gradient of a convolution's weight with its channels last in memory, if the
#            input has them last. `weight.grad = gradient` takes it; Adam(fused=True) then steps without an error.
# Guess      (before the run) the fused step gives the weights of the plain one, or refuses the strides.
# Seen       plain and foreach: every weight moves against the sign of its gradient. Fused: about half of them do.
#            After `backward()`, which gives `grad` the strides of its weight, all three agree.
# Hurts      whoever takes gradients by torch.autograd.grad and steps a fused optimizer; nothing warns.
# Exit       0 while this is so, 1 if the behaviour changes. Run: bash findings/fused_adam_reads_no_strides.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet "torch==${TORCH:-2.14.1}" numpy
cat > "$folder/case.py" <<'CASE'
import sys

import torch

torch.manual_seed(0)
x = torch.randn(8, 16, 10, 10).contiguous(memory_format=torch.channels_last)


def share_against_the_gradient(by_backward, **options):
    torch.manual_seed(1)
    conv = torch.nn.Conv2d(16, 16, 3)
    loss = conv(x).square().sum()
    (gradient,) = torch.autograd.grad(loss, [conv.weight], retain_graph=True)
    before = conv.weight.detach().clone()
    if by_backward:
        loss.backward()
    else:
        conv.weight.grad = gradient
    torch.optim.Adam([conv.weight], lr=1e-3, **options).step()
    moved = before - conv.weight.detach()
    return (moved.sign() == gradient.sign()).float().mean().item(), gradient.stride(), conv.weight.stride()


print("strides of the gradient and of the weight:", *share_against_the_gradient(False)[1:])
shares = {}
for by_backward in (False, True):
    for name, options in {"plain": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}.items():
        shares[by_backward, name] = share = share_against_the_gradient(by_backward, **options)[0]
        way = "backward()" if by_backward else "grad = torch.autograd.grad(...)"
        print(f"{way:32} {name:8} {share:.3f} of the weights move against their gradient")
wrong = shares.pop((False, "fused"))
sys.exit("the behaviour has changed" if wrong > 0.9 or min(shares.values()) < 0.999 else print("fused is wrong"))
CASE
"$folder/env/bin/python" -W ignore "$folder/case.py"
