"""Train a base by the clock: autoencoder, latents of the clips at hand, DiT and text encoder, figures.

    python scripts/gpu_base.py linear START                                   # an autoencoder to begin with
    python scripts/gpu_base.py wheels --start START                           # for a machine without network
    python scripts/gpu_base.py train --start START --minutes 9 --out RESULTS  # one GPU, many cores
    python scripts/gpu_base.py train --state STATE --minutes 6000 --cpu       # days; the same command goes on
    python scripts/gpu_base.py train --state STATE --minutes 600 --cpu --share 1 --fall 0   # autoencoder only
    python scripts/gpu_base.py unpack RESULTS FOLDER                          # the weights from their shards
    python scripts/gpu_base.py join PIPELINE AUTOENCODER FOLDER               # a decoder that learned apart

START is a folder with an autoencoder or a pipeline. STATE holds what a later piece needs, and `--minutes`
is the time of all pieces together; with --cpu these are minutes of this process's own computing, however busy
the machine is. RESULTS gets log.jsonl, pictures, and the weights in at most four shards under 16 MiB, anew
every few minutes: what is there when the time is over is enough. Evaluated and shipped are running averages
of the weights. While the autoencoder has less than --least decibels, the DiT's time is the autoencoder's.

What cannot be saved ends the run at once, with the error; on a lease, which has a --limit, the run goes on
with what was saved last, and never with what was not.
"""
import time
START = time.time()  # imports are on the clock too
import importlib, importlib.util, sys, types
if importlib.util.find_spec("av") is None:  # no video is read here, and nobody else is to believe in it
    sys.modules["av"] = types.ModuleType("av")
    importlib.import_module("sas_nb.clip")
    del sys.modules["av"]
import copy, hashlib, io, json, math, mmap, multiprocessing, os, shutil, signal, subprocess, tarfile
import threading, traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
import numpy as np, torch, typer
from diffusers import WanPipeline
from PIL import Image
from sas_nb.dit import VideoDiT
from sas_nb.fast import best_device, channels_last
from sas_nb.files import read_about, UserError
from sas_nb.lab.autoencoder import (autoencoder_optimizers, autoencoder_report, autoencoder_step,
                                    head_and_hands, interest, pixels, reconstruction_loss)
from sas_nb.lab.linear_code import linear_autoencoder, linear_code, without_blocks
from sas_nb.lab.optim import load_state, running_averages, save_state, set_rates
from sas_nb.lab.pretrain import (averaged, captions, copy_weights, dit_backward, dit_learners, dit_loss,
                                 dit_update, latent_statistics, Latents, pieces, RATES, whitener)
from sas_nb.lab.tiny import (autoencoder_passes, encode, latent_shape, load_autoencoder, LONGEST,
                             make_tokenizer, ship, TEMPORAL_2, TEST_SEED, text_of, tiny_autoencoder,
                             tiny_pipeline, to_signed, TRAINED_SEED, training_spec,
                             use_matmul_attention, wider, with_latents)
from sas_nb.writing import atomic, check_place

SHARD = 16*2**20 - 2**16  # bytes; a file that comes back may have 16 MiB
SHARDS = 4  # 64 MiB in all
PARTS = "autoencoder", "latents", "dit"
ENCODER = "encoder.", "quant_conv."
WEIGHTS = "diffusion_pytorch_model.safetensors"
# an autoencoder's folder; those of versions that did not list their files are ours too
VAE = dict(marker="config.json", names=("config.json", WEIGHTS), sign=("config.json", "AutoencoderKLWan"))
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@dataclass
class Run:
    "What `train` was asked for, and what its parts share."
    state: Path
    out: Path | None
    start: Path | None
    world: types.ModuleType
    device: torch.device
    fast: bool  # compile
    save: float  # minutes between two saves
    lease: bool  # another call may not come
    least: float  # decibels without which no DiT is trained
    rate: float
    warmup: int
    focus: float
    frozen: bool  # the encoder stays as it begins
    shape: dict  # of a new autoencoder
    widths: tuple  # of encoder and decoder, and of the latents
    batch: int  # clips in a step of the autoencoder
    clips: int  # in a step of the DiT
    images: int
    latents: int  # clips encoded at least before the DiT's first step
    fresh: float  # and with each step
    log: "Log" = None
    budget: "Budget" = None
    ring: "Ring" = None


# ---- the clock and the log


class Budget:
    """Minutes that each part has had, over all pieces, and what is left for it of all `minutes`; of this
    process's computing with `own`, else of everybody's time."""
    def __init__(self, path: Path, minutes: float, share: float, fall: float = .75, own: bool = False):
        self.path, self.minutes, self.share, self.fall, self.own = path, minutes, share, fall, own
        self.part, self.since = PARTS[0], 0 if own else START
        about = json.loads(path.read_text()) if path.exists() else {}
        self.had = about.get("minutes", dict.fromkeys(PARTS, 0.))
        self.seed = about.get("seed", TRAINED_SEED)  # of the next clip

    def now(self) -> float: return time.process_time() if self.own else time.time()

    def begin(self, part: str):
        "From now on the time is this part's."
        self.had, self.part, self.since = self.spent(), part, self.now()

    def spent(self) -> dict:
        return {**self.had, self.part: self.had[self.part] + (self.now()-self.since)/60}

    def total(self) -> float: return sum(self.spent().values())

    def of(self, part: str) -> float:
        "Minutes for this part; the end is kept for figures."
        usable = self.minutes - min(1., .07*self.minutes)
        if part == "autoencoder": return self.share*usable
        return usable - sum(v for k, v in self.spent().items() if k != part)

    def fraction(self, part: str) -> float:
        return min(1., self.spent()[part]/self.of(part)) if self.of(part) > 0 else 1.

    def rate(self, part: str, step: int, warmup: int) -> float:
        "The learning rate's factor: up in `warmup` steps, and down to zero in the last `fall` of the time."
        falling = min(1, (1-self.fraction(part))/self.fall) if self.fall else 1
        return min(1, (step+1)/warmup)*falling

    def save(self, seed: int):
        with atomic(self.path) as tmp: tmp.write_text(json.dumps(dict(minutes=self.spent(), seed=seed)))


class Log:
    "JSON lines, printed too: in files by name, and all of them in one file of `out`."
    def __init__(self, state: Path, out: Path | None): self.state, self.out = state, out

    def __call__(self, name: str = "log", **row):
        row = {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}
        self.write(self.state/f"{name}.jsonl", row)
        if self.out: self.write(self.out/"log.jsonl", dict(part=name) | row)
        print(name, row, flush=True)

    def write(self, path: Path, row: dict):
        with open(path, "a") as f: f.write(json.dumps(row)+"\n")


# ---- clips, drawn by other processes


class Drawing:
    """Processes that draw clips, with captions, into memory that they share with this one; each owns a few
    slots. Memory is anonymous: no small file system limits it. They are forked before a GPU is touched."""
    def __init__(self, world, workers: int, first: int, focus: bool, slots: int = 24):
        kinds = dict(seeds=((), np.int64), clips=((3, 17, 64, 64), np.uint8))
        kinds["words"] = ((2, 4, LONGEST-1), np.int16)
        if focus: kinds["focus"] = ((17, 64, 64), np.uint8)  # 1 a head, 2 a moving hand, 3 both
        n = workers*slots
        self.world, self.workers, self.first, self.slots = world, workers, first, slots
        self.full = _shared(n, (), np.uint8)
        self.shared = {name: _shared(n, *kind) for name, kind in kinds.items()}
        fork = multiprocessing.get_context("fork")
        self.processes = [fork.Process(target=self._draw, args=(k,), daemon=True) for k in range(workers)]
        for p in self.processes: p.start()

    def _draw(self, worker: int):
        os.nice(10)
        torch.set_num_threads(1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        tokenizer, parent, slot = make_tokenizer(self.world), os.getppid(), worker*self.slots
        for seed in range(self.first+worker, TEST_SEED, self.workers):
            if (spec := training_spec(seed, self.world)) is None: continue
            clip = self.drawn(spec, seed, tokenizer)
            while self.full[slot]:
                time.sleep(.005)
                if os.getppid() != parent: return
            for name, value in clip.items(): self.shared[name][slot] = value
            self.full[slot] = 1
            slot = worker*self.slots + (slot+1) % self.slots

    def drawn(self, spec, seed, tokenizer) -> dict:
        words = captions(tokenizer, spec, seed, world=self.world)
        clip = dict(seeds=seed, clips=pixels(spec, self.world), words=words)
        if "focus" in self.shared:
            heads, hands = head_and_hands(spec, self.world)
            clip["focus"] = heads.byte() + 2*hands.byte()
        return clip

    def take(self, most: int) -> dict:
        "Copies of at most so many clips that are ready, as arrays by name; their slots are free again."
        ready = np.flatnonzero(self.full.copy())[:most]  # others fill slots meanwhile
        taken = {name: v[ready] for name, v in self.shared.items()}
        self.full[ready] = 0
        return taken

    def close(self):
        for p in self.processes: p.terminate()


def _shared(n: int, shape: tuple, dtype) -> np.ndarray:
    size = n*math.prod(shape)*np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, size), dtype).reshape(n, *shape)


def _room(like: np.ndarray, n: int, device) -> torch.Tensor:
    return torch.empty(n, *like.shape[1:], dtype=torch.from_numpy(like[:0]).dtype, device=device)


class Ring:
    "The clips drawn last, on the device; each is used about `uses` times, then it is overwritten."
    def __init__(self, drawing: Drawing, size: int, device, uses: float, first: int):
        self.drawing, self.size, self.device, self.uses = drawing, size, device, uses
        self.first, self.drawn, self.used, self.seed = min(first, size), 0, 0, drawing.first
        self.store = {name: _room(v, size, device) for name, v in drawing.shared.items() if name != "seeds"}
        self.seeds = np.zeros(size, np.int64)

    def __len__(self): return min(self.drawn, self.size)
    def counts(self) -> dict: return dict(drawn=self.drawn, used=self.used)

    def feed(self, most: int = 256) -> int:
        "Take in what has been drawn, no more than is used up; how many clips."
        wanted = int(min(most, self.first + self.used/self.uses - self.drawn))
        taken = self.drawing.take(wanted) if wanted > 0 else dict(seeds=())
        if not (n := len(taken["seeds"])): return 0
        at = np.arange(self.drawn, self.drawn+n) % self.size
        where = torch.from_numpy(at).to(self.device)
        for name, store in self.store.items():
            new = torch.from_numpy(taken[name])
            if store.is_cuda: new = new.pin_memory()
            store[where] = new.to(self.device, non_blocking=True)
        self.seeds[at] = taken["seeds"]
        self.drawn, self.seed = self.drawn+n, max(self.seed, int(taken["seeds"].max())+1)
        return n

    def wait(self, n: int):
        "Until `n` clips are there. Raises `RuntimeError` if nobody draws any more."
        while len(self) < min(n, self.first):
            if self.feed(): continue
            alive = any(p.is_alive() for p in self.drawing.processes)
            if not alive: raise RuntimeError("All drawing processes have ended.")
            time.sleep(.01)

    def sample(self, n: int, g: torch.Generator) -> tuple:
        "Clips, uint8 (n, 3, 17, 64, 64), and where heads and hands are, uint8 (n, 1, 17, 64, 64) or None."
        self.used += n
        i = torch.randint(len(self), (n,), generator=g, device=self.device)
        return self.store["clips"][i], self.store["focus"][i][:, None] if "focus" in self.store else None

    def batches(self, n: int):
        "All clips that are there, `n` at a time, oldest place first: seeds, clips, captions."
        for k in range(0, len(self)//n*n, n): yield self.at(np.arange(k, k+n))

    def latest(self, n: int): return self.at(np.arange(self.drawn-n, self.drawn) % self.size)

    def at(self, places: np.ndarray):
        where = torch.from_numpy(places).to(self.device)
        return torch.from_numpy(self.seeds[places]), self.store["clips"][where], self.store["words"][where]


# ---- the autoencoder


def begun(start: Path | None, shape: dict, widths: tuple, device):
    "The autoencoder to begin with: of `start`, or a new one of this shape; wider, if asked."
    vae = load_autoencoder(start) if start else tiny_autoencoder(**shape)
    encoder, decoder, latents = widths
    vae = with_latents(wider(vae, encoder, decoder), latents or vae.config.z_dim)
    return channels_last(vae).to(device)


def learners(run: Run):
    "The autoencoder as it was saved last, the running average of its weights, optimizers, and facts."
    vae = begun(run.start, run.shape, run.widths, run.device).requires_grad_(True)
    averages, opts = running_averages(dict(vae=vae)), autoencoder_optimizers(vae, run.rate, run.frozen)
    about = load_state(run.state/"autoencoder.safetensors", dict(vae=vae) | averages, opts)
    return vae, averages, opts, about


def finished(run: Run):
    """The averaged autoencoder as it was saved last, or START's if it gets none of the time. Raises
    `UserError` if none was saved, or if it is too blurred."""
    if not run.budget.share:
        vae = begun(run.start, run.shape, run.widths, run.device)
        return vae.eval().requires_grad_(False)
    vae, averages, _, about = learners(run)
    if not about: raise UserError(f"{run.state} has no autoencoder: give the autoencoder some of the time.")
    if not sharp(run, about):
        raise UserError(f"The autoencoder has {about['clips']} dB on clips, and a DiT is worth its time from "
                        f"{run.least:g} on: train the autoencoder longer, or lower --least.")
    return averages["average_vae"].module.to(run.device).eval().requires_grad_(False)


def sharp(run: Run, about: dict) -> bool: return about["clips"] >= run.least


def train_autoencoder(run: Run, fast: bool, portion: float):
    vae, averages, opts, about = learners(run)
    average = averages["average_vae"]
    both = autoencoder_passes(vae, fast)
    batch = max(1, int(run.batch*portion))
    g = torch.Generator(run.device)
    g.manual_seed(about.get("step", 0))
    run.ring.wait(batch)

    def learn(step):
        set_rates(opts, (run.rate, run.rate/10), run.budget.rate("autoencoder", step, run.warmup))
        run.ring.feed()
        x, where = run.ring.sample(batch, g)
        focus = None if where is None else run.focus*((where & 1) + (where >> 1)).clamp(max=1)
        loss = autoencoder_step(vae, both, opts, x, focus)
        average.update_parameters(vae)
        return loss

    def keep(step, loss):
        report = autoencoder_report(average.module, run.world, 24)
        facts = dict(step=step, minutes=run.budget.spent()["autoencoder"], batch=batch) | report
        rate = opts["muon"].param_groups[0]["lr"]
        run.log("autoencoder", **facts, loss=loss, rate=rate, **run.ring.counts())
        report.picture.save(run.state/"autoencoder.png")
        save_state(run.state/"autoencoder.safetensors", dict(vae=vae) | averages, opts, facts)
        with atomic(run.state/"vae", **VAE) as tmp:
            copy.deepcopy(average.module).half().save_pretrained(tmp)
        pack(run)

    by_the_clock(run, "autoencoder", about.get("step", 0), learn, keep)


def by_the_clock(run: Run, part: str, step: int, learn, keep):
    "`learn(step)` until the part's time is over; `keep(step, mean loss)` every few minutes and at the end."
    last, losses = run.budget.now(), []
    while run.budget.fraction(part) < 1:
        losses.append(learn(step))
        step += 1
        if run.budget.now()-last < 60*run.save and run.budget.fraction(part) < 1: continue
        mean = torch.stack(losses).float().mean(0)
        if not mean.isfinite().all():
            raise FloatingPointError(f"The loss of the {part} is not a number at step {step}.")
        keep(step, mean.tolist())
        run.budget.save(run.ring.seed)
        last, losses = run.budget.now(), []


# ---- the DiT and its text encoder


def encoded(run: Run, vae, tokenizer) -> Latents:
    "Latents of the clips in the ring."
    batch = min(64, run.latents)
    run.ring.first = max(run.ring.first, min(run.latents, run.ring.size))
    run.ring.wait(run.latents)
    most = max(4*run.latents, 3*run.ring.size, 16*batch)
    store = Latents(vae, tokenizer, most=most, batch=batch, world=run.world)
    rng = np.random.default_rng(0)
    for clips in run.ring.batches(batch): store.put(*clips, rng)
    run.log(part="latents", clips=store.made, minutes=run.budget.spent()["latents"])
    return store


def train_dit(run: Run, fast: bool, portion: float):
    vae = finished(run)
    pipe = tiny_pipeline(vae, run.world).to(run.device)
    if run.start: copy_weights(run.start, pipe)
    modules, averages, opts = dit_learners(pipe)
    path, rng = run.state/"dit.safetensors", np.random.default_rng(1)
    about = load_state(path, modules | averages, opts)
    store = encoded(run, vae, pipe.tokenizer)
    run.budget.begin("dit")
    statistics = about.get("statistics") or latent_statistics(store)
    vae.register_to_config(**statistics)
    dit, whiten = use_matmul_attention(pipe.transformer, fast), whitener(vae)
    clips, images = (max(1, int(n*portion)) for n in (run.clips, run.images))
    g, seen = torch.Generator(run.device).manual_seed(about.get("step", 0)), run.ring.drawn

    def learn(step):
        nonlocal seen
        set_rates(opts, RATES, run.budget.rate("dit", step, 100))
        run.ring.used += run.fresh*run.ring.uses
        run.ring.feed()
        while run.ring.drawn-seen >= store.batch:
            seen = max(seen+store.batch, run.ring.drawn-run.ring.size)
            store.put(*run.ring.at(np.arange(seen-store.batch, seen) % run.ring.size), rng)
        loss = dit_backward(pipe, dit, store.draw(clips, images, g), whiten, g)
        dit_update(modules, averages, opts)
        return loss

    def keep(step, loss):
        had = run.budget.spent()["dit"]
        run.log("dit", step=step, minutes=had, loss=loss, clips=store.made)
        facts = dict(step=step, minutes=had, samples=step*(clips+images), seen=run.ring.seed)
        save_state(path, modules | averages, opts, dict(facts, statistics=statistics))
        logs = [run.state/"autoencoder.jsonl", run.state/"dit.jsonl"]
        trained = pieces(run.start, run.state, facts)
        ship(averaged(pipe, averages), run.state/"pipeline", logs, trained=trained, world=run.world.__name__)
        pack(run)

    by_the_clock(run, "dit", about.get("step", 0), learn, keep)


# ---- what comes of it


def pack(run: Run):
    "The pipeline, or before there is one the autoencoder, in shards, with a list of them and their hashes."
    if not run.out: return
    folder, data = newest(run.state), io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar: tar.add(folder, folder.name)
    data = data.getbuffer()
    shards = [data[k:k+SHARD] for k in range(0, len(data), SHARD)]
    if len(shards) > SHARDS:
        raise UserError(f"{folder} has {len(data)/2**20:.0f} MiB, more than {SHARDS} shards hold: "
                        "run without --out, or make the model smaller.")
    names = {f"weights.{k:02d}": hashlib.sha256(shard).hexdigest() for k, shard in enumerate(shards)}
    for name, shard in zip(names, shards):
        with atomic(run.out/name) as tmp: tmp.write_bytes(shard)
    with atomic(run.out/"weights.json") as tmp: tmp.write_text(json.dumps(names, indent=1))


def newest(state: Path) -> Path:
    "The pipeline's folder, or the autoencoder's."
    return state/"pipeline" if (state/"pipeline").is_dir() else state/"vae"


def measure_autoencoder(run: Run):
    report = autoencoder_report(load_autoencoder(newest(run.state)).to(run.device), run.world)
    run.log(part="report", **report)
    for folder in filter(None, (run.state, run.out)): report.picture.save(folder/"autoencoder.png")


@torch.no_grad()
def measure_dit(run: Run, n: int = 64):
    "The loss on held-out clips, at the same times and with the same noise each time; and samples."
    pipe = VideoDiT.load(run.state/"pipeline", run.device, torch.float32).pipe
    specs = [run.world.random_spec(TEST_SEED+i) for i in range(n)]
    x, whiten, losses = torch.stack([pixels(s, run.world) for s in specs]), whitener(pipe.vae), []
    torch.manual_seed(0)
    g = torch.Generator(run.device).manual_seed(0)
    for k in range(0, n, 16):
        text = text_of(pipe, [str(run.world.caption(s)) for s in specs[k:k+16]])
        z = whiten(encode(pipe.vae, to_signed(x[k:k+16], run.device)))
        losses.append(dit_loss(pipe.transformer, pipe.scheduler.config.shift, z, text, g))
    run.log(part="report", held_out_loss=torch.stack(losses).mean().item())


def sample(run: Run, n: int = 8):
    "Held-out people by their captions, and what the DiT makes of these words."
    dit = VideoDiT.load(run.state/"pipeline", run.device, torch.float32)
    specs = [run.world.random_spec(TEST_SEED+i, people=1, things=0) for i in range(n)]
    clips = dit.sample([str(run.world.caption(s)) for s in specs], seed=list(range(n)))
    rows = [torch.cat(tuple(c.frames[::4]), 2) for c in clips]
    sheet = torch.cat((torch.cat(rows[:n//2], 1), torch.cat(rows[n//2:], 1)), 2).permute(1, 2, 0)
    picture = Image.fromarray((sheet*255).round().byte().numpy())
    picture = picture.resize((3*picture.width, 3*picture.height), Image.NEAREST)
    for folder in filter(None, (run.state, run.out)): picture.save(folder/"samples.png")


UNSAVED = UserError, OSError  # what `atomic` and the disk say; trying again with less does not help


def attempt(run: Run, what, **more) -> bool:
    """Do it; if it fails, write down why and go on. Is it done? What could not be saved, or is not fit to be
    gone on with, is raised if this is no lease."""
    try: what(run, **more)
    except Exception as e:
        run.log(part=what.__name__, error=traceback.format_exc()[-2000:], **more)
        if isinstance(e, UNSAVED) and not run.lease: raise
        if run.device.type == "cuda": torch.cuda.empty_cache()
        return False
    return True


def twice(run: Run, train) -> bool:
    "Once more, not compiled and with half the batch, what fails."
    return attempt(run, train, fast=run.fast, portion=1.) or attempt(run, train, fast=False, portion=.5)


def blurred(run: Run) -> bool:
    "Is there an autoencoder without the decibels that a DiT needs?"
    rows = run.state/"autoencoder.jsonl"
    return rows.exists() and not sharp(run, json.loads(rows.read_text().splitlines()[-1]))


def everything(run: Run):
    "All parts in order."
    run.budget.begin("autoencoder")
    done = run.budget.share and twice(run, train_autoencoder)
    if done and run.budget.share < 1 and blurred(run):
        run.log(part="autoencoder", note=f"less than {run.least:g} dB: it has the DiT's time too")
        run.budget.share = 1
        twice(run, train_autoencoder)
    if run.budget.share < 1:
        run.budget.begin("latents")
        twice(run, train_dit)
    figures(run)


def figures(run: Run):
    if newest(run.state).is_dir(): attempt(run, measure_autoencoder)
    if newest(run.state).name == "pipeline": attempt(run, measure_dit) and attempt(run, sample)
    run.budget.save(run.ring.seed)
    parts = {k: round(v, 3) for k, v in run.budget.spent().items()}
    run.log(part="done", minutes=run.budget.total(), parts=parts)


def check_places(run: Run):
    "Raise `UserError` now for what could not be replaced later."
    for folder in filter(None, (run.state, run.out)): folder.mkdir(parents=True, exist_ok=True)
    check_place(run.state/"vae", VAE["names"], **VAE)


# ---- the commands


GPU = dict(batch=128, clips=256, images=2048, latents=16_000, fresh=256, ring=80_000, first=4096, uses=6.,
           workers=14, save=.75)
CPU = dict(batch=2, clips=16, images=64, latents=1600, fresh=4, ring=2000, first=128, uses=3.,
           workers=1, save=6.)
SHAPE = json.dumps(dict(TEMPORAL_2, base_dim=32))
SIZES = "; by default " + ", ".join(f"{k} {GPU[k]:g} on a GPU and {CPU[k]:g} on a CPU" for k in GPU)


@app.command()
def train(
    minutes: Annotated[float, typer.Option(help="Of all pieces together, figures included.")] = 9,
    state: Annotated[Path, typer.Option(help="Checkpoints; the same folder goes on.")] = Path("out/base"),
    out: Annotated[Path | None, typer.Option(help="For log, pictures and shards of the weights.")] = None,
    start: Annotated[Path | None, typer.Option(help="A folder with an autoencoder, or a pipeline.")] = None,
    world: Annotated[str, typer.Option(help="The module that draws.")] = "sas_nb.lab.draw",
    shape: Annotated[str, typer.Option(help="Configuration of a new autoencoder, without --start.")] = SHAPE,
    share: Annotated[float, typer.Option(help="Of the time, for the autoencoder; 0: START's stays.")] = .5,
    limit: Annotated[float, typer.Option(help="Minutes after which this piece just ends; 0: never.")] = 0,
    cpu: Annotated[bool, typer.Option("--cpu", help="On the CPU, with sizes for it.")] = False,
    compiled: Annotated[bool | None, typer.Option(show_default="on a GPU")] = None,
    fall: Annotated[float, typer.Option(help="Last share of a part's time, in which rates fall.")] = .75,
    least: Annotated[float, typer.Option(help="Decibels on clips that a DiT needs.")] = 26,
    rate: Annotated[float, typer.Option(help="Of the autoencoder's Muon.")] = .01,
    warmup: Annotated[int, typer.Option(help="Steps in which the autoencoder's rate rises.")] = 300,
    focus: Annotated[float, typer.Option(help="How much more heads and moving hands count.")] = 4,
    frozen: Annotated[bool, typer.Option("--frozen", help="Only the decoder learns: latents stay.")] = False,
    encoder_dim: int | None = None, decoder_dim: int | None = None, channels: int | None = None,
    sizes: Annotated[list[str] | None, typer.Option("--set", help="NAME=NUMBER" + SIZES)] = None,
):
    "Autoencoder, latents, DiT and text encoder, figures."
    device = torch.device("cpu") if cpu else best_device()
    size = {**(CPU if device.type == "cpu" else GPU), **_sizes(sizes)}
    if limit: _end_after(limit)
    torch.backends.cudnn.benchmark = True  # shapes never change
    torch.set_float32_matmul_precision("high")
    if not (share or start): raise typer.BadParameter("--share 0 needs an autoencoder to stay with: --start.")
    module, budget = importlib.import_module(world), Budget(state/"clock.json", minutes, share, fall, own=cpu)
    if compiled is None: compiled = device.type == "cuda"
    counts = {k: int(size[k]) for k in ("batch", "clips", "images", "latents")}
    run = Run(state, out, start, module, device, compiled, size["save"], limit > 0, least, rate, warmup,
              focus, frozen, json.loads(shape), (encoder_dim, decoder_dim, channels), **counts,
              fresh=size["fresh"], log=Log(state, out), budget=budget)
    check_places(run)
    drawing = Drawing(module, int(size["workers"]), budget.seed, focus > 0)
    if device.type == "cuda" and compiled: _compile_ahead(run)
    try:
        run.ring = Ring(drawing, int(size["ring"]), device, size["uses"], int(size["first"]))
        torch.manual_seed(run.ring.seed)
        everything(run)
    finally: drawing.close()


def _sizes(given) -> dict:
    "NAME=NUMBER, as a dictionary."
    try: sizes = {name: float(number) for name, number in (item.split("=") for item in given or [])}
    except ValueError: raise typer.BadParameter("write --set NAME=NUMBER, such as --set batch=64") from None
    if unknown := sizes.keys() - CPU.keys():
        raise typer.BadParameter(f"{min(unknown)} is none of {', '.join(CPU)}")
    return sizes


def _end_after(minutes: float):
    "What is saved by then is all there is."
    clock = threading.Timer(60*minutes-(time.time()-START), os._exit, [3])
    clock.daemon = True
    clock.start()


def _compile_ahead(run: Run):
    "Compile in a process beside this one as well; the compiler's cache on disk serves both."
    encoder_dim, decoder_dim, channels = run.widths
    given = dict(start=run.start, world=run.world.__name__, batch=run.batch, clips=run.clips,
                 images=run.images, shape=json.dumps(run.shape),
                 encoder_dim=encoder_dim, decoder_dim=decoder_dim, channels=channels)
    words = [w for k, v in given.items() if v is not None for w in (f"--{k.replace('_', '-')}", str(v))]
    words += ["--frozen"]*run.frozen
    with open(run.state/"ahead.log", "w") as log:
        subprocess.Popen([sys.executable, __file__, "ahead", *words], stdout=log, stderr=log)


@app.command(hidden=True)
def ahead(batch: int = 1, clips: int = 1, images: int = 1, start: Path | None = None,
          world: str = "sas_nb.lab.draw", shape: str = SHAPE,
          encoder_dim: int | None = None, decoder_dim: int | None = None, channels: int | None = None,
          frozen: Annotated[bool, typer.Option("--frozen")] = False):
    "Compile what `train` needs after its first crops: the pass over whole clips, and the DiT's step."
    device = best_device()
    vae = begun(start, json.loads(shape), (encoder_dim, decoder_dim, channels), device).requires_grad_(True)
    if frozen: autoencoder_optimizers(vae, 0., frozen)
    x = torch.rand(-(-batch//6), 3, 17, 64, 64, device=device)*2-1
    c = interest(x)
    reconstruction_loss(autoencoder_passes(vae, True), x, c, c.mean()).backward()
    pipe = tiny_pipeline(vae.requires_grad_(False), importlib.import_module(world)).to(device)
    dit_learners(pipe)
    latents = [torch.randn(n, *latent_shape(vae, t), device=device) for n, t in ((clips, 17), (images, 1))]
    ids = torch.zeros(clips+images, LONGEST-1, dtype=torch.long, device=device)
    g = torch.Generator(device).manual_seed(0)
    dit_backward(pipe, use_matmul_attention(pipe.transformer, True), (*latents, ids), lambda z: z, g)


@app.command()
def linear(
    start: Annotated[Path, typer.Argument(help="The folder to write.")],
    channels: Annotated[int, typer.Option(help="Of a latent.")] = 64,
    clips: Annotated[int, typer.Option(help="Drawn for it.")] = 600,
    minutes: Annotated[float, typer.Option(help="Of learning to decode.")] = 3,
    rate: float = .02, batch: int = 12,
    world: Annotated[str, typer.Option(help="The module that draws.")] = "sas_nb.lab.draw",
):
    "An autoencoder to begin with: the best linear code, decoded by what has learned without its blocks."
    check_place(start, VAE["names"], **VAE)
    module, g = importlib.import_module(world), torch.Generator().manual_seed(0)
    x = torch.stack([pixels(module.random_spec(seed), module) for seed in range(clips)])
    vae = channels_last(linear_autoencoder(linear_code(x, channels))).requires_grad_(True)
    opts = autoencoder_optimizers(vae, rate, frozen_encoder=True)
    both, begin, step = autoencoder_passes(without_blocks(vae), noise=.03), time.process_time(), 0
    while (had := (time.process_time()-begin)/60) < minutes:
        set_rates(opts, (rate, rate/10), min(1, (step+1)/30, 3*(1-had/minutes)))
        autoencoder_step(vae, both, opts, x[torch.randint(clips, (batch,), generator=g)])
        step += 1
    print(dict(step=step), dict(autoencoder_report(vae.eval(), module, 24)))
    with atomic(start, **VAE) as tmp: vae.half().save_pretrained(tmp)


@app.command()
def join(pipeline: Path, autoencoder: Path, folder: Path):
    """FOLDER: the pipeline with an autoencoder of the same latents, whose decoder went on learning. Raises
    `UserError` if its encoder is another."""
    old, new = map(load_autoencoder, (pipeline, autoencoder))
    if not _same_latents(old, new):
        raise UserError(f"{autoencoder} encodes otherwise than {pipeline}: its DiT would not understand it.")
    new.register_to_config(latents_mean=old.config.latents_mean, latents_std=old.config.latents_std)
    about = read_about(pipeline/"sas_nb.json")
    log = autoencoder.parent/"autoencoder.jsonl"
    if log.exists(): about["trained"] = pieces(pipeline, autoencoder.parent, None)
    ship(WanPipeline.from_pretrained(pipeline, vae=new), folder, [log, pipeline/"dit.jsonl"], **about)


def _same_latents(*autoencoders) -> bool:
    "In the precision in which they are shipped."
    def encoder(vae): return {k: v.half() for k, v in vae.state_dict().items() if k.startswith(ENCODER)}
    one, other = map(encoder, autoencoders)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@app.command()
def unpack(results: Path, folder: Path):
    "Put the shards of RESULTS together again: FOLDER/pipeline, or FOLDER/vae."
    names = json.loads((results/"weights.json").read_text())
    shards = [(results/name).read_bytes() for name in names]
    for name, shard in zip(names, shards):
        if hashlib.sha256(shard).hexdigest() != names[name]:
            raise UserError(f"{name} is not the shard that weights.json lists: bring all files back again.")
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(b"".join(shards))) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # older Pythons have none
        tar.extractall(folder)
        print(folder/tar.getnames()[0])


WHEELS = "diffusers", "skia-python", "fastcore", "importlib-metadata"  # beyond what comes with transformers
PLATFORMS = "manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"


@app.command()
def wheels(
    start: Annotated[Path | None, typer.Option(help="Copied into the folder too.")] = None,
    folder: Annotated[Path, typer.Option(help="Ignored by git.")] = Path("out/carry"),
    python: Annotated[str, typer.Option(help="The other machine's.")] = "3.12",
    more: Annotated[str, typer.Option(help="For `train` there, such as '--frozen --share .2'.")] = "",
    minutes: float = 9,
):
    "Fetch what a GPU machine without network needs, wheels and system libraries; print the command for it."
    from importlib.metadata import version
    wanted = [f"{name}=={version(name)}" for name in WHEELS]
    shutil.rmtree(folder, ignore_errors=True)
    kind = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    where = [word for p in PLATFORMS for word in ("--platform", p)]
    pip = [sys.executable, "-m", "pip", "download", "-q", "-d", folder/"wheels"]
    subprocess.run([*pip, *kind, *where, *wanted], check=True)
    (folder/"lib").mkdir(parents=True, exist_ok=True)
    for path in _libraries(): shutil.copy(path, folder/"lib")
    if start: shutil.copytree(start, folder/"start")
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())/2**20
    print(f"{folder}: {size:.1f} MiB. Where tracked files travel too, move data/ aside for the call: the run "
          f"reads nothing of it.\n\n{_command(folder, bool(start), minutes, more)}")


def _libraries() -> list[str]:
    "The system libraries of skia that a bare machine may lack."
    import skia
    listing = subprocess.run(["ldd", skia.__file__], capture_output=True, text=True).stdout
    paths = [line.split()[2] for line in listing.splitlines() if "=> /" in line]
    may_lack = "libGL", "libEGL", "libX", "libxcb", "libbsd", "libmd", "libexpat"
    return [p for p in paths if Path(p).name.startswith(may_lack)]


def _command(folder: Path, start: bool, minutes: float, more: str) -> str:
    pip = "python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/site"
    begin = f"--start {folder}/start"*start
    lines = (f"{pip} {folder}/wheels/*.whl",
             "export PYTHONPATH=/tmp/site:$PWD PYTHONUNBUFFERED=1",
             f"{{ python3 -c 'import skia' || export LD_LIBRARY_PATH=$PWD/{folder}/lib; }}",
             f"python3 scripts/gpu_base.py train --minutes {minutes:g} --limit {minutes+.4:g}"
             f' --state /tmp/base {begin} {more} --out "$OUT"')
    return " && ".join(lines)


if __name__ == "__main__": app()
