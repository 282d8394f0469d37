"""The mechanisms of torch, each with the subjects and forms that it is tested with, and where it is refused.

The tests read them, and so does the page ``docs/composability.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .subjects import SUBJECTS

FORMS = ("eager", "fused", "cpp")
FUSED = ("fused", "cpp")
"""Fused: Triton's form, or the only one; cpp: the C++ form beside Triton's."""
ALL = tuple(SUBJECTS)
MODULES = tuple(name for name, subject in SUBJECTS.items() if any(True for _ in subject.module().parameters()))
"""Subjects with parameters."""
IMAGES = tuple(name for name, subject in SUBJECTS.items() if any(x.dim() == 4 for x in subject.inputs()))


@dataclass(frozen=True)
class Refusal:
    """A refusal with a clear error."""

    error: type[Exception]
    message: str


@dataclass(frozen=True)
class Mechanism:
    """A mechanism that works with its subjects in its forms, except where it is refused.

    ``forms``: the fused one alone where the mechanism acts on parameters or gradients and does not see operators.
    """

    subjects: tuple[str, ...] = ALL
    forms: tuple[str, ...] = FORMS
    refused: dict[tuple[str, str], Refusal] = field(default_factory=dict)
    needs_gpu: bool = False
    note: str = ""

    def places(self) -> Iterator[tuple[str, str]]:
        """Yield every subject and form that is tested."""
        pairs = ((subject, form) for subject in self.subjects for form in self.forms)
        return (pair for pair in pairs if pair[1] != "cpp" or SUBJECTS[pair[0]].has_cpp)


def _fused(subjects: Iterable[str], refusal: Refusal) -> dict[tuple[str, str], Refusal]:
    return {(subject, form): refusal for subject in subjects for form in FUSED}


NO_FORWARD_MODE = {
    **_fused(ALL, Refusal(RuntimeError, r"forward-mode derivative.*use_backend\('eager'\)")),
    **_fused(["SelfAttention"], Refusal(NotImplementedError, "forward AD")),  # torch's own fused attention
}
EAGER_ONLY = 'the eager form alone; compute that part under `use_backend("eager")`'
ONE_LAUNCH_EACH = "a fused operator is launched once for every entry of the batch"
OF_MODULES = Mechanism(MODULES, FUSED)
ON_GPU = Mechanism(needs_gpu=True)
ON_GLOO = Mechanism(MODULES, FUSED, note="tested on CPUs over gloo, in one process and in two")

MATRIX: dict[str, Mechanism] = {
    "torch.autocast": Mechanism(note="float16 and bfloat16"),
    "GradScaler": Mechanism(forms=FUSED),
    "torch.compile, dynamic=True": Mechanism(note="one graph for every batch size"),
    "torch.compile, mode='reduce-overhead'": ON_GPU,
    "CUDA graphs": ON_GPU,
    "streams": ON_GPU,
    "several GPUs": ON_GPU,
    "torch.export": Mechanism(note="with any batch size; a NaN in `t` is not looked for in an exported program"),
    "torch.export, strict=True": Mechanism(),
    "torch.export, saved and loaded": Mechanism(
        forms=FUSED, note="a program that holds fused operators needs `import dimr_kernels` before it is loaded"
    ),
    "torch.jit.trace": Mechanism(),
    "checkpointing, reentrant": Mechanism(),
    "checkpointing, non-reentrant": Mechanism(
        note="the forward is computed again where the backward runs, on a GPU in a thread of torch's own: "
        "`use_backend` and `time_conditioning` belong inside the checkpointed function"
    ),
    "checkpointing, selective": Mechanism(forms=FUSED, note="policies see the operators as `dimr_kernels::...`"),
    "DistributedDataParallel": ON_GLOO,
    "FSDP2 (fully_shard)": ON_GLOO,
    "torch.func.functional_call": OF_MODULES,
    "torch.func.grad": Mechanism(note="under `torch.compile` fused operators leave the graph for it"),
    "torch.func.vjp, jacrev": Mechanism(),
    "torch.func.vmap": Mechanism(note=ONE_LAUNCH_EACH),
    "torch.func, per-sample gradients": Mechanism(note=ONE_LAUNCH_EACH),
    "torch.func.jvp": Mechanism(refused=NO_FORWARD_MODE, note=EAGER_ONLY),
    "forward-mode AD": Mechanism(
        refused=NO_FORWARD_MODE, note=f"{EAGER_ONLY}; also under `torch.no_grad`, which keeps tangents"
    ),
    "threads": Mechanism(forms=FUSED),
    "backward in another thread": Mechanism(forms=FUSED),
    "torch.inference_mode": Mechanism(),
    "tensors made in inference mode, used after it": Mechanism(),
    "set_default_dtype": Mechanism(),
    "set_default_device": Mechanism(),
    "FakeTensorMode": Mechanism(note="shapes, dtypes and strides of outputs and gradients"),
    "meta device, to_empty": OF_MODULES,
    "channels_last": Mechanism(IMAGES),
    "copy.deepcopy": OF_MODULES,
    "pickle": OF_MODULES,
    "torch.save of a module": Mechanism(MODULES, FUSED, note="read with `weights_only=False`"),
    "state_dict hooks": OF_MODULES,
    "parametrize": OF_MODULES,
}
