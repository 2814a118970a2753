"Many concepts at once: each ends as if it had been trained alone, a killed run goes on exactly, and one bad member is named."
from dataclasses import replace
from functools import partial
import shutil
import pytest, torch
import road, wan_folder as wan
from filelock import FileLock
from tqdm import tqdm
from road import stage as stage_of
from sas_nb import adapter as adapter_module, fast
from sas_nb.adapter import SharedLoRA
from sas_nb.atlas.geometry import Atlas
from sas_nb.clip import Clip
from sas_nb.beforehand import over_basis
from sas_nb.concept import Concept
from sas_nb.data import Examples, frame_set, sequence, StageData
from sas_nb.dit import VideoDiT
from sas_nb.explore.concepts import is_saved, named_concepts
from sas_nb.fast import compiled
from sas_nb.files import UserError
from sas_nb.folders import film_of
from sas_nb.lab.draw import render
from sas_nb.lab.world import heldout_spec
from sas_nb.learning import learn, learn_many, universal_basis
from sas_nb.recipe import Run
from sas_nb.resume import Generators
from sas_nb.train import Trainer

LAYERS = r"blocks\.[03]\.(attn1\.to_q|attn2\.to_v|ffn\.net\.2)"
LOOKS = ["a [v] man in a red shirt in a park", "a [v] woman on a beach", "a [v] man in the snow at night"]
MOVES = "he is [u] dancing"


pytestmark = pytest.mark.usefixtures("own_cache")

@pytest.fixture(scope="module")
def dit(): return VideoDiT.load("tiny", "cpu", torch.float32)

@pytest.fixture(scope="module")
def clips(): return [render(heldout_spec(i), fps=12)[:5] for i in range(3)]

@pytest.fixture(scope="module")
def data(dit, clips):
    "Prompts of different lengths, so that texts are padded in company."
    return dict(appearance=[frame_set(dit, c, p) for c, p in zip(clips, LOOKS)],
                motion=[sequence(dit, c, f"{p}. {MOVES}") for c, p in zip(clips, LOOKS)])

@pytest.fixture(scope="module")
def A(dit): return {k: v.detach().clone() for k, v in SharedLoRA(dit, 4, LAYERS).weights.items() if k.endswith(".A")}

def prior(dit, like):
    return Examples(torch.randn(4, *like.latents.shape[1:], generator=torch.Generator().manual_seed(1)), [dit.embed_once(p) for p in dit.defaults.prior[:4]], [[]]*4)

def together(dit, A, data, stage, **kwargs):
    "A trained adapter of as many concepts as there are data."
    adapter = road.new(dit, 4, LAYERS, n=len(data), A=A)
    road.trainer(adapter, data, stage, **kwargs).fit()
    return adapter


@pytest.fixture
def exact(dit, monkeypatch):
    "In doubles, but for the norms, which Wan computes in floats: Adam divides by the gradient's own size, so that the rounding of a gradient near zero shows."
    fresh = adapter_module._fresh
    def doubled(*args): return {k: torch.nn.Parameter(p.double(), requires_grad=False) for k, p in fresh(*args).items()}
    monkeypatch.setattr(adapter_module, "_fresh", doubled)
    dit.transformer.double()
    yield dit
    dit.transformer.float()

@pytest.mark.parametrize("stage, pairs, without", [("appearance", 0., ()), ("motion", 0., ()), ("motion", .5, ()), ("motion", .5, (1,))])
def test_a_member_ends_as_if_alone(exact, A, data, stage, pairs, without):
    dit = exact
    def others(d, i): return None if i in without else torch.randn(3, *d.latents.shape[1:], generator=torch.Generator().manual_seed(i))
    if pairs: data = data | dict(motion=[replace(d, counterfactuals=others(d, i)) for i, d in enumerate(data["motion"])])
    s = stage_of(stage, steps=5, batch=2, counterfactuals=pairs, token_lr=1e-3, token_init=.5, lr=1e-2)
    p = prior(dit, data[stage][0])
    many = together(dit, A, data[stage], s, prior=p, seeds=[3, 4, 5], at_once=4) # in two passes
    word = "[v]" if stage == "appearance" else "[u]"
    for i in range(3):
        alone = together(dit, A, data[stage][i:i+1], replace(s, seed=3+i), prior=p)
        (ours, ours_words), (theirs, their_words) = many.member(i), alone.member()
        for k, v in theirs.items(): torch.testing.assert_close(ours[k], v, atol=2e-4*float(v.abs().max()) + 1e-12, rtol=1e-3)
        assert ours_words[word].abs().max() > 0
        torch.testing.assert_close(ours_words[word], their_words[word], atol=1e-6, rtol=1e-4)

@pytest.mark.parametrize("at_once", [1, 3])
def test_a_batch_in_pieces_is_the_same_batch(exact, A, data, at_once):
    s = stage_of("motion", steps=4, batch=5, prior=0., lr=1e-2, token_lr=1e-3)
    whole, pieces = (together(exact, A, data["motion"][:1], s, at_once=n).member()[0] for n in (64, at_once))
    for k, v in whole.items(): torch.testing.assert_close(pieces[k], v, atol=2e-4*float(v.abs().max()) + 1e-12, rtol=1e-3)

def test_company_matters_to_nobody(exact, A, data):
    "The same members in another order, beside another one, and all at once or one by one."
    s = stage_of(steps=3, batch=2, prior=0., lr=1e-2)
    sets = data["appearance"]
    one = together(exact, A, sets, s, seeds=[1, 2, 3])
    two = together(exact, A, [sets[2], sets[0]], s, seeds=[3, 1], at_once=2)
    for k in one.weights:
        if k.endswith("B1"): torch.testing.assert_close(one.weights[k][[2, 0]], two.weights[k].data, atol=1e-7, rtol=1e-4)

def test_a_given_basis_is_never_trained(dit, A, data):
    fleet = together(dit, A, data["appearance"], stage_of(steps=2, batch=2, prior=0.))
    for k, v in fleet.weights.items():
        if k.endswith(".A"): assert torch.equal(v, A[k])
        if k.endswith(".B2"): assert not v.any()

def test_a_universal_basis_learns_from_all(dit, data):
    start = SharedLoRA(dit, 4, LAYERS).weights
    recipe = road.recipe(dict(steps=2, batch=2, prior=0., lr=1e-2), rank=4, layers=LAYERS)
    basis = universal_basis(dit, StageData(data["appearance"]), recipe, Run(progress=False))
    assert all(k.endswith(".A") and not torch.equal(v, start[k]) for k, v in basis.items()) and basis
    assert not dit.adapted

def test_a_killed_run_goes_on_exactly(dit, A, data, tmp_path, monkeypatch):
    s, step = stage_of(steps=6, batch=2, prior=0., lr=1e-2), Trainer.train_step
    whole = together(dit, A, data["appearance"], s, seeds=[1, 2, 3])
    def dies(self):
        if self.step == 3: raise MemoryError
        step(self)
    with monkeypatch.context() as m:
        m.setattr(Trainer, "train_step", dies)
        with pytest.raises(MemoryError): together(dit, A, data["appearance"], s, seeds=[1, 2, 3], out=tmp_path, save_every=2)
    again = together(dit, A, data["appearance"], s, seeds=[1, 2, 3], out=tmp_path, save_every=2)
    for k in whole.weights: assert torch.equal(whole.weights[k], again.weights[k])
    assert torch.equal(whole.tokens["[v]"], again.tokens["[v]"])
    with pytest.raises(UserError, match=r"another seeds: was \[1, 2, 3\], is \[1, 2, 9\]"): together(dit, A, data["appearance"], s, seeds=[1, 2, 9], out=tmp_path)
    changed = [data["appearance"][0], frame_set(dit, render(heldout_spec(5), fps=12)[:5], LOOKS[1]), data["appearance"][2]]
    with pytest.raises(UserError, match=r"\(another member 1 clip\)"): together(dit, A, changed, s, seeds=[1, 2, 3], out=tmp_path, save_every=2)
    with pytest.raises(UserError, match="of 3 concepts at once, and this one is of 2"): together(dit, A, data["appearance"][:2], s, seeds=[1, 2], out=tmp_path)

def test_a_fleet_goes_on_elsewhere_with_its_own_data(dit, A, data, tmp_path):
    s = stage_of(steps=4, batch=2, prior=0., lr=1e-2)
    whole = together(dit, A, data["appearance"], s)
    together(dit, A, data["appearance"], replace(s, steps=2), out=tmp_path)
    off = [Examples(e.latents+1e-3, e.texts, e.placeholders).made_of(**e.given) for e in data["appearance"]]
    again = together(dit, A, off, s, out=tmp_path)
    for k in whole.weights: assert torch.equal(whole.weights[k], again.weights[k])

def test_two_fleets_in_one_folder(dit, A, data, clips, tmp_path):
    with FileLock(tmp_path/"run.lock"):
        with pytest.raises(UserError, match="Another run is at work"): together(dit, A, data["appearance"], stage_of(steps=1, batch=1, prior=0.), out=tmp_path)
        with pytest.raises(UserError, match="Another run is at work"): learn_many(clips, [(p, MOVES) for p in LOOKS], dit, run=Run(out=tmp_path, progress=False))

def test_a_member_whose_gradient_is_infinite_is_named(dit, A, data, monkeypatch):
    monkeypatch.setattr(Trainer, "clip_gradient", lambda self: torch.tensor([1., float("inf"), 1.]))
    with pytest.raises(UserError, match="Member 1: The loss"): together(dit, A, data["appearance"], stage_of(steps=1, batch=1, prior=0.))

def test_the_bad_member_is_named(dit, A, data):
    bad = Examples(data["appearance"][1].latents*float("nan"), data["appearance"][1].texts, data["appearance"][1].placeholders)
    with pytest.raises(UserError, match="Member 1: The loss"): together(dit, A, [data["appearance"][0], bad], stage_of(steps=2, batch=2, prior=0.))

def test_an_empty_fleet_does_nothing_and_comes_off(dit, A):
    x, t, text = dit.noise([1, 2], 5), torch.tensor([.3, .7]), dit.embed(["a man", "a woman"])
    with torch.no_grad():
        bare = dit.velocity(x, t, text)
        fleet = road.new(dit, 4, LAYERS, n=2, A=A)
        assert torch.equal(dit.velocity(x, t, text), bare)
        for k, v in fleet.weights.items():
            if k.endswith("B1"): v.data[1] = 1.
        with_one = dit.velocity(x, t, text)
        assert torch.equal(with_one[0], bare[0]) and not torch.equal(with_one[1], bare[1])
        road.off(dit)
        assert torch.equal(dit.velocity(x, t, text), bare) and not dit.adapted

def test_generators_come_back():
    g = Generators(torch.Generator().manual_seed(i) for i in range(3))
    state = g.get_state(); first = [torch.rand(2, generator=x) for x in g]
    g.set_state(state)
    assert all(torch.equal(torch.rand(2, generator=x), f) for x, f in zip(g, first))

def test_learn_many(dit, clips, tmp_path):
    recipe = road.recipe(both=dict(steps=2, batch=2, prior=0.), rank=4, layers=LAYERS)
    made = learn_many(clips, [(p, MOVES) for p in LOOKS], dit, recipe, Run(out=tmp_path/"run", progress=False))
    again = Concept.load(tmp_path/"run"/"concepts"/"001", dit)
    assert again.generate(steps=2, num_frames=5).frames.isfinite().all() and again.info["trained_with"] == 2
    for k in made[0].weights: assert torch.equal(made[0].weights[k], made[2].weights[k]) == k.endswith(".A")
    later = learn(clips[0], (LOOKS[0], MOVES), dit, recipe.with_(rank=2), Run(progress=False), basis=made[0])
    for k, v in later.weights.items():
        if k.endswith(".A"): assert torch.equal(v, made[0].weights[k])
    assert later.rank == 4 and later.info["layers"] == LAYERS and later.info["recipe"]["rank"] == 4

def test_a_basis_of_weights_brings_nobody_along(dit, A):
    "A person's weights hold coefficients, too: they are left behind."
    weights = A | {k.replace(".A", ".B1"): torch.ones(a.shape[1], len(a)) for k, a in A.items()}
    assert over_basis(weights, "default", dit)[1].keys() == A.keys()


ONE = road.recipe(both=dict(steps=1, batch=1, prior=0.), rank=2, layers=r"blocks\.0\.attn1\.to_q")

@pytest.fixture(scope="module")
def runs(dit, clips, tmp_path_factory, own_cache):
    "The folders of a run of two concepts and of a run of one; and what the bars of the first were called."
    folder, titles = tmp_path_factory.mktemp("runs"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sas_nb.train.tqdm", lambda desc, **about: titles.append(desc) or tqdm(disable=True))
        learn_many(clips[:2], [(p, MOVES) for p in LOOKS[:2]], dit, ONE, Run(out=folder/"many"))
    learn(clips[0], (LOOKS[0], MOVES), dit, ONE, Run(out=folder/"one", progress=False))
    return folder, titles

def test_the_basis_has_a_bar_of_its_own(runs):
    assert runs[1] == ["basis of all 2 concepts", "stage 1 of 2, appearance", "stage 2 of 2, motion"]

def test_every_run_keeps_its_clip_as_the_model_saw_it(runs, clips, dit):
    folder = runs[0]
    for place, clip in (("one/concept", clips[0]), ("one", clips[0]), ("many/concepts/000", clips[0]), ("many/concepts/001", clips[1])):
        kept = Clip.load(film_of(folder/place), size=clip.shape[2:])
        assert (len(kept), kept.fps) == (len(clip), clip.fps) and (kept.frames - clip.frames).abs().mean() < .05
    film = film_of(folder/"one")
    for there in (None, b"a film of yours"):
        film.unlink()
        if there: film.write_bytes(there)
        learn(clips[0], (LOOKS[0], MOVES), dit, ONE, Run(out=folder/"one", progress=False)) # finished: nothing is trained
        if there: assert film.read_bytes() == there
        else: assert len(Clip.load(film)) == len(clips[0])
    film.unlink()

@pytest.mark.parametrize("place", ["many", "many/concepts"])
def test_a_run_of_many_is_no_concept_and_says_where_they_are(runs, place):
    with pytest.raises(UserError, match=r"run of many concepts, 2 in all: give one of them, such as '.*concepts[\\/]+000'"):
        Concept.load(runs[0]/place)

def test_atlas_and_explorer_take_all_of_a_run(runs, dit):
    folder = runs[0]
    for places in (folder/"many", str(folder/"many"), [folder/"many"], [folder/"many"/"concepts"]): assert Atlas(places).names == ["000", "001"]
    assert Atlas([folder/"many", folder/"one"]).names == ["000", "001", "one"] == list(named_concepts([folder/"many", folder/"one"]))
    assert all(is_saved(place) for place in named_concepts(folder/"many").values())
    with pytest.raises(UserError, match="run of many"): Atlas(dict(a=folder/"many", b=folder/"one"))

@pytest.mark.parametrize("name, n, says", [
    ("many", 1, "many holds a run of 2 concepts at once, and this one is of one concept: choose another folder."),
    ("one", 2, "one holds a run of one concept, and this one is of 2 concepts at once: choose another folder."),
    ("many", 3, "many holds a run of 2 concepts at once, and this one is of 3 concepts at once: choose another folder.")])
def test_another_number_of_concepts_is_refused_in_one_sentence_before_anything_is_made(runs, dit, clips, monkeypatch, name, n, says):
    run = Run(out=runs[0]/name, progress=False)
    before = sorted(runs[0].rglob("*"))
    monkeypatch.setattr("sas_nb.learning.build", lambda *_: pytest.fail("too late"))
    with pytest.raises(UserError) as e:
        if n == 1: learn(clips[0], (LOOKS[0], MOVES), dit, ONE, run)
        else: learn_many(clips[:n], [(p, MOVES) for p in LOOKS[:n]], dit, ONE, run)
    assert str(e.value).endswith(says) and sorted(runs[0].rglob("*")) == before

def test_what_differs_is_told_without_raw_dicts(runs, dit, clips):
    with pytest.raises(UserError, match=r"another prior: was none, is some; .*another prior: was 0.0, is 0.5") as e:
        learn(clips[0], (LOOKS[0], MOVES), dit, ONE.with_(both=dict(prior=.5, batch=2)), Run(out=runs[0]/"one", progress=False))
    assert "{" not in str(e.value)

def test_the_length_of_the_texts_is_found_once(dit, data, A, monkeypatch):
    asked = []
    monkeypatch.setattr("sas_nb.train._longest", lambda trainer: asked.append(trainer) or 30)
    together(dit, A, data["appearance"], stage_of(steps=3, batch=1, prior=0.))
    assert len(asked) == 1

def test_one_of_many_is_the_concept_that_is_learned_alone(exact, clips, A):
    "The same road: over one basis, `learn` and `learn_many` give the same."
    recipe = road.recipe(both=dict(steps=3, batch=2, prior=0., lr=1e-2), rank=4, layers=LAYERS)
    quiet = Run(progress=False)
    many = learn_many(clips, [(p, MOVES) for p in LOOKS], exact, recipe, quiet, basis=A)
    for clip, look, member in zip(clips, LOOKS, many):
        alone = learn(clip, (look, MOVES), exact, recipe, quiet, basis=A)
        for k, v in alone.weights.items(): torch.testing.assert_close(member.weights[k], v, atol=2e-4*float(v.abs().max()) + 1e-12, rtol=1e-3)

def many_of(dit, n, data, **run):
    with SharedLoRA(dit, n=n).attached() as adapter: road.trainer(adapter, data, stage_of(), **run)

@pytest.mark.parametrize("wrong, says", [
    (lambda dit, c: learn_many([], [], dit), "at least one"), (lambda dit, c: learn_many(c, [(LOOKS[0], MOVES)], dit), "pairs of prompts"),
    (lambda dit, c: learn_many(c[:1], [("a man", MOVES)], dit), r"has no \[v\]"), (lambda dit, c: SharedLoRA(dit, n=0), "at least one concept"),
    (lambda dit, c: many_of(dit, 2, []), "give one for each"),
    (lambda dit, c: many_of(dit, 2, [None, None], sample_every=3), "without samples"),
    (lambda dit, c: road.trainer(SharedLoRA(dit), [None], stage_of()), "not on the model"),
    (lambda dit, c: learn(c[0], (LOOKS[0], MOVES), dit, road.recipe(layers=r"blocks\.0\.attn1\.to_q"), basis={"blocks.0.attn1.to_q.A": torch.zeros(4, 7)}), "does not fit"),
    (lambda dit, c: learn(c[0], (LOOKS[0], MOVES), dit, basis={}), "no layer's A"), (lambda dit, c: learn_many(c, [(p, MOVES) for p in LOOKS], dit, basis={"x.B1": torch.zeros(7, 4)}), "no layer's A")])
def test_impossible_fleets(dit, clips, wrong, says):
    with pytest.raises(UserError, match=says): wrong(dit, clips)
    assert not any("lora" in n for n, _ in dit.transformer.named_parameters())

@pytest.mark.parametrize("stage", ["appearance", "motion"])
def test_in_bf16_a_member_ends_as_if_alone_in_bf16(dit, A, data, stage):
    "Rounding differs with the size of a batch, so here the same means the same direction; a member's neighbour points elsewhere."
    s = stage_of(stage, steps=5, batch=2, prior=0., dropout=0., lr=1e-3, bf16=True)
    many, part = together(dit, A, data[stage], s, seeds=[3, 4, 5]), "B1" if stage == "appearance" else "B2"
    def flat(adapter, i): return torch.cat([v.flatten() for k, v in adapter.member(i)[0].items() if k.endswith(part)])
    theirs = [flat(many, i) for i in range(3)]
    alone = flat(together(dit, A, data[stage][1:2], replace(s, seed=4)), 0)
    cosines = [float(torch.cosine_similarity(alone, t, 0)) for t in theirs]
    assert cosines[1] > .97 > .9 > max(cosines[0], cosines[2]) and abs(float(theirs[1].norm()/alone.norm())-1) < .02, cosines

@pytest.mark.parametrize("has", [True, False])
def test_bf16_by_default_is_for_a_processor_that_has_it(dit, A, data, monkeypatch, has):
    monkeypatch.setattr(fast, "_cpu_has_bf16", lambda: has)
    s = stage_of(steps=2, batch=1, prior=0.)
    own, told = (together(dit, A, data["appearance"][:1], replace(s, bf16=b)).weights for b in (None, has))
    assert all(torch.equal(own[k], told[k]) for k in own)

def test_bf16_is_a_choice_that_a_checkpoint_remembers(dit, A, data, tmp_path):
    s = stage_of(steps=2, batch=1, prior=0.)
    fleet = together(dit, A, data["appearance"], s, out=tmp_path)
    with pytest.raises(UserError, match="another bf16: was False, is True"): together(dit, A, data["appearance"], replace(s, bf16=True), out=tmp_path)
    half = together(dit, A, data["appearance"], replace(s, bf16=True))
    k = next(k for k in half.weights if k.endswith("B1"))
    assert half.weights[k].dtype == torch.float32 and not torch.equal(half.weights[k], fleet.weights[k])
    assert torch.nn.functional.scaled_dot_product_attention is torch._C._nn.scaled_dot_product_attention # nothing is left behind

def test_texts_have_one_length_at_every_step(dit, A, data, monkeypatch):
    "What is compiled is for one shape: members whose prompts differ in length, and a prior's, whoever is drawn."
    seen, velocity = set(), VideoDiT.velocity
    monkeypatch.setattr(VideoDiT, "velocity", lambda self, x, t, text: (seen.add((len(x), text.shape[1])), velocity(self, x, t, text))[1])
    together(dit, A, [*data["motion"], data["motion"][0]], stage_of("motion", steps=6, batch=2, prior=.5), prior=prior(dit, data["motion"][0]), at_once=6) # four members in two passes
    assert len(seen) == 1 and seen.pop()[0] == 4

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")

@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, needs_compiler])])
def test_a_compiled_fleet_ends_the_same(tmp_path, monkeypatch, backend):
    "Every day as one graph that PyTorch itself runs; the compiler takes a minute."
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    dit = VideoDiT.load(wan.write(tmp_path/"wan"), "cpu", torch.float32) # two blocks: quickly compiled
    sets = [Examples(torch.randn(3, 16, 2, 4, 4), [dit.embed_once(p)], [["[v]"]]) for p in ("a [v] man in the park", "a [v] man")]
    def run(compile=False, **kwargs):
        adapter = road.new(dit, 4, n=2)
        road.trainer(adapter, sets, stage_of(steps=3, batch=2, prior=0., lr=1e-2, compile=compile), **kwargs).fit()
        return adapter.weights
    stock, plain, fast = dit.transformer.forward, run(), run(compile=True, out=tmp_path/"run")
    assert dit.transformer.forward == stock, "nothing compiled is left behind"
    for k, v in plain.items():
        assert v.any() or k.endswith("B2")
        torch.testing.assert_close(fast[k].data, v.data, atol=2e-2*float(v.abs().max())+1e-12, rtol=0)
    with pytest.raises(UserError, match="another compile: was True, is False"): run(out=tmp_path/"run")

def test_what_cannot_be_compiled_is_told(tmp_path, monkeypatch):
    dit = VideoDiT.load(wan.write(tmp_path/"wan"), "cpu", torch.float32)
    stock = dit.transformer.forward
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "nosuchcompiler"))
    torch._dynamo.reset()
    with pytest.raises(UserError, match="nosuchcompiler.*compile to False"), compiled(dit): dit.velocity(dit.noise([1], 5, 32, 32), torch.tensor([.3]), dit.embed(["a man"]))
    assert dit.transformer.forward == stock
