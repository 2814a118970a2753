"""Make anew what depends on the base, in order; or say what is of another base, or not whole.

    python scripts/rebuild.py --stale                # or: make stale; ends with 1 where something is stale
    python scripts/rebuild.py --dry-run              # what would be made, and about how long it takes
    python scripts/rebuild.py                        # or: make rebuild; days on two cores
    python scripts/rebuild.py --only zoo --only responses
    python scripts/rebuild.py --stamp explore        # note that these files are of what is there now

data/made.json says of every artefact what made it: one fingerprint of all the base's weights (text encoder,
transformer, autoencoder; `sas-nb info` shows the transformer's own), the name of its world, a hash of each
other artefact that was read. What has the same today, and is whole, is fresh, and is skipped. A run that was
stopped goes on with the artefact it was at, whose script goes on where it was.
"""
import hashlib, json, re, shlex, signal, subprocess, sys, textwrap
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated
import typer
from lint_notebooks import notebooks
from sas_nb.files import check_names, UserError
from sas_nb.terminal import tidy
from sas_nb.writing import atomic

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Artefact:
    "Files, what they are made from, and how. Commands go on where they were stopped."
    name: str
    reads: tuple[str, ...]  # "base", "world", or artefacts that stand above
    files: tuple[str, ...]  # patterns, from the repository's root
    commands: tuple[str, ...] = ()  # {base} is its fingerprint; none where it is made by hand
    minutes: int = 1  # of two cores, roughly
    by_hand: str = ""  # what to do where there is no command
    kept: bool = True  # in git; what is not kept and not there is no loss
    lacks: Callable[[Path], str] = lambda root: ""  # what is not in its files yet; empty where all is


def judge(name: str, minutes: int) -> Artefact:
    command = f"python scripts/judges.py {name} --keep"
    return Artefact(name, ("base", "world"), (f"data/{name}/*",), (command,), minutes)


def rows(name: str) -> tuple[str, str]: return f"data/bench/{name}.csv", f"data/bench/{name}.json"


def lacking(name: str, root: Path) -> str:
    "What a table lacks of the methods and concepts that scripts/table.py makes now."
    from table import SETS
    about = json.loads((root / f"data/bench/{name}.json").read_text("utf-8"))
    methods = [repr(m) for m in SETS[name]["method"] if m not in about["methods"]]
    n, wanted = len(about["concepts"]), SETS[name]["people"] + SETS[name]["things"]
    few = [f"{wanted - n} of {wanted} concepts"] * (n < wanted)
    return f"without {', '.join(few + methods)}" if few + methods else ""


def table(name: str, flag: str, minutes: int) -> Artefact:
    command = f"python scripts/table.py {flag}--keep"
    return Artefact(name, ("base", "oracles"), rows(name), (command,), minutes, lacks=partial(lacking, name))


_ZOO = "zoo.json", "basis.safetensors", "concepts-*.safetensors", "truth.csv", "packing.json", "sheet.png"
_RESPONSES = "response.csv", "controls.json"
_JUDGED = "base", "oracles", "zoo"
_CARD = "Write the figures of data/report/report.json into data/tiny/README.md."

ARTEFACTS = (
    Artefact("clips", ("world",), ("data/clips/*.mp4",), ("python scripts/make_clips.py",)),
    judge("oracles", 130),
    judge("finder", 40),
    Artefact("report", ("base", "oracles", "finder"), ("data/report/*",),
             ("python scripts/report.py --keep",), 20),
    Artefact("card", ("report",), ("data/tiny/README.md",), by_hand=_CARD),
    Artefact("zoo", ("base",), tuple(f"data/zoo/{f}" for f in _ZOO), ("python scripts/zoo.py",), 90),
    Artefact("mixtures", _JUDGED, ("data/zoo/mixtures.json",), ("python scripts/mixtures.py",), 10),
    Artefact("responses", (*_JUDGED, "mixtures"), tuple(f"data/zoo/{f}" for f in _RESPONSES),
             ("python scripts/response.py", "python scripts/response.py --sliders"), 30),
    Artefact("parts", _JUDGED, ("data/zoo/parts.csv",), ("python scripts/parts.py",), 10),
    table("table", "", 150),
    table("long", "--long ", 400),
    table("ablation", "--ablation ", 115),
    Artefact("choice", ("base", "oracles"), rows("tune_sampling"),
             ("python scripts/tune.py --set tune_sampling --keep tune_sampling",), 45),
    Artefact("compose", (*_JUDGED, "finder"), ("data/bench/compose.csv",),
             ("python scripts/compose.py --each 1 --keep --out out/compose-{base}",), 120),
    Artefact("capacity", (*_JUDGED, "finder"), ("data/bench/capacity.csv",),
             ("python scripts/capacity.py --keep --out out/capacity-{base}",), 30),
    Artefact("experts", _JUDGED, ("data/bench/experts.csv",), ("python scripts/experts.py",), 60),
    Artefact("words", ("base", "oracles"), ("data/bench/words.csv",), ("python scripts/words.py",), 30),
    Artefact("demo", ("base", "clips"), ("nbs/images/demo.png",),
             ("python scripts/demo.py --out out/demo-{base}",
              "cp out/demo-{base}/sheet.png nbs/images/demo.png"), 3),
    Artefact("pictures", ("base", "zoo", "mixtures"),
             ("nbs/images/looks-and-dances.webp", "nbs/images/scene.webp"),
             ("python scripts/looks_and_dances.py", "python scripts/scene.py"), 3),
    Artefact("explore", ("base", "zoo", "mixtures"), ("nbs/images/explore.webp",),
             ("python scripts/explore_picture.py",)),
    Artefact("page", ("base", "zoo", "mixtures", "responses"), ("build/explore/*", "site/explore/*"),
             ("python scripts/static_page.py",), 30, kept=False),
)

# In a notebook's code -> what it reads
WORDS = {"oracles": "Oracles", "finder": "Finder", "zoo": r"load_zoo|['\"]zoo\b", "report": r"report\.json",
         "responses": r"response\.csv|controls\.json", "table": r"bench/table|kept\(\"table",
         "long": r"kept\(\"long", "ablation": r"kept\(\"abl", "choice": r"kept\(\"tune", "clips": r"clips/",
         "compose": r"compose\.csv", "capacity": r"capacity\.csv", "experts": r"experts\.csv",
         "words": r"words\.csv", "parts": r"parts\.csv", "mixtures": r"mixtures\.json|\b(Studio|Explorer)\("}
BASE = r"['\"]tiny\b|--model tiny|(?<!def )\blearn(_many|_together)?\(|sas_nb\.cli"


def of_notebook(path: Path, root: Path) -> Artefact | None:
    "The stored outputs of a notebook, if any of them depends on the base."
    cells = [c for c in json.loads(path.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    code = "\n".join("".join(c["source"]) for c in cells if "#| export" not in "".join(c["source"]))
    reads = [name for name, words in WORDS.items() if re.search(words, code)]
    if set(reads) - {"clips"} or re.search(BASE, code): reads.append("base")
    if not any(c["outputs"] for c in cells) or not reads: return None
    name = path.relative_to(root).as_posix()
    also = ("python scripts/readme.py",) if name == "nbs/index.ipynb" else ()
    return Artefact(name, tuple(reads), (name,), (f"python scripts/run_notebook.py {name}", *also), 2)


def of_base(root: Path) -> str:
    from sas_nb.dit import VideoDiT
    from sas_nb.hub import maker_fingerprint
    return maker_fingerprint(VideoDiT.load(root / "data/tiny", device="cpu"))  # in one precision everywhere


def of_world(root: Path) -> str:
    from sas_nb.lab.worlds import world_of
    return world_of(root / "data/tiny").__name__


SOURCES = dict(base=of_base, world=of_world)


@dataclass
class House:
    "A repository, its artefacts in order, and how what they are made from is named."
    root: Path
    artefacts: tuple[Artefact, ...]
    sources: dict[str, Callable[[Path], str]]
    known: dict = field(default_factory=dict)  # of sources, which stay while this runs

    @property
    def file(self) -> Path: return self.root / "data" / "made.json"

    def noted(self) -> dict: return json.loads(self.file.read_text("utf-8")) if self.file.exists() else {}

    def print_of(self, name: str) -> str:
        "Sixteen hex digits, or a name: of a source, or of the files of an artefact."
        if name in self.sources:
            if name not in self.known: self.known[name] = self.sources[name](self.root)
            return self.known[name]
        h = hashlib.sha256()
        for path in self.files(next(a for a in self.artefacts if a.name == name)):
            h.update(path.relative_to(self.root).as_posix().encode() + path.read_bytes())
        return h.hexdigest()[:16]

    def files(self, a: Artefact) -> list[Path]:
        return sorted(p for pattern in a.files for p in self.root.glob(pattern) if p.is_file())

    def missing(self, a: Artefact) -> list[str]:
        return [p for p in a.files if not any(self.root.glob(p))]

    def stamp(self, a: Artefact) -> dict[str, str]: return {name: self.print_of(name) for name in a.reads}

    def note(self, name: str, stamp: dict[str, str]):
        made = self.noted() | {name: stamp}
        with atomic(self.file) as tmp: tmp.write_text(json.dumps(dict(sorted(made.items())), indent=1) + "\n")

    def why(self, a: Artefact) -> str:
        "Why an artefact has to be made; empty where it is whole, and of what is there now."
        if gone := self.missing(a): return f"{gone[0]} is not there"
        was = self.noted().get(a.name)
        if was is None: return "nobody noted what made it"
        others = ", ".join(f"of another {k} ({was.get(k, 'unknown')}, now {now})"
                           for k, now in self.stamp(a).items() if was.get(k) != now)
        return others or a.lacks(self.root)

    def stale(self) -> dict[str, str]:
        "Name -> why."
        there = (a for a in self.artefacts if a.kept or not self.missing(a))
        return {a.name: why for a in there if (why := self.why(a))}

    def waiting(self, only=()) -> list[Artefact]:
        "What a run would make: what is stale, and what reads that."
        names = set()
        plan = []
        for a in self.artefacts:
            if only and a.name not in only or not (names & set(a.reads) or self.why(a)): continue
            names.add(a.name)
            plan.append(a)
        return plan

    def commands(self, a: Artefact) -> list[str]:
        named = {name: self.print_of(name) for name in self.sources if name in a.reads}
        return [c.format(**named) for c in a.commands]

    def make(self, a: Artefact):
        "Run its commands, and note what it was made from. Raises `UserError`."
        stamp = self.stamp(a)
        for command in self.commands(a):
            words = shlex.split(command)
            if words[0] == "python": words[0] = sys.executable
            print(f"$ {shlex.join(words)}", flush=True)
            if run(words, self.root):
                raise UserError(f"{a.name} is not made ({shlex.join(words)} stopped): mend what it says, and "
                                "the same command goes on from there.")
        if gone := self.missing(a):
            raise UserError(f"{a.name} is not made: its commands did not write {gone[0]}.")
        self.note(a.name, stamp)

    def rebuild(self, only=()) -> list[Artefact]:
        "Make what is stale, one after another; gives what has to be made by hand."
        left = []
        for a in self.artefacts:
            if (only and a.name not in only) or not (why := self.why(a)): continue
            print(f"{a.name}: {why}" + (f"; {spell(a.minutes)}" if a.commands else ""), flush=True)
            if a.commands: self.make(a)
            else: left.append(a)
        return left


def run(words: list[str], folder: Path) -> int:
    "A command's exit code. Ctrl-C and a kill are the command's: it writes its checkpoint, and ends."
    command = subprocess.Popen(words, cwd=folder)
    before = signal.signal(signal.SIGTERM, lambda *_: command.terminate())
    try:
        while True:
            with suppress(KeyboardInterrupt): return command.wait()  # the same Ctrl-C has reached it
    finally: signal.signal(signal.SIGTERM, before)


def spell(minutes: int) -> str:
    return f"about {minutes} min" if minutes < 100 else f"about {round(minutes / 60)} h"


def here() -> House:
    kept = tuple(a for a in ARTEFACTS if a.kept)
    pages = tuple(filter(None, (of_notebook(path, ROOT) for path in notebooks())))
    others = tuple(a for a in ARTEFACTS if not a.kept)  # last: they need more extras
    return House(ROOT, (*kept, *pages, *others), SOURCES)


WHOLE = ("A base's fingerprint is of all its weights: text encoder, transformer, autoencoder. `sas-nb info` "
         "shows the transformer's own, which differs.")


def say_stale(house: House) -> bool:
    "Print what is stale, by what is wrong with it; whether there is anything."
    by_reason = {}
    for name, why in house.stale().items(): by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        lines = textwrap.wrap(f"{why}: {', '.join(names)}", 110, break_on_hyphens=False)
        print("\n  ".join(lines))
    if any("of another base" in why for why in by_reason): print(WHOLE)
    end = "`make rebuild` makes these anew; the library works as it is." if by_reason else "Nothing is stale."
    print(end)
    return bool(by_reason)


def say_plan(house: House, only):
    plan = house.waiting(only)
    for a in plan:
        how = "; ".join(house.commands(a))
        print(f"{a.name}: {spell(a.minutes)}: {how}" if how else f"{a.name}: by hand: {a.by_hand}")
    print(f"{len(plan)} artefacts, {spell(sum(a.minutes for a in plan if a.commands))} of two cores.")


_NAMES = Annotated[list[str] | None, typer.Option(show_default="all", help="An artefact; may be repeated.")]


def main(
    only: _NAMES = None,
    stale: Annotated[bool, typer.Option("--stale", help="Only say what is stale.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be made.")] = False,
    stamp: Annotated[list[str] | None, typer.Option(
        help="Make nothing: note that this artefact is of what is there now.", show_default="none")] = None,
):
    "Make anew what depends on the base, or say what is of another one."
    with tidy():
        house = here()
        known = {a.name: a for a in house.artefacts}
        check_names([*(only or ()), *(stamp or ())], known, "The list of artefacts")
        for name in stamp or (): house.note(name, house.stamp(known[name]))
        if stamp: return
        if dry_run: return say_plan(house, only or ())
        if stale:
            found = say_stale(house)
            raise typer.Exit(int(found))
        for a in house.rebuild(only or ()):
            print(f"{a.name} is made by hand: {a.by_hand} Then: python scripts/rebuild.py --stamp {a.name}")


if __name__ == "__main__": typer.run(main)
