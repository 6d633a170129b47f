# SPDX-License-Identifier: Apache-2.0
"""Names of the leaves of a module, a state or a gradient: attribute names and indices joined by "/"."""

from typing import Any

import jax


def flatten_paths(tree: Any) -> tuple[dict[str, Any], Any]:
    """All leaves by path, in tree order, and the treedef that `jax.tree.unflatten` takes.

    A module and its `nnx.state` give the same paths: `layers/attention/q/kernel`, `stages/0/norm/scale`.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    return {_join(keys): leaf for keys, leaf in leaves}, treedef


def _join(keys: tuple[Any, ...]) -> str:
    # The last step into a Variable is its attribute `value`: true of every parameter, so it tells nothing.
    if keys and isinstance(keys[-1], jax.tree_util.GetAttrKey) and keys[-1].name == "value":
        keys = keys[:-1]
    return jax.tree_util.keystr(keys, simple=True, separator="/")
