"""The drawing of a tree snapshot: one line for each node."""

from __future__ import annotations

from collections.abc import Iterator

from engine.runtime.tree import Node, State

_UP = frozenset({State.RUNNING, State.STOPPING})


def render(node: Node) -> str:
    """Draw the tree: name, strategy, state, uptime, restarts, mail, activity, last failure of each node."""
    rows = [(prefix + each.name, each) for prefix, each in _rows(node, "", "")]
    name_width = max(len(label) for label, _ in rows)
    strategy_width = max(len(_strategy(each)) for _, each in rows)
    return "\n".join(
        "  ".join(
            [
                label.ljust(name_width),
                _strategy(each).ljust(strategy_width),
                each.state.value.ljust(11),
                *_facts(each),
            ]
        ).rstrip()
        for label, each in rows
    )


def _rows(node: Node, prefix: str, indent: str) -> Iterator[tuple[str, Node]]:
    yield prefix, node
    for child in node.children:
        last = child is node.children[-1]
        yield from _rows(child, indent + ("└─ " if last else "├─ "), indent + ("   " if last else "│  "))


def _strategy(node: Node) -> str:
    return "" if node.strategy is None else node.strategy.value


def _facts(node: Node) -> Iterator[str]:
    yield (f"up {_span(node.uptime_s)}" if node.state in _UP else "").ljust(9)
    yield f"restarts {node.restarts}"
    if node.mailbox is not None:
        mail = node.mailbox
        waiting = f", oldest {_span(mail.oldest_age_s)}" if mail.depth else ""
        yield f"mail {mail.depth}/{mail.capacity} (peak {mail.high_water}, received {mail.received}{waiting})"
    if node.doing:
        yield _one_line(node.doing)
    if node.last_failure is not None:
        yield f"failed {_span(node.last_failure.age_s)} ago: {_one_line(node.last_failure.error)}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _span(seconds: float) -> str:
    """The duration in its two largest units at most."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if minutes < 1:
        return f"{seconds:.0f}s"
    if hours < 1:
        return f"{minutes:.0f}m{seconds % 60:02.0f}s"
    if days < 1:
        return f"{hours:.0f}h{minutes % 60:02.0f}m"
    return f"{days:.0f}d{hours % 24:02.0f}h"
