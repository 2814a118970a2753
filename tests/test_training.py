"Both stages: what each trains and reads, and that a run which was killed ends as if it had not been."
import errno, functools, importlib.util, json, multiprocessing, os, random, re, signal, sys, threading, time, warnings
from dataclasses import replace
from pathlib import Path

import pytest, torch, torch.utils.checkpoint
from filelock import FileLock
from safetensors.torch import save_file
from torch import nn

import road
from road import stage as stage_of
from sas_nb import checkpoint, counterfactual, stages, train
from sas_nb.adapter import SharedLoRA
from sas_nb.counterfactual import add_counterfactuals, counterpart
from sas_nb.data import batch_parts, Examples, frame_set, prior_examples, sequence
from sas_nb.dit import VideoDiT
from sas_nb.files import UserError
from sas_nb.hub import fingerprint
from sas_nb.lab.draw import render
from sas_nb.lab.world import heldout_spec
from sas_nb.learning import learn
from sas_nb.log import Log, plot_history, read_log
from sas_nb.prompt import Prompts
from sas_nb.recipe import Recipe, Run, WORD
from sas_nb.running import check_folder, only_run, stop_gently, stoppable, Stopped
from sas_nb.self_conditioning import SelfConditioning
from sas_nb.stages import build
from sas_nb.train import Trainer
from sas_nb.writing import atomic

STATIC, DYNAMIC = "a [v] man in a red shirt in a park", "he is [u] dancing"
FULL = f"{STATIC}. {DYNAMIC}"
LAYERS = r"blocks\.\d+\.(attn1\.to_[qv]|attn2\.to_k)" # fewer than the default, for speed; `learn` below uses them all
processes = multiprocessing.get_context("fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn")


pytestmark = pytest.mark.usefixtures("own_cache")

def drawn(t): return t.draw(range(1), 0)

@functools.cache
def base(): return VideoDiT.load("tiny", device="cpu")

@functools.cache
def five(): return render(heldout_spec(1), fps=12)[:5]

@pytest.fixture(scope="module")
def dit(): return base()

@pytest.fixture(scope="module")
def clip(): return five()


def trainer(stage="appearance", adapter=None, settings={}, dit=None, seed=0, prior=None, out=None, prompt=FULL):
    "A trainer of a new adapter, which stays on the model, small enough for a test; `settings` are of the stage and of the run."
    dit = dit or base()
    numbers, run = road.split(dict(steps=2, batch=2, prior=0, log_every=2, save_every=3) | settings)
    data = frame_set(dit, five(), STATIC) if stage == "appearance" else sequence(dit, five(), FULL)
    if adapter is None: adapter = road.new(dit, 2, LAYERS, seed=seed)
    return road.trainer(adapter, data, stage_of(stage, **numbers), prior, [prompt], out=out, **run)

def copies(parameters): return {k: p.detach().clone() for k, p in parameters.items()}

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def rows(out): return [{k: v for k, v in r.items() if k != "steps_per_second"} for r in read_log(Path(out)/"log.jsonl")]


# a set is not a sequence

def test_the_set_holds_images_and_no_order(dit, clip):
    data, order = frame_set(dit, clip, STATIC), torch.tensor([3, 0, 4, 2, 1])
    channels = dit.transformer.config.in_channels
    assert data.latents.shape == (5, channels, 1, 8, 8) and len(data) == 5
    shuffled = frame_set(dit, replace(clip, frames=clip.frames[order]), STATIC)
    torch.testing.assert_close(shuffled.latents, data.latents[order], atol=1e-4, rtol=1e-4)

def test_a_still_holds_one_frame_and_no_order(dit, clip):
    data, order = frame_set(dit, clip, STATIC, frozen=True), torch.tensor([3, 0, 4, 2, 1])
    assert data.latents.shape == road.latents(dit, 5).shape and data.placeholders == [["[v]"]]
    torch.testing.assert_close(data.latents[3], dit.encode(clip.frames[[3]*5][None])[0], atol=1e-4, rtol=1e-4)
    shuffled = frame_set(dit, replace(clip, frames=clip.frames[order]), STATIC, frozen=True)
    torch.testing.assert_close(shuffled.latents, data.latents[order], atol=1e-4, rtol=1e-4)

def test_stills_are_eight_at_most_and_spread_over_the_clip(dit):
    film = render(heldout_spec(1), fps=12)
    data = frame_set(dit, film, STATIC, frozen=True)
    assert data.latents.shape == road.latents(dit, 8, 17).shape
    for i, k in ((0, 0), (7, 16)): torch.testing.assert_close(data.latents[i], dit.encode(film.frames[[k]*17][None])[0], atol=1e-4, rtol=1e-4)

def test_stage_one_shows_stills_when_asked(dit, clip):
    def shown(frozen): return build(dit, [clip], [Prompts(STATIC, DYNAMIC)], road.recipe(dict(frozen=frozen), both=dict(prior=0.)))["appearance"]
    assert [shown(frozen).concepts[0].latents.shape[2] for frozen in (False, True)] == [1, road.latents(dit).shape[2]]

def test_the_sequence_is_one_clip(dit, clip):
    data = sequence(dit, clip, FULL)
    assert data.latents.shape == road.latents(dit).shape and data.placeholders == [["[v]", "[u]"]]

@pytest.mark.parametrize("whole, motion, said", [(False, DYNAMIC, STATIC), (True, DYNAMIC, f"{STATIC}. he is dancing"), (True, "[u]", STATIC)], ids=["looks", "whole", "no words"])
def test_the_sets_prompt_says_how_it_moves_when_asked_and_never_by_the_new_word(dit, clip, whole, motion, said):
    data = build(dit, [clip], [Prompts(STATIC, motion)], road.recipe(dict(full_caption=whole), both=dict(prior=0.)))
    set_, film = data["appearance"].concepts[0], data["motion"].concepts[0]
    assert torch.equal(set_.texts[0], dit.embed_once(said)) and set_.placeholders == [["[v]"]]
    assert torch.equal(film.texts[0], dit.embed_once(f"{STATIC}. {motion}")) and film.placeholders == [["[v]", "[u]"]] and set_.latents.shape[2] == 1


# others who move alike

BRIEF = dict(n=3, steps=4)

@functools.cache
def twinned(): return add_counterfactuals(base(), sequence(base(), five(), FULL), FULL, **BRIEF)

def test_twins_are_the_clip_redrawn_by_the_base(dit, monkeypatch):
    road.off(dit); data = twinned()
    assert data.counterfactuals.shape == (3, *data.latents.shape[1:]) and len(data) == 1, "the clip is still the only example"
    assert (data.counterfactuals - data.latents).square().mean((1, 2, 3, 4)).min() > 1e-3, "somebody else"
    assert not torch.equal(data.counterfactuals[0], data.counterfactuals[1]), "each from noise of its own"
    monkeypatch.setattr(counterfactual, "redraw", None)
    assert torch.equal(add_counterfactuals(dit, replace(data, counterfactuals=None), FULL, **BRIEF).counterfactuals, data.counterfactuals), "made once"

def test_twins_are_of_whom_the_words_say(dit, monkeypatch):
    road.off(dit); heard = []
    monkeypatch.setattr(counterfactual, "redraw", lambda dit, clean, before, after, **how: heard.append((before, after)) or clean)
    plain = FULL.replace("[v] ", "").replace("[u] ", "")
    for others in (None, "a [v] robot in a red shirt in a park. he is [u] dancing"): add_counterfactuals(dit, replace(twinned(), counterfactuals=None), FULL, others, n=1, seed=9)
    assert heard == [(plain, "a woman in a blue shirt in a park. she is dancing"), (plain, "a robot in a red shirt in a park. he is dancing")], "and never by the new words"

@pytest.mark.parametrize("said, second", [("a [v] man in a park. he is [u] dancing", "a man in a blue shirt and green trousers in a park. he is dancing"),
    ("a girl in an orange coat", "a girl in a blue coat"), ("a man in a red hat and a green coat", "a man in a yellow hat and a purple coat")])
def test_others_wear_other_colours(said, second):
    made = counterfactual.counterparts(said)
    assert made[1] == second and len(set(made)) == 8 and all(re.search(r"\bwoman|boy", m) for m in made[::2])

def test_a_prompt_of_all_colours_has_others_too():
    said = f"a man in {', '.join(counterfactual._COLOURS)} rags"
    assert len(counterfactual.counterparts(said)) == 8

def test_several_others_take_turns(dit, monkeypatch):
    road.off(dit); heard = []
    monkeypatch.setattr(counterfactual, "redraw", lambda dit, clean, before, after, seed, **how: heard.append((after, seed)) or clean)
    def made(*others, n): return add_counterfactuals(dit, replace(twinned(), counterfactuals=None), FULL, others, n=n, seed=9).counterfactuals
    assert len(made("a man in a cap", "a [v] woman", n=3)) == 3 and heard == [("a man in a cap", 9), ("a woman", 10), ("a man in a cap", 11)]
    assert len(made("a man", "a woman", "a tree", n=1)) == 3, "each at least once"

@pytest.mark.parametrize("said, other", [("a [v] man. he is [u] dancing", "a woman. she is dancing"), ("A girl and her dog. She is [u] running", "A boy and his dog. He is running"),
                                         ("a woman and a man, a human", "a man and a woman, a human")])
def test_somebody_else_is_the_other_of_two(said, other): assert counterpart(said) == other

def test_for_twins_of_no_man_and_no_woman_somebody_must_say_whose(dit):
    road.off(dit)
    with pytest.raises(UserError, match="counterfactual, or set"): add_counterfactuals(dit, sequence(dit, five(), FULL), "a [v] ball in a park. it is [u] bouncing", **BRIEF)

def test_twins_through_an_adapter_are_refused(dit):
    road.new(dit, 1, LAYERS)
    with pytest.raises(UserError, match="attached"): add_counterfactuals(dit, twinned(), FULL)

@pytest.mark.parametrize("batch, share, clips, twins", [(8, .25, 6, 2), (4, .25, 3, 1), (3, .25, 3, 0), (1, .99, 1, 0), (4, 0., 4, 0)])
def test_a_batch_has_its_share_of_twins(batch, share, clips, twins):
    stage = stage_of("motion", batch=batch, counterfactuals=share)
    parts = batch_parts(stage, twinned())
    assert [n for _, n, _ in parts] == [clips] + [twins]*(twins > 0) and [scale for *_, scale in parts] == [1., 0.][:len(parts)]
    assert batch_parts(stage, replace(twinned(), counterfactuals=None))[0][1] == batch, "without twins, all the batch is the clip's"

def test_twins_are_shown_with_the_identity_off_and_the_clip_with_it_on(dit, monkeypatch):
    road.off(dit); data, seen, velocity = twinned(), [], dit.velocity
    stage = stage_of("motion", dropout=.8, steps=1, batch=4, counterfactuals=.5, prior=0., shift=1e-3) # hardly any noise
    t = road.trainer(road.new(dit, 2, LAYERS), data, stage)
    def look(x, when, text): seen.append((t.adapter.appearance, x.detach().clone())); return velocity(x, when, text)
    monkeypatch.setattr(dit, "velocity", look, raising=False)
    t.fit()
    assert [scale for scale, _ in seen] == [1., 0.] and t.adapter.appearance == 1.
    nearest = lambda x, bag: (x[:, None]-bag[None]).square().flatten(2).mean(2).amin(1)
    (_, clip), (_, others) = seen
    assert (nearest(clip, data.latents) < nearest(clip, data.counterfactuals)).all() and (nearest(others, data.counterfactuals) < nearest(others, data.latents)).all()
    assert len(t.history) == 1 and torch.isfinite(torch.tensor(t.history[0][1]))

def test_a_run_with_twins_goes_on_exactly_and_is_another_run(dit, tmp_path):
    road.off(dit); data = twinned()
    def run(out, steps, **changes):
        road.off(dit)
        stage = stage_of("motion", **dict(dropout=.8, steps=steps, batch=4, counterfactuals=.25, prior=0.) | changes)
        t = road.trainer(road.new(dit, 2, LAYERS), data, stage, out=tmp_path/out, log_every=2, save_every=2)
        t.fit(); return copies(t.trained)
    whole, _, rest = run("whole", 5), run("cut", 3), run("cut", 5)
    assert same(whole, rest)
    with pytest.raises(UserError, match="another"): run("cut", 7, counterfactuals=0.)

def test_checkpointed_activations_are_made_again_with_the_identity_off_too(dit):
    road.off(dit); data = twinned()
    def run(checkpointing):
        road.off(dit)
        s = stage_of("motion", dropout=.8, steps=3, batch=4, counterfactuals=.5, prior=0., lr=1e-2)
        t = road.trainer(road.new(dit, 2, LAYERS), data, s, checkpointing=checkpointing)
        for k, p in t.adapter.weights.items():
            if k.endswith("B1"): p.data.fill_(.05) # an identity that matters
        t.fit(); return copies(t.trained)
    kept, again = run(False), run(True)
    for k in kept: torch.testing.assert_close(again[k], kept[k], atol=1e-5, rtol=1e-4)

def test_learn_makes_twins_where_stage_two_wants_them(dit, clip, monkeypatch):
    made, prompts = [], Prompts(STATIC, DYNAMIC)
    monkeypatch.setattr(stages, "add_counterfactuals", lambda dit, data, *words: made.append(words) or data)
    for share in (0., .25): build(dit, [clip], [prompts], road.recipe(stage2=dict(counterfactuals=share), both=dict(prior=0.), counterfactual="a woman"))
    assert made == [(prompts.both, ["a woman"])]
    several = road.recipe(stage2=dict(counterfactuals=.25), both=dict(prior=0.), counterfactual=("a woman", "a man in a cap"))
    assert Recipe.from_dict(several.to_dict()) == several
    build(dit, [clip], [prompts], several)
    assert made[1:] == [(prompts.both, ["a woman", "a man in a cap"])]

def test_nobody_named_has_no_twins_and_hears_why(dit, clip, capsys):
    recipe = Recipe.default().with_(both=dict(prior=0.))
    assert recipe.stage2.counterfactuals and not recipe.together(2).stage2.counterfactuals
    data = build(dit, [clip], [Prompts("[v] ocean waves", "[u] dancing")], recipe, progress=True)
    assert data["motion"].concepts[0].counterfactuals is None and "counterfactual" in capsys.readouterr().out

def test_one_prompt_for_prior_preservation_is_no_list_of_letters(tmp_path):
    one = Recipe.default().with_(prior_prompts="A man. He walks")
    assert one.prior_prompts == Recipe.load(one.save(tmp_path/"r.json")).prior_prompts == ("A man. He walks",)
    assert Recipe.default().with_(prior_prompts=["a", "b"]).prior_prompts == ("a", "b")
    for wrong in (5, (), ["a", 5], "a (v) man"):
        with pytest.raises(UserError): Recipe.default().with_(prior_prompts=wrong)

@pytest.mark.parametrize("change", [dict(rank=4), dict(stage1=dict(steps=7))])
def test_a_recipe_for_several_stays_one_however_it_is_changed(change, tmp_path):
    several = Recipe.default().together(2, composites=.35).with_(**change)
    kept = Recipe.load(several.save(tmp_path/"scene.json"))
    assert kept.together(2) == kept == several


# what is trained

def test_stage_one_trains_a_and_b1_and_its_word(dit):
    t = trainer(settings=dict(dropout=0))
    tokens = t.adapter.tokens
    before = road.tensors(t.adapter)
    t.fit()
    for k, p in road.tensors(t.adapter).items(): assert torch.equal(p, before[k]) == k.endswith("B2"), k
    assert tokens["[v]"].abs().max() > 0 and not tokens["[u]"].any()
    assert not any(p.requires_grad for p in [*t.adapter.weights.values(), *tokens.values()]), "left ready to sample"

def test_stage_two_trains_b2_alone(dit):
    adapter = road.new(dit, 2, LAYERS)
    trainer(adapter=adapter).fit()
    before, words = adapter.member()
    tokens, word = adapter.tokens, words["[v]"]
    x, when, text = dit.noise([0], 5), torch.tensor([.5]), dit.embed(FULL, words)
    with torch.no_grad():
        after_stage_one = dit.velocity(x, when, text)
        t = trainer("motion", adapter, dict(dropout=0))
        assert torch.equal(dit.velocity(x, when, text), after_stage_one), "B2 = 0 is stage 1"
        with torch.enable_grad(): t.fit()
        assert not torch.equal(dit.velocity(x, when, text), after_stage_one)
        adapter.motion = 0
        assert torch.equal(dit.velocity(x, when, text), after_stage_one), "without B2, stage 1 again"
    for k, p in road.tensors(adapter).items(): assert torch.equal(p, before[k]) != k.endswith("B2"), k
    assert torch.equal(tokens["[v]"][0], word) and tokens["[u]"].abs().max() > 0

def test_the_two_coefficients_are_different_tensors_over_one_basis(dit):
    adapter = SharedLoRA(dit, 2)
    for layer in {k.rpartition(".")[0] for k in adapter.weights}:
        parts = [adapter.weights[f"{layer}.{k}"] for k in ("A", "B1", "B2")]
        assert len({p.data_ptr() for p in parts}) == 3 and parts[0].ndim == 2

@pytest.mark.parametrize("lr", [0, 1e-3])
def test_words_have_their_own_rate_or_none(dit, lr):
    t = trainer(settings=dict(token_lr=lr, steps=1))
    assert [g["lr"] for g in t.optimizer.param_groups if g["weight_decay"] == 0] == [lr]*bool(lr)
    t.fit()
    assert bool(t.adapter.tokens["[v]"].any()) == bool(lr)

@pytest.mark.parametrize("stage, word, other", [("appearance", "[v]", "[u]"), ("motion", "[u]", "[v]")])
def test_a_word_starts_as_long_as_asked_and_the_same_for_every_concept(dit, stage, word, other):
    lengths = dit.embed_once(STATIC if stage == "appearance" else FULL)[0, :-1].norm(dim=-1)
    t, again = (trainer(stage, settings=dict(token_init=.5, seed=seed)) for seed in (0, 7))
    assert float(t.adapter.tokens[word].norm()) == pytest.approx(.5*float(lengths.mean()), rel=1e-5) and not t.adapter.tokens[other].any()
    assert torch.equal(t.adapter.tokens[word], again.adapter.tokens[word])
    other_stage = trainer("motion" if stage == "appearance" else "appearance", settings=dict(token_init=.5)).adapter.tokens[other]
    assert float(nn.functional.cosine_similarity(t.adapter.tokens[word][0], other_stage[0], dim=0).detach()) < .5, "two words, not one"
    learned = t.adapter.tokens[word].detach().clone()
    assert torch.equal(trainer(stage, t.adapter, settings=dict(token_init=2.)).adapter.tokens[word], learned), "what is there is kept"
    assert not trainer(stage).adapter.tokens[word].any(), "the paper's starts at zero"

def test_steps_are_optimiser_steps(monkeypatch):
    t, calls = trainer(settings=dict(steps=3)), []
    step = t.optimizer.step
    monkeypatch.setattr(t.optimizer, "step", lambda: (calls.append(1), step()))
    t.fit()
    assert len(calls) == 3 == t.step

def test_both_stages_use_one_base(monkeypatch, dit, clip):
    loads, seen, fit = [], [], Trainer.fit
    monkeypatch.setattr(VideoDiT, "of", classmethod(lambda cls, name: loads.append(name) or dit))
    monkeypatch.setattr(Trainer, "fit", lambda self: seen.append((id(self.dit), id(self.adapter), fingerprint(self.dit.transformer))) or fit(self))
    learn(clip, (STATIC, DYNAMIC), run=Run(progress=False), recipe=road.recipe(both=dict(steps=1, batch=2, prior=0.)))
    assert loads == ["tiny"] and len(seen) == 2 and seen[0] == seen[1]
    assert fingerprint(dit.transformer) == seen[0][2] and not dit.adapted


# every regulariser is read and used

@pytest.mark.parametrize("batch, share", [(8, .25), (2, .25), (1, .5), (4, 0)])
def test_the_prior_is_a_share_of_the_batch(dit, batch, share):
    own = frame_set(dit, five(), STATIC)
    prior = replace(own, latents=torch.full_like(own.latents, 7.), placeholders=[[]])
    t = trainer(settings=dict(batch=batch, prior=share), prior=prior)
    taken = [int((drawn(t).clean == 7).flatten(1).all(1).sum()) for _ in range(200)]
    assert abs(sum(taken)/200/batch - share) < .08
    if batch == 8: assert set(taken) == {2}

@pytest.mark.parametrize("p", [0, .9])
def test_tokens_are_masked(dit, p):
    t = trainer(settings=dict(batch=8, token_mask=p))
    given = (dit.embed(STATIC)[0, :-1].abs().sum(-1) > 0).float().mean()
    kept = (drawn(t).text[:, 1:-1].abs().sum(-1) > 0).float().mean()
    assert abs(kept - given*(1-p)) < .1 and (p or kept == given)

@pytest.mark.parametrize("p", [0., 1.])
def test_self_conditioning_is_fed(dit, monkeypatch, p):
    conditioning, fed = SelfConditioning(dit), []
    velocity = conditioning.velocity
    monkeypatch.setattr(conditioning, "velocity", lambda x, t, text, previous=None: (fed.append(previous is not None), velocity(x, t, text, previous))[1])
    adapter = road.new(dit, 2, LAYERS)
    adapter.self_conditioning = conditioning
    t = trainer(adapter=adapter, settings=dict(self_conditioning=p))
    t.fit()
    assert fed == ([False, True]*2 if p else [])
    assert bool(conditioning.project.weight.any()) == bool(p)

@pytest.mark.parametrize("stage", ["appearance", "motion"])
def test_coefficients_are_dropped_in_training_only(dit, monkeypatch, stage):
    t, shares = trainer(stage, settings=dict(dropout=.8, steps=1)), []
    velocity = dit.velocity
    monkeypatch.setattr(dit, "velocity", lambda *a: (shares.append((t.adapter.masked, torch.cat([m.flatten() for m in t.adapter.masks.values()]))), velocity(*a))[1])
    t.fit()
    (masked, mask), = shares
    assert masked == stage and abs((mask == 0).float().mean()-.8) < .02 and torch.isclose(mask.max(), torch.tensor(5.))
    assert t.adapter.masked is None

@pytest.mark.parametrize("change", [dict(dropout=0), dict(token_mask=0), dict(prior=.5), dict(self_conditioning=1.)], ids=str)
def test_each_regulariser_changes_the_loss(dit, change):
    prior = Examples(torch.zeros(1, dit.transformer.config.in_channels, 1, 8, 8), [dit.embed_once("a man in a park")], [[]])
    def loss(**changes):
        adapter = road.new(dit, 2, LAYERS)
        adapter.self_conditioning = SelfConditioning(dit)
        t = trainer(adapter=adapter, settings=dict(steps=2, log_every=1, token_mask=.5, lr=1e-2) | changes, prior=prior)
        return [r[1] for r in t.fit()]
    assert loss() == loss() != loss(**change)


# to the bit, whatever happens

def die_in_step(t, n):
    one_step = t.train_step
    def step():
        if t.step+1 == n: raise SystemExit
        one_step()
    t.train_step = step

@pytest.mark.parametrize("stage", ["appearance", "motion"])
def test_resume_is_exact(tmp_path, stage):
    many = dict(steps=7, log_every=4, save_every=3, token_lr=1e-3) # the checkpoint is of step 3, in the middle of a log window
    whole = trainer(stage, settings=many, out=tmp_path/"whole")
    whole.fit()
    cut = trainer(stage, settings=many, out=tmp_path/"cut")
    die_in_step(cut, 6)
    with pytest.raises(SystemExit): cut.fit()
    with open(tmp_path/"cut"/"log.jsonl", "a") as f: f.write('{"stage": "' + stage + '", "step": 5, "lo')
    again = trainer(stage, settings=many, out=tmp_path/"cut", seed=7 if stage == "appearance" else 0)
    assert again.resume() and again.step == 3 and len(again.recent) == 3
    again.fit()
    assert same(copies(again.trained), copies(whole.trained))
    assert again.history == whole.history and rows(tmp_path/"cut") == rows(tmp_path/"whole") and [r["step"] for r in rows(tmp_path/"cut")] == [4, 7]
    assert torch.equal(again.generators.get_state(), whole.generators.get_state())

def small(**changes): return dict(batch=2, prior=0, log_every=1, save_every=2, token_lr=1e-3) | changes

def learn_into(out, **changes):
    torch.set_num_threads(1)
    numbers, run = road.split(small(steps=6, **changes))
    return learn(five(), (STATIC, DYNAMIC), base(), road.recipe(both=numbers, rank=2), Run(out=out, progress=False, **run))

def as_child(out, changes):
    try: learn_into(out, **changes)
    except KeyboardInterrupt as e: (Path(out)/"said.txt").write_text(str(e)); sys.exit(130)

def wait_for(out, stage, step, child, seconds=240):
    "Until the log of a running child holds this step."
    end = time.monotonic()+seconds
    while not any(r["stage"] == stage and r["step"] >= step for r in read_log(Path(out)/"log.jsonl")):
        assert child.is_alive() and time.monotonic() < end, f"the child never logged step {step} of {stage}"
        time.sleep(.002)

def test_killed_in_both_stages_and_the_same_to_the_bit(tmp_path):
    chance = random.SystemRandom()
    whole, where = learn_into(tmp_path/"whole"), []
    for stage, step in (("appearance", random.Random(3).randint(1, 4)), ("motion", chance.randint(1, 4))):
        child = processes.Process(target=as_child, args=(tmp_path/"cut", {}))
        child.start()
        wait_for(tmp_path/"cut", stage, step, child)
        time.sleep(pause := chance.random()*.1)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        where.append((stage, step, pause, child.exitcode))
    ran, one_step = [], Trainer.train_step
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Trainer, "train_step", lambda self: (ran.append(self.stage.name), one_step(self)))
        concept = learn_into(tmp_path/"cut")
    assert where[0][3] == -signal.SIGKILL
    assert "appearance" not in ran, f"stage 1 was trained again, after {where}"
    assert same(concept.weights, whole.weights) and same(concept.tokens, whole.tokens), where
    assert rows(tmp_path/"cut") == rows(tmp_path/"whole") and concept.info["history"] == whole.info["history"], where

def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    child = processes.Process(target=as_child, args=(tmp_path, dict(save_every=1000)))
    child.start()
    wait_for(tmp_path, "appearance", 2, child)
    os.kill(child.pid, signal.SIGINT)
    child.join(60)
    said = (tmp_path/"said.txt").read_text()
    about, _ = checkpoint.read(tmp_path/"appearance.ckpt.safetensors")
    assert child.exitcode == 130 and "run the same again" in said and str(tmp_path) in said
    if "'appearance'" in said: assert f"after step {about['step']} of 6" in said

@pytest.fixture
def ctrl_c():
    "Ctrl-C as in a terminal: a process started in the background inherits that it is ignored."
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)

def test_ctrl_c_waits_for_the_step_and_twice_does_not(ctrl_c):
    with pytest.raises(KeyboardInterrupt):
        with stop_gently() as stopped:
            assert not stopped()
            signal.raise_signal(signal.SIGINT)
            assert stopped()
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

def test_a_finished_run_returns_at_once_and_a_longer_one_goes_on(tmp_path, monkeypatch):
    first = trainer(out=tmp_path)
    history = first.fit()
    stamp = (tmp_path/"appearance.ckpt.safetensors").stat().st_mtime_ns
    again = trainer(out=tmp_path)
    monkeypatch.setattr(again, "train_step", lambda: pytest.fail("trained again"))
    assert again.fit() == history and (tmp_path/"appearance.ckpt.safetensors").stat().st_mtime_ns == stamp
    assert same(copies(again.trained), copies(first.trained)) and not any(p.requires_grad for p in again.trained.values())
    longer = trainer(out=tmp_path, settings=dict(steps=3))
    assert [r[0] for r in longer.fit()] == [2, 3]

def test_what_must_not_be_continued_is_refused(tmp_path):
    trainer(out=tmp_path).fit()
    given = ((dict(settings=dict(dropout=.1)), "another dropout: was 0.8, is 0.1"), (dict(settings=dict(lr=1e-5)), "another lr: was .*, is 1e-05"),
             (dict(settings=dict(betas=(.9, .999))), r"another betas: was \[0.9, 0.99\]"), (dict(adapter=(3, LAYERS)), "another rank: was 2, is 3"),
             (dict(adapter=(2, r"blocks\.0\.attn1\.to_q")), "another layers"))
    for changes, says in given:
        if "adapter" in changes: changes = dict(adapter=road.new(base(), *changes["adapter"]))
        with pytest.raises(UserError, match=f"{says}.*choose another folder"): trainer(out=tmp_path, **changes).fit()
    with pytest.raises(UserError, match="at step 2 already"): trainer(out=tmp_path, settings=dict(steps=1)).fit()
    (tmp_path/"appearance.ckpt.safetensors").write_bytes(b"x"*50)
    with pytest.raises(UserError, match="damaged.*delete it"): trainer(out=tmp_path).fit()

def told(out, data, prior=None, adapter=None, **settings):
    "A run of stage 1 on these examples, of two steps unless the settings say more."
    adapter = adapter or road.new(base(), 2, LAYERS)
    t = road.trainer(adapter, data, stage_of(**dict(steps=2, batch=2, prior=.5) | settings), prior, out=out, log_every=1)
    t.fit()
    return t

@pytest.mark.parametrize("change, says", [
    (lambda d, c: dict(data=frame_set(d, c, "a [v] woman in the snow")), "another prompt: was 'a .v. man in a red shirt in a park', is 'a .v. woman in the snow'"),
    (lambda d, c: dict(data=frame_set(d, replace(c, frames=c.frames.flip(-1)), STATIC)), r"\(another clip\)"),
    (lambda d, c: dict(data=frame_set(d, replace(c, frames=c.frames[[1, 0, 2, 3, 4]]), STATIC)), r"\(another clip\)"),
    (lambda d, c: dict(data=frame_set(d, c, STATIC, frozen=True)), "another frozen: was False, is True"),
    (lambda d, c: dict(prior=some_prior(d, "a man in the snow. he is walking")), "another prior prompts: was .'a man in a park"),
    (lambda d, c: dict(prior=None), "another prior: was .*, is none"),
    (lambda d, c: dict(adapter=road.new(d, 2, LAYERS, A={k: torch.ones_like(v) for k, v in SharedLoRA(d, 2, LAYERS).weights.items() if k.endswith(".A")})), "another basis or start")],
    ids=["prompt", "mirrored", "order", "still", "prior", "no prior", "given basis"])
def test_a_refusal_names_what_is_another(tmp_path, dit, clip, change, says):
    road.off(dit)
    given = dict(data=frame_set(dit, clip, STATIC), prior=some_prior(dit, "a man in a park. he is walking"))
    told(tmp_path, **given)
    road.off(dit); changed = change(dit, clip)
    with pytest.raises(UserError, match=says): told(tmp_path, **given | changed)

def some_prior(dit, prompt):
    road.off(dit)
    return prior_examples(dit, True, [prompt], n=2, num_frames=5, steps=1)

def elsewhere(examples, by=1e-3):
    "As another processor encodes the same: a little off."
    g = torch.Generator().manual_seed(0)
    off = lambda x: x + by*torch.randn(x.shape, generator=g)
    made = Examples(off(examples.latents), [off(t)*(t != 0) for t in examples.texts], examples.placeholders, None if examples.counterfactuals is None else off(examples.counterfactuals))
    return made.made_of(**examples.given) if examples.given else made

@pytest.mark.parametrize("known", [True, False], ids=["clip and words", "tensors alone"])
def test_a_run_goes_on_with_its_own_data_on_another_machine(tmp_path, dit, clip, known):
    road.off(dit)
    data, prior, how = frame_set(dit, clip, STATIC), some_prior(dit, "a man in a park. he is walking"), dict(token_init=.5, token_lr=0., lr=1e-2)
    if not known: data, prior = replace(data), replace(prior)
    whole = told(tmp_path/"whole", data, prior, steps=5, **how)
    told(tmp_path/"cut", data, prior, steps=3, **how)
    other = elsewhere(data)
    if known: other.given = other.given | dict(clip="#of-another-decoder") # a level of brightness here or there
    again = told(tmp_path/"cut", other, elsewhere(prior), steps=5, **how)
    assert same(copies(again.trained), copies(whole.trained)) and torch.equal(again.adapter.tokens["[v]"], whole.adapter.tokens["[v]"]) and again.history == whole.history
    told(tmp_path/"cut", data, prior, steps=6, **how) # and back again

def test_examples_that_were_changed_by_hand_are_other_examples(tmp_path, dit, clip):
    data = frame_set(dit, clip, STATIC)
    told(tmp_path, data)
    with pytest.raises(UserError, match="another"): told(tmp_path, replace(data, latents=data.latents*2), steps=3)

@pytest.mark.parametrize("spoil", [Path.unlink, lambda p: p.write_bytes(b"x"*50), lambda p: p.write_bytes(p.read_bytes()[:-9])], ids=["lost", "damaged", "cut short"])
def test_without_its_kept_data_a_run_goes_on_with_what_is_given(tmp_path, dit, clip, spoil):
    data = frame_set(dit, clip, STATIC)
    whole = told(tmp_path/"whole", data, steps=3)
    told(tmp_path/"cut", data)
    spoil(tmp_path/"cut"/"appearance.data.safetensors")
    assert same(copies(told(tmp_path/"cut", data, steps=3).trained), copies(whole.trained))
    assert checkpoint.read(tmp_path/"cut"/"appearance.data.safetensors")[0]["kept"] == checkpoint.read(tmp_path/"cut"/"appearance.ckpt.safetensors")[0]["kept"]

def test_a_run_goes_on_in_another_precision(tmp_path, dit):
    trainer(out=tmp_path).fit()
    half = VideoDiT.load("tiny", device="cpu", dtype=torch.bfloat16)
    on = road.trainer(road.new(half, 2, LAYERS), frame_set(half, five(), STATIC), stage_of(steps=3, batch=2, prior=0), out=tmp_path, log_every=2, save_every=3)
    assert [r[0] for r in on.fit()] == [2, 3] and on.data.concepts[0].texts[0].dtype == torch.bfloat16

def rewrite(path, change):
    "The checkpoint as another version would have written it."
    about, tensors = checkpoint.read(path)
    change(about)
    save_file(tensors, path, {"sas_nb": json.dumps(about)})

@pytest.mark.parametrize("change", [lambda a: (a["given"]["recipe"].pop("shift"), a["defaults"].pop("shift")), lambda a: a["given"]["recipe"].pop("counterfactuals"),
                                    lambda a: (a["given"]["recipe"].update(gone=3), a["defaults"].update(gone=3)), lambda a: a.update(news=1)], ids=["one more", "another more", "one fewer", "more to say"])
def test_a_run_goes_on_after_an_update(tmp_path, change):
    trainer(out=tmp_path).fit()
    rewrite(tmp_path/"appearance.ckpt.safetensors", change)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert trainer(out=tmp_path, settings=dict(steps=3)).resume()

def test_settings_that_came_or_went_and_matter_are_told(tmp_path):
    path = tmp_path/"appearance.ckpt.safetensors"
    trainer(out=tmp_path).fit()
    rewrite(path, lambda a: a["given"]["recipe"].pop("shift"))
    with pytest.raises(UserError, match=r"another shift: was 1.0, is 4.0"): trainer(out=tmp_path, settings=dict(shift=4.)).fit()
    rewrite(path, lambda a: a["given"]["recipe"].update(gone=3))
    with pytest.warns(UserWarning, match="gone=3"): assert trainer(out=tmp_path).resume()
    rewrite(path, lambda a: a["defaults"].update(gone=0))
    with pytest.raises(UserError, match="another gone, which sas_nb .* has not: was 3"): trainer(out=tmp_path).fit()

def test_what_a_checkpoint_was_given_can_be_read(tmp_path):
    trainer(out=tmp_path).fit()
    about, _ = checkpoint.read(tmp_path/"appearance.ckpt.safetensors")
    given = about["given"]
    assert given["examples"][""]["prompt"] == STATIC and given["recipe"]["dropout"] == .8 and given["run"]["rank"] == 2 and about["version"]
    assert all(given["examples"][""][k].startswith("#") for k in ("clip", "text encoder", "autoencoder"))


# one run a folder

def test_a_second_run_in_a_folder_is_refused(tmp_path, dit, clip):
    trainer(out=tmp_path).fit()
    before = (tmp_path/"appearance.ckpt.safetensors").read_bytes()
    with FileLock(tmp_path/"run.lock"):
        with pytest.raises(UserError, match="Another run is at work"): trainer(out=tmp_path, settings=dict(steps=3)).fit()
        with pytest.raises(UserError, match="Another run is at work"): learn(clip, (STATIC, DYNAMIC), dit, run=Run(out=tmp_path, progress=False))
        assert (tmp_path/"appearance.ckpt.safetensors").read_bytes() == before
    assert trainer(out=tmp_path, settings=dict(steps=3)).fit()[-1][0] == 3

def test_the_same_run_may_enter_twice_and_another_thread_may_not(tmp_path):
    said = []
    def other():
        try:
            with only_run(tmp_path): said.append("in")
        except UserError: said.append("refused")
    with only_run(tmp_path), only_run(tmp_path/"."):
        thread = threading.Thread(target=other); thread.start(); thread.join()
    with only_run(tmp_path): pass
    other()
    assert said == ["refused", "in"]

def hold_and_die(out):
    with only_run(out): os.kill(os.getpid(), signal.SIGKILL)

def test_a_crash_lets_others_in(tmp_path):
    child = processes.Process(target=hold_and_die, args=(tmp_path,))
    child.start(); child.join(60)
    assert child.exitcode == -signal.SIGKILL and (tmp_path/"run.lock").exists()
    with only_run(tmp_path): pass

@pytest.mark.parametrize("e", [OSError(errno.ENOLCK, "No locks available"), PermissionError(errno.EACCES, "Permission denied"), NotImplementedError("no flock")], ids=repr)
def test_a_folder_that_cannot_be_locked_is_done_without(tmp_path, monkeypatch, e):
    def refuse(self, *args, **kwargs): raise e
    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.warns(UserWarning, match="cannot be locked"): trainer(out=tmp_path).fit()
    assert (tmp_path/"appearance.ckpt.safetensors").exists()


# asked to stop

ENDS = [getattr(signal, n) for n in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, n)]

@pytest.mark.usefixtures("hears_hangups")
@pytest.mark.parametrize("s", ENDS, ids=lambda s: s.name)
@pytest.mark.parametrize("at", [2, 4], ids=["midway", "last step"])
def test_a_signal_ends_the_step_saves_and_says_so(tmp_path, monkeypatch, ctrl_c, s, at):
    t, before = trainer(out=tmp_path, settings=dict(steps=4, save_every=100)), [signal.getsignal(x) for x in ENDS]
    accumulate = t.accumulate
    def step():
        if t.step+1 == at: signal.raise_signal(s)
        return accumulate()
    monkeypatch.setattr(t, "accumulate", step, raising=False)
    with pytest.raises(Stopped, match=f"after step {at} of 4.*run the same again") as e: t.fit()
    assert e.value.signum == s and checkpoint.read(tmp_path/"appearance.ckpt.safetensors")[0]["step"] == at
    assert [signal.getsignal(x) for x in ENDS] == before
    assert trainer(out=tmp_path, settings=dict(steps=4, save_every=100)).fit()[-1][0] == 4

@pytest.mark.usefixtures("hears_hangups")
@pytest.mark.parametrize("first", ENDS, ids=lambda s: s.name)
@pytest.mark.parametrize("second", ENDS, ids=lambda s: s.name)
def test_a_second_signal_of_any_kind_stops_at_once(ctrl_c, first, second):
    with pytest.raises(KeyboardInterrupt) as e:
        with stop_gently() as stopped:
            signal.raise_signal(first)
            assert stopped() == first
            signal.raise_signal(second)
            pytest.fail("went on")
    assert getattr(e.value, "signum", signal.SIGINT) == second

def test_what_nohup_ignores_stays_ignored(monkeypatch):
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable(), stop_gently() as stopped:
            signal.raise_signal(signal.SIGHUP)
            assert not stopped()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally: signal.signal(signal.SIGHUP, old)

def test_anothers_own_handler_stays_and_hears_the_second(monkeypatch):
    heard = []
    old = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        with stoppable(): signal.raise_signal(signal.SIGTERM)
        with stop_gently() as stopped:
            for _ in range(2): signal.raise_signal(signal.SIGTERM)
            assert stopped()
        assert heard == [1, 1]
    finally: signal.signal(signal.SIGTERM, old)

@pytest.mark.usefixtures("hears_hangups")
@pytest.mark.parametrize("s", [s for s in ENDS if s != signal.SIGINT], ids=lambda s: s.name)
@pytest.mark.parametrize("where", ["frame_set", "prior_examples"])
def test_a_signal_before_training_leaves_nothing_half_written(tmp_path, dit, clip, monkeypatch, s, where):
    def killed(*args, **kwargs):
        with atomic(tmp_path/"run"/"half.bin") as tmp: tmp.write_bytes(b"half"); signal.raise_signal(s)
    monkeypatch.setattr(stages, where, killed)
    before = signal.getsignal(s)
    with pytest.raises(Stopped) as e: learn(clip, (STATIC, DYNAMIC), dit, run=Run(out=tmp_path/"run", progress=False))
    assert e.value.signum == s and [p.name for p in (tmp_path/"run").iterdir()] == ["run.lock"] and signal.getsignal(s) == before
    with only_run(tmp_path/"run"): pass

def test_off_the_main_thread_signals_are_left_alone(tmp_path):
    before, done = [signal.getsignal(x) for x in ENDS], []
    def work():
        adapter = SharedLoRA(base(), 2, LAYERS)
        with stoppable(), adapter.attached(): done.append(trainer(adapter=adapter, out=tmp_path).fit()[-1][0])
    thread = threading.Thread(target=work); thread.start(); thread.join()
    assert done == [2] and [signal.getsignal(x) for x in ENDS] == before


# what Adam remembers

@pytest.mark.parametrize("fused", [True, False])
def test_moments_go_where_pytorch_wants_them(fused):
    "On a card that is not there: `meta` stands for it."
    p, q = (nn.Parameter(torch.empty(3, 2, device="meta")) for _ in range(2))
    optimizer = torch.optim.AdamW([dict(params=[p], lr=.1), dict(params=[q], lr=.2)], fused=fused)
    checkpoint.put_moments(optimizer, {q: dict(step=torch.tensor(3.), exp_avg=torch.zeros(3, 2), exp_avg_sq=torch.zeros(3, 2))})
    state = optimizer.state[q]
    assert p not in optimizer.state and [g["lr"] for g in optimizer.param_groups] == [.1, .2]
    assert {k: v.device.type for k, v in state.items()} == dict(step="meta" if fused else "cpu", exp_avg="meta", exp_avg_sq="meta")
    assert all(v.dtype == torch.float32 for v in state.values())

@pytest.mark.parametrize("many", [1, 3])
def test_a_gradient_too_large_for_fp16_is_tried_again_with_a_smaller_scale(tmp_path, monkeypatch, many):
    half = VideoDiT.load("tiny", device="cpu", dtype=torch.float16)
    t, clip_grad, n = trainer(dit=half, out=tmp_path), nn.utils.clip_grad_norm_, [0]
    def overflow(parameters, *args):
        n[0] += 1
        return torch.tensor(float("inf")) if n[0] <= many else clip_grad(parameters, *args)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", overflow)
    t.fit()
    assert t.step == 2 and n[0] == 2+many and t.scaler.get_scale() == 2**(16-many) and all(torch.isfinite(torch.tensor(r[1])) for r in t.history)
    again = trainer(dit=half, out=tmp_path)
    assert again.resume() and again.scaler.get_scale() == 2**(16-many)

def test_a_gradient_that_no_scale_saves_is_told(monkeypatch):
    half = VideoDiT.load("tiny", device="cpu", dtype=torch.float16)
    t = trainer(dit=half, settings=dict(batch=1))
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("inf")))
    before = copies(t.trained)
    with pytest.raises(UserError, match="NaN or infinite at step 1"): t.fit()
    assert same(copies(t.trained), before)

def test_stage_two_over_another_stage_one_is_refused(tmp_path, dit):
    trainer("motion", seed=0, out=tmp_path).fit()
    with pytest.raises(UserError, match="choose another folder"): trainer("motion", seed=1, out=tmp_path).fit()

@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, where):
    t, n = trainer(out=tmp_path, settings=dict(steps=9)), [0]
    owner, name = (train, "loss_per_sample") if where == "loss" else (nn.utils, "clip_grad_norm_")
    real, good = getattr(owner, name), {}
    def broken(*args):
        n[0] += 1
        if n[0] < 5: return real(*args)
        good.update(copies(t.trained))
        return real(*args)*float("nan")
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(UserError, match="NaN or infinite at step 5.*appearance.ckpt.*lower lr"): t.fit()
    assert same(copies(t.trained), good) and all(torch.isfinite(p).all() and p.grad is None for p in t.trained.values())
    assert checkpoint.read(tmp_path/"appearance.ckpt.safetensors")[0]["step"] == 3

def test_a_disk_that_fills_up_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    t = trainer(out=tmp_path, settings=dict(steps=1))
    t.fit()
    def full(self, data): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="disk is full"): t.save()
    assert checkpoint.read(tmp_path/"appearance.ckpt.safetensors")[0]["step"] == 1 and not list(tmp_path.glob(".*"))


# precision and memory

@pytest.mark.parametrize("stage", ["appearance", "motion"])
def test_gradient_checkpointing_changes_no_loss(dit, stage):
    a = trainer(stage, settings=dict(steps=3, log_every=1)).fit()
    used, checkpoint = [], torch.utils.checkpoint.checkpoint
    with pytest.MonkeyPatch.context() as m:
        m.setattr(torch.utils.checkpoint, "checkpoint", lambda *a, **k: (used.append(1), checkpoint(*a, **k))[1])
        b = trainer(stage, settings=dict(steps=3, log_every=1, checkpointing=True)).fit()
    assert len(used) == 3*len(dit.transformer.blocks)
    assert torch.allclose(torch.tensor([r[1] for r in a]), torch.tensor([r[1] for r in b]), rtol=1e-5)
    assert not dit.transformer.is_gradient_checkpointing and not dit.transformer.training

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_trains_full_precision_adapters(dtype):
    half = VideoDiT.load("tiny", device="cpu", dtype=dtype)
    adapter = road.new(half, 2, LAYERS)
    for stage in ("appearance", "motion"):
        t = trainer(stage, adapter, dict(dropout=0), dit=half)
        assert all(torch.isfinite(torch.tensor(r[1])) for r in t.fit())
        assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in t.trained.values())
    assert all(p.any() for p in adapter.weights.values())


# logs, samples, settings

def test_the_log_is_cut_back_and_keeps_the_other_stage(tmp_path):
    lines = [json.dumps(dict(stage=s, step=k)) for s in ("appearance", "motion") for k in (1, 2, 3)]
    (tmp_path/"log.jsonl").write_text("\n".join(lines)+'\n{"stage": "mo')
    log = Log(tmp_path, "motion", 2)
    log.write(dict(stage="motion", step=3, loss=1.))
    log.close()
    assert [(r["stage"][0], r["step"]) for r in read_log(tmp_path/"log.jsonl")] == [("a", 1), ("a", 2), ("a", 3), ("m", 1), ("m", 2), ("m", 3)]
    assert bool(list((tmp_path/"tensorboard"/"motion").glob("events.*"))) == bool(importlib.util.find_spec("tensorboard"))

@pytest.mark.parametrize("text", ["buy milk\ncall Ann\n", "buy milk", '{"step": 1, "loss": 3}\n', "[1]\n3", '{"stage": 3}', '{"stage": "motion", "step": 1}\nbuy milk\n{"stage": "mo'])
def test_a_log_of_ones_own_stays_and_no_step_is_taken(tmp_path, text):
    (tmp_path/"log.jsonl").write_text(text)
    t = trainer("motion", out=tmp_path)
    with pytest.raises(UserError, match="log.jsonl' is not the log of a training: move it away"): t.fit()
    assert t.step == 0 and (tmp_path/"log.jsonl").read_text() == text

def test_a_log_of_ones_own_is_refused_before_anything_is_encoded(tmp_path, dit, clip, monkeypatch):
    monkeypatch.setattr("sas_nb.learning.build", None)
    (tmp_path/"log.jsonl").write_text("buy milk")
    with pytest.raises(UserError, match="is not the log of a training"): learn(clip, (STATIC, "he is [u] dancing"), dit, run=Run(tmp_path, progress=False))

@pytest.mark.parametrize("stage, suffix", [("appearance", "png"), ("motion", "mp4")])
def test_samples_are_written_and_change_nothing(tmp_path, monkeypatch, dit, stage, suffix):
    monkeypatch.setattr(dit.defaults, "steps", 1)
    monkeypatch.setattr(dit.defaults, "num_frames", 5)
    plain = trainer(stage)
    plain.fit()
    seen = trainer(stage, settings=dict(sample_every=1), out=tmp_path, prompt=FULL)
    seen.fit()
    assert [p.name for p in sorted((tmp_path/"samples").iterdir())] == [f"{stage}-0000{k}.{suffix}" for k in (1, 2)]
    assert same(copies(seen.trained), copies(plain.trained))

@pytest.mark.parametrize("steps, taken", [(None, 3), (2, 2)])
def test_a_sample_may_take_fewer_steps(tmp_path, monkeypatch, dit, steps, taken):
    monkeypatch.setattr(dit.defaults, "steps", 3)
    scheduled, stock = [], type(dit).schedule
    monkeypatch.setattr(type(dit), "schedule", lambda self, n, *rest: scheduled.append(n) or stock(self, n, *rest))
    trainer("appearance", settings=dict(sample_every=2, sample_steps=steps), out=tmp_path, prompt=FULL).fit()
    assert scheduled == [taken] and len(list((tmp_path/"samples").iterdir())) == 1

@pytest.mark.parametrize("wrong", [dict(sample_steps=0), dict(sample_steps=1.5), dict(sample_steps="few"), dict(steps=-1), dict(steps=2.5), dict(steps="600"), dict(batch=0), dict(lr=0), dict(lr=float("nan")), dict(dropout=1), dict(prior=1),
                                   dict(log_every=0), dict(save_every=0), dict(times="cosine"), dict(shift=0), dict(token_mask=float("nan"))], ids=str)
def test_wrong_settings_are_told_at_once(wrong):
    numbers, run = road.split(wrong)
    with pytest.raises(UserError, match=next(iter(wrong))): (stage_of(**numbers), Run(**run))

def test_defaults_are_the_papers():
    one, two = Recipe.paper().stages
    assert (one.steps, two.steps, one.dropout, two.dropout) == (600, 900, .8, .5)
    for s in (one, two): assert (s.batch, s.betas, s.weight_decay, s.clip_norm, s.token_lr, s.token_init, s.token_mask) == (8, (.9, .99), .01, .05, 1e-5/WORD, 0, .1)

@pytest.mark.parametrize("code, says", [(errno.EROFS, "read-only"), (errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission")])
def test_a_folder_that_cannot_be_written_is_found_early(tmp_path, monkeypatch, code, says):
    check_folder(tmp_path/"new")
    assert not list((tmp_path/"new").iterdir())
    (tmp_path/"file").write_text("")
    with pytest.raises(UserError, match="a file and not a folder"): check_folder(tmp_path/"file"/"out")
    with pytest.raises(UserError, match="MB left.*free some space"): check_folder(tmp_path, 10**15)
    def refuse(self, data): raise OSError(code, "refused", str(self))
    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(UserError, match=says): check_folder(tmp_path)

def test_the_calls_of_both_stages(dit, clip):
    adapter, few = road.new(dit, 2, LAYERS), dict(steps=1, batch=2, prior=0)
    one = road.trainer(adapter, frame_set(dit, clip, STATIC), stage_of(**few)).fit()
    two = road.trainer(adapter, sequence(dit, clip, FULL), stage_of("motion", **few)).fit()
    figure = plot_history(dict(appearance=one, motion=two))
    assert len(figure.axes) == 2
    for ax in figure.axes:
        assert ax.get_title() and "step" in ax.get_xlabel() and "squared error" in ax.get_ylabel()
        assert len({(l.get_linestyle(), l.get_marker()) for l in ax.lines}) == len(ax.lines), "lines differ in more than colour"
