"""Look at a recipe on a base that nobody has trained on yet, at three learning rates.

    python scripts/first_run.py film.mp4 --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers \\
        --frames 33 --size 320x512 --appearance "a [v] man in a park" --motion "he is [u] dancing" --out look

It prints how long words are, how far they and the weights move, and the loss by quarter of time.

The base is fitted into this machine as `sas-nb plan` says, once for all rates; each rate costs as much as its
two stages. With --out a run that was cut off goes on. What to look at is printed beside each number. Send the
table to whoever keeps the recipe."""
import argparse
from dataclasses import replace
from pathlib import Path
import sys
from sas_nb.adapter import SharedLoRA
from sas_nb.beforehand import fit_memory
from sas_nb.command import load_clip
from sas_nb.experts import split_name
from sas_nb.files import UserError
from sas_nb.ladder import in_words
from sas_nb.lowrank import norm
from sas_nb.options import named_model
from sas_nb.prompt import Prompts
from sas_nb.rates import word_lengths
from sas_nb.recipe import Recipe, Run
from sas_nb.stages import build
from sas_nb.train import Trainer

HINTS = ("the word is within a few times the length of the others: above 5 of them it drowns them, below .05 "
         "nobody hears it",
         "updates are .1 % to 3 % of the weights: below it nothing was learned, above 10 % it wears the base",
         "the loss falls in the noisy quarters (q3, q4) first and rises in none: where it rises, the rate is "
         "too high")


def sizes_of(dit) -> dict[str, float]:
    "Norms of the base's own weights, by the adapter's names: as they lie in its files, where these say it."
    parts = {part: dit.checkpoint.stored(part)[1] or dict(dit.transformers[part].named_parameters())
             for part in dit.family.transformers}
    found = {}
    for name in {k.rpartition(".")[0] for k in SharedLoRA(dit, 1).weights}:
        part, layer = split_name(name)
        found[name] = float(parts[part][f"{layer}.weight"].float().norm())
    return found


def moved(adapter, sizes: dict) -> list[float]:
    "How large the update of each layer is beside its weights, in order of size."
    ours = adapter.member()[0]
    def update(l): return float(norm(ours[f"{l}.A"], ours[f"{l}.B1"]+ours[f"{l}.B2"]))
    return sorted(update(l)/size for l, size in sizes.items())


def train(dit, data: dict, recipe: Recipe, rate: float, sizes: dict, out: Path | None) -> dict:
    "Both stages at a share of the recipe's rates."
    adapter = SharedLoRA(dit, recipe.rank, recipe.layers, 1, recipe.stage1.seed)
    rows = {}
    with adapter.attached():
        for stage in recipe.stages:
            stage = replace(stage, lr=rate*stage.rate(dit.defaults), token_lr=rate*stage.token_lr)
            run = Run(out and out/f"{rate:g}", progress=False, log_every=max(1, stage.steps//4))
            trainer = Trainer(dit, adapter, data[stage.name], stage, run)
            history = trainer.fit()
            length = float(word_lengths(data[stage.name])[0, 0])
            word = float(adapter.tokens[trainer.words[0]][0].norm())/length
            rows[stage.name] = dict(lr=stage.lr, word=word, update=moved(adapter, sizes), first=history[0],
                                    last=history[-1])
    return rows


def quarters(row) -> str: return " ".join("   -  " if v is None else f"{v:6.3f}" for v in row[2:6])


def show(rows: dict):
    for name, r in rows.items():
        median, most = r["update"][len(r["update"])//2], r["update"][-1]
        print(f"  {name:10} lr {r['lr']:.1e}  word {r['word']:5.2f} lengths  update/weights median "
              f"{median:.3%} most {most:.3%}")
        print(f"             loss by quarter of time, q1 to q4: first {quarters(r['first'])} | last "
              f"{quarters(r['last'])}")


def options(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clip")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--appearance", default="a [v] woman in a red shirt in a park")
    parser.add_argument("--motion", default="she is [u] dancing")
    parser.add_argument("--frames", type=int, help="of the clip; the model's own when not given")
    parser.add_argument("--size", help="height x width, as in 320x512; what suits film and model")
    parser.add_argument("--dtype", help="fp32, bf16 or fp16; what suits the machine when not given")
    parser.add_argument("--revision", help="a hub id's branch, tag or commit")
    parser.add_argument("--steps", type=int, help="of each stage; the recipe's when not given")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--prior", type=float, help="share of prior preservation [the recipe's]")
    parser.add_argument("--rates", type=float, nargs="+", default=[.3, 1., 3.], help="times the recipe's own")
    parser.add_argument("--out", type=Path, help="folder for checkpoints; nothing is kept when not given")
    return parser.parse_args(argv)


def about(dit, clip, data: dict, recipe: Recipe):
    own = dit.defaults
    known = "untested on real weights" if own.untested else "tested"
    print(f"{dit.name}: {dit.family.name}, {clip}, {known}")
    print(f"lr {own.lr:g} x {own.lr_factor:g}, warm-up {own.warmup}, {own.decay}; guidance "
          f"{own.usual_guidance()}, shift {own.shift or 'as published'}, {own.fps:g} fps")
    print(f"the prompt's own words are {float(word_lengths(data['motion'])[0, 0]):.3g} long in the mean; a "
          f"token moves {recipe.stage1.token_lr:.1e} lengths in each number at a step")


def look(given: argparse.Namespace):
    named = dict(steps=given.steps, batch=given.batch, prior=given.prior)
    recipe = Recipe.default().with_(both={k: v for k, v in named.items() if v is not None})
    prompts = Prompts(given.appearance, given.motion)
    dit = named_model(given.model, given.dtype, given.revision)
    clip = load_clip(given.clip, given.model, given.frames, size=given.size, revision=given.revision)
    fit_memory(dit, Run(progress=True), [clip], recipe)
    print(in_words(dit.memory, dit.configuration["transformer"]["num_layers"]))
    data = build(dit, [clip], [prompts], recipe, True)
    if dit.memory.apart: dit.free("vae", "text_encoder")
    sizes = sizes_of(dit)
    about(dit, clip, data, recipe)
    for rate in given.rates:
        print(f"\n{rate:g} x the recipe's rates")
        show(train(dit, data, recipe, rate, sizes, given.out))
    print("\nLook whether", *HINTS, sep="\n- ")


def main(argv=None): look(options(argv))


if __name__ == "__main__":
    try: main()
    except UserError as e: sys.exit(f"Error: {e}")
