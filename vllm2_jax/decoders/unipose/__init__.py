# SPDX-License-Identifier: Apache-2.0
"""UniPose: boxes and keypoints of objects, both named by super links.

Whatever classes and keypoints the language model names, the decoder finds: first boxes of objects, then the
keypoints of the best of them.
"""
