"""Make a zoo: a population of concepts over one universal basis, each with its truth, small enough to ship. The shipped one is

    python scripts/zoo.py                          # 64 people and 8 things into data/zoo; about half an hour on one core
    python scripts/zoo.py --people 1000 --out big  # a thousand
    python scripts/zoo.py --people 5 --things 1 --share .2 --out small  # a rehearsal

People have an identity and a dance that no word names, and clothes that the caption does name; all are filmed in the park, so that nothing differs but them. Everyone is trained with the same chance (noise,
times, dropout), so that what differs between two concepts is what differs between their clips. Ctrl-C, a kill or `--minutes` stop it cleanly, and the same command goes on. It writes
  zoo.json, basis.safetensors, concepts-NN.safetensors   what `sas_nb.fleet.load_zoo` reads
  truth.csv     who is who: words, identity and gait vectors, seed
  packing.json  what eight bits cost: coefficients, PCA, loss, pixels
  sheet.png     everyone, filmed and as learned
"""
import csv, json, os, signal, tempfile, threading, time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated
import numpy as np, torch, typer
from PIL import Image, ImageDraw
from rich.console import Console
from sas_nb.atlas import Atlas
from sas_nb.bench import Case, case
from sas_nb.clip import UserError, atomic, check_folder if False else atomic
