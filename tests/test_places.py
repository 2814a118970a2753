"Names and places mean the same from everywhere; what was edited or damaged says so; a cache stops no run."
import json, os, random, shutil
from functools import lru_cache
from pathlib import Path

import pytest, road, torch
from safetensors.torch import load_file, save_file

from sas_nb.advice import GenerationConfig
from sas_nb.answers import draw_run, log_of
from sas_nb.atlas.geometry import Atlas
from sas_nb.atlas.members import synthetic
from sas_nb.atlas.places import load_zoo, members_of, open_concepts, zoo_folder
from sas_nb.cache import cache_folder, cached, data_path, lasting_name, model_folder
from sas_nb.clip import Clip
from sas_nb.concept import Concept
from sas_nb.dit import _shared, VideoDiT
from sas_nb.explore.concepts import named_concepts
from sas_nb.files import UserError
from sas_nb.lab.oracles import Oracles
from sas_nb.lab.published import clip_encoder, dino_encoder
from sas_nb.lab.zoo import save_zoo
from sas_nb.learning import learn
from sas_nb.recipe import Run
from sas_nb.video import preflight


@pytest.fixture(scope="module")
def concepts(): return synthetic(3, versions=dict(sas_nb="0.0.1"), clip=dict(name="x", shape=[17, 3, 64, 64], fps=12.), recipe=dict(name="default", stage1=dict(steps=3)), format=1,
                                 sampling=dict(guidance_factor=.5, negative_scale=.7), history=dict(appearance=[[10, .2, None, .1, .2, .3]]), lr=[1e-3, 1e-3], made="today", family="Wan 2.1", dtype="torch.float32")[0]

@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path/"home").mkdir(); (tmp_path/"here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path/"home")); monkeypatch.chdir(tmp_path/"here")
    return tmp_path/"home"


# names

@pytest.mark.parametrize("name, holds, find", [("tiny", "model_index.json", model_folder), ("zoo", "zoo.json", zoo_folder)])
def test_a_shipped_name_is_shadowed_by_its_own_kind_alone(home, name, holds, find):
    here = home.parent/"here"/name
    assert find(name) == data_path(name)
    (here/"concept").mkdir(parents=True)
    assert find(name) == data_path(name)
    (here/holds).write_text("{}")
    assert find(name).resolve() == here

def test_a_run_called_as_the_oracles_or_the_model(home):
    for name in ("oracles", "tiny"): os.mkdir(name)
    Oracles.load("oracles")
    assert GenerationConfig.read(model_folder("tiny")).num_frames == 17 and lasting_name("tiny") == "tiny"
    os.mkdir("other")
    with pytest.raises(UserError, match="could not be loaded"): VideoDiT.load("other")

def test_home_is_written_out(home, concepts):
    Clip(torch.rand(5, 3, 16, 16), 8).save("~/a.mp4")
    assert len(Clip.load("~/a.mp4")) == 5 and preflight("~/a.mp4", 5, None, None).num_frames == 5
    for k, c in zip("ab", concepts): assert c.save(f"~/{k}") == home/k
    concepts[0].export("~/lora")
    save_zoo(dict(zip("xyz", concepts)), "~/folk")
    assert len(Atlas(["~/a", "~/b"])) == 2 and Concept.load("~/a").rank == concepts[0].rank and list(load_zoo("~/folk")) == ["x", "y", "z"] == list(named_concepts("~/folk"))
    (home/"model").mkdir(); (home/"model/model_index.json").write_text("{}")
    assert model_folder("~/model") == home/"model" and lasting_name("~/model") == str(home/"model")
    assert not os.listdir(".") and {p.name for p in home.iterdir()} == {"a", "b", "a.mp4", "lora", "folk", "model"}

def test_what_a_lone_name_stands_for(home, concepts):
    for k, c in zip(("ann", "bob"), concepts): c.save(f"runs/{k}/concept")
    assert Atlas("runs").names == Atlas(["runs/ann", "runs/bob/concept"]).names == ["ann", "bob"]
    assert list(named_concepts("runs/ann")) == list(named_concepts(["runs/ann/concept"])) == ["ann"] and list(named_concepts(concepts[0])) == ["concept 1"]
    assert [c.rank for c in open_concepts(named_concepts("runs/ann")).values()] == [4] and Concept.load("runs/ann").rank == 4
    assert len(Atlas("zoo")) == len(named_concepts("zoo")) == 72 and list(open_concepts(named_concepts("zoo/woman-00"))) == ["woman-00"]
    for place in ("runs/ann", concepts[0]):
        with pytest.raises(UserError, match="An atlas of 1"): Atlas(place)
    with pytest.raises(UserError, match="no 'nobody'"): open_concepts(named_concepts("zoo/nobody"))

def test_a_place_stands_for_the_same_in_an_atlas_and_in_the_explorer(home, concepts):
    for k, c in zip(("ann", "bob"), concepts): c.save(f"runs/{k}/concept")
    for k, c in zip(("000", "001"), concepts): c.save(f"runs/many/concepts/{k}")
    os.makedirs("runs/notes")
    names = ["ann", "bob", "000", "001"]
    assert Atlas("runs").names == Atlas(["runs"]).names == list(named_concepts("runs")) == list(named_concepts(["runs"])) == names
    assert [c.rank for c in open_concepts(named_concepts("runs")).values()] == [4]*4
    for beside in ("zoo/man-02", ["zoo/man-02", "zoo/woman-00"]):
        assert [m.name for m in members_of(beside)] == list(named_concepts(beside))
    assert [m.name for m in members_of({"him": "zoo/man-02"})] == ["him"] and len(members_of(["zoo", "zoo/man-02"])) == 73
    concepts[2].export("runs/lora")
    assert list(named_concepts("runs")) == names and [m.name for m in members_of("runs")] == ["ann", "bob", "lora", "000", "001"]

@pytest.mark.parametrize("place, says", [
    ("zoo", "'zoo' is a zoo of 72 concepts: name one of them, as in 'zoo/woman-00', or open all with Atlas('zoo') or sas-nb explore zoo."), ("woman-48", "There is no folder 'woman-48': in the shipped zoo it is zoo/woman-48."),
    ("zoo/woman-48", "'zoo/woman-48' is in a zoo: open it with load_zoo('zoo')['woman-48']."), ("zoo/womn-48", "There is no 'womn-48' in the zoo 'zoo': try woman-48, "), ("zoo/woman-02", "There is no 'woman-02' in the zoo 'zoo': try man-02, "), ("runs/dncer", "There is no folder 'runs/dncer': is 'runs/dancer' meant?"),
    ("runs/x", "There is no folder 'runs/x': check the spelling and the folder you are in."), ("runs/dancer.mp4", "'runs/dancer.mp4' is a file, and a concept is a folder: give one that sas-nb train made from a film, or"),
    ("runs/dancer/concept/concept.json", "is a file of a concept: give the concept's folder, 'runs/dancer/concept'."), ("lora", "'lora' holds a LoRA for other programs, which sas-nb export wrote: give the folder of the concept"),
    ("runs", "'runs' is not a concept: give a folder that sas-nb train or Concept.save wrote"), ("a [v] woman. she is [u] dancing", "is a prompt, and no concept's folder: sas-nb generate takes the prompt after the folder, and sas-nb compose takes it behind --prompt."),
    ("a woman "*99, "There is no folder")])
def test_what_stands_where_a_concept_belongs(home, concepts, place, says):
    concepts[0].save("runs/dancer/concept")
    concepts[0].export("lora")
    os.makedirs("runs/dancer-film")
    with open("runs/dancer.mp4", "w"): pass
    with pytest.raises(UserError) as e: Concept.load(place)
    assert says in str(e.value) and len(str(e.value)) < 250+len(place)

def test_a_run_within_a_concept_is_found_by_its_own_name(home, concepts):
    replaced = concepts[1].at(motion=.5)
    concepts[0].save("r/concept"); replaced.save("r/concept/concept")
    assert [Concept.load(n).motion for n in ("r", "r/concept")] == [1, .5]
    assert [c.motion for c in open_concepts(named_concepts({"a": "r", "b": "r/concept"})).values()] == [1, .5]

def test_the_base_is_found_from_everywhere(home, monkeypatch):
    shutil.copytree(data_path("tiny"), "mine")
    monkeypatch.setattr("sas_nb.dit._shared", shared := lru_cache(_shared.__wrapped__))
    still = road.recipe(both=dict(steps=0, prior=0.), rank=1)
    made = learn(Clip(torch.rand(5, 3, 64, 64), 12), ("a [v] man", "he is [u] dancing"), "mine", still, Run("run", progress=False))
    assert made.info["base"] == "mine" and made.info["base_path"] == os.path.abspath("mine")
    monkeypatch.chdir(home)
    assert Concept.load("../here/run").base() is VideoDiT.of(os.path.abspath("../here/mine")) is made.dit
    shared.cache_clear()
    assert Concept.load("../here/run").base().name == os.path.abspath("../here/mine")
    os.rename("../here/mine", "mine")
    assert Concept.load("../here/run").base().name == "mine" # by the name it was given
    os.rename("mine", "elsewhere")
    with pytest.raises(UserError, match=r"'mine' .* not in .*here/mine.*--model"): Concept.load("../here/run").base()

def test_another_base_says_which_version(concepts):
    c = Concept(concepts[0].weights, concepts[0].tokens, concepts[0].info | dict(base="tiny"), dit=VideoDiT.of("tiny"))
    with pytest.raises(UserError, match="another base.*sas_nb 0.0.1"): c.base()


# concept.json by hand

NASTY = (None, True, -1, 0, 1.5, 10**30, float("nan"), float("inf"), "", "a man", "[w] [v] [u]", "(", "(?:" * 50, [], [1], [1, 2, 3], ["x", 1], [float("nan"), 1], {}, {"identity": 3}, {"a": [[]]}, {"a": [["x"]*6]})

def used(c):
    "What commands and pages do with a concept, short of its base."
    from sas_nb.answers import provenance
    return repr(c), c._repr_html_(), c.summary(), provenance(c), c.norms(), c.at(1, 0).adapters(), json.dumps(c.info)

def test_any_edit_works_or_is_one_sentence(concepts, tmp_path):
    folder = concepts[0].save(tmp_path/"c")
    good = json.loads((folder/"concept.json").read_text())
    used(Concept.load(folder))
    refused = 0
    for key in (*good, "base_path", "atlas", "unfinished"):
        for value in (*NASTY, "gone"):
            changed = {k: v for k, v in good.items() if k != key} | ({} if value == "gone" else {key: value})
            (folder/"concept.json").write_text(json.dumps(changed))
            try: used(Concept.load(folder))
            except UserError as e:
                refused += 1
                assert "\n" not in str(e) and str(folder) in str(e)
    assert refused > 200

OLD = dict(settings=dict(identity=dict(steps=3, still=True, whole_prompt=False, token_start=.5, twins=.25), motion=dict(steps=4)), preset="ours",
           sampling=dict(guidance_factor=.5, against=.7), history=dict(identity=[[10, .2, None, .1, .2, .3]], motion=[]))

def test_what_an_earlier_version_wrote_is_read_in_todays_names(concepts, tmp_path):
    "By whoever reads it: a concept, an atlas over its folder, a mix, and a zoo."
    new = ("recipe", "sampling", "history")
    folders = [c.save(tmp_path/"all"/str(i)) for i, c in enumerate(concepts)]
    for folder in folders:
        about = {k: v for k, v in json.loads((folder/"concept.json").read_text()).items() if k not in new}
        (folder/"concept.json").write_text(json.dumps(about | OLD))
    stages = dict(stage1=dict(steps=3, frozen=True, full_caption=False, token_init=.5, counterfactuals=.25), stage2=dict(steps=4))
    today = dict(recipe=dict(name="default", **stages), sampling=dict(guidance_factor=.5, negative_scale=.7), history=dict(appearance=[[10, .2, None, .1, .2, .3]], motion=[]))
    atlas = Atlas(tmp_path/"all")
    for info in (Concept.load(folders[0]).info, atlas.members[1].state()["info"]): assert {k: info[k] for k in new} == today
    assert atlas.interpolate(0, 1).info["sampling"] == today["sampling"]
    zoo = save_zoo(dict(zip("xyz", concepts)), tmp_path/"zoo")
    about = json.loads((zoo/"zoo.json").read_text())
    for key in new: about["common"].pop(key)
    (zoo/"zoo.json").write_text(json.dumps(about | dict(common=about["common"] | OLD)))
    for c in load_zoo(zoo).values(): assert {k: c.info[k] for k in new} == today and not {"settings", "preset"} & set(c.info)

def parts(value):
    "Every way to a part of a JSON value."
    for k, v in (value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()):
        yield (k,)
        yield from ((k, *rest) for rest in parts(v))

def test_edits_deep_inside_too(concepts, tmp_path):
    folder, draw = concepts[0].save(tmp_path/"c"), random.Random(1)
    text = (folder/"concept.json").read_text()
    ways = [w for w in parts(json.loads(text)) if len(w) > 1]
    for way in ways * 6:
        changed = at = json.loads(text)
        for k in way[:-1]: at = at[k]
        at[way[-1]] = draw.choice(NASTY)
        (folder/"concept.json").write_text(json.dumps(changed))
        try: used(Concept.load(folder))
        except UserError as e: assert "\n" not in str(e)

@pytest.mark.parametrize("raw, says", [(b"", "no JSON"), (b"[]", "no JSON object"), (b"3", "no JSON object"), (b"\xff\xfe{\x00}\x00", "no JSON in UTF-8"), (b"{" * 10**5, "no JSON"), (b'{"rank": ' + b"9"*5000 + b"}", "no JSON"),
                                       (b"{}", "base is missing"), (b'{"format": 9, "versions": {"sas_nb": "9.9"}}', "later kind.*sas_nb 9.9")])
def test_a_concept_json_that_is_none(concepts, tmp_path, raw, says):
    folder = concepts[0].save(tmp_path/"c")
    (folder/"concept.json").write_bytes(raw)
    with pytest.raises(UserError, match=says): Concept.load(folder)
    concepts[1].save(tmp_path/"d")
    with pytest.raises(UserError, match=says): Atlas([folder, tmp_path/"d"])

def test_a_byte_order_mark_is_no_fault(concepts, tmp_path):
    folder = concepts[0].save(tmp_path/"c")
    (folder/"concept.json").write_bytes(b"\xef\xbb\xbf" + (folder/"concept.json").read_bytes())
    assert Concept.load(folder).info == concepts[0].info

@pytest.mark.parametrize("change, says", [
    (lambda t: t | {"weights/blocks.9.x.A": torch.zeros(4, 3), "weights/blocks.9.x.B1": torch.zeros(3, 4), "weights/blocks.9.x.B2": torch.zeros(3, 4)}, "does not name 'blocks.9.x'"),
    (lambda t: t | {k: v[:2] for k, v in t.items() if k.endswith(".A")}, "rank is 4, and its weights have 2"),
    (lambda t: t | {k: v.flatten() for k, v in t.items() if k.endswith(".B1")}, "do not fit together"),
    (lambda t: t | {"tokens/[w]": torch.zeros(8)}, "its words"), (lambda t: t | {"tokens/[v]": torch.zeros(9)}, "its words"),
    (lambda t: t | {"tokens/[v]": torch.full((8,), torch.nan)}, "finite"), (lambda t: {}, "incomplete")])
def test_tensors_that_do_not_fit(concepts, tmp_path, change, says):
    folder = concepts[0].save(tmp_path/"c")
    save_file({k: v.contiguous().clone() for k, v in change(load_file(folder/"concept.safetensors")).items()}, folder/"concept.safetensors")
    with pytest.raises(UserError, match=says + ".*sas_nb 0.0.1"): Concept.load(folder)


# the cache

@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAS_NB_CACHE", str(tmp_path/"cache"))
    made = []
    def ask(): return cached(lambda: made.append(1) or dict(a=torch.arange(6.).view(2, 3), b=torch.ones(3, dtype=torch.bfloat16)), "what")
    ask.made, ask.folder = made, tmp_path/"cache"
    return ask

def right(found): return torch.equal(found["a"], torch.arange(6.).view(2, 3)) and found["b"].dtype == torch.bfloat16

def zeroed(file): file.write_bytes(bytes(file.stat().st_size))
def flipped(file): data = bytearray(file.read_bytes()); data[-3] ^= 4; file.write_bytes(data)
def tail_zeroed(file): data = file.read_bytes(); file.write_bytes(data[:-24] + bytes(24))
def short(file): file.write_bytes(file.read_bytes()[:-5])
def emptied(file): file.write_bytes(b"")
def of_an_older_version(file): save_file(dict(a=torch.zeros(2, 3)), file)

@pytest.mark.parametrize("spoil", [zeroed, flipped, tail_zeroed, short, emptied, of_an_older_version])
def test_a_spoilt_entry_is_made_again(cache, spoil):
    assert right(cache()) and right(cache()) and len(cache.made) == 1
    (file,) = cache.folder.iterdir()
    spoil(file)
    assert right(cache()) and right(cache()) and len(cache.made) == 2 and list(cache.folder.iterdir()) == [file]

def folder_instead(file): file.unlink(); file.mkdir()
def loop_instead(file): file.unlink(); file.symlink_to(file.name)
def file_for_folder(file): shutil.rmtree(file.parent); file.parent.write_text("")

@pytest.mark.parametrize("spoil", [folder_instead, loop_instead, file_for_folder])
def test_a_cache_that_cannot_be_used_is_done_without(cache, spoil):
    cache()
    (file,) = cache.folder.iterdir()
    spoil(file)
    assert right(cache()) and right(cache()) and len(cache.made) == 3

@pytest.mark.parametrize("refusal", [PermissionError(1, "Operation not permitted"), OSError(30, "Read-only file system"), OSError(116, "Stale file handle"), OSError(5, "Input/output error")])
def test_a_cache_that_refuses_is_done_without(cache, monkeypatch, refusal):
    def refuse(*_, **__): raise refusal
    for name in ("replace", "link"): monkeypatch.setattr(os, name, refuse)
    assert right(cache()) and not list(cache.folder.glob("*"))
    monkeypatch.setattr("pathlib.Path.read_bytes", refuse); monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    assert right(cache()) and len(cache.made) == 2

def test_entries_have_the_rights_of_any_file(cache):
    cache()
    (file,) = cache.folder.iterdir()
    (cache.folder/"x").touch()
    assert file.stat().st_mode == (cache.folder/"x").stat().st_mode

def test_an_empty_setting_is_none(monkeypatch, home):
    monkeypatch.setenv("SAS_NB_CACHE", "")
    assert cache_folder() == home/".cache/sas_nb"
    monkeypatch.setenv("SAS_NB_CACHE", "~/c")
    assert cache_folder() == home/"c"


@pytest.mark.parametrize("ask", [
    lambda path: log_of(path),
    lambda path: draw_run(None, None, path, finished=True),
    lambda path: dino_encoder(path),
    lambda path: clip_encoder(str(path))], ids=["log", "pictures", "dino", "clip"])
def test_a_home_of_nobody_is_said_in_one_sentence(ask):
    with pytest.raises(UserError, match="no home folder"): ask(Path("~nobody-of-this-name/run"))
