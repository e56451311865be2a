"""Which metrics there are: name -> function, range, direction. A new metric is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .aesthetic import mean_aesthetic
from .brisque import mean_brisque
from .clip_score import clip_score, clip_t, clip_t_all_pairs
from .face_similarity import mean_face_similarity
from .faces import face_distance, face_distance_of_means, faceless_share
from .fid import fid_distance
from .image_reward import image_reward
from .inception_score import mean_inception_score
from .judge import average_good, average_style, average_subject, best_of_n, first_good
from .kid import kid_distance
from .maniqa import mean_maniqa
from .niqe import mean_niqe
from .pairs import lpips, psnr, ssim
from .similarity import nearest_similarity, subject_similarity

_INFINITE = float("inf")


@dataclass(frozen=True)
class Metric:
    """`function` returns a float in `range` (both ends included); `direction` says which way is better.

    `takes`: what the function is called with. "pictures": generated and reference pictures and a feature network;
    others are told by its docstring.
    """

    function: Callable[..., float]
    range: tuple[float, float]
    direction: Literal["higher", "lower"]
    summary: str
    takes: Literal["pictures", "features", "faces", "judgement", "pairs", "prompts"] = "pictures"


METRICS: dict[str, Metric] = {
    "subject_similarity": Metric(
        subject_similarity, (-1.0, 1.0), "higher", "mean cosine of generated to reference pictures"
    ),
    "nearest_similarity": Metric(
        nearest_similarity, (-1.0, 1.0), "higher", "mean cosine of generated pictures to the nearest reference"
    ),
    "clip_i": Metric(subject_similarity, (-1.0, 1.0), "higher", "mean cosine of CLIP embeddings to the references"),
    "dino": Metric(subject_similarity, (-1.0, 1.0), "higher", "mean cosine of DINO's class tokens to the references"),
    "dinov2": Metric(
        subject_similarity, (-1.0, 1.0), "higher", "mean cosine of DINOv2's class tokens to the references"
    ),
    "clip_t": Metric(clip_t, (-1.0, 1.0), "higher", "mean cosine of each picture to its own prompt", "features"),
    "clip_t_all_pairs": Metric(
        clip_t_all_pairs, (-1.0, 1.0), "higher", "mean cosine of each picture to every prompt", "features"
    ),
    "clip_score": Metric(
        clip_score, (0.0, 2.5), "higher", "2.5 · max(cos, 0) of each picture and its own prompt", "features"
    ),
    "ssim": Metric(ssim, (-1.0, 1.0), "higher", "structural similarity to the target picture", "pairs"),
    "psnr": Metric(psnr, (-_INFINITE, _INFINITE), "higher", "−10 log₁₀ of the mean squared error, dB", "pairs"),
    "lpips": Metric(lpips, (0.0, _INFINITE), "lower", "distance of deep features to the target picture", "pairs"),
    "fid": Metric(
        fid_distance, (0.0, _INFINITE), "lower", "Fréchet distance of two sets' Inception features", "features"
    ),
    "kid": Metric(
        kid_distance,
        (-_INFINITE, _INFINITE),
        "lower",
        "kernel distance × 1000 of two sets' Inception features",
        "features",
    ),
    "inception_score": Metric(
        mean_inception_score, (1.0, 1008.0), "higher", "clear and varied classes in a set of many subjects", "features"
    ),
    "niqe": Metric(
        mean_niqe, (0.0, _INFINITE), "lower", "distance from the statistics of good photographs", "features"
    ),
    "brisque": Metric(
        mean_brisque,
        (-_INFINITE, _INFINITE),
        "lower",
        "predicted bad opinion of the quality, about 0 to 100",
        "features",
    ),
    "maniqa": Metric(
        mean_maniqa,
        (0.0, _INFINITE),
        "higher",
        "predicted quality, about 0 to 1; the scale is that of the ratings its file was trained with",
        "features",
    ),
    "aesthetic": Metric(
        mean_aesthetic, (-_INFINITE, _INFINITE), "higher", "predicted liking, about 1 to 10 (LAION's head)", "features"
    ),
    "image_reward": Metric(
        image_reward,
        (-_INFINITE, _INFINITE),
        "higher",
        "predicted preference for the picture, given its prompt, about −2 to 2",
        "prompts",
    ),
    "face_distance": Metric(
        face_distance, (0.0, 2.0), "lower", "mean distance of generated faces to the references' mean", "faces"
    ),
    "face_distance_of_means": Metric(
        face_distance_of_means, (0.0, 2.0), "lower", "distance between the mean generated and reference face", "faces"
    ),
    "face_similarity": Metric(
        mean_face_similarity, (-1.0, 1.0), "higher", "mean cosine of aligned generated to reference faces", "faces"
    ),
    "faceless": Metric(faceless_share, (0.0, 1.0), "lower", "share of pictures in which no face was found", "faces"),
    "judge_subject": Metric(
        average_subject, (0.0, 1.0), "higher", "share judged by a language model to show the subject", "judgement"
    ),
    "judge_style": Metric(
        average_style, (0.0, 1.0), "higher", "share judged by a language model to have the style", "judgement"
    ),
    "judge": Metric(average_good, (0.0, 1.0), "higher", "share judged to hold both subject and style", "judgement"),
    "judge_best_of_n": Metric(best_of_n, (0.0, 1.0), "higher", "is any picture of the batch judged good", "judgement"),
    "judge_attempts": Metric(
        first_good, (1.0, _INFINITE), "lower", "which picture of the batch is the first judged good", "judgement"
    ),
}
