"""Types of command-line arguments: each turns text into a value or says what was wanted."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any


def _parsed(text: str, kind: Callable[[str], Any], fits: Callable[[Any], bool], wanted: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"wanted {wanted}, got {text!r}")
    return value


def positive_int(text: str) -> int:
    return _parsed(text, int, lambda n: n >= 1, "a whole number of at least 1")


def count(text: str) -> int:
    return _parsed(text, int, lambda n: n >= 0, "a whole number of at least 0")


def multiple_of_8(text: str) -> int:
    return _parsed(text, int, lambda n: n >= 8 and n % 8 == 0, "a multiple of 8")


def seed(text: str) -> int:
    return _parsed(text, int, lambda n: 0 <= n < 2**63, "a whole number from 0 to 2^63 - 1")


def non_negative_float(text: str) -> float:
    return _parsed(text, float, lambda x: 0 <= x < math.inf, "a finite number of at least 0")


def positive_float(text: str) -> float:
    return _parsed(text, float, lambda x: 0 < x < math.inf, "a finite number above 0")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the GPU if there is one)")
