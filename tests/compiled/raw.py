"""Kernels written as PTX, for what Triton does not emit on demand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .ptx.global_memory import Span
from .ptx.launch import Pointer, load, run
from .ptx.values import Approximation, Array

TEMPLATE = """
.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry raw({parameters}
)
.reqntid {threads}
{{
	.reg .pred 	%p<10>;
	.reg .b16 	%rs<10>;
	.reg .b32 	%r<{registers}>;
	.reg .b64 	%rd<10>;
	.loc	1 7 1
{loads}
{body}
	ret;
}}
	.file	1 "/somewhere/raw.py"
"""


def execute(
    body: str,
    *tensors: Array,
    threads: int = 32,
    blocks: int = 1,
    shared_bytes: int = 0,
    registers: int = 40,
    approximation: Approximation | None = None,
) -> None:
    """Run ``body`` with the addresses of ``tensors`` in %rd0, %rd1 and so on."""
    parameters = ",".join(f"\n\t.param .u64 .ptr .global .align 1 raw_param_{i}" for i in range(len(tensors)))
    loads = "\n".join(f"\tld.param.b64 \t%rd{i}, [raw_param_{i}];" for i in range(len(tensors)))
    text = TEMPLATE.format(parameters=parameters, threads=threads, loads=loads, body=body, registers=registers)
    spans = [span_of(f"tensor {i}", tensor) for i, tensor in enumerate(tensors)]
    pointers: Sequence[Pointer] = [Pointer(span.address) for span in spans]
    run(load(text), (blocks, 1, 1), pointers, shared_bytes, spans, approximation)


def span_of(name: str, tensor: Array) -> Span:
    strides = tuple(stride // tensor.itemsize for stride in tensor.strides)
    return Span(name, tensor.ctypes.data, tensor.shape, strides, tensor.itemsize)


def apply(instruction: str, *operands: Array, kind: str = "u32", exact: bool = True) -> Array:
    """Apply an instruction to operands: ``$0`` stands for the target, ``$1`` and so on for the operands.

    ``kind`` is the target's type. Operands of 16, 32 and 64 bits come from registers of that width.
    """
    count = len(operands[0])
    target = np.zeros(count, {"u16": np.uint16, "u32": np.uint32, "u64": np.uint64}[kind])
    prefix = {2: "%rs", 4: "%r", 8: "%rd"}
    lines = ["\tmov.u32 \t%r0, %tid.x;"]
    arguments = [_register(prefix, 0, target)]
    for i, tensor in enumerate((target, *operands)):
        lines += [f"\tmul.wide.u32 \t%rd9, %r0, {tensor.itemsize};", f"\tadd.s64 \t%rd{i}, %rd{i}, %rd9;"]
        if i:
            arguments.append(_register(prefix, i, tensor))
            lines.append(f"\tld.global.b{8 * tensor.itemsize} \t{arguments[i]}, [%rd{i}];")
    for i, name in enumerate(arguments):
        instruction = instruction.replace(f"${i}", name)
    lines += [f"\t{instruction}", f"\tst.global.b{8 * target.itemsize} \t[%rd0], {arguments[0]};"]
    bits = [np.ascontiguousarray(operand).view(f"u{operand.itemsize}") for operand in operands]
    threads = -(-count // 32) * 32
    padded = [np.resize(one, threads) for one in (target, *bits)]
    execute("\n".join(lines), *padded, threads=threads, approximation=Approximation(exact=exact))
    return padded[0][:count]


def _register(prefix: dict[int, str], i: int, tensor: Array) -> str:
    """Operands' 64-bit registers lie beside those that hold addresses."""
    return f"{prefix[tensor.itemsize]}{i + 4 if tensor.itemsize == 8 else i + 1}"
