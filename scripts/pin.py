"""Write constraints.txt: the exact version of everything that sas_nb, its tests and its notebooks need, as installed here."""
import re, sys
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
GROUPS = "requirements", "dev_requirements", "notebooks_requirements"
HEADER = f"# What sas_nb was tested with (Python {sys.version_info.major}.{sys.version_info.minor}). Written by `make pin`.\n"


def normal(name: str) -> str: return re.sub(r"[-_.]+", "-", name).lower()


def closure(requirements: list[str]) -> dict:
    "The installed distribution of every requirement, and of what each of them requires, by normalised name."
    found, todo = {}, [Requirement(r) for r in requirements]
    while todo:
        req = todo.pop()
        try: dist = distribution(req.name)
        except PackageNotFoundError: sys.exit(f"{req.name} is not installed: run `make test` and `make lab` once, then `make pin`.")
        if normal(req.name) in found and not req.extras: continue
        found[normal(req.name)] = dist
        for sub in map(Requirement, dist.requires or []):
            if not sub.marker or any(sub.marker.evaluate({"extra": e}) for e in (req.extras or {""})): todo.append(sub)
    return found


def pin(dist) -> str:
    "`name==version`, without torch's local `+cpu`, and only on the Pythons that this version supports."
    line = f"{normal(dist.name)}=={dist.version.split('+')[0]}"
    old = "3.10" not in SpecifierSet(dist.metadata["Requires-Python"] or "")
    return line + (' ; python_version >= "3.11"' if old else "")


if __name__ == "__main__":
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    wanted = " ".join(config["DEFAULT"][g] for g in GROUPS).split()
    lines = sorted(map(pin, closure(wanted).values()))
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"constraints.txt: {len(lines)} pins")
