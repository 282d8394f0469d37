"""The matrix's facts: which mechanism works with which subject.

The tests read them, and so does the page ``docs/composability.md``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .subjects import SUBJECTS

FORMS = ("eager", "fused")
Place = tuple[str, str]
"""A subject and a form of it."""


@dataclass(frozen=True)
class Refusal:
    """A clear error."""

    error: type[Exception]
    message: str


@dataclass(frozen=True)
class Mechanism:
    refused: dict[Place, Refusal] = field(default_factory=dict)
    """Where it is not listed it works."""
    absent: tuple[str, ...] = ()
    """Subjects that it means nothing to."""
    needs_gpu: bool = False
    """Whether only a GPU can show it."""
    note: str = ""


def refusing(subjects: Iterable[str], refusal: Refusal, forms: Iterable[str] = FORMS) -> dict[Place, Refusal]:
    return {(subject, form): refusal for subject in subjects for form in forms}


WITHOUT_PARAMETERS = ("geglu", "geglu, two tensors", "pixel_shuffle_add", "pixel_unshuffle")
OWN_FUSED_FORM = tuple(name for name in SUBJECTS if name != "SelfAttention")

NO_FORWARD_MODE = {
    **refusing(OWN_FUSED_FORM, Refusal(RuntimeError, r"forward-mode derivative.*use_backend\('eager'\)"), ["fused"]),
    # torch's own fused attention
    **refusing(["SelfAttention"], Refusal(NotImplementedError, "forward AD"), ["fused"]),
}

MATRIX: dict[str, Mechanism] = {
    "torch.compile": Mechanism(),
    "torch.compile, dynamic=True": Mechanism(),
    "torch.compile, mode='reduce-overhead'": Mechanism(needs_gpu=True),
    "CUDA graphs": Mechanism(needs_gpu=True),
    "streams": Mechanism(needs_gpu=True),
    "several GPUs": Mechanism(needs_gpu=True),
    "torch.export": Mechanism(),
    "torch.export, strict=True": Mechanism(),
    "torch.export, saved and loaded": Mechanism(),
    "DistributedDataParallel": Mechanism(absent=WITHOUT_PARAMETERS),
    "FSDP2 (fully_shard)": Mechanism(absent=WITHOUT_PARAMETERS),
    "torch.autocast": Mechanism(),
    "GradScaler": Mechanism(),
    "checkpointing, reentrant": Mechanism(),
    "checkpointing, non-reentrant": Mechanism(),
    "checkpointing, selective": Mechanism(),
    "torch.func.functional_call": Mechanism(),
    "torch.func.grad": Mechanism(),
    "torch.func.vjp, jacrev": Mechanism(),
    "torch.func.vmap": Mechanism(),
    "torch.func, per-sample gradients": Mechanism(),
    "torch.func.jvp": Mechanism(NO_FORWARD_MODE),
    "forward-mode AD": Mechanism(NO_FORWARD_MODE),
    "copy.deepcopy": Mechanism(),
    "pickle": Mechanism(),
    "torch.save of a module": Mechanism(),
    "torch.inference_mode": Mechanism(),
    "tensors made in inference mode, used after it": Mechanism(),
    "use_deterministic_algorithms": Mechanism(),
    "FakeTensorMode": Mechanism(),
    "meta device, to_empty": Mechanism(),
    "set_default_dtype": Mechanism(),
    "set_default_device": Mechanism(),
    "state_dict hooks": Mechanism(),
    "parametrize": Mechanism(),
    "gradients of a subset": Mechanism(),
    "channels_last": Mechanism(),
    "threads": Mechanism(),
    "backward in another thread": Mechanism(),
    "torch.jit.trace": Mechanism(),
}
