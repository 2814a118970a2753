"""Throughput of a fleet against training its members one after another: milliseconds for one step of one concept, side by side in one process.

    python scripts/bench_fleet.py
"""
import torch, typer
from bench import PROMPT, STAGES, WHO, seconds
from rich.console import Console
from rich.table import Table
from torch import nn
from sas_nb.basis import Basis
from sas_nb.clip import Clip
from sas_nb.dit import VideoDiT, data_path
from sas_nb.fleet import Fleet, FleetTrainer
from sas_nb.frames import Settings, Trainer, frame_set
from sas_nb.residual import motion_settings, sequence


def main(members: int = 32, repeats: int = 6):
    dit = VideoDiT.load("tiny")
    r = dit.recommended
    clip = Clip.load(data_path("clips/dancer.mp4"), num_frames=r.num_frames, fps=r.fps, size=(r.height, r.width))
    A = {k: v for k, v in Basis(dit, 8).tensors().items() if k.endswith(".A")}
    tokens = lambda *n: {t: nn.Parameter(torch.zeros(*n, dit.text_width, device=dit.device)) for t in ("[v]", "[u]")}
    t = Table("stage", "batch of each", "members", "alone, ms", "in a fleet, ms", "ratio", title=f"One step of one concept, {torch.get_num_threads()} threads")
    for stage, label in STAGES.items():
        data = frame_set(dit, clip, WHO) if stage == "identity" else sequence(dit, clip, PROMPT)
        for batch in (1, 2, 4, 8):
            s, n = (Settings if stage == "identity" else motion_settings)(batch=batch, prior=0.), max(1, min(members, 64 // batch))
            together = FleetTrainer(Fleet(dit, n, A=A), stage, [data] * n, s, tokens=tokens(n), progress=False)
            together._one_step(); fleet = seconds(together._one_step, 2) / n; together.basis.detach()
            single = Trainer(dit, Basis(dit, A=A), stage, data, s, tokens=tokens(), progress=False)
            single._one_step(); alone = seconds(single._one_step, repeats); single.basis.detach()
            t.add_row(label, str(batch), str(n), f"{1000 * alone:.1f}", f"{1000 * fleet:.1f}", f"{alone / fleet:.2f}x")
    Console().print(t)


if __name__ == "__main__": typer.run(main)
