"""The CUDA kernels of the built extension, as compiled by nvcc, as rows of the static table."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dimr_kernels.dispatch import extension_status

from .architectures import ARCHITECTURES
from .compile import tool
from .listing import BULK_LOADS, BULK_STORES, LOADS, STORES, Listing

WARPS = 8
MODES = ("pixel_shuffle_add", "pixel_shuffle", "pixel_unshuffle")
TENSORS = (3, 2, 2)
# C++ type, as the compiler mangles it -> name in the table and bytes. Copies move bits, whatever they mean.
ELEMENTS = {
    "f": ("fp32", 4), "N3c104HalfE": ("fp16", 2), "N3c108BFloat16E": ("bf16", 2), "j": ("4 B", 4), "t": ("2 B", 2)
}  # fmt: skip
_ARCHITECTURE = re.compile(r"^arch = sm_(\d+)$", re.MULTILINE)
_KERNEL = re.compile(r"pixel_shuffle_kernelI(.+?)Li(\d+)ELi(\d+)ELb[01]E.*?ModeE(\d)E")


@dataclass(frozen=True)
class Instance:
    """One instance of the template."""

    element: str
    vector: int
    planes: int
    mode: int
    function: str

    @property
    def kind(self) -> tuple[int, str, bool, bool]:
        return self.mode, self.element, self.vector > 1, self.planes > 1


def extension_rows() -> tuple[list[dict[str, Any]], str | None]:
    """Return one row for each kind of kernel, or none and the reason."""
    status = extension_status()
    if not status.has_cuda:
        return [], f"The CUDA kernels of the pixel shuffle are not in this table: {status.reason}"
    spec = importlib.util.find_spec("dimr_kernels._C")
    library = Path(spec.origin)  # type: ignore[union-attr, arg-type]  # it was loaded
    usage, code = (_dump(library, flag) for flag in ("-res-usage", "-sass"))
    rows = []
    for architecture in ARCHITECTURES:
        if architecture not in usage or architecture not in code:
            return [], f"The extension holds no machine code for sm_{architecture}: its kernels are not in this table"
        rows += _rows(architecture, usage[architecture], code[architecture], f"nvcc {status.build['nvcc']}")
    return rows, None


def _dump(library: Path, flag: str) -> dict[int, str]:
    """Return cuobjdump's output by architecture."""
    text = subprocess.run([tool("cuobjdump"), flag, library], capture_output=True, text=True, check=True).stdout
    parts = _ARCHITECTURE.split(text)[1:]
    found: dict[int, str] = {}
    for architecture, part in zip(parts[::2], parts[1::2], strict=True):
        found[int(architecture)] = found.get(int(architecture), "") + part
    return found


def _rows(architecture: int, usage: str, code: str, compiler: str) -> Iterator[dict[str, Any]]:
    resources = {
        function: dict(re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", line))
        for function, line in re.findall(r"Function (\S+):\n\s+(.*)", usage)
    }
    listings = dict(re.findall(r"Function : (\S+)\n(.*?)(?=\n\s+Function : |\Z)", code, flags=re.DOTALL))
    kinds: dict[tuple[int, str, bool, bool], list[Instance]] = {}
    for function in resources:
        if found := _KERNEL.search(function):
            element, vector, planes, mode = found.groups()
            instance = Instance(element, int(vector), int(planes), int(mode), function)
            kinds.setdefault(instance.kind, []).append(instance)
    for (mode, element, wide, _), instances in kinds.items():
        # The instance with the most registers represents all. They differ in the width of the index, some in planes.
        largest = max(instances, key=lambda instance: int(resources[instance.function]["REG"]))
        use = {name: int(value) for name, value in resources[largest.function].items()}
        listing = Listing(listings[largest.function])
        name, size = ELEMENTS[element]
        outputs = largest.vector * largest.planes
        yield {
            "operator": "pixel_shuffle",
            "name": f"{MODES[mode]}[{name},{'16-byte' if wide else 'odd'},planes={largest.planes}]",
            "architecture": architecture,
            "num_warps": WARPS,
            "registers": use["REG"],
            "spill_bytes": max(_spilled(resources[i.function]) for i in instances),
            "shared_bytes": use["SHARED"],
            "loads": listing.accesses(LOADS, BULK_LOADS),
            "stores": listing.accesses(STORES, BULK_STORES),
            "per_output": {unit: round(count / outputs, 2) for unit, count in listing.per_program(1).items()},
            "bytes_per_output": TENSORS[mode] * size,
            "compiler": compiler,
            "summed_types": (),
        }


def _spilled(use: dict[str, str]) -> int:
    return int(use["STACK"]) + int(use["LOCAL"])
