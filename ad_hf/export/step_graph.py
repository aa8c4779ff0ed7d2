"""
One step of a model as a graph of ONNX: a step and the cache of the steps before it -> logits and the cache after it.

The cache holds the keys and values of the last `window - 1` steps, the newest in the last slot. Keys are stored as
they are before rotary positions turn them, and turned by their age when they are read: attention depends on the
difference of two positions alone, so no position grows, and the angles stay exact however long a history becomes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from ad_hf.model.attention_ad import rotary_tables
from ad_hf.model.blocks_ad import ADBlock
from ad_hf.model.embeddings_ad import (
    OUTLIER,
    CategoricalEmbedding,
    ImageEmbedding,
    StepEmbedding,
    VectorEmbedding,
    element_shape,
)
from ad_hf.model.modeling_ad import ADModel

STEP = ("observations", "previous_actions", "previous_rewards", "episode_starts")
STATES = ("keys", "values")
CACHE = (*STATES, "length")  # from one step to the next
INPUTS, OUTPUTS = (*STEP, *CACHE), ("logits", *(f"next_{name}" for name in CACHE))
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


def _block(
    graph: Graph, block: ADBlock, hidden: str, past: tuple[str, str], unseen: str, tables: Any
) -> tuple[str, str, str]:
    """Hidden states (batch, width) after a block, and its keys and values of all steps of the window."""
    attention: Any = block.attention
    heads, size = attention.num_heads, attention.head_dim
    qkv = graph.linear(attention.qkv, graph.norm(block.attention_norm, hidden))
    qkv = graph.node("Reshape", qkv, graph.constant([0, 3 * heads, 1, size]))
    query, key, value = graph.nodes_of("Split", 3, qkv, axis=1, num_outputs=3)
    query, key = (graph.norm(attention.query_key_norm, part) for part in (query, key))
    keys, values = (graph.node("Concat", old, new, axis=2) for old, new in zip(past, (key, value)))
    query = graph.turn(query, tuple(table[-1:] for table in tables))
    query = graph.node("Mul", query, graph.constant(attention.scaling, np.float32))
    turned = graph.node("Transpose", graph.turn(keys, tables), perm=[0, 1, 3, 2])
    scores = graph.node("Where", unseen, graph.constant(UNSEEN), graph.node("MatMul", query, turned))
    attended = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), values)
    attended = graph.node("Reshape", attended, graph.constant([0, heads * size]))
    hidden = graph.node("Add", hidden, graph.linear(attention.output, attended))
    inner = graph.node("Relu", graph.linear(block.up, graph.norm(block.feed_forward_norm, hidden)))
    return graph.node("Add", hidden, graph.linear(block.down, inner)), keys, values


def step_graph(model: ADModel, window: int, half: bool) -> onnx.ModelProto:
    """
    The graph of a step.

    Args:
        model ([`ADModel`]):
            A model of this package's own blocks.
        window (`int`):
            Steps that a step sees, itself included.
        half (`bool`):
            Whether weights are stored in half precision.

    Returns:
        `onnx.ModelProto` with inputs `observations` and `previous_actions` (batch, ...), int32 of discrete spaces;
        `previous_rewards` (batch,); `episode_starts` (batch,), int32; `keys` and `values` (layers, batch, heads,
        window - 1, head_dim); and `length` (batch,), int32, the number of steps in these. Its outputs are `logits`
        (batch, n), and `next_keys`, `next_values` and `next_length` for the next step.
    """
    graph, blocks = Graph(half), list(model.blocks)
    head_dim = blocks[0].attention.head_dim
    rotary = rotary_tables(torch.arange(window), head_dim, model.config.rope_theta, torch.float32, torch.float64)
    tables = tuple(table.squeeze(1).numpy() for table in rotary)  # (window, head_dim)
    hidden = _embed(graph, model.embedding)
    ages = graph.constant(np.arange(window - 1, -1, -1), np.int32)
    unseen = graph.node("Greater", ages, graph.node("Unsqueeze", CACHE[2], graph.constant([1, 2, 3])))
    pasts = [graph.nodes_of("Split", len(blocks), name, axis=0, num_outputs=len(blocks)) for name in STATES]
    first, now = graph.constant([0]), {name: list[str]() for name in STATES}
    for block, *past in zip(blocks, *pasts):
        keys, values = (graph.node("Squeeze", part, first) for part in past)
        hidden, *states = _block(graph, block, hidden, (keys, values), unseen, tables)
        for name, part in zip(STATES, states):
            kept = graph.node("Slice", part, graph.constant([1]), graph.constant([window]), graph.constant([2]))
            now[name].append(graph.node("Unsqueeze", kept, first))
    one, most = (graph.constant(number, np.int32) for number in (1, window - 1))
    results = [
        graph.linear(model.head.linear, graph.norm(model.norm, hidden)),
        *(graph.node("Concat", *parts, axis=0) for parts in now.values()),
        graph.node("Min", graph.node("Add", CACHE[2], one), most),
    ]
    for result, name in zip(results, OUTPUTS):
        graph.nodes.append(helper.make_node("Identity", [result], [name]))
    return _whole(graph, model, window)


def _whole(graph: Graph, model: ADModel, window: int) -> onnx.ModelProto:
    """The model of a graph, checked."""
    spaces: list[Any] = [model.config.observation_space, model.config.action_space]
    attention, batch = model.blocks[0].attention, "batch"
    states = [len(model.blocks), batch, attention.num_heads, window - 1, attention.head_dim]
    kinds = [TensorProto.FLOAT if space["type"] == "Box" else TensorProto.INT32 for space in spaces]
    shapes: list[list[Any]] = [[batch, *element_shape(space)] for space in spaces]
    inputs = [*zip(kinds, shapes), (TensorProto.FLOAT, [batch]), (TensorProto.INT32, [batch])]
    cache = [*[(TensorProto.FLOAT, states)] * 2, (TensorProto.INT32, [batch])]
    outputs = [(TensorProto.FLOAT, [batch, model.head.linear.out_features]), *cache]
    declared = [
        [helper.make_tensor_value_info(name, *kind) for name, kind in zip(names, kinds_and_shapes)]
        for names, kinds_and_shapes in ((INPUTS, [*inputs, *cache]), (OUTPUTS, outputs))
    ]
    proto = helper.make_graph(graph.nodes, "step", declared[0], declared[1], list(graph.constants.values()))
    opset = helper.make_opsetid("", OPSET)
    whole = helper.make_model(proto, opset_imports=[opset], ir_version=IR_VERSION, producer_name="ad_hf")
    onnx.checker.check_model(whole, full_check=True)
    return whole


__all__ = ["INPUTS", "OUTPUTS", "step_graph"]
