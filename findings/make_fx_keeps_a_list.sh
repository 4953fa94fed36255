#!/usr/bin/env bash
# torch's make_fx keeps the numbers of `tolist()` in the graph, where it refuses `item()`; and one tensor given twice is
# one input.
#
# Version    torch 2.14.1, Python 3.11, CPU.
# Statement  make_fx(lambda x: x - max(x.tolist()))(x), and make_fx(lambda a, b: a - b)(x, x), in the default mode "real",
#            then called with other tensors of the same shape.
# Expected   the first is refused, as with x.max().item(); the second has two inputs.
# Seen       of [4, 5, 6] the first gives [1, 2, 3], which is minus the maximum of the tensor it was traced with, and no
#            word; item() raises a RuntimeError. The second gives [0, 0, 0] for [4, 5, 6] and zeros: a - a, or b - b.
# Why        tolist() and numpy() read memory and are no operation that a tracer sees; and the inputs' nodes are kept
#            by the tensor, so that the later argument takes the place of the earlier one.
# Exit       0 while this is so, 1 if the behaviour changes. Run: bash findings/make_fx_keeps_a_list.sh (2 to 4 minutes)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet "torch==2.14.1" numpy
cat > "$folder/case.py" <<'CASE'
import torch
from torch.fx.experimental.proxy_tensor import make_fx

traced, other = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])
of_list = make_fx(lambda x: x - max(x.tolist()))(traced)(other)
try:
    make_fx(lambda x: x - x.max().item())(traced)
    refused = False
except RuntimeError:
    refused = True
of_two = make_fx(lambda a, b: a - b)(traced, traced)(other, torch.zeros(3))
print(f"tolist() {of_list.tolist()}, item() refused: {refused}, one tensor twice {of_two.tolist()}")
same = of_list.tolist() == [1.0, 2.0, 3.0] and refused and of_two.tolist() == [0.0, 0.0, 0.0]
raise SystemExit(0 if same else 1)
CASE
"$folder/env/bin/python" "$folder/case.py"
