"""README's picture of the explorer: the first screen of `make explore`, in Chromium.

    python scripts/explore_picture.py    # writes nbs/images/explore.webp, in half a minute

It needs the Python package playwright, and Chromium: the one on the path, or at $SAS_NB_CHROMIUM.
"""
import os
import shutil
import tempfile
from io import BytesIO
from pathlib import Path
from PIL import Image
from playwright.sync_api import sync_playwright
from sas_nb.explore.serve import site
from sas_nb.files import UserError
from sas_nb.terminal import tidy
from sas_nb.writing import atomic

OUT = Path(__file__).resolve().parent.parent / "nbs" / "images" / "explore.webp"
PORT = 8931
FACES = ".sas-strip[data-frames]"
WAIT = 300_000  # milliseconds: the page loads PyTorch


def browser_path() -> str:
    "Raises `UserError` where there is no Chromium."
    if found := os.environ.get("SAS_NB_CHROMIUM") or shutil.which("chromium"): return found
    raise UserError("There is no chromium here: install it, or say where it is in SAS_NB_CHROMIUM.")


def picture(address: str) -> bytes:
    "The page of the zoo as it opens, once its video and its faces are there."
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=browser_path(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=dict(width=1280, height=800))
        page.goto(address, wait_until="commit")
        page.wait_for_selector(".sas-stage video", timeout=WAIT)
        page.wait_for_function(f"document.querySelectorAll('{FACES}').length > 3", timeout=WAIT)
        page.wait_for_timeout(3000)  # until the last faces are painted
        seen = page.screenshot()
        browser.close()
    return seen


def main():
    with tempfile.TemporaryDirectory() as out, site(["zoo"], port=PORT, out=out) as address:
        seen = picture(address)
    with atomic(OUT) as tmp: Image.open(BytesIO(seen)).convert("RGB").save(tmp, "WEBP", quality=85, method=6)
    print(f"Wrote {OUT}: {OUT.stat().st_size/1e3:.0f} kB")


if __name__ == "__main__":
    with tidy(): main()
