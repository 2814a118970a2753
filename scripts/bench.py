"""How fast the training is: against straightforward loops, against the machine, and in minutes. Prints
tables and writes out/bench.json.

    python scripts/bench.py            # or: make bench; a few minutes
    python scripts/bench.py --quick    # under a minute: fewer repeats, wider errors
    python scripts/bench.py --full     # also trains 150 + 400 and 600 + 900 steps, instead of extrapolating

Both sides of a ratio run in this one process, in turns, at the same shapes, in the same precision, with the
same number of threads.
"""
import json, os, platform, subprocess, sys, time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated
import gpu_check, torch, typer
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from sas_nb.adapter import SharedLoRA
from sas_nb.cache import data_path
from sas_nb.clip import Clip
from sas_nb.data import Examples, frame_set, sequence, StageData
from sas_nb.dit import VideoDiT
from sas_nb.lab.draw import render_array
from sas_nb.lab.world import random_spec
from sas_nb.memory import Memory
from sas_nb.prompt import Prompt
from sas_nb.recipe import Recipe, Run
from sas_nb.terminal import spell_out
from sas_nb.train import Trainer
from sas_nb.writing import atomic

WHO, HOW = "a [v] woman in a red shirt and purple trousers in a park", "she is [u] dancing"
PROMPT = f"{WHO}. {HOW}"
RANK = 8
BATCH = 8
SAMPLE = "a man in a park. he is dancing"
STAGES = {"appearance": "stage 1, Set", "motion": "stage 2, Sequence"}
TARGETS = {"appearance": 2., "motion": 1.25}  # times faster, on a GPU, than the loop with cached latents


# The two loops

def ours(adapter: SharedLoRA, clip: Clip, name: str):
    """One training step of this library by the paper's recipe, all regularisers but self-conditioning on.
    The adapter is on its model."""
    dit = adapter.dit
    stage = next(s for s in Recipe.paper().with_(both=dict(batch=BATCH)).stages if s.name == name)
    data = frame_set(dit, clip, WHO) if name == "appearance" else sequence(dit, clip, PROMPT)
    prompts = dit.defaults.prior
    prior = Examples(
        torch.randn(len(prompts), *data.latents.shape[1:]), [dit.embed_once(p) for p in prompts],
        [[]] * len(prompts)
    )
    trainer = Trainer(dit, adapter, StageData([data], prior), stage, Run(progress=False))

    def step():
        adapter.train_only(name)  # two stages take turns here
        for word, p in adapter.tokens.items(): p.requires_grad_(word in trainer.words)
        trainer.train_step()
    return step


def encoded(dit: VideoDiT, frames: torch.Tensor) -> torch.Tensor:  # (B, T, 3, H, W) -> (B, C, t, h, w)
    "Latents as diffusers' own pipelines scale them."
    mean, std = dit.family.statistics(dit.vae, torch.zeros((), device=dit.device))
    with torch.no_grad():
        z = dit.vae.encode(frames.to(dit.device).transpose(1, 2) * 2 - 1).latent_dist.sample()
    return (z - mean) / std


def read(dit: VideoDiT, prompts: list[str]) -> torch.Tensor:  # (B, 512, D)
    "Text as diffusers' own pipelines read it, with all of its padding."
    with torch.no_grad():
        return dit.pipe.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=512)[0]


def cached(dit: VideoDiT, clip: Clip, stage: str):
    "Batches of latents and text that are encoded once, before the first step: as today's trainers do."
    latents = encoded(dit, clip.frames[:, None] if stage == "appearance" else clip.frames[None])
    text = read(dit, [plain(stage)]).expand(BATCH, -1, -1)

    def batch(): return latents[torch.randint(len(latents), (BATCH,))], text
    return batch


def encoding(dit: VideoDiT, clip: Clip, stage: str):
    """Batches that come from the data loader as pixels and strings, and are encoded at every step: as
    diffusers' and peft's own examples do."""
    def batch():
        chosen = torch.randint(len(clip), (BATCH,))
        whole = clip.frames[None].repeat(BATCH, 1, 1, 1, 1)
        frames = clip.frames[chosen, None] if stage == "appearance" else whole
        return encoded(dit, frames), read(dit, [plain(stage)] * BATCH)
    return batch


def plain(stage: str) -> str: return Prompt(WHO if stage == "appearance" else PROMPT).plain


def straightforward(transformer: nn.Module, layers: list[str], lr: float, batch):
    "One training step as trainers have it: an ordinary LoRA on the same layers with `lora_dropout`."
    if not hasattr(transformer, "peft_config"):
        for b in transformer.blocks: b.attn2.set_processor(type(b.attn1.processor)())  # the stock one
        lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=layers, lora_dropout=.5)
        transformer.add_adapter(lora)
        transformer.train()
    params = [p for p in transformer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=lr, betas=(.9, .99), weight_decay=.01, fused=True)

    def step():
        x0, text = batch()
        t = torch.rand(len(x0), device=x0.device)
        noise = torch.randn_like(x0)
        s = t.view(-1, 1, 1, 1, 1)
        noisy = (1 - s) * x0 + s * noise
        v = transformer(noisy, timestep=1000 * t, encoder_hidden_states=text, return_dict=False)[0]
        nn.functional.mse_loss(v, noise - x0).backward()
        nn.utils.clip_grad_norm_(params, .05)
        optimizer.step()
        optimizer.zero_grad()
    return step


# Measuring

def wait():
    "Let a GPU finish what was asked of it."
    if torch.cuda.is_available(): torch.cuda.synchronize()


def seconds(f, n: int = 1) -> float:
    "Seconds a call, over `n` calls."
    wait()
    began = time.perf_counter()
    for _ in range(n): f()
    wait()
    return (time.perf_counter() - began) / n


def interleaved(fs: dict, repeats: int, n: int) -> dict[str, list[float]]:
    """Each function in turn, `repeats` times, after one warm-up: a slow minute of the machine falls on all
    alike."""
    for f in fs.values(): f()
    times = {name: [] for name in fs}
    for _ in range(repeats):
        for name, f in fs.items(): times[name].append(seconds(f, n))
    return times


def spread(xs, unit="", scale=1.) -> str:
    return f"{median(xs) * scale:.3g} ({min(xs) * scale:.3g} to {max(xs) * scale:.3g}){unit}"


def ratios(slow: list, fast: list) -> list[float]: return [a / b for a, b in zip(slow, fast)]


class Products(TorchDispatchMode):
    "Count the matrix products of what runs inside: (kind, shapes, strides of both factors) -> how often."
    def __init__(self):
        super().__init__()
        self.seen = Counter()
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        name = f.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            a, b = args[-2:]
            self.seen[
                name.removeprefix("add").removeprefix("badd"), tuple(a.shape), tuple(a.stride()),
                tuple(b.shape), tuple(b.stride()), a.dtype
            ] += 1
        return f(*args, **(kwargs or {}))


def factor(size, stride, dtype, device):
    "Random numbers of this shape and layout; what was expanded has no layout of its own."
    if 0 in stride: return torch.randn(size, dtype=dtype, device=device)
    return torch.empty_strided(size, [max(s, 0) for s in stride], dtype=dtype, device=device).normal_()


def product_seconds(seen: Counter, device, repeats: int) -> float:
    """How long this machine takes for these products and nothing else, one after another, each at its own
    shape and layout."""
    total = 0.
    for (kind, sa, ta, sb, tb, dtype), count in seen.items():
        a, b = factor(sa, ta, dtype, device), factor(sb, tb, dtype, device)
        f = partial(torch.mm if kind == "mm" else torch.bmm, a, b)
        f()
        total += count * median(seconds(f, 3) for _ in range(repeats))
    return total


def against_machine(f, step_seconds: float, device, repeats: int) -> dict:
    """FLOPs of a call, the rate it reaches, the rate its own products would reach alone, and where the
    rest of its time goes."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops, Products() as products: f()
    alone = product_seconds(products.seen, device, repeats)
    with profile() as p: f()
    times = Counter()
    for e in p.key_averages():
        if e.self_cpu_time_total > 0: times[group(e.key)] += e.self_cpu_time_total
    total = sum(times.values())
    return dict(
        gflop=flops.get_total_flops() / 1e9, achieved=flops.get_total_flops() / 1e9 / step_seconds,
        achievable=flops.get_total_flops() / 1e9 / alone, share=alone / step_seconds,
        profile={k: v / total for k, v in times.most_common()}
    )


GROUPS = {
    "matrix products": "mm linear mkl",
    "attention": "attention",
    "norms": "norm rsqrt mean var",
    "convolutions": "conv",
    "optimizer": "adam _foreach",
    "activations": "gelu silu softmax",
    "elementwise": "add mul sub div pow sum neg",
    "copies": "copy cat clone stack index fill zero empty slice view reshape",
}


def group(op: str) -> str:
    "A profiler row as a word that says something."
    op = op.lower()
    for name, words in GROUPS.items():
        if any(w in op for w in words.split()): return name
    return "other"


CHILD = """
import resource, sys, tempfile, torch
from sas_nb.cache import data_path
from sas_nb.clip import Clip
from sas_nb.learning import learn
from sas_nb.memory import Memory
from sas_nb.recipe import Recipe, Run
n = int(sys.argv[1])
clip = Clip.load(data_path("clips/dancer.mp4"), num_frames=17, fps=float(sys.argv[2]), size=(64, 64))
recipe = Recipe.paper().with_(both=dict(steps=n, prior=0.))
learn(clip, sys.argv[3:5], recipe=recipe, run=Run(memory=Memory(apart=True), progress=False))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def peak_memory(fps: float, steps: int) -> float | None:
    """Bytes at the height of a process that imports, loads, encodes and trains both stages; None where the
    system does not tell."""
    if sys.platform == "win32": return None
    run = subprocess.run(
        [sys.executable, "-c", CHILD, str(steps), str(fps), WHO, HOW], capture_output=True, text=True
    )
    if run.returncode: raise RuntimeError(run.stderr[-2000:])
    return float(run.stdout.split()[-1])


def draw(seed: int) -> int: return render_array(random_spec(seed)).size


def clips_a_second(n: int) -> float:
    "Clips that the world draws a second, on two processes."
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(draw, range(8)))  # both have started
        began = time.perf_counter()
        list(pool.map(draw, range(n), chunksize=8))
        return n / (time.perf_counter() - began)


# The tables

def table(title: str, *columns: str) -> Table:
    t = Table(*columns[:1], title=title, title_justify="left")
    for c in columns[1:]: t.add_column(c, justify="right")
    return t


def loops(adapter: SharedLoRA, clip: Clip, repeats: int, n: int, console: Console) -> tuple[dict, dict]:
    "(a) Seconds a step of each loop and stage; and our own steps, for what follows."
    other = VideoDiT.load("tiny")
    how = other.transformer, other.family.lora_layers, other.defaults.lr
    steps, result = {}, {}
    t = table(
        "Against the straightforward loop, seconds a step: median (least to most)", "", "sas_nb",
        "latents and text cached", "ratio", "target on a GPU", "encoded at every step", "ratio"
    )
    for stage, label in STAGES.items():
        fs = dict(
            ours=ours(adapter, clip, stage), cached=straightforward(*how, cached(other, clip, stage)),
            encoding=straightforward(*how, encoding(other, clip, stage))
        )
        times = interleaved(fs, repeats, n)
        ratio = {name: ratios(times[name], times["ours"]) for name in ("cached", "encoding")}
        steps[stage] = fs["ours"]
        result[stage] = dict(seconds=times, ratio=ratio, target=TARGETS[stage])
        t.add_row(
            label, spread(times["ours"]), spread(times["cached"]), spread(ratio["cached"], "x"),
            f"{TARGETS[stage]:g}x", spread(times["encoding"]), spread(ratio["encoding"], "x")
        )
    console.print(t)
    return result, dict(adapter=adapter, steps=steps)


def wide(repeats: int, console: Console) -> dict:
    "(d) The same at the width of a real base: two layers of Wan 2.1 1.3B, random weights, 256 x 256 pixels."
    check = gpu_check.Check(Path("out"), 1, torch.device("cpu"), False, [])
    shapes = dict(appearance=(1, 256, 256), motion=(9, 256, 256))
    dit = gpu_check.made(check, memory=Memory(), layers=2)
    stock = gpu_check.made(check, memory=Memory(), layers=2)
    t = table(
        "At the width of Wan 2.1 1.3B, two layers, seconds a step of two examples", "", "sas_nb",
        "latents and text cached", "ratio", "target on a GPU"
    )
    result = {}
    for stage, label in STAGES.items():
        n = 2 if stage == "appearance" else 1
        with gpu_check.training(dit, shapes[stage], stage, n, steps=1000, batch=2) as trainer:
            latents = trainer.data.concepts[0].latents[torch.arange(2) % n]
            text = nn.functional.pad(stock.text("a person")[None], (0, 0, 0, 512 - gpu_check.TOKENS))
            batch = (latents, text.expand(2, -1, -1))
            loop = straightforward(stock.transformer, stock.family.lora_layers, 1e-4, partial(tuple, batch))
            times = interleaved(dict(ours=trainer.train_step, cached=loop), repeats, 1)
        ratio = ratios(times["cached"], times["ours"])
        result[stage] = dict(seconds=times, ratio=ratio, target=TARGETS[stage])
        t.add_row(label, spread(times["ours"]), spread(times["cached"]), spread(ratio, "x"),
                  f"{TARGETS[stage]:g}x")
    console.print(t)
    return result


def machine(made: dict, result: dict, repeats: int, console: Console) -> tuple[dict, dict]:
    "(b) Rates against what the machine does at the same shapes; and the time of a sampled clip."
    adapter = made["adapter"]
    dit = made["adapter"].dit
    text = dit.embed([SAMPLE, ""])
    x = dit.noise([0])

    def sample():
        with adapter.undropped(): dit.sample(SAMPLE, steps=20)

    def call():
        with adapter.undropped(): dit.denoise(x, text, 1, dit.defaults.guidance)
    call()
    sampling = [seconds(sample) for _ in range(repeats)]
    rows = {STAGES[s]: (made["steps"][s], median(result[s]["seconds"]["ours"])) for s in STAGES} | {
        "sampling, one guided step": (call, median(seconds(call, 3) for _ in range(repeats)))
    }
    t = table(
        "Against the machine, GFLOP and GFLOP a second", "", "GFLOP", "achieved",
        "its own matrix products alone", "share of the time that they need", "where a step's time goes"
    )
    out = {}
    for label, (f, s) in rows.items():
        r = out[label] = against_machine(f, s, dit.device, repeats)
        t.add_row(
            label, f"{r['gflop']:.1f}", f"{r['achieved']:.1f}", f"{r['achievable']:.1f}", f"{r['share']:.0%}",
            ", ".join(f"{k} {v:.0%}" for k, v in list(r["profile"].items())[:5])
        )
    console.print(t)
    return out, dict(sample=sampling)


def minutes(clip: Clip, result: dict, made: dict, sampling: list, repeats: int, full: bool, quick: bool,
            console: Console) -> dict:
    "(c) What a person waits for."
    dit = made["adapter"].dit
    step = {s: median(result[s]["seconds"]["ours"]) for s in STAGES}
    frames = clip.frames[None].repeat(8, 1, 1, 1, 1)
    z = dit.encode(frames)
    coding = {
        k: [seconds(f) / 8 for _ in range(repeats)]
        for k, f in dict(encode=lambda: dit.encode(frames), decode=lambda: dit.decode(z)).items()
    }
    out = dict(
        sample=sampling, **coding, render_per_second=clips_a_second(64 if quick else 400),
        peak_bytes=peak_memory(clip.fps, 2 if quick else 10)
    )
    t = table("In seconds, minutes and bytes", "", "")
    for n1, n2 in ((150, 400), (600, 900)):
        out[f"train_{n1}_{n2}"] = dict(extrapolated=n1 * step["appearance"] + n2 * step["motion"])
        if full:
            out[f"train_{n1}_{n2}"]["measured"] = sum(
                seconds(made["steps"][s], n) * n for s, n in zip(STAGES, (n1, n2))
            )
        t.add_row(
            f"training, {n1} + {n2} steps",
            ", ".join(f"{v / 60:.1f} min {k}" for k, v in out[f"train_{n1}_{n2}"].items())
        )
    t.add_row("a clip, 20 steps with guidance, decoded", spread(sampling, " s"))
    for k, v in coding.items(): t.add_row(f"{k} a clip, in a batch of 8", spread(v, " ms", 1000))
    t.add_row("clips drawn a second, two processes", f"{out['render_per_second']:.0f}")
    if out["peak_bytes"]: t.add_row("most memory of a training process", f"{out['peak_bytes'] / 1e9:.2f} GB")
    console.print(t)
    return out


def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="Under a minute on two idle cores: fewer repeats.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Train all steps of both recipes instead of extrapolating.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where to write the figures.")] = Path("out/bench.json"),
):
    "Measure speed: against the straightforward loop, against the machine, and in minutes."
    torch.manual_seed(0)
    repeats, n = (2, 1) if quick else (7, 5)
    spell_out()
    console = Console(width=max(Console().width, 150))
    r = VideoDiT.load("tiny").defaults
    clip = Clip.load(
        data_path("clips/dancer.mp4"), num_frames=r.num_frames, fps=r.fps, size=(r.height, r.width)
    )
    where = dict(
        machine=platform.processor() or platform.machine(), cores=os.cpu_count(),
        threads=torch.get_num_threads(), torch=torch.__version__,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    )
    console.print(
        f"batch {BATCH}, rank "
        f"{RANK}, fp32 on the CPU; " + ", ".join(f"{k} {v}" for k, v in where.items() if v is not None)
    )
    adapter = SharedLoRA(VideoDiT.load("tiny"), RANK)
    with adapter.attached():
        result, made = loops(adapter, clip, repeats, n, console)
        rates, sampling = machine(made, result, repeats, console)
        figures = dict(
            where=where, loops=result, machine=rates,
            minutes=minutes(clip, result, made, sampling["sample"], repeats, full, quick, console)
        )
    figures["wide"] = wide(2 if quick else 5, console)  # last: a process begun by a large one counts as large
    with atomic(out) as tmp: tmp.write_text(json.dumps(figures, indent=1))
    console.print(f"written: {out}")


if __name__ == "__main__": typer.run(main)
