"""README's moving picture: the looks of four people of the zoo, each with the dances of four, in step.

    python scripts/looks_and_dances.py    # writes nbs/images/looks-and-dances.webp, in about a minute
"""
from pathlib import Path
from PIL import Image, ImageDraw, ImageFont
from sas_nb.clip import Clip
from sas_nb.explore import Position, Studio
from sas_nb.sheet import to_images

OUT = Path(__file__).resolve().parent.parent / "nbs" / "images" / "looks-and-dances.webp"
LOOKS = "woman-28", "man-21", "woman-07", "woman-48"
DANCES = "woman-41", "man-09", "man-08", "woman-24"
SIDE, GAP = 128, 4  # pixels of a video, and between two
LEFT, TOP = 84, 24  # for the names
PAPER, INK = "white", "#333"


def film(studio: Studio, look: str, dance: str) -> Clip:
    "One's look with another's dance. All start from the same noise."
    return studio.concept(Position(look, dance)).generate(seed=1)


def paper() -> Image.Image:
    "The table without its videos."
    size = [n + 4 * (SIDE + GAP) for n in (LEFT, TOP)]
    page = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for i, (look, dance) in enumerate(zip(LOOKS, DANCES)):
        middle = i * (SIDE + GAP) + SIDE // 2
        draw.text((LEFT + middle, TOP // 2), f"dance of {dance}", INK, font, anchor="mm")
        draw.text((LEFT // 2, TOP + middle), f"look of\n{look}", INK, font, anchor="mm", align="center")
    return page


def pages(films: dict[tuple[int, int], Clip]) -> list[Image.Image]:
    "The table, moment by moment; films are by row and column."
    count = min(map(len, films.values()))
    table = [paper() for _ in range(count)]
    for (row, column), clip in films.items():
        place = LEFT + column * (SIDE + GAP), TOP + row * (SIDE + GAP)
        for page, frame in zip(table, to_images(clip.frames, range(count), SIDE)): page.paste(frame, place)
    return table


def main():
    studio = Studio("zoo")
    films = {(i, j): film(studio, a, b) for i, a in enumerate(LOOKS) for j, b in enumerate(DANCES)}
    first, *rest = pages(films)
    timing = dict(duration=round(1000 / films[0, 0].fps), loop=0)
    OUT.parent.mkdir(exist_ok=True)
    first.save(OUT, save_all=True, append_images=rest, quality=75, method=6, **timing)
    print(f"{OUT.name}: {len(rest) + 1} moments, {OUT.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__": main()
