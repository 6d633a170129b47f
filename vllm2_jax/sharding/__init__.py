# SPDX-License-Identifier: Apache-2.0
"""Sharding as data: `strategies` says what, `mesh` and `partition` apply it, `report` shows it."""
