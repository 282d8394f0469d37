"""Reading the listing of a kernel's machine code: widths of accesses, loops, instructions and their units.

Counts are of the code, not of a run: a rarely taken path counts like any other.
"""

from __future__ import annotations

import re
from collections import Counter

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
_LABEL = re.compile(r"\s*(\.L_\w+):")
_TARGET = re.compile(r"\bBRA\b.*?(\.L_\w+)")

LOADS = ("LDG", "LDGSTS")  # LDGSTS, cp.async in PTX, goes straight to shared memory
STORES = ("STG",)
BULK_LOADS = ("UTMALDG", "UBLKCP")
BULK_STORES = ("UTMASTG",)
BULK = "TMA"
"""In place of the width of a copy by the tensor memory accelerator."""

# Unit -> the instructions it runs, the common ones. The rest count for their issue alone.
UNITS = {
    "float32": {"FADD", "FFMA", "FMUL"},
    "integer": {"F2FP", "FMNMX", "FSEL", "FSETP", "IADD3", "IMNMX", "ISETP", "LEA", "LOP3", "PRMT", "SEL", "SHF"},
    "special": {"F2F", "F2I", "I2F", "MUFU"},
}


class Listing:
    """Output of ``nvdisasm -c`` or ``cuobjdump -sass`` for one kernel."""

    def __init__(self, text: str) -> None:
        self.instructions: list[str] = []
        """Instructions in order, with their suffixes, such as "LDG.E.128"."""
        labels: dict[str, int] = {}
        loops: list[tuple[int, int]] = []
        for line in text.splitlines():
            if label := _LABEL.match(line):
                labels[label.group(1)] = len(self.instructions)
            elif found := _INSTRUCTION.search(line):
                self.instructions.append(found.group(1))
                target = _TARGET.search(line) if found.group(1).startswith("BRA") else None
                if target is not None and target.group(1) in labels:
                    loops.append((labels[target.group(1)], len(self.instructions)))
        self._opcodes = [instruction.partition(".")[0] for instruction in self.instructions]
        # A branch to itself fills the end of the code.
        loops = [loop for loop in loops if loop[1] - loop[0] > 1]
        self.loops = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
        """Begin and end of those that hold no other."""

    @property
    def opcodes(self) -> dict[str, int]:
        """Count the instructions by their first word."""
        return dict(Counter(self._opcodes))

    def accesses(self, opcodes: tuple[str, ...], bulk: tuple[str, ...]) -> dict[str, int]:
        """Count accesses by their bytes (or ``BULK``)."""
        found: Counter[str] = Counter()
        for instruction, opcode in zip(self.instructions, self._opcodes, strict=True):
            if opcode in opcodes:
                found[str(_access_bytes(instruction))] += 1
            elif opcode in bulk:
                found[BULK] += 1
        return dict(found)

    def per_turn(self) -> dict[str, int]:
        """Count instructions, all and by unit, in one turn of the longest innermost loop."""
        begin, end = max(self.loops, key=lambda loop: loop[1] - loop[0], default=(0, 0))
        return _by_unit(Counter(self._opcodes[begin:end]))

    def per_program(self, turns: int) -> dict[str, int]:
        """Count instructions, all and by unit, of a program whose innermost loops take ``turns`` turns each."""
        exits = [i for i, opcode in enumerate(self._opcodes) if opcode == "EXIT"]
        end = exits[-1] + 1 if exits else len(self._opcodes)  # slow paths and padding follow
        counted = Counter(self._opcodes[:end])
        for begin, stop in self.loops:
            if stop <= end:
                for opcode, count in Counter(self._opcodes[begin:stop]).items():
                    counted[opcode] += (turns - 1) * count
        return _by_unit(counted)


def _by_unit(opcodes: Counter[str]) -> dict[str, int]:
    found = {"all": sum(opcodes.values())}
    for unit, names in UNITS.items():
        found[unit] = sum(opcodes[name] for name in names)
    return found


def _access_bytes(instruction: str) -> int:
    parts = instruction.split(".")
    for suffix, width in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1), ("16", 2), ("8", 1)):
        if suffix in parts:
            return width
    return 4
