"""
One step of a model as a graph of ONNX: a step and the cache of the steps before it -> logits and the cache after it.

Of layers that attend, the cache holds the keys and values of the last `window - 1` steps, the newest in the last slot.
Keys are stored as they are before rotary positions turn them, and turned by their age when they are read: attention
depends on the difference of two positions alone, so no position grows, and the angles stay exact however long a
history becomes. Of linear attention, it holds the states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from ad_hf.model.attention_ad import rotary_tables
from ad_hf.model.configuration_ad import FULL, SLIDING
from ad_hf.model.embeddings_ad import (
    OUTLIER,
    CategoricalEmbedding,
    ImageEmbedding,
    StepEmbedding,
    VectorEmbedding,
    element_shape,
)
from ad_hf.model.linear_attention_ad import LinearAttention
from ad_hf.model.modeling_ad import ADModel

STEP = ("observations", "previous_actions", "previous_rewards", "episode_starts")
BATCH = "batch"
OPSET, IR_VERSION = 18, 10
UNSEEN = np.float32(-1e30)


class Graph:
    """
    Nodes and constants of a graph; every method returns the name of its result.

    Args:
        half (`bool`):
            Whether weights are stored in half precision. They are cast before they are used.
    """

    def __init__(self, half: bool) -> None:
        self.half, self.nodes = half, list[onnx.NodeProto]()
        self.constants: dict[str, onnx.TensorProto] = {}  # by their content

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        return self.nodes_of(operator, 1, *inputs, **attributes)[0]

    def nodes_of(self, operator: str, number: int, *inputs: str, **attributes: Any) -> list[str]:
        """Several results of one node."""
        names = [f"{operator}_{len(self.nodes)}_{index}" for index in range(number)]
        self.nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names

    def constant(self, values: Any, kind: Any = None) -> str:
        """Numbers; whole ones are of int64, as sizes are, by default."""
        array = np.asarray(values, dtype=kind)
        content = f"constant {array.dtype} {array.shape} {array.tobytes().hex()}"
        return self.constants.setdefault(content, numpy_helper.from_array(array, f"c{len(self.constants)}")).name

    def weight(self, tensor: Any) -> str:
        """A model's weight; the empty name of an argument that is left out for none."""
        if tensor is None:
            return ""
        array = tensor.detach().float().numpy()
        if not self.half:
            return self.constant(array)
        return self.node("Cast", self.constant(array.astype(np.float16)), to=TensorProto.FLOAT)

    def linear(self, layer: Any, values: str) -> str:
        """Values (batch, n) through a linear layer."""
        bias = [] if layer.bias is None else [self.weight(layer.bias)]
        return self.node("Gemm", values, self.weight(layer.weight), *bias, transB=1)

    def norm(self, layer: Any, values: str) -> str:
        inputs = [name for name in (self.weight(layer.weight), self.weight(layer.bias)) if name]
        return self.node("LayerNormalization", values, *inputs, axis=-1, epsilon=layer.eps)

    def convolution(self, layer: Any, values: str) -> str:
        weights, padding = (self.weight(layer.weight), self.weight(layer.bias)), list(layer.padding) * 2
        return self.node("Conv", values, *weights, strides=list(layer.stride), pads=padding)

    def project(self, layer: Any, inputs: str) -> list[str]:
        """Queries, keys and values (batch, heads, 1, size) of a layer's inputs (batch, width)."""
        shape = self.constant([0, 3 * layer.num_heads, 1, layer.head_dim])
        qkv = self.node("Reshape", self.linear(layer.qkv, inputs), shape)
        return self.nodes_of("Split", 3, qkv, axis=1, num_outputs=3)

    def transpose(self, values: str) -> str:
        """Values (batch, heads, n, m) as (batch, heads, m, n)."""
        return self.node("Transpose", values, perm=[0, 1, 3, 2])

    def turn(self, values: str, tables: tuple[np.ndarray, ...]) -> str:
        """Values (..., head_dim) turned by cosines and signed sines, as `ADAttention.project` does."""
        first, second = self.nodes_of("Split", 2, values, axis=-1, num_outputs=2)
        cosines, sines = (self.constant(table) for table in tables)
        rolled = self.node("Concat", second, first, axis=-1)
        return self.node("Add", self.node("Mul", values, cosines), self.node("Mul", rolled, sines))


def _embed_element(graph: Graph, embedding: Any, values: str) -> str:
    """An observation or an action (batch, ...) as (batch, width)."""
    if isinstance(embedding, CategoricalEmbedding):
        tables = [graph.weight(table.weight) for table in embedding.tables]
        columns = [values]
        if len(tables) > 1:
            columns = [graph.node("Gather", values, graph.constant(each), axis=1) for each in range(len(tables))]
        parts = [graph.node("Gather", table, column) for table, column in zip(tables, columns)]
        return graph.node("Sum", *parts)
    if isinstance(embedding, VectorEmbedding):
        if embedding.normalizes:
            mean, std = (graph.constant(part, np.float32) for part in (embedding.mean, embedding.std))
            values = graph.node("Div", graph.node("Sub", values, mean), std)
            bounds = (graph.constant(bound, np.float32) for bound in (-OUTLIER, OUTLIER))
            values = graph.node("Clip", values, *bounds)
        return graph.linear(embedding.linear, values)
    return _embed_image(graph, embedding, values)


def _embed_image(graph: Graph, embedding: ImageEmbedding, values: str) -> str:
    _, right, _, below = embedding.padding
    frames = graph.node("Transpose", values, perm=[0, 3, 1, 2])
    frames = graph.node("Pad", frames, graph.constant([0, 0, 0, 0, 0, 0, below, right]))
    frames = graph.node("Div", frames, graph.constant(embedding.scale, np.float32))
    for layer in (embedding.patches, *embedding.convolutions):
        frames = graph.node("Relu", graph.convolution(layer, frames))
    return graph.linear(embedding.linear, graph.node("Flatten", frames))


def _embed(graph: Graph, embedding: StepEmbedding) -> str:
    """The token (batch, width) of a step."""
    scale = graph.constant(embedding.reward_scale, np.float32)
    rewards = graph.node("Unsqueeze", graph.node("Div", STEP[2], scale), graph.constant([1]))
    return graph.node(
        "Sum",
        _embed_element(graph, embedding.observation, STEP[0]),
        _embed_element(graph, embedding.previous_action, STEP[1]),
        graph.linear(embedding.previous_reward, rewards),
        graph.node("Gather", graph.weight(embedding.episode_start.weight), STEP[3]),
    )


def cache_of(model: ADModel, window: int | None) -> dict[str, tuple[str, list[int | str]]]:
    """What goes from one step to the next, by name: its type, and its shape with the batch by its name."""
    attending = [block.attention for block in model.blocks if not isinstance(block.attention, LinearAttention)]
    recurrent = [block.attention for block in model.blocks if isinstance(block.attention, LinearAttention)]
    cache: dict[str, tuple[str, list[int | str]]] = {}
    if attending and window is not None:
        states = [len(attending), BATCH, attending[0].num_heads, window - 1, attending[0].head_dim]
        cache |= {"keys": ("float32", states), "values": ("float32", states), "length": ("int32", [BATCH])}
    if recurrent:
        size = recurrent[0].head_dim
        cache["memories"] = ("float32", [len(recurrent), BATCH, recurrent[0].num_heads, size, size])
    return cache


class _Attention:
    """
    Layers that attend, in a graph.

    Args:
        graph (`Graph`):
            The graph.
        model ([`ADModel`]):
            The model.
        window (`int`):
            Steps that the cache and the present step hold.
        pasts (`list[list[str]]`):
            Keys and values before the step, each of all such layers.
    """

    def __init__(self, graph: Graph, model: ADModel, window: int, pasts: list[list[str]]) -> None:
        self.graph, self.window, self.pasts = graph, window, list(zip(*pasts))
        self.after: dict[str, list[str]] = {"keys": [], "values": []}
        sees: Any = model.config.sliding_window
        head_dim = model.config.hidden_size // model.config.num_attention_heads
        rotary = rotary_tables(torch.arange(window), head_dim, model.config.rope_theta, torch.float32, torch.float64)
        self.tables = tuple(table.squeeze(1).numpy() for table in rotary)  # (window, head_dim)
        ages = np.arange(window - 1, -1, -1)
        missing = graph.node("Unsqueeze", "length", graph.constant([1, 2, 3]))
        missing = graph.node("Greater", graph.constant(ages, np.int32), missing)
        self.unseen = {FULL: missing, SLIDING: missing}
        if sees is not None and sees < window:
            old = graph.constant(ages >= sees, np.bool_)
            self.unseen[SLIDING] = graph.node("Or", missing, old)

    def step(self, layer: Any, inputs: str, kind: str) -> str:
        """Outputs (batch, width) of the next such layer, before its last map."""
        graph, heads, size = self.graph, layer.num_heads, layer.head_dim
        query, key, value = graph.project(layer, inputs)
        query, key = (graph.norm(layer.query_key_norm, part) for part in (query, key))
        past = self.pasts[len(self.after["keys"])]
        keys, values = (graph.node("Concat", old, new, axis=2) for old, new in zip(past, (key, value)))
        query = graph.turn(query, tuple(table[-1:] for table in self.tables))
        query = graph.node("Mul", query, graph.constant(layer.scaling, np.float32))
        scores = graph.node("MatMul", query, graph.transpose(graph.turn(keys, self.tables)))
        scores = graph.node("Where", self.unseen[kind], graph.constant(UNSEEN), scores)
        attended = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), values)
        kept = [graph.constant([each]) for each in (1, self.window, 2)]
        for name, part in (("keys", keys), ("values", values)):
            self.after[name].append(graph.node("Slice", part, *kept))
        return graph.node("Reshape", attended, graph.constant([0, heads * size]))


class _Recurrence:
    """Layers of linear attention, in a graph: `delta_step`, with the states (batch, heads, size, size) before it."""

    def __init__(self, graph: Graph, states: list[str]) -> None:
        self.graph, self.states, self.after = graph, states, list[str]()

    def step(self, layer: LinearAttention, inputs: str) -> str:
        """Outputs (batch, width) of the next such layer, before its last map."""
        graph, heads, size = self.graph, layer.num_heads, layer.head_dim
        state = self.states[len(self.after)]
        query, key, value = graph.project(layer, inputs)
        scale = graph.constant(np.full(size, size**-0.5), np.float32)
        query, key = (
            graph.node("LayerNormalization", part, scale, axis=-1, epsilon=layer.epsilon) for part in (query, key)
        )
        gates = graph.node("Sigmoid", graph.linear(layer.gates, inputs))
        gates = graph.node("Reshape", gates, graph.constant([0, 2 * heads, 1, 1]))
        strength, decay = graph.nodes_of("Split", 2, gates, axis=1, num_outputs=2)
        decay = graph.node("Mul", decay, graph.constant(layer.least_decay - 1, np.float32))
        decay = graph.node("Exp", graph.node("Sub", decay, graph.constant(layer.least_decay, np.float32)))
        state = graph.node("Mul", state, decay)
        recalled = graph.node("MatMul", state, graph.transpose(key))
        update = graph.node("Mul", strength, graph.node("Sub", graph.transpose(value), recalled))
        state = graph.node("Add", state, graph.node("MatMul", update, key))
        self.after.append(state)
        answer = graph.node("MatMul", state, graph.transpose(query))
        return graph.node("Reshape", answer, graph.constant([0, heads * size]))


def step_graph(model: ADModel, window: int | None, half: bool) -> onnx.ModelProto:
    """
    The graph of a step.

    Args:
        model ([`ADModel`]):
            A model of this package's own blocks.
        window (`int`, *optional*):
            Steps that a step sees, itself included, in layers that attend to all that are held.
        half (`bool`):
            Whether weights are stored in half precision.

    Returns:
        `onnx.ModelProto` with inputs `observations` and `previous_actions` (batch, ...), int32 of discrete spaces;
        `previous_rewards` (batch,); `episode_starts` (batch,), int32; with layers that attend, `keys` and `values`
        (layers, batch, heads, window - 1, head_dim) and `length` (batch,), int32, the number of steps in these; and
        with linear attention `memories` (layers, batch, heads, head_dim, head_dim). Its outputs are `logits`
        (batch, n), and `next_keys` and so on for the next step.
    """
    graph, cache = Graph(half), cache_of(model, window)
    hidden, parts, first = _embed(graph, model.embedding), dict[str, list[str]](), graph.constant([0])
    for name in [name for name in cache if name != "length"]:
        number = int(cache[name][1][0])
        layers = graph.nodes_of("Split", number, name, axis=0, num_outputs=number)
        parts[name] = [graph.node("Squeeze", layer, first) for layer in layers]
    recurrence = _Recurrence(graph, parts.get("memories", []))
    if "keys" in cache and window is not None:
        attention = _Attention(graph, model, window, [parts["keys"], parts["values"]])
    for block, kind in zip(model.blocks, model.config.kinds_of_layers):
        inputs = graph.norm(block.attention_norm, hidden)
        if isinstance(block.attention, LinearAttention):
            attended = recurrence.step(block.attention, inputs)
        else:
            attended = attention.step(block.attention, inputs, kind)
        hidden = graph.node("Add", hidden, graph.linear(block.attention.output, attended))
        inner = graph.node("Relu", graph.linear(block.up, graph.norm(block.feed_forward_norm, hidden)))
        hidden = graph.node("Add", hidden, graph.linear(block.down, inner))
    after = {"memories": recurrence.after} | (attention.after if "keys" in cache else {})
    results = {"logits": graph.linear(model.head.linear, graph.norm(model.norm, hidden))}
    for name in cache:
        if name == "length":
            one, most = (graph.constant(number, np.int32) for number in (1, window - 1))  # type: ignore[operator]
            results[f"next_{name}"] = graph.node("Min", graph.node("Add", name, one), most)
        else:
            layers = [graph.node("Unsqueeze", part, first) for part in after[name]]
            results[f"next_{name}"] = graph.node("Concat", *layers, axis=0)
    for name, result in results.items():
        graph.nodes.append(helper.make_node("Identity", [result], [name]))
    return _whole(graph, model, cache)


def _whole(graph: Graph, model: ADModel, cache: Mapping[str, tuple[str, list[int | str]]]) -> onnx.ModelProto:
    """The model of a graph, checked."""
    spaces: list[Any] = [model.config.observation_space, model.config.action_space]
    step: list[tuple[str, list[int | str]]]
    kinds = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
    step = [("float32" if space["type"] == "Box" else "int32", [BATCH, *element_shape(space)]) for space in spaces]
    step += [("float32", [BATCH]), ("int32", [BATCH])]
    inputs = {**dict(zip(STEP, step)), **cache}
    outputs: dict[str, tuple[str, list[int | str]]] = {"logits": ("float32", [BATCH, model.head.linear.out_features])}
    outputs |= {f"next_{name}": each for name, each in cache.items()}
    declared = [
        [helper.make_tensor_value_info(name, kinds[kind], shape) for name, (kind, shape) in values.items()]
        for values in (inputs, outputs)
    ]
    proto = helper.make_graph(graph.nodes, "step", declared[0], declared[1], list(graph.constants.values()))
    opset = helper.make_opsetid("", OPSET)
    whole = helper.make_model(proto, opset_imports=[opset], ir_version=IR_VERSION, producer_name="ad_hf")
    onnx.checker.check_model(whole, full_check=True)
    return whole


__all__ = ["BATCH", "STEP", "cache_of", "step_graph"]
