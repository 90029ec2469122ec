"""Reading, changing and skipping what modules of a model compute, for the thread that asks and no other.

A hook belongs to a module, and several threads run one model at once. So hooks are set once and for all, and each
looks for what its own thread has asked of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn

Side = Literal["in", "out", "instead"]
Change = Callable[[Tensor], Tensor]


class Taps:
    """What modules read ("in") or write ("out") passed through a function, or a function called "instead" of one."""

    def __init__(self) -> None:
        self._asked = threading.local()
        self._lock = threading.Lock()
        self._set: set[tuple[nn.Module, Side]] = set()

    @contextmanager
    def changed(self, module: nn.Module, side: Side, change: Change) -> Iterator[None]:
        """Until the block ends, and in this thread only; of a tuple, the first part is changed."""
        self._install(module, side)
        self._changes()[module, side] = change
        try:
            yield
        finally:
            del self._changes()[module, side]

    def _changes(self) -> dict[tuple[nn.Module, Side], Change]:
        return self._asked.__dict__.setdefault("changes", {})

    def _install(self, module: nn.Module, side: Side) -> None:
        with self._lock:
            if (module, side) in self._set:
                return
            self._set.add((module, side))
        if side == "out":
            module.register_forward_hook(lambda _module, _args, output: self._pass(module, side, output))
        elif side == "in":
            module.register_forward_pre_hook(self._before, with_kwargs=True)
        else:
            self._replace(module)

    def _pass(self, module: nn.Module, side: Side, value: Any) -> Any:
        change = self._changes().get((module, side))
        if change is None:
            return None  # torch keeps what was there
        return (change(value[0]), *value[1:]) if isinstance(value, tuple) else change(value)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if (module, "in") not in self._changes():
            return None
        if args:
            return self._pass(module, "in", args), kwargs
        return args, {**kwargs, "hidden_states": self._pass(module, "in", kwargs["hidden_states"])}

    def _replace(self, module: nn.Module) -> None:
        usual = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            change = self._changes().get((module, "instead"))
            if change is None:
                return usual(*args, **kwargs)
            return change(args[0] if args else kwargs["hidden_states"])

        module.forward = forward  # type: ignore[method-assign]
