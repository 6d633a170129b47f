# SPDX-License-Identifier: Apache-2.0
"""Training: `loop` is the story, `step` the mathematics, the other files what they need."""
