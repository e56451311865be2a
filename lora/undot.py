"""kohya's names have underscores for dots: which underscore was a dot?

With the MODEL's layers at hand no guess is needed (keys.py looks the name up). Without, the compound words that layer
names are made of decide; that is unambiguous for the UNets of SD1, SD2 and SDXL, SD3, Flux, CLIP and T5.
"""

from __future__ import annotations

import re

_WORDS = re.findall(
    r"\S+",
    """
down_blocks up_blocks mid_block input_blocks output_blocks middle_block transformer_blocks single_transformer_blocks
double_blocks single_blocks joint_blocks x_block context_block
conv_in conv_out conv_norm_out conv_shortcut time_emb_proj time_embedding time_embed add_embedding class_embedding
label_emb linear_1 linear_2 in_layers out_layers emb_layers skip_connection
proj_in proj_out to_q to_k to_v to_out to_add_out add_q_proj add_k_proj add_v_proj proj_mlp
img_attn txt_attn img_mlp txt_mlp img_mod txt_mod img_in txt_in time_in vector_in guidance_in in_layer out_layer
final_layer adaLN_modulation norm_q norm_k norm_added_q norm_added_k norm_out ff_context norm1_context
query_norm key_norm ln_q ln_k time_text_embed timestep_embedder text_embedder guidance_embedder context_embedder
x_embedder t_embedder y_embedder pos_embed cap_embedder
to_qkv_mlp_proj linear_in linear_out double_stream_modulation_img double_stream_modulation_txt single_stream_modulation
time_guidance_embed noise_refiner context_refiner feed_forward q_norm k_norm all_final_layer all_x_embedder
text_model self_attn q_proj k_proj v_proj out_proj layer_norm1 layer_norm2 final_layer_norm text_projection
token_embedding position_embedding wi_0 wi_1 layer_norm relative_attention_bias
""",
)
_PIECE = re.compile("(?:" + "|".join(sorted(map(re.escape, _WORDS), key=len, reverse=True)) + r"|[^_]+)(?=_|$)")
_ROOTS = frozenset(
    re.findall(
        r"\S+",
        """
    down_blocks up_blocks mid_block conv_in conv_out conv_norm_out time_embedding add_embedding class_embedding
    input_blocks output_blocks middle_block time_embed label_emb out
    transformer_blocks single_transformer_blocks double_blocks single_blocks joint_blocks context_embedder x_embedder
    t_embedder y_embedder pos_embed final_layer norm_out proj_out time_text_embed img_in txt_in time_in vector_in
    guidance_in layers noise_refiner context_refiner cap_embedder all_final_layer all_x_embedder
    double_stream_modulation_img double_stream_modulation_txt single_stream_modulation time_guidance_embed
    text_model text_projection encoder shared
    """,
    )
)


def undot(name: str) -> str | None:
    """`down_blocks_0_attentions_0_proj_in` -> `down_blocks.0.attentions.0.proj_in`; None where the root is unknown."""
    pieces, at = [], 0
    while at < len(name):
        found = _PIECE.match(name, at)
        if not found:
            return None
        pieces.append(found[0])
        at = found.end() + 1
    return ".".join(pieces) if pieces and pieces[0] in _ROOTS else None
