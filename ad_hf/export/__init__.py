"""A trained model elsewhere: as ONNX, and on a page that lets it learn in a browser."""

from ad_hf.export.page import build_demo

__all__ = ["build_demo"]
