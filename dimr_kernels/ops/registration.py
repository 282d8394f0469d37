"""Moved to ``dimr_kernels.registration``; deleted once nothing imports it."""

from ..registration import *  # noqa: F403
from ..registration import Operator, define_gradient, define_op, refuse_double_backward  # noqa: F401
