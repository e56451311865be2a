"""The learning rate finder inside the host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.model_patcher
from torch import Tensor

from ...trainers.config import TrainingConfig
from ...trainers.dataset import PictureSet
from ...trainers.outcome import Callbacks, TrainingCancelled
from ...trainers.rate_finder import RateSweep, find_rate
from .denoiser import HostDenoiser, parameterisation
from .interrupt import Interrupt, InterruptProcessingException
from .memory import leave_device, raise_advice, training_memory
from .progress import Reporter
from .session import encode
from .text import texts_of
from .weights import autograd_weights, ordinary_tensors, training_clone


def find_learning_rate(
    model: comfy.model_patcher.ModelPatcher,
    clip: Any,
    vae: Any,
    pictures: PictureSet,
    config: TrainingConfig,
    *,
    lowest: float,
    highest: float,
    probes: int,
    node_id: str | None = None,
) -> RateSweep:
    """Sweep the learning rate; the model is exactly as it was afterwards, and nothing is written.

    Text encoders do not learn, and there is no prior: neither has much to do with the best rate.

    Raises:
        InterruptProcessingException: the user cancelled.
        ValueError: see ``trainers.rate_finder.find_rate``.
        RuntimeError: out of memory, with advice.
    """
    config = replace(config, learning_rate=highest, prior_weight=0.0, text_encoder_learning_rate=0.0)
    parameterisation(model.get_model_object("model_sampling"))  # before any work: can it be trained at all?
    interrupt = Interrupt()
    reporter = Reporter(config.steps, node_id, interrupt)
    patcher = training_clone(model, config.precision)
    texts = texts_of(clip, patcher, config)
    try:
        reporter.text(f"encoding {len(pictures.pictures)} pictures and captions")
        data = encode(patcher, clip, texts, vae, pictures, config.seed)
        texts.keep(())
        leave_device(vae, clip)
        largest = max((example.latents for example in data.examples), key=Tensor.numel).unsqueeze(0)
        comfy.model_management.load_models_gpu([patcher], training_memory(patcher, config, largest))
        with ordinary_tensors(), autograd_weights(patcher.model):
            denoiser = HostDenoiser(patcher, interrupt)
            callbacks = Callbacks(progress=reporter.step, cancelled=interrupt.cancelled)
            options = {"lowest": lowest, "highest": highest, "probes": probes}
            sweep = find_rate(denoiser, data, config, callbacks=callbacks, **options)
    except TrainingCancelled:
        raise InterruptProcessingException() from None
    except Exception as error:
        raise_advice(error, config)
        raise
    reporter.text(f"suggested learning rate: {sweep.suggested:.3g}")
    return sweep
