"""Parts of config.json that all families read alike: limits of sizes, harmless keys, the storage type."""

from __future__ import annotations

import re

from ...keys import Keys

LIMITS = {  # larger sizes mean a damaged file
    "num_hidden_layers": 1024,
    "hidden_size": 2**17,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**10,
    "intermediate_size": 2**20,
    "vocab_size": 2**22,
    "max_position_embeddings": 2**24,
}
DTYPES = ("bfloat16", "float16", "float32")
# Keys that do not affect the forward pass: they concern training, other programs or text.
HARMLESS = re.compile(
    r"_.*|architectures|model_type|transformers(_version|\.js_config)|torch_dtype|dtype|auto_map|name_or_path"
    r"|(pad|sep|cls|unk|mask|decoder_start|forced_[be]os)_token_id|\w+_token_(index|id)|initializer_range|init_std|use_cache"
    r"|(\w*_)?(dropout|pdrop)(_prob)?|classifier_dropout|output_\w+|router_aux_loss_coef|gradient_checkpointing"
    r"|pretraining_tp|return_dict|torchscript|use_bfloat16|id2label|label2id|finetuning_task|task_specific_params"
    r"|problem_type|summary_\w+|is_encoder_decoder|is_decoder|chunk_size_feed_forward|tokenizer_class|prefix"
    r"|unsloth_\w+|is_llama_config|language|license|keys_to_ignore_at_inference",
    re.ASCII,
)


def dtype(keys: Keys) -> str:
    """The storage type: dtype, or its older name torch_dtype; float32 without either."""
    names = {key: str(keys.get(key)).removeprefix("torch.") for key in ("dtype", "torch_dtype") if keys.get(key)}
    for key, name in names.items():
        if name not in DTYPES:
            keys.unsupported(key, f"one of {', '.join(DTYPES)}", keys.get(key))
    if len(set(names.values())) > 1:
        keys.wrong("dtype", f"the same as torch_dtype = {names['torch_dtype']}", names["dtype"])
    return next(iter(names.values()), "float32")
