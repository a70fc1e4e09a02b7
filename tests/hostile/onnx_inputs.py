"""Hostile ONNX files to start a training from, and in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from breaking import TRAIN, VERIFY, Breaking, Rows, at, kinds, writing
from command_inputs import SOUND_CONFIG, merged
from onnx import TensorProto

from small_onnx import drawn, model, node, recognizer

START = [*TRAIN, "--recognizer.backbone=onnx", "--training.start_from=weights.onnx"]


def networks(address: str) -> Rows:
    rows: list[tuple[str, Breaking]] = [
        *kinds(),
        ("is cut", writing(recognizer(32).SerializeToString()[:-900])),
    ]
    rows += [(name, writing(made.SerializeToString())) for name, made in graphs().items()]
    for name, breaking in rows:
        yield f"that {name}", at("weights.onnx", breaking), START
    network = merged(SOUND_CONFIG, "recognizer: {backbone: onnx, embedding: 32}")
    config = merged(network, "training: {start_from: a.onnx}").encode()
    for name, breaking in kinds():

        def broken(work: Path, breaking: Breaking = breaking) -> None:
            writing(config)(work / "run/config.yaml")
            breaking(work / "run/start.onnx")

        yield f"of a run that {name}", broken, VERIFY


def graphs() -> dict[str, Any]:
    image = {"w": drawn(4, 3, 3, 3)}
    outside, huge = recognizer(32), recognizer(32)
    weight = outside.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../outside/secret.txt")
    huge.graph.initializer[0].dims[:] = [2**40, 2**40]
    doubling = [node("Identity", "input", "x0")]
    doubling += [node("Concat", f"x{n} x{n}", f"x{n + 1}", axis=1) for n in range(40)]
    return {
        "reads a file outside": outside,
        "has a tensor of huge shape": huge,
        "doubles its values without end": model(doubling, {}),
        "asks for huge pads": model([node("Conv", "input w", "y", pads=[2**40] * 4)], image),
        "asks for negative pads": model([node("Conv", "input w", "y", pads=[-100] * 4)], image),
        "asks for no strides": model([node("Conv", "input w", "y", strides=[0, 0])], image),
        "asks for huge pools": model([node("MaxPool", "input", "y", kernel_shape=[2**40, 2**40])], {}),
        "asks for no groups": model([node("Conv", "input w", "y", group=0)], image),
        "mixes faces": model([node("Add", "input c", "y")], {"c": drawn(7, 3, 32, 32)}),
        "has a value of no shape": model([node("Reshape", "input s", "y")], {"s": np.zeros(0, np.int64)}),
        "has an unknown operator": model([node("Evaluate", "input", "__import__('os')")], {}),
        "has an operator of somebody else's": model([node("Relu", "input", "y", domain="a")], {}),
    }
