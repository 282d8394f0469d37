#!/usr/bin/env bash
# Question:  what comes of a query whose mask is False everywhere, after torch.onnx.export?
# Expected:  zeros, as F.scaled_dot_product_attention gives.
# Version:   torch 2.13.0, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.32.0
# Behaviour: with the default opset (20) the mean of all values, those of other rows' masks too; zeros with opset 23,
#            where attention is one operator.
# Seen:      opset 20: the mean; opset 23: zeros
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
python -W ignore - <<'EOF'
import numpy as np
import onnxruntime
import torch


class Attention(torch.nn.Module):
    def forward(self, q, k, v, mask):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


q, k, v = torch.randn(3, 1, 1, 4, 8)
mask = torch.ones(4, 4, dtype=torch.bool)
mask[1] = False  # the second query attends to nothing
expected = Attention()(q, k, v, mask)
assert (expected[0, 0, 1] == 0).all()


def run(opset):
    program = torch.onnx.export(Attention(), (q, k, v, mask), dynamo=True, verbose=False, opset_version=opset)
    program.save("x.onnx")
    session = onnxruntime.InferenceSession("x.onnx")
    inputs = {i.name: tensor.numpy() for i, tensor in zip(session.get_inputs(), (q, k, v, mask), strict=True)}
    found = session.run(None, inputs)[0][0, 0]
    assert np.allclose(np.delete(found, 1, 0), np.delete(expected[0, 0].numpy(), 1, 0), atol=1e-5)
    return found[1], program.model_proto.opset_import[0].version


by_default, opset = run(None)
assert opset == 20 and np.allclose(by_default, v[0, 0].mean(0).numpy(), atol=1e-5)
assert (run(23)[0] == 0).all()
print("opset 20: the mean; opset 23: zeros")
EOF
