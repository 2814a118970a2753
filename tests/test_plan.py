"""A plan and a run agree, at small size to a few percent of live bytes; at full size what issues of memory promise holds."""
from contextlib import contextmanager
import json
import pytest, torch
from typer.testing import CliRunner
import wan_folder
from sas_nb import sketch
from sas_nb.cards import Card, card
from sas_nb.clip import Clip
from sas_nb.concept import Concept
from sas_nb.dit import VideoDiT
from sas_nb.fake import Counted
from sas_nb.files import UserError
from sas_nb.learning import learn
from sas_nb.memory import Memory
from sas_nb.phases import Job, needed, PHASES, rehearsed
from sas_nb.recipe import Recipe, Run
from sas_nb.train import Trainer

SHAPE = 5, 48, 48
CPU = Card("this CPU", 1000., .1, .1, 1., bf16=False, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = wan_folder.write(tmp_path_factory.mktemp("wan"))
    (folder / "sas_nb.json").write_text(json.dumps(dict(steps=3)))
    return folder


def held(dit): return [t for name in dit.loaded if isinstance(m := dit._held(name), torch.nn.Module) for t in (*m.parameters(), *m.buffers())]


def live_peaks(folder, recipe, memory, monkeypatch):
    "Peaks of live bytes in each phase of a real run."
    peaks, counted, dit = {}, Counted(), VideoDiT.load(folder, "cpu", memory=memory)

    def watch(owner, method, name):
        stock = getattr(owner, method)

        def watched(self, *args, **kwargs):
            phase = name(self) if callable(name) else name
            counted.add(*held(dit))
            counted.restart()
            out = stock(self, *args, **kwargs)
            counted.add(*held(dit))
            peaks[phase] = max(peaks.get(phase, 0), counted.peak["cpu"])
            return out
        monkeypatch.setattr(owner, method, watched)

    watch(VideoDiT, "embed", "text")
    watch(VideoDiT, "encode", "encoding")
    watch(VideoDiT, "denoise", lambda d: "sampling" if d.adapted else "prior")
    watch(VideoDiT, "decode", "decoding")
    watch(Trainer, "fit", lambda t: "stage 1" if t.stage.name == "appearance" else "stage 2")
    with counted:
        clip = Clip(torch.rand(SHAPE[0], 3, *SHAPE[1:]), 8.)
        concept = learn(clip, ("a [v] man in a red shirt", "he is [u] dancing"), dit, recipe, Run(progress=False, memory=memory))
        concept.generate(seed=0)
    return peaks


RECIPE = Recipe.default().with_(both=dict(steps=2, batch=4))


@pytest.mark.parametrize("memory", [Memory(), Memory(apart=True, checkpointing=True, at_once=1)], ids=["plain", "sparing"])
def test_a_plan_and_a_run_agree(folder, memory, monkeypatch, tmp_path):
    monkeypatch.setenv("SAS_NB_CACHE", str(tmp_path))
    real = live_peaks(folder, RECIPE, memory, monkeypatch)
    monkeypatch.undo()
    monkeypatch.setattr(sketch, "_TOKENS", 10)
    job = Job(str(folder), SHAPE, RECIPE, CPU)
    planned = {name: needed(job, memory, name).host for name in PHASES}
    assert real.keys() == planned.keys()
    for name in PHASES: print(name, real[name], planned[name], round(planned[name]/real[name], 3))
    assert {k: round(v/real[k], 2) for k, v in planned.items() if abs(v/real[k]-1) > .05} == {}
