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
    # The same with adapters; both embeddings are trained in full, as in the official code.
    "stage1_lora": (
        (r"/lora/", 1.0),
        (r"^llm/(embed|head)$", 1.0),
        (r"^(bridge|regions)/", 1.0),
        (r"^(vision|queries|llm)/", None),
    ),
    # A model that starts from nothing, without decoders and with them.
    "all": ((r"^(vision|bridge|regions|llm)/", 1.0), (r"^queries/", None)),
    "all_links": ((r"^(vision|bridge|regions|llm|queries|decoders)/", 1.0),),
}

# "all_links" for a model with decoders that paint: their text encoders stay as random as they were drawn.
# Random states tell captions apart, which is what the alignment loss needs of them.
ALL_BUT_CAPTIONS: Groups = ((r"^decoders/\w+/text/", None), *GROUPS["all_links"])
