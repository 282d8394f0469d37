"""Report of measurements, a table and two plots: ``python -m benchmarks.report RUN.json [RUN2.json ...]``.

Reads what ``pytest benchmarks --benchmark-only --benchmark-json=RUN.json`` wrote, or the ``records.json`` of an earlier
report, and writes ``records.json``, ``report.md``, ``roofline.png`` and ``speed_up.png`` into
``benchmarks/results/<device>``. Where two files hold the same measurement, the later file's counts.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from dimr.utils import MissingPackageError, replacing

from .reporting import plots, records, tables
from .reporting.rows import as_rows

logger = logging.getLogger(__name__)

RESULTS = Path(__file__).parent / "results"


def slug(device: str) -> str:
    """``NVIDIA H100 80GB HBM3`` -> ``nvidia-h100-80gb-hbm3``, fit for a folder's name."""
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    if not name:
        raise records.RecordError(f"device {device!r} has no letter or digit to name a folder by")
    return name


def write_report(files: Sequence[Path], output: Path = RESULTS) -> Path:
    """Write the report into the folder of the measured device, and return the folder."""
    merged = records.merge([(path, records.read(path)) for path in files])
    rows = as_rows(merged)
    folder = output / slug(merged[0].device)
    texts = {"report.md": tables.report(rows), "records.json": records.as_json(merged)}
    plots.save_roofline(folder / "roofline.png", rows)
    plots.save_speed_ups(folder / "speed_up.png", rows)
    for name, text in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Turn benchmark records into a table and two plots.")
    parser.add_argument("files", nargs="+", type=Path, metavar="RUN.json", help="written by pytest --benchmark-json")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the device's folder is made in it")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        folder = write_report(options.files, options.output)
    except (records.RecordError, MissingPackageError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    logger.info("report written to %s", folder)


if __name__ == "__main__":
    main()
