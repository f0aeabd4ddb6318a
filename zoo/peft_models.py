"""Adapters of peft on small transformers: only the adapters' weights count, unless they are merged or off."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import peft
from entry import Entry, tokens
from torch import Tensor, nn
from transformers_texts import DECODER, GPT2, SMALL, WORDS, last, make

Base = Callable[[], nn.Module]
BERT: Base = partial(make, "BertForSequenceClassification", "BertConfig", "", {**SMALL, "num_labels": 3})
LLAMA: Base = partial(make, "LlamaForCausalLM", "LlamaConfig", "", DECODER)
GPT: Base = partial(make, "GPT2LMHeadModel", "GPT2Config", "", GPT2)
CLASSIFY, CAUSAL = "SEQ_CLS", "CAUSAL_LM"
INPUTS = tokens(words=WORDS)


def adapted(base: Base, config: Callable[[], Any]) -> Any:
    """Return a small transformer with an adapter."""
    return peft.get_peft_model(base(), config())


def with_adapter(base: Base, config: Callable[[], Any]) -> Callable[[], nn.Module]:
    """Return a maker of a small transformer with an adapter: its sizes are options."""
    return partial(adapted, base, config)


def lora(task: str, **options: Any) -> Callable[[], Any]:
    """Return a maker of LoRA's configuration."""
    return partial(scaled, task, r=2, **options)


def scaled(task: str, r: int, **options: Any) -> Any:
    """Return LoRA's configuration, in which the factor of the product is the same for all ranks."""
    alpha = 4 * (r / 2) ** (0.5 if options.get("use_rslora") else 1)
    return peft.LoraConfig(
        task_type=task,  # pyright: ignore[reportArgumentType]
        r=r,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]
        init_lora_weights=False,
        **options,
    )


class Disabled(nn.Module):
    """A model whose adapter is off: all its weights count, and those of the adapter have no use."""

    def __init__(self, base: Base, config: Callable[[], Any]) -> None:
        super().__init__()
        self.network = adapted(base, config).requires_grad_(True)

    def forward(self, **inputs: Tensor) -> Any:
        """Return what the model without its adapter returns."""
        with self.network.disable_adapter():
            return self.network(**inputs)


def merged(base: Base, config: Callable[[], Any]) -> nn.Module:
    """Return a transformer into whose weights an adapter was merged."""
    return adapted(base, config).merge_and_unload().requires_grad_(True)


def merged_in_place(base: Base, config: Callable[[], Any]) -> nn.Module:
    """Return a transformer whose adapter is merged but still there."""
    network = adapted(base, config)
    network.merge_adapter()
    return network.requires_grad_(True)


def two(base: Base, config: Callable[[], Any]) -> nn.Module:
    """Return a transformer with two adapters, the second one in use."""
    network = adapted(base, config)
    network.add_adapter("second", config())
    network.set_adapter("second")
    return network


def everything(base: Base, config: Callable[[], Any]) -> nn.Module:
    """Return a transformer with an adapter, all weights free."""
    return adapted(base, config).requires_grad_(True)


ENTRIES = [
    Entry("lora, bert", with_adapter(BERT, lora(CLASSIFY)), INPUTS, "logits"),
    Entry("lora, bert, all weights free", partial(everything, BERT, lora(CLASSIFY)), INPUTS, "logits"),
    Entry("lora, gpt2", with_adapter(GPT, lora(CAUSAL, fan_in_fan_out=True)), INPUTS, last),
    Entry("lora, llama", with_adapter(LLAMA, lora(CAUSAL)), INPUTS, last),
    Entry("rslora, llama", with_adapter(LLAMA, lora(CAUSAL, use_rslora=True)), INPUTS, last),
    Entry(
        "lora of embeddings, bert",
        with_adapter(BERT, lora(CLASSIFY, target_modules=["word_embeddings", "query"])),
        INPUTS,
        "logits",
    ),
    Entry("dora, bert", with_adapter(BERT, lora(CLASSIFY, use_dora=True)), INPUTS, "logits"),
    Entry("dora, llama", with_adapter(LLAMA, lora(CAUSAL, use_dora=True)), INPUTS, last),
    Entry("two loras, bert", partial(two, BERT, lora(CLASSIFY)), INPUTS, "logits"),
    Entry(
        "adalora, bert",
        with_adapter(
            BERT, lambda: peft.AdaLoraConfig(task_type=CLASSIFY, init_r=3, target_r=2, total_step=10)
        ),
        INPUTS,
        "logits",
    ),
    Entry(
        "ia3, bert",
        with_adapter(BERT, lambda: peft.IA3Config(task_type=CLASSIFY, init_ia3_weights=False)),
        INPUTS,
        "logits",
    ),
    Entry(
        "ia3, llama",
        with_adapter(LLAMA, lambda: peft.IA3Config(task_type=CAUSAL, init_ia3_weights=False)),
        INPUTS,
        last,
    ),
    Entry(
        "loha, bert",
        with_adapter(
            BERT,
            lambda: peft.LoHaConfig(
                task_type=CLASSIFY, r=2, target_modules=["query", "value"], init_weights=False
            ),
        ),
        INPUTS,
        "logits",
    ),
    Entry(
        "lokr, bert",
        with_adapter(
            BERT,
            lambda: peft.LoKrConfig(
                task_type=CLASSIFY, r=2, target_modules=["query", "value"], init_weights=False
            ),
        ),
        INPUTS,
        "logits",
    ),
    Entry(
        "oft, bert",
        with_adapter(
            BERT,
            lambda: peft.OFTConfig(
                task_type=CLASSIFY,
                r=0,
                oft_block_size=4,
                target_modules=["query", "value"],
                init_weights=False,
            ),
        ),
        INPUTS,
        "logits",
    ),
    Entry(
        "vera, bert",
        with_adapter(
            BERT, lambda: peft.VeraConfig(task_type=CLASSIFY, r=4, target_modules=["query", "value"])
        ),
        INPUTS,
        "logits",
    ),
    Entry(
        "prefix, bert",
        with_adapter(BERT, lambda: peft.PrefixTuningConfig(task_type=CLASSIFY, num_virtual_tokens=3)),
        INPUTS,
        "logits",
    ),
    Entry(
        "prefix, gpt2",
        with_adapter(GPT, lambda: peft.PrefixTuningConfig(task_type=CAUSAL, num_virtual_tokens=3)),
        INPUTS,
        last,
    ),
    Entry(
        "prompt, bert",
        with_adapter(BERT, lambda: peft.PromptTuningConfig(task_type=CLASSIFY, num_virtual_tokens=3)),
        INPUTS,
        "logits",
    ),
    Entry(
        "p-tuning, gpt2",
        with_adapter(
            GPT,
            lambda: peft.PromptEncoderConfig(task_type=CAUSAL, num_virtual_tokens=3, encoder_hidden_size=8),
        ),
        INPUTS,
        last,
    ),
    Entry(
        "lora off, bert", partial(Disabled, BERT, lora(CLASSIFY)), INPUTS, "logits", note="disable_adapter"
    ),
    Entry("lora merged, bert", partial(merged, BERT, lora(CLASSIFY)), INPUTS, "logits"),
    Entry("lora merged in place, bert", partial(merged_in_place, BERT, lora(CLASSIFY)), INPUTS, "logits"),
    Entry("lora merged, llama", partial(merged, LLAMA, lora(CAUSAL)), INPUTS, last),
]
