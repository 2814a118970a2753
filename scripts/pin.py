"""Write constraints.txt: the version of all that sas_nb, its tests and notebooks need, as installed here."""
import re, sys
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
HEADER = f"# What sas_nb was tested with (Python {PYTHON}). Written by `make pin`.\n"


def normal(name: str) -> str: return re.sub(r"[-_.]+", "-", name).lower()


def closure(requirements: list[str]) -> dict:
    "The installed distribution of every requirement, and of what each of them requires, by normalised name."
    distributions = {}
    todo = [Requirement(r) for r in requirements]
    while todo:
        req = todo.pop()
        try: dist = distribution(req.name)
        except PackageNotFoundError:
            sys.exit(f"{req.name} is not installed: run `make test` and `make lab` once, then `make pin`.")
        if normal(req.name) in distributions and not req.extras: continue
        distributions[normal(req.name)] = dist
        for sub in map(Requirement, dist.requires or []):
            extras = req.extras or {""}
            if not sub.marker or any(sub.marker.evaluate({"extra": e}) for e in extras): todo.append(sub)
    return distributions


def first_python(supported: SpecifierSet) -> str:
    "The first Python from 3.10 on that is supported; with its third number where that is not 0."
    minors = range(10, sys.version_info.minor + 1)
    releases = (f"3.{minor}.{patch}" for minor in minors for patch in range(30))
    return next(r for r in releases if r in supported).removesuffix(".0")


def pin(dist) -> str:
    "`name==version`, without torch's local `+cpu`, and only on the Pythons that this version supports."
    first = first_python(SpecifierSet(dist.metadata["Requires-Python"] or ""))
    name = "python_full_version" if first.count(".") > 1 else "python_version"
    marker = "" if first == "3.10" else f' ; {name} >= "{first}"'
    return f"{normal(dist.name)}=={dist.version.split('+')[0]}{marker}"


if __name__ == "__main__":
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    groups = [g for g in config["DEFAULT"] if g.endswith("requirements") and g != "docs_requirements"]
    wanted = " ".join(config["DEFAULT"][g] for g in groups).split()
    lines = sorted(map(pin, closure(wanted).values()))
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"constraints.txt: {len(lines)} pins")
