"""Write the explorer as a page without a kernel: the shipped zoo, for any browser and any host of files.

    python scripts/static_page.py                  # writes build/explore/ and site/explore/
    python scripts/static_page.py --no-model       # clips made beforehand only: no sliders, no mixtures
    python -m http.server -d site/explore          # to look at it

Every look with each of a few dances is made beforehand, and shown at once. All else, what lies between
faces, sliders, strengths, other words, is made by the model itself in the browser: onnxruntime-web on the
CPU, fetched by `npm pack`. What was made is kept in the cache, so a run that was stopped goes on.
"""
import gzip, json, shutil, subprocess, tarfile, time
from pathlib import Path
from typing import Annotated
import numpy as np
import torch, typer
from sas_nb.cache import cache_folder, cached
from sas_nb.explore import Position
from sas_nb.explore.links import examples_of
from sas_nb.explore.maps import AVERAGE, PARTS, PEOPLE
from sas_nb.explore.mixtures import strengths_of
from sas_nb.explore.prompts import sentence
from sas_nb.explore.sights import filmed, still, strip, strip_of
from sas_nb.explore.sliders import bases, Studio
from sas_nb.explore import together  # noqa: F401 (gives a studio what it puts together)
from sas_nb.explore.widgets import STATIC
from sas_nb.explore.words import chips_of, fitting, phrases_of
from sas_nb.files import expanded, UserError
import in_browser

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path(__file__).resolve().parent / "page"
BUILD, SITE = ROOT / "build" / "explore", ROOT / "site" / "explore"
WIDGETS = "clips", "clock", "head", "pad", "screen", "strength", "views", "words"
RUNTIME = "onnxruntime-web@1.30.0"
RUNTIME_FILES = {"dist/ort.wasm.bundle.min.mjs": "ort.wasm.bundle.min.mjs"}
WASM = "dist/ort-wasm-simd-threaded.wasm"
DANCES = "woman-41", "man-09", "man-08", "woman-24"  # of README's moving picture
WIDE = 2  # so many of them have all looks beforehand, beside a model that makes the others
SEEDS = 8
COEFFICIENTS, WEIGHTS = 2 / 3, 1 / 16  # steps of `few_bits`: 44 and 35 dB from the exact pictures
MOST = 25e6  # bytes
QUALITY = 60  # of a strip: about 7 KB

SENTENCE = ("Every face was learned from one short video. Give it another's dance, another place, another "
            "light: the page shows what becomes of it.")
HELP = ["Click a face: it dances. Choose beside the video whose look and whose dance it has.",
        "Maps: drag the ring. On a face it is that concept, between faces a mixture. Arrow keys move it too.",
        "Look \u00d7 dance: every look with every dance, playing in step. A click goes there."]
WITH = ("Faces, and looks with the dances of a few, were made beforehand. All else is made here, by the "
        "model itself: it is fetched when you first need it, about 20 MB, and runs on your processor.")
WITHOUT = ("All clips of this page were made beforehand: between faces it shows the nearest. "
           "The explorer of sas_nb makes what lies between, in any words.")


def clip_of(studio: Studio, p: Position, steps: int) -> np.ndarray:
    "(T, H, W, 3) uint8: a clip, made now or in an earlier run."
    c, prompt = studio.concept(p), studio.own_prompt(p)
    def make():
        frames = c.generate(prompt, p.seed, steps, **studio.sampling).frames
        return dict(frames=(frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1))
    how = (c.info["fingerprint"], prompt, p.seed, c.appearance, c.motion, steps, c.info.get("sampling"),
           studio.sampling)
    tensors = [t for _, t in sorted((c.weights | c.tokens).items())]
    return cached(make, "clip of the page", repr(how), *tensors)["frames"].numpy()


def people_and_things(studio: Studio) -> list[str]:
    return [name for names in studio.groups.values() for name in names]


def pairs(studio: Studio, looks: list[str], dances: list[str], wide: int) -> list[tuple[str, str]]:
    "Everybody as they are; the dancers with each other's dances; all others with the first few of them."
    group = studio.maps["motion"].group
    table = [
        (a, b) for b in dances for a in looks if group(a) == group(b) and (a in dances or b in dances[:wide])
    ]
    return list(dict.fromkeys([*((name, name) for name in looks), *table]))


def write_clips(folder: Path, studio: Studio, wanted: list[tuple[str, str]], steps: int) -> dict:
    "A strip for every pair; gives their files."
    files = {}
    began = time.time()
    for i, (look, dance) in enumerate(wanted):
        frames = clip_of(studio, Position(look, dance), steps)
        name = f"{i}.webp"
        (folder / name).write_bytes(strip(frames, studio.dit.defaults.fps, quality=QUALITY).data)
        files[f"{look}|{dance}"] = name
        if i % 20 == 19 or i + 1 == len(wanted):
            print(f"clips: {i + 1} of {len(wanted)}, {time.time() - began:.0f} s", flush=True)
    return files


def write_faces(folder: Path, studio: Studio, names: list[str]) -> tuple[dict, dict]:
    "What was filmed of everybody; gives the strips' files, and a still of each for the maps."
    files, stills = {}, {}
    infos = {m.name: m.state()["info"] for m in studio.atlas.members}
    for i, name in enumerate(names):
        film = filmed(infos[name], studio.places.get(name), studio.dit)
        if film is None: continue
        files[name] = f"face-{i}.webp"
        (folder / files[name]).write_bytes(film.data)
        stills[name] = still(film)
    return files, stills


def sliders(studio: Studio) -> dict:
    "Part -> group -> what the page offers, with a small clip of each end."
    offered = {part: {group: [] for group in studio.groups} for part in PARTS}
    for group, names in studio.groups.items():
        base, *_ = bases(studio, group)
        for part in PARTS:
            for s in studio.sliders(Position(names[0], names[0]), part):
                ends = (
                    strip_of(studio.thumbnail(s.end(x, base)), side=64).state() for x in (s.least, s.most)
                )
                low, high = ends
                offered[part][group].append(dict(number=s.number, label=s.label, low=low, high=high))
    return offered


def components(studio: Studio, offered: dict) -> dict:
    "Part -> group -> the offered components' standard deviations and axes."
    about = {part: {} for part in PARTS}
    for part in PARTS:
        for group, list_ in offered[part].items():
            _, pca = studio.components(part, group)
            n = max((s["number"] for s in list_), default=0)
            about[part][group] = dict(std=pca.std[:n].tolist(), axes=pca.axes[:n].round(6).tolist())
    return about


def prompts(studio: Studio, members: list[str]) -> dict:
    "Every look's own words with every dance, on their marks and near them."
    infos = {m.name: m.state()["info"] for m in studio.atlas.members}
    on = [[studio.own_prompt(Position(a, b)) for b in members] for a in members]
    between = [[sentence(infos[a], infos[b], False) for b in members] for a in members]
    known = list(dict.fromkeys(t for row in on + between for t in row))
    number = {t: i for i, t in enumerate(known)}
    numbers = ([[number[t] for t in row] for row in table] for table in (on, between))
    return dict(prompts=known, **dict(zip(("promptOf", "promptBetween"), numbers)))


def sampling(studio: Studio, steps: int) -> dict:
    "How the page samples, in numbers."
    dit, c = studio.dit, studio.concept(studio.start)
    own = c.info.get("sampling", {})
    schedules = {}
    for n in {studio.preview, steps}:
        scheduler = dit.schedule(n)
        times = [float(dit.family.time_of(t)) for t in scheduler.timesteps]
        schedules[n] = dict(times=times, sigmas=[float(s) for s in scheduler.sigmas])
    noise = dit.noise(list(range(SEEDS)))
    words = in_browser.vocabulary(dit)
    negative = dit.tokenizer(dit.defaults.negative).input_ids
    return dict(
        schedules=schedules,
        preview=studio.preview,
        steps=steps,
        latents=[1, *noise.shape[1:]],
        noise=[[round(float(x), 4) for x in n.flatten()] for n in noise],
        vocabulary=words,
        negative=negative,
        guidance=dit.defaults.usual_guidance(own.get("guidance_factor", 1.0)),
        negativeScale=own.get("negative_scale", 1.0),
        editGuidance=own.get("edit_guidance", 0.0),
        length=in_browser.LENGTH,
    )


def about_maps(studio: Studio) -> dict:
    maps = {part: dict(places=m.places, step=m.step) for part, m in studio.maps.items()}
    return dict(groups=studio.groups, maps=maps, hasAverage=AVERAGE in studio.names)


def layers(studio: Studio) -> dict[str, list]:
    """Of every layer, in the order of `in_browser.write_concepts`: how many coefficients it has, and how much
    they count where look and dance are of different people."""
    c = studio.concept(studio.start)
    strengths = strengths_of(c, studio.mixing)
    kinds = dict(zip(PARTS, ("B1", "B2")))
    def of(key): return [c.weights[key].numel(), strengths[key]]
    return {part: [of(f"{layer}.{kind}") for layer in c.layers] for part, kind in kinds.items()}


def kinds(chips: dict) -> dict:
    "Words that speak of people, and the chips that are for people alone."
    others = phrases_of(fitting(chips, ""))
    return dict(people=sorted(PEOPLE), forPeople=[p for p in phrases_of(chips) if p not in others])


def examples(studio: Studio, files: dict, model: bool) -> list[dict]:
    "Those of the explorer; without the model, those that were made beforehand."
    found = examples_of(studio, chips_of(studio.dit))
    return [dict(label=label, look=p.look, dance=p.dance, prompt=p.prompt) for label, p in found
            if model or not p.prompt and f"{p.look}|{p.dance}" in files]


def runtime() -> Path:
    "The runtime's package, unpacked; fetched once. Raises `UserError`."
    place = cache_folder() / "browser" / RUNTIME
    if (place / "package" / WASM).exists(): return place / "package"
    place.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(
            ["npm", "pack", "--silent", RUNTIME], cwd=place, check=True, capture_output=True, text=True,
            timeout=300,
        )
    except (OSError, subprocess.SubprocessError) as e:
        raise UserError(
            f"{RUNTIME}, which runs the model in browsers, could not be fetched by npm "
            f"({getattr(e, 'stderr', '') or e}): install npm, or give --no-model."
        ) from e
    archive = next(place.glob("*.tgz"))
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # older Pythons have none
        tar.extractall(place)
    archive.unlink()
    return place / "package"


def write_model(folder: Path, studio: Studio, members: list[str]) -> dict:
    package = runtime()
    for part in ("model", "runtime"): (folder / part).mkdir()
    for name, to in RUNTIME_FILES.items(): shutil.copyfile(package / name, folder / "runtime" / to)
    (folder / "runtime" / "LICENSE").write_text("onnxruntime-web: MIT licence, Copyright (c) Microsoft "
                                                "Corporation\n")
    (folder / "runtime" / "wasm").write_bytes(gzip.compress((package / WASM).read_bytes(), 9, mtime=0))
    concepts = {name: studio.concept(Position(name, name)) for name in members}
    about = dict(model=in_browser.write_model(folder / "model", studio.dit, concepts[members[0]], WEIGHTS),
                 concepts=in_browser.write_concepts(folder / "model" / "concepts", concepts, COEFFICIENTS))
    fetched = [*(folder / "model").iterdir(), folder / "runtime" / "wasm"]
    return about | dict(bytes=sum(p.stat().st_size for p in fetched))


def write_code(folder: Path):
    "The page and its styles, and the widgets' modules as they are in the explorer."
    for path in PAGE.iterdir(): shutil.copyfile(path, folder / path.name)
    (folder / "widgets").mkdir()
    for name in WIDGETS: shutil.copyfile(STATIC / f"{name}.js", folder / "widgets" / f"{name}.js")
    styles = [STATIC / f"{name}.css" for name in ("page", *WIDGETS)] + [PAGE / "page.css"]
    (folder / "page.css").write_text("".join(p.read_text() for p in styles))


def build(studio: Studio, folder: Path, dances: list[str], steps: int, model: bool):
    "The whole page into an empty folder."
    members = people_and_things(studio)
    (folder / "clips").mkdir(parents=True)
    write_code(folder)
    shown = [(p.look, p.dance) for _, p in examples_of(studio, {})]
    wanted = list(dict.fromkeys(pairs(studio, members, dances, WIDE if model else len(dances)) + shown))
    files = write_clips(folder / "clips", studio, wanted, steps)
    faces, stills = write_faces(folder / "clips", studio, members)
    offered = sliders(studio) if model else {part: {group: [] for group in studio.groups} for part in PARTS}
    T, H, W = (getattr(studio.dit.defaults, k) for k in ("num_frames", "height", "width"))
    about = dict(
        members=members,
        clips=files,
        faces=faces,
        stills=stills,
        sliders=offered,
        table=dances[:4],
        strip=dict(frames=T, fps=studio.dit.defaults.fps, shape=W / H),
        components=components(studio, offered),
        chips=chips_of(studio.dit) if model else {},
        kinds=kinds(chips_of(studio.dit)),
        examples=examples(studio, files, model),
        sentence=SENTENCE,
        help=[*HELP, WITH if model else WITHOUT],
        model=None,
    )
    about |= about_maps(studio) | prompts(studio, members) | sampling(studio, steps)
    if model: about |= write_model(folder, studio, members) | dict(layers=layers(studio))
    (folder / "about.json").write_text(json.dumps(about))


def check_folder(folder: Path):
    "Raise `UserError` for a folder that holds anything but such a page."
    if folder.exists() and any(folder.iterdir()) and not (folder / "engine.js").exists():
        raise UserError(f"{str(folder)!r} holds other files, which the page would replace: name another "
                        "folder.")


def replace_folder(new: Path, old: Path):
    "Nobody sees half a page."
    check_folder(old)
    if old.exists(): shutil.rmtree(old)
    old.parent.mkdir(parents=True, exist_ok=True)
    new.rename(old)


def fresh(folder: Path) -> Path:
    "A name beside a folder for what is to replace it, free of what a stopped run left."
    place = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(place, ignore_errors=True)
    return place


def main(
    concepts: Annotated[
        list[str], typer.Argument(help="What to show; the shipped zoo when not given.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = BUILD,
    site: Annotated[Path, typer.Option(help="Folder to copy it to.")] = SITE,
    dances: Annotated[str, typer.Option(help="Whose dances are made beforehand, by commas.")] = "",
    steps: Annotated[int, typer.Option(help="Sampling steps of a clip; the model's own when 0.")] = 0,
    model: Annotated[bool, typer.Option(help="Write the model too, for the browser to run.")] = True,
    threads: Annotated[int, typer.Option(help="Threads; 0 leaves them alone.")] = 0,
):
    if threads: torch.set_num_threads(threads)
    out, site = expanded(out), expanded(site)
    for folder in (out, site): check_folder(folder)
    studio = Studio(concepts or ["zoo"])
    here = [d for d in DANCES if d in studio.names] or people_and_things(studio)[:4]
    work = fresh(out)
    build(studio, work, dances.split(",") if dances else here, steps or studio.steps, model)
    size = sum(p.stat().st_size for p in work.rglob("*") if p.is_file())
    if size > MOST:
        raise UserError(f"The page has {size / 1e6:.1f} MB, over {MOST / 1e6:.0f}: name fewer --dances.")
    replace_folder(work, out)
    if site != out: replace_folder(Path(shutil.copytree(out, fresh(site))), site)
    print(f"{out}: {size / 1e6:.1f} MB, {sum(p.is_file() for p in out.rglob('*'))} files")


if __name__ == "__main__": typer.run(main)
