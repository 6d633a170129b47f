# SPDX-License-Identifier: Apache-2.0
"""Scenes made from a seed (shapes, people with keypoints, signs with words), in pictures and in words."""
