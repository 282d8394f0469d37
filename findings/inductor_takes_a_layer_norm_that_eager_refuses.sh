#!/usr/bin/env bash
# Question:  does torch.compile refuse F.layer_norm of float32 x and a bfloat16 weight on a CPU, as eager does?
# Expected:  an error in both.
# Version:   torch 2.13.0
# Behaviour: eager and the "aot_eager" backend raise; Inductor computes, and returns float32. Meta tensors pass too.
# Seen:      eager RuntimeError, aot_eager RuntimeError, inductor torch.float32, meta torch.float32
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6
python - <<'EOF'
import torch

x, weight = torch.randn(4, 64), torch.rand(64).bfloat16()


def norm(x, weight):
    return torch.nn.functional.layer_norm(x, (64,), weight)


def outcome(function, *arguments):
    try:
        return str(function(*arguments).dtype)
    except RuntimeError as error:
        assert "mixed dtype" in str(error), error
        return "RuntimeError"


found = {
    "eager": outcome(norm, x, weight),
    "aot_eager": outcome(torch.compile(norm, backend="aot_eager"), x, weight),
    "inductor": outcome(torch.compile(norm), x, weight),
    "meta": outcome(norm, x.to("meta"), weight.to("meta")),
}
print(", ".join(f"{name} {value}" for name, value in found.items()))
assert found == {
    "eager": "RuntimeError", "aot_eager": "RuntimeError", "inductor": "torch.float32", "meta": "torch.float32"
}
exact = norm(x.double(), weight.double())
assert (torch.compile(norm)(x, weight) - exact).abs().max() < 1e-5  # and the values are right
EOF
