"""A model in files that a browser can run: its graphs in ONNX, and all weights in few bits.

Each row of a weight matrix is stored as one number, its step, and small whole numbers of steps. What is
rarely large takes few bits once it is packed: about 5.2 where a step is an eighth of the row's size.
"""
import gzip, io, json
from pathlib import Path
import numpy as np
import torch
from torch import nn
from sas_nb.adapter import SharedLoRA
from sas_nb.cache import cached
from sas_nb.files import needs, UserError
from sas_nb.hub import fingerprint

LENGTH = 32  # tokens of a text, padding and words of the concept included
SMALL = 1024  # a weight of fewer numbers stays in the graph
LARGEST = 127


class Velocity(nn.Module):
    "The DiT with a concept's coefficients as an input: all layers' (out, rank) in one row."
    def __init__(self, dit, adapter, layers):
        super().__init__()
        self.transformer, self.dit, self.adapter, self.layers = dit.transformer, dit, adapter, layers

    def forward(self, x, t, text, coefficients):
        weights = self.adapter.weights
        pieces = coefficients.split([weights[f"{layer}.B1"].numel() for layer in self.layers])
        for layer, piece in zip(self.layers, pieces):
            weights[f"{layer}.B1"] = piece.view(weights[f"{layer}.B1"].shape)
        return self.dit.velocity(x, t, text)


class Decoder(nn.Module):
    "Latents to frames."
    def __init__(self, dit):
        super().__init__()
        self.vae, self.dit = dit.vae, dit

    def forward(self, latents): return self.dit.decode(latents)


class Reader(nn.Module):
    "Numbers of words (1, LENGTH), 0 for padding, to text (1, LENGTH, D)."
    def __init__(self, dit):
        super().__init__()
        self.encoder = dit.text_encoder

    def forward(self, words):
        mask = (words != 0).long()
        return self.encoder(words, mask).last_hidden_state * mask[..., None]


def exported(module, inputs: dict) -> bytes:
    "A graph with its weights."
    program = torch.onnx.export(
        module.eval(),
        tuple(inputs.values()),
        input_names=list(inputs),
        output_names=["out"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    out = io.BytesIO()
    program.save(out)
    return out.getvalue()


def graphs(dit, concept) -> dict[str, bytes]:
    "The three graphs of a model. Exporting takes a minute, once."
    try: import onnx, onnxscript  # noqa: F401
    except ImportError as e:
        raise UserError(f"To write a model for browsers, run {needs('page')}.") from e
    size = dit.family.latents_of(
        dit.configuration, *(getattr(dit.defaults, k) for k in ("num_frames", "height", "width"))
    )
    x = torch.zeros(1, *size)
    adapter = SharedLoRA.of(dit, concept.weights, concept.rank, concept.info["layers"])
    adapter.motion = 0.  # the coefficients that are given are those of both parts together
    coefficients = torch.zeros(sum(concept.weights[f"{layer}.B1"].numel() for layer in concept.layers))
    text = torch.zeros(1, LENGTH, dit.text_width)
    with torch.no_grad(), adapter.attached():
        velocity = exported(Velocity(dit, adapter, concept.layers),
                            dict(x=x, t=torch.tensor([.5]), text=text, coefficients=coefficients))
    with torch.no_grad():
        return dict(velocity=velocity, decoder=exported(Decoder(dit), dict(latents=x)),
                    reader=exported(Reader(dit), dict(words=torch.ones(1, LENGTH, dtype=torch.long))))


def kept_graphs(dit, concept) -> dict[str, bytes]:
    "`graphs`, from the cache where they were exported before."
    def make():
        bytes_of = graphs(dit, concept)
        return {k: torch.frombuffer(bytearray(v), dtype=torch.uint8) for k, v in bytes_of.items()}
    prints = [fingerprint(m) for m in (dit.transformer, dit.vae, dit.text_encoder)]
    basis = [w for k, w in sorted(concept.weights.items()) if k.endswith(".A")]
    found = cached(make, "graphs for browsers", torch.__version__, LENGTH, repr(prints), *basis)
    return {k: v.numpy().tobytes() for k, v in found.items()}


def few_bits(rows: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    "(N, n) -> steps (N,) float32 and whole numbers (N, n) int8; a step is a share of a row's size."
    steps = np.sqrt((rows.astype(np.float64) ** 2).mean(1)) * step + 1e-12
    steps = np.maximum(steps, np.abs(rows).max(1) / LARGEST).astype(np.float32)
    return steps, np.round(rows / steps[:, None]).astype(np.int8)


def packed(*arrays: np.ndarray) -> bytes:
    "Arrays one after the other, packed."
    return gzip.compress(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays), 9, mtime=0)


def thin(graph: bytes, name: str, step: float) -> tuple[bytes, bytes, list[list[int]]]:
    "A graph without its large weights, packed; these weights, packed; and their shapes as rows."
    import onnx
    model = onnx.load_from_string(graph)
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    shapes, steps, numbers = [], [], []
    at = 0
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < SMALL: continue
        rows = (
            values.reshape(len(values), -1)
            if values.ndim > 1 and values.shape[-1] > 1
            else values.reshape(1, -1)
        )
        for part, kept in zip((steps, numbers), few_bits(rows, step)): part.append(kept)
        shapes.append(list(rows.shape))
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in dict(location=f"{name}.weights", offset=at, length=4 * values.size).items():
            tensor.external_data.add(key=key, value=str(value))
        at += 4 * values.size
    return gzip.compress(model.SerializeToString(), 9, mtime=0), packed(*steps, *numbers), shapes


def write_model(folder: Path, dit, concept, step: float = 1 / 8) -> dict:
    "Write the graphs and weights of a model; gives what a page needs to know of them."
    about = {}
    for name, graph in kept_graphs(dit, concept).items():
        small, weights, about[name] = thin(graph, name, step)
        (folder / f"{name}.graph").write_bytes(small)
        (folder / f"{name}.weights").write_bytes(weights)
        print(f"{name}: {(len(small) + len(weights)) / 1e6:.1f} MB", flush=True)
    return about


def write_concepts(path: Path, concepts: dict, step: float = 1 / 4) -> dict:
    "Write the coefficients and words of all concepts; gives what a page needs to know of them."
    rows, words = [], []
    for c in concepts.values():
        for part in ("B1", "B2"):
            rows.append(np.concatenate([c.weights[f"{k}.{part}"].numpy().ravel() for k in c.layers]))
        words.append(np.stack([c.tokens[w].numpy() for w in ("[v]", "[u]")]))
    steps, numbers = few_bits(np.stack(rows), step)
    path.write_bytes(packed(steps, np.stack(words).astype(np.float32), numbers))
    print(f"{len(concepts)} concepts: {path.stat().st_size / 1e6:.1f} MB", flush=True)
    return dict(coefficients=len(rows[0]), width=words[0].shape[1])


def vocabulary(dit) -> dict[str, int]:
    "Words, commas and full stops with their numbers. Raises `UserError` for a tokenizer of another kind."
    kind = json.loads(dit.tokenizer.backend_tokenizer.to_str())["model"]
    known = dit.tokenizer.get_vocab()
    if kind["type"] != "Unigram" or len(known) > 5000:
        raise UserError("Only a model whose tokenizer knows whole words can be written for browsers.")
    return (
        {w.removeprefix("\u2581"): i for w, i in known.items() if w.startswith("\u2581") and len(w) > 1}
        | {w: known[w] for w in (",", ".") if w in known}
        | {"</s>": known["</s>"]}
    )
