"A concept: learnt in one call, kept whole, reweighted, and the same video in stock diffusers and peft."
import errno, json, re, shutil
from dataclasses import replace
from pathlib import Path

import pytest, road, torch
from diffusers import WanPipeline
from peft import PeftModel
from safetensors.torch import load_file

from sas_nb import stages
from sas_nb.advice import GenerationConfig
from sas_nb.cache import data_path
from sas_nb.clip import Clip
from sas_nb.concept import Concept
from sas_nb.concept_file import brief
from sas_nb.data import Examples
from sas_nb.dit import VideoDiT
from sas_nb.edits import edits_of, with_edits, without_new
from sas_nb.files import UserError
from sas_nb.lab.draw import render
from sas_nb.lab.world import heldout_spec
from sas_nb.learning import learn
from sas_nb.log import plot_history
from sas_nb.lowrank import delta
from sas_nb.memory import Memory
from sas_nb.prompt import Prompt
from sas_nb.recipe import Recipe, Run, WORD
from sas_nb.train import Trainer

STATIC, DYNAMIC = "a [v] man in a red shirt in a park", "he is [u] dancing"
TINY = dict(num_frames=5, height=64, width=64)


pytestmark = pytest.mark.usefixtures("own_cache")

@pytest.fixture(scope="module")
def dit(): return VideoDiT.load("tiny", device="cpu")

@pytest.fixture(scope="module")
def clip(): return render(heldout_spec(1), fps=12)[:5]

def few(**changes): return dict(batch=2, prior=0, lr=1e-2, dropout=0., token_lr=1e-1) | changes

def quick(clip, dit, out=None, steps=2, stage1=None, stage2=None, progress=False, recipe=None, **run):
    "A concept of rank 2 by the paper's recipe with other numbers, sampled as ours are."
    numbers = recipe or Recipe.paper().with_(both=few(steps=steps), stage1=stage1, stage2=stage2, rank=2, sampling=dict(guidance_factor=2/3, negative_scale=.7))
    return learn(clip, (STATIC, DYNAMIC), dit, numbers, Run(out=out, progress=progress, **run))

@pytest.fixture(scope="module")
def concept(dit, clip): return quick(clip, dit)

@pytest.fixture(scope="module")
def made(concept): return concept.generate(seed=3, steps=3, guidance=4., negative_scale=1., num_frames=5, negative="").frames

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# one call

def test_learn_gives_a_concept(concept, dit):
    assert concept.rank == 2 and len(concept.layers) == 10*dit.transformer.config.num_layers and not dit.adapted
    assert set(concept.tokens) == {"[v]", "[u]"} and all(v.any() for v in concept.tokens.values())
    assert all(w.dtype == torch.float32 and w.device.type == "cpu" and w.any() for w in concept.weights.values())
    assert {"base", "fingerprint", "recipe", "versions", "history", "lr", "clip", "made"} <= set(concept.info)

def test_the_prior_of_each_stage_is_made_like_its_data(dit, clip, monkeypatch):
    asked = []
    def prior(dit, images, prompts, **size):
        asked.append((images, prompts, size.pop("progress"), size))
        return Examples(road.latents(dit, 1, 1 if images else 5), [dit.embed_once("a man in a park")], [[]])
    monkeypatch.setattr(stages, "prior_examples", prior)
    prompts = ("a man in a park. he is walking",)
    quick(clip, dit, recipe=Recipe.paper().with_(both=few(steps=1, prior=.5), prior_prompts=prompts, rank=2))
    assert asked == [(images, prompts, False, TINY) for images in (True, False)]
    asked.clear()
    quick(clip, dit, steps=1, stage1=dict(prior=.5, frozen=True))
    assert [images for images, *_ in asked] == [False]

def test_without_regularisation_all_four_are_off():
    for name, steps in (("paper", (150, 400)), ("default", (25, 65))):
        stages = Recipe.unregularised(name).stages
        assert tuple(s.steps for s in stages) == steps
        for s in stages: assert s.dropout == s.token_mask == s.prior == s.counterfactuals == s.self_conditioning == 0

def test_the_papers_recipe_is_the_papers_table():
    "Appendix 8, table 6, and section 3.4; the learning rate is the checkpoint's own."
    one, two = Recipe.paper().stages
    assert (one.steps, two.steps, one.dropout, two.dropout) == (600, 900, .8, .5)
    for s in (one, two): assert (s.batch, s.betas, s.weight_decay, s.clip_norm, s.token_mask, s.token_lr, s.lr, s.lr_factor, s.rescale) == (8, (.9, .99), .01, .05, .1, 1e-5/WORD, None, 1., True)
    assert not one.frozen and not one.full_caption and one.shift == two.shift == 1.
    ours = Recipe.default()
    assert Recipe.named("default") == ours and ours.stages != (one, two) and ours.stage1.frozen and ours.stage1.full_caption
    base = GenerationConfig(lr=1e-3, lr_factor=2.)
    assert one.rate(base) == 1e-3 and replace(one, lr_factor=4.).rate(base) == 4e-3 and replace(one, lr_factor=4., lr=.1).rate(base) == .1 and replace(one, lr_factor=None).rate(base) == 2e-3
    with pytest.raises(UserError, match="no recipe 'theirs': choose default or paper"): Recipe.named("theirs")

def test_a_stage_that_is_not_named_stays_as_it_is():
    for recipe in (Recipe.default(), Recipe.paper()):
        changed = recipe.with_(stage1=dict(dropout=.5))
        assert changed.stage1 == replace(recipe.stage1, dropout=.5) and changed.stage2 == recipe.stage2 and changed.sampling == recipe.sampling
        assert changed.name == f"{recipe.name}, changed" and recipe.with_(stage1=dict(dropout=recipe.stage1.dropout)) == recipe
    with pytest.raises(UserError, match="no 'drop_out': try dropout"): Recipe.default().with_(stage1=dict(drop_out=.5))
    with pytest.raises(UserError, match="dropout=1"): Recipe.default().with_(both=dict(dropout=1))

@pytest.mark.parametrize("recipe", [Recipe.default(), Recipe.paper(), Recipe.unregularised(), Recipe.paper().with_(both=dict(lr=1e-3, seed=7), prior_prompts=("a man. he is walking",), counterfactual="a dog", rank=3, layers="x")], ids=lambda r: r.name)
def test_a_recipe_goes_whole_into_a_file_and_out(recipe, tmp_path):
    assert Recipe.load(recipe.save(tmp_path/"recipe.json")) == recipe and json.loads((tmp_path/"recipe.json").read_text()) == recipe.to_dict()

@pytest.mark.parametrize("spoil, says", [(lambda d: d["stage1"].pop("dropout"), "does not say stage1.dropout"), (lambda d: d["stage2"].update(drpout=1), "no 'drpout': try dropout"),
                                         (lambda d: d.update(rnk=1), "no 'rnk': try rank"), (lambda d: d["stage1"].update(batch=0), "batch=0")])
def test_a_recipe_that_is_not_whole_is_refused(tmp_path, spoil, says):
    d = Recipe.default().to_dict(); spoil(d)
    (tmp_path/"r.json").write_text(json.dumps(d))
    with pytest.raises(UserError, match=says): Recipe.load(tmp_path/"r.json")
    for text in ("{", "[]"):
        (tmp_path/"r.json").write_text(text)
        with pytest.raises(UserError, match="recipe"): Recipe.load(tmp_path/"r.json")

def test_a_concept_holds_its_recipe_and_it_repeats_the_run(dit, clip, tmp_path):
    recipe = Recipe.default().with_(both=dict(steps=1, batch=1, prior=0.), rank=1)
    made = quick(clip, dit, recipe=recipe, out=tmp_path/"run")
    assert made.info["recipe"] == recipe.to_dict() and made.summary()["recipe"] == "default, changed"
    assert made.info["lr"] == [s.rate(dit.defaults) for s in recipe.stages]
    again = quick(clip, dit, recipe=Recipe.load(tmp_path/"run"/"concept"/"concept.json"))
    assert same(again.weights, made.weights) and same(again.tokens, made.tokens) and again.info["recipe"] == made.info["recipe"]
    named = Recipe.unregularised("paper")
    assert quick(clip, dit, recipe=replace(named.with_(both=dict(steps=0), rank=1), name=named.name)).info["recipe"]["name"] == "paper, unregularised"

def test_free_encodes_then_frees_then_trains(clip, monkeypatch):
    own, held, fit = VideoDiT.load("tiny", device="cpu"), [], Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda self: held.append(self.dit.loaded & {"vae", "text_encoder"}) or fit(self))
    freed = quick(clip, own, memory=Memory(apart=True), steps=1)
    assert held == [set()]*2 and not own.adapted
    assert len(freed.generate(steps=1, num_frames=5)) == 5 and "vae" in own.loaded, "and its own prompt is remembered"

def test_progress_is_told_by_stage(dit, clip, capfd):
    quick(clip, dit, steps=1, progress=True)
    out, err = capfd.readouterr()
    assert "encoding 5 frames" in out and "stage 1 of 2, appearance" in err and "stage 2 of 2, motion" in err


def test_a_prompt_is_read_once(dit, monkeypatch):
    read, embed, (man, woman) = [], dit.family.embed, ("a man in a park", "a woman")
    monkeypatch.setattr(dit.family, "embed", staticmethod(lambda pipe, prompts, n: read.extend(prompts) or embed(pipe, prompts, n)))
    monkeypatch.setattr(dit, "texts", {})
    first, again = dit.embed([man, woman]), dit.embed([woman, "a [v] man in a park", man])
    assert read == [man, woman]
    for i, j in ((0, 1), (0, 2), (1, 0)): assert torch.equal(first[i], again[j])
    torch.testing.assert_close(dit.embed(woman)[0], first[1][:dit.embed(woman).shape[1]]) # no more padding than it needs
    assert dit.embed(woman).shape[1] < first.shape[1] and read == [man, woman]


# wrong input is told before any work

@pytest.mark.parametrize("wrong, says", [
    (dict(prompts=("a man in a park", DYNAMIC)), r"no \[v\]"), (dict(prompts=(STATIC, "he is dancing")), r"no \[u\]"), (dict(prompts=("a [v] man [u] dancing", DYNAMIC)), r"holds \[u\]"),
    (dict(prompts=("a [w] [v] man", DYNAMIC)), r"placeholder \[w\]"), (dict(prompts=("a [v] man on a beech", DYNAMIC)), "near: .*beach"), (dict(prompts=STATIC), "a pair"),
    (dict(recipe=Recipe.paper().with_(rank=0)), "at least one vector"), (dict(recipe=Recipe.paper().with_(layers="nothing")), "No layer"),
    (dict(clip="nowhere.mp4"), "nowhere.mp4"), (dict(model="tinny"), "tinny")], ids=str)
def test_learn_refuses(dit, clip, monkeypatch, wrong, says):
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("trained"))
    with pytest.raises(UserError, match=says): learn(**(dict(clip=clip, prompts=(STATIC, DYNAMIC), model=dit, run=Run(progress=False)) | wrong))

def test_samples_need_encoders_that_can_be_read_again(dit, clip, tmp_path, monkeypatch):
    run = dict(memory=Memory(apart=True), sample_every=2)
    handed = VideoDiT(VideoDiT.load("tiny", device="cpu").pipe, "tiny")
    with monkeypatch.context() as m, pytest.raises(UserError, match="sample_every=0"):
        m.setattr(Trainer, "fit", lambda self: pytest.fail("trained"))
        quick(clip, handed, tmp_path/"handed", **run)
    quick(clip, VideoDiT.load("tiny", device="cpu"), tmp_path/"run", **run)
    assert len(list((tmp_path/"run"/"samples").iterdir())) == 2

def test_learn_refuses_a_still(dit, clip):
    with pytest.raises(UserError, match="one frame"): quick(clip[:1], dit)

def test_learn_refuses_a_folder_that_cannot_take_it(dit, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("trained"))
    monkeypatch.setattr(VideoDiT, "encode_once", lambda self, frames: pytest.fail("encoded"))
    (tmp_path/"file").write_text("")
    with pytest.raises(UserError, match="a file and not a folder"): quick(clip, dit, tmp_path/"file"/"run")
    (tmp_path/"run"/"concept").mkdir(parents=True)
    (tmp_path/"run"/"concept"/"concept.json").write_text('{"design": "mine"}')
    with pytest.raises(UserError, match="Will not replace"): quick(clip, dit, tmp_path/"run")
    assert [p.name for p in (tmp_path/"run").iterdir()] == ["concept"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(UserError, match="free some space"): quick(clip, dit, tmp_path/"full")
    def read_only(self, data): raise OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr(Path, "write_bytes", read_only)
    with pytest.raises(UserError, match="read-only"): quick(clip, dit, tmp_path/"other")


# kept whole

def test_saved_and_loaded_it_is_the_same(concept, made, dit, tmp_path):
    folder = concept.at(motion=.5).save(tmp_path/"c")
    again = Concept.load(folder, dit)
    assert same(again.weights, concept.weights) and same(again.tokens, concept.tokens) and again.info == concept.info
    assert (again.appearance, again.motion) == (1, .5) and again.prompt == concept.prompt
    assert torch.equal(again.at(motion=1).generate(seed=3, steps=3, guidance=4., negative_scale=1., num_frames=5, negative="").frames, made)

def test_self_conditioning_travels(dit, clip, tmp_path):
    one = quick(clip, dit, stage1=dict(self_conditioning=1.))
    again = Concept.load(one.save(tmp_path/"c"), dit)
    assert one.conditioning.any() and torch.equal(again.conditioning, one.conditioning)
    assert torch.equal(again.generate(steps=2, num_frames=5).frames, one.generate(steps=2, num_frames=5).frames)
    with pytest.raises(UserError, match="self-conditioning"): one.export(tmp_path/"e")

def test_a_failed_save_leaves_the_old_one(concept, tmp_path, monkeypatch):
    concept.save(tmp_path/"c")
    before = {f.name: f.read_bytes() for f in (tmp_path/"c").iterdir()}
    def full(self, *data): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="disk is full"): concept.at(motion=0).save(tmp_path/"c")
    assert {f.name: f.read_bytes() for f in (tmp_path/"c").iterdir()} == before and [p.name for p in tmp_path.iterdir()] == ["c"]

def test_save_leaves_what_is_somebody_elses(concept, tmp_path):
    (tmp_path/"thesis.tex").write_text("years")
    for _ in range(2): concept.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"thesis.tex", "concept.json", "concept.safetensors"} and (tmp_path/"thesis.tex").read_text() == "years"
    (tmp_path/"other").mkdir(); (tmp_path/"other/concept.safetensors").write_text("years")
    with pytest.raises(UserError, match="Will not replace"): concept.save(tmp_path/"other")
    assert (tmp_path/"other/concept.safetensors").read_text() == "years" and len(list((tmp_path/"other").iterdir())) == 1

def spoil(folder, kind):
    weights, about = folder/"concept.safetensors", folder/"concept.json"
    if kind == "short": weights.write_bytes(weights.read_bytes()[:500])
    if kind == "gone": weights.unlink()
    if kind == "json": about.write_text("{")
    if kind == "no rank": about.write_text(json.dumps({k: v for k, v in json.loads(about.read_text()).items() if k != "rank"}))

@pytest.mark.parametrize("kind", ["short", "gone", "json", "no rank"])
def test_a_damaged_concept_says_so(concept, tmp_path, kind):
    spoil(concept.save(tmp_path/"c"), kind)
    with pytest.raises(UserError, match="damaged"): Concept.load(tmp_path/"c")

@pytest.mark.parametrize("name, hint", [("strength", "motion_guidance."), ("against", "negative_scale."), ("num_frame", "num_frames."), ("stepz", "steps."),
                                        ("tokens", "prompt or seed or"), ("velocity", "prompt or seed or"), ("xyzzy", "or height or width or progress.")])
def test_an_argument_that_generate_has_not(concept, name, hint):
    with pytest.raises(UserError) as e: concept.generate(**{name: 1})
    assert str(e.value).startswith(f"Concept.generate has no {name!r}: try ") and hint in str(e.value)


def test_not_a_concept(tmp_path):
    with pytest.raises(UserError, match="not a concept"): Concept.load(tmp_path)

@pytest.mark.parametrize("change, says", [(lambda w: {k: v for k, v in w.items() if not k.endswith("B2")}, "incomplete"), (lambda w: {k: v*float("nan") for k, v in w.items()}, "finite")])
def test_incomplete_or_broken_weights_are_refused(concept, tmp_path, change, says):
    replace(concept, weights=change(concept.weights)).save(tmp_path/"c")
    with pytest.raises(UserError, match=says): Concept.load(tmp_path/"c")

def test_another_base_or_rank_is_refused(concept):
    with pytest.raises(UserError, match="another base"): replace(concept, info=concept.info | dict(fingerprint="0"*16)).generate(steps=1)
    with pytest.raises(UserError, match="rank"): replace(concept, info=concept.info | dict(rank=3), weights=dict(concept.weights)).generate(steps=1)

def test_the_history_kept_is_small():
    rows = [[10*k, 1/3, None, 2/3, 1/7, 1/9] for k in range(1, 1001)]
    some = brief(rows)
    assert 50 <= len(some) <= 100 and some[-1] == [10000, .3333, None, .6667, .1429, .1111]
    assert brief(rows[:3])[0] == [10, .3333, None, .6667, .1429, .1111] and brief([]) == []


# used

def test_both_parts_are_weighed_apart(concept, dit):
    x, t, text = dit.noise([0], 5), torch.tensor([.5]), dit.embed(concept.prompt, concept.tokens)
    def velocity(*scales):
        with torch.no_grad(), concept.at(*scales).attached(): return dit.velocity(x, t, text)
    full, look, move, none = (velocity(*s) for s in ((1, 1), (1, 0), (0, 1), (0, 0)))
    assert len({v.sum().item() for v in (full, look, move, none)}) == 4 and torch.equal(velocity(1, 1), full)
    with torch.no_grad(): assert torch.equal(dit.velocity(x, t, text), none)

def test_each_concept_is_on_the_model_only_inside(concept, dit):
    other = replace(concept, weights={k: torch.zeros_like(v) for k, v in concept.weights.items()})
    with concept.at(.5, 2).attached() as adapter:
        assert dit.adapted and (adapter.appearance, adapter.motion) == (.5, 2) and same(adapter.member()[0], concept.weights)
        with pytest.raises(UserError, match="already"):
            with other.attached(): pass
    assert not dit.adapted
    with other.attached() as adapter: assert not any(p.any() for p in adapter.weights.values())

def test_words_of_the_prompt(concept, dit):
    plain = concept.prompt.replace("[v] ", "").replace("[u] ", "")
    assert not torch.equal(dit.embed(concept.prompt, concept.tokens), dit.embed(concept.prompt)) and torch.equal(dit.embed(concept.prompt), dit.embed(plain))
    assert len(concept.generate([plain, "a man on a beach"], steps=1, num_frames=5)) == 2
    with pytest.raises(UserError, match="near: .*beach"): concept.generate("a [v] man on a beech")
    with pytest.raises(UserError, match="placeholder"): concept.generate("a [x] man")

def test_norms_are_those_of_the_updates(concept):
    layer, (appearance, motion) = next(iter(concept.norms().items()))
    A, B1, B2 = (concept.weights[f"{layer}.{k}"] for k in ("A", "B1", "B2"))
    assert appearance == pytest.approx(delta(A, B1).norm().item(), rel=1e-4) and motion == pytest.approx(delta(A, B2).norm().item(), rel=1e-4)

def test_a_concept_shows_itself(concept):
    page = replace(concept, info=concept.info | dict(motion="he is [u] <b>"))._repr_html_()
    assert "<caption>" in page and page.count('scope="row"') == page.count("<tr>") and "&lt;b&gt;" in page and "<b>" not in page
    assert concept._repr_markdown_().count("\n") == page.count("<tr>")+2
    assert concept.info["base"] in repr(concept)

def test_the_loss_curves(concept):
    figure = plot_history(concept)
    assert [ax.get_title() for ax in figure.axes] == ["Loss of stage 'appearance'", "Loss of stage 'motion'"]
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes)


# guidance

SHORT = dict(seed=3, steps=3, num_frames=5)

def test_guidance_is_against_a_weaker_concept(concept, dit):
    x, t = dit.noise([3], **TINY), torch.tensor([.8])
    text, passes = dit.embed([concept.prompt, ""], concept.tokens), []
    with torch.no_grad(), concept.attached() as adapter:
        got = concept.velocity(adapter, .3, 1.)(torch.cat([x, x]), t.expand(2), text)
        assert adapter.each is None
        for scale, line in ((1., text[:1]), (.3, text[1:])):
            with adapter.scaled(scale, scale): passes.append(dit.velocity(x, t, line))
    assert torch.allclose(got, torch.cat(passes), atol=1e-4) and not torch.allclose(passes[0], passes[1], atol=1e-2)

def test_the_concept_knows_how_it_is_sampled(concept, dit, tmp_path):
    assert concept.info["sampling"] == dict(guidance_factor=2/3, negative_scale=.7, edit_guidance=0.)
    r = dit.defaults
    as_it_is = concept.generate(**SHORT).frames
    assert torch.equal(as_it_is, concept.generate(guidance=r.guidance*2/3, **SHORT).frames)
    again = Concept.load(concept.save(tmp_path/"c"), dit)
    assert torch.equal(as_it_is, again.generate(**SHORT).frames)
    plain = replace(concept, info={k: v for k, v in concept.info.items() if k != "sampling"}).generate(**SHORT).frames
    with concept.attached(): stock = dit.sample(concept.prompt, 3, 3, tokens=concept.tokens, num_frames=5).frames
    assert torch.equal(plain, stock) and not torch.equal(plain, as_it_is)
    assert torch.equal(concept.generate(guidance=1., negative_scale=.2, **SHORT).frames, concept.generate(guidance=1., **SHORT).frames) # no negative side

def test_edit_guidance_adds_what_new_words_change_in_the_base(concept, dit):
    edit = concept.prompt.replace("in a park", "in the snow"); assert edit != concept.prompt
    edits = edits_of(concept.prompts.both, [Prompt(edit)])
    assert edits == {0: (Prompt(edit).plain, without_new(concept.prompts.both.plain, Prompt(edit).plain))}
    x, t, text = dit.noise([3], **TINY), torch.tensor([.8]), dit.embed([edit, ""], concept.tokens)
    with torch.no_grad():
        asked, known = dit.velocity(torch.cat([x, x]), t.expand(2), dit.embed(edits[0])).chunk(2)
        with concept.attached() as adapter:
            own = concept.velocity(adapter, .7)
            both, alone = with_edits(own, adapter, 3., edits, 1), with_edits(dit.velocity, adapter, 3., edits, 1)
            got = both(torch.cat([x, x]), t.expand(2), text), own(torch.cat([x, x]), t.expand(2), text)
            assert torch.allclose(alone(x, t, text[:1]), dit.velocity(x, t, text[:1]) + 3*(asked-known), atol=1e-4)
            assert (adapter.appearance, adapter.motion) == (1., 1.)
    assert torch.allclose(got[0], got[1] + 3*(asked-known).repeat(2, 1, 1, 1, 1), atol=1e-4) and not torch.allclose(*got, atol=1e-2)

def test_edit_guidance_leaves_the_own_prompt_and_what_is_left_out(concept):
    own = concept.generate(**SHORT).frames
    for prompt in (concept.prompt, concept.prompt.replace(" in a park", "")):
        plain, edited = (concept.generate(prompt, edit_guidance=e, **SHORT).frames for e in (0., 3.))
        assert torch.equal(plain, edited), prompt
    snow = concept.prompt.replace("in a park", "in the snow")
    (a, b), c = concept.generate([concept.prompt, snow], edit_guidance=3., **SHORT), concept.generate(snow, edit_guidance=3., **SHORT)
    passes = []
    with concept.dit.transformer.register_forward_pre_hook(lambda m, args, kwargs: passes.append(len(kwargs["hidden_states"])), with_kwargs=True):
        concept.generate([concept.prompt, snow, concept.prompt], edit_guidance=3., **SHORT)
    assert sum(passes) == SHORT["steps"]*(2*3+2) # guidance of all, and two passes more of the one edit
    assert torch.allclose(a.frames, own, atol=1e-4) and torch.allclose(b.frames, c.frames, atol=1e-4)
    assert not torch.allclose(c.frames, concept.generate(snow, edit_guidance=0., **SHORT).frames, atol=1e-2)
    two = concept.generate(snow, edit_guidance=3., **SHORT | dict(seed=[3, 4]))
    assert torch.allclose(two[0].frames, c.frames, atol=1e-4) and not torch.allclose(two[1].frames, c.frames, atol=1e-2)
    with_none = concept.generate(snow, guidance=1., edit_guidance=3., **SHORT).frames
    assert not torch.equal(with_none, concept.generate(snow, guidance=1., edit_guidance=0., **SHORT).frames)

def test_words_that_are_all_new_or_as_they_were_are_no_edit(concept):
    own = concept.prompts.both
    assert edits_of(own, [Prompt("zebras")]) == {} == edits_of(own, [own, Prompt("a man in a park")])
    assert [*edits_of(own, [own, Prompt("a man in a room"), own])] == [1]
    odd = Prompt("a [v] woman's t-shirt , 3.5 mm. l’école (old) पार्क")
    assert edits_of(odd, [odd]) == {} and without_new(odd.plain, odd.plain) == odd.plain

def test_a_pass_without_negatives_has_the_whole_concept(concept, dit):
    x, t, text = dit.noise([3, 4], **TINY), torch.tensor([.8, .8]), dit.embed([concept.prompt]*2, concept.tokens)
    with torch.no_grad(), concept.attached() as adapter:
        assert torch.equal(concept.velocity(adapter, .3, samples=2)(x, t, text), dit.velocity(x, t, text))
        assert not torch.allclose(concept.velocity(adapter, .3, samples=1)(x, t, text)[1], dit.velocity(x, t, text)[1], atol=1e-2)

def test_an_older_concept_is_sampled_as_before(concept):
    old = replace(concept, info=concept.info | dict(sampling=dict(guidance_factor=2/3, negative_scale=.7)))
    assert torch.equal(old.generate(**SHORT).frames, concept.generate(**SHORT).frames)

def test_strength_mixes_velocities(concept, dit):
    for s in (0., 1.): assert torch.allclose(concept.generate(motion_guidance=s, **SHORT).frames, concept.at(motion=s).generate(**SHORT).frames, atol=1e-4)
    x, t, text = dit.noise([3], **TINY), torch.tensor([.8]), dit.embed(concept.prompt, concept.tokens)
    with torch.no_grad(), concept.attached() as adapter:
        mixed, moving = concept.velocity(adapter, 1., 1.5)(x, t, text), dit.velocity(x, t, text)
        with adapter.scaled(motion=0.): still = dit.velocity(x, t, text)
    assert torch.allclose(mixed, still + 1.5*(moving-still), atol=1e-5)

@pytest.mark.parametrize("wrong", [dict(negative_scale=1.5), dict(edit_guidance=-1), dict(edit_guidance=float("inf")), dict(negative_scale=-1), dict(motion_guidance=-.1), dict(motion_guidance=float("nan"))])
def test_guidance_that_cannot_be(concept, wrong):
    with pytest.raises(UserError, match="must be a number from 0 to"): concept.generate(**wrong)


# exported: the same video elsewhere

def stock():
    pipe = WanPipeline.from_pretrained(data_path("tiny"), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe

def video(pipe, dit, concept, tokens=None):
    return pipe(prompt_embeds=dit.prompt_embeds(concept.prompt, concept.tokens if tokens is None else tokens), negative_prompt_embeds=dit.prompt_embeds(""), latents=dit.noise([3], 5),
                num_inference_steps=3, guidance_scale=4., output_type="pt", **TINY).frames[0].float()

def test_stock_diffusers_makes_the_same_video(concept, made, dit, tmp_path):
    folder, = concept.export(tmp_path/"e")
    pipe = stock()
    without = video(pipe, dit, concept)
    pipe.load_lora_weights(folder)
    tokens = load_file(folder/"tokens.safetensors")
    assert same(tokens, concept.tokens) and (video(pipe, dit, concept, tokens) - made).abs().max() < 1e-3
    assert (without - made).abs().max() > 1e-2, "a test that the LoRA does something"

def test_stock_peft_makes_the_same_video(concept, made, dit, tmp_path):
    pipe = stock()
    pipe.transformer = PeftModel.from_pretrained(pipe.transformer, concept.export(tmp_path/"e", "peft")[0])
    assert (video(pipe, dit, concept) - made).abs().max() < 1e-3

def test_the_authors_own_names_mean_the_same(concept, made, dit, tmp_path):
    folder, = concept.export(tmp_path/"e", "comfyui")
    assert "diffusion_model.blocks.0.self_attn.q.lora_A.weight" in load_file(folder/"lora.safetensors")
    pipe = stock()
    pipe.load_lora_weights(folder, weight_name="lora.safetensors") # diffusers renames them back, with a table of its own
    assert (video(pipe, dit, concept) - made).abs().max() < 1e-3

def test_the_halves_can_be_weighed_in_stock_diffusers(concept, dit, tmp_path):
    pipe = stock()
    for folder in concept.export(tmp_path/"e", split=True): pipe.load_lora_weights(folder, adapter_name=folder.name)
    pipe.set_adapters(["appearance", "motion"], [1., .5])
    ours = concept.at(motion=.5).generate(seed=3, steps=3, guidance=4., negative_scale=1., num_frames=5, negative="").frames
    assert (video(pipe, dit, concept) - ours).abs().max() < 1e-3

def test_one_adapter_holds_the_scales(concept):
    (_, one), = concept.at(.5, 2).adapters().items()
    two = concept.at(.5, 2).adapters(split=True)
    for layer, (A, B) in one.items():
        assert B.shape[1] == concept.rank and torch.allclose(B, two["appearance"][layer][1] + two["motion"][layer][1])
        assert torch.equal(B, .5*concept.weights[f"{layer}.B1"] + 2*concept.weights[f"{layer}.B2"])

class Meanwhile:
    "A small transformer of Wan under stock loaders, to see what arrives."
    def __init__(self):
        from diffusers import WanTransformer3DModel
        torch.manual_seed(0)
        self.transformer = WanTransformer3DModel(patch_size=[1, 2, 2], num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=20, freq_dim=16, ffn_dim=40, num_layers=2, rope_max_seq_len=64)
        self.sizes = {n: (m.out_features, m.in_features) for n, m in self.transformer.named_modules() if isinstance(m, torch.nn.Linear)}
    def load(self, folder, format):
        if format == "peft": return PeftModel.from_pretrained(self.transformer, folder, adapter_name="concept")
        pipe = WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=self.transformer)
        pipe.load_lora_weights(folder, weight_name="lora.safetensors" if format == "comfyui" else "pytorch_lora_weights.safetensors", adapter_name="concept")
    def updates(self): return {n: m.get_delta_weight("concept").detach() for n, m in self.transformer.named_modules() if hasattr(m, "get_delta_weight")}

@pytest.mark.parametrize("format", ["diffusers", "peft", "comfyui"])
def test_every_layer_arrives_in_stock_loaders(tmp_path, format):
    "Also those outside the blocks, which no concept of ours adapts by default."
    from sas_nb.atlas.members import synthetic
    there = Meanwhile()
    one = synthetic(1, sizes=there.sizes, rank=3)[0][0].at(.5, 2.)
    there.load(one.export(tmp_path/"e", format)[0], format)
    arrived = there.updates()
    assert len(there.sizes) > 24 and set(arrived) == set(there.sizes)
    for l, (A, B) in one.adapters()["concept"].items(): torch.testing.assert_close(arrived[l], delta(A, B))

def test_what_has_no_name_in_comfyui_is_not_exported(tmp_path):
    from sas_nb.atlas.members import synthetic
    fused = synthetic(1, sizes={"blocks.0.attn1.to_q": (6, 6), "blocks.0.attn1.to_qkv": (18, 6)})[0][0]
    with pytest.raises(UserError, match="'blocks.0.attn1.to_qkv' has no name"): fused.export(tmp_path/"e", "comfyui")
    assert not list(tmp_path.iterdir()) and fused.export(tmp_path/"d")

@pytest.mark.parametrize("format, file", [("diffusers", "pytorch_lora_weights"), ("peft", "adapter_model"), ("comfyui", "lora")])
def test_the_header_says_whose_and_of_what(concept, tmp_path, format, file):
    from safetensors import safe_open
    folder, = concept.export(tmp_path/"e", format)
    with safe_open(folder/f"{file}.safetensors", "pt") as f: said = f.metadata()
    assert {k: said[k] for k in ("base", "fingerprint", "appearance", "motion")} == {k: concept.info[k] for k in ("base", "fingerprint", "appearance", "motion")}
    assert (said["rank"], said["alpha"], said["format"]) == ("2", "2", "pt") and said["made_by"].startswith("sas_nb ")

@pytest.mark.parametrize("format, split", [("diffusers", False), ("peft", True), ("comfyui", True)])
def test_the_readme_is_a_program(concept, tmp_path, monkeypatch, format, split):
    "Run as it stands, but for the number of steps; the video is ours."
    concept.export(tmp_path/"e", format, split)
    code, = re.findall(r"```python\n(.*?)```", (tmp_path/"e"/"README.md").read_text(), re.S)
    asked, load = [], lambda name: asked.append(name) or VideoDiT(stock(), name, replace(concept.dit.defaults, steps=2))
    monkeypatch.chdir(tmp_path/"e")
    with monkeypatch.context() as m:
        m.setattr(VideoDiT, "load", load)
        exec(code, ran := {})
    ours = concept.generate(seed=0, steps=2, negative_scale=1.)
    assert asked == [concept.info["base"]] and (ran["frames"]-ours.frames).abs().max() < 2e-3
    video = Clip.load("video.mp4")
    assert (len(video), video.fps) == (len(ours), concept.info["clip"]["fps"])

def test_comfyui_is_told_what_is_lost(concept, tmp_path):
    for name, tokens in (("with", concept.tokens), ("without", {k: torch.zeros_like(v) for k, v in concept.tokens.items()})):
        replace(concept, tokens=tokens).export(tmp_path/name, "comfyui")
        words = (tmp_path/name/"README.md").read_text()
        assert "Not tried: ComfyUI itself" in words and f"base `{concept.info['base']}`" in words and ("[v] and [u] are lost there" in words) == (name == "with")

def test_export_explains_itself_and_is_whole(concept, tmp_path, monkeypatch):
    for split, format in ((False, "diffusers"), (True, "peft")):
        folder = tmp_path/f"{format}"
        made = concept.export(folder, format, split)
        words = (folder/"README.md").read_text()
        assert ("load_lora_weights" if format == "diffusers" else "PeftModel") in words and concept.prompt in words and concept.info["base"] in words
        assert [m.name for m in made] == (["appearance", "motion"] if split else [format])
    with pytest.raises(UserError, match="choose diffusers, peft, comfyui"): concept.export(tmp_path/"x", "gguf")
    (tmp_path/"notes").mkdir()
    (tmp_path/"notes"/"a.txt").write_text("mine")
    for name in ("README.md", "pytorch_lora_weights.safetensors"):
        (tmp_path/"notes"/name).write_text("mine")
        with pytest.raises(UserError, match="Will not replace"): concept.export(tmp_path/"notes")
        (tmp_path/"notes"/name).rename(tmp_path/"notes"/f"{name}.old")
    concept.export(tmp_path/"notes")
    assert [(tmp_path/"notes"/name).read_text() for name in ("a.txt", "README.md.old")] == ["mine", "mine"] and (tmp_path/"notes"/"export.json").exists()
