"""Models of timm: one or two of most families, the smallest, made smaller where an option allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import timm
from entry import Entry, image
from timm import layers
from timm.models import convmixer, focalnet, gcvit, levit, metaformer, mlp_mixer, mvitv2, nest
from torch import nn

CLASSES = 3
SMALLER = "32 x 32 pixels"  # beside draws


def of(name: str, size: int = 64, note: str = "", **options: Any) -> Entry:
    """Return a model of timm's list."""
    return Entry(
        name,
        partial(timm.create_model, name, pretrained=False, num_classes=CLASSES, **options),
        image(size),
        note=note,
    )


def own(
    name: str, build: Callable[[], nn.Module], size: int = 64, note: str = "", together: bool = False
) -> Entry:
    """Return a model made from its class, since its name leaves no sizes to choose."""
    return Entry(name, build, image(size), note=note, together=together)


def resized(name: str, size: int = 64, less: int = 32, note: str = "", **options: Any) -> Entry:
    """Return a model of timm's list that is made for a size, and is drawn for a smaller one."""
    smaller = of(name, less, SMALLER, img_size=less, **options)
    return replace(of(name, size, note, img_size=size, **options), drawn=smaller)


WINDOW = dict(img_size=64, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4)
VIT = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2)

ENTRIES = [
    of("test_byobnet"),
    of("test_convnext", dims=(24, 32, 48, 64)).smaller(SMALLER, inputs=image(32)),
    of("test_convnext2", dims=(32, 64, 96, 128)).smaller(SMALLER, inputs=image(32)),
    of("test_efficientnet"),
    of("test_efficientnet_gn"),
    of("test_efficientnet_ln"),
    of("test_mambaout"),
    of("test_nfnet", note="standardized weights"),
    of("test_resnet"),
    resized("test_vit", embed_dim=64),
    resized("test_vit2", embed_dim=64),
    of("test_vit3", img_size=64),
    resized("test_vit_relpos", embed_dim=96),
    of("test_coatnet", img_size=64),
    of("beit_base_patch16_224", 32, **VIT),
    of("cait_xxs24_224", 32, **VIT),
    of("coat_tiny", img_size=64, embed_dims=(64,) * 4, serial_depths=(1,) * 4, parallel_depth=1),
    of("convit_tiny", 32, img_size=32, patch_size=8, embed_dim=16, depth=3, num_heads=2, local_up_to_layer=2),
    own(
        "convmixer",
        partial(convmixer.ConvMixer, dim=16, depth=2, kernel_size=3, patch_size=4, num_classes=CLASSES),
        32,
    ).smaller("16 x 16 pixels", inputs=image(16)),
    of("crossvit_9_240", 240, embed_dim=(16, 32), depth=((1, 2, 0), (1, 2, 0)), num_heads=(2, 2)),
    of("cspnext_tiny"),
    of("cs3darknet_focus_s"),
    of("davit_tiny", 64, embed_dims=(16, 32), depths=(1, 1), num_heads=(2, 4), window_size=4),
    of("deit_tiny_distilled_patch16_224", 32, **VIT),
    of("densenet121", 64, growth_rate=8, block_config=(2, 2, 2)),
    of("dla46x_c"),
    of("edgenext_xx_small", 64),
    of("efficientformerv2_s0", 64, depths=(1, 1, 1, 1), embed_dims=(16, 16, 32, 32), img_size=64),
    of("efficientvit_b0"),
    Entry(
        "efficientvit_m0",
        partial(timm.create_model, "efficientvit_m0", num_classes=CLASSES, img_size=128),
        image(128),
        note="keeps its position biases in eval mode",
        together=True,  # torch 2.13's backward of batch norm
    ),
    own(
        "levit",
        lambda: levit.Levit(
            64,
            num_classes=CLASSES,
            embed_dim=(16, 32),
            key_dim=8,
            depth=(1, 1),
            num_heads=(2, 4),
            stem_type="s8",
        ),
        note="keeps its position biases in eval mode",
        together=True,  # torch 2.13's backward of batch norm
    ),
    of("vit_tiny_patch16_dinov3_qkvb", 32, note="rotary positions", **VIT),
    of("eva02_tiny_patch14_224", 32, note="rotary positions", **VIT),
    of("fasternet_t0"),
    of("fastvit_t8", 64, layers=(1, 1, 1, 1), embed_dims=(16, 16, 32, 32)),
    own(
        "focalnet",
        lambda: focalnet.FocalNet(embed_dim=16, depths=(1, 1), focal_levels=(2, 2), num_classes=CLASSES),
    ),
    own(
        "gcvit",
        lambda: gcvit.GlobalContextVit(
            img_size=64,
            window_ratio=(16, 16),
            embed_dim=16,
            depths=(1, 1),
            num_heads=(2, 4),
            num_classes=CLASSES,
        ),
    ),
    of("ghostnet_050"),
    of("ghostnetv2_100"),
    of("hgnetv2_b0"),
    of("hiera_tiny_224", 64, img_size=(64, 64), embed_dim=16, num_heads=1, stages=(1, 1), q_pool=1),
    of("inception_next_atto"),
    of("lcnet_035"),
    of("mobilenetv3_small_050"),
    of("mobilenetv4_conv_small_035"),
    of("mobilevit_xxs"),
    of("mobilevitv2_050"),
    own(
        "mvitv2",
        lambda: mvitv2.MultiScaleVit(
            mvitv2.MultiScaleVitCfg(depths=(1, 1), embed_dim=16, num_heads=1), 64, num_classes=CLASSES
        ),
    ),
    own(
        "gmixer",
        lambda: mlp_mixer.MlpMixer(
            img_size=32,
            patch_size=8,
            num_blocks=2,
            embed_dim=16,
            num_classes=CLASSES,
            mlp_layer=layers.GluMlp,
            act_layer=nn.SiLU,
            mlp_ratio=(1.0, 4.0),
        ),
        32,
    ),
    own(
        "mlp_mixer",
        lambda: mlp_mixer.MlpMixer(
            img_size=32, patch_size=8, num_blocks=2, embed_dim=16, num_classes=CLASSES
        ),
        32,
    ),
    own(
        "resmlp",
        lambda: mlp_mixer.MlpMixer(
            img_size=32,
            patch_size=8,
            num_blocks=2,
            embed_dim=16,
            num_classes=CLASSES,
            block_layer=mlp_mixer.ResBlock,
            norm_layer=mlp_mixer.Affine,
            mlp_ratio=4.0,
        ),
        32,
    ),
    own(
        "poolformerv2",
        lambda: metaformer.MetaFormer(
            depths=(1, 1, 1, 1),
            num_classes=CLASSES,
            dims=(8, 16, 16, 32),
            norm_layers=metaformer.GroupNorm1NoBias,
            use_mlp_head=False,
        ),
    ),
    own(
        "caformer",
        lambda: metaformer.MetaFormer(
            depths=(1, 1, 1, 1),
            num_classes=CLASSES,
            dims=(32, 32, 64, 64),
            token_mixers=(metaformer.SepConv, metaformer.SepConv, metaformer.Attention, metaformer.Attention),
            norm_layers=(metaformer.LayerNorm2dNoBias,) * 2 + (metaformer.LayerNormNoBias,) * 2,
        ),
    ),
    own(
        "nest",
        lambda: nest.Nest(
            64,
            patch_size=4,
            num_levels=2,
            embed_dims=(16, 32),
            num_heads=(2, 4),
            depths=(1, 1),
            num_classes=CLASSES,
        ),
    ),
    of("pit_ti_224", 64, img_size=64, base_dims=(8, 8), depth=(1, 1), heads=(2, 4)),
    of("pvt_v2_b0", 64),
    of("regnetx_002", 64),
    of("regnety_002", 64),
    of("repghostnet_050"),
    of("repvit_m0_9", 64),
    of("res2net50_26w_4s", 32, layers=(1, 1, 1, 1), base_width=8),
    of("resnest14d", 32, layers=(1, 1, 1, 1), base_width=16),
    of("resnetv2_50", 32, layers=(1, 1, 1, 1), channels=(16, 32, 64, 64)),
    of("rexnet_100", 64),
    of(
        "sequencer2d_s",
        64,
        layers=(1, 1, 1, 1),
        img_size=64,
        embed_dims=(16, 16, 32, 32),
        hidden_sizes=(4, 4, 8, 8),
    ),
    of("starnet_s050", 64),
    of("swiftformer_xs", 64),
    of("swin_tiny_patch4_window7_224", 64, **WINDOW),
    of("swinv2_tiny_window8_256", 64, **WINDOW),
    of(
        "tiny_vit_5m_224",
        64,
        embed_dims=(16, 16, 32, 32),
        depths=(1, 1, 1, 1),
        num_heads=(2, 2, 4, 4),
        window_sizes=(4, 4, 4, 2),
    ),
    of(
        "twins_svt_small",
        64,
        img_size=64,
        embed_dims=(16, 16, 32, 32),
        num_heads=(2, 2, 4, 4),
        depths=(1, 1, 1, 1),
    ),
    of("ese_vovnet19b_slim_dw", 64),
    Entry(
        "xcit_nano_12_p8_224",
        partial(timm.create_model, "xcit_nano_12_p8_224", num_classes=CLASSES, depth=2, img_size=64),
        image(64),
        together=True,  # torch 2.13's backward of batch norm
    ),
]
