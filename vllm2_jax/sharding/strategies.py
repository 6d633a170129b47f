# SPDX-License-Identifier: Apache-2.0
"""How a model is laid over devices, as data. A new strategy is one entry in `STRATEGIES`.

A strategy names the axes of a device mesh and says which of them every array axis (`vllm2_jax.nn.axes.AXES`)
is split over. An axis without a rule is not split.
"""

import dataclasses
from collections.abc import Mapping

MeshAxes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class Strategy:
    """One way to lay arrays over a mesh.

    Attributes:
      mesh: mesh axis -> its size inside a slice (devices joined by the fast interconnect); -1, allowed once,
        takes what is left.
      rules: array axis -> mesh axis or axes that split it. `"batch"` is the leading group axis of a batch.
      dcn: mesh axis -> over how many slices it also goes (the slow network); -1 is all of them.
      opt_rules: rules of the optimizer state where they differ from those of the parameters (ZeRO-1).
    """

    mesh: Mapping[str, int]
    rules: Mapping[str, MeshAxes]
    dcn: Mapping[str, int] = dataclasses.field(default_factory=dict)
    opt_rules: Mapping[str, MeshAxes] | None = None

    @property
    def optimizer_rules(self) -> Mapping[str, MeshAxes]:
        """Rules of the optimizer state."""
        return self.rules if self.opt_rules is None else self.opt_rules

    @property
    def activation_rules(self) -> dict[str, MeshAxes]:
        """Rules for `nn.axes.axis_rules`: those of the parameters, less the mesh axes that split the batch.

        Under FSDP the same devices hold parts of the width of a weight and parts of the batch of an
        activation; an activation cannot be split over one mesh axis twice.
        """
        taken = mesh_axes(self.rules.get("batch"))
        return {
            name: axes if name == "batch" else tuple(axis for axis in mesh_axes(axes) if axis not in taken)
            for name, axes in self.rules.items()
        }


def mesh_axes(axes: MeshAxes) -> tuple[str, ...]:
    """A rule's right-hand side as a tuple of mesh axes."""
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else tuple(axes)


# The residual width splits over `fsdp`, the wide axes of a block over `tensor`; every product then needs one
# all-gather (fsdp) or one all-reduce (tensor), never a transposition of an activation.
_FSDP: dict[str, MeshAxes] = {"batch": ("data", "fsdp"), "embed": "fsdp", "conv_out": "fsdp"}
_TENSOR: dict[str, MeshAxes] = {"heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}

STRATEGIES: dict[str, Strategy] = {
    "single": Strategy(mesh={"data": 1}, rules={"batch": "data"}),
    "dp": Strategy(mesh={"data": -1}, rules={"batch": "data"}),
    "zero1": Strategy(
        mesh={"data": -1},
        rules={"batch": "data"},
        opt_rules={"embed": "data", "conv_out": "data"},
    ),
    "fsdp": Strategy(mesh={"data": 1, "fsdp": -1}, rules=_FSDP),
    "fsdp_tp": Strategy(mesh={"data": 1, "fsdp": -1, "tensor": 2}, rules={**_FSDP, **_TENSOR}),
    # Devices that share rows split the language model's columns: weights are gathered, activations stay where
    # they are but for attention, where columns are exchanged for heads. Decoders as in fsdp_tp. Of several
    # slices each has all weights.
    "fsdp_seq": Strategy(
        mesh={"data": 1, "fsdp": -1, "tensor": 2},
        dcn={"data": -1},
        rules={**_FSDP, **_TENSOR, "length": "tensor"},
    ),
    # Weights are whole inside each slice: only gradients cross the slow network, once a step.
    "multislice": Strategy(mesh={"data": 1, "fsdp": -1}, dcn={"data": -1}, rules=_FSDP),
}
