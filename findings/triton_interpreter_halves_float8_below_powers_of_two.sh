#!/usr/bin/env bash
# Question:  does Triton's interpreter convert float32 to float8e4nv as torch's float8_e4m3fn?
# Expected:  yes, in the range of the type at least.
# Version:   Triton 3.9.0, torch 2.13.0
# Behaviour: a number that rounds up to a power of two comes out as half of it: the carry into the exponent is lost.
#            Subnormal numbers are cut instead of rounded, numbers above 448 wrap to small ones, and NaN is read as 480.
# Seen:      1.98 -> 1 (torch: 2), 0.49 -> 0.25 (0.5), 500 -> 256 (448); NaN read as 480; 3.3 and -448 as torch
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 triton==3.9.0
cat > kernel.py <<'EOF'
import torch
import triton
import triton.language as tl


@triton.jit
def convert(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, tl.load(x + i).to(tl.float8e4nv).to(tl.float32))


@triton.jit
def read(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, tl.load(x + i).to(tl.float32))


values = torch.tensor([3.3, -448.0, 1.98, 0.49, 500.0, 0.0018, 1.0, 2.0])
found, expected = torch.zeros(8), values.to(torch.float8_e4m3fn).float()
convert[(1,)](values, found, 8)
for row in zip(values.tolist(), found.tolist(), expected.tolist(), strict=True):
    print("{:.4g}: interpreter {}, torch {}".format(*row))
assert found.tolist() == [3.25, -448, 1, 0.25, 256, 0, 1, 2]
assert expected.tolist() == [3.25, -448, 2, 0.5, 448, 2**-9, 1, 2]
nan = torch.full((2,), float("nan")).to(torch.float8_e4m3fn)
read[(1,)](nan, found, 2)
print(f"NaN read as {found[0].item()}")
assert nan.isnan().all() and found[0] == 480
EOF
export TRITON_INTERPRET=1
python kernel.py
