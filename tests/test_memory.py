"How a model is fitted into a machine: the same concept comes out of pieces, of blocks that wait on the host and of inputs that do; eight bits are near."
from dataclasses import replace
import gc, weakref
import pytest, torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
import road
from road import stage as stage_of
from sas_nb.adapter import SharedLoRA
from sas_nb.data import Examples, frozen_length, prior_examples
from sas_nb.dit import VideoDiT
from sas_nb.files import UserError
from sas_nb.lowbit import check_kind, FrozenLinear
from sas_nb.memory import Memory
from sas_nb.offload import checkpointed, fit, repeated_blocks
from sas_nb.recipe import Run
from sas_nb.self_conditioning import SelfConditioning

LAYERS = r"blocks\.[03]\.(attn1\.to_q|attn2\.to_v|ffn\.net\.2)"
CPU, CARD = torch.device("cpu"), torch.device("meta")
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def dit():
    dit = VideoDiT.load("tiny", "cpu", torch.float32)
    yield dit
    road.off(dit)

def examples(dit, n=3, pairs=0):
    return Examples(road.latents(dit, n, seed=5), [dit.embed("a man in a park")], [["[v]", "[u]"]], road.latents(dit, pairs, seed=6) if pairs else None)

def trained(dit, stage="motion", pairs=0, conditioning=False, n=1, steps=3, memory=Memory(), **numbers):
    "A trainer after some steps, over coefficients that are not zero."
    adapter = road.new(dit, 2, LAYERS, n=n)
    g = torch.Generator().manual_seed(1)
    for k, p in adapter.weights.items():
        if not k.endswith(".A"): p.data.copy_(.05*torch.randn(p.shape, generator=g))
    if conditioning:
        adapter.self_conditioning = SelfConditioning(dit)
        adapter.self_conditioning.project.weight.data.copy_(.05*torch.randn(adapter.self_conditioning.project.weight.shape, generator=g))
    s = stage_of(stage, **dict(steps=steps, batch=8, prior=0., lr=1e-3, token_lr=1e-4, token_init=.5, self_conditioning=.5*conditioning, counterfactuals=.5*bool(pairs)) | numbers)
    t = road.trainer(adapter, [examples(dit, pairs=pairs)]*n, s, **vars(memory))
    with checkpointed(dit):
        for _ in range(steps): t.train_step()
    return t

def gradients(dit, memory=Memory(), **how):
    "What one step's gradient is, and what was drawn."
    t = trained(dit, steps=0, memory=memory, **how)
    with checkpointed(dit): times, losses = t.accumulate()
    return {k: p.grad for k, p in t.trained.items()}, losses, t.generators.get_state()

def near(ours, theirs, rtol=1e-4):
    assert ours.keys() == theirs.keys()
    for k, v in theirs.items(): torch.testing.assert_close(ours[k], v, atol=rtol*float(v.abs().max())+1e-12, rtol=rtol)


# pieces

KINDS = [dict(), dict(pairs=3), dict(stage="appearance", conditioning=True), dict(n=2), dict(pairs=3, n=3), dict(pairs=3, conditioning=True)]

@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_gradient_does_not_depend_on_the_pieces(dit, kind, at_once, monkeypatch):
    if kind.get("n") and kind.get("conditioning"): pytest.skip("many concepts train without it")
    whole, losses, chance = gradients(dit, **kind)
    seen, velocity = [], dit.family.velocity
    monkeypatch.setattr(dit.family, "velocity", staticmethod(lambda t, x, *rest: seen.append(len(x)) or velocity(t, x, *rest)))
    pieces, losses2, chance2 = gradients(dit, Memory(at_once=at_once), **kind)
    assert max(seen) <= at_once and torch.equal(chance, chance2)
    torch.testing.assert_close(losses2.sort()[0], losses.sort()[0], atol=1e-5, rtol=1e-4) # groups of concepts come in another order
    near(pieces, whole, 2e-4)

def test_a_batch_of_eight_one_by_one_ends_at_the_same_weights(dit):
    whole, pieces = (trained(dit, steps=4, lr=1e-4, memory=Memory(at_once=n)) for n in (64, 1))
    for k, p in whole.trained.items(): torch.testing.assert_close(pieces.trained[k], p, atol=2e-6, rtol=1e-4)
    assert [r[2] for r in pieces.recent] == pytest.approx([r[2] for r in whole.recent], rel=1e-4)

def test_sampling_in_pieces_knows_who_is_in_them(dit):
    "Scales of each sample, the earlier guess and the concepts of a batch go with their samples."
    adapter = road.new(dit, 2, LAYERS, n=2)
    for p in adapter.weights.values(): p.data.copy_(.2*torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    conditioning = SelfConditioning(dit)
    nn.init.normal_(conditioning.project.weight, std=.1)
    x, text = road.latents(dit, 4), dit.embed(["a man"]*4)
    def sampled(at_once):
        dit.memory = Memory(at_once=at_once)
        with torch.no_grad(), adapter.scaled_each(torch.tensor([1., .2, .5, 0.])):
            return dit.denoise(x, text, 2, 1., velocity=conditioning.sampler())
    whole = sampled(64)
    for at_once in (1, 3): torch.testing.assert_close(sampled(at_once), whole, atol=2e-5, rtol=1e-4)
    assert dit.rows is None


# blocks and inputs that wait on the host

@pytest.mark.parametrize("memory", [Memory(checkpointing=True), Memory(checkpointing=True, inputs_on_host=True), Memory(swapped=1), Memory(swapped=3),
                                    Memory(swapped=4, checkpointing=True, inputs_on_host=True, at_once=1)], ids=str)
@pytest.mark.parametrize("kind", [dict(), dict(pairs=3, stage="motion"), dict(stage="appearance", conditioning=True)], ids=str)
def test_the_gradient_is_the_same(dit, memory, kind):
    plain, losses, _ = gradients(dit, **kind)
    assert (dit.memory, {type(m) for m in dit.transformer.modules()} & {FrozenLinear}) == (Memory(), set())
    for _ in range(2): # the second begins where the first ended
        fitted, same, _ = gradients(dit, memory, **kind)
        near(fitted, plain)
        torch.testing.assert_close(same, losses, atol=1e-5, rtol=1e-4)

def test_a_swapped_model_samples_the_same_and_comes_back_whole(dit):
    text, x, before = dit.embed(["a man"]*2), road.latents(dit), dit.prints
    plain = dit.denoise(x, text, 3, 4.)
    dit.memory = Memory(swapped=3)
    assert sum(isinstance(m, FrozenLinear) for m in dit.transformer.modules()) == 3*10
    assert torch.equal(dit.denoise(x, text, 3, 4.), plain) and dit.weights_names() == before
    dit.memory = Memory()
    assert not any(isinstance(m, FrozenLinear) for m in dit.transformer.modules())
    assert torch.equal(dit.denoise(x, text, 3, 4.), plain) and dit.weights_names() == before

class Row(nn.Module):
    "A row of blocks; what they compute is small beside their weights."
    _repeated_blocks = ["Sequential"]
    def __init__(self, n):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 256)) for _ in range(n))
    def forward(self, x):
        for block in self.blocks: x = block(x)
        return x

class Live(TorchDispatchMode):
    "The most bytes that tensors on the card had at a time."
    def __init__(self): super().__init__(); self.sizes, self.peak = {}, 0
    def see(self, t):
        s = t.untyped_storage()
        if t.device.type != "meta" or s._cdata in self.sizes: return
        self.sizes[s._cdata] = s.nbytes()
        weakref.finalize(s, self.sizes.pop, s._cdata, None)
        self.peak = max(self.peak, sum(self.sizes.values()))
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor): self.see(t)
        return out

def to_card(model):
    "As `model.to`, which fake tensors do not allow: what waits stays where it is."
    for m in model.modules():
        waiting = isinstance(m, FrozenLinear) and m.swap
        for name, p in m._parameters.items(): m._parameters[name] = nn.Parameter(p.detach().to(CARD), requires_grad=False)
        if not waiting:
            for name, b in m._buffers.items(): m._buffers[name] = b.to(CARD)

@pytest.mark.parametrize("kind, bytes", [("own", 4), ("int8", 1), ("fp8", 1)])
@pytest.mark.parametrize("swapped", [2, 5, 8])
def test_no_more_than_two_of_the_waiting_blocks_are_on_the_card(swapped, kind, bytes):
    block = 2*256*256*bytes + 2*256*4*(1 if kind == "own" else 2) # with biases, and scales
    with FakeTensorMode(), Live() as live:
        row = Row(8).requires_grad_(False)
        fit(row, Memory(swapped=swapped, weights=kind), CARD)
        to_card(row)
        x = torch.randn(1, 256, device=CARD, requires_grad=True)
        for _ in range(2): row(x).sum().backward()
        with torch.no_grad(): row(x)
        # one matrix is unpacked at a time, and a few rows are what is computed
        room = 2*256*256*4*(kind != "own") + 64*1024
        assert (8-swapped+2)*block-64*1024 < live.peak <= (8-swapped+2)*block + room

def test_inputs_of_checkpointed_blocks_leave_the_card(dit):
    text, x, t = dit.embed("a man"), road.latents(dit), torch.tensor([.5])
    inputs = []
    hooks = [b.register_forward_pre_hook(lambda m, args: inputs.append(weakref.ref(args[0]))) for b in repeated_blocks(dit.transformer)]
    def kept(**memory):
        dit.memory, inputs[:] = Memory(checkpointing=True, **memory), []
        with checkpointed(dit): out = dit.velocity(x, t, text.clone().requires_grad_())
        gc.collect()
        return [r() is not None for r in inputs[1:]], out
    assert all(kept()[0]) and not any(kept(inputs_on_host=True)[0])
    for h in hooks: h.remove()


# fewer bits

@pytest.mark.parametrize("kind, most", [("int8", .01), ("fp8", .03)])
@pytest.mark.parametrize("more", [dict(), dict(swapped=4, checkpointing=True)], ids=str)
def test_an_adapter_trains_over_eight_bits(kind, most, more):
    dit = VideoDiT.load("tiny", "cpu", torch.float32, Memory(weights=kind, **more))
    exact = VideoDiT.load("tiny", "cpu", torch.float32)
    layer, plain = (d.transformer.blocks[1].attn1.to_q for d in (dit, exact))
    if not more: assert float((layer.matrix(torch.float32)-plain.weight).norm()/plain.weight.norm()) < most
    assert dit.prints[0] == exact.prints[0], "a concept is of the same base in any precision"
    assert not {"weight"} & {k.split(".")[-1] for k in dit.transformer.state_dict() if ".to_q." in k}
    memory = Memory(weights=kind, **more)
    ours, _, _ = gradients(dit, memory)
    theirs, _, _ = gradients(exact)
    flat = [torch.cat([g[k].flatten() for k in theirs]) for g in (ours, theirs)]
    assert torch.cosine_similarity(*flat, dim=0) > .99
    before = {k: p.clone() for k, p in trained(dit, steps=0, memory=memory).trained.items()}
    after = trained(dit, steps=2, memory=memory).trained
    assert all(torch.isfinite(p).all() for p in after.values()) and any(not torch.equal(p, before[k]) for k, p in after.items())
    road.off(dit); road.off(exact)

def test_own_precision_is_read_again_after_eight_bits(dit):
    text, x = dit.embed("a man"), road.latents(dit)
    plain = dit.denoise(x, text, 2, 1.)
    dit.memory = Memory(weights="int8")
    low = dit.denoise(x, text, 2, 1.)
    assert not torch.equal(low, plain) and (low-plain).norm() < .05*plain.norm()
    dit.memory = Memory()
    assert torch.equal(dit.denoise(x, text, 2, 1.), plain)
    dit.memory = Memory(weights="int8")
    with SharedLoRA(dit, 1, LAYERS).attached(), pytest.raises(UserError, match="while an adapter is on"): dit.memory = Memory()

def kinds(dit): return [m.kind for m in dit.transformer.modules() if isinstance(m, FrozenLinear)]

def test_blocks_that_waited_are_rounded_like_the_others(dit):
    x, text = road.latents(dit), dit.embed("a man")
    for memory in (Memory(swapped=3), Memory(swapped=2, weights="int8"), Memory(weights="int8")): dit.memory = memory
    assert kinds(dit) == ["int8"]*len(repeated_blocks(dit.transformer))*10
    fresh = VideoDiT.load("tiny", "cpu", torch.float32, Memory(weights="int8"))
    assert torch.equal(dit.denoise(x, text, 1, 1.), fresh.denoise(x, text, 1, 1.))

def test_a_pipeline_that_is_handed_over_is_fitted_at_once(dit, monkeypatch):
    own = VideoDiT(dit.pipe, memory=Memory(weights="int8", swapped=2))
    assert kinds(own) == ["int8"]*len(repeated_blocks(dit.transformer))*10 and own.memory == Memory(weights="int8", swapped=2) and own.memory_given
    with pytest.raises(UserError, match="more than the"): VideoDiT(VideoDiT.load("tiny", "cpu").pipe, memory=Memory(swapped=99))
    monkeypatch.setattr("sas_nb.pipeline.fingerprint", lambda module: pytest.fail("the same memory changes nothing"))
    own.memory = Memory(weights="int8", swapped=2)

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("memory", [Memory(weights="int8"), Memory(weights="fp8", swapped=2, checkpointing=True, inputs_on_host=True), Memory(swapped=4)], ids=str)
def test_half_precision_trains_too(dtype, memory):
    dit = VideoDiT.load("tiny", "cpu", dtype, memory)
    t = trained(dit, steps=2, memory=memory, batch=2)
    assert t.step == 2 and all(torch.isfinite(p).all() for p in t.trained.values())
    road.off(dit)


# the prior, one by one

def how(dit): return dict(prompts=["a man in a park. he is walking", "a woman on a beach. she is dancing"], num_frames=5, height=64, width=64, steps=2)

def test_a_prior_that_was_killed_makes_only_the_rest(dit, monkeypatch):
    made, denoise = [], VideoDiT.denoise
    dit.memory = Memory(at_once=1)
    def dying(self, x, *args, **kwargs):
        if len(made) == 3: raise KeyboardInterrupt
        made.append(len(x))
        return denoise(self, x, *args, **kwargs)
    monkeypatch.setattr(VideoDiT, "denoise", dying)
    with pytest.raises(KeyboardInterrupt): prior_examples(dit, False, n=5, **how(dit))
    made[:] = [0]
    whole = prior_examples(dit, False, n=5, **how(dit))
    assert made == [0, 1, 1]
    monkeypatch.setattr(VideoDiT, "denoise", lambda *a, **k: pytest.fail("made again"))
    assert torch.equal(prior_examples(dit, False, n=5, **how(dit)).latents, whole.latents) and torch.equal(prior_examples(dit, False, n=2, **how(dit)).latents, whole.latents[:2])

@pytest.mark.parametrize("at_once, passes", [(1, {1}), (2, {2}), (5, {4}), (64, {8, 2})])
def test_a_prior_obeys_the_memory(dit, monkeypatch, at_once, passes, tmp_path):
    monkeypatch.setenv("SAS_NB_CACHE", str(tmp_path))
    seen, velocity = [], dit.family.velocity
    monkeypatch.setattr(dit.family, "velocity", staticmethod(lambda t, x, *rest: seen.append(len(x)) or velocity(t, x, *rest)))
    dit.memory = Memory(at_once=at_once)
    few = prior_examples(dit, False, n=5 if at_once == 64 else 4, batch=4, guidance=3., **how(dit)).latents
    assert set(seen) == passes and len(list(tmp_path.glob("*.safetensors"))) >= len(few)
    monkeypatch.setenv("SAS_NB_CACHE", str(tmp_path/"other"))
    dit.memory = Memory()
    torch.testing.assert_close(prior_examples(dit, False, n=len(few), guidance=3., **how(dit)).latents, few, atol=1e-4, rtol=1e-3)

@pytest.mark.parametrize("own, clip, n", [(9, 81, 9), (9, 5, 5), (17, 17, 17), (5, 81, 5)])
def test_a_frozen_clip_is_short(dit, own, clip, n):
    dit.defaults = replace(dit.defaults, frozen_frames=own)
    assert frozen_length(dit, range(clip)) == n


# bad input

@pytest.mark.parametrize("wrong", [dict(inputs_on_host=True), dict(swapped=-1), dict(swapped=1.5), dict(at_once=0), dict(weights="fp4"), dict(text_bits=2), dict(vae_bits=8),
                                   dict(apart="yes"), dict(checkpointing=1), dict(tiled=None)], ids=str)
def test_memory_that_cannot_be(wrong):
    with pytest.raises(UserError, match=f"{[*wrong][0]}="): Memory(**wrong)

def test_memory_of_another_kind():
    for wrong in (64, "small", dict(at_once=1)):
        with pytest.raises(UserError, match="must be a Memory"): Run(memory=wrong)

def test_more_swapped_blocks_than_there_are(dit):
    many = len(repeated_blocks(dit.transformer))+1
    with pytest.raises(UserError, match=f"swapped={many} is more than the {many-1} blocks"): dit.memory = Memory(swapped=many)
    assert dit.memory == Memory()
    with pytest.raises(UserError, match="more than the"): VideoDiT.load("tiny", "cpu", memory=Memory(swapped=many)).transformer

def test_blocks_that_wait_are_not_compiled(dit):
    with pytest.raises(UserError, match="compile=False, or swapped=0"): trained(dit, steps=0, memory=Memory(swapped=1), compile=True)

def test_a_device_without_fp8_is_told():
    with pytest.raises(UserError, match="cannot hold weights in fp8: choose weights='int8'"): check_kind("fp8", torch.device("mps"))

def test_blocks_that_are_not_alike_cannot_take_turns():
    row = Row(3)
    row.blocks[1][0] = nn.Linear(256, 512)
    with pytest.raises(UserError, match="not alike"): fit(row.requires_grad_(False), Memory(swapped=3), CPU)

def test_a_model_without_blocks_has_its_own_precision_only():
    with pytest.raises(UserError, match="no repeated blocks"): fit(nn.Linear(2, 2), Memory(weights="int8"), CPU)
