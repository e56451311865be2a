from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from likeness.trainers import optimizers
from likeness.trainers.adapters import Method
from likeness.trainers.adaptive_rank import AdaptiveLowRank, AdaptiveRanks
from likeness.trainers.config import TrainingConfig
from likeness.trainers.exponential import QUANTILE, nu_of_rank, rank_of_nu, softplus
from likeness.trainers.loop import train
from likeness.trainers.lora import Adapters, injected
from likeness.trainers.outcome import Callbacks, TrainingCancelled, TrainingResult
from likeness.trainers.targets import PREFIX

# ν moves fast, so that ranks change within a few steps.
RUN = TrainingConfig(
    algorithm="adaptive",
    steps=8,
    rank=3,
    alpha=4.0,
    target_rank=2,
    rank_lr=0.3,
    rank_weight=1e-3,
    learning_rate=1e-2,
    targets="all",
    batch_size=2,
    seed=5,
)


def as_bytes(result: TrainingResult) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in result.tensors.items()}


def moved(layer: AdaptiveLowRank, seed: int = 2) -> None:
    chance = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters().values():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=chance)


LAYERS = {"linear": lambda: nn.Linear(12, 20), "conv": lambda: nn.Conv2d(6, 10, 3, padding=1)}
INPUTS = {"linear": (3, 5, 12), "conv": (2, 6, 5, 5)}


@contextmanager
def one_layer(kind: str, rank: int = 4, **changes: Any) -> Iterator[tuple[nn.Module, Adapters, AdaptiveRanks]]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = nn.ModuleDict({"layer": LAYERS[kind]()}).double()
    config = dataclasses.replace(RUN, rank=rank, **changes)
    method = Method.of(config)
    with injected(
        {PREFIX: module}, [f"{PREFIX}layer"], rank=rank, alpha=4.0, seed=0, method=method, dtype=torch.float64
    ) as adapters:
        yield module, adapters, AdaptiveRanks(adapters, config)


def only(ranks: AdaptiveRanks) -> AdaptiveLowRank:
    (layer,) = ranks.layers.values()
    return layer


def settled(ranks: AdaptiveRanks, nu: float) -> list[Any]:
    """As a step of ν to that value would leave the layer."""
    ranks.raw.data.fill_(torch.tensor(nu, dtype=torch.float64).expm1().log())
    found = only(ranks).resize(rank_of_nu(nu), torch.Generator().manual_seed(9))
    ranks._refresh()
    return found


@pytest.mark.parametrize("kind", LAYERS)
def test_the_live_layer_is_the_exported_delta(kind: str) -> None:
    """Fails if Λ is left out of the file, folded in twice, or misses in a forward pass: an independent product."""
    with one_layer(kind) as (module, adapters, ranks):
        layer = only(ranks)
        moved(layer)
        x = torch.randn(INPUTS[kind], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        base = layer.base
        live = module["layer"](x)
        down, up = (parameter.detach() for parameter in layer.parameters().values())
        nu = ranks.nu.item()
        f = [float(torch.tensor(-nu * i).exp() - torch.tensor(-nu * (i + 1)).exp().clamp_min(0.1)) for i in range(4)]
        product = sum(
            4.0 / QUANTILE * f[i] * torch.outer(up.flatten(1)[:, i], down.flatten(1)[i]) for i in range(layer.rank)
        )
        delta = adapters.deltas()[f"{PREFIX}layer"]
        assert delta.alpha == delta.rank == 4
        assert torch.allclose(delta.dense().flatten(1).double(), product, atol=1e-5)
        base.weight.data += product.reshape(base.weight.shape)
        with adapters.disabled():
            assert torch.allclose(module["layer"](x), live.detach(), atol=1e-6)
        assert float(adapters.norm()) == pytest.approx(float(product.norm()), rel=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("rank", [1.0, 1.7, 2.0, 3.4, 7.2])
def test_the_gradient_of_nu_is_that_of_the_discrete_model(kind: str, rank: float) -> None:
    """Fails if autograd misses that D moves with ν: finite differences across the whole model, D anew at each ν."""
    with one_layer(kind, rank=9, rank_weight=0.37, target_rank=5) as (module, _, ranks):
        layer = only(ranks)
        moved(layer)
        kept = {suffix: parameter.detach().clone() for suffix, parameter in layer.parameters().items()}
        x = torch.randn(INPUTS[kind], generator=torch.Generator().manual_seed(3), dtype=torch.float64)

        def loss(raw: float) -> torch.Tensor:
            ranks.raw.data.fill_(raw)
            nu = softplus(ranks.raw).item()
            count = rank_of_nu(nu)
            down, up = kept.values()
            layer.restore(down[:count], up[:, :count])
            ranks._refresh()
            return module["layer"](x).square().sum()

        raw = float(torch.tensor(nu_of_rank(rank) * 1.001, dtype=torch.float64).expm1().log())
        loss(raw).backward()
        ranks.gradient(1.0)
        assert ranks.raw.grad is not None
        found = float(ranks.raw.grad)
        h = 1e-6

        def whole(raw: float) -> float:
            value = float(loss(raw).detach())
            return value + 0.37 * abs(softplus(ranks.raw).item() - nu_of_rank(5))

        assert found == pytest.approx((whole(raw + h) - whole(raw - h)) / (2 * h), rel=1e-4, abs=1e-6)


def test_the_model_is_continuous_where_a_rank_changes() -> None:
    """Fails if dropping a component moves ΔW: at the very ν where D goes from 5 to 4, from either side."""
    with one_layer("linear", rank=6) as (_, _, ranks):
        layer = only(ranks)
        moved(layer)
        settled(ranks, nu_of_rank(5))
        five = layer.change()
        assert layer.rank == 5
        edge = nu_of_rank(4)
        ranks.raw.data.fill_(torch.tensor(edge, dtype=torch.float64).expm1().log())
        ranks._refresh()  # the new ν, and the components of the old one still there
        assert layer.rank == 5
        before = layer.change()
        assert [change.new.shape[change.dim] for change in settled(ranks, edge)] == [4, 4]
        assert layer.rank == 4 and torch.equal(layer.change(), before)
        assert not torch.allclose(before, five)  # ν itself has moved weight between the others


@pytest.mark.parametrize("kind", LAYERS)
def test_growing_changes_nothing_at_that_moment(kind: str) -> None:
    """Fails if a new column of B is not zero, or a new row of A is: the one would move ΔW, the other never learn."""
    with one_layer(kind) as (_, _, ranks):
        layer = only(ranks)
        moved(layer)
        grown = nu_of_rank(7)
        old = [parameter.detach().clone() for parameter in layer.parameters().values()]
        ranks.raw.data.fill_(torch.tensor(grown, dtype=torch.float64).expm1().log())
        ranks._refresh()
        before = layer.change()
        changes = settled(ranks, grown)
        assert layer.rank == 7 and torch.allclose(layer.change(), before, atol=1e-12)
        down, up = layer.parameters().values()
        assert torch.equal(down[:4], old[0]) and torch.equal(up[:, :4], old[1])
        bound = down.shape[1:].numel() ** -0.5
        assert not up[:, 4:].any() and bool((down[4:].flatten(1).abs().amax(1) > bound / 2).all())
        assert float(down[4:].abs().max()) <= bound and {change.dim for change in changes} == {0, 1}


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion"])
def test_optimizer_state_goes_along(name: str) -> None:
    """Fails if moments are lost or shifted, or those of a new component are another's."""
    with one_layer("linear") as (_, adapters, ranks):
        layer = only(ranks)
        optimizer = optimizers.build(name, adapters.parameters(), 1e-2, 0.0)
        for _ in range(3):
            for parameter in adapters.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        state = {key: value for key, value in optimizers.state_tensors(optimizer).items() if value.ndim}
        optimizers.resize(optimizer, settled(ranks, nu_of_rank(6)))
        grown = optimizers.state_tensors(optimizer)
        assert [p for group in optimizer.param_groups for p in group["params"]] == adapters.parameters()
        for key, value in state.items():
            dim = int(key.startswith("1"))
            now = grown[key]
            assert now.shape[dim] == 6 and torch.equal(now.narrow(dim, 0, 4), value)
            assert not now.narrow(dim, 4, 2).any()
        optimizers.resize(optimizer, settled(ranks, nu_of_rank(2)))
        shrunk = optimizers.state_tensors(optimizer)
        for key, value in state.items():
            assert torch.equal(shrunk[key], value.narrow(int(key.startswith("1")), 0, 2))
        for parameter in adapters.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        assert layer.rank == 2


def test_the_first_steps_do_not_depend_on_the_initial_rank() -> None:
    """Fails if A is drawn √2/√Σf² wide (2.8 times as fast with rank 32 as with 4), or ΔW is scaled by f alone."""
    found = []
    for rank in (4, 8, 16, 32):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = nn.ModuleDict({"layer": nn.Linear(64, 64)})
            x, target = torch.randn(256, 64), torch.randn(64, 64) / 8
        config = dataclasses.replace(RUN, rank=rank, target_rank=rank)
        with injected(
            {PREFIX: module}, [f"{PREFIX}layer"], rank=rank, alpha=8.0, seed=0, method=Method.of(config)
        ) as adapters:
            AdaptiveRanks(adapters, config)
            optimizer = optimizers.build("adamw", adapters.parameters(), 1e-3, 0.0)
            wanted = module["layer"](x).detach() + x @ target
            losses = []
            for _ in range(4):
                loss = (module["layer"](x) - wanted).square().mean()
                losses.append(loss.item())
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            found.append(losses[0] - losses[3])
    assert min(found) > 0 and max(found) / min(found) < 1.2, found


@pytest.mark.parametrize("energy", [0.9, 0.99])
def test_energy_truncates_to_the_best_of_a_rank(energy: float) -> None:
    """Fails if the cut is not that of the SVD, too early, or one component late."""
    with one_layer("conv", rank=6, export_truncation="energy", export_energy=energy) as (_, adapters, ranks):
        layer = only(ranks)
        moved(layer)
        whole = layer.change().double()
        delta = adapters.deltas()[f"{PREFIX}layer"]
        cut = delta.dense().flatten(1).double()
        values = torch.linalg.svdvals(whole)
        shares = values.square().cumsum(0) / values.square().sum()
        assert delta.rank == int((shares < energy).sum()) + 1 < 6
        best = float(values[delta.rank :].square().sum().sqrt())
        assert float((whole - cut).norm()) == pytest.approx(best, rel=1e-3)
        assert ranks.ranks()[f"{PREFIX}layer"].exported == delta.rank


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lion"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_resume_is_bit_for_bit(optimizer: str, ema: float, toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if ν, its moments, the unfolded factors or a rank are not what an unbroken run has at that step."""
    config = dataclasses.replace(
        RUN, optimizer=optimizer, schedule="cosine", checkpoint_every=4, keep_last=0, dropout=0.1, ema_decay=ema
    )
    whole = train(toy(), data(), config, tmp_path / "whole")
    from_four = tmp_path / "whole" / "checkpoints" / "step-000004"
    resumed = train(toy(), data(), config, tmp_path / "two", resume_from=from_four)
    assert as_bytes(whole) == as_bytes(resumed) and whole.losses == resumed.losses and whole.ranks == resumed.ranks
    one, two = (tmp_path / name / "checkpoints" / "step-000008" for name in ("whole", "two"))
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name
    seen = [record["mean_rank"] for record in whole.records]
    assert len({*seen}) > 1, "the ranks did not move, so this would compare little"


def test_same_seed_same_bytes_and_the_log_tells_the_ranks(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if a new row of A comes from the global generator, or the log's ranks are not the file's."""
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(train(toy(), data(), RUN, tmp_path / str(seed)))
    assert as_bytes(results[0]) == as_bytes(results[1])
    last = json.loads((tmp_path / "1" / "log.jsonl").read_text().splitlines()[-1])
    assert last["ranks"] == {name: layer.rank for name, layer in results[0].ranks.items()}
    assert last["ranks"] == {name: delta.rank for name, delta in results[0].deltas.items()}
    assert len({*last["ranks"].values()}) > 1


@pytest.mark.parametrize("economy", [{"gradient_checkpointing": True}, {"offload_blocks": 1.0}])
def test_economies_change_no_bit(economy: dict[str, Any], toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if a recomputed or streamed block meets other weights than the first time, or a resize breaks it."""
    plain = train(toy(), data(), RUN, tmp_path / "plain")
    spared = train(toy(), data(), dataclasses.replace(RUN, **economy), tmp_path / "spared")
    assert plain.losses == spared.losses and as_bytes(plain) == as_bytes(spared)


def test_accumulated_batches_are_one_step_of_nu(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if a second backward pass of a step needs ν's graph again, or its gradient is of the last batch alone."""
    config = dataclasses.replace(RUN, gradient_accumulation=3, steps=4)
    result = train(toy(), data(), config, tmp_path)
    assert result.steps_done == 4 and len({layer.nu for layer in result.ranks.values()}) > 1


def test_a_cancelled_run_goes_on(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if the checkpoint of a cancelled run, even of no step at all, cannot be resumed from."""
    whole = train(toy(), data(), RUN, tmp_path / "whole")
    for count in (0, 3):
        folder, asks = tmp_path / str(count), iter(range(99))
        with pytest.raises(TrainingCancelled):
            stop = Callbacks(cancelled=lambda asks=asks, count=count: next(asks) >= count)
            train(toy(), data(), RUN, folder, stop)
        assert as_bytes(train(toy(), data(), RUN, folder, resume_from=folder)) == as_bytes(whole)


def test_without_a_loss_the_regulariser_decides(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if ν is pushed away from the target, past it for good, or not at all."""
    config = dataclasses.replace(RUN, learning_rate=1e-12, rank=6, rank_weight=10.0, rank_lr=0.05, steps=60)
    train(toy(), data(), config, tmp_path)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    ranks = [line["mean_rank"] for line in log]
    assert ranks[-1] == pytest.approx(2, abs=0.5) and ranks[0] > 3


WRONG = {
    "optimizer": "adafactor",
    "compile": True,
    "init": "pissa",
    "rank_stabilised": True,
    "target_rank": -1,
    "rank_lr": 0.0,
    "export_energy": 0.0,
    "export_truncation": "both",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_go_together_is_refused(name: str) -> None:
    """Fails if a run begins that would lose state, or divide by zero, later."""
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(RUN, **{name: WRONG[name]}).validate()


def test_ranks_find_the_order_of_what_is_to_be_learnt() -> None:
    """Fails if ν's gradient tells nothing of a layer's need: planted ΔW of rank 1, 4, 8 and 16, all of one norm."""
    planted, size = (1, 4, 8, 16), 32
    chance = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.ModuleDict({f"layer{rank}": nn.Linear(size, size, bias=False) for rank in planted})
    config = dataclasses.replace(RUN, rank=6, target_rank=6, rank_lr=1e-2, rank_weight=1e-4)
    targets = []
    for rank in planted:
        left, right = (torch.linalg.qr(torch.randn(size, size, generator=chance))[0][:, :rank] for _ in "lr")
        targets.append(module[f"layer{rank}"].weight.detach() + left @ right.T / rank**0.5)
    names = [f"{PREFIX}layer{rank}" for rank in planted]
    with injected({PREFIX: module}, names, rank=6, alpha=4.0, seed=0, method=Method.of(config)) as adapters:
        ranks = AdaptiveRanks(adapters, config)
        optimizer = optimizers.build("adamw", adapters.parameters(), 1e-2, 0.0)
        for step in range(250):
            x = torch.randn(16, size, generator=chance)
            pairs = zip(module.values(), targets, strict=True)
            loss = torch.stack([(layer(x) - x @ target.T).square().sum(1).mean() for layer, target in pairs]).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizers.resize(optimizer, ranks.step(step + 1, 1.0, 1.0))
        found = list(ranks.counts().values())
    assert loss.item() < 0.05, (loss.item(), found)
    assert found == sorted(found) and found[-1] > 13 and found[-2] > found[0], found


def test_sd_scripts_and_peft_read_the_same_delta(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if alpha and rank of a layer are not as other programs take them: sd-scripts' formula, and peft itself."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    result = train(toy(), data(), RUN, tmp_path)
    ranks = {name.removeprefix(PREFIX): delta.rank for name, delta in result.deltas.items()}
    assert len({*ranks.values()}) > 1
    module = toy().module
    escaped = {"^" + name.replace(".", r"\."): rank for name, rank in ranks.items()}
    config = LoraConfig(r=1, lora_alpha=1, target_modules=list(ranks), rank_pattern=escaped, alpha_pattern=escaped)
    inject_adapter_in_model(config, module, adapter_name="default")
    state = {}
    for name in ranks:
        base = f"{PREFIX}{name}"
        state[f"{name}.lora_A.weight"] = result.tensors[f"{base}.lora_down.weight"]
        state[f"{name}.lora_B.weight"] = result.tensors[f"{base}.lora_up.weight"]
    loaded = set_peft_model_state_dict(module, state)
    assert not loaded.unexpected_keys
    for name, delta in result.deltas.items():
        down, up, alpha = (result.tensors[f"{name}.{end}"] for end in ("lora_down.weight", "lora_up.weight", "alpha"))
        scripts = float(alpha) / down.shape[0] * up.flatten(1) @ down.flatten(1)
        peft = module.get_submodule(name.removeprefix(PREFIX)).get_delta_weight("default")
        assert torch.allclose(scripts, delta.dense().flatten(1), atol=1e-5)
        assert torch.allclose(peft, delta.dense(), atol=1e-5)
