"""Recomputation in the backward: the same numbers with less memory."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import dimr
import dimr_kernels as dk
from dimr.model.layers import CHECKPOINTING_MODES
from tests.support.dispatch import LiveMemory, operators_called
from tests.support.small_models import inputs, perturbed_model

# Deep enough for the features handed upwards, the long skips and both kinds of block to weigh.
CONFIG = dimr.DiMRConfig(
    in_channels=3, input_size=8, dims=(32, 16), layers=(5, 4), num_heads=2, num_classes=5, kernel_size=3
)
SMALL = dimr.DiMRConfig(3, 4, (16, 8), (2, 1), num_heads=2, num_classes=5, kernel_size=3)


def step(model, mode, backend="eager", autocast=False, forwards=1, batch=2):
    """Gradients, loss and the bytes that the graph holds. The backward runs outside of every context."""
    model.set_checkpointing(mode).zero_grad()
    arguments = inputs(model.config, batch=batch)
    with dk.use_backend(backend), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for _ in range(forwards):
            with LiveMemory() as memory:
                outputs = model(**arguments)
            loss = sum(out.float().square().sum() for out in outputs)
            del outputs
    held = memory.bytes()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}, loss.item(), held


def assert_same(a, b):
    (gradients, loss, _), (wanted, wanted_loss, _) = a, b
    assert loss == wanted_loss
    for name, gradient in gradients.items():
        assert torch.equal(gradient, wanted[name]), name


@pytest.mark.parametrize("norm", ["td_layer", "td_rms"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("mode", CHECKPOINTING_MODES[1:])
def test_same_gradients_bit_for_bit(mode, autocast, norm):
    model = perturbed_model(dataclasses.replace(CONFIG, norm=norm))
    assert_same(step(model, mode, autocast=autocast), step(model, "none", autocast=autocast))


@pytest.mark.slow
@pytest.mark.parametrize("mode", CHECKPOINTING_MODES[1:])
def test_fused_operators_give_the_same_gradients(mode):
    model = perturbed_model(SMALL)
    wanted = step(model, "none", "triton", autocast=True)
    assert_same(step(model, mode, "triton", autocast=True), wanted)


@pytest.mark.parametrize("mode", CHECKPOINTING_MODES[1:])
def test_weights_cast_before_are_cast_again(mode):
    """An earlier forward under the same autocast has left its weights in the cache."""
    model = perturbed_model(SMALL)
    assert_same(step(model, mode, autocast=True, forwards=2), step(model, "none", autocast=True, forwards=2))


@pytest.mark.parametrize(("autocast", "selective", "blocks"), [(False, 0.65, 0.25), (True, 0.45, 0.12)])
def test_memory_held_for_the_backward(autocast, selective, blocks):
    """Shares of "none" on the eager operators, whose norms and gates keep more than the fused ones."""
    model = perturbed_model(CONFIG)
    held = {mode: step(model, mode, autocast=autocast, batch=4)[2] for mode in CHECKPOINTING_MODES}
    assert held["blocks"] < blocks * held["none"]
    assert held["blocks"] < held["selective"] < selective * held["none"]


def counted_bytes(config, mode, batch, monkeypatch):
    """Count what the fused operators under bfloat16 autocast hold for the backward, from shapes alone."""
    monkeypatch.setattr("dimr.model.network.initialize", lambda model: None)  # looks at values
    with FakeTensorMode():
        model = dimr.DiMR(config).set_checkpointing(mode)
        x = torch.empty(batch, config.in_channels, config.input_size, config.input_size)
        labels = torch.empty(batch, dtype=torch.int64)
        with dk.use_backend("triton"), torch.autocast("cpu", torch.bfloat16), LiveMemory() as memory:
            outputs = model(x, torch.empty(batch), labels)
        return memory.bytes() - sum(out.untyped_storage().nbytes() for out in outputs)


def test_memory_held_with_fused_operators(monkeypatch):
    config = dataclasses.replace(CONFIG, input_size=16)
    held = {mode: counted_bytes(config, mode, 8, monkeypatch) for mode in CHECKPOINTING_MODES}
    assert held["blocks"] < 0.15 * held["none"]
    assert held["blocks"] < held["selective"] < 0.75 * held["none"]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "gibibytes"), [("none", 33.0), ("selective", 22.7), ("blocks", 2.6)])
def test_memory_held_by_the_papers_model(mode, gibibytes, monkeypatch):
    held = counted_bytes(dimr.model_config("dimr-xl-2r"), mode, 64, monkeypatch)
    assert held / 2**30 == pytest.approx(gibibytes, rel=0.02)


class TestWhatRunsAgain:
    def called(self, mode):
        """Operators of one backward, called outside of the forward's ``use_backend``."""
        model = perturbed_model(SMALL).set_checkpointing(mode)
        with dk.use_backend("triton"):
            loss = sum(out.sum() for out in model(**inputs(SMALL)))
        with operators_called() as calls:
            loss.backward()
        return calls

    @pytest.mark.slow
    def test_selective_spares_matrix_products_attention_and_convolutions(self):
        none, selective = self.called("none"), self.called("selective")
        for name in ("mm", "addmm", "_scaled_dot_product_flash_attention_for_cpu", "depthwise_conv2d"):
            assert selective[name] == none[name], name
        blocks = sum(SMALL.blocks)
        assert selective["geglu_packed"] == blocks
        # Two norms in a transformer block, one in a ConvNeXt block, one in front of the upsampling.
        assert selective["td_norm"] == blocks + SMALL.blocks[0] + 1

    @pytest.mark.slow
    def test_blocks_run_again_with_the_forwards_implementations(self):
        calls = self.called("blocks")
        assert calls["depthwise_conv2d"] == SMALL.blocks[1]
        assert calls["_scaled_dot_product_flash_attention_for_cpu"] == SMALL.blocks[0]


@pytest.mark.parametrize("mode", CHECKPOINTING_MODES)
def test_random_numbers_are_left_alone(mode):
    model = perturbed_model(SMALL)
    before = torch.get_rng_state()
    step(model, mode)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_effect_without_gradients(monkeypatch):
    model = perturbed_model(SMALL).set_checkpointing("blocks")
    monkeypatch.setattr("dimr.model.layers.checkpoint", None)
    with torch.no_grad():
        model(**inputs(SMALL))
    with pytest.raises(TypeError):
        model(**inputs(SMALL))


def test_unknown_mode_is_named():
    with pytest.raises(ValueError, match="checkpointing must be one of 'none', 'blocks', 'selective'; got 'all'"):
        dimr.DiMR(SMALL).set_checkpointing("all")


def test_copies_keep_their_mode():
    model = dimr.DiMR(SMALL).set_checkpointing("selective")
    assert {branch.checkpointing for branch in copy.deepcopy(model).branches} == {"selective"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", CHECKPOINTING_MODES[1:])
@pytest.mark.filterwarnings("ignore")
def test_compiles_whole(mode):
    """One graph, with autocast; the backend that only traces rounds as eager code does."""
    torch._dynamo.reset()
    model = perturbed_model(dataclasses.replace(SMALL, layers=(1, 1)))
    arguments = inputs(SMALL)
    wanted = step(model, "none", autocast=True)[0]
    model.set_checkpointing(mode).zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with dk.use_backend("eager"), torch.autocast("cpu", torch.bfloat16):
        outputs = compiled(**arguments)
    sum(out.float().square().sum() for out in outputs).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=0, atol=0, msg=name)
