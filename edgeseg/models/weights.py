"""Reading checkpoints without running anything they contain."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeseg.errors import InputError

_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts commonly nest the weights."""
_AUXILIARY = "aux_classifier."
_PARALLEL = "module."
"""What DataParallel and DistributedDataParallel put before every name."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a .safetensors, .pt or .pth file into a state dict; pickles are read with weights_only=True.

    Raises InputError where the file is missing, damaged, or holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no weights at {path}: give a .safetensors, .pt or .pth file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise a dozen types, with advice that must not be followed
        raise InputError(
            f"cannot read weights from {path}: it is damaged, no checkpoint, or holds pickled objects, which are never "
            f"loaded; save model.state_dict(), best as .safetensors"
        ) from error
    for key in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} does not hold a state dict (name -> tensor): save model.state_dict()")
    if state and all(name.startswith(_PARALLEL) for name in state):
        state = {name.removeprefix(_PARALLEL): value for name, value in state.items()}
    return state


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint into `model`, every name and shape fitting; an auxiliary head it lacks is skipped.

    Raises InputError naming the first names and shapes that do not fit.
    """
    own = model.state_dict()
    # torchvision's auxiliary head serves training only.
    state = {
        name: value for name, value in read_weights(path).items() if name in own or not name.startswith(_AUXILIARY)
    }
    # num_batches_tracked is bookkeeping of training; files may leave it out or bring it.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, the model has {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [f"missing {_few(missing)}"] if missing else []
    problems += [f"unexpected {_few(unexpected)}"] if unexpected else []
    problems += [_few(shapes)] if shapes else []
    if problems:
        raise InputError(f"{path} does not fit {type(model).__name__}: {'; '.join(problems)}")
    model.load_state_dict(state, strict=False)


def _few(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
