"""A folder laid out like `Wan-AI/Wan2.1-T2V-1.3B-Diffusers`, with its configuration and keys, fewer and narrower layers, and random weights."""
import json
from pathlib import Path
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file
from sas_nb.wan import NEGATIVE
from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

# The published configurations. `NARROW` is all that the test folder changes in them.
TRANSFORMER = dict(patch_size=[1, 2, 2], num_attention_heads=12, attention_head_dim=128, in_channels=16, out_channels=16, text_dim=4096, freq_dim=256, ffn_dim=8960,
                   num_layers=30, cross_attn_norm=True, qk_norm="rms_norm_across_heads", eps=1e-6, image_dim=None, added_kv_proj_dim=None, rope_max_seq_len=1024)
TEXT = dict(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_decoder_layers=24, num_heads=64, vocab_size=256384, feed_forward_proj="gated-gelu", dropout_rate=.1,
            relative_attention_num_buckets=32, relative_attention_max_distance=128, layer_norm_epsilon=1e-6, pad_token_id=0, eos_token_id=1, tie_word_embeddings=False)
VAE = dict(base_dim=96, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True], dropout=0.)
SCHEDULER = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3., solver_order=2, solver_type="bh2", predict_x0=True, lower_order_final=True,
                 num_train_timesteps=1000, timestep_spacing="linspace", final_sigmas_type="zero")
NARROW = dict(transformer=dict(num_layers=2, num_attention_heads=2, attention_head_dim=16, ffn_dim=64, text_dim=32, freq_dim=32),
              text=dict(num_layers=2, num_decoder_layers=2, num_heads=2, d_model=32, d_kv=16, d_ff=64), vae=dict(base_dim=8))


def real_keys() -> dict[str, dict[str, tuple]]:
    "Names and shapes of every weight of the full-size transformer, text encoder and VAE. Nothing is allocated."
    with torch.device("meta"):
        parts = dict(transformer=WanTransformer3DModel(**TRANSFORMER), text_encoder=UMT5EncoderModel(UMT5Config(**TEXT)), vae=AutoencoderKLWan(**VAE))
    return {k: {n: tuple(p.shape) for n, p in m.state_dict().items()} for k, m in parts.items()}


def tokenizer() -> T5TokenizerFast:
    "A unigram tokenizer of T5's kind that spells words letter by letter where it has to, so that it knows any prompt."
    words = "a man in the red shirt blue park beach he is dancing walking on at night with and".split()
    letters = [chr(c) for c in range(33, 127)] + sorted(set(NEGATIVE) - set(map(chr, range(33, 127))))
    pieces = [(f"▁{w}", -4.) for w in dict.fromkeys(words) if len(w) > 1] + [(c, -9.) for c in letters]
    return T5TokenizerFast(vocab=[("<pad>", 0.), ("</s>", 0.), ("<unk>", 0.), ("▁", -5.), *pieces], extra_ids=0, model_max_length=512)


# What the later models have otherwise: of the parts' configurations, and of the pipeline's.
KINDS = dict(plain=dict(), experts=dict(pipeline=dict(boundary_ratio=.875), scheduler=dict(flow_shift=12.)),
             ti2v=dict(pipeline=dict(expand_timesteps=True), scheduler=dict(flow_shift=5.), transformer=dict(in_channels=48, out_channels=48),
                       vae=dict(base_dim=8, decoder_base_dim=16, z_dim=48, is_residual=True, in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16, latents_mean=[.1]*48, latents_std=[.9]*48)))


def random_transformer(seed: int = 0, **changes) -> WanTransformer3DModel:
    "Its weights are larger than PyTorch's usual start, so that a velocity is of the size of its noise."
    torch.manual_seed(seed)
    transformer = WanTransformer3DModel(**TRANSFORMER | NARROW["transformer"] | changes)
    for name, p in transformer.named_parameters():
        if p.ndim > 1 and "scale_shift" not in name: torch.nn.init.normal_(p, std=p[0].numel()**-.5)
    return transformer


def write(folder: Path, kind: str = "plain") -> Path:
    "Make the folder: of Wan 2.1, or of a later kind."
    changes = KINDS[kind]
    torch.manual_seed(0)
    words = tokenizer()
    text = UMT5EncoderModel(UMT5Config(**TEXT | NARROW["text"] | dict(vocab_size=len(words))))
    vae = AutoencoderKLWan(**VAE | NARROW["vae"] | changes.get("vae", {}))
    own = {f"transformer{end}": random_transformer(k, **changes.get("transformer", {})) for k, end in enumerate(("", "_2")[:1 + (kind == "experts")])}
    scheduler = UniPCMultistepScheduler(**SCHEDULER | changes.get("scheduler", {}))
    WanPipeline(tokenizer=words, text_encoder=text, vae=vae, scheduler=scheduler, **own, **changes.get("pipeline", {})).save_pretrained(folder)
    config = folder/"text_encoder"/"config.json" # transformers corrects this flag as it saves, and the published file still has it
    config.write_text(json.dumps(json.loads(config.read_text()) | dict(tie_word_embeddings=False)))
    return folder


def stored_keys(folder: Path) -> dict[str, dict[str, tuple]]:
    "Names and shapes of what the files of a folder hold."
    return {part: {k: tuple(v.shape) for f in (folder/part).glob("*.safetensors") for k, v in load_file(f).items()} for part in ("transformer", "text_encoder", "vae")}
