"""Functions that build the actions of opcodes."""

from __future__ import annotations

from collections.abc import Callable

from ..machine import Action, Code
from ..parsing import Instruction, Program

Builder = Callable[[Instruction], Action]
_builders: dict[str, Builder] = {}


def instruction(*opcodes: str) -> Callable[[Builder], Builder]:
    """The decorated function reads an instruction's form, once, and returns what runs it, every time."""

    def register(builder: Builder) -> Builder:
        for opcode in opcodes:
            _builders[opcode] = builder
        return builder

    return register


def build(program: Program) -> Code:
    """Raises :class:`Unsupported` for a form that is not implemented."""
    return Code(program, [_action(one) for one in program.instructions])


def _action(one: Instruction) -> Action:
    if one.opcode in ("bra", "ret", "exit"):  # the machine's own
        one.require({"uni"})
        return _nothing
    builder = _builders.get(one.opcode)
    if builder is None:
        raise one.unsupported()
    return builder(one)


def _nothing(machine: object, mask: object) -> None:
    pass
