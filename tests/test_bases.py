"Versions of a base: what a concept of other weights is told, wherever it meets them."
import html, json, re
from dataclasses import replace
import pytest
from sas_nb import bases
from sas_nb.atlas import Atlas, synthetic
from sas_nb.bases import SHIPPED, missing_weights, weights_of
from sas_nb.concept import Concept
from sas_nb.dit import VideoDiT
from sas_nb.files import read_about, UserError
from sas_nb.recipe import Recipe, Run
from sas_nb.clip import Clip
from sas_nb.learning import learn, learn_many
import road, torch

TINY_0, TINY_1 = "c4d038c2635e4af8", "4a84a60a0697b604"
HAS = '{0}, which sas_nb {1} has, to be had by pip install "sas_nb @ git+https://github.com/sas-nb/sas_nb@{2}"'
HAS_TINY_1 = re.escape(HAS.format("tiny 1", "0.1.0", "62787f4fee45"))


@pytest.fixture(scope="module")
def dit(): return VideoDiT.of("tiny")

@pytest.fixture
def later(monkeypatch, dit):
    "The tiny model as it will be once another one is shipped under its name."
    monkeypatch.setattr(bases, "SHIPPED", SHIPPED | {"f"*16: ("tiny 9", "0.9.0")})
    monkeypatch.setattr(dit, "prints", ["f"*16])
    monkeypatch.setattr(dit, "defaults", replace(dit.defaults, version="tiny 9"))
    monkeypatch.setattr(dit, "base_names", lambda: ["f"*16])
    return dit

def member(dit, fingerprint=TINY_1, **about):
    "A concept that looks as if it had been learned on these weights."
    people, _ = synthetic(2, rank=2, sizes={"blocks.0.attn1.to_q": (192, 192)}, base="tiny", fingerprint=fingerprint, layers=r"blocks\.0\.attn1\.to_q", **about)
    return replace(people[0], dit=dit)


def test_the_shipped_base_is_the_last_of_the_list(dit, root):
    "Whoever ships another base gives it a version, here and beside its weights, and a release."
    *before, last = SHIPPED
    about = read_about(root/"data/tiny/sas_nb.json")
    assert dit.prints[0] == last and SHIPPED[last][0] == about["version"] == dit.defaults.version
    released = [v for v in SHIPPED.values() if v[1]]
    assert all(name and release for name, release in released) and len(set(SHIPPED.values())) == len(released)+1


@pytest.mark.parametrize("info, says", [
    (dict(fingerprint=TINY_1), ("tiny 1", "0.1.0")), (dict(fingerprint=TINY_0, versions=dict(sas_nb="0.1.0")), ("tiny 0", "")),
    (dict(fingerprint="a"*16, base="tiny", base_version="tiny 7", versions=dict(sas_nb="0.7.0")), ("tiny 7", "0.7.0")),
    (dict(fingerprint="a"*16, base="tiny", base_version="tiny 7"), ("tiny 7", None)),
    (dict(fingerprint="a"*16, base="m", base_path="/models/m", base_version="m, longer", versions=dict(sas_nb="0.7.0")), ("m, longer", None)),
    (dict(fingerprint="a"*16, base="/models/m", base_version="m, longer", versions=dict(sas_nb="0.7.0")), ("m, longer", None)),
    (dict(fingerprint="a"*16, base="tiny", versions=dict(sas_nb="0.0.1")), ("", None)), ({}, ("", None))])
def test_whose_weights(info, says): assert weights_of(info) == says


@pytest.mark.parametrize("about, says", [
    (dict(), f"trained on {HAS_TINY_1}, and not on 'tiny' \\(tiny 9\\), which is another base: use it"),
    (dict(fingerprint=TINY_0), "trained on tiny 0, which no release has, and not on 'tiny' \\(tiny 9\\)"),
    (dict(fingerprint="a"*16, base_version="tiny 7", versions=dict(sas_nb="0.7.0")), "trained on tiny 7, which sas_nb 0.7.0 has, .*sas_nb@v0.7.0"),
    (dict(fingerprint="a"*16), "another base than 'tiny' \\(tiny 9\\) .*load it with the base 'tiny' it names\\.$")])
def test_a_concept_of_older_weights_is_told_in_one_sentence(later, tmp_path, about, says):
    "Whether it is used, mixed, put beside others or taken as a basis; and it stays as it was."
    folder = member(later, **about).save(tmp_path/"c")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    clip = Clip(torch.rand(5, 3, 64, 64), 12)
    prompts = "a [v] man", "he is [u] dancing"
    quiet = Run(progress=False)
    for use in (lambda c: c.base(), lambda c: c.generate(steps=1), lambda c: c.attached().__enter__(),
                lambda c: learn(clip, prompts, later, run=quiet, basis=c), lambda c: learn_many([clip], [prompts], later, run=quiet, basis=c)):
        with pytest.raises(UserError, match=says) as e: use(Concept.load(folder, later))
        assert "\n" not in str(e.value) and str(e.value).count(". ") == 0
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_so_is_an_atlas_a_scene_and_a_zoo(later, tmp_path):
    from sas_nb import compose
    from sas_nb.atlas import load_zoo
    old, new = member(later), member(later, "f"*16)
    with pytest.raises(UserError, match=rf"different bases \({HAS_TINY_1}\), so their"): Atlas({"old": old, "new": new})
    with pytest.raises(UserError, match=rf"different bases.* of one \({HAS_TINY_1}\): learn"): compose({"old": old, "new": new}, "masked")
    with pytest.raises(UserError, match=re.escape(HAS.format("tiny 2", "0.2.0", "7540df3b4ce0"))): replace(load_zoo("zoo", ["man-02"])["man-02"], dit=later).base()


def test_so_is_the_page_and_what_it_leaves_out(later, tmp_path, monkeypatch):
    from sas_nb.explore.serve import explorer_page, left_out
    monkeypatch.setattr("sas_nb.concept.VideoDiT.of", lambda *args: later)
    folders = [member(None).save(tmp_path/f"run-{i}"/"concept").parent for i in range(2)]
    (tmp_path/"spoilt").mkdir()
    (tmp_path/"spoilt/concept.json").write_text('{"versions": 3}')
    assert left_out([*folders, tmp_path/"spoilt"]).count("sas_nb@62787f4fee45") == 1
    assert re.search(HAS_TINY_1, html.unescape(explorer_page(folders[:1]).data))


def test_so_is_a_run_that_goes_on(dit, tmp_path, monkeypatch):
    "Begun on today's; its latents are of that base too, but the base comes first."
    from sas_nb.data import Examples
    def trainer(value):
        data = Examples(value*torch.ones_like(road.latents(dit, frames=1, side=4)), [torch.ones(1, 3, 128)], [["[v]"]])
        return road.trainer(road.new(dit, 2), data, road.stage(steps=1, batch=1, prior=0), out=tmp_path/"run")
    trainer(1).fit()
    monkeypatch.setattr(bases, "SHIPPED", SHIPPED | {"f"*16: ("tiny 9", "0.9.0")})
    monkeypatch.setattr(dit, "base_names", lambda: ["f"*16])
    todays = re.escape(HAS.format(*list(SHIPPED.values())[-1], "7540df3b4ce0"))
    with pytest.raises(UserError, match=rf"holds another run \(another base: {todays}; another tensors\)"): trainer(9).fit()


def test_a_concept_and_its_description_say_which_weights(dit, tmp_path):
    from sas_nb.answers import provenance
    made = learn(Clip(torch.rand(5, 3, 64, 64), 12), ("a [v] man", "he is [u] dancing"), dit, Recipe.paper().with_(both=dict(steps=0, prior=0), rank=2), Run(progress=False))
    now = dit.defaults.version
    assert made.info["base_version"] == now and f"tiny ({now}, weights of its transformer: " in dict(provenance(made))["base"]
    older = replace(made, info=made.info | dict(fingerprint=TINY_0))
    assert f"tiny ({missing_weights(older.info)}, weights of its transformer: {TINY_0})" == dict(provenance(older))["base"]
    again = Concept.load(made.save(tmp_path/"c"))
    assert again.info["base_version"] == now
    (tmp_path/"c/concept.json").write_text(json.dumps(json.loads((tmp_path/"c/concept.json").read_text()) | dict(base_version=3)))
    with pytest.raises(UserError, match="base_version is 3"): Concept.load(tmp_path/"c")
