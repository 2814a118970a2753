"Several concepts in one scene: words that are told apart, one adapter for all, ways to put them together, pictures of all, masks."
import json
import warnings
from dataclasses import replace
import av, pytest, torch
import road
from typer.testing import CliRunner
from sas_nb import export
from sas_nb.adapter import SharedLoRA
from sas_nb.atlas.members import synthetic
from sas_nb.atlas.places import load_zoo
from sas_nb.cli import app
from sas_nb.clip import Clip
from sas_nb.composing import compose, learn_together
from sas_nb.composites import composites_of, cutouts, paste, stitched
from sas_nb.concept import Concept
from sas_nb.data import Examples, merged, sample_batch
from sas_nb.dit import VideoDiT
from sas_nb.files import Advice, UserError
from sas_nb.folded import fold_words
from sas_nb.learning import learn
from sas_nb.lowrank import delta
from sas_nb.masks import background_mask, background_of, checked_mask, masks_of, read_mask
from sas_nb.memory import Memory
from sas_nb.prompt import check_together, Prompt, Prompts, respelt, together
from sas_nb.recipe import Recipe, Run
from sas_nb.running import Stopped
from sas_nb.scenes import TEMPLATE
from sas_nb.subjects import checked_box

LAYERS = r"blocks\.[03]\.(attn1\.to_q|attn2\.to_v|ffn\.net\.2)"
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def dit(): return VideoDiT.load("tiny", "cpu", torch.float32)

@pytest.fixture(scope="module")
def clips(): return [replace(moving(c), name=n) for n, c in (("left", .2), ("right", .8))]

SAID = [Prompts("a [v1] man in a park", "he is [u1] dancing"), Prompts("[v2] ocean waves on a beach", "[u2]")]

def moving(colour, t=5, size=32):
    "A square that walks over grey."
    x = torch.full((t, 3, size, size), .5)
    for k in range(t): x[k, :, 12:24, 3+4*k:11+4*k] = colour
    return Clip(x, 12.)

def exact(clip): return ((clip.frames-.5).abs().amax(1, keepdim=True) > .1).float()

def few(steps=2, **both):
    return Recipe.default().together(2).with_(both=dict(steps=steps, batch=4, prior=0., composites=.25) | both, layers=LAYERS, rank=4)

def quiet(out=None, **given): return Run(out=out, progress=False, **given)


# words

@pytest.mark.parametrize("text, placeholders, plain", [
    ("a [v1] man and a [v2] woman", ("[v1]", "[v2]"), "a man and a woman"), ("[u12], [u1]", ("[u12]", "[u1]"), ","), ("[v10] [v1]", ("[v10]", "[v1]"), "")])
def test_numbered_words(text, placeholders, plain):
    p = Prompt(text)
    assert p.placeholders == placeholders and p.plain == plain
    assert all(text[i:i+len(w)] == w for i, w in zip(p.places, p.placeholders))


@pytest.mark.parametrize("text, meant", [("a [ V1 ] man", "a [v1] man"), ("a (v2) man", "a [v2] man"), ("{ u 3 }", "[u3]"), ("<U10>", "[u10]"), ("a [v 1] man", "a [v1] man")])
def test_words_spelt_otherwise(text, meant):
    assert respelt(text) == meant
    with pytest.raises(UserError) as e: Prompt(text)
    assert f"write {meant!r}" in str(e.value)


@pytest.mark.parametrize("text", ["a [v0] man", "a [v01] man", "a [w1] man", "[u00]"])
def test_words_without_a_meaning(text):
    with pytest.raises(UserError, match="have a meaning"): Prompt(text)


@pytest.mark.parametrize("pair, says", [
    (("a [v1] man", "he is [u2] up"), "[v1] and no [u1] in the motion prompt"), (("a [v1] man", "he is [u] up"), "[v1] and no [u1]"),
    (("a [v1] man and a [v2] boy", "he is [u1] up"), "[v2] and no [u2]"), (("a [v] man", "he is [u1] up"), "[v] and no [u] in the motion prompt"),
    (("a [v1] man", "[v2] is [u1] up"), "[v2] in the appearance prompt"), (("a [v] man and a [v2] boy", "[u], [u2]"), "with and without a number"),
    (("a [v1] [u1] man", "[u1]"), "holds [u1]"), (("a man", "[u1]"), "has no [v]")])
def test_a_number_without_its_partner(pair, says):
    with pytest.raises(UserError) as e: Prompts(*pair)
    assert says in str(e.value)


@pytest.mark.parametrize("second, says", [
    (("a [v1] boy", "[u1]"), "[v1] is a word of two of them"), (("a [v] boy", "[u]"), "[v] has no number"), (("a [v2] boy and a [v1] girl", "[u1], [u2]"), "[v1] is a word of two")])
def test_two_concepts_with_one_word(second, says):
    with pytest.raises(UserError) as e: check_together([SAID[0], Prompts(*second)])
    assert says in str(e.value)


def test_prompts_together():
    both = together(SAID)
    assert str(both.both) == "a [v1] man in a park and [v2] ocean waves on a beach. he is [u1] dancing, [u2]"
    assert both.pairs == (("[v1]", "[u1]"), ("[v2]", "[u2]")) and both.placeholders == ("[v1]", "[v2]", "[u1]", "[u2]")
    assert Prompts("a [v] man", "[u]").numbered(7) == Prompts("a [v7] man", "[u7]")
    assert together([p.without_place() for p in SAID], ["on the left", ""]).appearance.text == "a [v1] man on the left and [v2] ocean waves"


@pytest.mark.parametrize("edit", ["in the snow", "a [v1] man in the snow", "a man in the snow. he is up", "[v2] ocean waves", "a v1 man, u2", "a [v1] man. he is [u1] dancing", ""])
def test_an_edit_of_several_that_forgets(edit):
    both = together(SAID)
    typed = both.completed(edit)
    assert both.missing(typed) == [] and len(Prompt(typed).placeholders) == 4


# one adapter

def test_tokens_have_a_row_for_each_word(dit):
    adapter = SharedLoRA(dit, 2, LAYERS, words=("[v1]", "[v2]", "[u1]", "[u2]"))
    assert list(adapter.tokens) == ["[v1]", "[v2]", "[u1]", "[u2]"] and list(SharedLoRA(dit, 2, LAYERS).tokens) == ["[v]", "[u]"]
    texts = [dit.embed("a man"), dit.embed("a bonfire")]
    data = merged([Examples(dit.noise([i], 1), [t], [[w]]) for i, (t, w) in enumerate(zip(texts, ("[v1]", "[v2]")))])
    trainer = road.trainer(road.put_on(adapter), data, road.stage(token_init=.5, prior=0., batch=2, steps=1))
    assert trainer.words == ("[v1]", "[v2]") and not adapter.tokens["[u1]"].any()
    one, other = (adapter.tokens[w].detach()[0] for w in trainer.words)
    assert float(torch.nn.functional.cosine_similarity(one, other, dim=0)) < .5, "two words, not one"
    before = one.clone(), other.clone()
    trainer.train_step()
    assert all(not torch.equal(adapter.tokens[w][0], b) for w, b in zip(trainer.words, before)), "both learn"


def test_clips_in_turn():
    parts = [Examples(torch.full((n, 1, 1, 1, 1), float(i)), [torch.zeros(1, 2, 3)], [[f"[v{i}]"]]) for i, n in enumerate((8, 1, 3))]
    both, g = merged(parts), torch.Generator().manual_seed(0)
    for k in (3, 6, 7, 1):
        latents, text, words = both.batch(both.draw(k, g))
        shown = [int(x) for x in latents.flatten()]
        assert max(map(shown.count, range(3)))-min(map(shown.count, range(3))) <= 1 and [[f"[v{i}]"] for i in shown] == words
    ever = {i for _ in range(99) for i in both.draw(3, g)}
    assert ever == set(range(12)), "and every example of each"


def test_composites_have_their_share(dit):
    plain = Examples(torch.zeros(1, 16, 1, 2, 2), [torch.zeros(1, 2, 128)], [[]])
    data = replace(plain, composites=Examples(torch.ones(2, 16, 1, 2, 2), [torch.zeros(1, 2, 128)], [[]]))
    def shown(data, share):
        stage, g = road.stage(composites=share, prior=0.), torch.Generator().manual_seed(0)
        return sum(float(sample_batch(stage, 4, g, data, None, {}, dit.device).clean.mean()) for _ in range(200))/200
    assert shown(data, .3) == pytest.approx(.3, abs=.03) and shown(data, 0.) == 0 and shown(plain, .3) == 0


def test_learned_together(dit, clips, tmp_path):
    pairs = list(zip(clips, SAID))
    scene = learn_together(pairs, dit, few(), quiet(tmp_path/"a"), places=[(0, 0, .5, 1), (.5, 0, 1, 1)])
    assert [(s.name, s.placeholders, s.prompts, s.box) for s in scene.subjects] == [("left", ("[v1]", "[u1]"), SAID[0], (0, 0, .5, 1)), ("right", ("[v2]", "[u2]"), SAID[1], (.5, 0, 1, 1))]
    assert set(scene.tokens) == {"[v1]", "[u1]", "[v2]", "[u2]"} and all(v.any() for v in scene.tokens.values())
    assert all(scene.weights[f"{l}.{k}"].any() for l in scene.layers for k in ("B1", "B2"))
    again = Concept.load(tmp_path/"a", dit)
    assert again.subjects == scene.subjects and all(torch.equal(again.weights[k], w) for k, w in scene.weights.items())
    assert len(again.advice("a [v1] man. he is [u1] dancing")) == 1 and again.generate(steps=1, num_frames=5).shape == (5, 3, 32, 32)
    out = CliRunner().invoke(app, ["generate", str(tmp_path/"a"), "--out", str(tmp_path/"scene.mp4"), "--steps", "1", "-q"])
    assert out.exit_code == 0 and (tmp_path/"scene.mp4").exists(), out.output


def test_a_stopped_run_of_several_goes_on_exactly(dit, clips, tmp_path, monkeypatch):
    pairs = list(zip(clips, SAID))
    whole = learn_together(pairs, dit, few(3), quiet())
    import sas_nb.train as train
    usual, seen = train._after_step, []
    def stop(trainer, *args):
        usual(trainer, *args)
        seen.append(trainer.step)
        if len(seen) in (2, 4): raise Stopped
    monkeypatch.setattr(train, "_after_step", stop)
    for _ in range(2):
        with pytest.raises(Stopped): learn_together(pairs, dit, few(3), quiet(tmp_path/"run", save_every=1))
    again = learn_together(pairs, dit, few(3), quiet(tmp_path/"run", save_every=1))
    assert all(torch.equal(again.weights[k], w) for k, w in whole.weights.items()) and all(torch.equal(again.tokens[k], w) for k, w in whole.tokens.items())
    for other in (few(3, composites=.5), few(3).with_(arrangement="cutouts")):
        with pytest.raises(UserError, match="holds another run"): learn_together(pairs, dit, other, quiet(tmp_path/"run"), masks=[exact(c) for c in clips])


def test_words_of_several_are_folded(dit, clips, tmp_path, monkeypatch):
    "Plain prompts then show nearly what those with all words do."
    scene = learn_together(list(zip(clips, SAID)), dit, few(3), quiet())
    folded = fold_words(scene, 4, steps=30, samples=2, queries=16, measured=2)
    assert .3 < folded.kept <= 1
    monkeypatch.setattr(export, "fold_words", lambda concept: folded)
    written, = scene.export(tmp_path/"lora", words="folded")
    assert written.exists() and not [f for f in written.rglob("*") if "words" in f.name]


def test_a_recipe_for_several():
    paper = Recipe.paper().together(2)
    assert [s.steps for s in paper.stages] == [1200, 1800] and paper.stage1.composites == .2 and paper.together(3) == paper
    assert Recipe.from_dict(paper.to_dict()) == paper
    old = paper.to_dict()
    for s in ("stage1", "stage2"): del old[s]["composites"]
    del old["arrangement"]
    assert Recipe.from_dict(old).stage2.composites == 0 and Recipe.from_dict(old).arrangement == "stitched"
    for wrong in (dict(arrangement="pile"), dict(both=dict(composites=1.5))):
        with pytest.raises(UserError): Recipe.paper().with_(**wrong)


@pytest.mark.parametrize("change, says", [
    (lambda c: [], "There is no clip"), (lambda c: [(c[0], SAID[0])], "use learn for one"), (lambda c: [c[0], c[1]], "a clip and its prompts"),
    (lambda c: [(c[0], SAID[0]), (c[1], SAID[0])], "a word of two"), (lambda c: [(c[0], ("a [v] man", "[u]")), (c[1], SAID[1])], "has no number"),
    (lambda c: [(c[0], SAID[0]), (replace(c[1], fps=8.), SAID[1])], "must be alike"), (lambda c: [(c[0], SAID[0]), (moving(.1, 9), SAID[1])], "must be alike"),
    (lambda c: [(c[0], SAID[0]), (moving(.1, 5, 48), SAID[1])], "must be alike"), (lambda c: [(c[0], SAID[0]), (c[1], ("a [v2] man", "up"))], "has no [u]")])
def test_clips_that_cannot_be_learned_together(dit, clips, change, says):
    with pytest.raises(UserError) as e: learn_together(change(clips), dit, few())
    assert says in str(e.value)


def test_too_many_for_a_basis(dit, clips):
    ten = [(clips[0], Prompts(f"a [v{i}] man", f"he is [u{i}] dancing")) for i in range(1, 11)]
    once = few(0, composites=0.).with_(rank=8)
    with pytest.warns(Advice, match="10 concepts share a basis of 8 vectors.*rank=20"): learn_together(ten, dit, once, quiet())
    with warnings.catch_warnings():
        warnings.simplefilter("error", Advice)
        learn_together(ten[:4], dit, once, quiet())


# ways

@pytest.fixture(scope="module")
def zoo(dit): return load_zoo(names=["woman-00", "man-02"], dit=dit)

def update(c, layer): return delta(c.weights[f"{layer}.A"], c.appearance*c.weights[f"{layer}.B1"] + c.motion*c.weights[f"{layer}.B2"])


def test_concepts_that_were_learned_alone_are_told(zoo):
    def shown(c, share):
        recipe = dict(c.info["recipe"], stage2=dict(c.info["recipe"]["stage2"], composites=share))
        return replace(c, info=c.info | dict(recipe=recipe))
    (a, she), (b, he) = zoo.items()
    mixed = {a: shown(she, .35), b: shown(he, 0.)}
    with pytest.warns(Advice, match=f"alone.*: {b}\\. Learn again with composites=.35"): compose(mixed)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Advice)
        compose(mixed, "sum"), compose(mixed | {b: shown(he, .35)})


def test_sum_and_merge(zoo):
    a, b = zoo.values()
    for way in ("sum", "merged"):
        whole = compose(zoo, way).concept([1, .5], [0, 2])
        for layer in a.layers[:3]:
            wanted = delta(a.weights[f"{layer}.A"], a.weights[f"{layer}.B1"] + .5*b.weights[f"{layer}.B1"] + 2*b.weights[f"{layer}.B2"])
            torch.testing.assert_close(update(whole, layer), wanted, atol=1e-5, rtol=1e-4)
        assert whole.rank == (8 if way == "sum" else 16) and set(whole.tokens) == {"[v1]", "[u1]", "[v2]", "[u2]"}
        assert torch.equal(whole.tokens["[v2]"], b.tokens["[v]"])


def test_strangers_merge_and_are_saved(tmp_path):
    strangers, _ = synthetic(3, shared=False)
    whole = compose(strangers, "merged").concept()
    for layer in strangers[0].layers: torch.testing.assert_close(update(whole, layer), sum(update(c, layer) for c in strangers), atol=1e-4, rtol=1e-3)
    back = Concept.load(whole.save(tmp_path/"m"))
    assert back.subjects == whole.subjects and back.rank == whole.rank == 3*strangers[0].rank
    with pytest.raises(UserError, match="need one basis A"): compose(strangers, "sum")
    with pytest.raises(UserError, match="need one basis A"): compose(strangers, "masked")


def test_masked_alone_in_the_picture_is_the_concept_itself(zoo):
    "All tokens belong to the first, and the words of its prompt do too: what the other one has does not show."
    a, b = (replace(c, weights={k: w if k.endswith(".A") or "attn2.to_k" not in k and "attn2.to_v" not in k else 0*w for k, w in c.weights.items()}) for c in zoo.values())
    scene = compose([a, b], "masked", [(0, 0, 1, 1), (0, .999, .001, 1)], equal=False, gain=1.)
    how = dict(seed=3, steps=2, num_frames=5, negative_scale=.7)
    prompt = "a [v1] woman in a park. she is [u1] dancing"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Advice)
        seen = scene.generate(prompt, **how).frames
    own = a.generate(prompt.replace("1]", "]"), guidance=None, **how).frames
    assert (seen-own).abs().max() < .05 < (scene.generate(places=[(0, .999, .001, 1), (0, 0, 1, 1)], **how).frames-own).abs().max()


def test_a_scene_is_sampled_in_its_own_way_unless_told_otherwise(zoo):
    scene, size = compose(zoo, "masked"), dict(seed=3, steps=2, num_frames=5)
    prompt = scene.concept().prompt.replace("park", "forest")
    usual, said = (scene.generate(prompt, **size, **how).frames for how in ({}, dict(negative_scale=.35, edit_guidance=0.)))
    assert torch.equal(usual, said)
    for other in (dict(negative_scale=.7), dict(edit_guidance=3.)): assert not torch.equal(usual, scene.generate(prompt, **size, **other).frames)
    assert compose(zoo, "sum").concept().info["sampling"] == next(iter(zoo.values())).info["sampling"] # theirs is as it was


def test_masked_halves(zoo):
    "A strength of the one on the left changes the left half more."
    scene = compose(zoo, "masked")
    how = dict(seed=1, steps=2, num_frames=5, guidance=1.)
    whole, without = scene.generate(**how).frames, scene.generate(appearance=[0, 1], motion=[0, 1], **how).frames
    left, right = (whole-without).abs().chunk(2, -1)
    assert left.mean() > 1.2*right.mean() > 0
    several = scene.generate([scene.prompt, "a [v2] man"], seed=[1, 1], **{k: v for k, v in how.items() if k != "seed"})
    torch.testing.assert_close(several[0].frames, whole, atol=2e-3, rtol=0)


def test_places_from_words(zoo):
    "Shares add up to one, and each is where its word is looked for."
    scene = compose(zoo, "masked")
    how = dict(seed=2, steps=4, num_frames=5)
    words = scene.generate(places="words", **how).frames
    assert (words-scene.generate(**how).frames).abs().mean() > 1e-3
    again = scene.generate([scene.prompt]*2, places="words", **how | dict(seed=[7, 2]))
    assert (again[1].frames-words).abs().max() < .05, "each sample finds its own places"
    with pytest.raises(UserError, match=r"has no \[v2\]"), warnings.catch_warnings():
        warnings.simplefilter("ignore", Advice)
        scene.generate("a [v1] woman. she is [u1] dancing", places="words", **how)
    with pytest.raises(UserError, match="has no places"): compose(zoo, "sum").generate(places="words", **how)


def test_places_from_words_can_be_said_at_once(zoo):
    how = dict(seed=2, steps=3, num_frames=5)
    said = compose(zoo, "masked", "words")
    words = said.generate(**how).frames
    assert torch.equal(words, compose(zoo, "masked").generate(places="words", **how).frames)
    boxes = said.generate(places=[(0, 0, .5, 1), (.5, 0, 1, 1)], **how).frames
    assert torch.equal(boxes, compose(zoo, "masked").generate(**how).frames) and not torch.equal(boxes, words), "what is said later counts"


def test_gain(zoo):
    "Updates in their places are stronger by a half; it multiplies what else is asked for."
    some = dict(seed=1, steps=2, num_frames=5)
    assert compose(zoo, "masked", gain=1.5).factors == tuple(1.5*f for f in compose(zoo, "masked").factors)
    assert compose(zoo).way == "masked" and compose(zoo, "sum").factors == (1., 1.) and compose(zoo, "sum", gain=2.).factors == (2., 2.)
    usual, by_hand = compose(zoo, "masked", gain=1.5).generate(**some), compose(zoo, "masked", gain=.5).generate(appearance=3, motion=3, **some)
    torch.testing.assert_close(usual.frames, by_hand.frames, atol=2e-3, rtol=0)
    assert (usual.frames - compose(zoo, "masked").generate(**some).frames).abs().mean() > 1e-3


def test_equal_norms(zoo):
    loud = dict(zoo, loud=next(iter(zoo.values())).at(3., 3.))
    scene = compose(loud, "masked")
    assert scene.factors[2] == pytest.approx(scene.factors[0]/3) and compose(loud, "sum").factors == (1., 1., 1.)


@pytest.mark.parametrize("call, says", [
    (lambda z: compose(z, "stack"), "has no 'stack'"), (lambda z: compose(list(z.values())[:1]), "at least two"), (lambda z: compose([]), "at least two"),
    (lambda z: compose([*z.values(), "waves"]), "no concept"), (lambda z: compose(z, "joint"), "learn_together"), (lambda z: compose(z, "masked", [(0, 0, 1, 1)]), "2 subjects and 1 places"),
    (lambda z: compose(z, "masked", [(0, 0, 1, 1), (0, 0, 64, 64)]), "from 0 to 1"), (lambda z: compose(z, "sum", "words"), "has no places"), (lambda z: compose(z, "joint", [(0, 0, 1, 1)]*2), "has no places"),
    (lambda z: compose(z, "masked", "left"), "places is 'left'"), (lambda z: compose(z, "masked", gain=-1), "gain=-1"), (lambda z: compose(z, gain=float("nan")), "gain=nan"), (lambda z: compose(z, "sum").generate(places=[(0, 0, 1, 1)]*2), "has no places"),
    (lambda z: compose(z).generate(appearance=[1]), "1 strengths of appearance"), (lambda z: compose(z).generate(motion=float("nan")), "motion=nan"),
    (lambda z: compose(z, "masked").concept().save("x"), "cannot be saved as one"), (lambda z: compose(z, "masked").concept().export("x", words="folded"), "cannot be saved as one"), (lambda z: compose([*z.values(), replace(next(iter(z.values())), info=next(iter(z.values())).info | dict(fingerprint="other"))]), "different bases"),
    (lambda z: compose([compose(z).concept(), *z.values()]), "of several subjects")])
def test_what_cannot_be_composed(zoo, call, says):
    with pytest.raises(UserError) as e: call(zoo)
    assert says in str(e.value)


def test_filmed_at_other_sizes(zoo):
    a, b = zoo.values()
    other = replace(b, info=b.info | dict(clip=b.info["clip"] | dict(fps=8.)))
    with pytest.warns(Advice, match="different sizes or frame rates"): compose([a, other])


@pytest.mark.parametrize("box, says", [((.5, 0, .5, 1), "is empty"), ((0, 1, 1, 0), "is empty"), ((0, 0, 1), "four numbers"), ("left", "four numbers"), ((0, 0, 1, float("nan")), "a place"), (None, "four numbers")])
def test_no_place(box, says):
    with pytest.raises(UserError) as e: checked_box(box)
    assert says in str(e.value)


# pictures and masks

def test_paste_keeps_what_is_outside(clips):
    canvas, (clip, _) = torch.full((5, 3, 32, 32), .9), clips
    same = paste(canvas, clip.frames, exact(clip), 15/32, 1.) # the walk covers columns 3 to 27
    torch.testing.assert_close(same, torch.where(exact(clip) > 0, clip.frames, canvas))
    small = paste(canvas, clip.frames, exact(clip), .5, .5)
    changed = (small != canvas).any(1).any(0)
    assert not changed[:18].any() and changed[20].any() and not changed[24:].any(), "half as high, feet where they were"
    for centre in (-1., 0., 1., 2.): assert paste(canvas, clip.frames, exact(clip), centre, 1.5).shape == canvas.shape


def test_cutouts_show_all_over_one_background(clips):
    some = cutouts(clips, SAID, [exact(c) for c in clips], n=6)
    again = cutouts(clips, SAID, [exact(c) for c in clips], n=6)
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(some.clips, again.clips)) and some.given == again.given
    for c, p in zip(some.clips, some.prompts):
        assert {round(float(v), 1) for v in c.frames[:, 0, 18].unique()} >= {.2, .5, .8} or c.frames.min() < .25 and c.frames.max() > .75
        assert set(p.placeholders) == {"[v1]", "[v2]", "[u1]", "[u2]"} and p.appearance.text.endswith(("in a park", "on a beach"))
    assert len({str(p) for p in some.prompts}) > 1 and not torch.equal(some.clips[0].frames, some.clips[1].frames)
    full = cutouts(clips, SAID, [exact(clips[0]), torch.ones(5, 1, 32, 32)], n=3)
    assert all(p.appearance.text.endswith("and [v2] ocean waves on a beach") for p in full.prompts), "who fills the picture is the background"


def test_stitched_say_who_is_where(clips):
    some = stitched(clips, SAID, n=8)
    assert {str(p.appearance) for p in some.prompts} == {"a [v1] man in a park on the left and [v2] ocean waves on a beach on the right", "[v2] ocean waves on a beach on the left and a [v1] man in a park on the right"}
    assert {str(p.appearance) for p in stitched(clips, SAID, n=8, sided=False).prompts} == {"a [v1] man in a park and [v2] ocean waves on a beach", "[v2] ocean waves on a beach and a [v1] man in a park"}


def test_the_recipe_says_which(dit, clips):
    assert composites_of(dit, clips, SAID, few(composites=0.)) is None
    assert composites_of(dit, clips, SAID, few()).given["kind"] == "stitched" and not composites_of(dit, clips, SAID, few()).given["sided"], "the tiny model has no words for sides"
    assert composites_of(dit, clips, SAID, few().with_(arrangement="cutouts")).given["kind"] == "cutouts"


def test_background(clips):
    found = background_mask(clips[0])
    assert found.error < 5e-3 and torch.allclose(background_of(clips[0], exact(clips[0])), torch.tensor(.5))
    overlap = ((found.mask > .5) & (exact(clips[0]) > .5)).sum()/((found.mask > .5) | (exact(clips[0]) > .5)).sum()
    assert overlap > .75 and "off by 0.3 of 255" in str(found)


def test_a_mask_from_a_file(clips, tmp_path):
    clip = clips[0]
    film = Clip(exact(clip).expand(-1, 3, -1, -1), clip.fps).save(tmp_path/"mask.mp4")
    assert ((read_mask(film, clip) > .5).float()-exact(clip)).abs().mean() < .03
    from PIL import Image
    (tmp_path/"frames").mkdir()
    for k, (x, m) in enumerate(zip(clip.frames, exact(clip))):
        rgba = (torch.cat([x, m])*255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(rgba, "RGBA").save(tmp_path/"frames"/f"{k:02d}.png")
    assert torch.equal(read_mask(tmp_path/"frames", clip), exact(clip))


def filmed(path, codec, form, rgba, fps=12):
    "Write frames (T, 4, H, W) in [0, 1] with their transparency."
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=fps, options={"lossless": "1"} if codec == "libvpx-vp9" else {})
        stream.height, stream.width, stream.pix_fmt = *rgba.shape[2:], form
        for x in rgba:
            picture = av.VideoFrame.from_ndarray((255*x).round().byte().permute(1, 2, 0).contiguous().numpy(), "rgba")
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name, codec, form", [("a.mov", "prores_ks", "yuva444p10le"), ("a.webm", "libvpx-vp9", "yuva420p"), ("a.mkv", "ffv1", "bgra")])
def test_a_film_that_is_transparent_is_its_own_mask(clips, tmp_path, name, codec, form):
    clip, long = clips[0], moving(.2, 7)
    mask = exact(long)
    film = filmed(tmp_path/name, codec, form, torch.cat([long.frames, mask], 1))
    for start in (0, 2): assert ((read_mask(film, clip, start=start/12) > .5).float() - mask[start:start+5]).abs().mean() < .01, "read as its clip is"
    mask = exact(clip)
    opaque = filmed(tmp_path/f"b{name[1:]}", codec, form, torch.cat([mask.expand(-1, 3, -1, -1), torch.ones(5, 1, 32, 32)], 1))
    assert ((read_mask(opaque, clip) > .5).float() - mask).abs().mean() < .03, "nothing is transparent: its brightness"


def test_an_animation_that_is_transparent_is_its_own_mask(clips, tmp_path):
    from PIL import Image
    rgba = (255*torch.cat([clips[0].frames, exact(clips[0])], 1)).byte().permute(0, 2, 3, 1).numpy()
    first, *others = map(Image.fromarray, rgba)
    first.save(tmp_path/"a.webp", save_all=True, append_images=others, duration=[83, 84, 83, 83, 84], lossless=True)
    assert torch.equal(read_mask(tmp_path/"a.webp", clips[0]), exact(clips[0]))


@pytest.mark.parametrize("call, says", [
    (lambda c: checked_mask(torch.zeros(5, 1, 32, 32), c), "is empty"), (lambda c: checked_mask(torch.zeros(5, 32, 32), c), "is empty"), (lambda c: checked_mask(torch.ones(5, 1, 16, 32), c), "the clip needs"),
    (lambda c: masks_of([c, c], [None]), "2 clips and 1 masks"), (lambda c: background_mask(Clip(torch.rand(5, 3, 16, 16))), "the camera moves"), (lambda c: background_mask(Clip(torch.zeros(5, 3, 16, 16))), "Nothing moves"),
    (lambda c: learn_together(list(zip([c, c], SAID)), "tiny", few().with_(arrangement="cutouts"), masks=[torch.zeros(5, 1, 32, 32), None]), "is empty")])
def test_no_mask(clips, call, says):
    with pytest.raises(UserError) as e: call(clips[0])
    assert says in str(e.value)


# the command

@pytest.fixture
def films(clips, tmp_path): return [str(c.save(tmp_path/f"{c.name}.mp4", scale=2)) for c in clips]

def run(*args): return CliRunner().invoke(app, ["train-together", *map(str, args)])


def test_the_command(films, tmp_path):
    text = TEMPLATE.replace("[dancer]", "[left]")
    (tmp_path/"scene.toml").write_text(text.replace("in a red shirt and purple trousers ", ""))
    some = ["--frames", 5, "--steps1", 1, "--steps2", 1, "--batch", 2, "--rank", 4, "--set", "both.prior=0", "--no-sheet", "-q"]
    out = run(*films, "--prompts", tmp_path/"scene.toml", "--out", tmp_path/"out", *some)
    assert out.exit_code == 0, out.output
    about = json.loads((tmp_path/"out"/"concept"/"concept.json").read_text())
    assert [s["name"] for s in about["subjects"]] == ["left", "waves"] and about["recipe"]["stage1"]["composites"] == .2
    again = run(*films, "--prompts", tmp_path/"scene.toml", "--out", tmp_path/"out", *some)
    assert again.exit_code == 0 and "finished already" in again.output


def test_the_command_learns_over_a_basis(films, tmp_path):
    (tmp_path/"scene.toml").write_text(TEMPLATE)
    words = films[:2]+["--prompts", tmp_path/"scene.toml", "--frames", 5, "--steps1", 1, "--steps2", 1, "--batch", 2, "--set", "both.prior=0", "--no-sheet", "-q"]
    out = run(*words, "--out", tmp_path/"out", "--basis", "zoo")
    assert out.exit_code == 0, out.output
    ours, member = Concept.load(tmp_path/"out"), load_zoo(names=["woman-00"])["woman-00"]
    assert ours.layers == member.layers and all(torch.equal(ours.weights[k], w) for k, w in member.weights.items() if k.endswith(".A"))
    assert "--basis takes a concept's folder, or the word zoo; " in run(*words, "--out", tmp_path/"other", "--basis", tmp_path/"nobody").output


def test_what_is_wished_of_the_memory_leaves_the_rest_to_the_plan(films, tmp_path, monkeypatch):
    from sas_nb import plan
    asked, runs = [], []
    def fitting(dit, shape, recipe, wishes, **rest):
        asked.append((shape, wishes))
        return Memory(tiled=True, **wishes)
    def learn(pairs, model, recipe, run, **given):
        runs.append(run)
        raise UserError("enough")
    monkeypatch.setattr(plan, "fitting", fitting)
    monkeypatch.setattr("sas_nb.composing.learn_together", learn)
    (tmp_path/"scene.toml").write_text(TEMPLATE)
    some = [*films, "--prompts", tmp_path/"scene.toml", "--out", tmp_path/"out", "--frames", 5, "-q"]
    for more in ([], ["--apart", "--weights", "int8", "--swapped", 2]): assert "enough" in run(*some, *more).output
    wished = dict(apart=True, weights="int8", swapped=2)
    assert asked == [((5, 64, 64), wished)] and [r.memory for r in runs] == [None, Memory(tiled=True, **wished)]


@pytest.mark.parametrize("text, says", [
    (None, "cannot be read"), ("[a", "is not TOML"), ("a = 1", "outside a table"), ("[a]\nlook = 'x'", "has no 'look'"), ("[a]\nappearance = 'a [v1] man'", "has no motion"),
    ("[a]\nappearance = 'a [v1] man'\nmotion = '[u1]'", "2 clips and 1 tables"),
    ("[a]\nappearance = 'a [v1] man'\nmotion = '[u1]'\nplace = [0, 0, 1, 1]\n[b]\nappearance = 'a [v2] man'\nmotion = '[u2]'", "[b] has no place"),
    ("[a]\nappearance = 'a [v1] man'\nmotion = '[u1]'\n[b]\nappearance = 'a woman'\nmotion = '[u2]'", "[b]: "), ("[a]\nappearance = 'a [v1] man'\nmotion = '[u1]'\n[b]\nappearance = 'a [v1] man'\nmotion = '[u1]'", "a word of two")])
def test_a_file_of_prompts_that_is_none(films, tmp_path, text, says):
    if text is not None: (tmp_path/"p.toml").write_text(text)
    out = run(*films, "--prompts", tmp_path/"p.toml", "--out", tmp_path/"out", "--frames", 5)
    assert out.exit_code == 1 and says in " ".join(out.output.split()) and not (tmp_path/"out").exists(), out.output


@pytest.mark.parametrize("text, says", [("[]", "holds no JSON object"), ("{", "is no JSON"), ('{"a": 1}', "outside a table")])
def test_a_file_of_prompts_in_json_that_is_none(films, tmp_path, text, says):
    (tmp_path/"p.json").write_text(text)
    out = run(*films, "--prompts", tmp_path/"p.json", "--out", tmp_path/"out", "--frames", 5)
    assert out.exit_code == 1 and says in " ".join(out.output.split()) and "should not have" not in out.output


def test_without_a_parser_of_toml_it_is_named(films, tmp_path, monkeypatch):
    def missing(name): raise ModuleNotFoundError(name)
    monkeypatch.setattr("sas_nb.scenes.import_module", missing)
    (tmp_path/"p.toml").write_text(TEMPLATE)
    assert "is not TOML" not in (said := run(*films, "--prompts", tmp_path/"p.toml", "--out", tmp_path/"out").output) and "pip install tomli" in said


def test_films_and_tables_go_together_in_their_order(films, tmp_path):
    (tmp_path/"scene.toml").write_text(TEMPLATE.replace("[dancer]", "[right]").replace("[waves]", "[left]"))
    out = run(*films, "--prompts", tmp_path/"scene.toml", "--out", tmp_path/"out", "--frames", 5, "--set", "both.batch=1.5")
    assert "[right] goes with" not in out.output, "a bad number is told first"
    out = run(*films, "--prompts", tmp_path/"scene.toml", "--out", tmp_path/"out", "--frames", 5, "--size", "7x7")
    said = " ".join(out.output.split())
    assert f"{films[0]}: [right] a [v1] woman" in said and "[right] goes with" in said and "left.mp4: change the order" in said


def test_the_template_is_a_file_of_prompts():
    out = CliRunner().invoke(app, ["train-together", "--template"])
    assert out.exit_code == 0 and out.output.strip() == TEMPLATE.strip()


def test_the_plan_of_several(films, monkeypatch):
    "As many clips as are learned together, with the steps of all; each is shown alone, so one clip says the shape."
    from sas_nb import plan
    asked = []
    def seen(model, shape, recipe, *rest, **more):
        asked.append((shape, recipe))
        raise UserError("enough")
    monkeypatch.setattr(plan, "plan", seen)
    for some in (films[:1], films): assert "enough" in CliRunner().invoke(app, ["plan", *some, "--frames", "5"]).output
    (one, alone), (several, both) = asked
    assert one == several and [s.steps for s in both.stages] == [2*s.steps for s in alone.stages]


def test_what_is_missing_names_the_template():
    out = CliRunner().invoke(app, ["train-together"])
    words = " ".join(out.output.replace("│", " ").split())
    assert out.exit_code == 2 and "Missing: CLIPS..., --prompts, --out. Begin with: " in words and "train-together --template." in words
    assert "template" not in CliRunner().invoke(app, ["train"]).output


def test_it_says_what_it_does_before_the_first_step(dit, clips, films, tmp_path, capsys):
    learn_together(list(zip(clips, SAID)), dit, few(1), Run())
    assert "encoding 2 clips of 5 frames and 12 pictures of all" in capsys.readouterr().out
    (tmp_path/"scene.toml").write_text(TEMPLATE.replace("in a red shirt and purple trousers ", ""))
    some = ["--prompts", tmp_path/"scene.toml", "--out", tmp_path/"out", "--frames", 5, "--steps1", 0, "--steps2", 0, "--rank", 4, "--set", "both.prior=0", "--no-sheet"]
    assert "Reading 2 clips." in run(*films, *some).output


# what was there before

def test_one_concept_is_one_subject(dit, clips):
    alone = learn(clips[0], ("a [v1] man in a park", "he is [u1] dancing"), dit, few(1, composites=.3), quiet())
    (subject,) = alone.subjects
    assert subject.placeholders == ("[v1]", "[u1]") and list(alone.tokens) == ["[v1]", "[u1]"] and "subjects" not in alone.info


# the command for concepts

PAIR = "zoo/woman-00", "zoo/man-02"

def put_together(*args): return CliRunner(env=dict(COLUMNS="200")).invoke(app, ["compose", *map(str, args), "--steps", "2", "--frames", "5", "--quiet"])


def test_the_command_shows_what_compose_generates(tmp_path):
    done = put_together(*PAIR, "--place", ".5,0,1,1", "--place", "0,0,.5,1", "--motion", 1, "--motion", .5, "--seed", 3, "--out", tmp_path/"two.mp4")
    assert done.exit_code == 0 and "a [v1] woman and a [v2] man" in done.output, done.output
    members = load_zoo(names=["woman-00", "man-02"])
    scene = compose(list(members.values()), "masked", [(.5, 0, 1, 1), (0, 0, .5, 1)])
    known = scene.generate(seed=3, steps=2, motion=[1, .5], num_frames=5, progress=False).save(tmp_path/"known.mp4")
    assert torch.equal(Clip.load(tmp_path/"two.mp4").frames, Clip.load(known).frames)


def test_the_command_takes_a_prompt_of_all(tmp_path):
    said = "a [v1] woman and a [v2] man in the snow. she is [u1] dancing, he is [u2] dancing"
    done = put_together(*PAIR, "--prompt", said, "--way", "sum", "--out", tmp_path/"snow.mp4")
    assert done.exit_code == 0 and "Prompt:" not in done.output and (tmp_path/"snow.mp4").exists(), done.output
    forgets = put_together(*PAIR, "--prompt", "a [v1] woman in the snow. she is [u1] dancing", "--out", tmp_path/"one.mp4")
    assert forgets.exit_code == 0 and "[v2]" in forgets.output, forgets.output


@pytest.mark.parametrize("args, says", [
    (PAIR[:1], "two concepts or more"), (("zoo", PAIR[0]), "is a zoo of 72 concepts"), (("zoo/nobody", PAIR[0]), "no 'nobody'"), ((*PAIR, "--way", "joint"), "--way has no 'joint'"),
    ((*PAIR, "--place", "middle"), "--place 'middle' is no place"), ((*PAIR, "--place", "left"), "2 subjects and 1 places"), ((*PAIR, "--place", "0,0,1,1"), "2 subjects and 1 places"), ((*PAIR, "--place", "0,0,1"), "2 subjects and 1 places"),
    ((*PAIR, "--place", "words", "--way", "sum"), "has no places"), ((*PAIR, "--motion", 1, "--motion", 2, "--motion", 3), "3 strengths of motion"), ((*PAIR, "--out", "two.txt"), "two.txt")])
def test_what_the_command_cannot_compose(args, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = put_together(*args)
    assert done.exit_code == 1 and says in " ".join(done.output.split()) and not list(tmp_path.iterdir()), done.output


def test_films_are_learned_together(films):
    done = put_together(*films)
    assert done.exit_code == 1 and "train-together" in " ".join(done.output.split())


def test_places_that_cannot_work_are_told(tmp_path):
    def said(*args): return " ".join(put_together(*args, "--out", tmp_path/"x.mp4").output.split())
    assert "woman-00 and man-02 share most of a place" in said(*PAIR, "--place", "left", "--place", "left")
    assert "to be seen in: woman-00, man-02, woman-01. Give each at least 38%" in said(*PAIR, "zoo/woman-01")
    assert "Warning" not in said(*PAIR, "--place", "right", "--place", "left")


def test_a_composition_is_saved_and_exported_where_it_is_one_concept(zoo, tmp_path):
    both = compose(zoo, "sum")
    assert Concept.load(both.save(tmp_path/"both")).subjects == both.subjects and (both.export(tmp_path/"lora"), (tmp_path/"lora"/"README.md").exists())[1]
    with pytest.raises(UserError, match="cannot be saved as one"): compose(zoo).save(tmp_path/"no")
    with pytest.raises(UserError, match="cannot be saved as one"): compose(zoo).export(tmp_path/"no")


def test_a_masked_scene_is_a_concept_like_any_other(zoo):
    "It shows itself, knows its size and prompt, and answers to its two scales."
    whole = compose(zoo).concept()
    summary = whole.summary()
    assert "norm" in summary["motion, B2 A"] and "[v1]" in whole._repr_html_() and all(summary.values())
    assert (summary["put together"], summary["subjects"]) == ("masked", ", ".join(zoo))
    some = dict(seed=1, steps=1, num_frames=5)
    own = whole.generate(**some)
    assert torch.equal(own.frames, compose(zoo).generate(**some).frames)
    assert torch.equal(whole.at(motion=.5).generate(**some).frames, compose(zoo).generate(**some, motion=.5).frames)
    with whole.attached() as adapter, torch.no_grad():
        assert adapter.regions is not None


def test_no_length_and_no_size_are_the_clips(zoo):
    "None is as if it were not there, alone and composed: a terminal always gives it."
    short = {name: replace(c, info=c.info | dict(clip=c.info["clip"] | dict(shape=[9, 3, 64, 64]))) for name, c in zoo.items()}
    given = dict(seed=1, steps=1, num_frames=None, height=None, negative=None)
    assert len(next(iter(short.values())).generate(**given)) == len(compose(short).generate(**given)) == 9


@pytest.mark.parametrize("call, says", [
    (lambda zoo: compose(zoo, None), "no 'None'"),
    (lambda zoo: compose(*zoo.values()), "as one list"),
    (lambda zoo: compose(zoo, places=5), "must be a box for each"),
    (lambda zoo: compose(zoo["woman-00"], "joint", gain=.25), "no equal and no gain"),
    (lambda zoo: learn_together([("a.mp4", ("a [v1] man", "he is [u1] dancing")), ("b.mp4", ("a [v2] man", "he is [u2] dancing"))], places="words"), "a box for each")])
def test_arguments_that_composing_cannot_take(zoo, call, says, monkeypatch):
    monkeypatch.setattr("sas_nb.composing.fit_clip", lambda dit, clip: clip)
    monkeypatch.setattr("sas_nb.composing.check_alike", lambda clips: None)
    with pytest.raises(UserError, match=says): call(zoo)


def test_one_person_twice_is_told(zoo):
    she = zoo["woman-00"]
    assert "one person twice" in " ".join(she.advice("a [v] woman and a [v] woman in a park. they are [u] dancing"))
    assert not she.advice(she.prompt)
