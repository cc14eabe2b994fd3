"""Where networks come from: torch modules and ONNX files, each the judge of its own export."""
