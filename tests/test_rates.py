"""Rates of weights and words: in lengths of a word, rising and falling as a stage or its base says; and what earlier versions wrote."""
import importlib.util, json
from dataclasses import replace
from pathlib import Path
import pytest, torch
import road
import wan_folder
from sas_nb.clip import Clip
from sas_nb.concept_file import updated
from sas_nb.data import Examples
from sas_nb.dit import VideoDiT
from sas_nb.files import UserError
from sas_nb.memory import Memory
from sas_nb.rates import share_of_rate, word_lengths
from sas_nb.recipe import earlier_stage, Recipe, WORD
from sas_nb.checkpoint import differences

PROMPT = "a [v] woman in a red shirt in a park"


@pytest.fixture(scope="module")
def dit(): return VideoDiT.load("tiny", device="cpu")

@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch): monkeypatch.setenv("SAS_NB_CACHE", str(tmp_path/"cache"))

def examples(dit, scale=1., n=2):
    return Examples(road.latents(dit, n, 1, seed=0), [scale*dit.embed(PROMPT)], [["[v]"]])

def trajectory(dit, scale, stage, **changes):
    "The word after each step, in lengths of its prompt's words; what the text encoder gives is `scale` times as long, and the model reads it as much louder."
    linear = dit.transformer.condition_embedder.text_embedder.linear_1
    before = linear.weight.data.clone()
    linear.weight.data.div_(scale)
    try:
        t = road.trainer(road.new(dit, 2), examples(dit, scale), road.stage(stage, **dict(batch=2, prior=0., steps=6) | changes))
        unit, rows = word_lengths(t.data)[0, 0], []
        for _ in range(6):
            t.train_step()
            rows.append(t.adapter.tokens[t.words[0]].detach().clone()[0]/unit)
        return torch.stack(rows), {k: p.detach().clone() for k, p in t.adapter.weights.items()}
    finally:
        linear.weight.data.copy_(before)
        road.off(dit)

@pytest.mark.parametrize("scale", [1/60, 7.])
@pytest.mark.parametrize("start", [0., .5])
def test_a_word_goes_the_same_way_however_long_words_are(dit, scale, start):
    how = dict(stage="appearance", token_lr=1.2e-4, token_init=start, lr=1e-3)
    (plain, weights), (scaled, others) = trajectory(dit, 1., **how), trajectory(dit, scale, **how)
    if not start: plain, scaled = plain[1:], scaled[1:] # Adam's first step is a sign, whatever the gradient
    torch.testing.assert_close(scaled, plain, atol=2e-6, rtol=2e-3)
    assert plain[-1].norm() > 1e-4 and (plain[-1]-plain[0]).abs().max() > 1e-4, "it went somewhere"
    for k in weights: assert (others[k]-weights[k]).norm() <= 2e-3*weights[k].norm(), k

def test_rates_of_words_are_in_lengths_of_a_word(dit):
    "They were chosen on the first tiny model, whose words were all of one length; those of today's are, too."
    for name, absolute in (("default", 1e-3), ("paper", 1e-5)):
        for s in Recipe.named(name).stages: assert s.token_lr*WORD == pytest.approx(absolute)
    lengths = []
    for prompt in (PROMPT, "a [v] man in a blue shirt and white trousers. he is [u] waving", *dit.defaults.prior[:3]):
        data = road.trainer(road.new(dit, 2), Examples(road.latents(dit, frames=1), [dit.embed(prompt)], [[]]), Recipe.default().stage1, None).data
        lengths.append(float(word_lengths(data)[0, 0]))
    assert max(lengths) < 1.05*min(lengths), lengths

@pytest.mark.parametrize("decay, last", [("constant", 1.), ("linear", 1/8), ("cosine", .5*(1+torch.cos(torch.tensor(7/8*torch.pi)).item()))])
def test_rates_rise_and_fall(dit, decay, last):
    t = road.trainer(road.new(dit, 2), examples(dit), road.stage(steps=10, batch=1, prior=0, lr=1e-2, token_lr=1e-3, warmup=2, decay=decay))
    rates = []
    for _ in range(10):
        t.train_step()
        rates.append([g["lr"] for g in t.optimizer.param_groups])
    assert rates[0] == [pytest.approx(5e-3), pytest.approx(5e-4)] and rates[1] == [pytest.approx(1e-2), pytest.approx(1e-3)]
    assert rates[-1][0] == pytest.approx(1e-2*last, rel=1e-5)

def test_a_stage_that_says_nothing_takes_its_bases(dit):
    own = dit.defaults
    try:
        dit.defaults = replace(own, lr=1e-2, lr_factor=.5, warmup=4, decay="linear")
        t = road.trainer(road.new(dit, 2), examples(dit), road.stage(steps=8, batch=1, prior=0, lr_factor=None))
        t.train_step()
        assert t.lr == 5e-3 and t.optimizer.param_groups[0]["lr"] == pytest.approx(5e-3/4)
        t = road.trainer(road.new(dit, 2), examples(dit), road.stage(steps=8, batch=1, prior=0, lr_factor=1., warmup=0, decay="constant"))
        t.train_step()
        assert t.optimizer.param_groups[0]["lr"] == 1e-2
    finally: dit.defaults = own
    assert [share_of_rate(k, 4, 0, "constant") for k in range(4)] == [1.]*4

@pytest.mark.parametrize("wrong", [dict(warmup=-1), dict(warmup=.5), dict(decay="square"), dict(experts=3), dict(lr_factor=0), dict(lr_factor=float("nan"))])
def test_rates_that_cannot_be_are_refused(wrong):
    with pytest.raises(UserError) as e: road.stage(**wrong)
    assert str(e.value).count("\n") == 0


# What earlier versions wrote

def earlier(stage): return {k: v for k, v in stage.items() if k not in ("warmup", "decay", "experts")} | dict(token_lr=stage["token_lr"]*WORD)

@pytest.mark.parametrize("name", ["default", "paper"])
def test_an_earlier_recipe_is_todays(tmp_path, name):
    recipe = Recipe.named(name)
    old = recipe.to_dict()
    for k in ("stage1", "stage2"): old[k] = earlier(old[k])
    (tmp_path/"old.json").write_text(json.dumps(old))
    new = Recipe.load(tmp_path/"old.json")
    assert new.stage1.token_lr == pytest.approx(recipe.stage1.token_lr) and replace(new.stage2, token_lr=recipe.stage2.token_lr) == recipe.stage2
    info = updated(dict(recipe=old, family="WanPipeline"))
    assert info["family"] == "Wan 2.1" and info["recipe"]["stage1"]["token_lr"] == pytest.approx(recipe.stage1.token_lr) and info["recipe"]["name"] == name
    assert updated(info) == info, "once only"
    assert not differences(dict(examples={}, run={}, recipe=earlier(recipe.to_dict()["stage1"]) | dict(token_lr=1e-3 if name == "default" else 1e-5)), dict(examples={}, run={}, recipe=recipe.to_dict()["stage1"]), {})
    assert earlier_stage(new.to_dict()["stage1"]) == new.to_dict()["stage1"]

def test_a_recipe_that_lacks_a_number_of_today_is_refused(tmp_path):
    given = Recipe.default().to_dict()
    del given["stage1"]["decay"]
    with pytest.raises(UserError, match="stage1.decay"): Recipe.from_dict(given)


# A first look at a base

@pytest.fixture
def first_run(tmp_path, capsys):
    "What the script says of five frames that grow lighter."
    spec = importlib.util.spec_from_file_location("first_run", Path(__file__).parents[1]/"scripts"/"first_run.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    frames = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).expand(5, -1, -1, -1)*torch.linspace(.5, 1, 5)[:, None, None, None]
    path = Clip(frames, 12.).save(tmp_path/"film.mp4")
    def said(*args):
        script.main([str(path), "--steps", "2", "--batch", "2", "--prior", "0", *args])
        return capsys.readouterr().out
    return said

def test_first_run_prints_what_to_look_at(first_run):
    said = first_run("--rates", ".5", "1", "2")
    assert said.count("x the recipe's rates") == 3 and said.count("appearance ") == said.count("motion ") == 3
    for words in ("lengths", "update/weights median", "loss by quarter", "own words are ", "Look whether"): assert words in said, words

@pytest.mark.parametrize("kind, memory", [("plain", dict(weights="int8", swapped=1)), ("experts", dict(weights="fp8"))])
def test_first_run_is_fitted_into_the_machine(first_run, tmp_path, monkeypatch, kind, memory):
    "As the plan says, in the size that was asked for: one sample in a pass, no encoder beside the transformer; a second look goes on."
    from sas_nb import plan, train
    sizes, passes = [], []
    sparing = Memory(apart=True, checkpointing=True, at_once=1, **memory)
    monkeypatch.setattr(plan, "fitting", lambda dit, shape, *args, **how: sizes.append(shape) or sparing)
    backward = train._backward
    def watched(trainer, batch, *how):
        passes.append((len(batch.clean), trainer.dit.loaded & {"vae", "text_encoder"}))
        return backward(trainer, batch, *how)
    monkeypatch.setattr(train, "_backward", watched)
    folder = wan_folder.write(tmp_path/"wan", kind)
    args = "--model", str(folder), "--rates", "1", "--frames", "5", "--size", "32x48", "--dtype", "fp32", "--out", str(tmp_path/"look"), "--appearance", "a [v] man", "--motion", "he is [u] dancing"
    said = first_run(*args)
    assert sizes == [(5, 32, 48)] and "To fit: one part in memory after another" in said and "untested on real weights" in said
    assert len(passes) == 2*2*2 and set(map(repr, passes)) == {"(1, set())"}
    assert first_run(*args).split("rates")[1] == said.split("rates")[1] and len(passes) == 2*2*2
