"""A callable made ready for integration: checked, compiled in float64 on the host, its breaks kept.

What the user has set (precision, default device, mesh, a trace that is going on) has no say: the
function is evaluated as it would be at the prompt of a fresh JAX with 64-bit types.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._arguments import as_number
from jaxinit.activations._catalogue import NamedActivation, known_as, named
from jaxinit.jaxpr import trace

Array = np.ndarray
Activation = str | NamedActivation | Callable[..., Any]

# One compiled shape serves everything; larger calls go through it in pieces.
_SIZE = 4096
_MOST_INPUTS = 2
# Weights beyond here are below 1e-32: a function that overflows only there has its moments.
_SEEN = 12.0


class Function:
    """An elementwise function as the integrals see it.

    Attributes:
        caller: public name that errors start with.
        name: what tables call it.
        inputs: how many inputs it takes.
        noise: relative rounding error of its values, when parts of it are narrower than float64.
        breaks: arguments at which it was found not to be smooth, with how well each is known.
        steep: arguments at which it climbs within less than a panel can see.
    """

    def __init__(self, caller: str, function: Callable[..., Any], name: str, inputs: int) -> None:
        self.caller, self.name, self.inputs = caller, name, inputs
        self.breaks: dict[float, float] = {}
        self.steep: list[float] = []
        with _at_the_prompt():
            vector = _vectorised(caller, name, function, inputs)
            self.noise = _noise(vector, inputs)
            self._compiled = _compile(caller, name, vector, inputs)
        self._check_elementwise()

    def __call__(self, *arguments: Array, weighed: Array | None = None) -> tuple[Array, Array]:
        """Values and slopes.

        Args:
            *arguments: points, of shape (n,) each.
            weighed: how many standard deviations out each point is; beyond 12, what is not
                finite is taken as zero. None takes every value as it comes.

        Returns:
            Values of shape (n,) and slopes to each argument, of shape (inputs, n).

        Raises:
            ValueError: when a value or a slope is not finite.
        """
        values, slopes = self._evaluate(arguments)
        if weighed is not None:
            bad = ~(np.isfinite(values) & np.isfinite(slopes).all(axis=0))
            if bad.any():
                self._refuse_if_seen(arguments, weighed, bad, values, slopes)
                values, slopes = np.where(bad, 0, values), np.where(bad, 0, slopes)
        return values, slopes

    def _evaluate(self, arguments: tuple[Array, ...]) -> tuple[Array, Array]:
        count = arguments[0].size
        values, slopes = np.empty(count), np.empty((self.inputs, count))
        with _at_the_prompt():
            for first in range(0, count, _SIZE):
                pieces = [argument[first : first + _SIZE] for argument in arguments]
                length = len(pieces[0])
                # The last point again, so that padding meets nothing that the points do not.
                padded = [np.pad(piece, (0, _SIZE - length), mode="edge") for piece in pieces]
                value, slope = jax.device_get(self._compiled(*jax.device_put(padded)))
                values[first : first + length] = value[:length]
                slopes[:, first : first + length] = np.stack(slope)[:, :length]
        return values, slopes

    def _refuse_if_seen(
        self, arguments: tuple[Array, ...], weighed: Array, bad: Array, values: Any, slopes: Any
    ) -> None:
        seen = np.flatnonzero(bad & (np.abs(weighed) < _SEEN))
        if not seen.size:
            return
        i = seen[np.argmin(np.abs(weighed[seen]))]
        where = ", ".join(f"{argument[i]:.6g}" for argument in arguments)
        is_value = not np.isfinite(values[i])
        what = "values" if is_value else "a derivative"
        came = values[i] if is_value else slopes[:, i][~np.isfinite(slopes[:, i])][0]
        raise ValueError(
            f"{self.caller} needs {what} that {'are' if is_value else 'is'} finite wherever a "
            f"Gaussian goes, got {came} from {self.name} at {where}. "
            "Clip its argument, or write it so that neither overflows there."
        )

    def reach(self) -> float:
        """The largest power of two up to which values and slopes are finite on both sides."""
        sizes = 2.0 ** np.arange(-4, 64)
        points = np.concatenate([sizes, -sizes])
        values, slopes = self._evaluate((points,) * self.inputs)
        fine = (np.isfinite(values) & np.isfinite(slopes).all(axis=0)).reshape(2, -1).all(axis=0)
        return float(sizes[max(np.argmin(fine) - 1, 0)]) if not fine.all() else float(sizes[-1])

    def _check_elementwise(self) -> None:
        """Each output must not change when the other entries, or its place, do."""
        points = np.linspace(-1.37, 1.61, 64)
        arguments = [points * (1 + 0.1 * i) for i in range(self.inputs)]
        moved = [np.concatenate([a[32:], 3 * a[:32] + 0.123]) for a in arguments]
        one, other = self._evaluate(tuple(arguments))[0], self._evaluate(tuple(moved))[0]
        slack = (1e-9 + 16 * self.noise) * (np.abs(one[32:]) + 1e-3)
        if (np.abs(one[32:] - other[:32]) > slack).any():
            raise ValueError(
                f"{self.caller} needs an elementwise function, got {self.name}, whose outputs "
                "depend on other entries or on their place, as those of softmax or a norm do. "
                "Pass what acts on each entry alone."
            )


def as_function(caller: str, fn: Any, inputs: int | None = None) -> Function:
    """An activation made ready; what is known of plain functions and of names is kept.

    Args:
        caller: public name that errors start with.
        fn: a name of the catalogue, what it stands for, or a callable.
        inputs: how many inputs a callable takes; None is 1, or what the catalogue says.

    Raises:
        TypeError: when ``fn`` is none of these, or is not traceable with arrays of floats.
        ValueError: when the name is unknown, or the function is not elementwise.
    """
    if inputs is not None and inputs not in range(1, _MOST_INPUTS + 1):
        raise ValueError(
            f"{caller} needs inputs to be 1 or {_MOST_INPUTS}, got {inputs!r}. It is the number of "
            "arguments that the function takes: 2 for a gated unit."
        )
    if isinstance(fn, str):
        fn = named(fn)
    if isinstance(fn, Function):
        return fn
    known = fn if isinstance(fn, NamedActivation) else known_as(fn)
    if known is not None:
        return _kept(known.function, known.name, known.inputs if inputs is None else inputs)
    if not callable(fn) or isinstance(fn, type):
        raise TypeError(
            f"{caller} needs an activation as a callable or a name, got {fn!r}. "
            "Pass for example jax.nn.gelu or 'gelu'."
        )
    inputs = 1 if inputs is None else inputs
    name = _name_of(fn)
    # A closure may see other values next time, and an object may change: neither is kept.
    if isinstance(fn, types.FunctionType) and fn.__closure__ is None:
        return _kept(fn, name, inputs)
    return Function(caller, fn, name, inputs)


def as_positive(caller: str, name: str, value: Any, *, zero: bool = False) -> float:
    """A finite positive number as a Python float."""
    number = as_number(caller, name, value)
    if number < 0 or (number == 0 and not zero):
        raise ValueError(f"{caller} needs {name} {'>=' if zero else '>'} 0, got {number}.")
    return number


@functools.lru_cache(maxsize=128)
def _kept(fn: Callable[..., Any], name: str, inputs: int) -> Function:
    return Function("jaxinit.activations", fn, name, inputs)


def _name_of(fn: Any) -> str:
    name = getattr(fn, "__name__", None)
    if name is None and isinstance(fn, functools.partial):
        return f"partial({_name_of(fn.func)})"
    return str(name or type(fn).__name__)


@contextlib.contextmanager
def _at_the_prompt() -> Iterator[None]:
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the host out
        host = None
    with (
        jax.ensure_compile_time_eval(),
        jax.enable_x64(True),
        jax.default_device(host),
        jax.numpy_rank_promotion("allow"),
        jax.debug_nans(False),
        jax.debug_infs(False),
        jax.disable_jit(False),
        jax.transfer_guard("allow"),
    ):
        yield


def _vectorised(
    caller: str, name: str, function: Callable[..., Any], inputs: int
) -> Callable[..., Any]:
    """The function on vectors; those written for one number are mapped."""
    with_vectors = [jax.ShapeDtypeStruct((_SIZE,), jnp.float64)] * inputs
    try:
        output = jax.eval_shape(lambda *z: function(*z), *with_vectors)
        chosen = function
    except Exception as error:
        chosen = jax.vmap(lambda *z: function(*z))
        try:
            output = jax.eval_shape(chosen, *with_vectors)
        except Exception:
            raise TypeError(
                f"{caller} needs a function of {inputs} array{'s' * (inputs > 1)} that JAX can "
                f"trace, got {name}, which raised {type(error).__name__}: {_first_line(error)} "
                "Write it with jax.numpy; inputs= says how many arguments it takes."
            ) from error
    leaves = jax.tree.leaves(output)
    if len(leaves) != 1 or leaves[0] is not output:
        raise TypeError(
            f"{caller} needs a function that returns one array, got {name}, which returns "
            f"{type(output).__name__}. Pick the output with a lambda."
        )
    if output.shape != (_SIZE,):
        raise ValueError(
            f"{caller} needs an elementwise function, got {name}, which turns shape {(_SIZE,)} "
            f"into {output.shape}. Pass what acts on each entry alone."
        )
    if not jnp.issubdtype(output.dtype, jnp.floating):
        raise TypeError(
            f"{caller} needs real floating-point output, got {output.dtype} from {name}. "
            "Convert it to a float, or take the real part or the modulus."
        )
    return lambda *z: chosen(*z)  # a new object: what jax.jit keeps for the old one is not ours


def _first_line(error: BaseException) -> str:
    line = str(error).strip().split("\n", 1)[0][:200].strip()
    return line if line.endswith((".", "!", "?")) else f"{line}."


def _compile(caller: str, name: str, vector: Callable[..., Any], inputs: int) -> Any:
    """Values and slopes to each input as one program on the host.

    Raises:
        TypeError: when JAX finds no derivative, as of callbacks.
    """
    shapes = [jax.ShapeDtypeStruct((_SIZE,), jnp.float64)] * inputs

    def forward(*z: Any) -> Any:
        zeros = [jnp.zeros_like(one) for one in z]
        slopes = []
        for i in range(inputs):
            tangents = (*zeros[:i], jnp.ones_like(z[i]), *zeros[i + 1 :])
            slopes.append(jax.jvp(vector, z, tangents)[1])
        return vector(*z), slopes

    def backward(*z: Any) -> Any:
        value, pull = jax.vjp(vector, *z)
        return value, list(pull(jnp.ones_like(value)))

    try:
        try:
            return jax.jit(forward).lower(*shapes).compile()
        except TypeError:  # a custom_vjp has no forward mode
            return jax.jit(backward).lower(*shapes).compile()
    except Exception as error:
        raise TypeError(
            f"{caller} needs a function that JAX can differentiate, got {name}, which raised "
            f"{type(error).__name__}: {_first_line(error)} Write it with jax.numpy."
        ) from error


def _noise(vector: Callable[..., Any], inputs: int) -> float:
    """Rounding of the narrowest floats that are computed with; 0 when all is float64."""
    shapes = [jax.ShapeDtypeStruct((_SIZE,), jnp.float64)] * inputs
    graph, _ = trace(vector, *shapes)
    dtypes = {aval.dtype for aval in graph.avals if jnp.issubdtype(aval.dtype, jnp.floating)}
    epsilons = [0.0, *(float(jnp.finfo(dtype).eps) for dtype in dtypes)]
    widest = max(epsilons)
    return widest if widest > 1e-12 else 0.0
