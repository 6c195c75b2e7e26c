"""Radix trees over text and over packed token ids.

One tree serves both keys: a ``str`` is compared character by character, packed ids in units of
four bytes. A *node* stands for the key from the root to its end; its *label* is the piece that its
parent does not have. Edges split where keys part and join again where nothing is left to part, so
a shared prefix is stored once.

The trees are the storage, not only an index: whatever is captured keeps a node, and its text or
ids are read back from the labels on the way up. Equal answers to one prompt therefore cost their
text and ids once, and ten thousand prompts under one system prompt cost that prompt once.

Labels are compared as whole slices (``startswith``, i.e. ``memcmp``), never element by element;
where a label is left midway, the place is found by doubling and halving steps. So a look-up costs
what the matching part costs, whatever else the tree holds.

A node may be *held* by marks that must not go for lack of room. ``held`` counts the reasons: held
marks here plus children with any. ``weight_held`` is what all such nodes weigh together; the rest
of ``weight`` is kept only because it may be useful again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypeVar

from slime_core.errors import InvariantError
from slime_core.types import ID_BYTES

__all__ = ["Match", "Node", "RadixTree", "id_tree", "text_tree"]

Key = TypeVar("Key", str, bytes)
"""What a tree is over. A node's fields are annotated in full: mypy infers none from a union."""


class Node(Generic[Key]):
    """A place in a tree. ``end`` is its distance from the root: characters, or bytes of ids."""

    __slots__ = ("children", "end", "held", "label", "marks", "parent")

    def __init__(self, parent: Node[Key] | None, label: Key, end: int) -> None:
        self.parent: Node[Key] | None = parent
        self.label: Key = label
        self.end = end
        self.children: dict[Key, Node[Key]] | None = None
        self.marks: list[Any] | None = None
        self.held = 0

    @property
    def start(self) -> int:
        """Where this node's label begins."""
        return self.end - len(self.label)

    def lineage(self) -> Iterator[Node[Key]]:
        """This node and its ancestors, up to and including the root."""
        node: Node[Key] | None = self
        while node is not None:
            yield node
            node = node.parent


class Match(Generic[Key]):
    """How far a key is known: ``length`` of it, down to ``node`` and maybe partly ``inside``.

    ``node`` is the deepest node whose whole key matched; ``inside`` the child whose label was
    entered but left midway, or ``None``. ``length`` is in the tree's own measure.
    """

    __slots__ = ("inside", "length", "node")

    def __init__(self, node: Node[Key], inside: Node[Key] | None, length: int) -> None:
        self.node: Node[Key] = node
        self.inside: Node[Key] | None = inside
        self.length = length

    @property
    def below(self) -> Node[Key]:
        """The node at or under the point reached."""
        below: Node[Key] = self.node if self.inside is None else self.inside
        return below


class RadixTree(Generic[Key]):
    """A radix tree. Make one with :func:`text_tree` or :func:`id_tree`."""

    def __init__(self, empty: Key, unit: int, weigh: Callable[[Key], int]) -> None:
        self._unit: Final = unit
        self._empty: Key = empty
        self._weigh: Callable[[Key], int] = weigh
        self.root: Final[Node[Key]] = Node(None, empty, 0)
        self.weight = 0
        """Bytes of all labels together."""
        self.weight_held = 0
        """Bytes of the labels of held nodes."""
        self.nodes = 1

    # -- queries -------------------------------------------------------------------------

    def match(self, key: Key, node: Node[Key] | None = None, at: int = 0) -> Match[Key]:
        """The longest prefix of ``key[at:]`` known below ``node`` (default: the root).

        ``length`` counts from the start of ``key``, so that with the root it is the depth.
        """
        node = self.root if node is None else node
        unit = self._unit
        size = len(key)
        while at < size and node.children is not None:
            child = node.children.get(key[at : at + unit])
            if child is None:
                break
            if not key.startswith(child.label, at):
                return Match(node, child, at + self._shared(child.label, key, at))
            at += len(child.label)
            node = child
        return Match(node, None, at)

    def _shared(self, label: Key, key: Key, at: int) -> int:
        """How much of ``label`` stands in ``key`` at ``at``; at least one unit, never all."""
        known = step = self._unit
        while key.startswith(label[known : known + step], at + known):
            known += step
            step *= 2
        while step > self._unit:
            step //= 2
            if key.startswith(label[known : known + step], at + known):
                known += step
        return known

    def key(self, node: Node[Key], start: int = 0) -> Key:
        """The key of ``node`` from distance ``start`` on."""
        pieces = []
        here: Node[Key] | None = node
        while here is not None and here.end > start:
            skip = start - here.start
            pieces.append(here.label[skip:] if skip > 0 else here.label)
            here = here.parent
        pieces.reverse()
        whole: Key = self._empty.join(pieces)
        return whole

    # -- changes -------------------------------------------------------------------------

    def insert(self, key: Key, node: Node[Key] | None = None) -> Node[Key]:
        """The node for ``key`` below ``node``, made where it is missing."""
        node = self.root if node is None else node
        if node.children is None and key:
            return self._grow(node, key)
        found = self.match(key, node)
        end: Node[Key] = found.node
        if found.inside is not None:
            end = self._split(found.inside, node.end + found.length)
        if found.length < len(key):
            end = self._grow(end, key[found.length :])
        return end

    def insert_at(self, key: Key, node: Node[Key], depth: int) -> Node[Key]:
        """The node for ``key`` behind the first ``depth`` of the way to ``node``.

        The split at ``depth`` stays only if the two ways part there.
        """
        base = node if node.end == depth else self.at_depth(node, depth)
        end = self.insert(key, base)
        if end is not base and base.marks is None and base.parent is not None:
            self.prune(base)
        return end

    def at_depth(self, node: Node[Key], depth: int) -> Node[Key]:
        """The node ``depth`` from the root on the way to ``node``, split off where needed."""
        for here in node.lineage():
            if here.end == depth:
                return here
            if here.start < depth < here.end:
                return self._split(here, depth)
        raise InvariantError("no such depth on this path")

    def mark(self, node: Node[Key], mark: object) -> None:
        """Keep ``node`` for ``mark``."""
        if node.marks is None:
            node.marks = []
        node.marks.append(mark)

    def unmark(self, node: Node[Key], mark: object) -> None:
        """Give up ``mark``; what nothing needs any more is freed."""
        assert node.marks is not None
        node.marks.remove(mark)
        if not node.marks:
            node.marks = None
            self.prune(node)

    def prune(self, node: Node[Key]) -> None:
        """Free ``node`` and its ancestors as far as nothing needs them; join a lone child."""
        while node.parent is not None and node.marks is None and not node.children:
            parent = node.parent
            assert parent.children is not None
            del parent.children[node.label[: self._unit]]
            self._count(node, -1)
            if not parent.children:
                parent.children = None
            node = parent
        if node.parent is not None and node.marks is None and len(node.children or ()) == 1:
            self._join(node)

    def hold(self, node: Node[Key]) -> None:
        """One more reason why ``node`` must not go for lack of room."""
        here: Node[Key] | None = node
        while here is not None:
            here.held += 1
            if here.held > 1:
                return
            self.weight_held += self._weigh(here.label)
            here = here.parent

    def release(self, node: Node[Key]) -> None:
        """One reason less."""
        here: Node[Key] | None = node
        while here is not None:
            here.held -= 1
            if here.held:
                return
            self.weight_held -= self._weigh(here.label)
            here = here.parent

    def _grow(self, parent: Node[Key], label: Key) -> Node[Key]:
        child = Node(parent, label, parent.end + len(label))
        if parent.children is None:
            parent.children = {}
        parent.children[label[: self._unit]] = child
        self.nodes += 1
        self.weight += self._weigh(label)
        return child

    def _split(self, node: Node[Key], depth: int) -> Node[Key]:
        """A new node above ``node`` that ends at ``depth``; ``node`` keeps its identity."""
        parent = node.parent
        assert parent is not None
        assert parent.children is not None
        at = depth - parent.end
        self._count(node, -1)
        upper = Node(parent, node.label[:at], depth)
        parent.children[upper.label[: self._unit]] = upper
        node.parent, node.label = upper, node.label[at:]
        upper.children = {node.label[: self._unit]: node}
        upper.held = 1 if node.held else 0
        self._count(upper, 1)
        self._count(node, 1)
        return upper

    def _join(self, node: Node[Key]) -> None:
        """Give the label of ``node`` to its only child, which keeps its identity."""
        assert node.children is not None
        assert node.parent is not None
        assert node.parent.children is not None
        (child,) = node.children.values()
        self._count(node, -1)
        self._count(child, -1)
        child.label = node.label + child.label
        child.parent = node.parent
        node.parent.children[child.label[: self._unit]] = child
        self._count(child, 1)

    def _count(self, node: Node[Key], sign: int) -> None:
        weight = sign * self._weigh(node.label)
        self.nodes += sign
        self.weight += weight
        if node.held:
            self.weight_held += weight

    # -- for tests -----------------------------------------------------------------------

    def walk(self) -> Iterator[Node[Key]]:
        """Every node, the root first, children in the order of their keys."""
        stack = [self.root]
        while stack:
            node = stack.pop()
            yield node
            children = node.children or {}
            stack.extend(children[key] for key in sorted(children, reverse=True))

    def check(self) -> None:
        """Raise ``InvariantError`` where the tree is not one: for tests and simulations."""
        nodes = weight = weight_held = 0
        for node in self.walk():
            nodes += 1
            weight += self._weigh(node.label)
            weight_held += self._weigh(node.label) if node.held else 0
            self._check_node(node)
        if (nodes, weight, weight_held) != (self.nodes, self.weight, self.weight_held):
            raise InvariantError("the tree's sums are off")

    def _check_node(self, node: Node[Key]) -> None:
        children = node.children or {}
        needed = node.parent is None or node.marks or len(children) > 1
        if not needed:
            raise InvariantError(f"a node that nothing needs: {node.label!r}")
        if node.held < sum(1 for child in children.values() if child.held):
            raise InvariantError("a held node under one that is not")
        for first, child in children.items():
            if child.parent is not node or child.start != node.end:
                raise InvariantError("a child that is not its parent's")
            if len(child.label) % self._unit or child.label[: self._unit] != first:
                raise InvariantError("a label under the wrong key")


def _text_weight(text: str) -> int:
    return len(text) if text.isascii() else 2 * len(text)


def text_tree() -> RadixTree[str]:
    """A tree over text; distances in characters, weights in bytes of CPython's strings.

    A non-ASCII label is weighed at two bytes a character, which is what Latin, Greek, Cyrillic,
    Chinese, Japanese and Korean need at most.
    """
    return RadixTree("", 1, _text_weight)


def id_tree() -> RadixTree[bytes]:
    """A tree over packed token ids; distances and weights in bytes, four to a token."""
    return RadixTree(b"", ID_BYTES, len)
