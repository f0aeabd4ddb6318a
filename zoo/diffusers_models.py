"""Models of diffusers in tiny configurations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch
from entry import SAMPLES, Entry, image, vectors
from torch import Tensor, nn

BLOCKS: dict[str, Any] = dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)


def noisy(channels: int = 3, size: int = 8, **more: Callable[[], Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Return a maker of noisy pictures with a time each."""

    def make() -> dict[str, Tensor]:
        time = torch.tensor([3, 40, 500])[:SAMPLES]
        return {"sample": image(size, channels)(), "timestep": time, **{k: v() for k, v in more.items()}}

    return make


def hidden(channels: int = 4, size: int = 8, **more: Callable[[], Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Return the same, under the names that transformers of diffusion give."""

    def make() -> dict[str, Tensor]:
        inputs = noisy(channels, size, **more)()
        return {"hidden_states": inputs.pop("sample"), **inputs}

    return make


def classes() -> Tensor:
    """Return labels."""
    return torch.tensor([0, 2, 1])[:SAMPLES]


def unet(**options: Any) -> Callable[[], Any]:
    """Return a U-Net."""
    own = dict(
        sample_size=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )
    return lambda: diffusers.UNet2DModel(**BLOCKS, **{**own, **options})


def conditioned(**options: Any) -> Any:
    """Return a U-Net that attends to a text."""
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
        **BLOCKS,
        **options,
    )


def autoencoder(**options: Any) -> Any:
    """Return a variational autoencoder."""
    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    return diffusers.AutoencoderKL(down_block_types=down, up_block_types=up, latent_channels=2, **options)


class Flux(nn.Module):
    """A Flux whose positions, which have no sample axis, are its own."""

    def __init__(self) -> None:
        super().__init__()
        self.network = diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            pooled_projection_dim=6,
            axes_dims_rope=(2, 2, 4),
        )
        self.register_buffer("picture", torch.randint(0, 4, (16, 3)).double())
        self.register_buffer("text", torch.zeros(5, 3))

    def forward(self, **inputs: Tensor) -> Any:
        """Return what the network does."""
        return self.network(img_ids=self.picture, txt_ids=self.text, **inputs)


def hidden_sequence() -> dict[str, Tensor]:
    """Return pictures as sequences, texts, and times."""
    time = torch.rand(SAMPLES, dtype=torch.float64)
    pooled = vectors(6)()
    return {
        "hidden_states": vectors(16, 4)(),
        "encoder_hidden_states": TEXT(),
        "pooled_projections": pooled,
        "timestep": time,
    }


DIT: dict[str, Any] = dict(
    num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8
)
TEXT = vectors(5, 12)
ENTRIES = [
    Entry("unet", unet(), noisy(), "sample"),
    Entry("unet, scale and shift", unet(resnet_time_scale_shift="scale_shift"), noisy(), "sample"),
    Entry("unet, classes", unet(num_class_embeds=4), noisy(class_labels=classes), "sample"),
    Entry("unet_conditional", conditioned, noisy(4, encoder_hidden_states=TEXT), "sample"),
    Entry("autoencoder_kl", partial(autoencoder, **BLOCKS), image(8), "sample"),
    Entry(
        "vq_model",
        lambda: diffusers.VQModel(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=2,
            num_vq_embeddings=8,
            **BLOCKS,
        ),
        image(8),
        "sample",
        note="nearest codes",
    ),
    Entry(
        "autoencoder, asymmetric",
        lambda: diffusers.AsymmetricAutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            down_block_out_channels=(8, 16),
            up_block_types=("UpDecoderBlock2D",) * 2,
            up_block_out_channels=(8, 16),
            latent_channels=2,
            norm_num_groups=4,
        ),
        image(8),
        "sample",
    ),
    Entry(
        "dit",
        lambda: diffusers.DiTTransformer2DModel(
            patch_size=2, norm_num_groups=4, num_embeds_ada_norm=10, **DIT
        ),
        hidden(class_labels=classes),
        "sample",
    ),
    Entry(
        "pixart",
        lambda: diffusers.PixArtTransformer2DModel(
            patch_size=2,
            norm_num_groups=4,
            out_channels=8,
            cross_attention_dim=16,
            caption_channels=12,
            use_additional_conditions=False,
            **DIT,
        ),
        hidden(encoder_hidden_states=TEXT),
        "sample",
    ),
    Entry(
        "sd3",
        lambda: diffusers.SD3Transformer2DModel(
            patch_size=2,
            joint_attention_dim=12,
            caption_projection_dim=16,
            pooled_projection_dim=6,
            out_channels=4,
            **DIT,
        ),
        hidden(encoder_hidden_states=TEXT, pooled_projections=vectors(6)),
        "sample",
    ),
    Entry("flux", Flux, hidden_sequence, "sample", note="positions in common"),
    Entry(
        "sana",
        lambda: diffusers.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=12,
            sample_size=8,
        ),
        hidden(encoder_hidden_states=TEXT),
        "sample",
    ),
    Entry(
        "prior",
        partial(
            diffusers.PriorTransformer,
            num_attention_heads=2,
            attention_head_dim=4,
            num_layers=2,
            embedding_dim=8,
            num_embeddings=5,
            additional_embeddings=4,
        ),
        lambda: {
            "hidden_states": vectors(8)(),
            "timestep": torch.tensor([3, 40, 500]),
            "proj_embedding": vectors(8)(),
            "encoder_hidden_states": vectors(5, 8)(),
        },
        "predicted_image_embedding",
    ),
]
