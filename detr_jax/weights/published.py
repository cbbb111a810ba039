"""The published checkpoints that can be named instead of a file, and where they are published."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

PACKAGED = Path(__file__).parent / "pretrained"

_DETR = "https://dl.fbaipublicfiles.com/detr/"
_TORCHVISION = "https://download.pytorch.org/models/"


class PublishedModel(NamedTuple):
    """A DETR published by facebookresearch/detr.

    Attributes:
      name: Name by which users ask for it.
      file: Name of its file; the part between the last dash and the suffix begins the file's SHA-256.
      depth: Layers of its ResNet.
      dilation: Whether the last stage of its ResNet is dilated (DC5).
      panoptic: Whether it has a mask head.
      metric: What `score` is, on COCO's validation images: "box AP", or "PQ" of a panoptic model.
      score: Published score, in percent.
      box_ap: Published box AP, in percent.
    """

    name: str
    file: str
    depth: int
    dilation: bool
    panoptic: bool
    metric: str
    score: float
    box_ap: float

    @property
    def address(self) -> str:
        """Address of its file."""
        return _DETR + self.file

    @property
    def sha256(self) -> str:
        """First digits of its file's SHA-256."""
        return hash_in_name(self.file)


class PublishedBackbone(NamedTuple):
    """A ResNet trained on ImageNet, published by torchvision: a start for the backbone of a DETR.

    Attributes:
      name: Name by which users ask for it.
      file: Name of its file; the part between the last dash and the suffix begins the file's SHA-256.
      depth: Its layers.
    """

    name: str
    file: str
    depth: int

    @property
    def address(self) -> str:
        """Address of its file."""
        return _TORCHVISION + self.file

    @property
    def sha256(self) -> str:
        """First digits of its file's SHA-256."""
        return hash_in_name(self.file)


def hash_in_name(file: str) -> str:
    """First digits of a file's SHA-256, from its name: "0676ba61" of "resnet50-0676ba61.pth"."""
    return file.rpartition("-")[2].partition(".")[0]


def _boxes(name: str, digits: str, depth: int, dilation: bool, box_ap: float) -> PublishedModel:
    return PublishedModel(name, f"{name}-{digits}.pth", depth, dilation, False, "box AP", box_ap, box_ap)


def _panoptic(
    name: str, digits: str, depth: int, dilation: bool, quality: float, box_ap: float
) -> PublishedModel:
    return PublishedModel(name, f"{name}-{digits}.pth", depth, dilation, True, "PQ", quality, box_ap)


# Scores of https://github.com/facebookresearch/detr#model-zoo.
PUBLISHED: Mapping[str, PublishedModel] = MappingProxyType(
    {
        model.name: model
        for model in (
            _boxes("detr-r50", "e632da11", 50, False, 42.0),
            _boxes("detr-r50-dc5", "f0fb7ef5", 50, True, 43.3),
            _boxes("detr-r101", "2c7b67e5", 101, False, 43.5),
            _boxes("detr-r101-dc5", "a2e86def", 101, True, 44.9),
            _panoptic("detr-r50-panoptic", "00ce5173", 50, False, 43.4, 38.8),
            _panoptic("detr-r50-dc5-panoptic", "da08f1b1", 50, True, 44.6, 40.2),
            _panoptic("detr-r101-panoptic", "40021d53", 101, False, 45.1, 40.1),
        )
    }
)

BACKBONES: Mapping[str, PublishedBackbone] = MappingProxyType(
    {
        "resnet50": PublishedBackbone("resnet50", "resnet50-0676ba61.pth", 50),
        "resnet101": PublishedBackbone("resnet101", "resnet101-63fe2227.pth", 101),
    }
)


def available() -> tuple[str, ...]:
    """Names of the models that `Predictor.from_pretrained` accepts, packaged and published ones.

    The packaged models are files of this package; the published ones are downloaded on first use.
    """
    return (*packaged(), *PUBLISHED)


def packaged() -> list[str]:
    """Names of the models in this package."""
    return sorted(path.stem for path in PACKAGED.glob("*.safetensors"))


def published_model(name: str) -> PublishedModel | None:
    """The published model of this name, also if it is given as the name or the path of its file.

    Args:
      name: Name, for example "detr-r50-panoptic"; or a file, for example "weights/detr-r50-e632da11.pth".
    """
    file = Path(name).name
    return PUBLISHED.get(name) or next((model for model in PUBLISHED.values() if model.file == file), None)
