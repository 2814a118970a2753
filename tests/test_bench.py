"The benchmark: cases that say what they show, methods that train what they should, rows that survive a kill."
import json, math, os, subprocess, sys
from dataclasses import asdict, replace
import pytest, torch, typer
from sas_nb.dit import VideoDiT
from sas_nb.files import UserError
from sas_nb.lab import bench, methods as methods_module
from sas_nb.lab.bench import (answer_loss, answers, estimate, leakage, LEAKS, losses, measured, per_concept,
                              row_files, rows, run, table, two_parts, verdict, work)
from sas_nb.lab.cases import case, cases, in_words, nearest
from sas_nb.lab.draw import truth
from sas_nb.lab.methods import ABLATIONS, BRIEF, Budget, METHODS, REGULARISERS, RIVAL, set_and_sequence
from sas_nb.lab.oracle_nets import OracleNet
from sas_nb.lab.oracles import Oracles
from sas_nb.lab.rows import COLUMNS, complete, load_table, restore, save_table, SLIDERS
from sas_nb.lab.specs import edit
from sas_nb.learning import learn
from sas_nb.recipe import Recipe, Run, Sampling
from sas_nb.train import Trainer

TINY = Budget(2, 2, batch=2, rank=2)


pytestmark = pytest.mark.usefixtures("own_cache")

@pytest.fixture(scope="module")
def dit():
    "The model, with priors and samples of a single step."
    made = VideoDiT.load("tiny", "cpu", torch.float32)
    made.defaults = replace(made.defaults, steps=1)
    return made

@pytest.fixture(scope="module")
def oracles(): torch.manual_seed(0); return Oracles(OracleNet())

def test_cases_are_the_same_every_time_and_all_different():
    assert [repr(c.spec) for c in cases(3, 2)] == [repr(c.spec) for c in cases(3, 2)]
    assert len({repr(c.spec) for c in cases(6, 4)}) == 10

def test_edits_in_words_leave_out_what_no_prompt_can_ask_for(dit, oracles):
    c, b = case(0), Budget()
    assert set(c.edits) - set(in_words(c).edits) == {"strength"} and in_words(c).spec is c.spec and in_words(case(0, True)).edits == case(0, True).edits
    name = lambda c: bench._key(c, "ours", METHODS["ours"], b, dit, oracles, None, measured)
    assert name(c) == name(case(0)) != name(in_words(c))

def test_a_recipe_reads_the_same_in_every_process():
    code = "from sas_nb.lab.methods import REGULARISERS; print({k: m.facts for k, m in REGULARISERS.items()})"
    said = {subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout for seed in "12"}
    assert len(said) == 1

@pytest.mark.parametrize("n, thing", [(0, False), (3, False), (0, True), (2, True), (1, True)])
def test_an_edit_changes_one_thing_and_the_prompt_says_it(dit, n, thing):
    c = case(n, thing)
    before = truth(c.spec, 2).attributes
    assert ("strength" in c.edits) == (not thing)
    for name, spec in c.edits.items():
        if name == "strength": continue
        after = truth(spec, 2).attributes
        flat = lambda a: {k: v for k, v in a.items() if k != "subjects"} | a["subjects"][0]
        assert [k for k in flat(before) if flat(before)[k] != flat(after)[k]] == [name]
        dit.check_words(c.prompt(spec))
        assert c.prompt(spec) != c.prompt()
    appearance, motion = c.prompts()
    assert appearance.count("[v]") == motion.count("[u]") == 1

def norms(c): return [sum(n[i] for n in c.norms().values()) for i in (0, 1)]

def test_methods_train_what_they_should(dit):
    one = case(0)
    made = {m: METHODS[m](dit, one, TINY) for m in ("textual inversion", "LoRA-1", "DreamMix-style", "two LoRAs", "overwriting B1", "two-stage", "ours", "paper's recipe")}
    assert norms(made["textual inversion"]) == [0, 0] and made["textual inversion"].tokens["[u]"].norm() > .01
    for m in ("LoRA-1", "DreamMix-style", "overwriting B1"): assert norms(made[m])[0] > 0 == norms(made[m])[1]
    for m in ("two LoRAs", "two-stage", "ours", "paper's recipe"): assert min(norms(made[m])) > 0
    assert {m for m, c in made.items() if two_parts(c)} == {"two LoRAs", "two-stage", "ours", "paper's recipe"}
    assert {m: c.rank for m, c in made.items() if c.rank != 2} == {"LoRA-1": 1, "two LoRAs": 4}
    off = made["two-stage"].info["recipe"]["stage1"]
    paper = made["paper's recipe"].info["recipe"]
    assert off["prior"] == off["dropout"] == off["token_mask"] == 0 < paper["stage1"]["prior"]
    assert (paper["stage1"]["dropout"], paper["stage2"]["dropout"], paper["stage2"]["lr_factor"]) == (.8, .5, 1.)

def test_a_shared_first_stage_changes_nothing(dit, monkeypatch):
    "Two-stage after overwriting, which trained the first stage, is what `learn` makes from nothing."
    one, trained = case(0), []
    methods_module.first_stage.forget()
    first = methods_module.frame_set
    monkeypatch.setattr(methods_module, "frame_set", lambda *a, **k: trained.append(1) or first(*a, **k))
    for m in ("overwriting B1", "two LoRAs"): METHODS[m](dit, one, TINY)
    made = METHODS["two-stage"](dit, one, TINY)
    assert len(trained) == 1
    alone = learn(one.clip(), one.prompts(), dit, TINY.within(RIVAL), Run(progress=False))
    assert all(torch.equal(made.weights[k], alone.weights[k]) for k in alone.weights) and all(torch.equal(made.tokens[k], alone.tokens[k]) for k in alone.tokens)
    METHODS["two-stage"](dit, case(1), TINY); assert len(trained) == 2

def test_ablations_change_what_they_say(dit):
    one, b = case(0), Budget(2, 4, batch=1, rank=2)
    made = {n: ABLATIONS[n](dit, one, b) for n in ("rank 1", "dropout 0.5, not rescaled", "feed-forward only", "0.5 x the steps")}
    assert made["rank 1"].rank == 1 and {l.split(".")[2] for l in made["feed-forward only"].layers} == {"ffn"}
    assert [made["0.5 x the steps"].info["recipe"][s]["steps"] for s in ("stage1", "stage2")] == [1, 2]
    said = made["dropout 0.5, not rescaled"].info["recipe"]["stage2"]
    assert (said["dropout"], said["rescale"]) == (.5, False)
    one_stage_changed = set_and_sequence(stage2=dict(steps=1, dropout=.7))(dit, one, b).info["recipe"]
    assert [(s["steps"], s["dropout"]) for s in (one_stage_changed["stage1"], one_stage_changed["stage2"])] == [(2, .2), (1, .7)]
    assert [m for m in METHODS if m not in BRIEF] == ["LoRA-8, our guidance", "ours, no pairs"] and len(REGULARISERS) == 7
    layers = [set(set_and_sequence(layers=methods_module._LAYERS[n])(dit, one, Budget(0, 0, batch=1, rank=1)).layers) for n in methods_module._LAYERS]
    assert not set.intersection(*layers) and set.union(*layers) == set(made["rank 1"].layers)

def test_work_is_the_steps_that_are_taken(dit, monkeypatch):
    methods, taken, b = ["ours", "LoRA-1", "DreamMix-style", "two LoRAs", "overwriting B1", "two-stage"], [], Budget(2, 4, batch=1, rank=2)
    step = methods_module.Trainer.train_step
    monkeypatch.setattr(methods_module.Trainer, "train_step", lambda self: taken.append(self.data.concepts[0].latents.shape[2] == 1) or step(self))
    for method in (methods_module.first_stage, METHODS["ours"].train): method.forget()
    for m in methods: METHODS[m](dit, case(0), b)
    images, clips = work(methods, b)
    assert len(taken) == images + clips and abs(sum(taken) - images) <= b.steps1 + b.steps2 # DreamMix's share is drawn
    assert work([m for m in methods if m != "DreamMix-style"], b) == (2, 6+6+4+4+4) # ours shows stills, which cost as much as clips

def test_an_estimate_times_training_and_not_its_memory(dit, oracles, monkeypatch):
    taken = []
    step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda self: taken.append(self.stage.name) or step(self))
    for known in (["two-stage", "LoRA-1"], list(ABLATIONS)[:2]):
        taken.clear()
        assert estimate(dit, known, Budget(2, 2, batch=1, rank=1), 1, oracles, steps=2) > 0
        assert len(taken) == 2*(2+2) # images and clips, once to warm up and once from scratch

def test_a_pair_leaves_the_base_as_it_was_and_is_what_was_trained(dit):
    before = {k: v.clone() for k, v in dit.transformer.state_dict().items()}
    c = METHODS["two LoRAs"](dit, case(0), TINY)
    for k, v in dit.transformer.state_dict().items(): assert torch.equal(v, before[k])
    for l in c.layers: # each half of the basis belongs to one part
        assert not c.weights[f"{l}.B1"][:, 2:].any() and not c.weights[f"{l}.B2"][:, :2].any()

def test_run_keeps_what_is_done(dit, oracles, tmp_path, monkeypatch):
    few, kwargs = [case(0)], dict(budget=TINY, sampling=dict(steps=1), progress=False)
    run(few, ["LoRA-1"], tmp_path, oracles, dit, **kwargs)
    assert not run(few, ["LoRA-1", "two-stage"], tmp_path/"none", oracles, dit, part=(1, 2), **kwargs)
    def again(*a): pytest.fail("trained again")
    again.facts = METHODS["LoRA-1"].facts
    monkeypatch.setitem(METHODS, "LoRA-1", again)
    both = run(few, ["LoRA-1", "two-stage"], tmp_path, oracles, dit, **kwargs)
    assert {r["method"] for r in both} == {"LoRA-1", "two-stage"} and len(both) == 18 and all(set(COLUMNS) == set(r) for r in both)
    save_table(both, tmp_path/"t.csv")
    for a, b in zip(both, load_table(tmp_path/"t.csv")):
        for k in COLUMNS: assert a[k] == (b[k] if isinstance(a[k], str) else pytest.approx(b[k], rel=1e-4, nan_ok=True))
    paths = row_files(few, ["LoRA-1", "two-stage"], tmp_path/"elsewhere", oracles, dit, TINY, dict(steps=1))
    restore(load_table(tmp_path/"t.csv"), {p.name: pair for pair, p in paths.items()}, tmp_path/"elsewhere")
    monkeypatch.setitem(METHODS, "two-stage", lambda *a: pytest.fail("trained again"))
    restored = run(few, ["LoRA-1", "two-stage"], tmp_path/"elsewhere", oracles, dit, **kwargs)
    assert [(r["method"], r["edit"]) for r in restored] == [(r["method"], r["edit"]) for r in both]
    with pytest.raises(UserError, match="There is no method"): run(few, ["magic"], tmp_path, oracles, dit)

def test_run_goes_by_concept_and_stops_by_the_clock(dit, oracles, tmp_path):
    asked = []
    def method(dit, c, b): asked.append(c.name); return METHODS["textual inversion"](dit, c, Budget(0, 0, batch=1, rank=1))
    kwargs = dict(out=tmp_path, oracles=oracles, dit=dit, budget=TINY, measure=losses, progress=False)
    assert run(cases(2, 0), dict(a=method, b=method), minutes=0., **kwargs) == [] == asked
    made = run(cases(2, 0), dict(a=method, b=method), **kwargs)
    assert asked == ["person-0"]*2 + ["person-1"]*2 and all(set(r) == set(COLUMNS) for r in made)
    assert {r["edit"] for r in made} == {"none", *case(0).edits} - {"strength"} and all(r["loss"] > 0 for r in made)

def test_complete_drops_concepts_that_lack_a_method():
    some = [dict(concept=c, method=m) for c, m in (("x", "a"), ("x", "b"), ("y", "a"))]
    assert complete(some) == some[:2] and complete([]) == []

class Perfect:
    "Answers with exact renders; its sliders do what they say, or with `leaks` each does the other's work as well."
    def __init__(self, case, appearance=1., motion=1., leaks=False): self.case, self.a, self.m, self.leaks = case, appearance, motion, leaks
    def norms(self): return dict(layer=(1., 1.))
    def at(self, appearance=1., motion=1.): return Perfect(self.case, appearance, motion, self.leaks)
    def one(self, prompt, strength):
        spec = next(s for s in [self.case.spec, *self.case.edits.values()] if self.case.prompt(s) == prompt)
        if self.m*strength != 1: spec = edit(spec, strength=self.m*strength)
        return self.case.clip(spec)
    def generate(self, prompt, seed, motion_guidance=1.): return [self.one(p, motion_guidance) for p in prompt] if isinstance(prompt, list) else self.one(prompt, motion_guidance)

def test_a_perfect_answer_has_no_error():
    judges = Oracles.load()
    for c in (case(0), case(1, True)):
        made = {r["edit"]: r for r in rows(Perfect(c), c, judges)}
        assert all(r["mse"] == r["mse_subject"] == 0 and r["ssim"] > .9999 for r in made.values()) and list(made) == ["none", *c.edits]
        person = made["none"]["identity"] == made["none"]["identity"]
        assert person == ("strength" in c.edits)
        if person: assert made["none"]["identity"] == pytest.approx(1, abs=1e-4) and made["strength"]["made"] == 1 and .7 < made["none"]["moved"] < 1.4

def test_a_sample_is_held_against_what_its_words_allow():
    c = case(0)
    right = edit(c.spec, camera="pan")
    left, elsewhere = replace(right, drift=-.9), replace(c.edits["scene"], backdrop=.875)
    show = lambda spec: (c.clip(spec).frames + .05*torch.randn(17, 3, 64, 64, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert nearest("camera", right, show(left), c.fps) == left and nearest("camera", right, show(right), c.fps) == right
    assert nearest("scene", c.edits["scene"], show(elsewhere), c.fps) == elsewhere
    zoom = edit(c.spec, camera="zoom")
    assert nearest("camera", zoom, show(left), c.fps) == zoom and nearest("none", right, show(left), c.fps) == right, "nothing is open there"
    class Left(Perfect):
        def one(self, prompt, strength): return c.clip(left if prompt == c.prompt(right) else c.spec)
    asked = replace(c, edits=dict(camera=right))
    panned = rows(Left(asked), asked, Oracles.load())[1]
    assert panned["motion"] > .99 and panned["mse"] == 0 and panned["pose"] > .9 and panned["made"]

def test_what_differs_in_sampling_alone_is_trained_once(dit, monkeypatch):
    trained, b = [], Budget(1, 1, batch=1, rank=1)
    monkeypatch.setattr(methods_module, "learn", lambda *a, **k: trained.append(a) or learn(*a, **k))
    guided, plain = (METHODS[m](dit, case(0), b) for m in ("ours", "ours, plain guidance"))
    assert len(trained) == 1 and guided.weights is plain.weights
    assert guided.info["sampling"] == asdict(Recipe.default().sampling) != plain.info["sampling"] == asdict(Sampling())
    assert repr(METHODS["ours"].facts) != repr(METHODS["ours, plain guidance"].facts)
    METHODS["ours"](dit, case(1), b); REGULARISERS["without prior"](dit, case(1), b)
    assert len(trained) == 3
    lora = METHODS["LoRA-8, our guidance"](dit, case(0), b)
    assert lora.info["sampling"] == guided.info["sampling"] and METHODS["LoRA-8 (DB-LoRA)"](dit, case(0), b).weights is lora.weights

def test_strength_is_asked_for_where_motion_is_apart(oracles):
    c = case(0)
    class OnePart(Perfect):
        def norms(self): return dict(layer=(1., 0.))
    assert torch.equal(answers(Perfect(c), c)["strength"], c.clip(c.edits["strength"]).frames)
    assert torch.equal(answers(OnePart(c), c)["strength"], c.clip().frames)
    judges = Oracles.load()
    assert {r["edit"]: r for r in rows(OnePart(c), c, judges)}["strength"]["made"] == 0

class Judge:
    "Reads identity off the first pixel, and joints off the second."
    def identity(self, x): return torch.stack([torch.tensor([1., 0.]) if f[0, 0, 0, 0] > .5 else torch.tensor([0., 1.]) for f in x])
    def joints(self, x): return torch.stack([self.still if f[0, 0, 0, 1] < .5 else self.dance for f in x])
    dance, still = torch.randn(9, 15, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(9, 15, 2)

class Sliders:
    "A body in one pixel and a dance in another, and what leaks between them."
    def __init__(self, leaks, a=1., m=1.): self.leaks, self.a, self.m = leaks, a, m
    def norms(self): return dict(layer=(1., 1.))
    def at(self, appearance=1., motion=1.): return Sliders(self.leaks, appearance, motion)
    def generate(self, prompt, seed):
        x = torch.zeros(9, 3, 4, 4)
        x[:, 0, 0, 0], x[:, 0, 0, 1] = (min(self.a, self.m), min(self.a, self.m)) if self.leaks else (self.a, self.m)
        return type("C", (), dict(frames=x))

def test_leakage_is_what_the_wrong_slider_moves():
    c = case(0)
    assert leakage(Sliders(False), c, Judge()) == dict(identity_leak=0., motion_leak=0., identity_by_appearance=1., identity_by_motion=0., motion_by_appearance=0., motion_by_motion=1.)
    assert leakage(Sliders(True), c, Judge()) == pytest.approx(dict(identity_leak=100., motion_leak=100.) | dict.fromkeys(SLIDERS, 1.))
    for nothing in (leakage(Sliders(True), case(0, True), Judge()), leakage(type("S", (Sliders,), dict(norms=lambda self: dict(l=(1., 0.))))(True), c, Judge())):
        assert all(math.isnan(v) for v in nothing.values())

def test_the_loss_of_an_answer_is_flow_matching_on_it(dit):
    c = case(0)
    learned = METHODS["LoRA-1"](dit, c, Budget(0, 0, batch=1, rank=1))
    before = answer_loss(learned, c, draws=2)
    assert set(before) == {"none", *c.edits} - {"strength"} and before == answer_loss(learned, c, draws=2)
    x0 = dit.encode_once(c.clip(c.edits["scene"]).frames[None]); noise = torch.randn(2, *x0.shape[1:], generator=torch.Generator().manual_seed(0))
    by_hand = []
    for n, t in zip(noise, (.25, .75)):
        with torch.no_grad(): v = dit.velocity((1-t)*x0 + t*n[None], torch.tensor([t]), dit.embed(c.prompt(c.edits["scene"])))
        by_hand.append(((v - (n[None] - x0))**2).mean())
    assert before["scene"] == pytest.approx(float(sum(by_hand)/2), rel=1e-4)
    trained = METHODS["LoRA-1"](dit, c, Budget(0, 8, batch=2, rank=2, lr=1e-2))
    assert answer_loss(trained, c, draws=2)["none"] < before["none"]

def test_table_pairs_concepts():
    row = lambda m, c, v, e="scene": dict.fromkeys(COLUMNS, v) | dict(concept=c, method=m, edit=e, seed=0)
    some = [row(m, c, i + (m == "b")) for m in ("ours", "b") for i, c in enumerate("xyz")]
    words = table(some)
    assert "+1 [+1, +1]" in words and words.splitlines()[2].startswith("| ours | 1 |")
    assert per_concept(some + [row("b", "x", float("nan"))], "mse", "b") == {"x": 1., "y": 2., "z": 3.}
    same = [row("ours", c, i) for i, c in enumerate("xyz")] + [row("b", c, v) for c, v in zip("xyz", (1, 0, 2.2))]
    assert "no difference found" in table(same) and "identity_leak" in table(same, columns=LEAKS)

def test_a_verdict_says_no_more_than_its_interval():
    row = lambda m, c, v, k="adherence": dict.fromkeys(COLUMNS, 0.) | {"concept": c, "method": m, "edit": "scene", k: v}
    def said(mine, theirs, k="adherence"): return verdict([row("ours", c, v, k) for c, v in zip("xyz", mine)] + [row("b", c, v, k) for c, v in zip("xyz", theirs)], k, "b")
    assert "ours is better than b in adherence: +1, " in said((2, 3, 4), (1, 2, 3)) and "worse" in said((1, 2, 3), (2, 3, 4))
    assert "worse" in said((2, 3, 4), (1, 2, 3), "mse") and "better" in said((1, 2, 3), (2, 3, 4), "mse")
    assert "no difference found over 3 concepts" in said((1, 2, 3), (2, 1, 3.1)) and "too few" in said((1, 2), (2, 3))


# the scripts

@pytest.fixture
def script(monkeypatch, tmp_path, dit):
    "Run a script's main on this file's model, from an empty folder."
    from typer.testing import CliRunner
    monkeypatch.chdir(tmp_path); monkeypatch.setattr(VideoDiT, "load", lambda name, **how: dit)
    def call(main, *args):
        app = typer.Typer(); app.command()(main)
        return CliRunner().invoke(app, [str(a) for a in (*args, "--out", tmp_path)], catch_exceptions=False)
    return call

def test_the_table_script_rehearsed(tmp_path, script):
    import table as table_script
    few = ("--people", 1, "--things", 0, "--steps1", 1, "--steps2", 1, "--batch", 1, "--sampling-steps", 1)
    r = script(table_script.main, "--method", "ours", "--method", "two-stage", *few, "--keep")
    assert r.exit_code == 0 and "1 concepts" in r.output
    kept = load_table(tmp_path/"data/bench/table.csv")
    assert [x["method"] for x in kept] == ["ours"]*9 + ["two-stage"]*9
    about = json.loads((tmp_path/"data/bench/table.json").read_text())
    assert about["budget"]["steps2"] == 1 and about["concepts"] == ["person-0"] and [about["recipes"]["paper"][s]["steps"] for s in ("stage1", "stage2")] == [600, 900]
    assert (tmp_path/"table.md").read_text().startswith("| method | mse") and table_script.SETS["table"]["method"] == BRIEF
    assert "no method 'rank 4'" in script(table_script.main, "--method", "rank 4").output
    r = script(table_script.main, "--ablation", "--method", "rank 4", *few, "--minutes", 0)
    assert r.exit_code == 0 and "No concept has every method yet" in (tmp_path/"table.md").read_text()

def test_the_tuning_script_stays_off_the_benchmarks_people(tmp_path, script):
    import tune
    assert tune.FIRST >= 24
    r = script(tune.main, "--people", 1, "--only", "LoRA-8, rate x 2", "--only", "ours, no dropout", "--steps1", 1, "--steps2", 1, "--batch", 1)
    assert r.exit_code == 0 and {x["concept"] for x in load_table(tmp_path/"rows.csv")} == {"person-100"}
    assert "no variant" in script(tune.main, "--only", "x").output
