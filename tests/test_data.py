"Each regulariser does what it says, exactly where it can be exact."
import shutil, threading
import pytest
import torch

import road
from sas_nb import counterfactual, stages
from sas_nb.adapter import SharedLoRA
from sas_nb.clip import Clip
from sas_nb.composites import stitch, stitched
from sas_nb.data import Examples, mask_tokens, prior_examples, sample_batch
from sas_nb.dit import VideoDiT
from sas_nb.files import UserError
from sas_nb.flow import clean_estimate
from sas_nb.prompt import Prompts
from sas_nb.recipe import Recipe
from sas_nb.self_conditioning import SelfConditioning
from sas_nb.stages import build
from sas_nb.strangers import beside_strangers, STRANGERS, strangers_of, with_strangers
from sas_nb.text import add_tokens

FEW = r"blocks\.0\.attn1\.to_q"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAS_NB_CACHE", str(tmp_path/"cache"))
    return tmp_path/"cache"


@pytest.fixture(scope="module")
def dit(): return VideoDiT.load("tiny", "cpu", torch.float32)


@pytest.fixture(scope="module")
def text(dit): return dit.embed("a man in a red shirt on a beach")


@pytest.fixture
def x(dit): return dit.noise([0], num_frames=5)


HALF = torch.tensor([.5])
def rng(seed=0): return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- examples

def test_examples_pad_texts_to_one_length(dit, text, x):
    bag = Examples(torch.cat([x, -x]), [dit.embed("a man"), text], [[], ["[v]"]])
    z, texts, found = bag.batch([1, 0, 1])
    assert len(bag) == 2 and torch.equal(z, torch.cat([-x, x, -x])) and found == [["[v]"], [], ["[v]"]]
    assert texts.shape == (3, text.shape[1], text.shape[2]) and torch.equal(texts[:1], text) and not texts[1, bag.texts[0].shape[1]-1:].any()
    with torch.no_grad(): torch.testing.assert_close(dit.velocity(z, HALF.expand(3), texts)[1:2], dit.velocity(x, HALF, dit.embed("a man")), atol=1e-4, rtol=1e-3)


def test_examples_with_one_text_for_all(text, x):
    z, texts, found = Examples(x.expand(5, -1, -1, -1, -1), [text], [["[v]"]]).batch([4, 0])
    assert len(z) == len(texts) == 2 and torch.equal(texts[0], texts[1]) and found == [["[v]"]]*2


# ---------------------------------------------------------------- prior preservation

@pytest.mark.parametrize("frames", [True, False])
def test_prior_is_made_once(dit, monkeypatch, frames):
    made, real = [], dit.denoise
    monkeypatch.setattr(dit, "denoise", lambda *a: made.append(len(a[0])) or real(*a), raising=False)
    make = lambda **changes: prior_examples(dit, frames, **(dict(n=3, num_frames=5, steps=2, batch=2) | changes))
    first, second = make(), make()
    assert made == [2, 1] and torch.equal(first.latents, second.latents), "the second call reads the cache"
    assert first.latents.shape == road.latents(dit, 3, 1 if frames else 5).shape and len(first.texts) == 3 and first.placeholders == [[], [], []]
    assert not torch.equal(first.latents[0], first.latents[1])
    other = make(seed=7)
    assert len(made) == 4 and not torch.equal(first.latents, other.latents)


def test_prior_is_the_bases_own_samples(dit):
    prompts = ["a man in a red shirt in a park. he is walking", "a woman on a beach. she is waving"]
    made = prior_examples(dit, True, prompts, n=3, steps=2, guidance=3., seed=4)
    with torch.no_grad(): own = dit.denoise(dit.noise([5], 1), dit.embed([prompts[1], dit.defaults.negative]), 2, 3.)
    torch.testing.assert_close(made.latents[1:2], own, atol=1e-3, rtol=1e-3)
    for i, p in enumerate([*prompts, prompts[0]]): assert torch.equal(made.texts[i], dit.embed(p))
    assert made.texts[0] is made.texts[2]
    assert torch.equal(prior_examples(dit, True, prompts[:1], n=1, steps=2, guidance=1., seed=4).latents,
                       dit.denoise(dit.noise([4], 1), dit.embed(prompts[0]), 2, 1.))


def test_prior_refuses_an_adapter_and_no_prompts(dit, monkeypatch):
    road.new(dit, 2, FEW)
    with pytest.raises(UserError, match="adapter is on it"): prior_examples(dit, True, n=1, steps=1)
    road.off(dit)
    monkeypatch.setattr(dit.defaults, "prior", ())
    with pytest.raises(UserError, match="needs prompts"): prior_examples(dit, True, n=1, steps=1)


def test_a_base_waits_until_another_thread_has_taken_its_adapter_off(dit, cache):
    "An explorer works in the background while somebody learns: neither an error nor samples of its concept."
    adapter, on, off, made = SharedLoRA(dit, 2, FEW), threading.Event(), threading.Event(), []
    def explore():
        with adapter.attached():
            on.set()
            off.wait(60)
    def learn(): made.append(prior_examples(dit, True, n=1, steps=1).latents)
    explorer, learner = (threading.Thread(target=work) for work in (explore, learn))
    explorer.start()
    on.wait(60)
    learner.start()
    learner.join(.3)
    assert learner.is_alive() and not made
    off.set()
    learner.join(60)
    shutil.rmtree(cache)
    assert torch.equal(made[0], prior_examples(dit, True, n=1, steps=1).latents)


# ---------------------------------------------------------------- token masking

@pytest.mark.parametrize("p", [.1, .5])
def test_masked_fraction_and_whole_tokens(p):
    masked = mask_tokens(torch.ones(500, 40, 3), p, rng())
    assert (masked == 0).float().mean().item() == pytest.approx(p, abs=.01)
    assert torch.equal(masked.amin(-1), masked.amax(-1)) and set(masked.unique().tolist()) == {0., 1.}


def test_masks_differ_between_samples_and_draws(text):
    g, pair = rng(), torch.ones(2, 40, 4)
    first, second = mask_tokens(pair, .5, g), mask_tokens(pair, .5, g)
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1]) and torch.equal(first, mask_tokens(pair, .5, rng()))
    assert mask_tokens(text, 0, g) is text


@torch.no_grad()
def test_a_masked_token_is_padding(dit, text, x):
    gone = text.clone(); gone[:, 3] = 0
    shorter = torch.cat([text[:, :3], text[:, 4:]], 1)
    torch.testing.assert_close(dit.velocity(x, HALF, gone), dit.velocity(x, HALF, shorter), atol=1e-4, rtol=1e-3)
    assert not torch.allclose(dit.velocity(x, HALF, gone), dit.velocity(x, HALF, text), atol=1e-6)


def test_gradient_reaches_a_placeholder_through_the_mask(dit, text):
    v = torch.nn.Parameter(torch.zeros(dit.text_width))
    with_v = add_tokens(text, [["[v]"]], {"[v]": v})
    mask_tokens(with_v, .5, rng()).sum().backward()
    kept = mask_tokens(torch.ones(*with_v.shape[:2], 1), .5, rng())[0, 0, 0]
    assert torch.equal(v.grad, torch.full_like(v, kept))


# ---------------------------------------------------------------- self-conditioning

@pytest.fixture
def conditioning(dit): return SelfConditioning(dit)


def test_at_the_start_nothing_changes_by_a_bit(dit, conditioning, text, x):
    guess = torch.randn(x.shape, generator=rng())
    with torch.no_grad():
        plain = dit.velocity(x, HALF, text)
        assert torch.equal(conditioning.velocity(x, HALF, text, guess), plain) and torch.equal(conditioning.velocity(x, HALF, text), plain)
    assert list(conditioning.state_dict()) == ["project.weight"], "the DiT is no part of it"


def test_the_projection_gets_gradient_from_the_start(conditioning, text, x):
    conditioning.velocity(x, HALF, text, x).square().mean().backward()
    assert conditioning.project.weight.grad.any()


@torch.no_grad()
def test_a_trained_projection_matters_and_leaves_no_hook(dit, conditioning, text, x):
    plain = dit.velocity(x, HALF, text)
    torch.nn.init.normal_(conditioning.project.weight, std=.1)
    a, b = (conditioning.velocity(x, HALF, text, guess) for guess in (x, -x))
    assert not torch.equal(a, plain) and not torch.equal(a, b)
    with pytest.raises(Exception): conditioning.velocity(x, HALF, text, x[:, :3])
    assert torch.equal(dit.velocity(x, HALF, text), plain) and torch.equal(conditioning.velocity(x, HALF, text), plain)


@torch.no_grad()
def test_it_is_added_to_the_patch_tokens(dit, conditioning, text, x):
    torch.nn.init.normal_(conditioning.project.weight, std=.1)
    embedding, seen = dit.transformer.patch_embedding, []
    watch = dit.transformer.blocks[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    dit.velocity(x, HALF, text); conditioning.velocity(x, HALF, text, -x)
    watch.remove()
    added = torch.nn.functional.conv3d(-x, conditioning.project.weight, stride=embedding.stride).flatten(2).transpose(1, 2)
    torch.testing.assert_close(seen[1]-seen[0], added, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_sampler_feeds_each_estimate_to_the_next_step(dit, conditioning, text, x, monkeypatch):
    torch.nn.init.normal_(conditioning.project.weight, std=.1)
    heard, real = [], conditioning.velocity
    def listen(x, t, text, previous=None):
        heard.append((previous, clean_estimate(x, v := real(x, t, text, previous), t)))
        return v
    monkeypatch.setattr(conditioning, "velocity", listen)
    two = torch.cat([text, torch.zeros_like(text)])
    fed = dit.denoise(x, two, 3, 2., False, conditioning.sampler())
    assert heard[0][0] is None and len(heard) == 3
    for (_, estimate), (previous, _) in zip(heard, heard[1:]): assert torch.equal(previous, estimate) and len(previous) == 2
    assert not torch.equal(fed, dit.denoise(x, two, 3, 2.))
    torch.nn.init.zeros_(conditioning.project.weight)
    assert torch.equal(dit.denoise(x, two, 3, 2., False, conditioning.sampler()), dit.denoise(x, two, 3, 2.))


# ---------------------------------------------------------------- stitching

def ramp(shift=0., t=5, fps=8., h=8, w=16, name=""): return Clip((torch.arange(w)/w/2 + shift).expand(t, 3, h, w).clone(), fps, name)


def test_stitch_puts_centres_side_by_side():
    a, b = ramp(name="a"), ramp(.4, name="b")
    both = stitch([a, b])
    assert both.shape == a.shape and both.fps == 8 and both.name == "a | b"
    assert torch.equal(both.frames, torch.cat([a.frames[..., 4:12], b.frames[..., 4:12]], -1))
    assert torch.equal(stitch([a]).frames, a.frames)
    assert stitch([a, b, a]).shape == a.shape, "three do not divide sixteen columns evenly"


def test_stitch_follows_the_subject_and_stays_inside():
    a, b = ramp(), ramp(.4)
    both = stitch([a, b], at=[0., .75]).frames
    assert torch.equal(both, torch.cat([a.frames[..., :8], b.frames[..., 8:]], -1))


@pytest.mark.parametrize("clips, at, match", [
    ([], None, "nothing to stitch"), ([ramp(), ramp(t=9)], None, "must be alike"), ([ramp(), ramp(fps=12.)], None, "must be alike"),
    ([ramp(), ramp(w=32)], None, "must be alike"), ([ramp(), ramp()], [.5], "one place per clip"), ([ramp()]*17, None, "fewer clips")])
def test_stitch_says_what_does_not_match(clips, at, match):
    with pytest.raises(UserError, match=match): stitch(clips, at)


def test_a_concept_is_shown_beside_strangers_in_a_share_of_the_batch(dit):
    clip, prompts = Clip(torch.rand(5, 3, 64, 64), 12.), Prompts("a [v] man in a park", "he is [u] dancing")
    recipe = Recipe.default().with_(both=dict(prior=0., counterfactuals=0., composites=.4), stage1=dict(frozen=False))
    data = build(dit, [clip], [prompts], recipe)
    pictures, films = (data[name].concepts[0].composites for name in ("appearance", "motion"))
    assert len(films) == STRANGERS and len(pictures) == 5*STRANGERS and len(data["motion"].concepts[0]) == 1
    company = beside_strangers(dit, clip, prompts)
    for k, (shown, said) in enumerate(zip(company.clips, company.prompts)):
        own, other = shown.frames[..., :32], shown.frames[..., 32:]
        if not said.appearance.text.startswith("a [v]"): own, other = other, own
        assert torch.equal(own, clip.frames[..., 16:48]) and not torch.equal(other, clip.frames[..., 16:48])
        assert torch.equal(films.latents[k:k+1], dit.encode_once(shown.frames[None]))
    assert len({p.appearance.text for p in company.prompts}) == STRANGERS
    assert "composites" in data["motion"].concepts[0].given
    drawn = sample_batch(recipe.stage2, 200, torch.Generator().manual_seed(0), data["motion"].concepts[0], None, {}, "cpu")
    beside = [any(torch.equal(z, f) for f in films.latents) for z in drawn.clean]
    assert sum(beside) in (80, 81)
    alone = build(dit, [clip], [prompts], recipe.with_(both=dict(composites=0.)))
    assert alone["motion"].concepts[0].composites is None and "composites" not in alone["motion"].concepts[0].given


def test_strangers_keep_pairs_and_are_not_shown_to_several_concepts_in_one(dit, monkeypatch):
    monkeypatch.setattr(counterfactual, "redraw", lambda dit, clean, *args, **how: clean)
    clips = [Clip(torch.rand(5, 3, 64, 64), 12., name) for name in "ab"]
    prompts = [Prompts("a [v1] man in a park", "he is [u1] dancing"), Prompts("a [v2] woman in a park", "she is [u2] dancing")]
    recipe = Recipe.default().with_(both=dict(prior=0., composites=.4))
    one = build(dit, clips[:1], [Prompts("a [v] man in a park", "he is [u] dancing")], recipe)["motion"].concepts[0]
    assert len(one.counterfactuals) == 8 and len(one.composites) == STRANGERS
    both = stages.build_together(dit, clips, prompts, recipe.with_(both=dict(counterfactuals=0.)), stitched(clips, prompts, n=3, sided=False))
    assert len(both["motion"].concepts[0].composites) == 3


@pytest.mark.parametrize("look, moves, first, place", [
    ("a [v] woman in a park", "she is [u] dancing", "a man in a", "in a park"), ("a [v] man", "he is [u] waving", "a woman in a", ""),
    ("a [v] bonfire in a forest at night", "[u]", "a woman in a", "in a forest at night"), ("[v] ocean waves on a beach", "[u]", "a woman in a", "on a beach")])
def test_strangers_are_in_the_same_place(dit, look, moves, first, place):
    prompts = Prompts(look, moves)
    others = strangers_of(prompts)
    assert len(set(others)) == STRANGERS and others[0].startswith(first)
    assert all("[" not in other and other.partition(". ")[0].endswith(place) for other in others)
    assert sum("woman" in other for other in others) == 2
    said = with_strangers(dit, prompts)
    own = prompts.without_place().appearance.text
    assert sorted(p.appearance.text.startswith(own) for p in said) == [False, False, True, True]
    assert all(p.appearance.text.endswith(place) and p.appearance.text.count(place or "[v]") == 1 and moves in p.motion.text for p in said)
    for p in said: dit.check_words(p.both.plain)
