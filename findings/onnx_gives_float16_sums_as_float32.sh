#!/usr/bin/env bash
# Question:  which dtype has the output of a float16 model that ends in a sum, after ONNX export?
# Expected:  float16, as in torch.
# Version:   torch 2.13.0, onnxscript 0.7.2, onnx 1.23.2, onnxruntime 1.32.0
# Behaviour: float32, and unrounded. The sum is computed in float32, and the cast back is left out where the sum is an
#            output; a sum that is used inside the model is cast. It is so of sum, prod and cumsum, of bfloat16 too.
# Seen:      float16 for x / x.sum(); float32 for x.sum(), x.prod() and x.cumsum(); float16 for x.mean()
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
python -W ignore - <<'EOF'
import onnxruntime
import torch


class Model(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


models = {
    "x.sum(1)": (lambda x: x.sum(1), "float32"),
    "x.prod(1)": (lambda x: x.prod(1), "float32"),
    "x.cumsum(1)": (lambda x: x.cumsum(1), "float32"),
    "x / x.sum(1)": (lambda x: x / x.sum(1, keepdim=True), "float16"),
    "x.mean(1)": (lambda x: x.mean(1), "float16"),
}
x = torch.rand(2, 8).half()
for name, (function, expected) in models.items():
    torch.onnx.export(Model(function), (x,), "x.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession("x.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    print(f"{name}: torch {function(x).dtype}, onnxruntime {found.dtype}")
    assert function(x).dtype == torch.float16 and found.dtype == expected
EOF
