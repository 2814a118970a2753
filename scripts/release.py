"""Make a release: see that version, changelog and tag agree, build, check, tag.

`python scripts/release.py [--dry-run]`: a dry run tags nothing. Nothing leaves this machine unless
TWINE_PASSWORD, a token of the package index, is set.
"""
import os, re, subprocess, sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*command) -> str:
    "What a command prints; ends the script with its complaint where it fails."
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode: sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def version() -> str:
    "The version that settings.ini and the package agree on."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    ours = config["DEFAULT"]["version"]
    source = (ROOT / "sas_nb" / "__init__.py").read_text(encoding="utf-8")
    package = re.search(r'__version__ = "(.+)"', source)[1]
    if ours != package: sys.exit(f"settings.ini says {ours} and sas_nb/__init__.py {package}: make them one.")
    return ours


def problems(number: str) -> list[str]:
    "What keeps this checkout from being released as a version."
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    section = re.search(rf"^## \[{re.escape(number)}\](.*)\n", changes, re.M)
    waiting = re.search(r"^## \[Unreleased\]\s*\n(.*?)(?=^## |\Z)", changes, re.M | re.S)
    tagged = run("git", "tag", "--list", f"v{number}") and run("git", "rev-list", "-n1", f"v{number}")
    elsewhere = tagged and tagged != run("git", "rev-parse", "HEAD")
    checks = {
        f"CHANGELOG.md has no section [{number}]": not section,
        f"CHANGELOG.md's section [{number}] has no date: write `## [{number}] - 2026-01-31`":
            section and not re.search(r"\d{4}-\d\d-\d\d", section[1]),
        f"CHANGELOG.md still has entries under [Unreleased]: move them to [{number}]":
            waiting and waiting[1].strip(),
        f"the tag v{number} is on another commit: raise the version": elsewhere,
        "the checkout has changes that are not committed": run("git", "status", "--porcelain"),
    }
    return [problem for problem, holds in checks.items() if holds]


def build(number: str) -> list[Path]:
    "Source distribution and wheel in dist/, checked."
    for old in (ROOT / "dist").glob(f"sas_nb-{number}*"): old.unlink()
    run(sys.executable, "-m", "build")
    files = sorted((ROOT / "dist").glob(f"sas_nb-{number}*"))
    run(sys.executable, "-m", "twine", "check", "--strict", *files)
    return files


if __name__ == "__main__":
    number = version()
    faults = problems(number)
    print(*faults, sep="\n")
    dry = "--dry-run" in sys.argv
    if faults and not dry: sys.exit(f"{number} was not released: {len(faults)} things to mend.")
    files = build(number)
    print("built and checked:", *(f.name for f in files))
    if dry: sys.exit(bool(faults))
    tag = f"v{number}"
    if not run("git", "tag", "--list", tag): run("git", "tag", "-a", tag, "-m", f"sas_nb {number}")
    if os.environ.get("TWINE_PASSWORD"): run(sys.executable, "-m", "twine", "upload", *files)
    else: print(f"Tagged {tag}, nothing uploaded: push the tag, or set TWINE_PASSWORD and run this again.")
