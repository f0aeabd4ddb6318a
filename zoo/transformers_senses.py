"""Models of pictures, sounds and time series of transformers, from small configurations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from entry import SAMPLES, Entry, image, tokens, vectors
from torch import Tensor
from transformers_texts import SEQ2SEQ, SMALL, WORDS, of

SIGHT: dict[str, Any] = dict(
    image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2
)
SIGHT |= dict(intermediate_size=24)

SWIN: dict[str, Any] = dict(patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[2, 2])
PIXELS = "16 x 16 pixels"  # beside draws


def sight(name: str, prefix: str, size: int = 16, **options: Any) -> Entry:
    """Return a classifier of pictures."""
    kind = f"{prefix}ForImageClassification"
    return of(name, kind, f"{prefix}Config", pictures(size), num_labels=3, **options)


def pictures(size: int = 16) -> Callable[[], dict[str, Tensor]]:
    """Return a maker of pictures, by the name that the models give them."""
    return lambda: {"pixel_values": image(size)()}


def sound() -> dict[str, Tensor]:
    """Return sounds."""
    return {"input_values": vectors(800)()}


def masked_sound() -> dict[str, Tensor]:
    """Return sounds with a mask that leaves each another length."""
    mask = torch.ones(SAMPLES, 800, dtype=torch.long)
    for i in range(SAMPLES):
        mask[i, 800 - 150 * i :] = 0
    return {**sound(), "attention_mask": mask}


def spectrogram() -> dict[str, Tensor]:
    """Return sounds as whisper reads them, and the tokens of a text."""
    ids = torch.randint(3, WORDS, (SAMPLES, 5))
    return {"input_features": vectors(8, 32)(), "decoder_input_ids": ids}


def series() -> dict[str, Tensor]:
    """Return the past of a time series of two channels."""
    return {"past_values": vectors(32, 2)()}


def captioned() -> dict[str, Tensor]:
    """Return pictures with a text each."""
    return {**tokens(words=WORDS)(), **pictures()()}


def pair(output: Any) -> Tensor:
    """Return the features of a picture and of its text."""
    return torch.cat([output.text_embeds, output.image_embeds], 1)


def clip() -> dict[str, Any]:
    """Return the options of a model of texts and pictures."""
    return dict(text_config={**SMALL, "projection_dim": 8}, vision_config={**SIGHT, "projection_dim": 8})


SPEECH: dict[str, Any] = dict(
    vocab_size=12,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    conv_dim=(8, 8),
    conv_stride=(5, 4),
    conv_kernel=(10, 8),
    num_feat_extract_layers=2,
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
    num_labels=3,
    classifier_proj_size=8,
)
SERIES: dict[str, Any] = dict(context_length=32, patch_length=8, num_input_channels=2, prediction_length=4)

ENTRIES = [
    sight("vit", "ViT", **SIGHT),
    sight("deit", "DeiT", **SIGHT),
    sight("beit", "Beit", use_relative_position_bias=True, use_mask_token=False, **SIGHT),
    sight("dinov2", "Dinov2", **SIGHT),
    replace(
        sight("swin", "Swin", 32, image_size=32, window_size=4, **SWIN),
        drawn=sight("swin", "Swin", note=f"{PIXELS}, windows of 2", image_size=16, window_size=2, **SWIN),
    ),
    sight(
        "swinv2",
        "Swinv2",
        32,
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[2, 2],
        num_heads=[2, 2],
        window_size=4,
    ),
    sight("convnext", "ConvNext", 32, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    sight("convnextv2", "ConvNextV2", 32, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    sight("resnet", "ResNet", 32, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]).smaller(
        PIXELS, inputs=pictures()
    ),
    sight("poolformer", "PoolFormer", 32, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]),
    sight(
        "pvt",
        "Pvt",
        32,
        image_size=32,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 2],
    ),
    sight(
        "mobilevit",
        "MobileViT",
        32,
        image_size=32,
        hidden_sizes=[8, 12, 16],
        neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16],
        num_attention_heads=2,
    ),
    of(
        "segformer",
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        pictures(32),
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 2],
        decoder_hidden_size=8,
        num_labels=3,
    ),
    of(
        "vit_mae",
        "ViTMAEForPreTraining",
        "ViTMAEConfig",
        pictures(),
        note="masks at random",
        per_sample=False,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=24,
        **SIGHT,
    ),
    of("clip", "CLIPModel", "CLIPConfig", captioned, pair, projection_dim=8, **clip()),
    of("siglip", "SiglipModel", "SiglipConfig", captioned, pair, **clip()),
    of("wav2vec2", "Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", sound, **SPEECH),
    of(
        "wav2vec2, masks",
        "Wav2Vec2ForSequenceClassification",
        "Wav2Vec2Config",
        masked_sound,
        feat_extract_norm="layer",
        **SPEECH,
    ),
    of("hubert", "HubertForSequenceClassification", "HubertConfig", sound, **SPEECH),
    of(
        "wavlm",
        "WavLMForSequenceClassification",
        "WavLMConfig",
        sound,
        num_buckets=8,
        max_bucket_distance=16,
        **SPEECH,
    ),
    of(
        "whisper",
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        spectrogram,
        num_mel_bins=8,
        max_source_positions=16,
        max_target_positions=8,
        **{k: v for k, v in SEQ2SEQ.items() if k != "max_position_embeddings"},
    ),
    of(
        "patchtst",
        "PatchTSTForPrediction",
        "PatchTSTConfig",
        series,
        "prediction_outputs",
        d_model=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=24,
        patch_stride=8,
        loss="mse",
        scaling=None,
        **SERIES,
    ),
    of(
        "patchtsmixer",
        "PatchTSMixerForPrediction",
        "PatchTSMixerConfig",
        series,
        "prediction_outputs",
        d_model=8,
        num_layers=2,
        patch_stride=8,
        **SERIES,
    ),
]
