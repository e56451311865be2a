"""The nodes, one thin class each. This folder is the only code that knows ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .adapter_options import LikenessAdapterOptions
from .apply_merged import LikenessApplyMerged
from .blur_subject import LikenessBlurSubject
from .captions import LikenessCaptions
from .combine_datasets import LikenessCombineDatasets
from .dataset import LikenessDataset
from .evaluate import LikenessEvaluate
from .find_learning_rate import LikenessFindLearningRate
from .find_tokens import LikenessFindTokens
from .grounded_segment import LikenessGroundedSegment
from .inspect_lora import LikenessInspectLoRA
from .judge import LikenessJudge
from .load_grounding import LikenessLoadGrounding
from .load_metric_model import LikenessLoadMetricModel
from .load_segmenter import LikenessLoadSegmenter
from .lora_files import LikenessLoadLoRA, LikenessSaveLoRA
from .lora_rar import LikenessLoRARar
from .loss_options import LikenessLossOptions
from .memory_options import LikenessMemoryOptions
from .merge_loras import LikenessMergeLoRAs
from .merge_options import LikenessMergeOptions
from .metric_check import LikenessMetricCheck
from .options import LikenessTrainingOptions
from .prior import LikenessPriorPreservation
from .reinsert_subject import LikenessReinsertOptions, LikenessReinsertSubject
from .report import LikenessReport
from .resize_lora import LikenessResizeLoRA
from .route_loras import LikenessRouteLoRAs
from .samples import LikenessSamplePrompts
from .score_faces import LikenessScoreFaces
from .score_pairs import LikenessScorePairs
from .score_prompt import LikenessScorePrompt
from .score_quality import LikenessScoreQuality
from .score_sets import LikenessScoreSets
from .score_subject import LikenessScoreSubject
from .text_encoder_options import LikenessTextEncoderOptions
from .token_prior import LikenessTokenPrior
from .train import LikenessTrainLoRA
from .train_adaptive import LikenessTrainAdaptiveLoRA
from .train_lora_rar import LikenessTrainLoRARar
from .zip_lora import LikenessZipLoRA

NODES: tuple[type[io.ComfyNode], ...] = (
    LikenessDataset,
    LikenessCombineDatasets,
    LikenessCaptions,
    LikenessTrainLoRA,
    LikenessTrainAdaptiveLoRA,
    LikenessTrainingOptions,
    LikenessLossOptions,
    LikenessAdapterOptions,
    LikenessTextEncoderOptions,
    LikenessMemoryOptions,
    LikenessFindLearningRate,
    LikenessFindTokens,
    LikenessTokenPrior,
    LikenessSamplePrompts,
    LikenessPriorPreservation,
    LikenessSaveLoRA,
    LikenessLoadLoRA,
    LikenessInspectLoRA,
    LikenessResizeLoRA,
    LikenessMergeLoRAs,
    LikenessMergeOptions,
    LikenessApplyMerged,
    LikenessRouteLoRAs,
    LikenessZipLoRA,
    LikenessLoRARar,
    LikenessTrainLoRARar,
    LikenessLoadGrounding,
    LikenessLoadSegmenter,
    LikenessGroundedSegment,
    LikenessLoadMetricModel,
    LikenessScorePrompt,
    LikenessScoreSubject,
    LikenessScorePairs,
    LikenessScoreSets,
    LikenessScoreQuality,
    LikenessScoreFaces,
    LikenessJudge,
    LikenessEvaluate,
    LikenessMetricCheck,
    LikenessReport,
    LikenessBlurSubject,
    LikenessReinsertSubject,
    LikenessReinsertOptions,
)


class LikenessExtension(ComfyExtension):
    """What the host asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes of the pack."""
        return list(NODES)
