"""What a network is made of: layers, maps, receptive fields, from a bundle, an ONNX file or a torch module."""
