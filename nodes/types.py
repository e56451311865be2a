"""The pack's socket types and what travels on them."""

from __future__ import annotations

from dataclasses import dataclass

from comfy_api.latest import io

from ..trainers.dataset import PictureSet

Dataset = io.Custom("LIKENESS_DATASET")
"""Carries a ``trainers.dataset.PictureSet``."""

TrainingOptions = io.Custom("LIKENESS_TRAINING_OPTIONS")
"""Carries a dict of ``trainers.config.TrainingConfig`` fields; what it does not name keeps its default."""

SamplePrompts = io.Custom("LIKENESS_SAMPLE_PROMPTS")
"""Carries a :class:`Samples`."""

PriorKeeping = io.Custom("LIKENESS_PRIOR")
"""Carries a :class:`Prior`."""

LoraModel = io.Custom("LORA_MODEL")
"""The host's own type, a dict of tensors; ours carries a ``lora.model.LoraTensors``, which is one."""

HyperNetworkSocket = io.Custom("LIKENESS_HYPERNETWORK")
"""Carries a ``merging.lora_rar.HyperNetwork``."""

Metrics = io.Custom("LIKENESS_METRICS")
"""Carries a tuple of ``metrics.rows.Row``."""

MetricModel = io.Custom("LIKENESS_METRIC_MODEL")
"""Carries a ``nodes.host.metric_model.MetricModel``: a network that scores pictures, read once a server run."""

Grounding = io.Custom("LIKENESS_GROUNDING")
"""Carries a ``segmentation.found.Detector``: phrases and pictures -> boxes."""

Segmenter = io.Custom("LIKENESS_SEGMENTER")
"""Carries a ``segmentation.found.Segmenter``: boxes and pictures -> masks."""

ReinsertOptions = io.Custom("LIKENESS_REINSERT_OPTIONS")
"""Carries a dict of ``nodes.host.reinsert.How`` fields; what it does not name keeps its default."""

MergeOptions = io.Custom("LIKENESS_MERGE_OPTIONS")
"""Carries a dict: fields of ``merging.options.MergeOptions``, and ``energy``, ``layer_weights``, ``dtype``."""


@dataclass(frozen=True)
class Samples:
    """Pictures to draw while training.

    Attributes:
        prompts: one picture each.
        negative: what the pictures should not show.
        seed: of the noise, the same for each prompt and at each step, so that pictures can be compared.
        every: training steps between two rounds.
        steps, cfg, sampler_name, scheduler: as in the host's KSampler.
        width, height: in pixels.
        columns: pictures in a row of the grid; 0: about as wide as high.
    """

    prompts: tuple[str, ...]
    negative: str
    seed: int
    every: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    width: int
    height: int
    columns: int = 0


PREDICTION, GENERATED, CLASS_PICTURES = PRIOR_MODES = ("prior prediction", "generated pictures", "class pictures")


@dataclass(frozen=True)
class Prior:
    """What the model is to keep while it learns.

    Attributes:
        mode: one of :data:`PRIOR_MODES`.
        weight: λ of ``trainers.config.TrainingConfig.prior_weight``.
        prompts: of class pictures that the model draws; ``{class}`` is still in them.
        pictures: so many are drawn.
        seed: of their noise.
        steps, cfg, sampler_name, scheduler: as in the host's KSampler.
        dataset: class pictures of the user's, or None.
    """

    mode: str
    weight: float
    prompts: tuple[str, ...]
    pictures: int
    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    dataset: PictureSet | None

    @property
    def target(self) -> str:
        """One of ``trainers.config.PRIOR_TARGETS``."""
        return "prediction" if self.mode == PREDICTION else "picture"
