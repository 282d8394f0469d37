#!/usr/bin/env bash
# Question:  does "except Exception" catch a checkpoint that torch.distributed.checkpoint cannot load?
# Expected:  yes.
# Version:   torch 2.13.0
# Behaviour: its CheckpointException is a BaseException and no Exception, so it passes, as an interrupt would. This is so
#            in a single process without torch.distributed, too, and for errors that were a ValueError at first.
# Seen:      a tensor of another size: CheckpointException, caught only as BaseException
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6
python -W ignore - <<'EOF'
import torch
from torch.distributed import checkpoint

checkpoint.save({"a": torch.ones(2)}, checkpoint_id="x")
try:
    try:
        checkpoint.load({"a": torch.ones(3)}, checkpoint_id="x")
    except Exception:
        raise SystemExit("caught as an Exception") from None
except BaseException as error:
    print(type(error).__name__, [parent.__name__ for parent in type(error).__mro__])
    assert type(error) is checkpoint.CheckpointException and not isinstance(error, Exception)
    (cause, _), = error.failures.values()
    assert isinstance(cause, ValueError)
EOF
