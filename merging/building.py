"""Model objects out of tensors: as transformers builds them, or after one that is there already.

It knows a folder's small files, no plans, and not where the tensors come from.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.errors import MergeError

BUILDING = threading.Lock()
"""Held while a model's class is built: transformers changes torch's own functions, and its default
dtype, for the whole process meanwhile."""


def build(
    folder: str, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: str
) -> tuple[Any, Mapping[str, Any]]:
    """A model that can chat, of a folder's config and these tensors, and what the loader says of
    their names. By transformers' own loader, which knows how files and classes differ; nothing is
    copied where the types are equal. Raises MergeError for a config of no language model.
    """
    from transformers import AutoConfig, GenerationConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None:
        raise MergeError(
            f"transformers has no language model for {type(config).__name__}: choose other parents."
        )
    with BUILDING:
        model, report = kind.from_pretrained(
            None, config=config, state_dict=dict(tensors), output_loading_info=True, dtype=dtype,
            device_map={"": device} if device != "cpu" else None,
        )  # fmt: skip
    if (Path(folder) / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.requires_grad_(False).eval(), report


def spread(model: Any, device: str, room: int) -> Any:
    """A model of the machine's memory so that as much as fits `room` bytes is on the device, and
    the rest comes there block by block, each time that it is needed. One question at a time is
    read: accelerate's hooks put the weights into the model itself.
    """
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import extract_submodules_state_dict

    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)  # it warns of what we ask
    # in accelerate's words, `cpu` is here what is held on the device, and `disk` what is not
    places = infer_auto_device_map(
        model, {"cpu": room, "disk": sum(p.nbytes for p in model.parameters())},
        no_split_module_classes=model._no_split_modules,
    )  # fmt: skip
    rest = [name for name, place in places.items() if place == "disk"]
    held = extract_submodules_state_dict(model.state_dict(), rest)
    model = dispatch_model(
        model, {name: device if place == "cpu" else place for name, place in places.items()},
        main_device=device, state_dict=held, offload_index={},
        skip_keys=model._skip_keys_device_placement,
    )  # fmt: skip
    if model.device.type == "meta":
        raise MergeError(f"{room / 1e9:.1f} GB are too few for this model: choose a smaller one.")
    model.forward = _alone(model.forward)
    return model


def _alone(forward: Callable[..., Any]) -> Callable[..., Any]:
    lock = threading.Lock()

    @wraps(forward)
    def locked(*given: Any, **named: Any) -> Any:
        with lock:
            return forward(*given, **named)

    return locked


def mould(folder: str, tensors: Mapping[str, Tensor]) -> str:
    """A digest of all that decides what model and tokenizer are built, but for the values."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.suffix not in (".md", ".yml"):  # the card and the recipe: for people
            digest.update(f"{path.name}\n".encode() + path.read_bytes())
    for name, t in sorted(tensors.items()):
        digest.update(f"{name} {tuple(t.shape)} {t.dtype} {t.device}\n".encode())
    return digest.hexdigest()


def after(model: Any, tensors: Mapping[str, Tensor]) -> Any | None:
    """A copy of a model object over other tensors, many times faster than a new one.

    None where the object calls its weights otherwise than the tensors are called.
    """
    own = dict(model.named_parameters(remove_duplicate=False))  # tied ones are one object
    if not tensors.keys() <= own.keys():
        return None
    instead = {id(own[n]): torch.nn.Parameter(t, requires_grad=False) for n, t in tensors.items()}
    return deepcopy(model, instead) if instead.keys() == set(map(id, own.values())) else None
