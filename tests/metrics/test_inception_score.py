"""The Inception score where it can be worked out, against torchmetrics; the network and its two files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.metrics.inception import (
    STATE_FILE,
    Inception,
    InceptionFeatures,
    inception_file,
    load_inception,
    prepared,
)
from likeness.metrics.inception_score import inception_score, mean_inception_score


def test_uniform_is_1_and_ten_sure_classes_are_10() -> None:
    """Fails if the marginal is not the mean of the probabilities, or the score is not the exponential."""
    assert mean_inception_score(torch.zeros(20, 10)) == pytest.approx(1)
    sure = 1e4 * torch.eye(10)
    assert inception_score(sure, splits=1).score == pytest.approx(10)
    assert inception_score(sure, splits=5).score == pytest.approx(2)  # two sure classes in each
    assert inception_score(sure[:3]).splits == 3


@given(st.integers(0, 10**6), st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_bounds_and_order(seed: int, count: int) -> None:
    """Fails if a score leaves [1, classes], or in one split depends on the order of the pictures or on what is added
    to all logits of one."""
    logits = 3 * torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    whole = inception_score(logits, splits=1)
    assert 1 - 1e-9 <= whole.score <= 4 and whole.spread is None
    p = logits.softmax(1)
    by_hand = sum(
        float(a) * math.log(float(a) / float(b)) for row in p for a, b in zip(row, p.mean(0), strict=True) if a > 0
    )
    assert whole.score == pytest.approx(math.exp(by_hand / count))
    assert inception_score(logits.flip(0) + 5, splits=1).score == pytest.approx(whole.score)


def test_torchmetrics_agrees() -> None:
    """torchmetrics' formula in one split. Fails if the logarithm's base or the mean over pictures differs."""
    module = pytest.importorskip("torchmetrics.image.inception")
    logits = 2 * torch.randn(50, 8)
    theirs = module.InceptionScore(feature=torch.nn.Identity(), splits=1, normalize=False)
    theirs.features.append(logits)
    assert inception_score(logits, splits=1).score == pytest.approx(float(theirs.compute()[0]), rel=1e-5)


def test_what_has_no_score_is_refused() -> None:
    """Fails if NaN logits or no pictures give a number."""
    for logits in (torch.zeros(0, 5), torch.zeros(3, 1), torch.full((2, 3), torch.nan)):
        with pytest.raises(ValueError, match=r"expected logits|NaN"):
            inception_score(logits)


@pytest.fixture(scope="module")
def network() -> Inception:
    torch.manual_seed(0)
    return Inception().eval()


def test_torchvisions_layers_are_ours(network: Inception) -> None:
    """torchvision's Inception v3 with our weights, up to where the graph of 2015 differs (its pooling counts the
    padding, so only constant and pool-free layers can agree): the first layers and the two that halve. Fails if a
    kernel, stride, padding or the ε of a norm differs."""
    theirs = pytest.importorskip("torchvision").models.inception_v3(weights=None, init_weights=False, aux_logits=False)
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("fc.")}
    assert not theirs.load_state_dict(state, strict=False).unexpected_keys
    theirs.eval()
    x = torch.rand(1, 3, 75, 75)
    with torch.no_grad():
        for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"):
            ours, x = getattr(network, name)(x), getattr(theirs, name)(x)
            assert torch.allclose(ours, x, atol=1e-6)
        for name, inputs in (("Mixed_6a", 288), ("Mixed_7a", 768)):
            inside = torch.rand(1, inputs, 9, 9)
            assert torch.allclose(getattr(network, name)(inside), getattr(theirs, name)(inside), atol=1e-6)
        middle = torch.rand(1, 768, 5, 5)
        inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # the padding touches the edge alone
        assert torch.allclose(network.Mixed_6b(middle)[inner], theirs.Mixed_6b(middle)[inner], atol=1e-6)
        assert not torch.allclose(network.Mixed_6b(middle), theirs.Mixed_6b(middle), atol=1e-6)


def test_a_state_dict_is_read_and_another_file_is_not(network: Inception, tmp_path: Path) -> None:
    """Fails if a file that is not the network is taken, a script with another digest is opened, or the classes of a
    file without them are made up; or if the batch size changes a feature."""
    assert inception_score(network.logits(torch.rand(4, 2048)), splits=2).splits == 2
    path = tmp_path / STATE_FILE
    torch.save(network.state_dict(), path)
    assert inception_file(tmp_path) == path
    loaded = load_inception(path)
    pictures = torch.rand(2, 3, 40, 50)
    features = InceptionFeatures(loaded, batch=1)(pictures)
    with torch.no_grad():
        assert torch.allclose(features, network(prepared(pictures, "clean")), atol=1e-5)
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, path)
    with pytest.raises(ValueError, match=r"is missing or of another shape"):
        load_inception(path)
    script = tmp_path / "default_1.pt"
    torch.jit.script(torch.nn.Identity()).save(str(script))
    with pytest.raises(ValueError, match=r"holds code, so no other is opened"):
        load_inception(script)
    with pytest.raises(ValueError, match="has no classes"):
        Inception(0).logits(torch.rand(1, 2048))


def test_sizes_are_resampled_as_said() -> None:
    """Fails if bilinear does not put pixel i at i · in / out (of 598 columns every second one is then read), clean does
    not antialias (a chessboard then is not grey), or the range is not (255 v − 128) / 128."""
    ramp = (torch.arange(598) * 37 % 256 / 255).expand(1, 3, 598, 598)
    seen = prepared(ramp, "bilinear") * 128 + 128
    assert torch.allclose(seen[0, 0, 0], (ramp[0, 0, 0, ::2] * 255).round(), atol=1e-3)
    board = ((torch.arange(1196)[:, None] + torch.arange(1196)) % 2).float().expand(1, 3, -1, -1)
    assert (prepared(board, "clean")[..., 5:-5, 5:-5] * 128 + 128 - 127.5).abs().max() < 1.5
    assert prepared(torch.zeros(1, 3, 299, 299), "clean").unique().tolist() == [-1.0]
    with pytest.raises(ValueError, match="expected one of clean, bilinear"):
        prepared(board, "nearest")  # type: ignore[arg-type]


def test_the_real_file_gives_what_its_own_code_gives() -> None:
    """The archive run as it is, on noise. Fails if a branch's weights are in another's place, or a pool differs."""
    try:
        path = inception_file(None)
    except ValueError as why:
        pytest.skip(f"NOT TESTED, 87 MB: {why}")
    noise = torch.rand(2, 3, 299, 299, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        theirs = torch.jit.load(str(path), map_location="cpu")(noise)
        assert torch.allclose(load_inception(path)(noise), theirs, atol=1e-4)
