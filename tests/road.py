"Short ways to the road's objects: a stage from a few numbers, an adapter that stays on a model until the next one."
from dataclasses import fields, replace
import torch
from sas_nb.adapter import SharedLoRA
from sas_nb.data import StageData
from sas_nb.memory import Memory
from sas_nb.recipe import Recipe, Run
from sas_nb.train import Trainer

MEMORY = {f.name for f in fields(Memory)}
RUN = {f.name for f in fields(Run)} | MEMORY


def stage(name="appearance", **changes):
    "The paper's stage of this name, with some numbers changed."
    paper = Recipe.paper()
    return replace(paper.stage1 if name == "appearance" else paper.stage2, **changes)


def recipe(stage1=None, stage2=None, both=None, **changes):
    "The paper's recipe, changed."
    return Recipe.paper().with_(both=both, stage1=stage1, stage2=stage2, **changes)


def split(numbers):
    "Numbers of a stage, and those of a run."
    return {k: v for k, v in numbers.items() if k not in RUN}, {k: v for k, v in numbers.items() if k in RUN}


def run(**given):
    "A quiet run; what is of `Memory` goes there."
    memory = Memory(**{k: v for k, v in given.items() if k in MEMORY})
    return Run(**dict(progress=False, memory=memory) | {k: v for k, v in given.items() if k not in MEMORY})


_on = {}


def off(dit):
    "Whatever a test put on this model comes off."
    if context := _on.pop(id(dit), None): context.__exit__(None, None, None)


def all_off():
    for context in list(_on.values()): context.__exit__(None, None, None)
    _on.clear()


def put_on(adapter):
    "An adapter (or a concept's) on its model until the next one, or the end of the test."
    off(adapter.dit)
    context = adapter.attached()
    worn = context.__enter__()
    _on[id(adapter.dit)] = context
    return worn


def new(dit, *args, **kwargs):
    "A new adapter, on its model."
    return put_on(SharedLoRA(dit, *args, **kwargs))


def trainer(adapter, data, stage, prior=None, prompts=("",), seeds=None, **given):
    "A trainer over examples, or over those of several concepts."
    data = StageData(data if isinstance(data, list) else [data], prior, list(prompts))
    return Trainer(adapter.dit, adapter, data, stage, run(**given), seeds)


def latents(dit, n=1, frames=5, side=8, seed=None):
    "Noise in the shape of n clips of so many frames, of any base."
    g = None if seed is None else torch.Generator().manual_seed(seed)
    t = (frames-1)//dit.family.factors(dit.configuration)[0] + 1
    return torch.randn(n, dit.transformer.config.in_channels, t, side, side, generator=g)


def tensors(adapter, i=0): return adapter.member(i)[0]
