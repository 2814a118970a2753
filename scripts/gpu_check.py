"""Does it hold on a real card? Right, peaks, small cards, speed, large models, text, with random weights.

    python scripts/gpu_check.py run --minutes 8.5 --out data/bench/gpu  # one H100 or H200
    python scripts/gpu_check.py run --toy --minutes 1 --out out/gpu_check  # toy length, on a CPU
    python scripts/gpu_check.py plans --out data/bench/gpu              # afterwards: plans that are missing

On a machine without network, which has PyTorch, transformers, accelerate, peft and safetensors, the wheels of
the others come along: `python scripts/gpu_base.py wheels` puts them into out/carry, and there the command is

    python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/site out/carry/wheels/*.whl &&
    export PYTHONPATH=/tmp/site:$PWD PYTHONUNBUFFERED=1 &&
    python3 scripts/gpu_check.py run --minutes 8.5 --limit 8.9 --out "$OUT"

Models have the published layouts (data/models) and weights that are made on the card, so nothing here says
how good anything looks. Each part has a share of the time and writes a JSON of its own in the folder, anew
after each of its points: what is there when the time is over is enough. What fails is written down with its
error, and the next one begins. A second process plans meanwhile, on the processor, what the part `peaks`
measures. Targets stand beside the figures. Compiling comes last, since nobody knows how long it takes.
"""
import time
START = time.time()  # imports are on the clock too
import importlib, importlib.util, sys, types
if importlib.util.find_spec("av") is None:  # no video is read here, and nobody else is to believe in it
    sys.modules["av"] = types.ModuleType("av")
    importlib.import_module("sas_nb.clip")
    del sys.modules["av"]
import gc, json, os, platform, shutil, subprocess, tempfile, threading, traceback, zlib
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Annotated
import torch, typer
from accelerate import init_empty_weights
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from peft import LoraConfig
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import sdpa_kernel, SDPBackend
from torch.utils.flop_counter import FlopCounterMode
from transformers import UMT5Config, UMT5EncoderModel
from sas_nb.adapter import SharedLoRA
from sas_nb.advice import GenerationConfig
from sas_nb.cache import data_path
from sas_nb.cards import Card, CARDS, GIB
from sas_nb.clip import Clip
from sas_nb.data import Examples, StageData
from sas_nb.dit import VideoDiT
from sas_nb.fake import Counted
from sas_nb.fast import best_device
from sas_nb.hub import Checkpoint
from sas_nb.learning import learn
from sas_nb.memory import Memory
from sas_nb.offload import checkpointed
from sas_nb.phases import CONTEXT, Job, needed
from sas_nb.prompt import checked_prompts
from sas_nb.recipe import Recipe, Run
from sas_nb.scaling import try_step
from sas_nb.sketch import Sketch
from sas_nb.streamed import StreamedEncoder
from sas_nb.train import Trainer
from sas_nb.writing import atomic

SMALL, LARGE, TI2V = (f"Wan-AI/{name}-Diffusers" for name in ("Wan2.1-T2V-1.3B", "Wan2.1-T2V-14B",
                                                              "Wan2.2-TI2V-5B"))
# a model of each kind that a CPU trains in no time
NARROW = dict(transformer=dict(num_layers=4, num_attention_heads=2, attention_head_dim=16, ffn_dim=64,
                               text_dim=32, freq_dim=32),
              text_encoder=dict(num_layers=2, d_model=32, d_kv=16, d_ff=64, num_heads=2, vocab_size=100),
              vae=dict(base_dim=8))
TOKENS = 64  # of a prompt
# of the time, in their order
SHARES = dict(right=.12, peaks=.23, small=.16, speed=.23, large=.13, text=.07, compile=.06)
TARGETS = dict(
    right=dict(right=True),
    peaks=dict(ratio_from=.85, ratio_to=1.15),
    small=dict(fits=True),
    speed=dict(stage_1_ratio=2., stage_2_ratio=1.25, share_of_matrix_rate=.45),
    large=dict(peak_gib={"TI2V-5B, 81 frames": 14., "14B in fp8, 33 frames": 22.5}),
    text=dict(host_gib=3.),
    compile={},
)
SPARING = Memory(apart=True, checkpointing=True, at_once=1)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@dataclass
class Check:
    "What all parts share."
    out: Path
    minutes: float
    device: torch.device
    toy: bool
    parts: list
    began: float = field(default_factory=time.time)
    work: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="gpu_check_")))

    cuda = property(lambda self: self.device.type == "cuda")
    dtype = property(lambda self: torch.bfloat16 if self.cuda else torch.float32)
    repeats = property(lambda self: 1 if self.toy else 3)

    def until(self, part: str) -> float:
        "When this part has had its time, and what those before it have left."
        whole = sum(SHARES[p] for p in self.parts)
        had = sum(SHARES[p] for p in self.parts[:self.parts.index(part)+1])
        return self.began+60*self.minutes*had/whole

    def shape(self, *size: int) -> tuple[int, int, int]:
        "Frames, height and width."
        return (min(size[0], 5), 32, 32) if self.toy else size

    def home(self, model: str) -> str:
        "The model's name; a folder with the configurations of a narrow one, at toy length."
        return str(narrowed(model, self.work)) if self.toy else model

    @cached_property
    def where(self) -> dict:
        gpu = torch.cuda.get_device_properties(self.device) if self.cuda else None
        return dict(gpu=gpu and gpu.name, gib=gpu and gpu.total_memory/GIB, torch=torch.__version__,
                    cuda=torch.version.cuda, python=platform.python_version(), toy=self.toy)


def narrowed(model: str, work: Path) -> Path:
    "A folder with a model's configurations, and fewer and narrower layers."
    source = data_path(f"models/{model}")
    for file in source.rglob("*.json"):
        part = file.parent.name
        changes = NARROW.get(part, {})
        about = json.loads(file.read_text())
        if part == "vae" and "decoder_base_dim" in about: changes = changes | dict(decoder_base_dim=16)
        path = work/"models"/model/file.relative_to(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(about | changes))
    return work/"models"/model


# ---- models made here


class Made(Sketch):
    "A published layout with random weights, which are made where they compute."
    commit = revision = None

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype, layers: int | None = None):
        super().__init__(name, CARDS["h200"])
        self.device, self.dtype = device, dtype
        if layers:
            self.configurations["transformer"] |= dict(num_layers=layers)
            self.about = self.about[0], self.configurations["transformer"], self.about[2]

    def part(self, name, memory=Memory()): return Checkpoint.part(self, name, memory)

    def stored(self, part): return {}, {}  # there are no files

    def pipeline(self, vae_dtype=torch.float32, **parts):
        wanted = [n for n in self.family.parts if n not in parts]
        return SimpleNamespace(**{n: self.made(n, vae_dtype if n == "vae" else self.dtype) for n in wanted})

    def made(self, name: str, dtype: torch.dtype):
        "One part. Raises `UserError` for an unknown class."
        kind, config = self.kind(name), self.configurations[name]
        if name == "scheduler": return kind.from_config(config)
        with init_empty_weights(include_buffers=False): module = kind.from_config(config)
        return filled(module, self.device, dtype, set(kind._keep_in_fp32_modules or ()))


def filled(module: nn.Module, device, dtype, exact: set) -> nn.Module:
    "Random weights in a module without any; those of modules named in `exact` in float32."
    g = torch.Generator(device).manual_seed(0)
    for prefix, m in module.named_modules():
        for name, p in m._parameters.items():
            if p is None: continue
            own = torch.float32 if exact & {*prefix.split("."), name} else dtype
            weight = torch.zeros(p.shape, dtype=own, device=device)
            if p.ndim > 1 and name != "gamma": weight.normal_(std=p[0].numel()**-.5, generator=g)
            elif name != "bias": weight.fill_(1)
            m._parameters[name] = nn.Parameter(weight, requires_grad=False)
    return module


class Standing(VideoDiT):
    "A model whose texts are random too: the same for the same prompt."
    def check_words(self, prompt): "Every word is known."

    def too_long(self, prompt) -> str: return ""

    def embed(self, prompts, tokens=None):
        prompts = checked_prompts(prompts)
        rows = torch.stack([self.text(p.plain) for p in prompts])
        return self.family.text.add(rows, [p.placeholders for p in prompts], tokens or {})

    def text(self, plain: str):  # (L, D), the last one padding
        g = torch.Generator().manual_seed(zlib.crc32(plain.encode()))
        text = torch.randn(TOKENS, self.text_width, generator=g)
        text[-1] = 0
        return text.to(self.device, self.dtype)

    def embed_once(self, prompts):
        several = isinstance(prompts, (list, tuple))
        texts = list(self.embed(prompts).cpu().split(1))
        return texts if several else texts[0]


def made(check: Check, model: str = SMALL, memory: Memory = SPARING, dtype=None, layers=None) -> Standing:
    checkpoint = Made(check.home(model), check.device, dtype or check.dtype, layers)
    advice = GenerationConfig.read(checkpoint.home, checkpoint.family.defaults(*checkpoint.about))
    return Standing(checkpoint, model, replace(advice, steps=2), memory)


def stage(name: str, **changes):
    recipe = Recipe.default().with_(both=dict(prior=0., counterfactuals=0.))
    return replace(recipe.stage1 if name == "appearance" else recipe.stage2, **changes)


def data(dit: Standing, shape: tuple, n: int, name: str) -> StageData:
    "Random latents of `n` clips of a shape."
    g = torch.Generator().manual_seed(1)
    latents = torch.randn(n, *dit.family.latents_of(dit.configuration, *shape), generator=g)
    words = [["[v]"] if name == "appearance" else ["[v]", "[u]"]]
    text = dit.embed_once("a person")
    return StageData([Examples(latents, [text], words, reading=dit.family.text)], None, ["a person"])


@contextmanager
def training(dit: Standing, shape: tuple, name: str = "motion", n: int = 1, out=None, **changes):
    "A trainer over random data, with an adapter that is on its model inside; coefficients are not zero."
    assert dit.transformer is not None  # read before layers are counted
    adapter = SharedLoRA(dit, Recipe.default().rank)
    g = torch.Generator().manual_seed(2)
    for k, p in adapter.weights.items():
        if not k.endswith(".A"): p.data.copy_(.02*torch.randn(p.shape, generator=g))
    run = Run(out=out, progress=False)
    with adapter.attached(), checkpointed(dit):
        yield Trainer(dit, adapter, data(dit, shape, n, name), stage(name, **changes), run)


# ---- measuring


def wait(check: Check):
    if check.cuda: torch.cuda.synchronize(check.device)


def clean(check: Check):
    gc.collect()
    if check.cuda: torch.cuda.empty_cache()


def seconds(check: Check, f, warm: bool = True) -> float:
    "Median seconds of a call, after a first one."
    if warm: f()
    times = []
    for _ in range(check.repeats):
        wait(check)
        began = time.perf_counter()
        f()
        wait(check)
        times.append(time.perf_counter()-began)
    return median(times)


class Peak:
    "Most memory of the device that is taken inside, beyond what was before; on a CPU what tensors take."
    def __init__(self, check: Check):
        self.check = check
        self.counted = nullcontext() if check.cuda else Counted()

    def __enter__(self):
        clean(self.check)
        self.before = torch.cuda.memory_allocated() if self.check.cuda else 0
        self.restart()
        self.counted.__enter__()
        return self

    def __exit__(self, *error): return self.counted.__exit__(*error)

    def restart(self):
        if self.check.cuda: torch.cuda.reset_peak_memory_stats()
        else: self.counted.restart()

    @property
    def gib(self) -> float:
        if self.check.cuda: return (torch.cuda.max_memory_allocated()-self.before)/GIB
        return self.counted.peak.get("cpu", 0)/GIB


def apart(ours: dict, theirs: dict) -> float:
    "The largest relative distance of tensors by name, each measured by the largest number of its own."
    assert ours.keys() == theirs.keys()
    def one(a, b): return float((a.float()-b.float()).abs().max()/b.float().abs().max().clamp(min=1e-30))
    return max(one(ours[k], v) for k, v in theirs.items())


# ---- right


def right(check: Check) -> dict:
    "Full width, few layers: what must be equal is."
    return {"resume": partial(resume, check), "fp16": partial(half, check),
            "padding token": partial(padding, check), **{
                name: partial(same_gradients, check, replace(Memory(at_once=64), **how))
                for name, how in {"checkpointed": dict(checkpointing=True),
                                  "inputs on the host": dict(checkpointing=True, inputs_on_host=True),
                                  "blocks swapped": dict(checkpointing=True, swapped=2),
                                  "all blocks swapped": dict(checkpointing=True, swapped=4),
                                  "one sample at a time": dict(checkpointing=True, at_once=1)}.items()}}


def verdict(distance: float, again: float, floor: float) -> dict:
    "Right if it is no further away than another run of the same is, or than rounding is."
    return dict(right=distance <= max(4*again, floor), distance=distance, distance_of_same_again=again)


def weights(trainer) -> dict: return {k: p.detach().float().cpu().clone() for k, p in trainer.trained.items()}


def resume(check: Check) -> dict:
    "Four steps, unbroken (twice) and with a new start in the middle."
    dit, shape = made(check, layers=4), check.shape(17, 256, 256)
    how = dict(shape=shape, n=2, steps=4, batch=2)

    def unbroken():
        with training(dit, **how) as trainer:
            trainer.fit()
            return weights(trainer)

    with training(dit, **how, out=check.work/"resume") as trainer:
        for _ in range(2): trainer.train_step()
        trainer.save()
    with training(dit, **how, out=check.work/"resume") as trainer:
        trainer.fit()
        broken, steps = weights(trainer), trainer.step
    first = unbroken()
    return verdict(apart(broken, first), apart(unbroken(), first), 1e-6) | dict(steps=steps)


def half(check: Check, steps: int = 10) -> dict:
    "fp16: losses are finite; a step that overflows changes nothing and halves the scale."
    dit = made(check, dtype=torch.float16, layers=4)
    with training(dit, check.shape(17, 256, 256), n=2, steps=steps, batch=2) as trainer:
        for _ in range(2 if check.toy else steps): trainer.train_step()
        losses, before, scale = torch.cat([r[1] for r in trainer.recent]), weights(trainer), 2.**100
        trainer.scaler.update(scale)
        stepped = try_step(trainer)
        after = trainer.scaler.get_scale()
        kept = apart(weights(trainer), before) == 0
    well = bool(torch.isfinite(losses).all()) and not stepped and kept and after == scale/2
    return dict(right=well, losses=losses.tolist(), overflow_skipped=not stepped and kept, scale_after=after)


def gradients(dit: Standing, shape: tuple) -> dict:
    with training(dit, shape, n=2, steps=1, batch=2, bf16=False) as trainer:
        trainer.accumulate()
        return {k: p.grad.float().cpu() for k, p in trainer.trained.items() if p.grad is not None}


def same_gradients(check: Check, memory: Memory) -> dict:
    shape = check.shape(17, 256, 256)
    dit = made(check, memory=Memory(at_once=64), layers=4)
    plain, again = gradients(dit, shape), gradients(dit, shape)
    dit.memory = memory
    return verdict(apart(gradients(dit, shape), plain), apart(again, plain),
                   2e-2 if check.dtype == torch.bfloat16 else 1e-4)


def stock(transformer):
    "The attention that diffusers ships."
    for block in transformer.blocks: block.attn2.set_processor(WanAttnProcessor())


@torch.no_grad()
def padding(check: Check) -> dict:
    "One token that stands for all padding, against text padded to its full length, in float32."
    dit = made(check, dtype=torch.float32, layers=4)
    shape = dit.family.latents_of(dit.configuration, *check.shape(17, 256, 256))
    x, t, text = torch.randn(1, *shape), torch.tensor([.5]), dit.embed("a person")
    ours = dit.velocity(x, t, text)
    stock(dit.transformer)
    return verdict(apart(dict(v=ours), dict(v=dit.velocity(x, t, text))), 0., 1e-4)


# ---- peaks


def recipe_of(images: bool = False) -> Recipe:
    base = Recipe.paper() if images else Recipe.default()
    return base.with_(both=dict(steps=2, batch=2, prior=0., counterfactuals=0.))


PEAKS = {  # phase of the plan, frames, height, width, memory, recipe
    "stage 2, 33 frames": ("stage 2", (33, 480, 832), SPARING, recipe_of()),
    "stage 2, 49 frames": ("stage 2", (49, 480, 832), SPARING, recipe_of()),
    "stage 2, 81 frames": ("stage 2", (81, 480, 832), SPARING, recipe_of()),
    "stage 2, 49 frames, inputs on the host":
        ("stage 2", (49, 480, 832), replace(SPARING, inputs_on_host=True), recipe_of()),
    "stage 2, 33 frames, two at once": ("stage 2", (33, 480, 832), replace(SPARING, at_once=2), recipe_of()),
    "stage 1, frozen": ("stage 1", (49, 480, 832), SPARING, recipe_of()),
    "stage 1, images": ("stage 1", (49, 480, 832), replace(SPARING, at_once=8), recipe_of(images=True)),
    "encoding, 49 frames": ("encoding", (49, 480, 832), SPARING, recipe_of()),
    "sampling, 81 frames": ("sampling", (81, 480, 832), SPARING, recipe_of()),
    "decoding, 33 frames": ("decoding", (33, 480, 832), SPARING, recipe_of()),
    "decoding, 33 frames, tiles": ("decoding", (33, 480, 832), replace(SPARING, tiled=True), recipe_of()),
}


def peaks(check: Check) -> dict:
    return {name: partial(measured_peak, check, *point) for name, point in PEAKS.items()}


def measured_peak(check: Check, phase: str, size: tuple, memory: Memory, recipe: Recipe) -> dict:
    "What a phase of a run takes on the card. How its weights come there is not measured: they are random."
    shape = check.shape(*size)
    with Peak(check) as peak:
        dit = made(check, memory=memory)
        assert (dit.vae if phase in ("encoding", "decoding") else dit.transformer) is not None
        clean(check)
        peak.restart()
        began = time.perf_counter()
        WORK[phase](dit, shape, recipe)
        wait(check)
        return dict(measured_gib=peak.gib, seconds=time.perf_counter()-began)


def _set(dit, shape, recipe):
    size = 1 if not recipe.stage1.frozen else min(shape[0], dit.defaults.frozen_frames)
    _train(dit, (size, *shape[1:]), "appearance", 8, recipe.stage1.batch)


def _sequence(dit, shape, recipe): _train(dit, shape, "motion", 1, recipe.stage2.batch)


def _train(dit, shape, name, n, batch):
    with training(dit, shape, name, n, steps=2, batch=batch) as trainer: trainer.fit()


def _encode(dit, shape, recipe):
    T, H, W = shape
    frames = torch.rand(T, 3, H, W)
    dit.encode(frames[None])
    dit.encode(frames[:1].expand(dit.defaults.frozen_frames, -1, -1, -1)[None])


def _sample(dit, shape, recipe):
    T, H, W = shape
    assert dit.transformer is not None
    with SharedLoRA(dit, recipe.rank).attached():
        dit.sample("a person", num_frames=T, height=H, width=W, latents=True)


def _decode(dit, shape, recipe): dit.decode(dit.noise([0], *shape))


WORK = {"stage 1": _set, "stage 2": _sequence, "encoding": _encode, "sampling": _sample, "decoding": _decode}


def plan_all(out: Path, toy: bool, work: Path):
    "Write what the plan says about each point into planned.json, as it is known."
    check = Check(out, 1, torch.device("cpu"), toy, list(SHARES), work=work)
    card = Card("this CPU", 1000., .1, .1, 1., bf16=False, device="cpu") if toy else CARDS["h200"]
    planned = read(out/"planned.json")
    for name, (phase, size, memory, recipe) in PEAKS.items():
        if name in planned: continue
        found = needed(Job(check.home(SMALL), check.shape(*size), recipe, card), memory, phase)
        planned[name] = (found.host if toy else found.card)/GIB
        write(out/"planned.json", planned)
    compare(out)


def compare(out: Path):
    "Put the plan's figures beside those that were measured."
    result, planned = read(out/"peaks.json"), read(out/"planned.json")
    for name, point in result.get("points", {}).items():
        if name not in planned or "measured_gib" not in point: continue
        point |= dict(planned_gib=planned[name], ratio=point["measured_gib"]/planned[name])
    if result: write(out/"peaks.json", result)


def read(path: Path) -> dict: return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, what: dict):
    with atomic(path) as tmp: tmp.write_text(json.dumps(what, indent=1, default=str))


# ---- small cards


ON_HOST = Memory(apart=True, tiled=True, checkpointing=True, at_once=1, inputs_on_host=True)
ROADS = {  # GiB, model, size of the clip, memory, precision, share of prior
    "T4, the tutorial": (14.6, SMALL, (33, 320, 512), ON_HOST, torch.float16, .5),
    "L4, larger": (22., SMALL, (49, 480, 832), ON_HOST, torch.bfloat16, 0.),
    "A100, larger": (39.4, SMALL, (49, 480, 832), SPARING, torch.bfloat16, 0.),
}


def small(check: Check) -> dict: return {name: partial(road, check, *how) for name, how in ROADS.items()}


@contextmanager
def smaller(check: Check, gib: float):
    "Inside, the card has only so much memory; what CUDA itself takes of it is not counted by PyTorch."
    if not check.cuda: return (yield)
    torch.cuda.set_per_process_memory_fraction((gib*GIB-CONTEXT)/(check.where["gib"]*GIB))
    try: yield
    finally: torch.cuda.set_per_process_memory_fraction(1.)


def road(check: Check, gib, model, size, memory, dtype, prior) -> dict:
    "From a clip to a sample of its concept, two steps each; where it stops if it does not fit."
    T, H, W = check.shape(*size)
    recipe = recipe_of().with_(both=dict(prior=prior))
    clip = Clip(torch.rand(T, 3, H, W, generator=torch.Generator().manual_seed(0)), 16.)
    began = time.perf_counter()
    with smaller(check, gib), Peak(check) as peak:
        dit = made(check, model, memory, dtype if check.cuda else None)
        words = "a [v] person in a shirt", "they are [u] moving"
        try:
            concept = learn(clip, words, dit, recipe, Run(progress=False, memory=memory))
            concept.generate(seed=0, steps=2, num_frames=T, height=H, width=W)
        except torch.OutOfMemoryError as e: return dict(fits=False, gib=gib, error=errors(e))
        return dict(fits=True, gib=gib, peak_gib=peak.gib, seconds=time.perf_counter()-began)


# ---- speed


LOOPS = {  # stage, frames, height, width, examples, batch
    "stage 2, 49 frames": ("motion", (49, 480, 832), 1, 2),
    "stage 1, images": ("appearance", (1, 480, 832), 8, 8),
    "stage 1, frozen": ("appearance", (9, 480, 832), 8, 8),
}


def speed(check: Check) -> dict:
    rate = {}
    def once():
        if not rate: rate.update(matrix_rate(check))
        return rate
    first = {"matrix rate": once}
    loops = {name: partial(against_loop, check, once, *how) for name, how in LOOPS.items()}
    backends = {f"attention, {name}": partial(attention, check, *how) for name, how in ATTENTION.items()}
    last = {"padding": partial(paddings, check), "micro-batch": partial(pieces, check)}
    return first | loops | backends | last


def config(check: Check) -> dict: return Made(check.home(SMALL), check.device, check.dtype).about[1]


def tokens(check: Check, *size: int) -> int:
    T, H, W = check.shape(*size)
    return ((T-1)//4+1)*(H//16)*(W//16)


def matrix_rate(check: Check) -> dict:
    "Operations a second of the model's largest product."
    c, L = config(check), tokens(check, 81, 480, 832)
    d, wide = c["num_attention_heads"]*c["attention_head_dim"], c["ffn_dim"]
    x, w = (torch.randn(s, dtype=check.dtype, device=check.device) for s in ((L, d), (d, wide)))
    def many():
        for _ in range(10): x@w
    return dict(tflops=10*2*L*d*wide/seconds(check, many)/1e12, shape=[L, d, wide])


def against_loop(check: Check, rate, name: str, size: tuple, n: int, batch: int) -> dict:
    "A step of ours and of the loop that trainers have, on the same tokens."
    shape = check.shape(*size)
    if check.toy: n, batch = 2, 2
    ours = {}
    for at_once in (1, batch):
        dit = made(check, memory=replace(SPARING, at_once=at_once))
        with training(dit, shape, name, n, steps=1000, batch=batch) as trainer:
            ours[at_once] = seconds(check, trainer.train_step)
            with FlopCounterMode(display=False) as flops: trainer.train_step()
        del dit, trainer
        clean(check)
    loop = straightforward(check, shape, batch)
    theirs = seconds(check, loop)
    best, tflop = min(ours.values()), flops.get_total_flops()/1e12
    return dict(ours_seconds=ours, loop_seconds=theirs, ratio=theirs/best, tflop=tflop,
                tflops=tflop/best, share_of_matrix_rate=tflop/best/rate()["tflops"])


def straightforward(check: Check, shape: tuple, batch: int):
    """A training step as trainers have it: cached latents and text, LoRA of peft with dropout, checkpointing,
    text with all its padding. In one pass."""
    about = Made(check.home(SMALL), check.device, check.dtype)
    transformer = about.made("transformer", check.dtype).to(check.device).train()
    transformer.add_adapter(LoraConfig(r=Recipe.default().rank, target_modules=about.family.lora_layers,
                                       lora_dropout=.2))
    transformer.enable_gradient_checkpointing()
    own = [p for p in transformer.parameters() if p.requires_grad]
    for p in own: p.data = p.data.to(check.dtype)
    optimizer = torch.optim.AdamW(own, lr=1e-4, fused=True)
    configuration = dict(pipeline=about.about[0], transformer=about.about[1], vae=about.about[2])
    latents = torch.randn(batch, *about.family.latents_of(configuration, *shape))
    text = torch.zeros(batch, 512, about.about[1]["text_dim"])
    text[:, :TOKENS] = torch.randn(batch, TOKENS, text.shape[-1])

    def step():
        x0, words = (v.to(check.device, check.dtype) for v in (latents, text))
        t, noise = torch.rand(batch, device=check.device).to(check.dtype), torch.randn_like(x0)
        s = t.view(-1, 1, 1, 1, 1)
        v = transformer(hidden_states=(1-s)*x0+s*noise, timestep=1000*t, encoder_hidden_states=words,
                        return_dict=False)[0]
        F.mse_loss(v.float(), (noise-x0).float()).backward()
        nn.utils.clip_grad_norm_(own, .05)
        optimizer.step()
        optimizer.zero_grad()
    return step


BACKENDS = dict(flash=SDPBackend.FLASH_ATTENTION, cudnn=SDPBackend.CUDNN_ATTENTION,
                efficient=SDPBackend.EFFICIENT_ATTENTION, math=SDPBackend.MATH)
ATTENTION = {"self": (0, False), "text, masked padding token": (TOKENS, True),
             "text, all padding": (512, False), "text, no padding": (TOKENS, False)}


def attention(check: Check, keys: int, masked: bool) -> dict:
    "Seconds of attention, forward and backward, by each backend; an error where one cannot."
    c, L = config(check), tokens(check, 49, 480, 832)
    heads, width = c["num_attention_heads"], c["attention_head_dim"]
    def some(n): return torch.randn(1, heads, n, width, dtype=check.dtype, device=check.device)
    q, k, v = (some(n).requires_grad_() for n in (L, keys or L, keys or L))
    gradient = some(L)
    mask = torch.zeros(1, 1, 1, keys, dtype=check.dtype, device=check.device) if masked else None
    def both(backend):
        with sdpa_kernel(backend): out = F.scaled_dot_product_attention(q, k, v, mask)
        torch.autograd.grad(out, (q, k, v), gradient)
    names = [name for name in BACKENDS if name != "math" or keys or check.toy]  # all scores would not fit
    return {name: attempt(lambda name=name: dict(seconds=seconds(check, partial(both, BACKENDS[name]))))
            for name in names}


def timed_step(check: Check, memory: Memory, change=None, batch: int = 2, size=(33, 320, 512)) -> float:
    "Seconds of a step of stage 2, after something was changed in the transformer."
    dit = made(check, memory=memory)
    if change: change(dit.transformer)
    with training(dit, check.shape(*size), steps=1000, batch=batch) as trainer:
        return seconds(check, trainer.train_step)


def unpadded(transformer):
    "No padding at all: attention needs no mask, and flash is used. Not the stock answer."
    for block in transformer.blocks: block.attn2.processor.length = 1


def paddings(check: Check) -> dict:
    ways = {"one token, masked": None, "all, as stock": stock, "none": unpadded}
    size = 49, 480, 832
    return {name: attempt(lambda f=f: dict(seconds=timed_step(check, SPARING, f, 1, size)))
            for name, f in ways.items()}


def pieces(check: Check) -> dict:
    "Seconds of a step of four, by how many are in a pass."
    return {str(n): attempt(lambda n=n: dict(seconds=timed_step(check, replace(SPARING, at_once=n), None, 4)))
            for n in (1, 2, 4)}


def compiling(check: Check) -> dict: return {"each block": partial(regional, check)}


def regional(check: Check) -> dict:
    "Each block compiled, which is once for all of them."
    began = time.perf_counter()
    plain = timed_step(check, SPARING)
    if check.toy: return dict(plain_seconds=plain, note="not compiled at toy length")
    def compile_blocks(transformer):
        for block in transformer.blocks: block.compile(dynamic=False)
    compiled = timed_step(check, SPARING, compile_blocks)
    return dict(plain_seconds=plain, compiled_seconds=compiled, ratio=plain/compiled,
                seconds_in_all=time.perf_counter()-began)


# ---- large models


FP8 = replace(SPARING, weights="fp8")
STEPS = {  # model, size of the clip, memory
    "TI2V-5B, 81 frames": (TI2V, (81, 480, 832), SPARING),
    "TI2V-5B, 81 frames, inputs on the host": (TI2V, (81, 480, 832), replace(SPARING, inputs_on_host=True)),
    "14B in fp8, 33 frames": (LARGE, (33, 480, 832), FP8),
    "14B in fp8, 33 frames, inputs on the host": (LARGE, (33, 480, 832), replace(FP8, inputs_on_host=True)),
    "14B in fp8, 33 frames, half of the blocks on the host":
        (LARGE, (33, 480, 832), replace(FP8, inputs_on_host=True, swapped=20)),
}


def large(check: Check) -> dict: return {name: partial(one_step, check, *how) for name, how in STEPS.items()}


def one_step(check: Check, model: str, size: tuple, memory: Memory) -> dict:
    if check.toy and memory.swapped: memory = replace(memory, swapped=2)
    with Peak(check) as peak:
        dit = made(check, model, memory)
        with training(dit, check.shape(*size), steps=1000, batch=1) as trainer:
            clean(check)
            peak.restart()  # weights of 16 bits were there before those of 8
            return dict(step_seconds=seconds(check, trainer.train_step), peak_gib=peak.gib)


# ---- text


def text(check: Check) -> dict: return {"UMT5-XXL streamed, twelve prompts": partial(streamed, check)}


def shards(check: Check, folder: Path) -> int:
    "A text encoder's files, one a layer, with random weights in bfloat16; their bytes."
    configuration = UMT5Config(**Sketch(check.home(SMALL), CARDS["h200"]).configurations["text_encoder"])
    folder.mkdir(parents=True)
    configuration.save_pretrained(folder)
    with torch.device("meta"): model = UMT5EncoderModel(configuration)
    groups = {}
    for name, p in model.state_dict().items():
        if name == "encoder.embed_tokens.weight": continue
        layer = name.split(".")[2] if name.startswith("encoder.block.") else "rest"
        groups.setdefault(f"model-{layer}.safetensors", {})[name] = p.shape
    for file, shapes in groups.items():
        save_file({name: random_weight(check, shape) for name, shape in shapes.items()}, folder/file)
    places = {name: file for file, shapes in groups.items() for name in shapes}
    (folder/"model.safetensors.index.json").write_text(json.dumps(dict(metadata={}, weight_map=places)))
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))


def random_weight(check: Check, shape):
    w = torch.ones(shape, dtype=torch.bfloat16, device=check.device)
    return (w.normal_(std=shape[-1]**-.5) if len(shape) > 1 else w).cpu()


def anonymous() -> float | None:
    "GiB of this process's memory that is no file's, where the system tells."
    try: lines = Path("/proc/self/status").read_text().splitlines()
    except OSError: return None
    return next((int(n.split()[1])/2**20 for n in lines if n.startswith("RssAnon:")), None)


def streamed(check: Check, prompts: int = 12) -> dict:
    folder = check.work/"text_encoder"
    began = time.perf_counter()
    size = shards(check, folder)
    written = time.perf_counter()-began
    clean(check)
    encoder = StreamedEncoder(UMT5EncoderModel, folder, check.device, torch.bfloat16)
    ids = torch.randint(2, 90, (prompts, 512), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(512) < TOKENS).long().expand(prompts, -1)
    before, seen, over = anonymous(), [], threading.Event()

    def watch():
        while not over.wait(.01): seen.append(anonymous())
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    times = []
    try:
        with Peak(check) as peak:
            for _ in range(2):  # the second one finds the files in the system's memory
                began = time.perf_counter()
                answer = encoder(ids, mask).last_hidden_state
                wait(check)
                times.append(time.perf_counter()-began)
    finally: over.set()
    shutil.rmtree(folder)
    known = [n for n in seen if n is not None]
    return dict(gib_on_disk=size/GIB, seconds_to_write=written, seconds=times, peak_gib=peak.gib,
                host_gib=max(known)-before if known and before is not None else None,
                finite=bool(torch.isfinite(answer).all()))


# ---- all of it


PARTS = dict(right=right, peaks=peaks, small=small, speed=speed, large=large, text=text, compile=compiling)


def errors(e: Exception) -> str: return f"{type(e).__name__}: {e}"[:500]


def attempt(f) -> dict:
    "What `f` gives, or its error."
    try: return f()
    except Exception as e: return dict(error=errors(e), traceback=traceback.format_exc()[-2000:])


def do_part(check: Check, name: str):
    "All points of a part, as long as it has time; written after each."
    began = time.time()
    result = dict(part=name, where=check.where, targets=TARGETS[name], points={}, left=[])
    points = attempt(partial(PARTS[name], check))
    if "error" in points: result |= points
    else: result["left"] = list(points)
    write(check.out/f"{name}.json", result)
    for point in list(result["left"]):
        if time.time() > check.until(name): break
        at = time.time()
        result["points"][point] = attempt(points[point]) | dict(took=round(time.time()-at, 2))
        result["left"].remove(point)
        result["seconds"] = time.time()-began
        write(check.out/f"{name}.json", result)
        figures = {k: v for k, v in result["points"][point].items() if k != "traceback"}
        print(f"{time.time()-START:6.1f} s  {name}: {point}", figures, flush=True)
        clean(check)


def end_after(minutes: float):
    "What is written by then is all there is."
    clock = threading.Timer(60*minutes-(time.time()-START), os._exit, [3])
    clock.daemon = True
    clock.start()


def planning(check: Check) -> subprocess.Popen:
    "The plans, in a process beside this one."
    words = ["plans", "--out", str(check.out), "--work", str(check.work)] + ["--toy"]*check.toy
    with open(check.work/"plans.log", "w") as log:
        return subprocess.Popen([sys.executable, __file__, *words], stdout=log, stderr=log,
                                env=os.environ | dict(CUDA_VISIBLE_DEVICES=""))


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="For the JSON files.")] = Path("out/gpu_check"),
    minutes: Annotated[float, typer.Option(help="Of all parts together, imports included.")] = 8.5,
    limit: Annotated[float, typer.Option(help="Minutes after which all just ends; 0: never.")] = 0,
    toy: Annotated[bool, typer.Option("--toy", help="Tiny models and clips, on the CPU.")] = False,
    part: Annotated[list[str] | None, typer.Option(help="Only these parts.")] = None,
    plan: Annotated[bool, typer.Option(help="Plan beside it what `peaks` measures.")] = True,
):
    "All parts, by the clock."
    parts = [name for name in PARTS if not part or name in part]
    check = Check(out, minutes, torch.device("cpu") if toy else best_device(), toy, parts, START)
    if limit: end_after(limit)
    out.mkdir(parents=True, exist_ok=True)
    planner = planning(check) if plan and "peaks" in parts else None
    try:
        with own_cache(check.work):
            for name in parts: do_part(check, name)
    finally:
        if planner: planner.kill()
        compare(out)
        shutil.rmtree(check.work, ignore_errors=True)


@contextmanager
def own_cache(work: Path):
    "Inside, nothing is read from this machine's cache, or written there."
    before = os.environ.get("SAS_NB_CACHE")
    os.environ["SAS_NB_CACHE"] = str(work/"cache")
    try: yield
    finally:
        del os.environ["SAS_NB_CACHE"]
        if before is not None: os.environ["SAS_NB_CACHE"] = before


@app.command()
def plans(
    out: Annotated[Path, typer.Option(help="Where peaks.json is, or will be.")] = Path("data/bench/gpu"),
    toy: Annotated[bool, typer.Option("--toy")] = False,
    work: Annotated[Path | None, typer.Option(help="For configurations of toys.")] = None,
):
    "What the plan says about each point of `peaks`; no card is needed."
    plan_all(out, toy, work or Path(tempfile.mkdtemp()))


if __name__ == "__main__": app()
