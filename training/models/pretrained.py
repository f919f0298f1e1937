"""Where backbones come from: TensorFlow's MobileNet in a file, a folder of `transformers`, or its hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from training.data.mnist import reachable
from training.models.backbone import Backbone
from training.models.mobilenet import WeightsError, mobilenet_config, pad_in_convolutions, read_mobilenet_weights

HUB = "huggingface.co"
NORMALIZATION = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
"""ImageNet's, where a folder or the hub does not say."""
UNUSED = "num_batches_tracked"
"""Of batch normalisation with a momentum."""

Architecture = dict[str, Any]
"""A configuration of `transformers`, and mean and deviation of its input: enough to build it, untrained, anywhere."""


def describe_backbone(name: str) -> Architecture:
    """The architecture of a backbone by name or path.

    Raises:
        WeightsError: nothing of that name is here, and the hub does not have it or cannot be reached.
    """
    path = _find_file(name)
    if path:
        return mobilenet_config(path)
    from transformers import AutoConfig
    from transformers.image_processing_base import ImageProcessingMixin

    config = _ask_hub(name, AutoConfig.from_pretrained)
    try:
        processing, _ = _ask_hub(name, ImageProcessingMixin.get_image_processor_dict)
    except WeightsError:
        processing = {}
    known = {key: processing.get(key) or default for key, default in NORMALIZATION.items()}
    return {"model_type": config.model_type, **config.to_diff_dict(), **known}


def build_backbone(architecture: Architecture) -> Backbone:
    """A backbone with fresh weights.

    Raises:
        WeightsError: the library has no such architecture, or it gives no map of features.
    """
    from transformers import AutoConfig, AutoModel

    fields = dict(architecture)
    mean, std = (tuple(fields.pop(key)) for key in NORMALIZATION)
    try:
        model = AutoModel.from_config(AutoConfig.for_model(**fields))
        if fields["model_type"] == "mobilenet_v1":
            pad_in_convolutions(model)
        return Backbone(model, mean, std)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"backbone: cannot build a '{fields.get('model_type')}' for photos: {error}") from error


def load_backbone_weights(backbone: Backbone, name: str) -> None:
    """Fill in pretrained weights by name or path.

    Raises:
        WeightsError: they cannot be had, or are of another architecture.
    """
    path = _find_file(name)
    state = read_mobilenet_weights(path) if path else _hub_weights(name)
    wanted = {key: value for key, value in backbone.model.state_dict().items() if not key.endswith(UNUSED)}
    odd = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    if odd:
        raise WeightsError(f"backbone '{name}': its weights do not fit, such as {odd[0]}")
    backbone.model.load_state_dict({key: state[key] for key in wanted}, strict=False)


def _hub_weights(name: str) -> dict[str, Any]:
    from transformers import AutoModel

    def load(source: str, **options: Any) -> nn.Module:  # noqa: ANN401 - passed on
        model: nn.Module = AutoModel.from_pretrained(source, use_safetensors=True, **options)
        return model

    state: dict[str, Any] = _ask_hub(name, load).state_dict()
    return state


def _find_file(name: str) -> Path | None:
    """The `.npz` of a path, or of a name in `$STN_DATA_DIR/weights` or the user's cache."""
    import pooch

    configured = os.environ.get("STN_DATA_DIR")
    roots = [*([Path(configured)] if configured else []), Path(pooch.os_cache("stn-serve"))]
    candidates = [Path(name), *(root / "weights" / f"{name}.npz" for root in roots)]
    return next((path for path in candidates if path.suffix == ".npz" and path.is_file()), None)


def _ask_hub(name: str, load: Any) -> Any:  # noqa: ANN401 - one of several loaders
    """A folder, what the hub's cache holds, or the hub."""
    try:
        return load(name, local_files_only=True)
    except (OSError, ValueError) as error:
        if Path(name).is_dir():
            raise WeightsError(f"backbone: {name} is no model of `transformers` in safetensors: {error}") from error
        if not reachable(HUB):
            raise WeightsError(
                f"backbone '{name}' is no file or folder here, and {HUB} cannot be reached; put NAME.npz into "
                "$STN_DATA_DIR/weights, or give model.backbone the path of a .npz file or of a folder that "
                "`save_pretrained` wrote"
            ) from error
    try:
        return load(name)
    except (OSError, ValueError) as error:
        raise WeightsError(f"backbone: {HUB} has no '{name}' in safetensors: {str(error).splitlines()[0]}") from error
