"""What can be known of an ONNX graph without running it, and the tools its rewrites share.

Functions of a ModelProto leave it as it is and return another or a record; functions of a GraphProto change it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeseg.errors import ExportError, one_line

Array = npt.NDArray[Any]

_SHAPE_SIZED = 1024
"""Elements up to which a tensor's values may matter for shapes; beyond, shape inference sees only its type."""
_FOLD_ELEMENTS = 1 << 24
_FOLD_GROWTH_BYTES = 1 << 16
_ROUNDS = 64
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}


@dataclass(frozen=True, slots=True)
class Facts:
    """What `learn` found: static shapes, element types, values, and for each constant `If` the branch it takes."""

    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, int]
    constants: Mapping[str, Array]
    branches: tuple[tuple[str, bool], ...]


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operators the graph is written in."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The node's attributes as Python values, texts decoded."""
    found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def title(node: onnx.NodeProto) -> str:
    """How messages name a layer: operator and name, or the tensor it makes where it has no name."""
    return f"{node.op_type} {node.name or next(iter(node.output), '')!r}"


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    return twin


def real_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs a caller feeds: old files list their initialisers among the inputs too."""
    stored = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in stored]


def learn(model: onnx.ModelProto, batch: int = 1) -> Facts:
    """Shapes, types and constants of every tensor, by shape inference and evaluation in turns, the batch size given.

    Raises ExportError where shape inference finds a contradiction.
    """
    work, constants = _skeleton(model, batch)
    opset, branches = opset_of(model), []
    shapes: dict[str, tuple[int, ...]] = {}
    types: dict[str, int] = {}
    for _ in range(_ROUNDS):
        shapes, types = _infer(work, constants)
        folded: set[str] = set()
        taken: tuple[onnx.NodeProto, bool] | None = None
        for node in work.graph.node:
            if node.op_type == "If" and node.input[0] in constants:
                taken = node, bool(constants[node.input[0]].reshape(-1)[0])
                break
            values = _evaluate(node, constants, shapes, opset)
            if values is not None:
                constants |= values
                folded |= set(values)
        if taken is None and not folded:
            break
        if taken is not None:
            branches.append((taken[0].output[0], taken[1]))
            inline_if(work.graph, *taken)
        drop_made(work.graph, set(constants))
    shapes |= {name: value.shape for name, value in constants.items()}
    return Facts(shapes, types, constants, tuple(branches))


def prune(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without nodes, initialisers and shape notes that no output needs."""
    model = copy(model)
    graph = model.graph
    needed = {value.name for value in graph.output}
    for index in reversed(range(len(graph.node))):
        if needed & set(graph.node[index].output):
            needed |= _reads(graph.node[index])
        else:
            del graph.node[index]
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in needed:
            del graph.initializer[index]
    made = {name for node in graph.node for name in node.output}
    refill(graph.value_info, [value for value in graph.value_info if value.name in made])
    return model


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Give a tensor another name, in place; a tensor that had the new name before makes way."""
    names = {name for node in graph.node for name in (*_reads(node), *node.output)}
    names |= {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    if old != new and new in names:
        _rename(graph, new, unused(new, names))
    _rename(graph, old, new)


def unused(name: str, names: Collection[str]) -> str:
    """The name itself, or with the first number that makes it new."""
    return next(text for i in range(len(names) + 1) if (text := f"{name}.{i}" if i else name) not in names)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, old, new)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        if value.name == old:
            value.name = new


def nodes_within(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of subgraphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes_within(inner)


def unknown_shape(model: onnx.ModelProto, facts: Facts) -> str:
    """The first layer whose inputs have known shapes and its output has none, for a message."""
    for node in model.graph.node:
        if all(name in facts.shapes for name in node.input if name) and node.output[0] not in facts.shapes:
            return title(node)
    return "an unknown layer"


def _reads(node: onnx.NodeProto) -> set[str]:
    """Every tensor the node reads, those that its subgraphs read from outside among them."""
    names = set(filter(None, node.input))
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names |= {name for inner in graph.node for name in _reads(inner)} | {value.name for value in graph.output}
    return names


def refill(field: Any, items: Iterable[Any]) -> None:
    """Make a repeated field hold exactly these messages, some of which may be its own."""
    held = [type(item).FromString(item.SerializeToString()) for item in items]  # deleting would empty the items
    del field[:]
    field.extend(held)


def drop(graph: onnx.GraphProto, gone: Callable[[onnx.NodeProto], bool]) -> None:
    """Remove the nodes that `gone` names."""
    for index in reversed(range(len(graph.node))):
        if gone(graph.node[index]):
            del graph.node[index]


def drop_made(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Remove the nodes all of whose outputs are among these."""
    drop(graph, lambda node: set(filter(None, node.output)) <= set(names))


def _skeleton(model: onnx.ModelProto, batch: int) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The graph with its weights outside, small enough to infer shapes of again and again; and all constants."""
    graph = model.graph
    elsewhere = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    away = {tensor.name for tensor in elsewhere}
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name not in away}
    twin = onnx.ModelProto(ir_version=max(4, model.ir_version), opset_import=model.opset_import)
    twin.graph.name = "skeleton"
    twin.graph.input.extend(real_inputs(graph))
    for value in twin.graph.input:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = batch
    # Weights that were not read are known by their type alone.
    twin.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in elsewhere)
    twin.graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in graph.output)
    for node in graph.node:
        value = _constant_node(node)
        if value is None:
            twin.graph.node.append(node)
        else:
            constants[node.output[0]] = value
    return twin, constants


def _constant_node(node: onnx.NodeProto) -> Array | None:
    if node.op_type != "Constant" or node.domain or len(node.attribute) != 1:
        return None
    value = helper.get_attribute_value(node.attribute[0])
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    kind = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    name = node.attribute[0].name
    return np.array(value, kind[name]) if name in kind else None


def _infer(work: onnx.ModelProto, constants: Mapping[str, Array]) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    full = copy(work)
    read = {name for node in work.graph.node for name in _reads(node)} | {value.name for value in work.graph.output}
    for name in sorted(read & set(constants)):
        value = constants[name]
        if value.size <= _SHAPE_SIZED:
            full.graph.initializer.append(numpy_helper.from_array(value, name))
        else:
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            full.graph.input.append(helper.make_tensor_value_info(name, kind, value.shape))
    try:
        graph = onnx.shape_inference.infer_shapes(full, data_prop=True).graph
    except Exception as error:  # onnx raises three unrelated classes here
        raise ExportError(f"the graph's shapes contradict each other: {one_line(error)}") from error
    shapes, types = {}, {}
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    types |= {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in constants.items()}
    return shapes, types


def _evaluate(
    node: onnx.NodeProto, constants: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], opset: int
) -> dict[str, Array] | None:
    """The node's outputs where they are constant and cheap to store, else None."""
    if node.domain not in ("", "ai.onnx") or node.op_type in _RANDOM or any(a.HasField("g") for a in node.attribute):
        return None
    if node.op_type == "Shape" and node.input[0] in shapes:
        span = attributes(node)
        shape = shapes[node.input[0]][span.get("start", 0) : span.get("end")]
        return {node.output[0]: np.array(shape, np.int64)}
    inputs = {name: constants.get(name) for name in node.input if name}
    arrays = {name: value for name, value in inputs.items() if value is not None}
    if not inputs or len(arrays) < len(inputs) or sum(value.size for value in arrays.values()) > _FOLD_ELEMENTS:
        return None
    limit = _FOLD_GROWTH_BYTES + 4 * sum(value.nbytes for value in arrays.values())
    if any(4 * int(np.prod(shapes.get(name, ()), dtype=np.int64)) > limit for name in node.output):
        return None
    graph = helper.make_graph(
        [node],
        "node",
        [onnx.ValueInfoProto(name=name) for name in arrays],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    single = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        values = [np.asarray(value) for value in ReferenceEvaluator(single).run(None, arrays)]
    except Exception:  # the definition lacks this operator or type: the node stays, runtimes decide
        return None
    return dict(zip(filter(None, node.output), values, strict=True))


def inline_if(graph: onnx.GraphProto, node: onnx.NodeProto, branch: bool) -> None:
    """Replace an `If` in place by the branch it always takes; what the branch names gets a name of its own."""
    body: onnx.GraphProto = attributes(node)["then_branch" if branch else "else_branch"]
    inner = {name for step in body.node for name in step.output if name} | {t.name for t in body.initializer}
    prefix = f"{node.name or node.output[0]}/"
    for name in inner:
        rename(body, name, prefix + name)  # nested subgraphs keep theirs: their names are unique by ONNX's own rule
    ends = [
        helper.make_node("Identity", [value.name], [name]) for value, name in zip(body.output, node.output, strict=True)
    ]
    at = next(i for i, other in enumerate(graph.node) if other.output[:1] == node.output[:1])
    steps = [*graph.node[:at], *body.node, *ends, *graph.node[at + 1 :]]
    graph.initializer.extend(body.initializer)
    refill(graph.node, steps)
