# SPDX-License-Identifier: Apache-2.0
"""Model sizes as plain data: `config.model`. The fields are those of the dataclasses named behind them."""

from typing import Any

_NO_LORA = {"rank": 0, "alpha": 64.0, "dropout": 0.05, "targets": "q|k|v|out|up|down"}
_ROPE = {"theta": 10_000.0, "scaling": "none", "factor": 1.0, "max_positions": 4096}
_LLAMA = {"rms_eps": 1e-5, "rope": _ROPE, "qkv_bias": False, "out_bias": False, "lora": _NO_LORA}

# A model has no decoders unless a config names some: `config.model.decoders`, with what differs from the
# released sizes (`launch/decoders.py`).
MODELS: dict[str, dict[str, Any]] = {
    # Trains on a laptop; 4 x 4 patches of a 56-pixel tile. Vocabulary 0: as many as the tokenizer has.
    "tiny": {
        "vision": {
            "kind": "clip",
            "width": 64,
            "depth": 2,
            "heads": 4,
            "mlp": 128,
            "image_size": 56,
            "patch": 14,
        },
        "vision_layer": -2,
        "bridge": {"kind": "mlp2x_gelu", "pixel_shuffle": False},
        "regions": {"hidden": 32, "pooling": "grid_sample", "samples": 0},
        "llm": {"vocab": 0, "width": 64, "depth": 2, "heads": 4, "kv_heads": 2, "mlp": 128, **_LLAMA},
        "queries": {"perception": 4, "generation": 64},
        "decoders": {},
    },
    # Fits one accelerator with its optimizer; for measurements between tiny and 7b.
    "mid": {
        "vision": {
            "kind": "clip",
            "width": 256,
            "depth": 6,
            "heads": 4,
            "mlp": 1024,
            "image_size": 224,
            "patch": 14,
        },
        "vision_layer": -2,
        "bridge": {"kind": "mlp2x_gelu", "pixel_shuffle": False},
        "regions": {"hidden": 128, "pooling": "grid_sample", "samples": 0},
        "llm": {"vocab": 0, "width": 512, "depth": 8, "heads": 8, "kv_heads": 8, "mlp": 1536, **_LLAMA},
        "queries": {"perception": 4, "generation": 64},
        "decoders": {},
    },
    # CLIP-L/14-336 and Vicuna-7B-v1.5 with 26 more tokens: the released VisionLLM v2.
    "7b": {
        "vision": {
            "kind": "clip",
            "width": 1024,
            "depth": 24,
            "heads": 16,
            "mlp": 4096,
            "image_size": 336,
            "patch": 14,
        },
        "vision_layer": -2,
        "bridge": {"kind": "mlp2x_gelu", "pixel_shuffle": False},
        "regions": {"hidden": 256, "pooling": "grid_sample", "samples": 2304},
        "llm": {
            "vocab": 32_026,
            "width": 4096,
            "depth": 32,
            "heads": 32,
            "kv_heads": 32,
            "mlp": 11_008,
            **_LLAMA,
        },
        "queries": {"perception": 4, "generation": 64},
        "decoders": {},
    },
    # InternViT-6B-448 and InternLM2-Chat-20B with 26 more tokens; sizes from their public model
    # cards. The official code runs this variant, no numbers were published for it.
    "26b": {
        "vision": {
            "kind": "internvit",
            "width": 3200,
            "depth": 45,
            "heads": 25,
            "mlp": 12_800,
            "image_size": 448,
            "patch": 14,
        },
        "vision_layer": -1,
        "bridge": {"kind": "internvl_mlp", "pixel_shuffle": True},
        "regions": {"hidden": 256, "pooling": "grid_sample", "samples": 2304},
        "llm": {
            "vocab": 92_570,
            "width": 6144,
            "depth": 48,
            "heads": 48,
            "kv_heads": 8,
            "mlp": 16_384,
            **_LLAMA,
            "rope": {"theta": 1e6, "scaling": "dynamic", "factor": 2.0, "max_positions": 32_768},
        },
        "queries": {"perception": 4, "generation": 64},
        "decoders": {},
    },
}

CAPTION = 20  # ids of a caption of a synthetic scene, or of an instruction

# Pictures of 16 pixels, latents of 8 x 8 cells.
_PAINTER: dict[str, Any] = {
    "unet": {
        "channels_out": 4,
        "widths": (32, 64),
        "attends": (False, True),
        "depth": 1,
        "heads": 4,
        "context": 96,
        "groups": 8,
    },
    # One group: two or three channels that are normalised by themselves tell little.
    "vae": {"widths": (12, 24), "depth": 1, "latent": 4, "groups": 1, "scale": 1.0},
    "text": {
        "vocab": 666,
        "width": 96,
        "depth": 2,
        "heads": 4,
        "mlp": 192,
        "length": CAPTION,
        "start": 1,
        "end": 2,
    },
    "mapper": {"heads": 4, "mlp": 192},
    "size": 16,
    "kl_weight": 1e-3,
    "drop_rate": 0.05,
    "draws": 4,
    "predicts": "velocity",
    "objective": "both",
}

PAINTERS = ("stable_diffusion", "instruct_pix2pix")

# Decoders that learn a few photos or synthetic scenes on a laptop, from nothing.
TINY_DECODERS: dict[str, dict[str, Any]] = {
    "grounding_dino": {
        "backbone": {
            "width": 16,
            "depths": (1, 1, 2, 1),
            "heads": (1, 2, 4, 4),
            "window": 6,
            "drop_path": 0.0,
        },
        "width": 64,
        "levels": 3,
        "queries": 20,
        "encoder_layers": 2,
        "encoder_heads": 4,
        "encoder_mlp": 256,
        "encoder_points": 4,
        "decoder_layers": 3,
        "decoder_heads": 4,
        "decoder_mlp": 256,
        "decoder_points": 4,
        "mask_width": 32,
        "dropout": 0.0,
        "drop_path": 0.0,
        "criterion": {"points": 128, "denoising": 8},
    },
    "unipose": {
        "backbone": {
            "width": 16,
            "depths": (1, 1, 2, 1),
            "heads": (1, 2, 4, 4),
            "window": 8,
            "drop_path": 0.0,
        },
        "width": 64,
        "queries": 20,
        "instances": 4,
        "heads": 4,
        "mlp": 256,
        "points": 4,
        "encoder_layers": 2,
        "box_layers": 1,
        "keypoint_layers": 2,
        "drop_path": 0.0,
        "criterion": {"denoising": 8},
    },
    "stable_diffusion": {
        **_PAINTER,
        "unet": {**_PAINTER["unet"], "channels": 4},
        "sampling": {"sampler": "euler_ancestral", "steps": 20, "max_steps": 50, "guidance": 2.0},
    },
    "instruct_pix2pix": {
        **_PAINTER,
        "unet": {**_PAINTER["unet"], "channels": 8},
        "sampling": {
            "sampler": "euler_ancestral",
            "steps": 3,  # nearer to the mean of what may come out than with more: less error, softer edges
            "max_steps": 50,
            "guidance": 1.0,
            "image_guidance": 1.0,
        },
    },
}

# The released coefficients of losses are for a language model that can speak. One that starts from nothing
# would hear little but the many terms of its decoders. Those do not mind: Adam divides by a gradient's size.
_QUIET = 0.05
_BOX = {"class_weight": 4.0 * _QUIET, "box_weight": 5.0 * _QUIET, "giou_weight": 2.0 * _QUIET}

# The same for scenes of a few things, beside a language model that learns to speak.
SCENE_DECODERS: dict[str, dict[str, Any]] = {
    "grounding_dino": {
        **TINY_DECODERS["grounding_dino"],
        "queries": 16,
        "criterion": {
            **TINY_DECODERS["grounding_dino"]["criterion"],
            **_BOX,
            "mask_weight": 5.0 * _QUIET,
            "dice_weight": 5.0 * _QUIET,
        },
    },
    "unipose": {
        **TINY_DECODERS["unipose"],
        "queries": 10,
        "criterion": {
            **TINY_DECODERS["unipose"]["criterion"],
            **_BOX,
            "keypoint_weight": 10.0 * _QUIET,
        },
    },
    **{
        name: {
            **TINY_DECODERS[name],
            "noise_weight": _QUIET,
            "caption_weight": 0.1 * _QUIET,
            "reconstruction_weight": _QUIET,
            "kl_weight": 1e-3 * _QUIET,
        }
        for name in PAINTERS
    },
}
