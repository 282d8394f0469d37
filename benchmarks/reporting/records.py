"""Records of measurements: reading, checking and merging files."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

DIRECTIONS = ("forward", "backward", "input_gradient", "weight_gradient", "forward_backward")
SCOPES = ("target", "large", "sweep")
OURS = "fused"

TEXT = ("operator", "implementation", "shape", "dtype", "device", "architecture", "torch", "python")
TEXT_OR_ABSENT = ("triton", "cuda", "kernel_timing", "note")
CHOICES = {"direction": DIRECTIONS, "scope": SCOPES}
COUNTS = ("batch", "width", "bytes")
POSITIVE = ("wall_us", "host_us", "gigabytes_per_second", "fraction_of_copy", "copy_gigabytes_per_second")
POSITIVE_OR_ABSENT = ("kernel_us", "matmul_teraflops_ceiling", "multiply_add_teraflops_ceiling")
NOT_NEGATIVE = ("flops",)
NOT_NEGATIVE_OR_ABSENT = ("peak_memory_bytes", "relative_error_float64")
# Only the benchmarks of the whole model record this; their figures are of no operator.
WHOLE_MODEL = "giga_macs_per_row"


class RecordError(ValueError):
    """The file is not a set of measurements of one device; the message names the file and the problem."""


@dataclass(frozen=True)
class Record:
    """One operator, one direction, one shape, in one implementation. ``None``: not measured there."""

    operator: str
    direction: str
    implementation: str
    shape: str
    batch: int
    width: int
    scope: str
    dtype: str
    bytes: int
    flops: float
    wall_us: float
    host_us: float
    gigabytes_per_second: float
    fraction_of_copy: float
    copy_gigabytes_per_second: float
    device: str
    architecture: str
    torch: str
    python: str
    triton: str | None = None
    cuda: str | None = None
    kernel_us: float | None = None
    kernel_timing: str | None = None
    """Source of ``kernel_us``: "cuda graph", or the reason that it is another."""
    matmul_teraflops_ceiling: float | None = None
    """TFLOP/s of a large product in the same run, where products are what takes the time."""
    multiply_add_teraflops_ceiling: float | None = None
    """TFLOP/s of multiply-adds in registers in the same run, on a CPU, where operations were counted."""
    peak_memory_bytes: int | None = None
    relative_error_float64: float | None = None
    note: str | None = None
    """Caveat for readers of the figures."""

    @property
    def on_cpu(self) -> bool:
        return self.architecture == "cpu"

    @property
    def microseconds(self) -> float | None:
        """Return the time that comparisons use: of the kernels alone on a GPU, of the whole call on a CPU."""
        return self.wall_us if self.on_cpu else self.kernel_us

    @property
    def fraction_of_roofline(self) -> float:
        """Return the fraction of the copy bandwidth, or of the arithmetic's ceiling if that is nearer."""
        return max(self.fraction_of_copy, self.fraction_of_arithmetic or 0.0)

    @property
    def fraction_of_arithmetic(self) -> float | None:
        """Return the fraction of multiply-adds' speed on a CPU, of a large product's on a GPU, if it was measured."""
        ceiling = self.multiply_add_teraflops_ceiling or self.matmul_teraflops_ceiling
        if not (ceiling and self.flops and self.microseconds):
            return None
        return self.flops / self.microseconds / 1e6 / ceiling

    @property
    def measurement(self) -> tuple[str, ...]:
        """Return the identity of the measurement: records with equal keys measure the same thing twice."""
        return self.operator, self.direction, self.shape, self.dtype, self.implementation


def read(path: Path) -> list[Record]:
    """Read the operators' records from the JSON of pytest-benchmark, or from a report's ``records.json``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: not JSON: {error}") from None
    entries = _entries(path, content)
    records = [parse(values, where) for where, values in entries if WHOLE_MODEL not in values]
    if len(records) < len(entries):
        logger.info("%s: %d measurements of whole models left out", path, len(entries) - len(records))
    return records


def _entries(path: Path, content: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the position of each record, in words, and its values."""
    if not isinstance(content, dict) or not ("benchmarks" in content or "records" in content):
        raise RecordError(f"{path}: key 'benchmarks' is missing: want the file that --benchmark-json=FILE writes")
    from_pytest = "benchmarks" in content
    key = "benchmarks" if from_pytest else "records"
    items = content[key]
    if not isinstance(items, list):
        raise RecordError(f"{path}: key '{key}': found {type(items).__name__}, want a list")
    entries = []
    for i, item in enumerate(items):
        values = item.get("extra_info") if from_pytest and isinstance(item, dict) else item
        where = f"{path}: {item.get('name', f'number {i}') if isinstance(item, dict) else f'number {i}'}"
        if not isinstance(values, dict):
            raise RecordError(f"{where}: key 'extra_info': found {type(values).__name__}, want an object")
        entries.append((where, values))
    return entries


def parse(values: dict[str, Any], where: str) -> Record:
    """Parse a record; an error begins with ``where`` and names the key."""
    for key in (*TEXT, *CHOICES, *COUNTS, *POSITIVE, *NOT_NEGATIVE):
        if values.get(key) is None:
            raise RecordError(f"{where}: key '{key}' is missing")
    for key in (*TEXT, *TEXT_OR_ABSENT):
        if values.get(key) is not None and not (isinstance(values[key], str) and values[key].strip()):
            raise RecordError(f"{where}: key '{key}': found {values[key]!r}, want text")
    for key, choices in CHOICES.items():
        if values[key] not in choices:
            raise RecordError(f"{where}: key '{key}': found {values[key]!r}, want one of {', '.join(choices)}")
    for key in (*COUNTS, *POSITIVE, *POSITIVE_OR_ABSENT):
        if values.get(key) is not None and not (_is_number(values[key]) and values[key] > 0):
            raise RecordError(f"{where}: key '{key}': found {values[key]!r}, want a number above 0")
    for key in (*NOT_NEGATIVE, *NOT_NEGATIVE_OR_ABSENT):
        if values.get(key) is not None and not (_is_number(values[key]) and values[key] >= 0):
            raise RecordError(f"{where}: key '{key}': found {values[key]!r}, want a number from 0")
    known: dict[str, Any] = {field.name: values.get(field.name) for field in fields(Record)}
    return Record(**known | {"dtype": values["dtype"].removeprefix("torch.")})


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def merge(files: Sequence[tuple[Path, list[Record]]]) -> list[Record]:
    """Merge all files' records of one device. Of a repeated measurement the later file's counts."""
    measured = [(path, record) for path, records in files for record in records]
    if not measured:
        raise RecordError(f"{', '.join(str(path) for path, _ in files)}: no measurement of an operator")
    _check_one_device(measured)
    merged: dict[tuple[str, ...], tuple[Path, Record]] = {}
    for path, record in measured:
        key = record.measurement
        if key in merged:
            logger.warning("%s: %s replaces what %s has", path, ", ".join(key), merged[key][0])
        merged[key] = path, record
    return [record for _, record in merged.values()]


def _check_one_device(measured: Sequence[tuple[Path, Record]]) -> None:
    first_path, first = measured[0]
    for path, record in measured:
        for key in ("device", "architecture"):
            if getattr(record, key) != getattr(first, key):
                raise RecordError(
                    f"{path}: key '{key}': found {getattr(record, key)!r}, but {first_path} has "
                    f"{getattr(first, key)!r}: a report is of one device"
                )


def as_json(records: Iterable[Record]) -> str:
    """Format one record per line, sorted, so that two runs can be compared line by line."""
    ordered = sorted(records, key=lambda record: record.measurement)
    lines = [json.dumps({k: v for k, v in asdict(r).items() if v is not None}, allow_nan=False) for r in ordered]
    return '{"records": [\n' + ",\n".join(lines) + "\n]}\n"
