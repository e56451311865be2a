"""Everything a training run is told, in one frozen, JSON-able value."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .layer_rules import parse_rules

TARGETS = ("attention", "attention+feed-forward", "all", "custom", "decoder")
OPTIMIZERS = ("adamw", "adafactor", "sgd", "adamw-8bit", "lion", "prodigy", "schedule-free")
ALGORITHMS = ("lora", "dora", "loha", "lokr", "oft", "adalora", "adaptive")
ADAPTING = ("adalora", "adaptive")
"""Those whose ranks change as they learn."""
TRUNCATIONS = ("quantile", "energy")
INITS = ("kaiming", "gaussian", "pissa", "olora")
SCHEDULES = ("constant", "cosine", "linear")
TIMESTEP_SAMPLINGS = ("uniform", "logit-normal", "sigmoid", "shift", "mode", "cosmap")
TIMESTEP_SHIFTINGS = ("model", "none", "static", "resolution")
LOSSES = ("mse", "huber")
HUBER_SCHEDULES = ("constant", "exponential", "snr")
WEIGHTINGS = ("none", "truncated-snr", "debiased", "p2", "auto")
DTYPES = ("fp32", "bf16")
PRECISIONS = ("as loaded", "bf16", "fp16", "fp32")
PRIOR_TARGETS = ("picture", "prediction")
TEXT_ENCODERS = ("all", "first", "second", "custom")


@dataclass(frozen=True)
class TrainingConfig:
    """A training run. Defaults are the usual LoRA recipe (AdamW, constant 1e-4, clip 1.0, attention layers).

    A *step* is one update of the adapter, made of ``gradient_accumulation`` batches of ``batch_size`` pictures.

    Attributes:
        steps: updates in all, those of a resumed run included.
        learning_rate: the peak of the schedule; 0 = by the sizes of the adapted layers, see :mod:`.auto_rate`.
        rank: of the adapter, where ``layer_rules`` say nothing else; of OFT, the size of the largest block.
        alpha: ΔW = alpha/rank · up · down.
        batch_size: pictures in a batch, all of one bucket.
        seed: decides adapter init, order, σ, noise, dropouts and flips.
        targets: one of :data:`TARGETS`; ``custom`` takes the layers whose name ``target_pattern`` matches.
        target_pattern: regular expression, searched in canonical layer names (``diffusion_model.…``).
        optimizer: one of :data:`OPTIMIZERS`; ``prodigy`` finds the rate itself and wants a ``learning_rate`` of 1.
        weight_decay: decoupled, or L2 (SGD).
        schedule: one of :data:`SCHEDULES`, after ``warmup_steps`` of linear warm-up.
        warmup_steps: steps from 0 to the peak; the first one has a rate of 0, as in transformers and diffusers.
        gradient_accumulation: batches a step.
        max_grad_norm: clip the gradient's norm over all layers; 0 = no clipping.
        gradient_checkpointing: recompute blocks' activations instead of keeping them.
        checkpointing_share: of the blocks, in [0, 1]; those that keep most memory are recomputed first.
        offload_blocks: share of the blocks, in [0, 1], whose frozen weights live in main memory and come to the device
            for their passes ("block swap"); on a CPU, in a temporary file.
        compile: run blocks through torch.compile; if that fails, a warning, and on without it.
        precision: of the base model, for whoever makes the Denoiser; the loop does not touch the base.
        adapter_dtype: one of :data:`DTYPES`.
        dropout: of the adapter's input, in [0, 1).
        loss: one of :data:`LOSSES`; ``huber`` is the smooth pseudo-Huber 2c(√(e²+c²) − c).
        huber_c: its c, in units of the predicted quantity's error.
        min_snr_gamma: γ of min-SNR (5 is usual); 0 = off.
        timestep_sampling: one of :data:`TIMESTEP_SAMPLINGS`, see :mod:`.levels`; ``shift`` is ``sigmoid`` with
            ``static`` shifting, unless ``timestep_shifting`` says otherwise.
        timestep_mean: m of the logit-normal.
        timestep_std: s of the logit-normal, the sigmoid and the shift.
        timestep_shift: factor of ``static`` shifting (1 = none, 3 = more noise).
        noise_offset: a constant a channel added to the noise, so many standard deviations (0.05 to 0.1 is usual).
        caption_dropout: share of pictures trained with the empty caption.
        checkpoint_every: steps between checkpoints; 0 = only at the end, on cancel and on error.
        keep_last: so many checkpoints are kept; 0 = all.
        sample_every: steps between calls of ``Callbacks.sample``; 0 = never.
        huber_schedule: one of :data:`HUBER_SCHEDULES`, see :func:`.objectives.scheduled_huber_c`.
        weighting: one of :data:`WEIGHTINGS`, see :mod:`.objectives`; min-SNR has ``min_snr_gamma`` to itself, and only
            one of the two can be on, but ``auto`` gives way to it.
        p2_gamma: γ of P2; 0.5 to 1 is usual.
        p2_k: k of P2; 1 is usual.
        timestep_mode_scale: S of ``mode`` sampling, -1 to 1.75; 0 = uniform.
        timestep_shifting: one of :data:`TIMESTEP_SHIFTINGS`: the model's own, none at all, by ``timestep_shift``, or
            by the count of image tokens.
        pyramid_levels: of coarser noise that are added to the noise; 0 = none, 6 is usual.
        pyramid_discount: weight of each such level relative to the one before.
        input_perturbation: γ of the noise that only the network's input gets; 0 = off, 0.1 is usual.
        unmasked_weight: what the loss counts where a mask is 0, in [0, 1); 0.1 keeps the background in mind.
        algorithm: one of :data:`ALGORITHMS`, see :mod:`.adapters`.
        init: one of :data:`INITS`: how LoRA's factors begin; DoRA takes the first two, the others have their own.
        rank_stabilised: ΔW = alpha/√rank · up · down (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732); LoRA and DoRA.
        loraplus_ratio: the learning rate of B (``lora_up``) is so many times that of A (LoRA+, Hayou et al. 2024, arXiv
            2402.12354); ``learning_rate`` is A's. LoRA, DoRA and ``adaptive``; 1 = off, 16 is the paper's.
        lokr_factor: LoKr's small matrix is about so large in each direction; -1 = near the square root.
        layer_rules: ranks, alphas and learning rates of single layers, a line each, see :mod:`.layer_rules`.
        prior_weight: λ of the loss that keeps what the model knew, see :mod:`.prior`; 0 = off.
        prior_target: one of :data:`PRIOR_TARGETS`: class pictures themselves (DreamBooth), or what the base model
            predicts. Without class pictures it is the latter.
        text_encoder_learning_rate: the peak of the schedule in text encoders; 0 = they are not trained.
        text_encoders: one of :data:`TEXT_ENCODERS`; ``custom`` takes the layers that ``text_encoder_pattern`` matches.
        text_encoder_pattern: regular expression, searched in canonical layer names (``clip_l.…``, ``t5xxl.…``).
        target_rank: of the algorithms that adapt ranks: the mean that AdaLoRA keeps; where the regulariser of
            ``adaptive`` pulls each layer. ``rank`` is what they begin with; 0 = half of that.
        rank_lr: of ``adaptive``: the learning rate of ν at the schedule's peak, see :mod:`.adaptive_rank`.
        rank_weight: of ``adaptive``: λ of |ν − ν_target|; 0 = off.
        entropy_weight: of ``adaptive``: of the entropy of cross-attention, see :mod:`.attention_entropy`; 0 = off.
        export_truncation: of ``adaptive``: one of :data:`TRUNCATIONS`: what the file keeps of each layer, all
            components, or the strongest directions of ΔW that ``export_energy`` of ‖ΔW‖² is in.
        export_energy: that share, in (0, 1].
        ema_decay: of the moving average that samples, checkpoints and the result are taken from, see :mod:`.ema`;
            0 = off, 0.99 to 0.999 is usual.
    """

    steps: int = 500
    learning_rate: float = 1e-4
    rank: int = 16
    alpha: float = 16.0
    batch_size: int = 1
    seed: int = 0
    targets: str = "attention"
    target_pattern: str = ""
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    schedule: str = "constant"
    warmup_steps: int = 0
    gradient_accumulation: int = 1
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    checkpointing_share: float = 1.0
    offload_blocks: float = 0.0
    compile: bool = False
    precision: str = "as loaded"
    adapter_dtype: str = "fp32"
    dropout: float = 0.0
    loss: str = "mse"
    huber_c: float = 0.1
    min_snr_gamma: float = 0.0
    timestep_sampling: str = "uniform"
    timestep_mean: float = 0.0
    timestep_std: float = 1.0
    timestep_shift: float = 3.0
    noise_offset: float = 0.0
    caption_dropout: float = 0.0
    checkpoint_every: int = 0
    keep_last: int = 2
    sample_every: int = 0
    huber_schedule: str = "constant"
    weighting: str = "none"
    p2_gamma: float = 1.0
    p2_k: float = 1.0
    timestep_mode_scale: float = 1.29
    timestep_shifting: str = "model"
    pyramid_levels: int = 0
    pyramid_discount: float = 0.3
    input_perturbation: float = 0.0
    unmasked_weight: float = 0.0
    algorithm: str = "lora"
    init: str = "kaiming"
    rank_stabilised: bool = False
    lokr_factor: int = -1
    layer_rules: str = ""
    prior_weight: float = 0.0
    prior_target: str = "picture"
    text_encoder_learning_rate: float = 0.0
    text_encoders: str = "all"
    text_encoder_pattern: str = ""
    ema_decay: float = 0.0
    target_rank: int = 0
    rank_lr: float = 1e-2
    rank_weight: float = 1e-4
    entropy_weight: float = 0.0
    export_truncation: str = "quantile"
    export_energy: float = 0.99
    loraplus_ratio: float = 1.0

    def validate(self) -> TrainingConfig:
        """Return self.

        Raises:
            ValueError: names each field that is wrong, its value and what is allowed.
        """
        wrong: list[str] = []

        def at_least(name: str, least: float, *, above: bool = False) -> None:
            value = getattr(self, name)
            if not math.isfinite(value) or value < least or (above and value == least):
                wrong.append(f"{name} is {value}; it must be {'above' if above else 'at least'} {least}")

        def one_of(name: str, allowed: tuple[str, ...]) -> None:
            value = getattr(self, name)
            if value not in allowed:
                wrong.append(f"{name} is {value!r}; choose one of {', '.join(allowed)}")

        def share(name: str, *, one: bool) -> None:
            value = getattr(self, name)
            if not (0 <= value < 1 or (one and value == 1)):
                wrong.append(f"{name} is {value}; it must be from 0 to {'1' if one else 'below 1'}")

        for name in ("steps", "rank", "batch_size", "gradient_accumulation"):
            at_least(name, 1)
        for name in ("alpha", "huber_c", "timestep_std", "timestep_shift"):
            at_least(name, 0, above=True)
        for name in ("learning_rate", "weight_decay", "warmup_steps", "max_grad_norm", "min_snr_gamma", "noise_offset"):
            at_least(name, 0)
        for name in ("prior_weight", "rank_weight", "entropy_weight"):
            at_least(name, 0)
        at_least("target_rank", 0)
        at_least("rank_lr", 0, above=True)
        at_least("loraplus_ratio", 0, above=True)
        one_of("export_truncation", TRUNCATIONS)
        if not 0 < self.export_energy <= 1:
            wrong.append(f"export_energy is {self.export_energy}; it must be above 0, up to 1 (all)")
        at_least("text_encoder_learning_rate", 0)
        share("ema_decay", one=False)
        for name in ("checkpoint_every", "keep_last", "sample_every", "seed"):
            at_least(name, 0)
        for name in ("p2_gamma", "pyramid_levels", "input_perturbation"):
            at_least(name, 0)
        at_least("p2_k", 0, above=True)
        one_of("timestep_shifting", TIMESTEP_SHIFTINGS)
        one_of("huber_schedule", HUBER_SCHEDULES)
        one_of("weighting", WEIGHTINGS)
        share("pyramid_discount", one=True)
        share("unmasked_weight", one=False)
        if not -1 <= self.timestep_mode_scale <= 1.75:
            wrong.append(f"timestep_mode_scale is {self.timestep_mode_scale}; it must be from -1 to 1.75")
        if self.timestep_sampling == "shift" and self.timestep_shifting == "none":
            wrong.append("timestep_sampling is 'shift' but timestep_shifting 'none'; choose sampling 'sigmoid'")
        if self.min_snr_gamma > 0 and self.weighting not in ("none", "auto"):
            wrong.append(
                f"min_snr_gamma is {self.min_snr_gamma:g} and weighting {self.weighting!r}; only one of them can be on "
                f"(set min_snr_gamma to 0)"
            )
        if not math.isfinite(self.timestep_mean):
            wrong.append(f"timestep_mean is {self.timestep_mean}; it must be a finite number")
        one_of("targets", TARGETS)
        one_of("optimizer", OPTIMIZERS)
        one_of("schedule", SCHEDULES)
        one_of("timestep_sampling", TIMESTEP_SAMPLINGS)
        one_of("loss", LOSSES)
        one_of("adapter_dtype", DTYPES)
        one_of("precision", PRECISIONS)
        one_of("prior_target", PRIOR_TARGETS)
        one_of("text_encoders", TEXT_ENCODERS)
        share("checkpointing_share", one=True)
        share("offload_blocks", one=True)
        if self.compile and self.offload_blocks:
            wrong.append("compile is on and offload_blocks is above 0; weights that come and go cannot be compiled")
        share("caption_dropout", one=True)
        share("dropout", one=False)
        one_of("algorithm", ALGORITHMS)
        one_of("init", INITS)
        wrong += self._wrong_adapter()
        if self.targets == "custom" and not self.target_pattern:
            wrong.append("targets is 'custom' but target_pattern is empty; give a regular expression of layer names")
        if self.text_encoders == "custom" and not self.text_encoder_pattern:
            wrong.append("text_encoders is 'custom' but text_encoder_pattern is empty; give a regular expression")
        if wrong:
            raise ValueError("The training configuration cannot be used: " + "; ".join(wrong) + ".")
        return self

    def _wrong_adapter(self) -> list[str]:
        """What does not go together in algorithm, optimizer and rules."""
        wrong = []
        plain = self.algorithm in ("lora", "dora")
        drops = plain or self.algorithm in ADAPTING
        if not plain and (self.init != "kaiming" or self.rank_stabilised or (self.dropout and not drops)):
            wrong.append(
                f"algorithm is {self.algorithm!r}, which has an init and a scale of its own"
                + (
                    "; set init to 'kaiming' and rank_stabilised to false"
                    if drops
                    else " and no dropout; set init to 'kaiming', rank_stabilised to false and dropout to 0"
                )
            )
        if self.loraplus_ratio != 1 and self.algorithm not in ("lora", "dora", "adaptive"):
            wrong.append(
                f"loraplus_ratio is {self.loraplus_ratio:g} and algorithm {self.algorithm!r}, which has no A and B; "
                f"set loraplus_ratio to 1, or choose 'lora' or 'dora'"
            )
        if self.algorithm in ADAPTING:
            wrong += self._wrong_ranks()
        if self.algorithm == "dora" and self.init in ("pissa", "olora"):
            wrong.append(f"algorithm is 'dora' and init {self.init!r}; choose init 'kaiming' or 'gaussian'")
        if self.lokr_factor < 2 and self.lokr_factor != -1:
            wrong.append(f"lokr_factor is {self.lokr_factor}; it must be -1, or 2 and more")
        try:
            rules = parse_rules(self.layer_rules)
        except ValueError as why:
            wrong.append(str(why))
            rules = ()
        if self.optimizer == "prodigy" and any(rule.rate != 1 for rule in rules):
            wrong.append("optimizer is 'prodigy', which has one rate for all layers; take lr=… out of layer_rules")
        if self.optimizer == "prodigy" and self.loraplus_ratio != 1:
            wrong.append("optimizer is 'prodigy', which has one rate for A and B; set loraplus_ratio to 1")
        if self.optimizer == "prodigy" and self.text_encoder_learning_rate not in (0, self.learning_rate):
            wrong.append(
                f"optimizer is 'prodigy', which has one rate for all layers; set text_encoder_learning_rate to "
                f"{self.learning_rate:g} too, or to 0"
            )
        if self.optimizer == "schedule-free" and self.schedule != "constant":
            wrong.append(f"optimizer is 'schedule-free' and schedule {self.schedule!r}; choose schedule 'constant'")
        return wrong

    @property
    def kept_rank(self) -> int:
        """``target_rank``, or what stands for it."""
        return self.target_rank or max(1, self.rank // 2)

    def _wrong_ranks(self) -> list[str]:
        """What does not go together with ranks that change."""
        wrong = []
        if self.algorithm == "adaptive" and self.optimizer not in ("adamw", "sgd", "lion"):
            wrong.append(
                f"optimizer is {self.optimizer!r}, whose state cannot be carried over to other ranks; choose 'adamw', "
                f"'sgd' or 'lion'"
            )
        if self.algorithm == "adaptive" and self.compile:
            wrong.append("compile is on; layers whose rank changes would be compiled anew each time: turn it off")
        if self.algorithm == "adaptive" and self.entropy_weight and self.gradient_checkpointing:
            wrong.append(
                "entropy_weight is above 0 and gradient_checkpointing on; the maps of cross-attention would be kept "
                "all the same. Set one of them to 0 or off"
            )
        if self.algorithm == "adalora" and self.kept_rank >= self.rank:
            wrong.append(
                f"algorithm is 'adalora', target_rank {self.kept_rank} and rank {self.rank}; it begins with more "
                f"than it keeps: a rank of 1.5 to 2 times the target is usual"
            )
        if self.algorithm == "adalora" and (self.ema_decay or self.optimizer == "schedule-free"):
            wrong.append(
                "algorithm is 'adalora', and an average of components that come and go is none of them; set ema_decay "
                "to 0 and choose another optimizer than 'schedule-free'"
            )
        return wrong

    def to_json(self) -> str:
        """The configuration as a JSON object, a field a key."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> TrainingConfig:
        """Read what :meth:`to_json` wrote. Fields it does not name keep their defaults.

        Raises:
            ValueError: not a JSON object, or a field that does not exist.
        """
        values = json.loads(text)
        if not isinstance(values, Mapping):
            raise ValueError(f"A training configuration is a JSON object, not {type(values).__name__}.")
        return cls.from_mapping(values)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """As :meth:`from_json`, from a mapping."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"Unknown training option {', '.join(unknown)}. It was perhaps written by a newer version of Likeness; "
                f"known are {', '.join(sorted(known))}."
            )
        return cls(**values).validate()
