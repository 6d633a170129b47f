# SPDX-License-Identifier: Apache-2.0
"""What each stage trains: ordered (regex over parameter paths, learning-rate multiplier or None for frozen).

The first pattern that matches decides. Every parameter needs a pattern, every pattern has to decide
something, or the run does not start. Source: paper table A13 and section 3.3; the tower never learns in any
stage.
"""

Groups = tuple[tuple[str, float | None], ...]

GROUPS: dict[str, Groups] = {
    # Connector and region encoder learn the language model's input space.
    "stage1_pretrain": ((r"^(bridge|regions)/", 1.0), (r"^(vision|queries|llm)/", None)),
    # Instruction tuning: the whole language model too. No link is called yet, so queries stay.
    "stage1_tune": ((r"^(bridge|regions|llm)/", 1.0), (r"^(vision|queries)/", None)),
    # A model that starts from nothing, without decoders and with them.
    "all": ((r"^(vision|bridge|regions|llm)/", 1.0), (r"^queries/", None)),
    "all_links": ((r"^(vision|bridge|regions|llm|queries|decoders)/", 1.0),),
}

# "all_links" for a model with decoders that paint: their text encoders stay as random as they were drawn.
# Random states tell captions apart, which is what the alignment loss needs of them.
ALL_BUT_CAPTIONS: Groups = ((r"^decoders/\w+/text/", None), *GROUPS["all_links"])

# Of the language model only its embeddings, slowly.
_WORDS: Groups = ((r"^llm/(embed|head)$", 0.1), (r"^llm/", None))
# What decoders that paint, and those that see, train slowly or not; offsets are deformable attention's. The
# official trainer goes by parts of names: of both reference heads only grounding's says "reference_points".
_PAINTERS: Groups = (
    (r"^decoders/\w+/(vae|text)/", None),
    (r"^decoders/stable_diffusion/unet/", None),
    (r"^decoders/\w+/mapper/(queries|encoder|decoder)", 0.1),
)
_SEERS: Groups = (
    (r"^decoders/\w+/backbone/", 0.1),
    (r"/offsets/", 0.1),
    (r"^decoders/grounding_dino/decoder/reference_head/", 0.1),
)
_LINKS: Groups = ((r"^(queries|decoders)/", 1.0),)
# Stages with all decoders, or those that paint. In stage 2 the language model learns by adapters too.
STAGE2: Groups = (
    (r"^vision/", None),
    (r"/lora/", 0.1),
    *_WORDS,
    (r"^(bridge|regions)/", 0.1),
    *_PAINTERS,
    *_SEERS,
    *_LINKS,
)
STAGE3: Groups = ((r"^(vision|bridge|regions)/", None), *_WORDS, *_PAINTERS, *_SEERS, *_LINKS)
STAGE3_PAINT: Groups = ((r"^(vision|bridge|regions)/", None), *_WORDS, *_PAINTERS, *_LINKS)
