"""The network that a file's weights belong to: ``zoo:NAME`` or ``module:factory(arguments)``.

Reading the text imports nothing; :meth:`Architecture.build` imports and calls the factory.
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.errors import ConfigError, UnsafeFileError
from edgekit.files.wording import printable
from edgekit.registry import MODELS, resolve
from edgekit.types import InputSpec, Preprocessing, Task
from edgekit.user_code import UserCode

if TYPE_CHECKING:
    from torch import Tensor, nn

ZOO = "zoo"
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_MAX_LENGTH = 2000  # far beyond any real call, far below what exhausts Python's parser
_EXAMPLES = "examples: --arch zoo:efficientnet_lite0, --arch 'my_net:build(width=0.75)'"


class WeightsOrigin(str, enum.Enum):
    """What may be expected of a network's weights.

    ``PUBLISHED``: its authors trained them. ``TRAINED``: trained here, part of edgekit.
    ``SEEDED``: random, for size, speed and export; nothing is claimed about accuracy.
    """

    PUBLISHED = "published"
    TRAINED = "trained"
    SEEDED = "seeded"


@dataclass(frozen=True, slots=True)
class ZooModel:
    """A network of the zoo: how to build it, where its weights come from, what it expects.

    ``build`` takes arguments with literal defaults only. ``weights`` makes or reads the weights,
    from the Python package ``weights_package`` where that is not ``None``; ``weights`` itself is
    ``None`` when there are none to have.
    """

    name: str
    build: Callable[..., nn.Module]
    weights: Callable[[], dict[str, Tensor]] | None
    weights_package: str | None
    weights_origin: WeightsOrigin | None
    task: Task
    inputs: tuple[InputSpec, ...]
    preprocessing: Preprocessing | None
    num_classes: int | None
    description: str


@dataclass(frozen=True, slots=True)
class Architecture:
    """A parsed architecture: where its factory is and the literal arguments to call it with."""

    module: str
    factory: str
    args: tuple[object, ...] = ()
    kwargs: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        """Return the text that :func:`parse_arch` reads back to the same value."""
        arguments = [repr(value) for value in self.args]
        arguments += [f"{name}={value!r}" for name, value in self.kwargs]
        call = f"({', '.join(arguments)})" if arguments else ""
        return f"{self.module}:{self.factory}{call}"

    @property
    def is_zoo(self) -> bool:
        """Whether this names a network that edgekit itself defines."""
        return self.module == ZOO

    def zoo_model(self) -> ZooModel:
        """Return the zoo's entry.

        Raises:
            ConfigError: there is no network of that name in the zoo.
        """
        model = resolve(MODELS, self.factory, "zoo network")
        assert isinstance(model, ZooModel)  # what the table holds is ours
        return model

    def num_classes(self) -> int | None:
        """Return the class count of a zoo network, and ``None`` for the user's own factory.

        Raises:
            ConfigError: the zoo network does not take these arguments.
        """
        if not self.is_zoo:
            return None
        model = self.zoo_model()
        given = self._bind(model.build).get("num_classes", model.num_classes)
        return given if isinstance(given, int) else model.num_classes

    def build(self) -> nn.Module:
        """Import the factory, call it and return the network, with whatever weights it has.

        The current directory is importable while this runs.

        Raises:
            ConfigError: the factory cannot be found, does not take the arguments, fails, or
                returns something else than a network.
        """
        from torch import nn

        if self.is_zoo:
            factory: object = self.zoo_model().build
            self._bind(self.zoo_model().build)
        else:
            factory = None
        with current_directory_importable():
            if factory is None:
                factory = self._import_factory()
            ready = isinstance(factory, nn.Module)
            network = factory if ready else self._call(factory)
        if ready and (self.args or self.kwargs):
            raise ConfigError(
                f"--arch {self}: '{self.factory}' is a network already and takes no arguments",
                f"write --arch {self.module}:{self.factory}",
            )
        if not isinstance(network, nn.Module):
            raise ConfigError(
                f"--arch {self}: gives a value {_kind(network)}, not a torch.nn.Module",
                "name a function or class that returns the network",
            )
        return network

    def _import_factory(self) -> object:
        with UserCode(f"--arch {self}: importing '{self.module}'", "mend the module first"):
            importlib.invalidate_caches()  # the user may have written the file a moment ago
            try:
                found: object = importlib.import_module(self.module)
            except ModuleNotFoundError as error:
                if error.name is None or not f"{self.module}.".startswith(f"{error.name}."):
                    raise  # the module is there, but something that it imports is not
                raise ConfigError(
                    f"--arch {self}: there is no module '{self.module}', neither in the current "
                    "directory nor among the installed packages",
                    f"run edgekit in the directory that holds {self.module.split('.')[0]}.py",
                ) from error
        for part in self.factory.split("."):
            if not hasattr(found, part):
                raise ConfigError(
                    f"--arch {self}: '{self.module}' has no '{self.factory}'",
                    "write module:factory, where factory returns the network",
                )
            found = getattr(found, part)
        return found

    def _call(self, factory: object) -> object:
        if not callable(factory):
            raise ConfigError(
                f"--arch {self}: '{self.factory}' is {_kind(factory)} and cannot be called",
                "name a function or class that returns the network",
            )
        with UserCode(f"--arch {self}: building the network", "check the arguments in --arch"):
            network: object = factory(*self.args, **dict(self.kwargs))
        return network

    def _bind(self, factory: Callable[..., object]) -> dict[str, object]:
        signature = inspect.signature(factory)
        try:
            return signature.bind(*self.args, **dict(self.kwargs)).arguments
        except TypeError as error:
            plain = (str(p.replace(annotation=p.empty)) for p in signature.parameters.values())
            raise ConfigError(
                f"--arch {self}: {error}", f"{ZOO}:{self.factory} takes ({', '.join(plain)})"
            ) from error


def parse_arch(text: str) -> Architecture:
    """Parse ``zoo:NAME``, ``module:factory`` or either with literal arguments in parentheses.

    Raises:
        ConfigError: the text has another form, or an argument is not a literal.
    """
    shown = printable(text)
    module, colon, call = text.strip().partition(":")
    if not colon or not _MODULE.fullmatch(module) or len(text) > _MAX_LENGTH:
        raise ConfigError(f"--arch '{shown}': expected zoo:NAME or module:factory", _EXAMPLES)
    if module.endswith(".py"):
        raise ConfigError(
            f"--arch '{shown}': expected the name of a module, not of a file",
            f"leave out .py: --arch {module.removesuffix('.py')}:{printable(call)}",
        )
    try:
        tree = ast.parse(call.strip(), mode="eval").body
        node = tree.func if isinstance(tree, ast.Call) else tree
        factory = _dotted_name(node)
        args, kwargs = _literals(tree) if isinstance(tree, ast.Call) else ((), ())
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise ConfigError(
            f"--arch '{shown}': expected a name with literal arguments in parentheses "
            f"({printable(str(error))})",
            _EXAMPLES,
        ) from error
    return Architecture(module, factory, args, kwargs)


def confirmed_arch(stated: str | None, typed: str | None) -> str | None:
    """Return the architecture that a recipe states, if the user may be taken to want it.

    A file never decides which of the user's modules is imported: a recipe may name a network of
    the zoo, and the user's own only where the user types it as well.

    Raises:
        ConfigError: the user typed another one.
        UnsafeFileError: the recipe names a module that the user did not type.
    """
    if typed not in (None, stated):
        raise ConfigError(
            f"--arch {printable(str(typed))}: the recipe is for "
            f"{printable(stated) if stated else 'a file that needs no --arch'}",
            "leave out --arch, or edit a copy of the recipe",
        )
    if stated is not None and typed is None and not parse_arch(stated).is_zoo:
        raise UnsafeFileError(
            f"the recipe asks to import and call '{printable(stated)}'; nothing was imported",
            "if you know that module, confirm it by typing the same --arch beside --recipe",
        )
    return stated


def _dotted_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted_name(node.value)}.{node.attr}"
    if isinstance(node, ast.Name):
        return node.id
    raise ValueError("the factory must be a name")


def _literals(call: ast.Call) -> tuple[tuple[object, ...], tuple[tuple[str, object], ...]]:
    args = tuple(_literal(argument) for argument in call.args)
    kwargs: list[tuple[str, object]] = []
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError("** is not allowed")
        if any(name == keyword.arg for name, _ in kwargs):
            raise ValueError(f"{keyword.arg} is given twice")
        kwargs.append((keyword.arg, _literal(keyword.value)))
    return args, tuple(kwargs)


def _literal(node: ast.expr) -> object:
    try:
        value: object = ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f"{ast.unparse(node)} is not a literal") from error
    return value


def _kind(value: object) -> str:
    kind = type(value)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"of type {module}{kind.__name__}"


@contextmanager
def current_directory_importable() -> Iterator[None]:
    """Let the user's own modules be imported, as Python itself does for a script."""
    sys.path.insert(0, "")  # "" stands for whatever the current directory is
    try:
        yield
    finally:
        sys.path.remove("")
