"""LikenessLossOptions: what counts as an error, at which noise levels, and what the noise is."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainers.config import (
    HUBER_SCHEDULES,
    LOSSES,
    TIMESTEP_SAMPLINGS,
    TIMESTEP_SHIFTINGS,
    WEIGHTINGS,
    TrainingConfig,
)
from .types import TrainingOptions

MIN_SNR = "min-snr"
"""One more weighting here; in a configuration it is a ``min_snr_gamma`` above 0."""


class LikenessLossOptions(io.ComfyNode):
    """Loss, weighting, noise levels and noise of a training run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        standard = TrainingConfig()
        return io.Schema(
            node_id="LikenessLossOptions",
            display_name="Loss and Noise Options (Likeness)",
            category="Likeness/trainers",
            description="More options of Train LoRA: the loss and its weighting, which noise levels are trained, and "
            "the noise itself. Place it after Training Options: what it shows overrides what comes before.",
            inputs=[
                io.Combo.Input(
                    "loss",
                    options=list(LOSSES),
                    default=standard.loss,
                    tooltip="mse: squared error, the usual one. huber: large errors count less, for pictures with "
                    "flaws such as watermarks or compression.",
                ),
                io.Float.Input(
                    "huber_c",
                    default=standard.huber_c,
                    min=0.0001,
                    max=100.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="With huber: errors above it count less. Smaller is more forgiving.",
                ),
                io.Combo.Input(
                    "huber_schedule",
                    options=list(HUBER_SCHEDULES),
                    default=standard.huber_schedule,
                    tooltip="With huber: huber_c at every noise level (constant), or only at the highest, near the "
                    "squared error at low noise (exponential in time, or by snr).",
                ),
                io.Combo.Input(
                    "weighting",
                    options=["none", MIN_SNR, *(one for one in WEIGHTINGS if one != "none")],
                    default="auto",
                    tooltip="How much each noise level counts. auto: debiased for models that predict noise "
                    "(SD1.5, SDXL), none for others. none: as the model was made. min-snr, p2, truncated-snr: others "
                    "of the literature.",
                ),
                io.Float.Input(
                    "min_snr_gamma",
                    default=5.0,
                    min=0.01,
                    max=100.0,
                    step=0.5,
                    round=0.01,
                    tooltip="With min-snr: signal to noise ratios above it count no more. 5 is usual.",
                ),
                io.Float.Input(
                    "p2_gamma",
                    default=standard.p2_gamma,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    round=0.001,
                    tooltip="With p2: how strongly low noise is held back, 0.5 to 1.",
                ),
                io.Float.Input(
                    "p2_k",
                    default=standard.p2_k,
                    min=0.001,
                    max=100.0,
                    step=0.1,
                    round=0.001,
                    tooltip="With p2: the signal to noise ratio from which it holds back.",
                ),
                io.Combo.Input(
                    "timestep_sampling",
                    options=list(TIMESTEP_SAMPLINGS),
                    default=standard.timestep_sampling,
                    tooltip="How noise levels are drawn. uniform for SD and SDXL; logit-normal, sigmoid, mode or "
                    "cosmap for SD3, Flux and other flow models. shift is sigmoid with static shifting.",
                ),
                io.Float.Input(
                    "timestep_mean",
                    default=standard.timestep_mean,
                    min=-10.0,
                    max=10.0,
                    step=0.1,
                    round=0.001,
                    tooltip="Of logit-normal: above 0 more noise, below 0 less.",
                ),
                io.Float.Input(
                    "timestep_std",
                    default=standard.timestep_std,
                    min=0.001,
                    max=10.0,
                    step=0.1,
                    round=0.001,
                    tooltip="Of logit-normal, sigmoid and shift: smaller keeps closer to the middle.",
                ),
                io.Float.Input(
                    "timestep_mode_scale",
                    default=standard.timestep_mode_scale,
                    min=-1.0,
                    max=1.75,
                    step=0.01,
                    round=0.001,
                    tooltip="Of mode: above 0 more of the middle, below 0 more of both ends, 0 is uniform.",
                ),
                io.Combo.Input(
                    "timestep_shifting",
                    options=list(TIMESTEP_SHIFTINGS),
                    default=standard.timestep_shifting,
                    tooltip="Towards more noise. model: as the loaded flow model (and a ModelSampling node) has it. "
                    "static: by timestep_shift instead. resolution: Flux's rule, more for larger pictures. none.",
                ),
                io.Float.Input(
                    "timestep_shift",
                    default=standard.timestep_shift,
                    min=0.01,
                    max=100.0,
                    step=0.1,
                    round=0.001,
                    tooltip="Factor of static shifting: 1 is none, 3 is SD3's, 3.16 Flux's at 1024 × 1024.",
                ),
                io.Float.Input(
                    "noise_offset",
                    default=standard.noise_offset,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Helps very dark and very bright pictures: 0.05 to 0.1 is usual, 0 turns it off.",
                ),
                io.Int.Input(
                    "pyramid_levels",
                    default=standard.pyramid_levels,
                    min=0,
                    max=16,
                    tooltip="Levels of coarser noise on top: more contrast than noise_offset gives. 6 is usual, 0 "
                    "turns it off.",
                ),
                io.Float.Input(
                    "pyramid_discount",
                    default=standard.pyramid_discount,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Strength of each coarser level relative to the one before: 0.1 to 0.4.",
                ),
                io.Float.Input(
                    "input_perturbation",
                    default=standard.input_perturbation,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="A little noise that only the model's input gets, so that it learns to mend its own "
                    "errors: 0.1 is usual, 0 turns it off.",
                ),
                io.Float.Input(
                    "unmasked_weight",
                    default=standard.unmasked_weight,
                    min=0.0,
                    max=0.99,
                    step=0.05,
                    round=0.001,
                    tooltip="With masks: how much the masked-out part counts. 0.1 keeps backgrounds from falling "
                    "apart.",
                ),
                TrainingOptions.Input(
                    "options",
                    optional=True,
                    tooltip="Options to start from. Everything shown on this node overrides them.",
                ),
            ],
            outputs=[
                TrainingOptions.Output(
                    display_name="options", tooltip="For the options input of Train LoRA, or of another options node."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, weighting: str, min_snr_gamma: float, options: dict[str, Any] | None = None, **shown: Any
    ) -> io.NodeOutput:
        """Lay what the node shows over the options it was given."""
        chosen = {
            **(options or {}),
            **shown,
            "weighting": "none" if weighting == MIN_SNR else weighting,
            "min_snr_gamma": min_snr_gamma if weighting == MIN_SNR else 0.0,
        }
        TrainingConfig.from_mapping(chosen)
        return io.NodeOutput(chosen)
