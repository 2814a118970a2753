"A zoo: stored coefficients are as near as eight bits allow, the truth travels along, a stopped run goes on, and sliders are measured by oracles that can say no."
import csv, json, signal
from dataclasses import asdict, replace
import numpy as np, pytest, torch, typer
from sas_nb.adapter import SharedLoRA
from sas_nb.atlas.geometry import Atlas
from sas_nb.atlas.members import synthetic
from sas_nb.atlas.places import load_zoo, unpacked
from sas_nb.concept import Concept
from sas_nb.dit import VideoDiT
from sas_nb.explore import sights
from sas_nb.files import UserError
from sas_nb.lab.rows import save_table
from sas_nb.lab.cases import case
from sas_nb.lab.draw import render
from sas_nb.lab.oracles import Oracles
from sas_nb.lab.specs import edit, random_thing
from sas_nb.lab.world import heldout_spec, identity_of, Person, Spec
from sas_nb.lab.zoo import packed, save_zoo, spec_of
from sas_nb.recipe import Recipe
from sas_nb.train import Trainer
import bench_fleet, mixtures, parts, response, zoo

pytestmark = pytest.mark.usefixtures("own_cache")

@pytest.fixture
def population():
    made, _ = synthetic(5, rank=3)
    for i, c in enumerate(made): c.info["truth"] = dict(number=i, thing=False, spec=zoo.known(i, case(i))["spec"])
    return {f"one-{i}": c for i, c in enumerate(made)}

@pytest.fixture(scope="module")
def dit(): return VideoDiT.load("tiny", "cpu", torch.float32)

@pytest.fixture(scope="module")
def oracles(): return Oracles.load(device="cpu")


def test_eight_bits_are_as_near_as_they_can_be():
    B = torch.randn(3, 40, 5)*torch.tensor([1e-6, 1e-3, 1., 30., 0.])
    q, scale = packed(B)
    assert q.dtype == torch.int8 and scale.shape == (3, 5)
    assert ((unpacked(q, scale)-B).abs() <= scale[:, None]*.5*(1+1e-5)).all()
    assert torch.equal(unpacked(q, scale)[..., 4], torch.zeros(3, 40))
    assert torch.equal(*(unpacked(*packed(x)) for x in (unpacked(q, scale), B))) # storing twice changes nothing more

def test_a_zoo_comes_back(population, tmp_path):
    back = load_zoo(save_zoo(population, tmp_path/"zoo", shard=2))
    assert list(back) == list(population) and len(list((tmp_path/"zoo").glob("concepts-*"))) == 3
    for n, c in population.items():
        assert back[n].info == json.loads(json.dumps(c.info)) and torch.equal(back[n].tokens["[v]"], c.tokens["[v]"])
        for k, w in c.weights.items():
            assert back[n].weights[k].is_contiguous()
            if k.endswith(".A"): assert torch.equal(back[n].weights[k], w)
            else: assert 0 < float((back[n].weights[k]-w).norm()/w.norm()) < .01
    atlas = Atlas(back)
    assert atlas.one_basis and np.allclose(atlas.pca().explained_variance_, Atlas(population).pca().explained_variance_, rtol=.01)
    assert list(load_zoo(tmp_path/"zoo", ["one-3", "one-0"])) == ["one-3", "one-0"]
    assert torch.equal(Concept.load(back["one-1"].save(tmp_path/"one")).weights["blocks.0.ffn.net.2.B2"], back["one-1"].weights["blocks.0.ffn.net.2.B2"])

def test_members_do_not_share_memory(population, tmp_path):
    back = load_zoo(save_zoo(population, tmp_path/"zoo"))
    k = "blocks.0.ffn.net.2.B1"
    before = back["one-1"].weights[k].clone()
    back["one-0"].weights[k].fill_(7.)
    assert torch.equal(back["one-1"].weights[k], before)

@pytest.mark.parametrize("spec", [heldout_spec(3), Spec((random_thing(np.random.default_rng(0)),), light="night"), Spec((heldout_spec(1).subjects[0], random_thing(np.random.default_rng(1))))])
def test_the_truth_comes_back_to_the_last_digit(population, spec, tmp_path):
    population["one-0"].info["truth"]["spec"] = asdict(spec)
    assert spec_of(load_zoo(save_zoo(population, tmp_path/"zoo"))["one-0"]) == spec

def test_a_figure_of_an_earlier_version_is_told(population):
    concept = population["one-0"]
    concept.info["truth"]["spec"] = asdict(edit(heldout_spec(3), identity=(.5,)*12))
    with pytest.raises(UserError, match="figure is one of an earlier version"): spec_of(concept)
    assert sights._drawn(concept.info | dict(clip=dict(fps=12.))) is None, "the page does without its film"

def test_what_is_no_zoo(population, tmp_path):
    other, _ = synthetic(1, rank=3, seed=9)
    with pytest.raises(UserError, match="do not share a basis"): save_zoo(population | dict(odd=other[0]), tmp_path/"a")
    with pytest.raises(UserError, match="reweighted"): save_zoo(population | dict(odd=population["one-0"].at(.5)), tmp_path/"a")
    assert not (tmp_path/"a").exists()
    folder = save_zoo(population, tmp_path/"b")
    with pytest.raises(UserError, match="no 'nobody'"): load_zoo(folder, ["nobody"])
    with pytest.raises(UserError, match="no 'one3' in the zoo .*: try one-3, .* or see all 5 names with Atlas"): load_zoo(folder, ["one3"])
    with pytest.raises(UserError, match="holds no zoo"): load_zoo(tmp_path)
    with pytest.raises(UserError, match="Nothing is known"): spec_of(other[0])
    file = folder/"concepts-00.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(UserError, match="damaged"): load_zoo(folder)


def test_who_is_in_the_zoo():
    few, more = zoo.cast(3, 2), zoo.cast(5, 3)
    assert len(more) == 8 and list(few)[:3] == list(more)[:3] and all(more[n].spec == c.spec for n, c in few.items())
    benched = {case(i).spec.subjects[0].identity for i in range(24)}
    for n, c in more.items():
        s = c.spec.subjects[0]
        assert c.spec.scene == "park" and n.startswith(s.kind) and "[v]" in c.prompts()[0] and "[u]" in c.prompts()[1]
        if isinstance(s, Person): assert s.motion == "dancing" and s.identity not in benched

def test_the_shipped_zoo_if_there_is_one(root):
    if not (root/"data/zoo/zoo.json").exists(): pytest.skip("no zoo is shipped")
    shipped, table = load_zoo(root/"data/zoo"), list(csv.DictReader(open(root/"data/zoo/truth.csv")))
    assert [r["name"] for r in table] == list(shipped)
    assert sum(not c.info["truth"]["thing"] for c in shipped.values()) >= 64 and sum(c.info["truth"]["thing"] for c in shipped.values()) >= 8
    for (n, c), r in zip(shipped.items(), table):
        assert float(r["identity_skin"]) == identity_of(spec_of(c).subjects[0])["skin"] if r["identity_skin"] else c.info["truth"]["thing"]
    files = [f.stat().st_size for f in (root/"data/zoo").iterdir()]
    assert sum(files) < 45e6 and max(files) < 20e6


@pytest.fixture
def quick(monkeypatch):
    "One step of everything, no prior, no pictures."
    few = Recipe.paper().with_(both=dict(steps=2, batch=1, prior=0.))
    monkeypatch.setattr(zoo, "plan", lambda *a: few)
    monkeypatch.setattr(zoo, "packing", lambda *a: dict(bits=8))
    monkeypatch.setattr(zoo, "sheet", lambda z: zoo.Image.new("RGB", (4, 4)))
    old = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, old)

def run(tmp_path): zoo.main(2, 1, tmp_path/"zoo", tmp_path/"work", "tiny", 1., 8, 0., True, 0)

def test_a_stopped_zoo_goes_on(quick, tmp_path, monkeypatch, capsys):
    step = Trainer.train_step
    def killed(self):
        step(self)
        if self.stage.name == "motion" and self.step == 1: signal.raise_signal(signal.SIGTERM)
    with monkeypatch.context() as m:
        m.setattr(Trainer, "train_step", killed)
        with pytest.raises(typer.Exit) as e: run(tmp_path)
    assert e.value.exit_code == 130 and not (tmp_path/"zoo").exists() and "run the same again" in capsys.readouterr().out
    run(tmp_path)
    made = load_zoo(tmp_path/"zoo")
    assert list(made) == ["woman-00", "woman-01", "waves-00"]
    rows = list(csv.DictReader(open(tmp_path/"zoo"/"truth.csv")))
    person = spec_of(made[rows[0]["name"]]).subjects[0]
    assert [float(rows[0][f"gait_{i}"]) for i in range(63)] == person.gait.vector.tolist() and rows[2]["shape_0"] and not rows[2]["gait_0"]
    assert all((made[n].weights[k] != 0).any() for n in made for k in ("blocks.0.attn1.to_q.B1", "blocks.0.attn1.to_q.B2"))


def test_a_slider_at_rest_is_the_concept_and_elsewhere_is_not(population):
    atlas = Atlas(population)
    for slider, values in response.SLIDERS.items():
        rest = 1 if slider in ("appearance", "motion") else 0
        assert rest in values
        for v in (rest, values[-1] if values[-1] != rest else values[0]):
            c, mine = response.moved(atlas, "one-0", "one-3", slider, v), population["one-0"]
            a, b = ({k: scale*w for k, w in x.weights.items() if k.endswith(kind)} for x, kind, scale in ((c, "B1", c.appearance), (c, "B2", c.motion)))
            same = [all(torch.allclose(w, mine.weights[k], atol=1e-5) for k, w in part.items()) for part in (a, b)]
            look = slider.startswith(("look", "appearance"))
            assert same == [True, True] if v == rest else same == [not look, look], (slider, v)
    there = response.moved(atlas, "one-0", "one-3", "dance to other", 1)
    assert torch.allclose(there.weights["blocks.0.ffn.net.2.B2"], population["one-3"].weights["blocks.0.ffn.net.2.B2"], atol=1e-5)

def test_the_oracles_say_yes_to_the_truth_and_no_to_others(oracles):
    spec = replace(heldout_spec(1), scene="snow")
    other = heldout_spec(4)
    facts = lambda s: (s, oracles.identity(render(s, fps=12))[0], response.seen_joints(s, fps=12))
    still, park = edit(spec, strength=0.), replace(spec, scene="park")
    clips = torch.stack([render(s, fps=12).frames for s in (spec, replace(other, scene="snow"), still, park)])
    right, stranger, frozen, unedited = response.judged(oracles, clips, facts(heldout_spec(1)), facts(other))
    assert right["identity"] > .8 > stranger["identity"] and right["pose"] > .9 > stranger["pose"] and right["words"] >= 5/6 and right["scene"] == 1
    assert stranger["identity_other"] > .8 and stranger["pose_other"] > .9 > right["pose_other"]
    assert frozen["swing"] < .4*right["swing"] and frozen["pose"] < .7 and frozen["identity"] > .7
    assert unedited["scene"] == 0

def test_rows_come_back(tmp_path):
    rows = [dict(zip(response.COLUMNS, ("r", "a", "b", "motion", 1., 0., .5, .25, .125, float("nan"), 2., 1., 0.)))]
    save_table(rows, tmp_path/"r.csv", response.COLUMNS)
    back = response.read(tmp_path/"r.csv")
    assert {k: v for k, v in back[0].items() if k != "pose_other"} == {k: v for k, v in rows[0].items() if k != "pose_other"} and back[0]["pose_other"] != back[0]["pose_other"]
    assert response.read(tmp_path/"none.csv") == []


class Judged:  # looks live in late layers, dances in early ones, and each is in the other's way there
    def __init__(self): self.studio = type("Studio", (), {})()
    def judge(self, place, look, dance):
        if place.look == place.dance: return dict(look=float(place.look == look), dance=float(place.dance == dance))
        known = self.studio.mixing["strengths"]
        (l0, l1), (d0, d1) = known["appearance"], known["motion"]
        return dict(look=.5*l1/(1+d1), dance=.5*d0/(1+l0))

def test_the_strengths_of_a_mixture_show_both():
    found = mixtures.strengths_of(Judged(), [("ann", "bob"), ("bob", "cid")], [("cid", "ann")])
    assert found["strengths"] == dict(early=2/3, appearance=[.6, 1.2], motion=[1.5, 0.])
    assert found["plain"] == dict(look=.25, dance=.25) and found["found"] == dict(look=.6, dance=pytest.approx(.469, abs=1e-3))
    assert found["kept"][0] == dict(look_early=1., dance_late=1., dance_early=1., look_late=1., look=.25, dance=.25)

def test_mixtures_are_measured_beside_a_zoo(tmp_path, monkeypatch):
    monkeypatch.setattr(mixtures, "TRIED", dict(look_early=(1., .8), dance_late=(1.,), dance_early=(1.,), look_late=(1.,)))
    mixtures.main("zoo", 2, 2, tmp_path/"m.json", 0)
    found = json.loads((tmp_path/"m.json").read_text())
    assert [found["pairs"], found["steps"], len(found["kept"])] == [2, 2, 2] and len(found["best"]) == 2
    assert found["strengths"]["appearance"][0] in (1, .8) and found["strengths"]["motion"] == [1, 1]
    assert all(0 <= share <= 1 for whose in found["clothes"].values() for share in whose.values())


def test_parts_of_the_network_are_left_out_and_a_stopped_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PARTS", {"feed-forward": r"ffn\."})
    def rows(concepts):
        parts.main("zoo", concepts, 1, tmp_path/"p.csv", 0)
        return [{k: v for k, v in r.items()} for r in csv.DictReader((tmp_path/"p.csv").read_text().splitlines())]
    first = rows(1)
    assert [(r["half"], r["keeps"]) for r in first] == [("", "all")] + [(h, k) for h in ("appearance", "motion") for k in ("none", "without", "only")]
    assert len({r["identity"] for r in first}) == 7, "every clip differs"
    assert rows(2)[:7] == first and len(rows(2)) == 14


def test_a_newcomer_is_measured_on_both_stages(dit):
    A = {k: v for k, v in SharedLoRA(dit, 8).member()[0].items() if k.endswith(".A")}
    curve, made = bench_fleet.newcomer(dit, case(0), A, steps=2, batch=1, every=1)
    assert [(r["stage"], r["step"]) for r in curve] == [("appearance", 1), ("appearance", 2), ("motion", 1), ("motion", 2)]
    assert all(np.isfinite(r["loss"]) for r in curve) and [r["cpu"] for r in curve] == sorted(r["cpu"] for r in curve)
    assert not dit.adapted and len(made) == 17
