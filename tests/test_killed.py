"A run that is killed at any moment, in any phase, goes on until it is what it would have been; also elsewhere, with nothing but its folder."
import multiprocessing, os, random, shutil, signal, sys

import pytest, torch

from sas_nb.dit import VideoDiT
from sas_nb.lab.draw import render
from sas_nb.lab.world import heldout_spec
from sas_nb.learning import learn
from sas_nb.recipe import Recipe, Run
from sas_nb.train import Trainer

pytestmark = pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="forks")
PROMPTS = "a [v] man in a red shirt in a park", "he is [u] dancing"
PHASES = ("embed_once", "encode_once", "_prior", "fit", "save_run", "keep", "_save")

def base():
    dit = VideoDiT.load("tiny", device="cpu")
    dit.defaults = type(dit.defaults)(**vars(dit.defaults) | dict(steps=2)) # of the prior's clips
    return dit

def into(out, dit, steps=3):
    torch.set_num_threads(1)
    numbers = dict(steps=steps, batch=4, prior=.25, token_lr=1e-3, token_init=.5)
    recipe = Recipe.paper().with_(both=numbers, rank=2, prior_prompts=("a man in a park. he is walking", "a woman in a room. she is waving"))
    return learn(render(heldout_spec(1), fps=12)[:5], PROMPTS, dit, recipe, Run(out=out, progress=False, save_every=1, log_every=1))

class Calls:
    "Counts the calls into this library, and at the last one kills this process."
    def __init__(self, last=None, note=None):
        self.n, self.last, self.note, self.path = 0, last, note, []
    def __call__(self, frame, event, _):
        if event not in ("call", "return") or f"{os.sep}sas_nb{os.sep}" not in frame.f_code.co_filename: return
        name = frame.f_code.co_name
        if name in PHASES: self.path.append(name) if event == "call" else self.path.pop()
        self.n += 1
        if self.n != self.last: return
        self.note.write_text(" ".join(self.path) or "between")
        os.kill(os.getpid(), signal.SIGKILL)

def profiled(calls, out, cache, dit):
    os.environ["SAS_NB_CACHE"] = str(cache)
    sys.setprofile(calls)
    try: return into(out, dit)
    finally: sys.setprofile(None)

def forked(*args):
    child = multiprocessing.get_context("fork").Process(target=profiled, args=args)
    child.start()
    child.join()
    return child.exitcode

def same(a, b):
    return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in ((a.weights, b.weights), (a.tokens, b.tokens))) and a.info["history"] == b.info["history"]

def killed_at_random(tmp_path, times, monkeypatch):
    "How many runs were carried to their end, and where all were killed."
    monkeypatch.setenv("SAS_NB_CACHE", "") # put back at the end
    dit, calls, seed = base(), Calls(), random.SystemRandom().randrange(10**6)
    whole = profiled(calls, tmp_path/"whole", tmp_path/"cache of whole", base())
    chance, where, run = random.Random(seed), [], 0
    def folders(): return tmp_path/f"run {run}", tmp_path/f"cache {run}"
    def finished():
        concept = profiled(Calls(), *folders(), base())
        assert same(concept, whole), (seed, run, where)
    while len(where) < times:
        share = (len(where) + chance.random())/times # over all phases
        code = forked(Calls(max(1, int(share*calls.n)), tmp_path/"where"), *folders(), dit)
        assert code in (0, -signal.SIGKILL), (seed, run, where)
        if code: where.append((run, (tmp_path/"where").read_text()))
        else:
            finished()
            run += 1
    finished()
    return run+1, where

def test_killed_at_a_few_random_moments_and_the_same_to_the_bit(tmp_path, monkeypatch):
    _, where = killed_at_random(tmp_path, 3, monkeypatch)
    assert len(where) == 3

@pytest.mark.slow
def test_killed_at_twenty_random_moments_and_the_same_to_the_bit(tmp_path, monkeypatch):
    _, where = killed_at_random(tmp_path, 20, monkeypatch)
    print(where)
    phases = {p for _, path in where for p in path.split()}
    assert len(where) == 20 and {"_prior", "fit"} <= phases and phases & {"embed_once", "encode_once"}, where

@pytest.mark.parametrize("stage", ["appearance", "motion"])
def test_a_fresh_machine_goes_on(tmp_path, monkeypatch, stage):
    "Run and cache were in a folder of the user's; the folder of the run is all that is left, and this machine encodes otherwise in the last bits."
    monkeypatch.setenv("SAS_NB_CACHE", str(tmp_path/"drive"/"cache"))
    whole = into(tmp_path/"whole", base())
    one_step, ran = Trainer.train_step, []
    def dies(self):
        if (self.stage.name, self.step) == (stage, 2): raise SystemExit
        one_step(self)
    with monkeypatch.context() as m:
        m.setattr(Trainer, "train_step", dies)
        with pytest.raises(SystemExit): into(tmp_path/"drive"/"run", base())
    assert list((tmp_path/"drive"/"cache").iterdir()), "the cache is where it was asked for"
    shutil.copytree(tmp_path/"drive"/"run", tmp_path/"elsewhere", ignore=shutil.ignore_patterns("run.lock"))
    monkeypatch.setenv("SAS_NB_CACHE", str(tmp_path/"empty"))
    encode, embed = VideoDiT.encode, VideoDiT.embed
    monkeypatch.setattr(VideoDiT, "encode", lambda self, frames: encode(self, frames)*(1+1e-6))
    monkeypatch.setattr(VideoDiT, "embed", lambda self, *args, **kwargs: embed(self, *args, **kwargs)*(1+1e-6))
    monkeypatch.setattr(Trainer, "train_step", lambda self: (ran.append(self.stage.name), one_step(self)))
    concept = into(tmp_path/"elsewhere", base())
    assert ran == dict(appearance=["appearance"]+["motion"]*3, motion=["motion"])[stage]
    if stage == "motion": assert same(concept, whole), "all that it learned from was with the run"
    for k, w in whole.weights.items(): torch.testing.assert_close(concept.weights[k], w, atol=1e-4, rtol=1e-3)
