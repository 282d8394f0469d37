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

ONE_LAUNCH_EACH = "A fused operator is launched once for every entry of the batch."
ON_GPU = Mechanism(needs_gpu=True)
ON_GLOO = Mechanism(absent=WITHOUT_PARAMETERS, note="Tested on CPUs over gloo, in one process and in two.")

MATRIX: dict[str, Mechanism] = {
    "torch.autocast": Mechanism(note="float16 and bfloat16."),
    "GradScaler": Mechanism(),
    "torch.compile": Mechanism(note="In one graph (`fullgraph=True`), with gradients."),
    "torch.compile, dynamic=True": Mechanism(note="One graph for every batch size."),
    "torch.compile, mode='reduce-overhead'": ON_GPU,
    "CUDA graphs": ON_GPU,
    "streams": ON_GPU,
    "several GPUs": ON_GPU,
    "torch.export": Mechanism(note="With any batch size; a NaN in `t` is not looked for in an exported program."),
    "torch.export, strict=True": Mechanism(),
    "torch.export, saved and loaded": Mechanism(
        note="A program that holds fused operators needs `import dimr_kernels` before it is loaded."
    ),
    "torch.jit.trace": Mechanism(),
    "checkpointing, reentrant": Mechanism(),
    "checkpointing, non-reentrant": Mechanism(
        note="The forward is computed again where the backward runs, on a GPU in a thread of torch's own: "
        "`use_backend` and `time_conditioning` belong inside the checkpointed function."
    ),
    "checkpointing, selective": Mechanism(note="Policies see the operators as `dimr_kernels::...`."),
    "DistributedDataParallel": ON_GLOO,
    "FSDP2 (fully_shard)": ON_GLOO,
    "torch.func.functional_call": Mechanism(),
    "torch.func.grad": Mechanism(note="Under `torch.compile` fused operators leave the graph for it."),
    "torch.func.vjp, jacrev": Mechanism(),
    "torch.func.vmap": Mechanism(note=ONE_LAUNCH_EACH),
    "torch.func, per-sample gradients": Mechanism(note=ONE_LAUNCH_EACH),
    "torch.func.jvp": Mechanism(NO_FORWARD_MODE),
    "forward-mode AD": Mechanism(NO_FORWARD_MODE, note="With and without `torch.no_grad`, which keeps tangents."),
    "gradients of a subset": Mechanism(),
    "threads": Mechanism(),
    "backward in another thread": Mechanism(),
    "torch.inference_mode": Mechanism(),
    "tensors made in inference mode, used after it": Mechanism(),
    "use_deterministic_algorithms": Mechanism(note="The same bits twice."),
    "set_default_dtype": Mechanism(),
    "set_default_device": Mechanism(),
    "FakeTensorMode": Mechanism(note="Shapes, dtypes and strides of outputs and gradients."),
    "meta device, to_empty": Mechanism(),
    "channels_last": Mechanism(),
    "copy.deepcopy": Mechanism(),
    "pickle": Mechanism(),
    "torch.save of a module": Mechanism(note="Read with `weights_only=False`."),
    "state_dict hooks": Mechanism(),
    "parametrize": Mechanism(),
}
