"""Networks that score pictures, in the host's hands: read once a server run, embeddings kept by picture."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ...metrics.backbones import IMAGE_REWARD, Backbone, Tower, recognise, wanted
from ...metrics.builtin import FOR_TINY, lite0_backbone
from ...metrics.embed import Embedder
from ...metrics.image_reward_files import FILES as REWARD_FILES
from .managed import kept
from .network_folders import folder_stamp
from .scores import metric_folders

BUILT_IN = "EfficientNet-Lite0 (built in)"
BUILT_IN_TINY = "EfficientNet-Lite0 for pictures of 64 pixels (built in)"
BUILT_INS = {BUILT_IN: None, BUILT_IN_TINY: FOR_TINY}
BATCH = 16
_TELLING = ("config.json", "open_clip_config.json", *REWARD_FILES)
_MEMORY = 1024**3  # 16 pictures of 224 through ViT-L
_MOST = 20_000
_known: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()
Value = TypeVar("Value")


class MetricModel:
    """A network that gives pictures, and with CLIP prompts too, a direction.

    Attributes:
        description: for a row's `model`; figures of different ones are not to be pooled.
        subject_metric: what its subject score is called in ``metrics.registry``.
    """

    def __init__(self, backbone: Backbone, loaded: Callable[[], Tower]) -> None:
        self.embedder = Embedder(backbone, loaded, BATCH)
        self.description: str = backbone.description
        self.subject_metric: str = backbone.subject_metric
        stamps = [(str(file), (about := file.stat()).st_size, about.st_mtime_ns) for file in backbone.files]
        self._key = (self.description, tuple(stamps))

    def features(self, pictures: Tensor | Sequence[Tensor], bar: Any = None) -> Tensor:
        """(B, 3, H, W), or pictures (3, H, W) of any sizes, in [0, 1] -> (B, D) unit rows, float32 on the CPU.

        A picture that was seen before costs nothing. Looks for a cancel before each batch.

        Args:
            bar: the host's progress bar, which is counted on by pictures; without one, more than a batch gets its own.

        Raises:
            ValueError: pictures that cannot be scored.
        """
        if len(pictures) == 0:
            raise ValueError("there are no pictures to score; at least one is needed")
        if bar is None and len(pictures) > BATCH:
            bar = comfy.utils.ProgressBar(len(pictures))

        def embedded(places: list[int]) -> list[Tensor]:
            if bar is not None:
                bar.update(len(pictures) - len(places))
            if not places:
                return []
            chosen = pictures[places] if isinstance(pictures, Tensor) else [pictures[place] for place in places]
            return [row.clone() for row in self.embedder(chosen, counter(bar))]  # a view would keep its whole batch

        keys = [(*self._key, picture_hash(picture)) for picture in pictures]
        return torch.stack(remembered(_known, _MOST, keys, embedded))

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> (B, D) unit rows, float32 on the CPU.

        Raises:
            ValueError: the network has no text part, or a prompt is empty.
        """
        return self.cut_text_features(prompts)[0]

    def cut_text_features(self, prompts: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
        """Prompts -> (B, D), and a note a prompt: empty, or that it was longer than the network reads."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        rows, cut = self.embedder.texts(prompts, counter(None))
        limit = self.embedder.limit() if any(cut) else 0
        return rows, tuple(f"prompt cut to {limit} tokens" if one else "" for one in cut)


def metric_model(name: str, family: str) -> MetricModel:
    """The network of a name that :func:`model_names` lists.

    Raises:
        ValueError: it is not there, it is of another family, its weights are wrong or missing, or a package is.
    """
    if name in BUILT_INS:
        backbone = lite0_backbone(BUILT_INS[name])
    else:
        there = metric_networks()
        if name not in there:
            raise ValueError(f"there is no model {name!r} in {metric_folders()[0]}; {wanted(family)}")
        backbone = recognise(there[name], family)

    def make() -> Tower:
        with torch.inference_mode(False):  # as the host's own models: ordinary tensors
            return backbone.load()

    managed = kept(backbone.files, backbone.description, make)
    kind = MetricModel
    if backbone.family == IMAGE_REWARD:
        from .reward_model import RewardModel as kind  # it is a MetricModel, and so needs this module
    return kind(backbone, lambda: managed.loaded(_MEMORY))


def model_names() -> list[str]:
    """What the loader offers."""
    return [*BUILT_INS, *metric_networks()]


def model_stamp(name: str) -> str:
    """Changes whenever a file of the network does."""
    folder = metric_networks().get(name)
    return "" if folder is None else folder_stamp(folder)


def metric_networks() -> dict[str, Path]:
    """Name -> folder of what lies below models/metrics and models/clip_vision and looks like a network."""
    places = [("metrics", place) for place in metric_folders()]
    places += [("clip_vision", Path(place)) for place in folder_paths.get_folder_paths("clip_vision")]
    found: dict[str, Path] = {}
    for kind, place in places:
        for path in (*_folders(place), *(inner for outer in _folders(place) for inner in _folders(outer))):
            if any((path / name).is_file() for name in _TELLING):
                name = path.relative_to(place).as_posix()
                found.setdefault(name if kind == "metrics" else f"{kind}/{name}", path)
    return dict(sorted(found.items()))


def _folders(place: Path) -> list[Path]:
    try:
        return [path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return []


def remembered(
    known: OrderedDict[tuple[Any, ...], Value],
    most: int,
    keys: Sequence[tuple[Any, ...]],
    compute: Callable[[list[int]], Sequence[Value]],
) -> list[Value]:
    """A value for each key: what is known, and what is computed once for each key that is not.

    Args:
        known: key -> value, the longest unused first; it is added to, and cut to `most`.
        compute: places of `keys`, none twice, perhaps none at all -> their values.
    """
    first: dict[tuple[Any, ...], int] = {}
    for place, key in enumerate(keys):
        first.setdefault(key, place)
    places = [place for key, place in first.items() if key not in known]
    found = dict(zip((keys[place] for place in places), compute(places), strict=True))
    values = [found[key] if key in found else known[key] for key in keys]
    for key in first:
        known[key] = found[key] if key in found else known[key]
        known.move_to_end(key)
    while len(known) > most:
        known.popitem(last=False)
    return values


def picture_hash(picture: Tensor) -> bytes:
    """Of its numbers and its shape."""
    data = picture.detach().to("cpu", torch.float32).contiguous().numpy()
    digest = hashlib.blake2b(str(tuple(picture.shape)).encode(), digest_size=16)
    digest.update(data)
    return digest.digest()


def counter(bar: Any) -> Callable[[int], None]:
    """What embedding calls after each batch: a cancel is seen, and the host's progress bar counted on."""

    def done(count: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if bar is not None:
            bar.update(count)

    return done
