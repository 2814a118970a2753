"The benchmark: cases that say what they show, methods that train what they should, rows that survive a kill."
import json
import pytest, torch
from sas_nb.bench import COLUMNS, METHODS, Budget, case, cases, load_table, per_concept, rows, run, save_table, table
from sas_nb.clip import UserError
from sas_nb.dit import VideoDiT, fingerprint
from sas_nb.oracles import OracleNet, Oracles
from sas_nb.world import truth

TINY = Budget(2, 2, batch=2, rank=2)


pytestmark = pytest.mark.usefixtures("own_cache", "no_basis_left")

@pytest.fixture(scope="module")
def dit(): return VideoDiT.load("tiny", "cpu", torch.float32)

@pytest.fixture(scope="module")
def oracles(): torch.manual_seed(0); return Oracles(OracleNet())

def test_cases_are_the_same_every_time_and_all_different():
    assert [repr(c.spec) for c in cases(3, 2)] == [repr(c.spec) for c in cases(3, 2)]
    assert len({repr(c.spec) for c in cases(6, 4)}) == 10

@pytest.mark.parametrize("n, thing", [(0, False), (3, False), (0, True), (2, True), (1, True)])
def test_an_edit_changes_one_thing_and_the_prompt_says_it(dit, n, thing):
    c = case(n, thing)
    before = truth(c.spec, 2).attributes
    for name, spec in c.edits.items():
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
    made = {m: METHODS[m](dit, one, TINY) for m in ("textual inversion", "LoRA-1", "DreamMix-style", "two LoRAs", "overwriting B1", "two-stage", "ours")}
    assert norms(made["textual inversion"]) == [0, 0] and made["textual inversion"].tokens["[u]"].norm() > .01
    for m in ("LoRA-1", "DreamMix-style", "overwriting B1"): assert norms(made[m])[0] > 0 == norms(made[m])[1]
    for m in ("two LoRAs", "two-stage", "ours"): assert min(norms(made[m])) > 0
    assert {m: c.rank for m, c in made.items() if c.rank != 2} == {"LoRA-1": 1, "two LoRAs": 4}
    off = made["two-stage"].info["settings"]["identity"]
    assert off["prior"] == off["dropout"] == off["token_mask"] == 0 < made["ours"].info["settings"]["identity"]["prior"]

def test_a_pair_leaves_the_base_as_it_was_and_is_what_was_trained(dit):
    before = {k: v.clone() for k, v in dit.transformer.state_dict().items()}
    c = METHODS["two LoRAs"](dit, case(0), TINY)
    dit.basis and dit.basis.detach()
    for k, v in dit.transformer.state_dict().items(): assert torch.equal(v, before[k])
    for l in c.layers: # each half of the basis belongs to one part
        assert not c.weights[f"{l}.B1"][:, 2:].any() and not c.weights[f"{l}.B2"][:, :2].any()

def test_run_keeps_what_is_done(dit, oracles, tmp_path, monkeypatch):
    few, kwargs = [case(0)], dict(budget=TINY, sampling=dict(steps=1), progress=False)
    half = run(few, ["LoRA-1", "two-stage"], tmp_path, oracles, dit, part=(0, 2), **kwargs)
    assert {r["method"] for r in half} == {"LoRA-1"}
    monkeypatch.setitem(METHODS, "LoRA-1", lambda *a: pytest.fail("trained again"))
    both = run(few, ["LoRA-1", "two-stage"], tmp_path, oracles, dit, **kwargs)
    assert {r["method"] for r in both} == {"LoRA-1", "two-stage"} and len(both) == 16 and all(set(COLUMNS) == set(r) for r in both)
    save_table(both, tmp_path/"t.csv")
    for a, b in zip(both, load_table(tmp_path/"t.csv")):
        for k in COLUMNS: assert a[k] == (b[k] if isinstance(a[k], str) else pytest.approx(b[k], rel=1e-4, nan_ok=True))
    with pytest.raises(UserError, match="There is no method"): run(few, ["magic"], tmp_path, oracles, dit)

def test_a_perfect_answer_has_no_error(oracles):
    for c in (case(0), case(1, True)):
        class Perfect:
            def generate(self, prompts, seeds): return [c.clip(s) for s in [c.spec, *c.edits.values()]]
        made = rows(Perfect(), c, oracles)
        assert all(r["mse"] == r["mse_subject"] == 0 for r in made) and [r["edit"] for r in made] == ["none", *c.edits]
        assert (made[0]["identity"] == pytest.approx(1, abs=1e-4)) != (made[0]["identity"] != made[0]["identity"])

def test_table_pairs_concepts():
    row = lambda m, c, v, e="scene": dict.fromkeys(COLUMNS, v) | dict(concept=c, method=m, edit=e, seed=0)
    some = [row(m, c, i + (m == "b")) for m in ("ours", "b") for i, c in enumerate("xyz")]
    words = table(some)
    assert "+1 [+1, +1]" in words and words.splitlines()[2].startswith("| ours | 1 |")
    assert per_concept(some + [row("b", "x", float("nan"))], "mse", "b") == {"x": 1., "y": 2., "z": 3.}
    assert "no difference found" in table([row("ours", c, i) for i, c in enumerate("xyz")] + [row("b", c, v) for c, v in zip("xyz", (1, 0, 2.2))])
