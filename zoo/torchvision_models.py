"""Models of torchvision, made small."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from entry import Entry, image
from torch import nn
from torchvision import models
from torchvision.models import (
    convnext,
    efficientnet,
    maxvit,
    resnet,
    segmentation,
    swin_transformer,
    vgg,
    video,
)

CLASSES = 3
PIXELS = "16 x 16 pixels"  # beside draws
FEW = f"{PIXELS}, one of 64 of the output"


def of(name: str, size: int = 32, **options: Any) -> Entry:
    """Return a model of torchvision's list."""
    build = partial(models.get_model, name, weights=None, num_classes=CLASSES, **options)
    return Entry(name, build, image(size))


def residual(block: Any, **options: Any) -> Callable[[], nn.Module]:
    """Return a residual network of one block a stage."""
    return lambda: resnet.ResNet(block, [1, 1, 1, 1], num_classes=CLASSES, **options)


def plain(norm: bool) -> nn.Module:
    """Return a VGG whose classifier is narrow."""
    network = vgg.VGG(vgg.make_layers([8, "M", 16, "M", 16, 16, "M"], norm), CLASSES, init_weights=False)
    network.classifier = nn.Sequential(
        nn.Linear(16 * 49, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, CLASSES)
    )
    return network


def alexnet() -> nn.Module:
    """Return an AlexNet whose classifier is narrow."""
    network = models.AlexNet(CLASSES)
    network.classifier = nn.Sequential(
        nn.Dropout(), nn.Linear(256 * 36, 8), nn.ReLU(True), nn.Linear(8, CLASSES)
    )
    return network


def efficient(name: str, **options: Any) -> nn.Module:
    """Return a narrow EfficientNet."""
    settings, last = efficientnet._efficientnet_conf(name, **options)
    return models.EfficientNet(settings, 0.2, num_classes=CLASSES, last_channel=last)


def efficient_v2() -> nn.Module:
    """Return an EfficientNet with fused blocks."""
    settings = [
        efficientnet.FusedMBConvConfig(1, 3, 1, 8, 8, 1),
        efficientnet.FusedMBConvConfig(4, 3, 2, 8, 16, 1),
        efficientnet.MBConvConfig(4, 3, 2, 16, 24, 1),
    ]
    return models.EfficientNet(settings, 0.2, num_classes=CLASSES, last_channel=64)


def convolutional(dims: tuple[int, int]) -> nn.Module:
    """Return a small ConvNeXt."""
    stages = [convnext.CNBlockConfig(dims[0], dims[1], 2), convnext.CNBlockConfig(dims[1], None, 2)]
    return models.ConvNeXt(stages, num_classes=CLASSES)


def swin(version: int, window: int = 4) -> nn.Module:
    """Return a small Swin transformer."""
    own: dict[str, Any] = dict(
        patch_size=[4, 4], embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=[window, window]
    )
    if version == 2:
        own |= dict(
            block=swin_transformer.SwinTransformerBlockV2, downsample_layer=swin_transformer.PatchMergingV2
        )
    return models.SwinTransformer(**own, num_classes=CLASSES)


def multi_axis() -> nn.Module:
    """Return a small MaxViT."""
    return maxvit.MaxVit((64, 64), 8, 2, [8, 16], [1, 1], 4, 0.0, num_classes=CLASSES)


def fully_convolutional(head: Callable[[], nn.Module]) -> nn.Module:
    """Return a segmentation network on a small residual one."""
    body = models._utils.IntermediateLayerGetter(residual(resnet.BasicBlock)(), {"layer2": "out"})
    return segmentation.FCN(body, head())


def video_swin() -> nn.Module:
    """Return a small Swin transformer of films."""
    options: Any = dict(
        patch_size=[2, 4, 4], embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=[2, 4, 4]
    )
    return video.SwinTransformer3d(**options, num_classes=CLASSES)


def video_residual() -> nn.Module:
    """Return a residual network of films, two stages of it."""
    conv = video.resnet.Conv3DSimple
    network = video.VideoResNet(video.resnet.BasicBlock, [conv] * 4, [1, 1, 1, 1], video.resnet.BasicStem)
    network.layer3 = network.layer4 = nn.Identity()
    network.fc = nn.Linear(128, CLASSES)
    return network


def video_multiscale() -> nn.Module:
    """Return a small MViT."""
    setting = [
        video.mvit.MSBlockConfig(1, 8, 16, [3, 3, 3], [1, 2, 2], [1, 1, 1], [1, 2, 2]),
        video.mvit.MSBlockConfig(2, 16, 16, [3, 3, 3], [1, 1, 1], [1, 2, 2], [1, 1, 1]),
    ]
    return video.MViT(
        (32, 32),
        4,
        setting,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        num_classes=CLASSES,
    )


def few(output: Any) -> torch.Tensor:
    """Return one pixel of 64."""
    return output["out"][:, :, ::8, ::8]


class Maps(nn.Module):
    """A detector's body and head: its raw scores, before boxes are chosen."""

    def __init__(self) -> None:
        super().__init__()
        body = models.detection.backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d
        )
        self.network = models.detection.RetinaNet(body, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores of all anchors."""
        features = list(self.network.backbone(x).values())
        scores = self.network.head(features)
        return torch.cat([scores["cls_logits"].flatten(1), scores["bbox_regression"].flatten(1)], 1)


ENTRIES = [
    Entry("alexnet", alexnet, image(224), note="narrow classifier"),
    Entry("vgg", partial(plain, False), image()).smaller(PIXELS, inputs=image(16)),
    Entry("vgg_bn", partial(plain, True), image()).smaller(PIXELS, inputs=image(16)),
    of("resnet18").smaller(PIXELS, inputs=image(16)),
    of("resnet50").smaller(PIXELS, inputs=image(16)),
    Entry("resnet, bottlenecks", residual(resnet.Bottleneck), image()),
    Entry("resnext", residual(resnet.Bottleneck, groups=32, width_per_group=4), image()),
    Entry("wide_resnet", residual(resnet.Bottleneck, width_per_group=96), image()),
    of("mobilenet_v2", width_mult=0.35).smaller(
        f"{PIXELS}, width_mult 0.1", build=of("mobilenet_v2", width_mult=0.1).build, inputs=image(16)
    ),
    of("mobilenet_v3_small"),
    of("mobilenet_v3_large", width_mult=0.5),
    Entry("efficientnet_b0", partial(efficient, "efficientnet_b0", width_mult=0.4, depth_mult=0.5), image()),
    Entry("efficientnet_v2", efficient_v2, image()),
    Entry(
        "densenet",
        partial(
            models.DenseNet,
            growth_rate=8,
            block_config=(2, 2, 2, 2),
            num_init_features=16,
            num_classes=CLASSES,
        ),
        image(),
    ),
    of("googlenet", 64, aux_logits=False, init_weights=False),
    of("inception_v3", 80, aux_logits=False, init_weights=False),
    of("squeezenet1_0"),
    of("squeezenet1_1"),
    of("shufflenet_v2_x0_5"),
    of("mnasnet0_5"),
    of("regnet_x_400mf"),
    of("regnet_y_400mf"),
    Entry("convnext", partial(convolutional, dims=(16, 32)), image()),
    Entry("swin", partial(swin, 1), image()).smaller(
        f"{PIXELS}, windows of 2", build=partial(swin, 1, 2), inputs=image(16)
    ),
    Entry("swin_v2", partial(swin, 2), image()),
    Entry(
        "vit",
        partial(models.VisionTransformer, 32, 8, 2, 2, hidden_dim=16, mlp_dim=32, num_classes=CLASSES),
        image(),
    ),
    Entry("maxvit", multi_axis, image(64)),
    Entry(
        "lraspp_mobilenet_v3_large",
        lambda: segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=CLASSES
        ),
        image(64),
        "out",
    ),
    Entry(
        "fcn", partial(fully_convolutional, lambda: segmentation.fcn.FCNHead(128, CLASSES)), image(), "out"
    ).smaller(FEW, inputs=image(16), select=few),
    Entry(
        "deeplabv3",
        partial(fully_convolutional, lambda: segmentation.deeplabv3.DeepLabHead(128, CLASSES)),
        image(),
        "out",
    ).smaller(FEW, inputs=image(16), select=few),
    Entry("retinanet, raw scores", Maps, image(64)),
    Entry("r3d", video_residual, image(16, 3, 4)),
    Entry("swin3d", video_swin, image(32, 3, 4)),
    Entry("mvit", video_multiscale, image(32, 3, 4)),
    Entry(
        "resnet without statistics",
        residual(resnet.BasicBlock, norm_layer=partial(nn.BatchNorm2d, track_running_stats=False)),
        image(),
        per_sample=False,
    ),
]
