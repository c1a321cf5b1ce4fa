"""Encoders as programs that run without this package: StableHLO and ONNX.

Both take images (B, H, W, C) float32, of any number B, as `load_encoder` takes them, from 0 to 1
where pixels are whole numbers, and give "cls" (B, D) and "patches" (B, N, D) float32, the tokens
after the final norm. Normalisation is part of the program, and so are the weights.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jax.extend import core

from dppmask_jax import whole_files
from dppmask_jax.errors import InputError
from dppmask_jax.runs.run import Run, load_run

SUFFIXES = {"stablehlo": ".stablehlo", "onnx": ".onnx"}
# Primitives that call a function; gradients of its own do not matter here.
_CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2")
_PACKAGES = {"onnx": "jax2onnx", "stablehlo": "flatbuffers"}  # of the extra of the format's name
_LACKING = re.compile(r"\bfor (?:the )?primitive '([^']+)'")  # in jax2onnx's messages
PLATFORMS = ("cpu", "tpu", "cuda")


def check(format_name: str, path: Path) -> None:
    """Raises InputError where a file has another name than its format's, is there already, or the
    format needs a package that is missing."""
    suffix = SUFFIXES[format_name]
    if path.exists():
        raise InputError(f"{path} exists and is not overwritten; name another, or remove it")
    if path.suffix != suffix:
        raise InputError(f"{path}: --format={format_name} is a {suffix} file; name one")
    package = _PACKAGES[format_name]
    if importlib.util.find_spec(package) is None:
        raise InputError(
            f"--format={format_name} needs the package {package}, which is not installed: pip "
            f"install 'dppmask-jax[{format_name}]'"
        )


def export_program(
    folder: str | Path,
    path: str | Path,
    format_name: str,
    image_size: tuple[int, int] | None = None,
    projection: str | Path | None = None,
) -> str:
    """Writes the encoder of a run, whole or not at all, in float32.

    Args:
      folder: what `load_run` takes.
      path: a new file, .stablehlo or .onnx.
      format_name: "stablehlo" or "onnx".
      image_size, projection: see `load_run`.

    Returns:
      How to run it, in a few lines.

    Raises:
      InputError: see `check` and `load_run`; the method trains no encoder, or ONNX lacks a part.
    """
    path = Path(path)
    check(format_name, path)
    run = load_run(folder, image_size=image_size, dtype="float32", projection=projection)
    run.check_encodes()
    made = {"stablehlo": _stablehlo, "onnx": _onnx}[format_name](run)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_files.replacing(path) as partial:
        partial.write_bytes(made)
    height, width = run.image_size
    return (
        f"{path}\n{_loaded_by(path, format_name)}\n"
        f"images: (B, {height}, {width}, {run.pixels.channels}) float32 from 0 to 1"
    )


def _loaded_by(path: Path, format_name: str) -> str:
    """The Python that runs it."""
    if format_name == "stablehlo":
        return f"jax.export.deserialize(bytearray(open({str(path)!r}, 'rb').read())).call(images)"
    return (
        f"onnxruntime.InferenceSession({str(path)!r}).run(['cls', 'patches'], {{'images': images}})"
    )


def _encoding(run: Run):
    """images -> {"cls", "patches"}, with the run's weights."""
    encode, normalize, params = run.method.encoder.encode, run.pixels.normalize, run.encoder

    def program(images):
        tokens = encode(params, normalize(images))
        return {"cls": tokens.cls, "patches": tokens.patches}

    return program


def _stablehlo(run: Run) -> bytes:
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *run.image_size, run.pixels.channels), jnp.float32)
    return bytes(export.export(jax.jit(_encoding(run)), platforms=PLATFORMS)(images).serialize())


def _onnx(run: Run) -> bytes:
    for name in ("jax2onnx", "onnx_ir"):  # they warn of parts of other libraries
        logging.getLogger(name).setLevel(logging.ERROR)
    from jax2onnx import to_onnx

    program = _for_any_platform(_encoding(run))

    def tokens(images):
        found = program(images)
        return found["cls"], found["patches"]

    shape = ("batch", *run.image_size, run.pixels.channels)
    try:
        model = to_onnx(tokens, [shape], model_name="encoder", enable_double_precision=False)
    except NotImplementedError as error:
        if not (lacking := _LACKING.search(str(error))):
            raise
        raise InputError(
            f"--format=onnx: jax2onnx has no way to write {lacking[1]!r}, a primitive of JAX that "
            "this encoder uses; write --format=stablehlo"
        ) from error
    _rename(model.graph, ["images"], ["cls", "patches"])
    return model.SerializeToString()


def _rename(graph, inputs: list[str], outputs: list[str]) -> None:
    """Gives the inputs and outputs of an ONNX graph names of ours."""
    new = {}
    for values, names in ((graph.input, inputs), (graph.output, outputs)):
        for value, name in zip(values, names, strict=True):
            new[value.name] = value.name = name
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]


def _for_any_platform(function):
    """The function without what it does on some platforms alone, such as the fences in encoders:
    ONNX knows no platforms."""

    def run(*arguments):
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        values = _evaluated(closed.jaxpr, closed.consts, arguments)
        return jax.tree.unflatten(jax.tree.structure(shape), values)

    return run


def _evaluated(jaxpr: core.Jaxpr, consts, arguments) -> list[Any]:
    """What a jaxpr gives, where branches by platform take the last, which is for all others."""
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    known |= dict(zip(jaxpr.invars, arguments, strict=True))
    of_platform = set()

    def value(atom):
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "platform_index":
            of_platform |= set(equation.outvars)
            continue
        index = equation.invars[0] if equation.invars else None
        if name == "cond" and not isinstance(index, core.Literal) and index in of_platform:
            branch = params["branches"][-1]
            found = _evaluated(branch.jaxpr, branch.consts, [*map(value, equation.invars[1:])])
        elif name in _CALLS:
            inner = params.get("jaxpr") or params["call_jaxpr"]
            closed = inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())
            found = _evaluated(closed.jaxpr, closed.consts, [*map(value, equation.invars)])
        else:
            found = equation.primitive.bind(*map(value, equation.invars), **params)
        found = found if isinstance(found, (list, tuple)) else [found]
        known |= dict(zip(equation.outvars, found, strict=True))
    return [value(atom) for atom in jaxpr.outvars]
