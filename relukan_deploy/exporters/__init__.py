"""From a `KanSpec` to artifacts: lowering.py, then to_onnx.py, then to_tensorrt.py."""
