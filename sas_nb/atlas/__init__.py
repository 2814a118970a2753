"""The atlas: a population of concepts or LoRAs as points in weight space. Loads no drawing library."""
from .members import ConceptFile, Lora, Member, reparametrised, synthetic
from .lora_files import layer_name
from .places import load_zoo, member, members_of, read_zoo, zoo_folder
from .geometry import Atlas, layer_gram
from .components import PCA, leave_one_out, null_ratios, pca_of
from .probes import Direction, together
from . import inversion, mixing, plots  # noqa: F401 - the rest of what an Atlas can do
from .responses import Response, response, safe_range

__all__ = ["Atlas", "ConceptFile", "Direction", "Lora", "Member", "PCA", "Response", "layer_gram", "layer_name",
           "leave_one_out", "load_zoo", "member", "members_of", "null_ratios", "pca_of", "read_zoo",
           "reparametrised", "response", "safe_range", "synthetic", "together", "zoo_folder"]
