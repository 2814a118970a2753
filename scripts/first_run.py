"""Look at a recipe on a base that nobody has trained on yet, at three learning rates.

    python scripts/first_run.py film.mp4 --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers \\
        --appearance "a [v] man in a park" --motion "he is [u] dancing"

It prints how long words are, how far they and the weights move, and the loss by quarter of time.

What to look at is printed beside each number. Send the table to whoever keeps the recipe."""
import argparse
from dataclasses import replace
from sas_nb.adapter import SharedLoRA
from sas_nb.dit import VideoDiT
from sas_nb.experts import split_name
from sas_nb.learning import fit_clip
from sas_nb.lowrank import norm
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


def layers_of(dit) -> dict:
    "The base's own weights, by the adapter's names."
    names = SharedLoRA(dit, 1).weights
    found = {}
    for name in {k.rpartition(".")[0] for k in names}:
        part, layer = split_name(name)
        found[name] = dit.transformers[part].get_submodule(layer).weight
    return found


def moved(adapter, weights: dict) -> list[float]:
    "How large the update of each layer is beside its weights, in order of size."
    ours = adapter.member()[0]
    def update(l): return float(norm(ours[f"{l}.A"], ours[f"{l}.B1"]+ours[f"{l}.B2"]))
    return sorted(update(l)/float(w.float().norm()) for l, w in weights.items())


def train(dit, data: dict, recipe: Recipe, rate: float, weights: dict) -> dict:
    "Both stages at a share of the recipe's rates."
    adapter = SharedLoRA(dit, recipe.rank, recipe.layers, 1, recipe.stage1.seed)
    rows = {}
    with adapter.attached():
        for stage in recipe.stages:
            stage = replace(stage, lr=rate*stage.rate(dit.defaults), token_lr=rate*stage.token_lr)
            trainer = Trainer(
                dit, adapter, data[stage.name], stage, Run(progress=False, log_every=max(1, stage.steps // 4))
            )
            history = trainer.fit()
            length = word_lengths(data[stage.name]).cpu()[0, 0]
            word = float(adapter.tokens[trainer.words[0]][0].norm())/float(length)
            rows[stage.name] = dict(
                lr=stage.lr, word=word, update=moved(adapter, weights), first=history[0], last=history[-1]
            )
    return rows


def quarters(row) -> str: return " ".join("   -  " if v is None else f"{v:6.3f}" for v in row[2:6])


def show(rows: dict):
    for name, r in rows.items():
        median, most = r["update"][len(r["update"])//2], r["update"][-1]
        print(f"  {name:10} lr {r['lr']:.1e}  word {r['word']:5.2f} lengths  update/weights median "
              f"{median:.3%} most {most:.3%}")
        print(f"             loss by quarter of time, q1 to q4: first {quarters(r['first'])} | last "
              f"{quarters(r['last'])}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clip")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--appearance", default="a [v] woman in a red shirt in a park")
    parser.add_argument("--motion", default="she is [u] dancing")
    parser.add_argument("--steps", type=int, help="of each stage; the recipe's when not given")
    parser.add_argument("--batch", type=int)
    parser.add_argument(
        "--prior", type=float, help="share of prior preservation; the recipe's when not given"
    )
    parser.add_argument("--rates", type=float, nargs="+", default=[.3, 1., 3.], help="times the recipe's own")
    given = parser.parse_args(argv)
    changes = {
        k: v
        for k, v in dict(steps=given.steps, batch=given.batch, prior=given.prior).items()
        if v is not None
    }
    dit, recipe, prompts = (
        VideoDiT.of(given.model),
        Recipe.default().with_(both=changes),
        Prompts(given.appearance, given.motion),
    )
    clip = fit_clip(dit, given.clip)
    data = build(dit, [clip], [prompts], recipe, True)
    weights, own = layers_of(dit), dit.defaults
    print(
        f"{dit.name}: {dit.family.name}, {clip}, {'untested on real weights' if own.untested else 'tested'}"
    )
    print(f"lr {own.lr:g} x {own.lr_factor:g}, warm-up {own.warmup}, {own.decay}; guidance "
          f"{own.usual_guidance()}, shift {own.shift or 'as published'}, {own.fps:g} fps")
    print(f"the prompt's own words are {float(word_lengths(data['motion'])[0, 0]):.3g} long in the mean; a "
          f"token moves {recipe.stage1.token_lr:.1e} lengths in each number at a step")
    for rate in given.rates:
        print(f"\n{rate:g} x the recipe's rates")
        show(train(dit, data, recipe, rate, weights))
    print("\nLook whether", *HINTS, sep="\n- ")


if __name__ == "__main__": main()
