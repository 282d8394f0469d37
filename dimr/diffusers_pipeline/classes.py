"""Classes as a pipeline takes them: ids, names, or a tensor of ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..class_names import class_id
from ..config import DiMRConfig

Labels = int | str | Sequence[int | str] | Tensor


def names_of(id2label: Mapping[str, str] | Mapping[int, str] | None, config: DiMRConfig) -> list[str] | None:
    """Names in the order of the ids, whose keys are text in a file of JSON.

    Raises:
        ValueError: not one name for each class.
    """
    if id2label is None:
        return None
    by_id = {str(key): name for key, name in id2label.items()}
    wanted = [str(i) for i in range(config.num_classes)]
    if sorted(by_id) != sorted(wanted) or not all(isinstance(name, str) for name in by_id.values()):
        raise ValueError(
            f"id2label must name each of the classes 0 to {config.num_classes - 1}, got {len(by_id)} entries"
        )
    return [by_id[key] for key in wanted]


def ids_of(class_labels: Labels, config: DiMRConfig, names: Sequence[str] | None) -> list[int]:
    """One id an image. The unconditional class, where there is one, can be asked for by its id.

    Raises:
        TypeError: something that is neither an id nor a name.
        ValueError: no such class, or no classes at all.
    """
    if isinstance(class_labels, Tensor):
        if class_labels.is_floating_point() or class_labels.dim() > 1:
            raise TypeError(
                f"class_labels must be integers of shape [B], got {class_labels.dtype} {list(class_labels.shape)}"
            )
        class_labels = class_labels.reshape(-1).tolist()
    if isinstance(class_labels, (int, str)):
        class_labels = [class_labels]
    if not isinstance(class_labels, Sequence):
        raise TypeError(f"class_labels must be ids or names, got {class_labels!r}")
    ids = [_id_of(label, config, names) for label in class_labels]
    if not ids:
        raise ValueError("class_labels must have at least one entry")
    return ids


def _id_of(label: object, config: DiMRConfig, names: Sequence[str] | None) -> int:
    if isinstance(label, str):
        if names is None:
            raise ValueError(f"class_labels: this pipeline knows no names (id2label), give ids; got {label!r}")
        return class_id(label, config.num_classes, names)
    if isinstance(label, bool) or not isinstance(label, int):
        raise TypeError(f"class_labels must be ids or names, got {label!r}")
    if not 0 <= label < config.num_embeddings:
        raise ValueError(f"class_labels must be in [0, {config.num_embeddings - 1}], got {label}")
    return label
