"""Whether a forward computes the same graph in every call, so that one trace tells all about it.

A trace freezes what Python decides: branches, attributes, globals, numbers that are computed. A forward that has none
of these, seen in its bytecode and in the numbers of its graph, is a function of tensors and submodules alone.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterable, Iterator
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import fx, nn

_JUMPS = frozenset((*dis.hasjrel, *dis.hasjabs))
_STORES = frozenset(("STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "STORE_SUBSCR", "DELETE_SUBSCR"))
_UNKNOWN_ARGUMENTS = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
_BUILTINS = frozenset(("abs", "dict", "float", "int", "len", "list", "max", "min", "slice", "sum", "tuple"))
_FUNCTIONS_OF = frozenset(("torch", "torch._C", "torch._C._nn", "torch.functional", "torch.nn.functional", "_operator"))
_MODULES = frozenset(("torch", "torch.nn", "torch.nn.functional", "math", "operator"))
_TRACED_THROUGH = frozenset(("autograd", "compiler", "func", "jit", "utils"))
"""Parts of torch whose functions run their arguments, as checkpointing does; a trace would lose that."""


def why_not_pure(module: nn.Module) -> str | None:
    """What besides its arguments, tensors and submodules a module's forward may depend on."""
    if type(module) is nn.Sequential or type(module).forward is nn.Module.forward:
        return None
    problem = _why_not_pure(module)
    return None if problem is None else f"the forward of its {type(module).__name__} {problem}"


def _why_not_pure(module: nn.Module) -> str | None:
    if "forward" in vars(module):
        return "was replaced on the instance"
    forward: Any = type(module).forward
    code = getattr(forward, "__code__", None)
    if not isinstance(code, CodeType) or code.co_freevars:
        return "is no plain function"
    if code.co_flags & _UNKNOWN_ARGUMENTS:
        return "takes *args or **kwargs"
    instructions = list(dis.get_instructions(code))
    if any(instruction.opcode in _JUMPS for instruction in instructions):
        return "branches or loops"
    if any(instruction.opname in _STORES for instruction in instructions):
        return "sets an attribute or an item"
    if any(map(_is_in_place, instructions)):
        return "has an operator like +=, which a trace takes for one that is not in place"
    for name in code.co_names:
        if _is_state(module, name):
            return f"uses its {name!r}, which may change"
        if name in _TRACED_THROUGH or name.startswith(("is_", "get_")):
            return f"uses {name!r}, which a trace does not keep"
    for instruction in instructions:
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and not _is_pure(forward, instruction.argval):
            return f"uses {instruction.argval!r}, which is not torch's"
    return None


def _is_in_place(instruction: dis.Instruction) -> bool:
    """As Python 3.10 has it, and as later ones do."""
    return instruction.opname.startswith("INPLACE_") or (
        instruction.opname == "BINARY_OP" and instruction.argrepr.endswith("=")
    )


def _is_state(module: nn.Module, name: str) -> bool:
    """Of the instance, or of a class of its own; submodules and tensors are looked up in every call."""
    own = type(module).__mro__[: type(module).__mro__.index(nn.Module)]
    return name in vars(module) or any(name in vars(cls) for cls in own)


def _is_pure(forward: Any, name: str) -> bool:
    if name not in forward.__globals__:
        return name in _BUILTINS
    value = forward.__globals__[name]
    if isinstance(value, ModuleType):
        return value.__name__ in _MODULES
    return callable(value) and getattr(value, "__module__", None) in _FUNCTIONS_OF


def why_not_literal(graph: fx.Graph, modules: Iterable[nn.Module]) -> str | None:
    """Whether each number in a trace stands in the code of these modules, or was computed while tracing."""
    codes = [type(module).forward.__code__ for module in modules if hasattr(type(module).forward, "__code__")]
    constants = [repr(value) for code in codes for value in _flat(code.co_consts)]
    names = {name for code in codes for name in code.co_names}
    for node in graph.nodes:
        given = (node.args, tuple(value for name, value in node.kwargs.items() if not _is_default(node, name)))
        for value in _flat(given):
            if isinstance(value, fx.Node) or node.op == "output" or repr(value) in constants:
                continue
            if isinstance(value, (torch.dtype, torch.memory_format)) and repr(value).rpartition(".")[2] in names:
                continue
            return f"computes {value!r} while it is traced"
    return None


def _is_default(node: fx.Node, name: str) -> bool:
    """Torch's functions hand all of their arguments to a trace."""
    if node.op != "call_function" or not inspect.isfunction(node.target):
        return False
    parameter = inspect.signature(node.target).parameters.get(name)
    return parameter is not None and parameter.default is node.kwargs[name]


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, dict):
        yield from _flat(tuple(value.values()))
    elif isinstance(value, slice):
        yield from _flat((value.start, value.stop, value.step))
    else:
        yield value
