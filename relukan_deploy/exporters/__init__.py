"""From a lowered `KanSpec` to artifacts: to_onnx.py, then to_tensorrt.py."""
