"""Serving bundles over the network, in the Open Inference Protocol."""
