# SPDX-License-Identifier: Apache-2.0
"""Decoders that paint: pictures from text (Stable Diffusion) and from a picture and text (InstructPix2Pix).

Read `painter.py` first: what both are made of.
"""

# Their keys in `vllm2_jax.decoders.DECODERS`.
PAINTERS = ("stable_diffusion", "instruct_pix2pix")
