"A fleet: each member ends as if it had been trained alone, a killed run goes on exactly, and one bad member is named."
from dataclasses import replace
from functools import partial
import shutil
import pytest, torch
import wan_folder as wan
from filelock import FileLock
from torch import nn
from sas_nb.basis import Basis
from sas_nb.concept import Concept, learn
from sas_nb.dit import VideoDiT
from sas_nb.fast import bf16_products, compiled
from sas_nb.files import UserError
from sas_nb.fleet import Chances, Fleet, FleetTrainer, learn_many, universal_basis
from sas_nb.frames import frame_set, Settings, Trainer
from sas_nb.regularize import Examples
from sas_nb.residual import motion_settings, sequence
from sas_nb.lab.draw import render
from sas_nb.lab.world import heldout_spec

LAYERS = r"blocks\.[03]\.(attn1\.to_q|attn2\.to_v|ffn\.net\.2)"
LOOKS = ["a [v] man in a red shirt in a park", "a [v] woman on a beach", "a [v] man in the snow at night"]
MOVES = "he is [u] dancing"


pytestmark = pytest.mark.usefixtures("own_cache", "no_basis_left")

@pytest.fixture(scope="module")
def dit(): return VideoDiT.load("tiny", "cpu", torch.float32)

@pytest.fixture(scope="module")
def clips(): return [render(heldout_spec(i), fps=12)[:5] for i in range(3)]

@pytest.fixture(scope="module")
def data(dit, clips):
    "Prompts of different lengths, so that texts are padded in company."
    return dict(identity=[frame_set(dit, c, p) for c, p in zip(clips, LOOKS)],
                motion=[sequence(dit, c, f"{p}. {MOVES}") for c, p in zip(clips, LOOKS)])

@pytest.fixture(scope="module")
def A(dit):
    made = {k: v for k, v in Basis(dit, 4, LAYERS).tensors().items() if k.endswith(".A")}
    dit.basis.detach()
    return made

def vectors(dit, *n): return {t: nn.Parameter(torch.zeros(*n, dit.text_width)) for t in ("[v]", "[u]")}

def prior(dit, like):
    return Examples(torch.randn(4, *like.latents.shape[1:], generator=torch.Generator().manual_seed(1)), [dit.embed_once(p) for p in dit.recommended.prior[:4]], [[]]*4)

def fleet_run(dit, A, data, settings, **kwargs):
    fleet, tokens = Fleet(dit, len(data), 4, LAYERS, A=A), vectors(dit, len(data))
    stage = kwargs.pop("stage", "identity")
    FleetTrainer(fleet, stage, data, settings, tokens=tokens, progress=False, **kwargs).run()
    return fleet, tokens


@pytest.fixture
def exact(dit):
    "In doubles: Adam divides by the gradient's own size, so that in floats the rounding of a gradient near zero would show."
    dit.transformer.double()
    yield dit
    dit.transformer.float()

@pytest.mark.parametrize("stage, twins", [("identity", 0.), ("motion", 0.), ("motion", .5)])
def test_a_member_ends_as_if_alone(exact, A, data, stage, twins):
    dit = exact
    if twins: data = data | dict(motion=[replace(d, twins=torch.randn(3, *d.latents.shape[1:], generator=torch.Generator().manual_seed(i))) for i, d in enumerate(data["motion"])])
    s = replace(Settings() if stage == "identity" else motion_settings(), steps=5, batch=2, twins=twins, token_lr=1e-3, token_start=.5, lr=1e-2)
    p = prior(dit, data[stage][0])
    fleet, theirs = fleet_run(dit, A, data[stage], s, stage=stage, prior=p, seeds=[3, 4, 5], at_once=4) # in two pieces
    fleet.detach()
    for i in range(3):
        alone, mine = Basis(dit, 4, LAYERS, A=A), vectors(dit)
        Trainer(dit, alone, stage, data[stage][i], replace(s, seed=3+i), p, mine, progress=False).run()
        for k, v in alone.parameters().items():
            ours = fleet.weights[k] if k.endswith(".A") else fleet.weights[k][i]
            torch.testing.assert_close(ours, v, atol=1e-5*float(v.abs().max()) + 1e-12, rtol=1e-4)
        word = "[v]" if stage == "identity" else "[u]"
        assert theirs[word][i].abs().max() > 0
        torch.testing.assert_close(theirs[word][i], mine[word], atol=1e-6, rtol=1e-4)

def test_company_matters_to_nobody(exact, A, data):
    "The same members in another order, beside another one, and all at once or one by one."
    s = Settings(steps=3, batch=2, prior=0., lr=1e-2)
    sets = data["identity"]
    one, _ = fleet_run(exact, A, sets, s, seeds=[1, 2, 3])
    two, _ = fleet_run(exact, A, [sets[2], sets[0]], s, seeds=[3, 1], at_once=2)
    for k in one.weights:
        if k.endswith("B1"): torch.testing.assert_close(one.weights[k][[2, 0]], two.weights[k].data, atol=1e-7, rtol=1e-4)

def test_a_given_basis_is_never_trained(dit, A, data):
    fleet, _ = fleet_run(dit, A, data["identity"], Settings(steps=2, batch=2, prior=0.))
    for k, v in fleet.weights.items():
        if k.endswith(".A"): assert torch.equal(v, A[k])
        if k.endswith(".B2"): assert not v.any()

def test_a_universal_basis_learns_from_all(dit, data):
    start = Basis(dit, 4, LAYERS).tensors()
    made = universal_basis(dit, data["identity"], Settings(steps=2, batch=2, prior=0., lr=1e-2), 4, LAYERS, progress=False)
    assert all(k.endswith(".A") and not torch.equal(v, start[k]) for k, v in made.items()) and made
    assert getattr(dit, "basis", None) is None

def test_a_killed_run_goes_on_exactly(dit, A, data, tmp_path, monkeypatch):
    s = Settings(steps=6, batch=2, prior=0., save_every=2, lr=1e-2)
    whole, vw = fleet_run(dit, A, data["identity"], s, seeds=[1, 2, 3])
    step = FleetTrainer._one_step
    def dies(self):
        if self.step == 3: raise MemoryError
        step(self)
    with monkeypatch.context() as m:
        m.setattr(FleetTrainer, "_one_step", dies)
        with pytest.raises(MemoryError): fleet_run(dit, A, data["identity"], s, seeds=[1, 2, 3], out=tmp_path)
    again, va = fleet_run(dit, A, data["identity"], s, seeds=[1, 2, 3], out=tmp_path)
    for k in whole.weights: assert torch.equal(whole.weights[k], again.weights[k])
    assert torch.equal(vw["[v]"], va["[v]"])
    with pytest.raises(UserError, match=r"another seeds: was \[1, 2, 3\], is \[1, 2, 9\]"): fleet_run(dit, A, data["identity"], s, seeds=[1, 2, 9], out=tmp_path)
    changed = [data["identity"][0], frame_set(dit, render(heldout_spec(5), fps=12)[:5], LOOKS[1]), data["identity"][2]]
    with pytest.raises(UserError, match=r"\(another member 1 clip\)"): fleet_run(dit, A, changed, s, seeds=[1, 2, 3], out=tmp_path)
    with pytest.raises(UserError, match="another member 2"): fleet_run(dit, A, data["identity"][:2], s, seeds=[1, 2], out=tmp_path)

def test_a_fleet_goes_on_elsewhere_with_its_own_data(dit, A, data, tmp_path):
    s = Settings(steps=4, batch=2, prior=0., save_every=2, lr=1e-2)
    whole, _ = fleet_run(dit, A, data["identity"], s)
    fleet_run(dit, A, data["identity"], replace(s, steps=2), out=tmp_path)
    off = [Examples(e.latents+1e-3, e.texts, e.placeholders).made_of(**e.given) for e in data["identity"]]
    again, _ = fleet_run(dit, A, off, s, out=tmp_path)
    for k in whole.weights: assert torch.equal(whole.weights[k], again.weights[k])

def test_two_fleets_in_one_folder(dit, A, data, clips, tmp_path):
    with FileLock(tmp_path/"run.lock"):
        with pytest.raises(UserError, match="Another run is at work"): fleet_run(dit, A, data["identity"], Settings(steps=1, batch=1, prior=0.), out=tmp_path)
        with pytest.raises(UserError, match="Another run is at work"): learn_many(clips, [(p, MOVES) for p in LOOKS], dit, tmp_path, progress=False)

def test_a_member_whose_gradient_is_infinite_is_named(dit, A, data, monkeypatch):
    monkeypatch.setattr(FleetTrainer, "_clip", lambda self: torch.tensor([1., float("inf"), 1.]))
    with pytest.raises(UserError, match="Member 1: The loss"): fleet_run(dit, A, data["identity"], Settings(steps=1, batch=1, prior=0.))

def test_the_bad_member_is_named(dit, A, data):
    bad = Examples(data["identity"][1].latents*float("nan"), data["identity"][1].texts, data["identity"][1].placeholders)
    with pytest.raises(UserError, match="Member 1: The loss"): fleet_run(dit, A, [data["identity"][0], bad], Settings(steps=2, batch=2, prior=0.))

def test_an_empty_fleet_does_nothing_and_comes_off(dit, A):
    x, t, text = dit.noise([1, 2], 5), torch.tensor([.3, .7]), dit.embed(["a man", "a woman"])
    with torch.no_grad():
        bare = dit.velocity(x, t, text)
        fleet = Fleet(dit, 2, 4, LAYERS, A=A)
        assert torch.equal(dit.velocity(x, t, text), bare)
        for k, v in fleet.weights.items():
            if k.endswith("B1"): v.data[1] = 1.
        with_one = dit.velocity(x, t, text)
        assert torch.equal(with_one[0], bare[0]) and not torch.equal(with_one[1], bare[1])
        fleet.detach()
        assert torch.equal(dit.velocity(x, t, text), bare) and dit.basis is None

def test_chances_come_back():
    g = Chances(torch.Generator().manual_seed(i) for i in range(3))
    state = g.get_state(); first = [torch.rand(2, generator=x) for x in g]
    g.set_state(state)
    assert all(torch.equal(torch.rand(2, generator=x), f) for x, f in zip(g, first))

def test_learn_many(dit, clips, tmp_path):
    few = dict(steps=2, batch=2, prior=0.)
    made = learn_many(clips, [(p, MOVES) for p in LOOKS], dit, tmp_path/"run", rank=4, layers=LAYERS, settings=Settings(**few), stage1=Settings(**few), stage2=motion_settings(**few), progress=False)
    again = Concept.load(made[1].save(tmp_path/"one"), dit)
    assert again.generate(steps=2, num_frames=5).frames.isfinite().all() and again.info["fleet"] == 3
    for k in made[0].weights: assert torch.equal(made[0].weights[k], made[2].weights[k]) == k.endswith(".A")
    later = learn(clips[0], LOOKS[0], MOVES, dit, basis=made[0], stage1=Settings(**few), stage2=motion_settings(**few), progress=False)
    for k, v in later.weights.items():
        if k.endswith(".A"): assert torch.equal(v, made[0].weights[k])
    assert later.rank == 4 and later.info["layers"] == LAYERS

@pytest.mark.parametrize("wrong, says", [
    (lambda dit, c: learn_many([], [], dit), "at least one"), (lambda dit, c: learn_many(c, [(LOOKS[0], MOVES)], dit), "pairs of prompts"),
    (lambda dit, c: learn_many(c[:1], [("a man", MOVES)], dit), r"has no \[v\]"), (lambda dit, c: Fleet(dit, 0), "nobody"),
    (lambda dit, c: FleetTrainer(Fleet(dit, 2), "identity", [], Settings()), "one for each member"),
    (lambda dit, c: FleetTrainer(Fleet(dit, 1), "identity", [None], Settings(sample_every=3)), "without samples"),
    (lambda dit, c: learn(c[0], LOOKS[0], MOVES, dit, basis={"blocks.0.attn1.to_q.A": torch.zeros(4, 7)}, layers=r"blocks\.0\.attn1\.to_q"), "does not fit")])
def test_impossible_fleets(dit, clips, wrong, says):
    with pytest.raises(UserError, match=says): wrong(dit, clips)
    assert not any("lora" in n for n, _ in dit.transformer.named_parameters()) or getattr(dit, "basis", None)

@pytest.mark.parametrize("stage", ["identity", "motion"])
def test_in_bf16_a_member_ends_as_if_alone_in_bf16(dit, A, data, stage):
    "Rounding differs with the size of a batch, so here the same means the same direction; a member's neighbour points elsewhere."
    s = replace(Settings() if stage == "identity" else motion_settings(), steps=5, batch=2, prior=0., dropout=0., lr=1e-3)
    fleet, _ = fleet_run(dit, A, data[stage], s, stage=stage, seeds=[3, 4, 5], bf16=True)
    fleet.detach()
    alone = Basis(dit, 4, LAYERS, A=A)
    with bf16_products(): Trainer(dit, alone, stage, data[stage][1], replace(s, seed=4), None, vectors(dit), progress=False).run()
    part = "B1" if stage == "identity" else "B2"
    mine = torch.cat([v.flatten() for k, v in alone.parameters().items() if k.endswith(part)])
    theirs = [torch.cat([v[i].flatten() for k, v in fleet.weights.items() if k.endswith(part)]) for i in range(3)]
    cosines = [float(torch.cosine_similarity(mine, t, 0)) for t in theirs]
    assert cosines[1] > .97 > .9 > max(cosines[0], cosines[2]) and abs(float(theirs[1].norm()/mine.norm())-1) < .02, cosines

def test_bf16_is_a_choice_that_a_checkpoint_remembers(dit, A, data, tmp_path):
    s = Settings(steps=2, batch=1, prior=0.)
    fleet, _ = fleet_run(dit, A, data["identity"], s, out=tmp_path)
    with pytest.raises(UserError, match="another bf16: was False, is True"): fleet_run(dit, A, data["identity"], s, out=tmp_path, bf16=True)
    half, _ = fleet_run(dit, A, data["identity"], s, bf16=True)
    k = next(k for k in half.weights if k.endswith("B1"))
    assert half.weights[k].dtype == torch.float32 and not torch.equal(half.weights[k], fleet.weights[k])
    assert torch.nn.functional.scaled_dot_product_attention is torch._C._nn.scaled_dot_product_attention # nothing is left behind

def test_texts_have_one_length_at_every_step(dit, A, data, monkeypatch):
    "What is compiled is for one shape: members whose prompts differ in length, and a prior's, whoever is drawn."
    seen, velocity = set(), VideoDiT.velocity
    monkeypatch.setattr(VideoDiT, "velocity", lambda self, x, t, text: (seen.add((len(x), text.shape[1])), velocity(self, x, t, text))[1])
    fleet_run(dit, A, [*data["motion"], data["motion"][0]], motion_settings(steps=6, batch=2, prior=.5), stage="motion", prior=prior(dit, data["motion"][0]), at_once=6) # four members in two passes
    assert len(seen) == 1 and seen.pop()[0] == 4

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")

@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, needs_compiler])])
def test_a_compiled_fleet_ends_the_same(tmp_path, monkeypatch, backend):
    "Every day as one graph that PyTorch itself runs; the compiler takes a minute."
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    dit = VideoDiT.load(wan.write(tmp_path/"wan"), "cpu", torch.float32) # two blocks: quickly compiled
    sets = [Examples(torch.randn(3, 16, 2, 4, 4), [dit.embed_once(p)], [["[v]"]]) for p in ("a [v] man in the park", "a [v] man")]
    def run(**kwargs):
        fleet, tokens = Fleet(dit, 2, 4), vectors(dit, 2)
        FleetTrainer(fleet, "identity", sets, Settings(steps=3, batch=2, prior=0., lr=1e-2), tokens=tokens, progress=False, **kwargs).run()
        fleet.detach()
        return fleet.weights
    stock, plain, fast = dit.transformer.forward, run(), run(fast=True, out=tmp_path/"run")
    assert dit.transformer.forward == stock, "nothing compiled is left behind"
    for k, v in plain.items():
        assert v.any() or k.endswith("B2")
        torch.testing.assert_close(fast[k].data, v.data, atol=2e-2*float(v.abs().max())+1e-12, rtol=0)
    with pytest.raises(UserError, match="another fast: was True, is False"): run(out=tmp_path/"run")

def test_what_cannot_be_compiled_is_told(tmp_path, monkeypatch):
    dit = VideoDiT.load(wan.write(tmp_path/"wan"), "cpu", torch.float32)
    stock = dit.transformer.forward
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "nosuchcompiler"))
    torch._dynamo.reset()
    with pytest.raises(UserError, match="nosuchcompiler.*leave fast=True out"), compiled(dit): dit.velocity(dit.noise([1], 5, 32, 32), torch.tensor([.3]), dit.embed(["a man"]))
    assert dit.transformer.forward == stock
