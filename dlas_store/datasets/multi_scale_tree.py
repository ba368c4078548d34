"""Tree of the patches of a multi-scale item: the whole picture, its quadrants, the quadrants of these, and so on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class TreeNode:
    """A patch of a multi-scale item.

    Attributes:
        index: index of the patch in ``hq`` and ``lq``.
        parent: the patch of which this one is a quadrant; None for the whole picture.
        depth: 0 for the whole picture, whose side is 2^depth times the patch's.
        row: row of the patch among all patches of its depth, 0 <= row < 2^depth.
        col: column of the patch among all patches of its depth, 0 <= col < 2^depth.
    """

    index: int
    parent: TreeNode | None
    depth: int
    row: int
    col: int

    @property
    def top(self) -> float:
        """Top edge of the patch in its parent, as a fraction of the parent's height: 0 or 0.5."""
        return self.row % 2 / 2

    @property
    def left(self) -> float:
        """Left edge of the patch in its parent, as a fraction of the parent's width: 0 or 0.5."""
        return self.col % 2 / 2

    def chain(self) -> Iterator[TreeNode]:
        """Yield the patch, its parent, and so on up to the whole picture."""
        node: TreeNode | None = self
        while node is not None:
            yield node
            node = node.parent


def build_tree(num_scales: int) -> list[TreeNode]:
    """Return all (4^num_scales - 1) / 3 patches of an item in their order.

    The four children of a patch stand together: top left, top right, bottom left, bottom right. The descendants of the
    first child follow, then the descendants of the second, and so on.

    >>> [(node.index, node.parent.index, node.top, node.left) for node in build_tree(3)[5:7]]
    [(5, 1, 0.0, 0.0), (6, 1, 0.0, 0.5)]
    """
    nodes = [TreeNode(0, None, 0, 0, 0)]

    def grow(parent: TreeNode) -> None:
        if parent.depth + 1 == num_scales:
            return
        children = [
            TreeNode(len(nodes) + 2 * row + col, parent, parent.depth + 1, 2 * parent.row + row, 2 * parent.col + col)
            for row in (0, 1)
            for col in (0, 1)
        ]
        nodes.extend(children)
        for child in children:
            grow(child)

    grow(nodes[0])
    return nodes


def tree_leaves(num_scales: int) -> list[TreeNode]:
    """Return the 4^(num_scales - 1) smallest patches of an item; ``chain()`` leads from each to the whole picture.

    >>> [[node.index for node in leaf.chain()] for leaf in tree_leaves(3)[3:5]]
    [[8, 1, 0], [9, 2, 0]]
    """
    return [node for node in build_tree(num_scales) if node.depth + 1 == num_scales]
