"A, B1, B2 on the tiny DiT: exact where it should be, equal to stock peft, and every trap of one-LoRA-for-both-stages."
import threading, types, warnings

import peft, pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from road import new, off, put_on, tensors
from sas_nb import adapter as adapter_module
from sas_nb.adapter import dropout_mask, SharedLinear, SharedLoRA
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
def adapter(dit): return new(dit, rank=4, layers=FEW)


def on(dit): return {n: m for n, m in dit.transformer.named_modules() if isinstance(m, SharedLinear)}


def rng(seed=0): return torch.Generator().manual_seed(seed)


@torch.no_grad()
def fill(adapter, *which):
    "Random coefficients in the place of a training."
    g = rng(1)
    for k, p in adapter.weights.items():
        if k.rsplit(".", 1)[1] in which: p.copy_(.2*torch.randn(p.shape, generator=g))
    return adapter


def step(dit, adapter, inputs, stage):
    "One AdamW step of a stage, weight decay included; returns the matrices that a gradient reached."
    optimiser = torch.optim.AdamW(adapter.train_only(stage).values(), lr=1e-2, weight_decay=.01)
    dit.velocity(*inputs).square().mean().backward()
    reached = {k for k, p in adapter.weights.items() if p.grad is not None}
    optimiser.step(); optimiser.zero_grad(set_to_none=True)
    return reached


def kinds(keys): return {k.rsplit(".", 1)[1] for k in keys}


# ---------------------------------------------------------------- one adapter, two coefficients

def test_by_default_all_attention_and_feed_forward(dit, inputs, bare):
    b = new(dit)
    with torch.no_grad(): assert torch.equal(dit.velocity(*inputs), bare)
    blocks = dit.transformer.config.num_layers
    assert len(on(dit)) == 10*blocks and b.rank == 8 and {k[:-2] for k in b.weights if k.endswith(".A")} == set(on(dit))
    assert not any(p.requires_grad for p in dit.transformer.parameters())


def test_lora_A_is_one_object(dit, adapter):
    for name, m in on(dit).items():
        assert [k for k, _ in m.named_parameters() if "lora_A" in k] == ["lora_A"] and m.lora_A is adapter.weights[f"{name}.A"]
        assert m.lora_B1 is not m.lora_B2
        assert not m.lora_B2.any() and not m.lora_B1.any() and m.lora_A.any()
    assert all(p.dtype == torch.float32 for p in adapter.weights.values())


def test_forward_is_the_dense_update(dit, adapter, inputs):
    fill(adapter, "B1", "B2")
    adapter.appearance, adapter.motion = .7, -1.5
    m = next(iter(on(dit).values()))
    x = torch.randn(3, m.base_layer.in_features, generator=rng())
    w = {k: p.double() for k, p in (("A", m.lora_A), ("B1", m.lora_B1[0]), ("B2", m.lora_B2[0]), ("W", m.base_layer.weight))}
    dense = x.double() @ (w["W"] + .7*w["B1"] @ w["A"] - 1.5*w["B2"] @ w["A"]).T + m.base_layer.bias.double()
    torch.testing.assert_close(m(x).double(), dense, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("appearance, motion", [(1., 1.), (.5, 2.)])
def test_equal_to_stock_peft(dit, adapter, inputs, bare, appearance, motion):
    fill(adapter, "B1", "B2")
    adapter.appearance, adapter.motion = appearance, motion
    ours, weights = dit.velocity(*inputs), tensors(adapter)
    off(dit)
    stock = VideoDiT.load("tiny", "cpu", torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore") # peft warns of a second adapter
        for name in ("appearance", "motion"):
            peft.inject_adapter_in_model(peft.LoraConfig(r=4, lora_alpha=4, target_modules=FEW), stock.transformer, name)
    for name, m in stock.transformer.named_modules():
        if not isinstance(m, peft.tuners.lora.LoraLayer): continue
        for part, B, scale in (("appearance", "B1", appearance), ("motion", "B2", motion)):
            m.lora_A[part].weight.copy_(weights[f"{name}.A"]); m.lora_B[part].weight.copy_(weights[f"{name}.{B}"])
            m.set_adapter(["appearance", "motion"]); m.set_scale(part, scale)
    assert (ours-bare).abs().max() > 1e-3
    torch.testing.assert_close(ours, stock.velocity(*inputs), atol=1e-4, rtol=1e-3)


def test_A1_x_is_computed_once(dit, adapter, monkeypatch):
    fill(adapter, "B1", "B2")
    m, narrow = next(iter(on(dit).values())), []
    real = torch.nn.functional.linear
    counting = types.SimpleNamespace(linear=lambda x, w, *a: narrow.append(tuple(w.shape)) or real(x, w, *a))
    monkeypatch.setattr(adapter_module, "F", counting)
    m(torch.randn(2, m.base_layer.in_features))
    assert narrow == [(4, m.base_layer.in_features)], "the coefficients are added before they multiply"


@torch.no_grad()
def test_B2_at_zero_is_stage_1_exactly(dit, adapter, inputs, bare):
    fill(adapter, "B1")
    both = dit.velocity(*inputs)
    adapter.motion = 0.
    assert torch.equal(both, dit.velocity(*inputs)) and not torch.equal(both, bare)
    adapter.motion = 3.
    assert torch.equal(both, dit.velocity(*inputs))


@torch.no_grad()
def test_scales(dit, adapter, inputs, bare):
    fill(adapter, "B1", "B2")
    seen = {}
    for seen_at in ((1., 1.), (0., 1.), (1., 0.), (2., 1.)):
        adapter.appearance, adapter.motion = seen_at
        seen[seen_at] = dit.velocity(*inputs)
    values = list(seen.values())
    assert not any(torch.equal(a, b) for i, a in enumerate(values) for b in values[:i])
    adapter.appearance, adapter.motion = 0., 0.
    assert torch.equal(dit.velocity(*inputs), bare)


# ---------------------------------------------------------------- who learns when

def test_stage_1_reaches_A_and_B1_only(dit, adapter, inputs):
    fill(adapter, "B1", "B2")
    before = tensors(adapter)
    assert kinds(step(dit, adapter, inputs, "appearance")) == {"A", "B1"}
    after = tensors(adapter)
    assert all(torch.equal(before[k], after[k]) == k.endswith(".B2") for k in before)


def test_stage_2_leaves_A1_and_B1_bit_identical(dit, adapter, inputs):
    "The trap: stage 2 that goes on training identity's lora_B."
    step(dit, adapter, inputs, "appearance")
    before = tensors(adapter)
    with torch.no_grad(): stage1 = dit.velocity(*inputs)
    for _ in range(2): assert kinds(step(dit, adapter, inputs, "motion")) == {"B2"}
    after = tensors(adapter)
    assert all(torch.equal(before[k], after[k]) for k in before if not k.endswith(".B2"))
    assert all(after[k].any() for k in after if k.endswith(".B2"))
    adapter.motion = 0.
    with torch.no_grad(): assert torch.equal(dit.velocity(*inputs), stage1)


def test_the_base_gets_no_gradient_and_none_trains_nothing(dit, adapter, inputs):
    for stage in ("appearance", "motion"):
        step(dit, adapter, inputs, stage)
        assert {p for p in dit.transformer.parameters() if p.requires_grad} == set(adapter.train_only(stage).values())
    assert all(p.grad is None for n, p in dit.transformer.named_parameters() if "lora_" not in n)
    assert adapter.train_only(None) == {} and not dit.velocity(*inputs).requires_grad


def test_the_seed_alone_decides_A(dit):
    torch.manual_seed(5); expected = torch.rand(3); torch.manual_seed(5)
    first = tensors(SharedLoRA(dit, 4, FEW, seed=3))
    assert torch.equal(torch.rand(3), expected), "making a basis must not draw from the caller's random numbers"
    again, other = (tensors(SharedLoRA(dit, 4, FEW, seed=s)) for s in (3, 4))
    A = [k for k in first if k.endswith(".A")]
    assert all(torch.equal(first[k], again[k]) and not torch.equal(first[k], other[k]) for k in A)


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
def test_impossible_p(adapter, p):
    with pytest.raises(UserError, match="something must be kept"): adapter.draw_masks("appearance", p, [rng()])
    assert adapter.masked is None and not adapter.masks


@torch.no_grad()
@pytest.mark.parametrize("stage", ["appearance", "motion"])
def test_masks_are_on_B_of_the_one_in_training(dit, adapter, stage):
    fill(adapter, "B1", "B2")
    adapter.draw_masks(stage, .8, [rng()])
    for name, m in on(dit).items():
        B = dict(appearance=m.lora_B1[0], motion=m.lora_B2[0])
        M = adapter.masks[name][0]
        assert M.shape == B[stage].shape
        x = torch.randn(3, m.base_layer.in_features, generator=rng())
        wanted = m.base_layer(x) + x @ m.lora_A.T @ (sum(B.values()) - B[stage] + B[stage]*M).T
        torch.testing.assert_close(m(x), wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_dropout_acts_through_the_whole_model_and_can_be_turned_off(dit, adapter, inputs):
    "The trap: dropout set on a module that is never called, so that nothing happens."
    fill(adapter, "B1")
    kept, whole, g = tensors(adapter), dit.velocity(*inputs), rng()
    adapter.draw_masks("appearance", .8, [g]); first = dit.velocity(*inputs)
    adapter.draw_masks("appearance", .8, [g]); second = dit.velocity(*inputs)
    assert not torch.equal(first, whole) and not torch.equal(first, second)
    assert torch.equal(second, dit.velocity(*inputs)), "one mask for one step"
    with adapter.undropped(): assert torch.equal(dit.velocity(*inputs), whole)
    assert torch.equal(second, dit.velocity(*inputs))
    adapter.draw_masks("appearance", 0, [g])
    assert torch.equal(dit.velocity(*inputs), whole)
    assert all(torch.equal(kept[k], v) for k, v in tensors(adapter).items())


def test_undropped_is_restored_after_an_error(adapter):
    adapter.draw_masks("motion", .5, [rng()])
    with pytest.raises(RuntimeError):
        with adapter.undropped(): raise RuntimeError
    assert adapter.masked == "motion"


def test_dropped_coefficients_get_no_gradient(dit, adapter, inputs):
    adapter.train_only("appearance"); adapter.draw_masks("appearance", .8, [rng()])
    fill(adapter, "B1")
    dit.velocity(*inputs).square().mean().backward()
    for name, m in on(dit).items():
        grad, dropped = m.lora_B1.grad, adapter.masks[name] == 0
        assert not grad[dropped].any() and grad[~dropped].any() and m.lora_A.grad.any()


def test_it_is_not_pefts_lora_dropout(dit, adapter):
    assert not any(isinstance(part, nn.Dropout) for m in on(dit).values() for part in m.modules())
    m = next(iter(on(dit).values()))
    fill(adapter, "B1").draw_masks("appearance", .8, [rng()])
    y = m(torch.randn(1, m.base_layer.in_features).expand(2, -1))
    assert torch.equal(y[0], y[1]), "equal tokens are answered equally: the mask is on weights"


# ---------------------------------------------------------------- load, detach

@torch.no_grad()
def test_tensors_and_load(dit, adapter, inputs):
    fill(adapter, "B1", "B2")
    saved, seen = tensors(adapter), dit.velocity(*inputs)
    fill(adapter, "A")
    assert not torch.equal(dit.velocity(*inputs), seen) and not torch.equal(saved[k := "blocks.0.attn1.to_q.A"], tensors(adapter)[k])
    again = new(dit, 4, FEW, seed=9)
    assert again.load(saved) is again and torch.equal(dit.velocity(*inputs), seen)
    of = put_on(SharedLoRA.of(dit, saved, 4, FEW))
    assert torch.equal(dit.velocity(*inputs), seen) and of.given, "a concept's basis is not trained"


def test_load_refuses_what_does_not_fit_and_changes_nothing(dit, adapter):
    saved = tensors(fill(adapter, "B1"))
    with pytest.raises(UserError, match="at rank 2 needs"): SharedLoRA(dit, 2, FEW).load(saved)
    with pytest.raises(UserError, match="layer of only one"): SharedLoRA(dit, 4, FEW[:-1] + "|ffn.net.0.proj)").load(saved)
    with pytest.raises(UserError, match="layer of only one"): adapter.load({})
    same = SharedLoRA(dit, 4, FEW)
    before = tensors(same)
    with pytest.raises(UserError, match="does not fit"): same.load(saved | {sorted(saved)[-1]: torch.zeros(1, 1)})
    assert all(torch.equal(before[k], v) for k, v in tensors(same).items())


@torch.no_grad()
def test_outside_the_dit_is_what_it_was(dit, inputs, bare):
    keys, print_ = list(dit.transformer.state_dict()), fingerprint(dit.transformer)
    b = fill(SharedLoRA(dit, 4, FEW), "B1", "B2")
    with pytest.raises(RuntimeError):
        with b.attached():
            assert dit.adapted and not torch.equal(dit.velocity(*inputs), bare)
            assert fingerprint(dit.transformer) == print_, "the fingerprint is of the base, with or without an adapter"
            raise RuntimeError
    assert list(dit.transformer.state_dict()) == keys and fingerprint(dit.transformer) == print_ and not dit.adapted
    assert torch.equal(dit.velocity(*inputs), bare)
    assert not any(isinstance(m, BaseTunerLayer) for m in dit.transformer.modules()) and not hasattr(dit.transformer, "peft_config")


def test_one_adapter_at_a_time(dit, adapter, inputs):
    with pytest.raises(UserError, match="An adapter is on 'tiny' already"):
        with SharedLoRA(dit, 2, FEW).attached(): pass
    assert set(on(dit)) and all(m.shared is adapter and isinstance(m.base_layer, nn.Linear) for m in on(dit).values()), "the first one stays"


def test_another_thread_waits(dit):
    first, second, order = SharedLoRA(dit, 2, FEW), SharedLoRA(dit, 2, FEW, seed=1), []
    def work():
        with second.attached(): order.append(next(iter(on(dit).values())).shared is second)
    with first.attached():
        thread = threading.Thread(target=work); thread.start(); thread.join(.2)
        assert order == [] and thread.is_alive()
    thread.join()
    assert order == [True] and not dit.adapted


@torch.no_grad()
def test_several_concepts_are_a_batch_of_their_own_samples(dit, inputs):
    x, t, text = (torch.cat([v, v, v]) for v in inputs)
    many = fill(new(dit, 4, FEW, n=3), "B1", "B2")
    together = dit.velocity(x, t, text)
    for i in range(3):
        put_on(SharedLoRA.of(dit, tensors(many, i), 4, FEW))
        torch.testing.assert_close(together[i:i+1], dit.velocity(*inputs), atol=1e-4, rtol=1e-3)


def test_peft_can_switch_it_off(dit, adapter, inputs, bare):
    fill(adapter, "B1")
    with torch.no_grad():
        for m in on(dit).values(): m.enable_adapters(False)
        assert torch.equal(dit.velocity(*inputs), bare)
        for m in on(dit).values(): m.enable_adapters(True)
        assert not torch.equal(dit.velocity(*inputs), bare)


@pytest.mark.parametrize("arguments, match", [
    (dict(rank=0), "at least one vector"), (dict(layers="attention"), "No layer"), (dict(layers="blocks.("), "not a regular expression"),
    (dict(layers=r"blocks\.0"), "matches a WanTransformerBlock"), (dict(n=0), "at least one concept")])
@torch.no_grad()
def test_what_cannot_be_is_said_and_leaves_the_dit_alone(dit, inputs, bare, arguments, match):
    with pytest.raises(UserError, match=match): SharedLoRA(dit, **arguments)
    assert torch.equal(dit.velocity(*inputs), bare) and not any(isinstance(m, BaseTunerLayer) for m in dit.transformer.modules())
