"What each cell of the tutorial needs, on tensors without values: of the card and of its host."
import ast, json, os, sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
import nbformat, pytest
import wan_folder
from sas_nb import monitor, phases
from sas_nb.cards import card, Card, GIB
from sas_nb.concept import Concept
from sas_nb.explore.room import keep_together, Room
from sas_nb.fake import standing_in
from sas_nb.files import UserError
from sas_nb.folded import fold_words
from sas_nb.memory import Memory
from sas_nb.phases import Job, needed, timed
from sas_nb.plan import plan
from sas_nb.recipe import Recipe, Run
from sas_nb.sketch import sketched
from sas_nb.train import Trainer

NOTEBOOK = Path(__file__).parent.parent/"nbs"/"tutorials"/"train_on_colab.ipynb"
RECIPE = Recipe.default()


def learned(job, dit):
    "A concept as `learn` gives it, its adapter, and the data of both stages."
    (clip,), adapter, data = phases._data(job, dit)
    return Concept.of(adapter, 0, clip, phases._PROMPTS, job.recipe, dict(appearance=[], motion=[])), adapter, data


def alone(dit): # what came before is told by others
    dit.live = {"denoise", "decode"}
    dit.checkpoint.counted.restart()


def previews(job, dit):
    "A sample while stage 2 is under way: its moments, gradients and chance stay in memory."
    _, adapter, data = learned(job, dit)
    few = replace(job.recipe.stage2, steps=len(dit.experts))
    alone(dit)
    with adapter.attached(), standing_in(monitor, "_write", lambda clip, path: None):
        trainer = Trainer(dit, adapter, data["motion"], few, Run(progress=False))
        trainer.fit()
        trainer.run = replace(trainer.run, out=Path("nowhere"))
        monitor.sample(trainer)


def edits(job, dit):
    "Two prompts in one call, and one again at another strength."
    concept, *_ = learned(job, dit)
    alone(dit)
    kept = concept.generate([concept.prompt, f"{concept.prompt} here"]), concept.at(motion=.5).generate()
    del kept


def explorer(job, dit):
    "A preview and a full video, all parts in memory, as where the page keeps them."
    concept, *_ = learned(job, dit)
    alone(dit)
    keep_together(dit, Room(dit.memory, together=True))
    kept = concept.generate(steps=4), concept.generate()
    del kept


def folded(job, dit):
    concept, *_ = learned(job, dit)
    alone(dit)
    fold_words(concept, steps=2)


# what a cell calls -> what is rehearsed for it: the plan's own phases, or one of these
CELLS = dict(learn=["text", "encoding", "prior", "pairs", "stage 1", "stage 2", previews], generate=[edits], Explorer=[explorer], export=[folded])
FREE = {"plan", "lint", "of", "phrased", "preflight", "load", "named", "base", "save", "check_words", "plot_history", "contact_sheet", "sheet"} # nothing on the base; the last section trains the tiny model beside it, some MiB


def need(job, memory, what):
    "Peaks of card and host in GiB, with context and base."
    if isinstance(what, str): phase = timed(job, needed(job, memory, what))
    else:
        with sketched(job.model, job.card, memory) as dit:
            what(job, dit)
            dit.checkpoint.counted.mark()
            phase = timed(job, phases._told(getattr(what, "__name__", what), dit))
    return phase.card/GIB, phase.host/GIB


def called(cell):
    "Names of what a cell calls, methods among them."
    calls = [n.func for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Call)]
    return {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in calls}


def test_each_cell_that_computes_is_rehearsed():
    "Whatever of the library a cell calls is known here: a new call has to be given its rehearsal."
    from sas_nb import Clip, VideoDiT
    ours = {n for c in (VideoDiT, Clip, Concept) for n in vars(c) if n[0] != "_"} | {"learn", "learn_many", "Explorer", "Studio", "plan", "lint", "phrased"}
    cells = [c for c in nbformat.read(NOTEBOOK, 4).cells if c.cell_type == "code"]
    found = {name for c in cells for name in called(c) & ours}
    assert CELLS.keys() <= found and found <= CELLS.keys() | FREE | {"at"}


def folder_cell():
    "The cell that asks for a Drive, with what it needs from those above."
    (cell,) = [c.source for c in nbformat.read(NOTEBOOK, 4).cells if "drive.mount" in c.source]
    return "import os, sys\nfrom pathlib import Path\n" + cell


class Drive:
    def __init__(self, why=None): self.why = why
    def mount(self, place):
        if self.why: raise ValueError(self.why)


@pytest.mark.parametrize("use, why, home", [(True, None, "/content/drive/MyDrive/sas_nb"), (False, "refused", "runs"), (True, "refused", None)])
def test_where_the_run_is_kept_on_colab(monkeypatch, use, why, home):
    colab = ModuleType("google.colab")
    colab.drive = Drive(why)
    monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setenv("SAS_NB_CACHE", "")
    space = dict(USE_DRIVE=use, NAME="dancer")
    if home is None:
        with pytest.raises(UserError, match="Your Drive was not mounted .refused.: run this cell again and allow it, or set USE_DRIVE = False"): exec(folder_cell(), space)
    else:
        exec(folder_cell(), space)
        assert str(space["OUT"]) == f"{home}/dancer" and os.environ["SAS_NB_CACHE"] == f"{home}/cache"


def test_elsewhere_it_is_kept_here(monkeypatch):
    monkeypatch.setenv("SAS_NB_CACHE", "")
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    space = dict(USE_DRIVE=True, NAME="dancer")
    exec(folder_cell(), space)
    assert space["HOME"] == Path("runs")


@pytest.mark.parametrize("size", [(320, 512), (512, 320), (64, 64)])
def test_an_upright_film_stays_upright(size):
    (cell,) = [c.source for c in nbformat.read(NOTEBOOK, 4).cells if "def turned" in c.source]
    (function,) = [n for n in ast.parse(cell).body if isinstance(n, ast.FunctionDef)]
    exec(ast.unparse(function), space := dict(SIZE=size))
    assert space["turned"](1920, 1080) == (max(size), min(size)) and space["turned"](720, 1280) == (min(size), max(size))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = wan_folder.write(tmp_path_factory.mktemp("wan"))
    (folder/"sas_nb.json").write_text(json.dumps(dict(steps=3)))
    return Job(str(folder), (5, 48, 48), RECIPE.with_(both=dict(steps=2, batch=2)), Card("Toy", 1., 1., 1., 1.))


MEMORY = Memory(apart=True, checkpointing=True, at_once=1)


def test_each_cell_at_small_size(small):
    "Each rehearsal runs our own code, and is of the size that this code has."
    own = {p: need(small, MEMORY, p) for p in ("sampling", "decoding", "stage 2")}
    both = [max(own["sampling"][i], own["decoding"][i]) for i in (0, 1)]
    assert need(small, MEMORY, edits)[0] == pytest.approx(both[0], abs=.002)    # two clips go through in turn
    assert both[0] < need(small, MEMORY, explorer)[0] < own["sampling"][0] + own["decoding"][0]
    assert need(small, MEMORY, previews)[0] >= max(both[0], own["stage 2"][0]) - .002
    assert need(small, MEMORY, folded)[0] == pytest.approx(own["sampling"][0], abs=.01)


FULL = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", (33, 320, 512)


@pytest.mark.slow
def test_each_cell_on_a_free_t4():
    "At the tutorial's size for a real base: under 14.0 GiB of the card and 11 GiB of its host."
    model, shape = FULL
    found = plan(model, shape, RECIPE, "t4", 11.)
    assert found.fits, str(found)
    job = Job(model, shape, RECIPE, card("t4"))
    peaks = {getattr(what, "__name__", what): need(job, found.memory, what) for whats in CELLS.values() for what in whats}
    print({name: tuple(round(x, 2) for x in peak) for name, peak in peaks.items()})
    assert {name: peak for name, peak in peaks.items() if peak[0] >= 14. or peak[1] >= 11.} == {}
