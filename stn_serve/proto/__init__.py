"""The typed image API, the part of ONNX that is read here, and the code generated from both."""
