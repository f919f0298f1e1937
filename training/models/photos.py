"""Classifiers of photos: a pretrained network, alone or behind transformers that find parts (paper section 4.3)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import ConfigDict, with_config
from torch import Tensor, nn
from torch.nn import functional as F

from training.data.photos import RESIZE
from training.models.backbone import Backbone
from training.models.keypoints import KeypointLocalization
from training.models.network import Answer, Network, PlacedTransformer
from training.models.pretrained import build_backbone, describe_backbone, load_backbone_weights
from training.stn import Attention, ParallelSpatialTransformer, Sampler, Transform, Translation, tile

LOCALIZATION_FILTERS, LOCALIZATION_HIDDEN = 128, 128
KEYPOINT_SPREAD = 0.4
"""Crops start around their keypoints as tiles of the image would lie, this much closer together."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True, slots=True)
class PhotosModel:
    """Which backbone, and how many transformers look where. The defaults are the paper's (appendix A.6)."""

    family: Literal["photos"]
    backbone: str = "mobilenet_v1_075_224"
    """Whose pretrained weights: a `.npz` of TensorFlow's MobileNet (a path, or a name in `$STN_DATA_DIR/weights`), a
    folder that `save_pretrained` of `transformers` wrote, or a name on its hub, such as `facebook/dinov2-small`."""
    architecture: dict[str, Any] | None = None
    """The backbone's own configuration. Training looks it up, so that a checkpoint needs neither file nor hub."""
    transformers: int = 2
    """How many, side by side; 0 is the plain network."""
    transform: Literal["translation", "attention"] = "translation"
    """Translation moves a crop of fixed size; attention also scales it."""
    scale: float = 0.5
    """Side of a crop against the image's; where attention starts."""
    crop_size: int = 224
    """Height and width of what a crop is sampled at, and of what the plain network sees."""
    supersample: int = 1
    descriptors: Literal["own", "shared"] = "own"
    """Whether each crop has a backbone of its own, as the paper's, or all share one."""
    localization: Literal["paper", "keypoints"] = "paper"
    localization_size: int = 224
    """Height and width of the reduced copy that the localisation network sees."""
    head_std: float = 0.0
    dropout: float = 0.7

    def __post_init__(self) -> None:
        if self.transformers < 0:
            raise ValueError(f"transformers: expected 0 or more, got {self.transformers}")
        for name in ("scale", "crop_size", "localization_size", "supersample"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")

    def resolved(self) -> PhotosModel:
        """With what can only be looked up where training is.

        Raises:
            WeightsError: the backbone is not there.
        """
        return replace(self, architecture=self.architecture or describe_backbone(self.backbone))


class PhotoNetwork(Network):
    """A classifier of photos `[N, 3, H, W]`, `H` and `W` alike.

    The plain network sees the photo reduced to `crop_size`. With transformers, one localisation network sees a reduced
    copy, each transformer cuts a crop out of the photo itself, and the features of all crops are classified together.

    Args:
        config: sizes and kinds.
        input_size: channels, height and width of the photos.
        classes: how many.
    """

    resize = RESIZE

    def __init__(self, config: PhotosModel, input_size: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        if config.transformers:
            _check_divides("localization_size", config.localization_size, input_size)
        else:
            _check_divides("crop_size", config.crop_size, input_size)
        self.config = config
        self.input_size = input_size
        backbone = build_backbone(config.architecture or describe_backbone(config.backbone))
        crops = max(config.transformers, 1)
        self.descriptors = nn.ModuleList([backbone])
        if config.descriptors == "own":
            self.descriptors.extend(copy.deepcopy(backbone) for _ in range(crops - 1))
        self.transformer = _transformer(config, copy.deepcopy(backbone)) if config.transformers else None
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(crops * backbone.out_features, classes)

    def forward(self, images: Tensor) -> Answer:
        """Logits `[N, classes]` and theta `[N, transformers, 2, 3]`."""
        if self.transformer is None:
            return Answer(self._classify(reduce(images, self.config.crop_size).unsqueeze(1)), None)
        crops, theta = self.transformer(images, reduce(images, self.config.localization_size))
        return Answer(self._classify(crops), theta)

    def transformers(self) -> list[PlacedTransformer]:
        """In the order of theta."""
        if self.transformer is None:
            return []
        return [
            PlacedTransformer(f"part{index}", "image", self.transformer)
            for index in range(1, self.transformer.count + 1)
        ]

    def load_pretrained(self) -> None:
        """Weights that training starts with."""
        for backbone in self._backbones():
            load_backbone_weights(backbone, self.config.backbone)

    def adopt(self, other: Network) -> None:
        """Begin with another network's weights; those of a plain one go to every descriptor.

        A plain classifier is shared out among the crops, so that training begins with the mean of what they say.
        """
        if not isinstance(other, PhotoNetwork) or other.transformer is not None:
            super().adopt(other)
            return
        classes, others = self.classifier.out_features, other.classifier.out_features
        if classes != others:
            raise ValueError(f"a network of {classes} classes cannot begin with one of {others}")
        for backbone in self._backbones():
            backbone.load_state_dict(other.descriptors[0].state_dict())
        crops = self.classifier.in_features // other.classifier.in_features
        with torch.no_grad():
            self.classifier.weight.copy_(other.classifier.weight.repeat(1, crops) / crops)
            self.classifier.bias.copy_(other.classifier.bias)

    def _backbones(self) -> list[Backbone]:
        localization = [] if self.transformer is None else [self.transformer.localization.backbone]
        return [*self.descriptors, *localization]

    def _classify(self, crops: Tensor) -> Tensor:
        """Logits of crops `[N, S, 3, h, w]`."""
        if len(self.descriptors) == 1:
            maps = self.descriptors[0](crops.flatten(0, 1))
            features = maps.mean((2, 3)).unflatten(0, (-1, crops.shape[1])).flatten(1)
        else:
            each = [descriptor(crops[:, index]) for index, descriptor in enumerate(self.descriptors)]
            features = torch.cat([maps.mean((2, 3)) for maps in each], dim=1)
        logits: Tensor = self.classifier(self.dropout(features))
        return logits


class PaperLocalization(nn.Module):
    """The paper's: the backbone without its pooling, a 1x1 convolution and a fully connected layer (appendix A.6)."""

    def __init__(self, backbone: Backbone, size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.reduce = nn.Conv2d(backbone.out_features, LOCALIZATION_FILTERS, 1)
        with torch.no_grad():
            cells = backbone(torch.zeros(1, 3, size, size))[0, 0].numel()
        self.hidden = nn.Linear(LOCALIZATION_FILTERS * cells, LOCALIZATION_HIDDEN)
        self.out_features = LOCALIZATION_HIDDEN

    def forward(self, images: Tensor) -> Tensor:
        """Features `[N, 128]`."""
        maps = F.relu(self.reduce(self.backbone(images)))
        return F.relu(self.hidden(maps.flatten(1)))


def _check_divides(name: str, size: int, input_size: tuple[int, int, int]) -> None:
    if input_size[1] % size:
        raise ValueError(f"model.{name}: expected a divisor of {input_size[1]}, the size of the images, got {size}")


def reduce(images: Tensor, size: int) -> Tensor:
    """Photos averaged down to `size`, a divisor of theirs; the same photos where they have that size."""
    factor = images.shape[-1] // size
    return F.avg_pool2d(images, factor) if factor > 1 else images


def _transformer(config: PhotosModel, backbone: Backbone) -> ParallelSpatialTransformer:
    side = config.crop_size * config.supersample
    transform: Transform = (
        Translation((side, side), scale=config.scale) if config.transform == "translation" else Attention((side, side))
    )
    sampler = Sampler(supersample=config.supersample)
    starts = tile(transform, config.transformers, config.scale)
    if config.localization == "paper":
        localization = PaperLocalization(backbone, config.localization_size)
        return ParallelSpatialTransformer(localization, transform, starts, sampler, head_std=config.head_std)
    keypoints = KeypointLocalization(backbone, config.transformers)
    transformer = ParallelSpatialTransformer(keypoints, transform, starts, sampler, head_std=config.head_std)
    _follow(transformer)
    return transformer


def _follow(transformer: ParallelSpatialTransformer) -> None:
    """Each crop starts around a keypoint of its own, and moves with it."""
    names = transformer.transform.parameter_names
    with torch.no_grad():
        for index in range(transformer.count):
            for coordinate, name in enumerate(("tx", "ty")):
                row = index * len(names) + names.index(name)
                transformer.head.weight[row, 2 * index + coordinate] = 1
                transformer.head.bias[row] *= KEYPOINT_SPREAD
