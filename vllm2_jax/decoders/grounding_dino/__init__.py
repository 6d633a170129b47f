# SPDX-License-Identifier: Apache-2.0
"""Open-vocabulary Grounding DINO with masks: detection, grounding, segmentation and counting.

Its classes are super links: whatever the language model names, the decoder finds.
"""
