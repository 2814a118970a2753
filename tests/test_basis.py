"A1, B1, B2 on the tiny DiT: exact where it should be, equal to stock peft, and every trap of one-LoRA-for-both-stages."
import types

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from sas_nb import basis as basis_module
from sas_nb.basis import Basis, dropout_mask
from sas_nb.dit import VideoDiT
from sas_nb.files import UserError
from sas_nb.hub import fingerprint

FEW = r"blocks\.[01]\.(attn1\.to_q|attn2\.to_v|ffn\.net\.2)"


@pytest.fixture(scope="module")
def dit(): return VideoDiT.load("tiny", "cpu", torch.float32)


@pytest.fixture(scope="module")
def inputs(dit): return dit.noise([0], num_frames=5), torch.tensor([.6]), dit.embed("a man in a red shirt on a beach. he is dancing")


@pytest.fixture(scope="module")
def bare(dit, inputs):
    "The velocity of the base alone."
    with torch.no_grad(): return dit.velocity(*inputs)


@pytest.fixture
def basis(dit):
    b = Basis(dit, rank=4, layers=FEW)
    yield b
    if dit.basis: dit.basis.detach()


def rng(seed=0): return torch.Generator().manual_seed(seed)


@torch.no_grad()
def fill(basis, *which):
    "Random coefficients in the place of a training."
    g = rng(1)
    for k, p in basis.parameters().items():
        if k.rsplit(".", 1)[1] in which: p.copy_(.2*torch.randn(p.shape, generator=g))
    return basis


def step(dit, basis, inputs, stage):
    "One AdamW step of a stage, weight decay included; returns the matrices that a gradient reached."
    optimiser = torch.optim.AdamW(basis.train_only(stage), lr=1e-2, weight_decay=.01)
    dit.velocity(*inputs).square().mean().backward()
    reached = {k for k, p in basis.parameters().items() if p.grad is not None}
    optimiser.step(); optimiser.zero_grad(set_to_none=True)
    return reached


def kinds(keys): return {k.rsplit(".", 1)[1] for k in keys}


# ---------------------------------------------------------------- one basis, two coefficients

def test_by_default_all_attention_and_feed_forward(dit, inputs, bare):
    b = Basis(dit)
    with torch.no_grad(): assert torch.equal(dit.velocity(*inputs), bare)
    blocks = dit.transformer.config.num_layers
    assert len(b.modules) == 10*blocks and b.rank == 8
    assert not any(p.requires_grad for p in dit.transformer.parameters())
    b.detach()


def test_lora_A_is_one_object(basis):
    for m in basis.modules.values():
        assert m.lora_A["motion"] is m.lora_A["identity"]
        assert m.lora_B["motion"].weight is not m.lora_B["identity"].weight
        assert not m.lora_B["motion"].weight.any() and not m.lora_B["identity"].weight.any() and m.lora_A["identity"].weight.any()
    assert all(p.dtype == torch.float32 for p in basis.parameters().values())


def test_forward_is_the_dense_update(dit, basis, inputs):
    fill(basis, "B1", "B2")
    basis.appearance, basis.motion = .7, -1.5
    m, x = next(iter(basis.modules.values())), torch.randn(3, 192, generator=rng())
    w = {k: p.weight.double() for k, p in (("A", m.lora_A["identity"]), ("B1", m.lora_B["identity"]), ("B2", m.lora_B["motion"]), ("W", m.base_layer))}
    dense = x.double() @ (w["W"] + .7*w["B1"] @ w["A"] - 1.5*w["B2"] @ w["A"]).T + m.base_layer.bias.double()
    torch.testing.assert_close(m(x).double(), dense, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("appearance, motion", [(1., 1.), (.5, 2.)])
def test_equal_to_stock_peft(dit, basis, inputs, bare, appearance, motion):
    fill(basis, "B1", "B2")
    basis.appearance, basis.motion = appearance, motion
    ours = dit.velocity(*inputs)
    for m in basis.modules.values():
        del m.forward # peft's own is back
        assert m.forward.__func__ is type(m).forward
        m.set_adapter(["identity", "motion"]); m.set_scale("identity", appearance); m.set_scale("motion", motion)
    assert (ours-bare).abs().max() > 1e-3
    torch.testing.assert_close(ours, dit.velocity(*inputs), atol=1e-4, rtol=1e-3)


def test_A1_x_is_computed_once(basis, monkeypatch):
    fill(basis, "B1", "B2")
    m, narrow = next(iter(basis.modules.values())), []
    real = torch.nn.functional.linear
    counting = types.SimpleNamespace(linear=lambda x, w, *a: narrow.append(tuple(w.shape)) or real(x, w, *a))
    monkeypatch.setattr(basis_module, "F", counting)
    m(torch.randn(2, 192))
    assert narrow == [(4, 192), (192, 4)]


@torch.no_grad()
def test_B2_at_zero_is_stage_1_exactly(dit, basis, inputs, bare):
    fill(basis, "B1")
    both = dit.velocity(*inputs)
    basis.motion = 0.
    assert torch.equal(both, dit.velocity(*inputs)) and not torch.equal(both, bare)
    basis.motion = 3.
    assert torch.equal(both, dit.velocity(*inputs))


@torch.no_grad()
def test_scales(dit, basis, inputs, bare):
    fill(basis, "B1", "B2")
    seen = {}
    for seen_at in ((1., 1.), (0., 1.), (1., 0.), (2., 1.)):
        basis.appearance, basis.motion = seen_at
        seen[seen_at] = dit.velocity(*inputs)
    values = list(seen.values())
    assert not any(torch.equal(a, b) for i, a in enumerate(values) for b in values[:i])
    basis.appearance, basis.motion = 0., 0.
    assert torch.equal(dit.velocity(*inputs), bare)


# ---------------------------------------------------------------- who learns when

def test_stage_1_reaches_A_and_B1_only(dit, basis, inputs):
    fill(basis, "B1", "B2")
    before = basis.tensors()
    assert kinds(step(dit, basis, inputs, "identity")) == {"A", "B1"}
    after = basis.tensors()
    assert all(torch.equal(before[k], after[k]) == k.endswith(".B2") for k in before)


def test_stage_2_leaves_A1_and_B1_bit_identical(dit, basis, inputs):
    "The trap: stage 2 that goes on training identity's lora_B."
    step(dit, basis, inputs, "identity")
    before = basis.tensors()
    with torch.no_grad(): stage1 = dit.velocity(*inputs)
    for _ in range(2): assert kinds(step(dit, basis, inputs, "motion")) == {"B2"}
    after = basis.tensors()
    assert all(torch.equal(before[k], after[k]) for k in before if not k.endswith(".B2"))
    assert all(after[k].any() for k in after if k.endswith(".B2"))
    basis.motion = 0.
    with torch.no_grad(): assert torch.equal(dit.velocity(*inputs), stage1)


def test_the_base_gets_no_gradient_and_none_trains_nothing(dit, basis, inputs):
    for stage in ("identity", "motion"):
        step(dit, basis, inputs, stage)
        assert {p for p in dit.transformer.parameters() if p.requires_grad} == set(basis.train_only(stage))
    assert all(p.grad is None for n, p in dit.transformer.named_parameters() if "lora_" not in n)
    assert basis.train_only("none") == [] and not dit.velocity(*inputs).requires_grad


def test_the_seed_alone_decides_A(dit):
    torch.manual_seed(5); expected = torch.rand(3); torch.manual_seed(5)
    first = Basis(dit, 4, FEW, seed=3).tensors()
    assert torch.equal(torch.rand(3), expected), "making a basis must not draw from the caller's random numbers"
    again, other = Basis(dit, 4, FEW, seed=3).tensors(), Basis(dit, 4, FEW, seed=4).tensors()
    A = [k for k in first if k.endswith(".A")]
    assert all(torch.equal(first[k], again[k]) and not torch.equal(first[k], other[k]) for k in A)
    dit.basis.detach()


# ---------------------------------------------------------------- coefficient dropout

@pytest.mark.parametrize("p", [.1, .5, .8])
def test_mask_keeps_one_minus_p_and_the_mean(p):
    B = torch.ones(500, 400)
    M = dropout_mask(B, p, rng())
    assert M.unique().tolist() == [0., pytest.approx(1/(1-p))]
    assert (M > 0).float().mean().item() == pytest.approx(1-p, abs=.005) and M.mean().item() == pytest.approx(1, abs=.015)
    assert set(dropout_mask(B, p, rng(), rescale=False).unique().tolist()) == {0., 1.}
    assert torch.equal(M, dropout_mask(B, p, rng())) and not torch.equal(M, dropout_mask(B, p, rng(1)))


def test_entries_are_dropped_each_by_itself():
    "Not rows, not columns: neighbours are uncorrelated."
    M = (dropout_mask(torch.ones(400, 400), .5, rng()) > 0).float()
    for a, b in ((M[1:], M[:-1]), (M[:, 1:], M[:, :-1])): assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < .02


@pytest.mark.parametrize("p", [-.1, 1., 1.5])
def test_impossible_p(basis, p):
    with pytest.raises(UserError, match="something must be kept"): basis.draw_masks("identity", p, rng())
    assert basis.masked is None and not basis.masks


@torch.no_grad()
@pytest.mark.parametrize("adapter", ["identity", "motion"])
def test_masks_are_on_B_of_the_one_in_training(basis, adapter):
    fill(basis, "B1", "B2")
    basis.draw_masks(adapter, .8, rng())
    for m in basis.modules.values():
        B = {k: m.lora_B[k].weight for k in ("identity", "motion")}
        M = basis.masks[m]
        assert M.shape == B[adapter].shape
        x = torch.randn(3, m.in_features, generator=rng())
        wanted = m.base_layer(x) + x @ m.lora_A["identity"].weight.T @ (sum(B.values()) - B[adapter] + B[adapter]*M).T
        torch.testing.assert_close(m(x), wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_dropout_acts_through_the_whole_model_and_can_be_turned_off(dit, basis, inputs):
    "The trap: dropout set on a module that is never called, so that nothing happens."
    fill(basis, "B1")
    kept, whole, g = basis.tensors(), dit.velocity(*inputs), rng()
    basis.draw_masks("identity", .8, g); first = dit.velocity(*inputs)
    basis.draw_masks("identity", .8, g); second = dit.velocity(*inputs)
    assert not torch.equal(first, whole) and not torch.equal(first, second)
    assert torch.equal(second, dit.velocity(*inputs)), "one mask for one step"
    with basis.undropped(): assert torch.equal(dit.velocity(*inputs), whole)
    assert torch.equal(second, dit.velocity(*inputs))
    basis.draw_masks("identity", 0, g)
    assert torch.equal(dit.velocity(*inputs), whole)
    assert all(torch.equal(kept[k], v) for k, v in basis.tensors().items())


def test_undropped_is_restored_after_an_error(basis):
    basis.draw_masks("motion", .5, rng())
    with pytest.raises(RuntimeError):
        with basis.undropped(): raise RuntimeError
    assert basis.masked == "motion"


def test_dropped_coefficients_get_no_gradient(dit, basis, inputs):
    basis.train_only("identity"); basis.draw_masks("identity", .8, rng())
    fill(basis, "B1")
    dit.velocity(*inputs).square().mean().backward()
    for m in basis.modules.values():
        grad, dropped = m.lora_B["identity"].weight.grad, basis.masks[m] == 0
        assert not grad[dropped].any() and grad[~dropped].any() and m.lora_A["identity"].weight.grad.any()


def test_it_is_not_pefts_lora_dropout(basis):
    for m in basis.modules.values():
        assert all(type(d) is nn.Identity for d in m.lora_dropout.values())
    m = next(iter(basis.modules.values()))
    fill(basis, "B1").draw_masks("identity", .8, rng())
    y = m(torch.randn(1, 192).expand(2, -1))
    assert torch.equal(y[0], y[1]), "equal tokens are answered equally: the mask is on weights"


# ---------------------------------------------------------------- load, detach

@torch.no_grad()
def test_tensors_and_load(dit, basis, inputs):
    fill(basis, "B1", "B2")
    saved, seen = basis.tensors(), dit.velocity(*inputs)
    fill(basis, "A")
    assert not torch.equal(dit.velocity(*inputs), seen) and not torch.equal(saved[k := "blocks.0.attn1.to_q.A"], basis.tensors()[k])
    assert Basis(dit, 4, FEW, seed=9).load(saved) is dit.basis and torch.equal(dit.velocity(*inputs), seen)


def test_load_refuses_what_does_not_fit_and_changes_nothing(dit, basis):
    saved = fill(basis, "B1").tensors()
    with pytest.raises(UserError, match="at rank 2 needs"): Basis(dit, 2, FEW).load(saved)
    with pytest.raises(UserError, match="layer of only one"): Basis(dit, 4, FEW[:-1] + "|ffn.net.0.proj)").load(saved)
    with pytest.raises(UserError, match="layer of only one"): dit.basis.load({})
    same = Basis(dit, 4, FEW)
    before = same.tensors()
    with pytest.raises(UserError, match="does not fit"): same.load(saved | {sorted(saved)[-1]: torch.zeros(1, 1)})
    assert all(torch.equal(before[k], v) for k, v in same.tensors().items())


@torch.no_grad()
def test_detach_gives_the_dit_back(dit, inputs, bare):
    keys, print_ = list(dit.transformer.state_dict()), fingerprint(dit.transformer)
    b = fill(Basis(dit, 4, FEW), "B1", "B2")
    assert fingerprint(dit.transformer) == print_, "the fingerprint is of the base, with or without an adapter"
    b.detach()
    assert list(dit.transformer.state_dict()) == keys and fingerprint(dit.transformer) == print_
    assert torch.equal(dit.velocity(*inputs), bare) and dit.basis is None
    assert not any(isinstance(m, LoraLayer) for m in dit.transformer.modules()) and not hasattr(dit.transformer, "peft_config")
    b.detach() # twice is harmless


def test_a_second_basis_takes_the_first_off(dit, basis):
    new = Basis(dit, 2, FEW)
    assert dit.basis is new and not basis.modules
    basis.detach()
    assert dit.basis is new, "an old basis must not take off the one that followed it"
    assert all(set(m.lora_B) == {"identity", "motion"} and isinstance(m.base_layer, nn.Linear) for m in new.modules.values())


@pytest.mark.parametrize("arguments, match", [
    (dict(rank=0), "at least one vector"), (dict(layers="attention"), "No layer"), (dict(layers="blocks.("), "not a regular expression"),
    (dict(layers=r"blocks\.0"), "matches a WanTransformerBlock")])
@torch.no_grad()
def test_what_cannot_be_is_said_and_leaves_the_dit_alone(dit, inputs, bare, arguments, match):
    with pytest.raises(UserError, match=match): Basis(dit, **arguments)
    assert torch.equal(dit.velocity(*inputs), bare) and not any(isinstance(m, LoraLayer) for m in dit.transformer.modules())
