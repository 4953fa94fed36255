#!/usr/bin/env bash
# torch.set_flush_denormal(True) acts on one thread: of one tensor, a part is flushed and another part is not.
#
# Version    torch 2.14.1 (TORCH=2.14.1), Python 3.11, CPU of x86 with two cores or more.
# Statement  The documentation says that the switch disables denormal floating numbers on CPU. It is set after torch has
#            multiplied a large tensor once; then 4 million numbers of 1e-40 are multiplied by 0.9, by two threads.
# Guess      (before the run) all products are 0, whatever thread computes them.
# Seen       half of the products are 0, the other half 9e-41. With one thread, or if the switch is set before torch's
#            first parallel operation of the process, all are 0. If it is set first and then unset, half of them are 0.
# Hurts      whoever sets it for speed: the threads that torch has started stay slow. And a result depends on which
#            thread computed an element.
# Exit       0 while this is so, 1 if the behaviour changes. Run: bash findings/flush_denormal_is_of_a_thread.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet "torch==${TORCH:-2.14.1}" numpy
cat > "$folder/case.py" <<'CASE'
import sys

import numpy as np
import torch

order, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
subnormal = torch.from_numpy(np.full(4_000_000, 1e-40, dtype=np.float32))


def share_of_zeros():
    return ((subnormal * 0.9).view(torch.int32) == 0).float().mean().item()  # compared as whole numbers


if order == "later":
    share_of_zeros()  # torch starts its threads
if not torch.set_flush_denormal(True):
    sys.exit("this CPU has no such switch")
if order == "unset":
    share_of_zeros()
    torch.set_flush_denormal(False)
print(f"{share_of_zeros():.2f}")
CASE
run() { "$folder/env/bin/python" -W ignore "$folder/case.py" "$@"; }
later=$(run later 2) first=$(run first 2) unset=$(run unset 2) alone=$(run later 1)
echo "share of zeros: set later, 2 threads $later; set first, 2 threads $first; set first, then unset $unset; 1 thread $alone"
[ "$later $first $unset $alone" = "0.50 1.00 0.50 1.00" ] || { echo "the behaviour has changed"; exit 1; }
