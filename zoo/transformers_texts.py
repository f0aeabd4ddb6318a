"""Models of texts of transformers from small configurations; attention masks differ by sample."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from entry import SAMPLES, Entry, Select, tokens
from torch import Tensor, nn

WORDS = 40
SMALL = dict(
    vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
)
SMALL |= dict(max_position_embeddings=16, pad_token_id=0, bos_token_id=1, eos_token_id=2)
DECODER = {**SMALL, "num_key_value_heads": 1, "use_cache": False}


def make(kind: str, config: str, attention: str, options: dict[str, Any]) -> nn.Module:
    """Return a model from a configuration, by the names of both."""
    settings = getattr(transformers, config)(**options)
    if attention:
        settings._attn_implementation = attention
    if hasattr(settings, "num_experts_per_tok"):
        settings._experts_implementation = "eager"  # the others know no float64
    return getattr(transformers, kind)(settings)


def of(
    name: str,
    kind: str,
    config: str,
    inputs: Callable[[], Any],
    select: Select = "logits",
    attention: str = "",
    note: str = "",
    per_sample: bool = True,
    **options: Any,
) -> Entry:
    """Return an entry for a class of models and its class of configurations."""
    build = partial(make, kind, config, attention, options)
    return Entry(name, build, inputs, select, note=note, per_sample=per_sample)


def last(output: Any) -> Tensor:
    """Return the logits of the last token."""
    return output.logits[:, -1]


def encoder(name: str, prefix: str, attention: str = "", note: str = "", **options: Any) -> Entry:
    """Return a classifier of texts."""
    own = {**SMALL, **options}
    kind = f"{prefix}ForSequenceClassification"
    return of(
        name, kind, f"{prefix}Config", tokens(words=WORDS), "logits", attention, note, num_labels=3, **own
    )


def decoder(
    name: str, prefix: str, attention: str = "", note: str = "", left: bool = False, **options: Any
) -> Entry:
    """Return a causal language model; its outputs are logits of the last token."""
    own = {**DECODER, **options}
    return of(
        name,
        f"{prefix}ForCausalLM",
        f"{prefix}Config",
        tokens(words=WORDS, left=left),
        last,
        attention,
        note,
        **own,
    )


def both() -> dict[str, Tensor]:
    """Return tokens of a source with its mask, and tokens of a target."""
    source = tokens(words=WORDS)()
    return {**source, "decoder_input_ids": torch.randint(3, WORDS, (SAMPLES, 5))}


def pooled(output: Any) -> Tensor:
    """Return the mean over tokens of the last hidden state."""
    return output.last_hidden_state.mean(1)


SEQ2SEQ: dict[str, Any] = dict(
    vocab_size=WORDS,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=24,
    decoder_ffn_dim=24,
    max_position_embeddings=16,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
    use_cache=False,
)
T5: dict[str, Any] = dict(
    vocab_size=WORDS,
    d_model=16,
    d_kv=8,
    d_ff=24,
    num_layers=2,
    num_heads=2,
    decoder_start_token_id=0,
    use_cache=False,
)
MAMBA: dict[str, Any] = dict(
    vocab_size=WORDS,
    hidden_size=16,
    state_size=4,
    num_hidden_layers=2,
    time_step_rank=4,
    use_cache=False,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
GPT2: dict[str, Any] = dict(vocab_size=WORDS, n_positions=16, n_embd=16, n_layer=2, n_head=2, use_cache=False)
GPT2 |= dict(bos_token_id=1, eos_token_id=2)
OPT: dict[str, Any] = dict(
    vocab_size=WORDS,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    ffn_dim=24,
    max_position_embeddings=16,
    word_embed_proj_dim=16,
    use_cache=False,
    pad_token_id=1,
    bos_token_id=2,
    eos_token_id=2,
)
BLOOM: dict[str, Any] = dict(vocab_size=WORDS, hidden_size=16, n_layer=2, n_head=2, use_cache=False)
EXPERTS: dict[str, Any] = dict(
    num_local_experts=4, num_experts_per_tok=2, num_experts=4, moe_intermediate_size=16
)

ENTRIES = [
    encoder("bert", "Bert"),
    encoder("bert, eager", "Bert", "eager"),
    of("bert, masked words", "BertForMaskedLM", "BertConfig", tokens(words=WORDS), note="tied", **SMALL),
    encoder("roberta", "Roberta"),
    encoder("xlm_roberta", "XLMRoberta"),
    encoder("albert", "Albert", embedding_size=8),
    encoder("electra", "Electra", embedding_size=8),
    encoder("deberta", "Deberta", "eager", relative_attention=True, pos_att_type=["p2c", "c2p"]),
    encoder(
        "deberta_v2",
        "DebertaV2",
        "eager",
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        position_buckets=4,
    ),
    encoder("mpnet", "MPNet", "eager"),
    encoder("camembert", "Camembert"),
    encoder("convbert", "ConvBert", embedding_size=16, conv_kernel_size=3, head_ratio=1),
    encoder(
        "squeezebert",
        "SqueezeBert",
        "eager",
        embedding_size=16,
        q_groups=2,
        k_groups=2,
        v_groups=2,
        post_attention_groups=2,
        intermediate_groups=2,
        output_groups=2,
    ),
    encoder("roformer", "RoFormer", "eager", embedding_size=16),
    encoder("nystromformer", "Nystromformer", "eager", num_landmarks=7, segment_means_seq_len=7),
    encoder("fnet", "FNet", "eager", note="no mask"),
    encoder("modernbert", "ModernBert", global_attn_every_n_layers=2, local_attention=4),
    encoder("layoutlm", "LayoutLM", "eager"),
    of(
        "distilbert",
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        tokens(words=WORDS),
        vocab_size=WORDS,
        dim=16,
        hidden_dim=24,
        n_layers=2,
        n_heads=2,
        max_position_embeddings=16,
        num_labels=3,
    ),
    of(
        "xlnet",
        "XLNetForSequenceClassification",
        "XLNetConfig",
        tokens(words=WORDS),
        vocab_size=WORDS,
        d_model=16,
        n_layer=2,
        n_head=2,
        d_inner=24,
        num_labels=3,
    ),
    of(
        "funnel",
        "FunnelForSequenceClassification",
        "FunnelConfig",
        tokens(8, WORDS),
        vocab_size=WORDS,
        block_sizes=[1, 1],
        num_decoder_layers=1,
        d_model=16,
        n_head=2,
        d_head=8,
        d_inner=24,
        num_labels=3,
    ),
    of(
        "longformer",
        "LongformerForSequenceClassification",
        "LongformerConfig",
        tokens(8, WORDS),
        attention="eager",
        attention_window=4,
        num_labels=3,
        **SMALL,
    ),
    of("gpt2", "GPT2LMHeadModel", "GPT2Config", tokens(words=WORDS), last, note="tied", **GPT2),
    of(
        "gpt2, untied",
        "GPT2LMHeadModel",
        "GPT2Config",
        tokens(words=WORDS),
        last,
        tie_word_embeddings=False,
        **GPT2,
    ),
    of(
        "gpt2, classifier",
        "GPT2ForSequenceClassification",
        "GPT2Config",
        tokens(words=WORDS),
        num_labels=3,
        pad_token_id=0,
        **GPT2,
    ),
    of(
        "gpt_neo",
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        tokens(words=WORDS),
        last,
        attention="eager",
        vocab_size=WORDS,
        max_position_embeddings=16,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=2,
    ),
    of(
        "gptj",
        "GPTJForCausalLM",
        "GPTJConfig",
        tokens(words=WORDS),
        last,
        attention="eager",
        rotary_dim=4,
        **GPT2,
    ),
    decoder("gpt_neox", "GPTNeoX"),
    of("opt", "OPTForCausalLM", "OPTConfig", tokens(words=WORDS), last, **OPT),
    of(
        "opt, untied",
        "OPTForCausalLM",
        "OPTConfig",
        tokens(words=WORDS),
        last,
        tie_word_embeddings=False,
        **OPT,
    ),
    of("bloom", "BloomForCausalLM", "BloomConfig", tokens(words=WORDS), last, "eager", **BLOOM),
    of(
        "bloom, untied",
        "BloomForCausalLM",
        "BloomConfig",
        tokens(words=WORDS),
        last,
        "eager",
        tie_word_embeddings=False,
        **BLOOM,
    ),
    decoder("llama", "Llama"),
    decoder("llama, eager", "Llama", "eager"),
    decoder("llama, padded left", "Llama", left=True),
    decoder("mistral, padded left", "Mistral", left=True),
    decoder("mistral", "Mistral", sliding_window=4),
    decoder("mixtral", "Mixtral", note="experts", **EXPERTS),
    decoder("qwen2", "Qwen2"),
    decoder("qwen3", "Qwen3", head_dim=8),
    decoder("qwen3_moe", "Qwen3Moe", head_dim=8, note="experts", **EXPERTS),
    decoder("gemma", "Gemma", head_dim=8),
    decoder("gemma2", "Gemma2", "eager", head_dim=8, sliding_window=8),
    decoder("phi", "Phi"),
    decoder("phi3", "Phi3"),
    decoder("falcon", "Falcon", new_decoder_architecture=False, multi_query=True),
    decoder("stablelm", "StableLm"),
    decoder("olmo2", "Olmo2"),
    decoder("cohere", "Cohere"),
    decoder("granite", "Granite"),
    of(
        "mamba",
        "MambaForCausalLM",
        "MambaConfig",
        lambda: {"input_ids": torch.randint(3, WORDS, (SAMPLES, 6))},
        last,
        **MAMBA,
    ),
    of(
        "rwkv",
        "RwkvForCausalLM",
        "RwkvConfig",
        lambda: {"input_ids": torch.randint(3, WORDS, (SAMPLES, 6))},
        last,
        vocab_size=WORDS,
        context_length=16,
        hidden_size=16,
        attention_hidden_size=16,
        num_hidden_layers=2,
        intermediate_size=24,
        use_cache=False,
    ),
    of("t5", "T5ForConditionalGeneration", "T5Config", both, note="tied", **T5),
    of(
        "mt5",
        "MT5ForConditionalGeneration",
        "MT5Config",
        both,
        feed_forward_proj="gated-gelu",
        **T5,
    ),
    of("bart", "BartForConditionalGeneration", "BartConfig", both, note="tied", **SEQ2SEQ),
    of("mbart", "MBartForConditionalGeneration", "MBartConfig", both, **SEQ2SEQ),
    of("marian", "MarianMTModel", "MarianConfig", both, **SEQ2SEQ),
    of("pegasus", "PegasusForConditionalGeneration", "PegasusConfig", both, **SEQ2SEQ),
    of("bert, pooled", "BertModel", "BertConfig", tokens(words=WORDS), pooled, **SMALL),
    of(
        "bert, dict of outputs",
        "BertModel",
        "BertConfig",
        tokens(words=WORDS),
        note="no one tensor",
        per_sample=False,
        **SMALL,
    ),
]
