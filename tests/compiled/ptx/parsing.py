"""PTX text to instructions with decoded operands.

Covers what Triton and its inline assembly emit: one kernel a file, registers declared by ranges, no functions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from .faults import Unsupported

LABEL = re.compile(r"^(\$?[A-Za-z_][\w$]*):")
STATEMENT = re.compile(r"^(?:@(!?)(%?\w+)\s+)?([A-Za-z][\w.:]*)\s*(.*)$", re.DOTALL)
LOCATION = re.compile(r"^\.loc\s+(\d+)\s+(\d+)\s+\d+(?:.*inlined_at\s+(\d+)\s+(\d+))?")
FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', re.MULTILINE)
REGISTERS = re.compile(r"^\.reg\s+\.(\w+)\s+(.*?);?$")
PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\b[^,()]*?([\w$]+)\s*(?:,|\n\s*\)|\))")
SPECIAL = re.compile(r"^%(tid|ntid|ctaid|nctaid)\.([xyz])$|^%(laneid)$")
INTEGER = re.compile(r"^-?(?:0[xX][0-9a-fA-F]+|\d+)U?$")
WIDTHS = {"pred": 1, "b8": 8, "b16": 16, "b32": 32, "b64": 64, "u16": 16, "u32": 32, "u64": 64, "s16": 16, "s32": 32}
WIDTHS |= {"s64": 64, "f16": 16, "f32": 32, "f64": 64}


@dataclass(frozen=True)
class Register:
    index: int
    width: int
    """Bits; 1 for a predicate."""


@dataclass(frozen=True)
class Number:
    bits: np.uint64
    float_width: int = 0
    """32 or 64 where the text gave the bits of a float (0f..., 0d...)."""


@dataclass(frozen=True)
class Special:
    name: str
    axis: int = 0


@dataclass(frozen=True)
class Symbol:
    """A label, a parameter, or a variable in shared memory."""

    name: str


@dataclass(frozen=True)
class Address:
    base: Register | Symbol | Number
    offset: int


@dataclass(frozen=True)
class Group:
    """``{a, b}``, or the two targets of ``p|q``."""

    members: tuple[Operand, ...]


@dataclass(frozen=True)
class Unused:
    """``_``: a target nobody reads."""


Operand = Register | Number | Special | Symbol | Address | Group | Unused


@dataclass(frozen=True)
class Location:
    """A line of the source, and the line that called it where it was inlined."""

    file: str
    line: int
    caller: Location | None = None

    def __str__(self) -> str:
        own = f"{self.file}:{self.line}"
        return own if self.caller is None else f"{own}, called at {self.caller}"


@dataclass
class Instruction:
    line: int
    """In the PTX text, from 1."""
    text: str
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | None = None
    guard_negated: bool = False
    location: Location | None = None

    @property
    def kind(self) -> str:
        """The type it works on."""
        return self.modifiers[-1]

    def unsupported(self) -> Unsupported:
        return Unsupported(f"PTX line {self.line}: {self.text}")

    def require(self, known: set[str] | frozenset[str]) -> None:
        """Refuse a modifier whose meaning is not implemented."""
        if not set(self.modifiers) <= known:
            raise self.unsupported()


@dataclass
class Program:
    name: str
    threads: int
    """Per block."""
    parameters: list[tuple[str, str]]
    """Name and type."""
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    """Label -> index of the instruction behind it."""
    widths: list[int] = field(default_factory=list)
    """Width of every register, in bits."""
    text: str = ""

    @property
    def opcodes(self) -> set[str]:
        return {instruction.opcode for instruction in self.instructions}


def parse(text: str) -> Program:
    """Read the one kernel in ``text``."""
    return _Parser(text).program


class _Parser:
    def __init__(self, text: str) -> None:
        entry = re.search(r"\.entry\s+([\w$]+)", text)
        threads = re.search(r"\.reqntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", text)
        if entry is None or threads is None:
            raise Unsupported("PTX without .entry or .reqntid")
        if text.count(".entry") > 1 or ".func" in text:
            raise Unsupported("PTX with several kernels or with functions")
        start = text.index("{", threads.end())
        parameters = [(m[2], m[1]) for m in PARAMETER.finditer(text[entry.end() : threads.start()])]
        size = int(np.prod([int(n) for n in threads.groups() if n]))
        self.program = Program(entry[1], size, parameters, text=text)
        self._files = {number: path.rsplit("/", 1)[-1] for number, path in FILE.findall(text)}
        self._scopes: list[dict[str, Register]] = [{}]
        self._operands: dict[str, Operand] = {}
        self._location: Location | None = None
        self._read_body(text[start + 1 :], text.count("\n", 0, start) + 1)

    def _read_body(self, body: str, first_line: int) -> None:
        inline = False
        pending, pending_line = "", 0
        for number, raw in enumerate(body.split("\n"), first_line):
            if "inline asm" in raw:
                inline = "begin inline asm" in raw
            line = raw.partition("//")[0].strip()
            if not line:
                continue
            if line.startswith(".loc"):
                # LLVM counts the lines of inline assembly as lines of the source: only the one before it is right.
                if not inline:
                    self._location = self._read_location(line)
                continue
            if label := LABEL.match(line):
                self.program.labels[label[1]] = len(self.program.instructions)
                line = line[label.end() :].strip()
                if not line:
                    continue
            if not pending and line == "}":
                if len(self._scopes) == 1:
                    return
                self._leave_scope()
                continue
            if not pending and line == "{":
                self._scopes.append({})
                continue
            pending_line = pending_line if pending else number
            pending = f"{pending} {line}" if pending else line
            *done, pending = pending.split(";")
            pending = pending.strip()
            for statement in done:
                self._read_statement(statement.strip(), pending_line)
        raise Unsupported("PTX that ends within the kernel")

    def _leave_scope(self) -> None:
        self._scopes.pop()
        self._operands.clear()

    def _read_location(self, line: str) -> Location | None:
        found = LOCATION.match(line)
        if found is None:
            return None
        file, number, caller_file, caller_number = found.groups()
        caller = Location(self._files.get(caller_file, "?"), int(caller_number)) if caller_file else None
        return Location(self._files.get(file, "?"), int(number), caller)

    def _read_statement(self, statement: str, line: int) -> None:
        while statement.startswith("{") or statement.startswith("}"):  # a scope within one line of inline assembly
            if statement[0] == "{":
                self._scopes.append({})
            else:
                self._leave_scope()
            statement = statement[1:].strip()
        if not statement:
            return
        if statement.startswith(".reg"):
            self._declare(statement)
            return
        if statement.startswith("."):
            if statement.startswith(".pragma"):
                return
            raise Unsupported(f"PTX line {line}: {statement}")
        found = STATEMENT.match(statement)
        if found is None:
            raise Unsupported(f"PTX line {line}: {statement}")
        negated, guard, words, arguments = found.groups()
        opcode, *modifiers = words.replace("::", "__").split(".")
        self.program.instructions.append(
            Instruction(
                line,
                " ".join(statement.split()),
                opcode,
                tuple(modifier.replace("__", "::") for modifier in modifiers),
                tuple(self._operand(argument) for argument in _split(arguments)),
                self._register(guard) if guard else None,
                negated == "!",
                self._location,
            )
        )

    def _declare(self, statement: str) -> None:
        found = REGISTERS.match(statement)
        if found is None or found[1] not in WIDTHS:
            raise Unsupported(statement)
        for name in found[2].split(","):
            name = name.strip()
            if many := re.match(r"^(%?\w+)<(\d+)>$", name):
                for i in range(int(many[2])):
                    self._declare_one(f"{many[1]}{i}", WIDTHS[found[1]])
            else:
                self._declare_one(name, WIDTHS[found[1]])
        self._operands.clear()

    def _declare_one(self, name: str, width: int) -> None:
        self._scopes[-1][name] = Register(len(self.program.widths), width)
        self.program.widths.append(width)

    def _register(self, name: str) -> Register:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        raise Unsupported(f"register {name} was not declared")

    def _operand(self, text: str) -> Operand:
        known = self._operands.get(text)
        if known is None:
            known = self._operands[text] = self._read_operand(text)
        return known

    def _read_operand(self, text: str) -> Operand:
        if text == "_":
            return Unused()
        if text[0] == "{":
            return Group(tuple(self._operand(member) for member in _split(text[1:-1])))
        if text[0] == "[":
            base, sign, offset = re.fullmatch(r"\[\s*([^\s+\-]+)\s*([+-]?)\s*(-?\w*)\s*\]", text).groups()  # type: ignore[union-attr]
            return Address(self._operand(base), int(sign + (offset or "0"), 0) if offset else 0)  # type: ignore[arg-type]
        if "|" in text:
            return Group(tuple(self._operand(member.strip()) for member in text.split("|")))
        if text.startswith("0f"):
            return Number(np.uint64(int(text[2:], 16)), 32)
        if text.startswith("0d"):
            return Number(np.uint64(int(text[2:], 16)), 64)
        if INTEGER.match(text):
            return Number(np.uint64(int(text.rstrip("U"), 0) & 0xFFFFFFFFFFFFFFFF))
        if special := SPECIAL.match(text):
            return Special(special[1] or special[3], "xyz".index(special[2] or "x"))
        if any(text in scope for scope in self._scopes):
            return self._register(text)
        if text.startswith("%") or text.startswith("!"):
            raise Unsupported(f"operand {text}")
        return Symbol(text)


def _split(text: str) -> list[str]:
    """At the commas outside of all brackets."""
    if "{" not in text and "[" not in text:
        return [part for part in (piece.strip() for piece in text.split(",")) if part]
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part]
